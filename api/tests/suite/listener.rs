//! What the listener demands of the server, and what it logs when it is refused.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use shared::events;
use shared::testing::{TestDatabase, eventually};

use crate::support::program::Program;
use crate::support::{PATIENCE, TestApi, model, store, terminate_listener};

#[tokio::test(flavor = "multi_thread")]
async fn listener_refuses_a_server_that_takes_no_writes_and_the_log_says_what_to_do() {
    let database = TestDatabase::create();
    let read_only = [
        "ALTER DATABASE ",
        &database.settings().name,
        " SET default_transaction_read_only = on",
    ]
    .concat();
    database.execute(&read_only);
    let program = Program::start(&database, &[]).await;
    program
        .wait_until_logged("reads go to the database: the server accepts no writes")
        .await;
    program
        .wait_until_logged("point DB_HOST and DB_PORT at the primary")
        .await;
}

/// A failover changes what the server says about itself. Here a function that hides the system's own one says it.
#[tokio::test(flavor = "multi_thread")]
async fn entries_and_connections_of_another_history_are_dropped() {
    let database = TestDatabase::create();
    store(&database, &model());
    let program = Program::start(&database, &[("CACHE_WARMUP", "0")]).await;
    program.wait_until_logged("listener is live").await;
    terminate_listener(&database);
    program.wait_until_logged_times("listener is live", 2).await;
    assert!(!program.read_log().contains("another history"));
    let sessions = "SELECT pid::text AS value FROM pg_stat_activity WHERE datname = current_database() \
                    AND application_name = 'orders-api'";
    let before = database.texts(sessions);
    assert!(!before.is_empty());

    let failed_over = [
        "CREATE SCHEMA promoted; \
         CREATE FUNCTION promoted.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE sql \
             AS 'SELECT ''00000002'' || substr(pg_catalog.pg_walfile_name($1), 9)'; \
         ALTER DATABASE ",
        &database.settings().name,
        " SET search_path = promoted, pg_catalog, public",
    ]
    .concat();
    database.execute(&failed_over);
    terminate_listener(&database);
    program.wait_until_logged_times("listener is live", 3).await;
    program
        .wait_until_logged("every entry is dropped: the database has another history")
        .await;
    eventually("no earlier session is left", PATIENCE, async || {
        let now = database.texts(sessions);
        now.iter().all(|session| !before.contains(session))
    })
    .await;
}

/// Servers before the minor releases of November 2025 may refuse LISTEN until the end of the queue of notifications has moved.
/// Asking for the usage of the queue moves it. There is no such server here, so the test checks that each session asks before
/// it listens.
#[tokio::test(flavor = "multi_thread")]
async fn each_session_asks_for_the_usage_of_the_queue_before_it_listens() {
    let database = TestDatabase::create();
    let note_asking = [
        "CREATE SCHEMA noted; \
         CREATE TABLE noted.asked (pid int, application text, channels bigint); \
         CREATE FUNCTION noted.pg_notification_queue_usage() RETURNS double precision LANGUAGE sql AS \
             'INSERT INTO noted.asked SELECT pg_backend_pid(), current_setting(''application_name''), \
                                             (SELECT count(*) FROM pg_listening_channels()); \
              SELECT pg_catalog.pg_notification_queue_usage()'; \
         ALTER DATABASE ",
        &database.settings().name,
        " SET search_path = noted, pg_catalog, public",
    ]
    .concat();
    database.execute(&note_asking);
    let program = Program::start(&database, &[]).await;
    for connects in 1..=2 {
        program
            .wait_until_logged_times("listener is live", connects)
            .await;
        let asked = database.texts(
            "SELECT application || ' ' || channels AS value FROM noted.asked \
             WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'orders-api-listener')",
        );
        assert_eq!(asked, ["orders-api-listener 0"]);
        terminate_listener(&database);
    }
}

/// Anybody who may connect to the database can send such events. They must not keep every cache empty.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_unknown_events_drops_every_entry_only_now_and_then() {
    let api = TestApi::start().await;
    api.store(&model()).await;
    let path = "/order/b563feb7b2b84b6test";
    api.get(path).await;
    let flushes = async || {
        let metrics = api.get("/metrics").await.body;
        let name = "orders_api_listener_flushes_total ";
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(flushes().await, 0);
    let flood = format!("SELECT pg_notify('{}', 'nonsense'); ", events::CHANNEL);
    let mut session = api.database.connect();
    let started = Instant::now();
    for _ in 0..50 {
        session.batch_execute(&flood).unwrap();
    }
    // Nothing else tells of this change, and the flush that it needs is delayed.
    let change =
        "UPDATE orders SET delivery_city = 'BY-HAND', version = nextval('order_version_seq'); ";
    session
        .batch_execute(&[change, flood.as_str()].concat())
        .unwrap();
    let changed = Instant::now();
    eventually("the change is answered", PATIENCE, async || {
        api.get(path).await.json()["delivery"]["city"] == "BY-HAND"
    })
    .await;
    let stale = changed.elapsed();
    let seconds = started.elapsed().as_secs();
    eventually("all events have come", PATIENCE, async || {
        api.stats().await["listener"]["malformed"] == 51
    })
    .await;
    api.wait_until_live().await;
    let flushes = flushes().await;
    assert!(
        (1..=seconds + 3).contains(&flushes),
        "{flushes} flushes in {seconds} s"
    );
    let lease = Duration::from_secs(5);
    assert!(stale < lease + Duration::from_secs(1), "{stale:?}");
    let stats = api.stats().await;
    assert_eq!(stats["audit"]["mismatches"], 0);
}
