//! The database is away for long: the ingestor stays in its group and takes hardly any processor time.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use servers::postgres::{Options, PrivatePostgres};
use shared::testing::{TestDatabase, settings_of, wait_until};

use crate::support::{PATIENCE, Scene, Watch};

const AWAY: Duration = Duration::from_secs(600);

#[test]
fn ten_minutes_without_a_database_cost_no_membership() {
    let mut server = PrivatePostgres::start(&Options::default()).unwrap();
    let database = TestDatabase::create_on(settings_of(&server));
    let mut scene = Scene::with_database(4, database);
    scene.audit_writes();
    // The group would evict a member that did not poll for a minute several times.
    let settings = [(
        "KAFKA_CONFIG",
        "session.timeout.ms=6000,heartbeat.interval.ms=1000,max.poll.interval.ms=60000",
    )];
    let daemons = [
        scene.start_daemon_with(&settings),
        scene.start_daemon_with(&settings),
    ];
    wait_until("both own partitions", PATIENCE, || {
        scene.database.integer(
            "SELECT count(DISTINCT owner) AS value FROM consumer_offsets WHERE owner IS NOT NULL",
        ) == 2
    });
    let mut orders = scene.produce_orders(1_000);
    scene.wait_until_settled(1_000);
    let members_before = members(&scene);
    assert_eq!(members_before.len(), 2);
    let assignments = |log: &str| log.matches("assigned").count() + log.matches("revoked").count();
    let assignments_before = daemons.each_ref().map(|daemon| assignments(&daemon.log()));

    server.stop().unwrap();
    // More than fits into the memory of both, so reading is paused.
    orders.extend(scene.produce_orders(100_000));
    for daemon in &daemons {
        daemon.wait_until_logged("paused=true");
    }
    let watches = daemons.each_ref().map(Watch::start);
    std::thread::sleep(AWAY);
    watches.iter().for_each(Watch::assert_calm);
    assert_eq!(members(&scene), members_before);
    server.restart().unwrap();

    scene.wait_until_settled(101_000);
    scene.assert_each_stored_once(&orders);
    assert_eq!(members(&scene), members_before);
    let assignments_after = daemons.each_ref().map(|daemon| assignments(&daemon.log()));
    assert_eq!(assignments_after, assignments_before);
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_lock_that_outlasts_the_lock_timeout_is_waited_for() {
    let mut scene = Scene::new(2);
    scene.audit_writes();
    let daemon = scene.start_daemon();
    let mut orders = scene.produce_orders(100);
    scene.wait_until_settled(100);
    let mut holder = scene.database.connect();
    // The server ends our sessions when they are idle in a transaction for 30 s.
    holder
        .batch_execute(
            "SET idle_in_transaction_session_timeout = 0;
             BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE",
        )
        .unwrap();
    orders.extend(scene.produce_orders(20_000));
    // The database refuses every partition, so it is the database's trouble.
    wait_until(
        "both partitions have given up a statement",
        PATIENCE,
        || daemon.log().contains("lock timeout") && daemon.get("/readyz").unwrap().0 == 503,
    );
    // By now everything is read.
    let watch = Watch::start(&daemon);
    let retries = || daemon.metric("orders_ingestor_retries_total");
    let retries_before = retries();
    wait_until("both have given up another one", PATIENCE, || {
        retries() >= retries_before + 2.0
    });
    watch.assert_calm();
    holder.batch_execute("COMMIT").unwrap();
    scene.wait_until_settled(20_100);
    scene.assert_each_stored_once(&orders);
    assert!(!daemon.log().contains("revoked"));
    assert!(daemon.stop().success());
}

/// The group's members as the broker names them. An evicted member comes back under another name.
fn members(scene: &Scene) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", scene.brokers())
        .create()
        .unwrap();
    let groups = consumer
        .fetch_group_list(Some(&scene.group), PATIENCE)
        .unwrap();
    let mut members: Vec<String> = groups.groups()[0]
        .members()
        .iter()
        .map(|member| member.id().to_owned())
        .collect();
    members.sort();
    members
}
