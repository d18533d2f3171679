//! A process is frozen at each phase of its work for longer than its session, while another process takes over its
//! partitions. When it wakes, what it had under way must have no effect.

use ingestor::failpoints::Phase;
use rustix::process::Signal;
use shared::config::DatabaseSettings;
use shared::testing::wait_until;

use crate::support::postgres_proxy::{PostgresProxy, Strike};
use crate::support::{Daemon, Load, PATIENCE, Scene};

const PARTITIONS: i32 = 3;
const SMALL_BATCHES: (&str, &str) = ("BATCH_MAX_RECORDS", "20");
/// Commits are slow, so that batches queue up. When the frozen process wakes, its writers continue before its poll thread
/// learns that the group has removed it.
const BACKLOG: &str = "rebalance=sleep(1000);committed=sleep(20)";
const OWNERS: &str =
    "SELECT count(DISTINCT owner) AS value FROM consumer_offsets WHERE owner IS NOT NULL";

struct Zombie {
    scene: Scene,
    load: Load,
    frozen: Daemon,
}

fn loaded_scene() -> (Scene, Load) {
    let scene = Scene::new(PARTITIONS);
    let mut load = Load::new(&scene);
    load.produce(4_000);
    (scene, load)
}

impl Zombie {
    /// Starts a daemon that stops itself at these `failpoints`.
    fn freeze_at(phase: Phase, failpoints: &str) -> Self {
        let (scene, load) = loaded_scene();
        let frozen = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", failpoints)]);
        frozen.wait_until_logged(&format!("failpoint {}", <&str>::from(phase)));
        Self {
            scene,
            load,
            frozen,
        }
    }

    /// Lets another one take over and finish. Meanwhile nothing of the frozen one is stored.
    fn be_replaced(&self) -> Daemon {
        let all = i64::try_from(self.load.acknowledged()).unwrap();
        assert!(
            self.scene.settled() < all,
            "frozen too late to prove anything"
        );
        let taker = self.scene.start_daemon();
        self.load.assert_exactly_once(&self.scene);
        assert_eq!(self.scene.database.integer(OWNERS), 1);
        taker
    }

    /// Wakes the frozen one. It must notice that it was replaced before it takes part again.
    fn wake(mut self, taker: Daemon, is_fenced: bool) {
        self.frozen.signal(Signal::CONT);
        if is_fenced {
            self.frozen.wait_until_logged("fenced");
        }
        wait_until("the woken one owns partitions again", PATIENCE, || {
            self.scene.database.integer(OWNERS) == 2
        });
        self.load.produce(1_000);
        self.load.assert_exactly_once(&self.scene);
        if is_fenced {
            assert!(self.frozen.metric("orders_ingestor_fences_total") >= 1.0);
        }
        assert!(self.frozen.stop().success());
        assert!(taker.stop().success());
    }
}

#[test]
fn frozen_before_the_first_fetch() {
    let zombie = Zombie::freeze_at(Phase::Start, "start=2*off->1*return(stop)");
    let taker = zombie.be_replaced();
    // It may have had nothing under way that could be rejected.
    zombie.wake(taker, false);
}

#[test]
fn frozen_while_a_batch_goes_to_its_writer() {
    let failpoints = format!("steady=10*off->1*return(stop);{BACKLOG}");
    let zombie = Zombie::freeze_at(Phase::Steady, &failpoints);
    let taker = zombie.be_replaced();
    zombie.wake(taker, true);
}

#[test]
fn frozen_between_the_rows_and_their_commit() {
    let failpoints = format!("before_commit=5*off->1*return(stop);{BACKLOG}");
    let zombie = Zombie::freeze_at(Phase::BeforeCommit, &failpoints);
    let taker = zombie.be_replaced();
    zombie.wake(taker, true);
}

#[test]
fn frozen_between_a_commit_and_its_answer() {
    let (scene, load) = loaded_scene();
    let DatabaseSettings { host, port, .. } = scene.database.settings();
    let proxy = PostgresProxy::start(&host, port);
    proxy.arm(Strike::HoldAnswer);
    let frozen = scene.start_daemon_with(&[
        SMALL_BATCHES,
        ("DB_HOST", "127.0.0.1"),
        ("DB_PORT", &proxy.port().to_string()),
        ("FAILPOINTS", BACKLOG),
    ]);
    proxy.wait_until_struck();
    let at_strike = scene.settled();
    // Meanwhile batches of this writer queue up.
    wait_until("the other writer has gone on", PATIENCE, || {
        scene.settled() > at_strike + 200
    });
    frozen.signal(Signal::STOP);
    let zombie = Zombie {
        scene,
        load,
        frozen,
    };
    let taker = zombie.be_replaced();
    proxy.release();
    zombie.wake(taker, true);
}

/// The server still works on the COMMIT when another process claims the partition.
#[test]
fn frozen_while_its_commit_runs() {
    let (scene, load) = loaded_scene();
    let holder = scene.hold_commits();
    let frozen = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", BACKLOG)]);
    scene.wait_until_a_commit_is_held();
    frozen.signal(Signal::STOP);
    let zombie = Zombie {
        scene,
        load,
        frozen,
    };
    let taker = zombie.scene.start_daemon();
    wait_until("every partition is claimed again", PATIENCE, || {
        taker.log().matches("claimed kafka.partition").count() == 3
    });
    drop(taker);
    drop(holder);
    let taker = zombie.be_replaced();
    zombie.wake(taker, true);
}

#[test]
fn frozen_when_committed_and_nothing_noted() {
    let failpoints = "rebalance=sleep(1000);committed=6*sleep(100)->1*return(stop)->sleep(20)";
    let zombie = Zombie::freeze_at(Phase::Committed, failpoints);
    let taker = zombie.be_replaced();
    zombie.wake(taker, true);
}

#[test]
fn frozen_while_it_owes_the_group_an_answer() {
    let (scene, load) = loaded_scene();
    let failpoints = "rebalance=1*return(stop)->sleep(1000);committed=sleep(20)";
    let frozen = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", failpoints)]);
    wait_until("some orders are stored", PATIENCE, || scene.settled() > 0);
    let taker = scene.start_daemon();
    frozen.wait_until_logged("failpoint rebalance");
    load.assert_exactly_once(&scene);
    let zombie = Zombie {
        scene,
        load,
        frozen,
    };
    // Its late answer to the group may end its readings before a writer is rejected.
    zombie.wake(taker, false);
}

#[test]
fn frozen_while_it_stops() {
    let (scene, load) = loaded_scene();
    let failpoints = "drain=return(stop);committed=sleep(50)";
    // With less time it would end when it wakes, without another try.
    let frozen = scene.start_daemon_with(&[
        SMALL_BATCHES,
        ("FAILPOINTS", failpoints),
        ("SHUTDOWN_TIMEOUT_MS", "120000"),
    ]);
    wait_until("some orders are stored", PATIENCE, || scene.settled() > 0);
    frozen.signal(Signal::TERM);
    frozen.wait_until_logged("failpoint drain");
    let mut zombie = Zombie {
        scene,
        load,
        frozen,
    };
    let taker = zombie.be_replaced();
    zombie.frozen.signal(Signal::CONT);
    zombie.frozen.wait_until_logged("fenced");
    zombie.frozen.wait(PATIENCE);
    zombie.load.produce(1_000);
    zombie.load.assert_exactly_once(&zombie.scene);
    assert!(taker.stop().success());
}
