//! PostgreSQL is killed under load: nothing is lost, no order is dead-lettered because of it, and both processes recover.

use std::time::Duration;

use rustix::process::Signal;
use servers::postgres::{Options, PrivatePostgres};
use shared::config::DatabaseSettings;
use shared::testing::{TcpProxy, TestDatabase, settings_of, wait_until};

use crate::support::{Api, PATIENCE, Scene};

#[test]
fn a_killed_database_is_waited_for_and_nothing_is_lost() {
    // A server of its own, because it is killed. With `fsync` off nothing is lost, because the machine keeps running.
    let mut server = PrivatePostgres::start(&Options::default()).unwrap();
    let mut scene = Scene::with_database(4, TestDatabase::create_on(settings_of(&server)));
    scene.audit_writes();
    let mut orders = scene.produce_orders(10_000);
    let api = Api::start(&scene.database);
    let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "50")]);
    wait_until("orders are being stored", PATIENCE, || {
        scene.stored() > 1_000
    });
    let known = scene
        .database
        .texts("SELECT order_uid AS value FROM orders LIMIT 1")
        .remove(0);
    wait_until("the api answers", PATIENCE, || {
        api.order(&known).status == 200
    });

    server.kill_nine().unwrap();
    orders.extend(scene.produce_orders(2_000));
    wait_until("the api says that the database is away", PATIENCE, || {
        api.order(&known).status == 503
    });
    let headers = api.order(&known).headers;
    assert!(headers.iter().any(|(name, _)| name == "retry-after"));
    wait_until("the ingestor says it too", PATIENCE, || {
        daemon
            .get("/readyz")
            .is_some_and(|(status, _)| status == 503)
    });
    server.restart().unwrap();

    scene.wait_until_settled(12_000);
    scene.assert_each_stored_once(&orders);
    wait_until("the api answers again", PATIENCE, || {
        api.order(&known).status == 200
    });
    wait_until("the ingestor is well again", PATIENCE, || {
        daemon
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    });
    assert!(daemon.stop().success());
}

#[test]
fn a_stop_while_the_database_is_away_is_clean_and_loses_nothing() {
    let mut scene = Scene::new(2);
    scene.audit_writes();
    let DatabaseSettings { host, port, .. } = scene.database.settings();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(TcpProxy::start(&host, port));
    let through_proxy = [
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", &proxy.port().to_string()),
    ];
    let daemon = scene.start_daemon_with(&through_proxy);
    let mut orders = scene.produce_orders(500);
    scene.wait_until_settled(500);

    proxy.cut();
    orders.extend(scene.produce_orders(5_000));
    wait_until(
        "the ingestor says that the database is away",
        PATIENCE,
        || {
            daemon
                .get("/readyz")
                .is_some_and(|(status, _)| status == 503)
        },
    );
    assert!(daemon.log().lines().count() < 50, "{}", daemon.log());
    assert!(daemon.stop().success());

    proxy.mend();
    let daemon = scene.start_daemon_with(&through_proxy);
    scene.wait_until_settled(5_500);
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}

#[test]
fn a_stop_while_the_database_answers_nothing_is_in_time_and_loses_nothing() {
    let mut scene = Scene::new(2);
    scene.audit_writes();
    let DatabaseSettings { host, port, .. } = scene.database.settings();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(TcpProxy::start(&host, port));
    let settings = [
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", &*proxy.port().to_string()),
        ("SHUTDOWN_TIMEOUT_MS", "2000"),
    ];
    let mut daemon = scene.start_daemon_with(&settings);
    let mut orders = scene.produce_orders(500);
    scene.wait_until_settled(500);
    proxy.hold();
    orders.extend(scene.produce_orders(5_000));
    // One that has not got beyond its first look at the database.
    let mut waiting = scene.start_daemon_with(&settings);
    waiting.wait_until_logged("starting");
    for daemon in [&daemon, &waiting] {
        daemon.signal(Signal::TERM);
    }
    daemon.wait(Duration::from_secs(5));
    let status = waiting.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}: {}", waiting.log());

    proxy.mend();
    let daemon = scene.start_daemon_with(&settings);
    scene.wait_until_settled(5_500);
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}
