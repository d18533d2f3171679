//! Every stored order of a batch is announced to the caches once.

use shared::testing::{Notifications, wait_until};

use crate::support::{PATIENCE, Scene};

#[test]
fn a_batch_of_new_and_changed_orders_is_announced_once_and_so_is_a_replay() {
    const ORDERS: usize = 500;
    let mut scene = Scene::new(1);
    let orders = scene.produce_orders(ORDERS);
    let in_one_batch = [
        ("BATCH_MAX_RECORDS", "1000"),
        ("BATCH_MAX_AGE_MS", "10000"),
        ("INGEST_MEMORY_MB", "512"),
    ];
    let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "100")]);
    scene.wait_until_settled(i64::try_from(ORDERS).unwrap());
    assert!(daemon.stop().success());

    let mut notifications = Notifications::listen(&scene.database);
    let changed: Vec<_> = orders
        .iter()
        .map(|order| scene.later(order.order_uid.as_str()))
        .collect();
    scene.produce(&changed);
    let new = scene.produce_orders(ORDERS);
    let daemon = scene.start_daemon_with(&in_one_batch);
    wait_until("all is stored", PATIENCE, || {
        scene.settled() == 3 * i64::try_from(ORDERS).unwrap()
    });
    assert!(daemon.stop().success());
    let events = notifications.events();
    let mut announced: Vec<String> = events.into_iter().flat_map(|event| event.uids).collect();
    let mut written: Vec<String> = changed
        .iter()
        .chain(&new)
        .map(|order| order.order_uid.to_string())
        .collect();
    announced.sort();
    written.sort();
    assert!(
        announced == written,
        "{} announced, {} written",
        announced.len(),
        written.len()
    );

    // A replayed dead letter is announced as well.
    scene
        .database
        .execute("ALTER TABLE orders ADD CONSTRAINT no_evil CHECK (entry <> 'EVIL')");
    let mut evil = scene.later("evil");
    evil.entry = "EVIL".into();
    scene.produce(&[evil]);
    let daemon = scene.start_daemon();
    wait_until("it is a dead letter", PATIENCE, || {
        scene.dead_letters() == 1
    });
    assert!(daemon.stop().success());
    scene
        .database
        .execute("ALTER TABLE orders DROP CONSTRAINT no_evil");
    assert_eq!(notifications.payloads(), [""; 0]);
    scene.run_well(&["dead-letters", "replay", "--all", "--yes"]);
    assert_eq!(
        notifications.payloads(),
        [r#"{"v":1,"op":"upsert","uids":["evil"]}"#]
    );
}
