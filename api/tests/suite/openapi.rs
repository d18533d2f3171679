//! The description of the API is served as it stands in the repository.

use crate::support::TestApi;

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
