//! A database role that lacks rights.

use diesel::connection::SimpleConnection;
use servers::postgres::{Options, PrivatePostgres};
use shared::config::Secret;
use shared::testing::{TestDatabase, settings_of};
use tokio::task::block_in_place;

use crate::support::{Answer, TestApi, as_superuser, generator, model};

const UID: &str = "b563feb7b2b84b6test";
const MODEL: &str = "/api/v1/orders/b563feb7b2b84b6test";
const READER: &str = "CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT USAGE ON SCHEMA public TO reader; \
                      GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;";

/// Every kind of write, and which of them must be refused.
async fn check(api: &TestApi, refuses: fn(&str) -> bool) {
    let new = generator().order_with_uid("new");
    let answers: [(&str, Answer); 5] = [
        ("PUT", api.put(&model(), &[]).await),
        ("PATCH", api.patch(UID, r#"{"locale":"de"}"#, &[]).await),
        ("POST", api.post(&new, &[]).await),
        ("PUT", api.put(&new, &[("If-None-Match", "*")]).await),
        ("DELETE", api.send("DELETE", MODEL, &[], b"").await),
    ];
    for (method, answer) in answers {
        if refuses(method) {
            assert_eq!(
                answer.problem(),
                (403, "writes_disabled".into()),
                "{method}"
            );
            assert!(answer.body.contains("the database role"), "{}", answer.body);
            assert_eq!(answer.header("retry-after"), None);
        } else {
            assert!(
                [200, 201, 204, 409, 412].contains(&answer.status),
                "{method}: {}",
                answer.body
            );
        }
        assert_eq!(api.get("/readyz").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_the_role_may_not_do_are_refused_with_a_reason_and_reads_go_on() {
    let server = block_in_place(|| PrivatePostgres::start(&Options::default())).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    as_superuser(&server, &database, READER);
    let api = TestApi::start_with(database, |config| {
        config.database.user = "reader".to_owned();
        config.database.password = Secret::new("reader");
    })
    .await;
    api.store(&model()).await;
    check(&api, |_| true).await;
    let order = serde_json::to_value(model()).unwrap();
    assert_eq!(api.get(MODEL).await.json(), order);
    // Rights take effect without a restart, and each write needs only its own.
    let grant = |rights: &str| as_superuser(&server, &api.database, rights);
    grant(
        "GRANT INSERT, UPDATE ON orders TO reader; GRANT USAGE ON SEQUENCE order_version_seq TO reader",
    );
    check(&api, |method| method == "DELETE").await;
    // What else fails is still an internal error.
    let broken = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'on purpose'; END $$; \
                  CREATE TRIGGER fail BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION fail()";
    api.database.connect().batch_execute(broken).unwrap();
    assert_eq!(
        api.put(&model(), &[]).await.problem(),
        (500, "internal".into())
    );
    api.database.execute("DROP TRIGGER fail ON orders");
    grant(
        "GRANT DELETE ON orders TO reader; GRANT SELECT ON consumer_offsets, removed_orders_key TO reader; \
         GRANT SELECT, INSERT, UPDATE ON removed_orders TO reader",
    );
    check(&api, |_| false).await;
    assert_eq!(api.get(MODEL).await.status, 404);
}
