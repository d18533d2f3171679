//! Too many requests from one client, over TCP. The counting is tested beside `rate_limit`.

use std::num::NonZeroU32;

use shared::testing::TestDatabase;

use crate::support::TestApi;

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_asks_too_often_is_told_when_to_come_back() {
    let api = TestApi::start_unready(TestDatabase::create().into(), |config| {
        config.rate_limit_per_minute = NonZeroU32::new(3);
    })
    .await;
    for remaining in ["2", "1", "0"] {
        let answer = api.get("/nothing").await;
        assert_eq!(answer.status, 404);
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some("\"default\";q=3;w=60")
        );
        let state = answer.header("ratelimit").unwrap();
        let expected = format!("\"default\";r={remaining};t=");
        assert!(state.starts_with(&expected), "{state}");
    }
    for path in ["/nothing", "/order/a", "/api/v1/orders"] {
        let refused = api.get(path).await;
        assert_eq!(refused.problem(), (429, "rate_limited".into()), "{path}");
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert!(
            refused
                .header("ratelimit")
                .unwrap()
                .starts_with("\"default\";r=0;t=")
        );
    }
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let answer = api.get(path).await;
        assert_ne!(answer.status, 429, "{path}");
        assert_eq!(answer.header("ratelimit"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_limited_unless_the_operator_says_so() {
    let api = TestApi::start_unready(TestDatabase::create().into(), |_| {}).await;
    for _ in 0..200 {
        let answer = api.get("/nothing").await;
        assert_eq!((answer.status, answer.header("ratelimit")), (404, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_trusted_proxy_are_counted_apart() {
    for (trusted, expected) in [(Some("127.0.0.1"), 404), (None, 429)] {
        let api = TestApi::start_unready(TestDatabase::create().into(), |config| {
            config.rate_limit_per_minute = NonZeroU32::new(1);
            config.trusted_proxies = trusted.iter().map(|each| each.parse().unwrap()).collect();
        })
        .await;
        let statuses = async |client: &str| {
            let headers = [("X-Forwarded-For", client)];
            api.send("GET", "/nothing", &headers, b"").await.status
        };
        assert_eq!(statuses("192.0.2.1").await, 404);
        assert_eq!(statuses("192.0.2.2").await, expected, "{trusted:?}");
        assert_eq!(statuses("198.51.100.1, 192.0.2.1").await, 429);
    }
}
