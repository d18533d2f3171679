//! One partition's trouble is its own: it holds up no other partition of the same writer, and the process is degraded, not
//! down.

use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use serde_json::Value;
use shared::order::Order;
use shared::testing::wait_until;

use crate::support::{Daemon, PATIENCE, Scene};

/// Partitions 0 and 4 have the same writer.
const PARTITIONS: i32 = 5;
/// Far less than any wait for a lock, a broker or a back-off that another partition could cause.
const SOON: Duration = Duration::from_millis(1_500);

/// Starts a daemon that has claimed every partition.
fn running(scene: &Scene, more: &[(&str, &str)]) -> Daemon {
    let daemon = scene.start_daemon_with(more);
    wait_until("every partition is claimed", PATIENCE, || {
        daemon.log().matches("claimed kafka.partition").count() == 5
    });
    daemon
}

/// Sends orders one by one for a while. Returns them, and how long each took to be stored.
fn send_to_partition_4(scene: &mut Scene, duration: Duration) -> (Vec<Order>, Vec<Duration>) {
    let started_at = Instant::now();
    let (mut sent, mut taken) = (Vec::new(), Vec::new());
    while started_at.elapsed() < duration {
        sent.extend(scene.produce_to(4, 1));
        let sent_at = Instant::now();
        wait_until("an order of partition 4 is stored", PATIENCE, || {
            scene.stored_of(&sent) == sent.len()
        });
        taken.push(sent_at.elapsed());
    }
    assert!(sent.len() > 3, "only {} in {duration:?}", sent.len());
    (sent, taken)
}

/// Sends orders one by one for a while, each of which must be stored soon.
fn assert_partition_4_is_not_held_up(scene: &mut Scene, duration: Duration) -> Vec<Order> {
    let (sent, taken) = send_to_partition_4(scene, duration);
    let slowest = taken.into_iter().max().unwrap();
    assert!(slowest < SOON, "an order took {slowest:?}");
    sent
}

/// What `/readyz` says: its HTTP status, the process's status, and the trouble of partition 0.
fn health(daemon: &Daemon) -> Option<(u16, String, Option<String>)> {
    let (code, body) = daemon.get("/readyz")?;
    let body: Value = serde_json::from_str(&body).unwrap();
    let partition = &body["checks"]["partitions"][0];
    let trouble = partition["trouble"].as_str().map(str::to_owned);
    Some((code, body["status"].as_str().unwrap().to_owned(), trouble))
}

fn wait_until_degraded(daemon: &Daemon, reason: &str) {
    let what = format!("the process is degraded because of {reason:?}");
    wait_until(&what, PATIENCE, || {
        health(daemon).is_some_and(|(code, status, trouble)| {
            let is_named = trouble.is_some_and(|text| text.contains(reason));
            code == 200 && status == "degraded" && is_named
        })
    });
}

fn wait_until_well(daemon: &Daemon) {
    wait_until("the process is well", PATIENCE, || {
        health(daemon) == Some((200, "ok".to_owned(), None))
    });
}

/// Releases the row, and checks that everything is stored then.
fn assert_all_is_well_after(
    mut holder: PgConnection,
    scene: &Scene,
    daemon: &Daemon,
    orders: &[Order],
) {
    holder.batch_execute("COMMIT").unwrap();
    let records = i64::try_from(orders.len()).unwrap();
    scene.wait_until_settled(records);
    wait_until_well(daemon);
    scene.assert_each_stored_once(orders);
}

#[test]
fn a_locked_row_holds_up_its_own_partition_only_and_names_the_holder() {
    let mut scene = Scene::new(PARTITIONS);
    scene.audit_writes();
    let daemon = running(&scene, &[]);
    let holder = scene.lock_row_of_partition_0();
    // The row of an idle partition is read again every five seconds.
    wait_until_degraded(&daemon, "a-person");
    let mut orders = scene.produce_to(0, 10);
    orders.extend(assert_partition_4_is_not_held_up(
        &mut scene,
        Duration::from_secs(12),
    ));
    wait_until_degraded(&daemon, "a-person");
    // The operator's session was not ended.
    assert_all_is_well_after(holder, &scene, &daemon, &orders);
    assert!(daemon.metric("orders_ingestor_fences_total").abs() < f64::EPSILON);
    assert!(daemon.stop().success());
}

#[test]
fn a_claim_that_waits_for_a_locked_row_holds_up_no_other_claim() {
    let mut scene = Scene::new(PARTITIONS);
    assert!(running(&scene, &[]).stop().success());
    let mut holder = scene.lock_row_of_partition_0();
    let daemon = scene.start_daemon();
    wait_until("the others are claimed", PATIENCE, || {
        daemon.log().matches("claimed kafka.partition").count() == 4
    });
    wait_until_degraded(&daemon, "a-person");
    assert_partition_4_is_not_held_up(&mut scene, Duration::from_secs(7));
    holder.batch_execute("COMMIT").unwrap();
    wait_until_well(&daemon);
    assert!(daemon.stop().success());
}

#[test]
fn a_stop_does_not_wait_for_a_locked_row() {
    let mut scene = Scene::new(PARTITIONS);
    scene.audit_writes();
    let daemon = running(&scene, &[]);
    let mut holder = scene.lock_row_of_partition_0();
    let mut orders = scene.produce_to(0, 10);
    orders.extend(scene.produce_to(4, 10));
    wait_until_degraded(&daemon, "a-person");
    let stopped_at = Instant::now();
    assert!(daemon.stop().success());
    assert!(stopped_at.elapsed() < Duration::from_secs(5));
    assert_eq!(scene.stored(), 10);
    holder.batch_execute("COMMIT").unwrap();
    let _daemon = scene.start_daemon();
    scene.wait_until_settled(20);
    scene.assert_each_stored_once(&orders);
}

#[test]
fn a_row_that_is_gone_is_lost_and_created_anew() {
    let mut scene = Scene::new(PARTITIONS);
    let daemon = running(&scene, &[]);
    let mut orders = scene.produce_to(0, 10);
    scene.wait_until_settled(10);
    scene
        .database
        .execute("DELETE FROM consumer_offsets WHERE partition = 0");
    // Partition 0 is idle, and its row is read again every five seconds.
    orders.extend(assert_partition_4_is_not_held_up(
        &mut scene,
        Duration::from_secs(8),
    ));
    // The other partitions have rows, so this one counts as new and begins at 0.
    let records = i64::try_from(orders.len()).unwrap();
    scene.wait_until_settled(records);
    scene
        .database
        .execute("DELETE FROM consumer_offsets WHERE partition = 0");
    orders.extend(scene.produce_to(0, 10));
    scene.wait_until_settled(records + 10);
    assert_eq!(scene.stored_of(&orders), orders.len());
    wait_until_well(&daemon);
    assert!(daemon.stop().success());
}

#[test]
fn an_order_that_somebody_has_locked_holds_up_the_other_partitions_only_once() {
    let mut scene = Scene::new(PARTITIONS);
    let daemon = running(&scene, &[]);
    let mut orders = scene.produce_to(0, 1);
    scene.wait_until_settled(1);
    let mut holder = scene.database.connect();
    holder
        .batch_execute(
            "SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT FROM orders FOR UPDATE",
        )
        .unwrap();
    scene.produce_again(0, &orders);
    scene.wait_until_a_lock_is_awaited();
    let (sent, taken) = send_to_partition_4(&mut scene, Duration::from_secs(25));
    // PostgreSQL gives up the first wait after ten seconds.
    let slow = taken.iter().filter(|taken| **taken > SOON).count();
    assert!(slow <= 1, "{taken:?}");
    wait_until_degraded(&daemon, "lock timeout");
    orders.extend(sent);
    holder.batch_execute("COMMIT").unwrap();
    scene.wait_until_settled(i64::try_from(orders.len()).unwrap() + 1);
    assert_eq!(scene.stored_of(&orders), orders.len());
    wait_until_well(&daemon);
    assert!(daemon.stop().success());
}

#[test]
fn a_batch_that_the_database_refuses_is_retried_and_holds_up_no_other_partition() {
    let mut scene = Scene::new(PARTITIONS);
    scene.audit_writes();
    let daemon = running(&scene, &[]);
    scene.database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'out of luck' USING ERRCODE = 'disk_full';
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.source_partition = 0) EXECUTE FUNCTION refuse();",
    );
    let mut orders = scene.produce_to(0, 10);
    wait_until_degraded(&daemon, "out of luck");
    orders.extend(assert_partition_4_is_not_held_up(
        &mut scene,
        Duration::from_secs(5),
    ));
    wait_until_degraded(&daemon, "out of luck");
    scene.database.execute("DROP TRIGGER refuse ON orders");
    let records = i64::try_from(orders.len()).unwrap();
    scene.wait_until_settled(records);
    wait_until_well(&daemon);
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}

#[test]
fn a_partition_that_is_held_up_does_not_keep_the_memory_that_others_need() {
    let mut scene = Scene::new(PARTITIONS);
    scene.audit_writes();
    let daemon = running(&scene, &[("INGEST_MEMORY_MB", "64")]);
    let holder = scene.lock_row_of_partition_0();
    // Some 4 KB of memory each, and batches may take 16 MB.
    let mut orders = scene.produce_to(0, 20_000);
    daemon.wait_until_logged("the others need its memory");
    orders.extend(assert_partition_4_is_not_held_up(
        &mut scene,
        Duration::from_secs(12),
    ));
    wait_until_degraded(&daemon, "a-person");
    assert_all_is_well_after(holder, &scene, &daemon, &orders);
    assert!(daemon.stop().success());
}

#[test]
fn a_partition_without_a_leader_holds_up_no_other() {
    let (mut scene, cluster) = Scene::with_mock_broker(PARTITIONS);
    let daemon = running(&scene, &[]);
    let before = [scene.produce_to(0, 10), scene.produce_to(4, 10)].concat();
    scene.wait_until_settled(20);
    assert!(daemon.stop().success());
    cluster.partition_leader(&scene.topic, 0, None).unwrap();
    let daemon = scene.start_daemon();
    wait_until_degraded(&daemon, "Kafka");
    let mut orders = assert_partition_4_is_not_held_up(&mut scene, Duration::from_secs(8));
    wait_until_degraded(&daemon, "Kafka");
    cluster.partition_leader(&scene.topic, 0, Some(1)).unwrap();
    wait_until_well(&daemon);
    orders.extend(scene.produce_to(0, 1));
    orders.extend(before);
    scene.wait_until_settled(i64::try_from(orders.len()).unwrap());
    assert_eq!(scene.stored_of(&orders), orders.len());
    assert!(daemon.stop().success());
}
