//! `kill -9` at random, for a minute.

use std::time::{Duration, Instant};

use crate::support::Scene;

const LENGTH: Duration = Duration::from_secs(60);

#[test]
fn kills_at_random_lose_and_repeat_nothing() {
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let mut orders = Vec::new();
    let start = Instant::now();
    while start.elapsed() < LENGTH {
        let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "20")]);
        let end = Instant::now() + Duration::from_millis(1_700);
        while Instant::now() < end {
            orders.extend(scene.produce_orders(50));
        }
        daemon.kill_nine();
    }
    let daemon = scene.start_daemon();
    scene.wait_until_settled(i64::try_from(orders.len()).unwrap());
    scene.assert_each_stored_once(&orders);
    assert!(daemon.stop().success());
}
