//! The description of the API is served exactly as it is in the repository.

use serde_json::Value;

use crate::support::conformity::{DOCUMENT, faults, resolved, schema_faults};
use crate::support::{Answer, TestApi};

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_served_and_revalidated() {
    let api = TestApi::start().await;
    let answer = api.get("/openapi.json").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    assert_eq!(answer.body, include_str!("../../openapi.json"));
    let etag = answer.header("etag").unwrap();
    let again = api
        .send("GET", "/openapi.json", &[("If-None-Match", etag)], b"")
        .await;
    assert_eq!((again.status, again.body.as_str()), (304, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_as_described_is_found() {
    let api = TestApi::start().await;
    let asked = async |change: fn(&mut Answer)| {
        let mut answer = api.get("/order/absent").await;
        change(&mut answer);
        faults("GET", "/order/absent", &answer)
    };
    assert_eq!(asked(|_| ()).await, [""; 0]);
    let status = asked(|answer| answer.status = 418).await;
    assert_eq!(status, ["the status is not described"]);
    let missing = asked(|answer| answer.headers.retain(|(name, _)| name != "x-request-id")).await;
    assert_eq!(missing, ["x-request-id is missing"]);
    let more = asked(|answer| answer.headers.push(("x-more".into(), "1".into()))).await;
    assert_eq!(more, ["x-more is not described"]);
    let code = asked(|answer| answer.body = answer.body.replace("order_not_found", "overloaded"));
    assert_ne!(code.await, [""; 0]);
    let media_type = asked(|answer| answer.headers[0].1 = "text/plain".into()).await;
    assert_eq!(
        media_type,
        [r#"a body of type "text/plain" is not described"#]
    );
}

#[test]
fn examples_are_as_their_schemas_say() {
    let mut checked = 0;
    check_examples(&DOCUMENT, &mut checked);
    assert!(checked > 50, "{checked}");
}

fn check_examples(part: &'static Value, checked: &mut usize) {
    let schema = &part["schema"];
    if !schema.is_null() {
        let several = part["examples"].as_object().into_iter().flatten();
        let several = several.map(|(_, example)| &resolved(example)["value"]);
        for example in part.get("example").into_iter().chain(several) {
            assert_eq!(schema_faults(schema, example), [""; 0], "{example}");
            *checked += 1;
        }
    }
    let members = part
        .as_object()
        .into_iter()
        .flat_map(|object| object.values());
    for child in members.chain(part.as_array().into_iter().flatten()) {
        check_examples(child, checked);
    }
}
