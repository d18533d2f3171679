//! A member that comes and goes all the time, by SIGTERM and by SIGKILL.

use std::time::{Duration, Instant};

use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene};

const STORM: Duration = Duration::from_secs(60);

#[test]
fn a_storm_of_rebalances_loses_nothing_and_does_not_stall() {
    let mut scene = Scene::new(4);
    scene.audit_writes();
    let small_batches = [("BATCH_MAX_RECORDS", "50")];
    let steady = [
        scene.start_daemon_with(&small_batches),
        scene.start_daemon_with(&small_batches),
    ];
    let mut orders = scene.produce_orders(100);
    scene.wait_until_settled(100);

    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < STORM {
        let guest = scene.start_daemon_with(&small_batches);
        let settled_before = scene.settled();
        orders.extend(scene.produce_orders(1_500));
        // By then the group has assigned partitions to it.
        guest.wait_until_logged("assigned");
        if rounds % 3 == 2 {
            guest.kill_nine();
        } else {
            assert!(guest.stop().success());
        }
        wait_until("orders are stored in the storm", PATIENCE, || {
            scene.settled() > settled_before
        });
        rounds += 1;
    }
    assert!(rounds >= 5, "{rounds} rounds are no storm");

    let records = i64::try_from(orders.len()).unwrap();
    scene.wait_until_settled(records);
    scene.assert_each_stored_once(&orders);
    for daemon in steady {
        assert!(daemon.stop().success());
    }
}
