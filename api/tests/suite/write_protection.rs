//! Who may write, over TCP. The rules themselves are tested beside `authority`.

use shared::config::Secret;
use shared::testing::TestDatabase;

use crate::support::{TestApi, model};

/// All operations that need authorization.
const GUARDED: [(&str, &str); 4] = [
    ("PUT", "/api/v1/orders/b563feb7b2b84b6test"),
    ("DELETE", "/api/v1/orders/b563feb7b2b84b6test"),
    ("POST", "/api/v1/cache/warmup"),
    ("DELETE", "/api/v1/cache"),
];

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_writes_need_it_and_reads_do_not() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.api_token = Some(Secret::new("s3cret"))
    })
    .await;
    api.store(&model()).await;
    for (method, path) in GUARDED {
        for headers in [
            &[][..],
            &[("Authorization", "Bearer wrong")],
            &[("Authorization", "Basic s3cret")],
        ] {
            let answer = api.send(method, path, headers, b"").await;
            assert_eq!(
                answer.problem(),
                (401, "unauthorized".into()),
                "{method} {path} {headers:?}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(api.get("/order/b563feb7b2b84b6test").await.status, 200);
    let token = ("Authorization", "Bearer s3cret");
    // The token is proof enough, because no page of another site has it.
    assert_eq!(
        api.put(&model(), &[token, ("Host", "orders.example")])
            .await
            .status,
        200
    );
    assert_eq!(
        api.send("POST", "/api/v1/cache/warmup", &[token], b"")
            .await
            .status,
        200
    );
    assert_eq!(
        api.send("DELETE", "/api/v1/cache", &[token], b"")
            .await
            .status,
        204
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn off_loopback_writes_are_disabled_unless_allowed() {
    for (is_allowed, expected) in [(false, 403), (true, 204)] {
        let api = TestApi::start_with(TestDatabase::create(), |config| {
            config.address.0 = "0.0.0.0".to_owned();
            config.allow_unauthenticated_writes = is_allowed;
        })
        .await;
        let answer = api.send("DELETE", "/api/v1/cache", &[], b"").await;
        assert_eq!(answer.status, expected);
        if !is_allowed {
            for (method, path) in GUARDED {
                let answer = api.send(method, path, &[], b"").await;
                assert_eq!(
                    answer.problem(),
                    (403, "writes_disabled".into()),
                    "{method} {path}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_writes_are_not_for_pages_of_other_sites() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    for (method, path) in GUARDED {
        for headers in [
            &[("Host", "evil.example")][..],
            &[("Origin", "http://evil.example")],
            &[("Origin", "null")],
            &[("Origin", "http://localhost:1")],
            &[("Sec-Fetch-Site", "cross-site")],
        ] {
            let answer = api.send(method, path, headers, b"").await;
            assert_eq!(
                answer.problem(),
                (403, "forbidden_origin".into()),
                "{method} {path} {headers:?}"
            );
        }
    }
    let own = [
        ("Origin", "http://localhost"),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    assert_eq!(api.put(&model(), &own).await.status, 200);
    assert_eq!(
        api.send(
            "GET",
            "/order/b563feb7b2b84b6test",
            &[("Host", "evil.example")],
            b""
        )
        .await
        .status,
        200
    );
}
