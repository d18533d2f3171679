//! PATCH. What a patch does to an order is tested beside `merge_patch`.

use diesel::connection::SimpleConnection;
use futures_util::future::join_all;
use serde_json::{Value, json};
use shared::testing::{Notifications, TestDatabase};

use crate::support::tokens::{TokenFile, bearer};
use crate::support::{TestApi, generator, model, store};

const UID: &str = "b563feb7b2b84b6test";
const MODEL: &str = "/api/v1/orders/b563feb7b2b84b6test";
const ROWS: &str =
    "SELECT concat_ws(' ', version, xmin, source_offset, updated_at) AS value FROM orders";

fn model_with(pointer: &str, value: &str) -> Value {
    let mut order = serde_json::to_value(model()).unwrap();
    *order.pointer_mut(pointer).unwrap() = value.into();
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_changes_only_what_it_names_and_is_visible_at_once() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let before = api.get(MODEL).await;
    let patch = r#"{"delivery":{"city":"Haifa"}}"#;
    let patched = api.patch(UID, patch, &[]).await;
    assert_eq!(patched.status, 200);
    assert_eq!(patched.json(), model_with("/delivery/city", "Haifa"));
    assert_ne!(patched.header("etag"), before.header("etag"));
    let read = api.get(MODEL).await;
    assert_eq!(
        (&read.body, read.header("etag")),
        (&patched.body, patched.header("etag"))
    );
    let sources = "SELECT count(*) AS value FROM orders WHERE source_offset IS NOT NULL";
    assert_eq!(api.database.integer(sources), 0, "as after a PUT");
}

#[tokio::test(flavor = "multi_thread")]
async fn patch_that_changes_nothing_writes_nothing() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let before = (api.get(MODEL).await, api.database.texts(ROWS));
    let mut events = Notifications::listen(&api.database);
    for patch in [
        "{}",
        r#"{"locale":"en","delivery":{"city":"Kiryat Mozkin"},"sm_id":99.0}"#,
    ] {
        let patched = api.patch(UID, patch, &[]).await;
        assert_eq!(patched.status, 200);
        let (read, _) = &before;
        assert_eq!(
            (&patched.body, patched.header("etag")),
            (&read.body, read.header("etag"))
        );
    }
    assert_eq!(api.database.texts(ROWS), before.1);
    assert_eq!(events.events().len(), 0);
}

/// A patch is checked before the order is read, so what it breaks comes before 404 and 412. Only what the stored order breaks
/// comes last.
#[tokio::test(flavor = "multi_thread")]
async fn patch_checks_media_type_size_json_order_uid_existence_and_precondition_in_this_order() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let large = " ".repeat(256 * 1024 + 1);
    let merge_patch = "application/merge-patch+json";
    let old = ("If-Match", "\"0\"");
    for (uid, media_type, body, status, code) in [
        (
            "absent",
            "application/json",
            large.as_str(),
            415,
            "unsupported_media_type",
        ),
        ("absent", merge_patch, &large, 413, "body_too_large"),
        ("absent", merge_patch, "{", 400, "malformed_json"),
        (
            "absent",
            merge_patch,
            r#"{"order_uid":"x","payment":{"amount":-1}}"#,
            422,
            "invalid_order",
        ),
        (
            "absent",
            merge_patch,
            r#"{"order_uid":"x"}"#,
            422,
            "uid_mismatch",
        ),
        ("absent", merge_patch, "{}", 404, "order_not_found"),
        (UID, merge_patch, "{}", 412, "version_mismatch"),
    ] {
        let headers = [("Content-Type", media_type), old];
        let path = format!("/api/v1/orders/{uid}");
        let answer = api.send("PATCH", &path, &headers, body.as_bytes()).await;
        assert_eq!(answer.problem(), (status, code.into()), "{code}");
        let accepted = Some(merge_patch).filter(|_| status == 415);
        assert_eq!(answer.header("accept-patch"), accepted);
        assert_eq!(answer.header("accept"), None);
    }
    assert_eq!(
        api.get(MODEL).await.json(),
        serde_json::to_value(model()).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_patched_order_is_checked_as_a_whole() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    // Under lenient rules this was accepted once.
    let lenient = "UPDATE orders SET delivery_email = 'none'";
    api.database
        .connect_foreign()
        .batch_execute(lenient)
        .unwrap();
    let refused = api.patch(UID, r#"{"locale":"de"}"#, &[]).await;
    assert_eq!(refused.problem(), (422, "invalid_order".into()));
    assert_eq!(refused.json()["errors"][0]["pointer"], "/delivery/email");
    let patched = api.patch(UID, r#"{"delivery":{"email":null}}"#, &[]).await;
    assert_eq!(patched.json(), model_with("/delivery/email", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_hold_for_patches() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let etag = api.get(MODEL).await.header("etag").unwrap().to_owned();
    let patch = r#"{"locale":"de"}"#;
    for headers in [
        &[("If-Match", "\"0\"")][..],
        &[("If-None-Match", "*")],
        &[("If-None-Match", etag.as_str())],
    ] {
        let refused = api.patch(UID, patch, headers).await;
        assert_eq!(
            refused.problem(),
            (412, "version_mismatch".into()),
            "{headers:?}"
        );
        assert_eq!(refused.header("etag"), Some(etag.as_str()));
    }
    let if_match = [("If-Match", etag.as_str())];
    assert_eq!(api.patch(UID, patch, &if_match).await.status, 200);
    assert_eq!(
        api.patch(UID, patch, &if_match).await.status,
        412,
        "that version is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_of_different_members_at_once_all_survive() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    let other = TestApi::start_unready(std::sync::Arc::clone(&api.database), |config| {
        config.pool.size = 16;
    })
    .await;
    other.wait_until_live().await;
    api.store(&model()).await;
    const MEMBERS: [&str; 20] = [
        "/entry",
        "/locale",
        "/internal_signature",
        "/delivery_service",
        "/shardkey",
        "/oof_shard",
        "/track_number",
        "/customer_id",
        "/delivery/name",
        "/delivery/zip",
        "/delivery/city",
        "/delivery/address",
        "/delivery/region",
        "/payment/transaction",
        "/payment/request_id",
        "/payment/provider",
        "/payment/bank",
        "/delivery/phone",
        "/delivery/email",
        "/payment/currency",
    ];
    for round in 0..5 {
        let mut expected = api.get(MODEL).await.json();
        let patches = MEMBERS.map(|pointer| {
            let value = match pointer {
                "/delivery/phone" => format!("1234{round}"),
                "/delivery/email" => format!("a{round}@example.com"),
                "/payment/currency" => ["EUR", "USD", "ILS", "GBP", "JPY"][round].to_owned(),
                _ => format!("round {round}"),
            };
            *expected.pointer_mut(pointer).unwrap() = value.clone().into();
            match pointer[1..].split_once('/') {
                Some((object, member)) => json!({object: {member: value}}),
                None => json!({&pointer[1..]: value}),
            }
            .to_string()
        });
        let answers = patches.iter().enumerate().map(async |(number, patch)| {
            let process = if number % 2 == 0 { &api } else { &other };
            process.patch(UID, patch, &[]).await.status
        });
        let answers = join_all(answers).await;
        assert_eq!(answers, [200; 20]);
        // Writes by another process are visible when their events have come.
        let from_database = [("Cache-Control", "no-cache")];
        let read = api.send("GET", MODEL, &from_database, b"").await;
        assert_eq!(read.json(), expected);
    }
}

/// Nobody adds to a number that somebody else has changed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_precondition_no_patch_is_based_on_an_old_state() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    api.store(&model()).await;
    let set = r#"{"payment":{"amount":0}}"#;
    assert_eq!(api.patch(UID, set, &[]).await.status, 200);
    let counters = (0..10).map(async |_| {
        let mut refused = 0;
        for _ in 0..5 {
            loop {
                let read = api.get(MODEL).await;
                let amount = read.json()["payment"]["amount"].as_i64().unwrap() + 1;
                let patch = json!({"payment": {"amount": amount}}).to_string();
                let if_match = [("If-Match", read.header("etag").unwrap())];
                match api.patch(UID, &patch, &if_match).await.status {
                    200 => break,
                    412 => refused += 1,
                    status => panic!("a PATCH was answered with {status}"),
                }
            }
        }
        refused
    });
    let refused: Vec<i32> = join_all(counters).await;
    assert!(refused.iter().sum::<i32>() > 0, "they were not at once");
    assert_eq!(api.get(MODEL).await.json()["payment"]["amount"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_beside_deletions_and_creations_never_bring_an_order_back() {
    let api = TestApi::start_with(TestDatabase::create(), |config| config.pool.size = 16).await;
    let mut orders = generator();
    for round in 0..20 {
        let order = orders.order_with_uid(&format!("uid-{round}"));
        let uid = order.order_uid.as_str();
        let path = format!("/api/v1/orders/{uid}");
        assert_eq!(api.post(&order, &[]).await.status, 201);
        let patches = (0..5).map(async |number| {
            let patch = format!(r#"{{"entry":"{number}"}}"#);
            api.patch(uid, &patch, &[]).await.status
        });
        let delete = api.send("DELETE", &path, &[], b"");
        let (patched, deleted) = tokio::join!(join_all(patches), delete);
        assert_eq!(deleted.status, 204);
        assert!(
            patched.iter().all(|status| [200, 404].contains(status)),
            "{patched:?}"
        );
        assert_eq!(api.get(&path).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_write_but_not_read_is_not_shown_the_order() {
    let file = TokenFile::new(&[("writer", "write"), ("both", "read,write")]);
    let path = file.path.clone();
    let database = TestDatabase::create();
    store(&database, &model());
    let api = TestApi::start_unready(database.into(), move |config| {
        config.api_tokens_file = Some(path);
    })
    .await;
    api.wait_until_ready().await;
    for patch in ["{}", r#"{"locale":"de"}"#] {
        let token = bearer("writer");
        let answer = api.patch(UID, patch, &[("Authorization", &token)]).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{patch}");
        assert!(answer.header("etag").is_some(), "{patch}");
    }
    let token = bearer("both");
    let answer = api.patch(UID, "{}", &[("Authorization", &token)]).await;
    assert_eq!(answer.json(), model_with("/locale", "de"));
}
