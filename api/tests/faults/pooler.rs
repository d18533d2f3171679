//! PgBouncer between the process and the database.

use std::process::Command;

use servers::postgres::{PoolMode, PrivatePooler};
use shared::db::rights::Role;
use shared::events::Operation;
use shared::testing::{Notifications, TestDatabase, eventually};
use tokio::task::block_in_place;

use crate::support::program::Program;
use crate::support::{Answer, PATIENCE, generator, store};

const REQUEST: &str = "GET /order/uid-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

async fn start_behind_pooler(mode: PoolMode) -> (TestDatabase, Program, PrivatePooler) {
    let (database, program, pooler) = start_unready_behind_pooler(mode).await;
    program.wait_until_ready().await;
    (database, program, pooler)
}

async fn start_unready_behind_pooler(mode: PoolMode) -> (TestDatabase, Program, PrivatePooler) {
    let database = TestDatabase::create();
    let server = database.settings_as(Role::Api);
    let pooler = block_in_place(|| {
        let role = (server.user.as_str(), server.password.expose());
        PrivatePooler::start((&server.host, server.port), role, mode)
    });
    let pooler = pooler.unwrap();
    let port = pooler.port().to_string();
    let settings = [("DB_HOST", "127.0.0.1"), ("DB_PORT", port.as_str())];
    let command = Command::new(env!("CARGO_BIN_EXE_api"));
    let program = Program::start_unready(command, &database, &settings).await;
    (database, program, pooler)
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status") == Some("orders; hit")
}

/// Such a pooler loses LISTEN, which is hard to notice. Nothing may be served from the cache.
#[tokio::test(flavor = "multi_thread")]
async fn listener_refuses_a_pooler_that_changes_sessions_and_nothing_is_stale() {
    let (database, program, _pooler) = start_behind_pooler(PoolMode::Transaction).await;
    let refusal = "listener is away, reads go to the database: notifications of other sessions do not arrive: \
                   connect to PostgreSQL itself or to a pooler in session mode";
    program.wait_until_logged(refusal).await;
    let mut orders = generator();
    for _ in 0..50 {
        let order = orders.order_with_uid("uid-1");
        store(&database, &order);
        for _ in 0..3 {
            let answer = program.send(REQUEST).await;
            // An old PgBouncer also loses prepared statements, so reads may fail.
            if answer.status == 200 {
                assert_eq!(answer.json(), serde_json::to_value(&order).unwrap());
            }
            assert!(!is_hit(&answer));
        }
    }
    assert!(!program.read_log().contains("listener is live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_keeps_sessions_does_no_harm() {
    let (database, program, _pooler) = start_behind_pooler(PoolMode::Session).await;
    program.wait_until_logged("listener is live").await;
    let mut orders = generator();
    for _ in 0..10 {
        let order = orders.order_with_uid("uid-1");
        store(&database, &order);
        eventually(
            "the new version comes from the cache",
            PATIENCE,
            async || {
                let answer = program.send(REQUEST).await;
                is_hit(&answer) && answer.json() == serde_json::to_value(&order).unwrap()
            },
        )
        .await;
    }
}

/// The pooler drops what a session asks for when it begins. Without `orders.emits` a trigger would draw another version than
/// the one that the client is told, and would send a second event.
#[tokio::test(flavor = "multi_thread")]
async fn each_put_through_a_pooler_has_one_version_and_one_event() {
    let (database, program, _pooler) = start_behind_pooler(PoolMode::Session).await;
    let mut orders = generator();
    let mut notifications = Notifications::listen(&database);
    // The first one creates the order.
    let mut precondition = "If-None-Match: *\r\n".to_owned();
    for status in [201, 200, 200] {
        let body = serde_json::to_string(&orders.order_with_uid("uid-1")).unwrap();
        let put = format!(
            "PUT /api/v1/orders/uid-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{precondition}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = program.send(&put).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        let etag = answer.header("etag").unwrap();
        let version = database.integer("SELECT version AS value FROM orders");
        assert!(
            etag.starts_with(&format!("\"{version}-")),
            "{etag} {version}"
        );
        precondition = format!("If-Match: {etag}\r\n");
        let events = notifications.events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(
            (events[0].operation, events[0].uids.len()),
            (Operation::Upsert, 1)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_loses_the_settings_of_sessions_is_refused_and_the_log_says_what_to_do() {
    let (_database, program, _pooler) =
        start_unready_behind_pooler(PoolMode::ForgetfulTransaction).await;
    let refusal = "cannot connect to the database: the session has lost its settings: connect to PostgreSQL itself or to a \
                   pooler in session mode";
    program.wait_until_logged(refusal).await;
    assert_eq!(program.send(REQUEST).await.status, 503);
}
