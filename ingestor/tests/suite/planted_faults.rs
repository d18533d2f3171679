//! The checker must be able to fail: each of these bugs is planted in the real program and must be found.

use ingestor::failpoints::Plant;
use rustix::process::Signal;
use shared::testing::wait_until;

use crate::support::checker::Violation;
use crate::support::{Load, PATIENCE, Scene};

const SMALL_BATCHES: (&str, &str) = ("BATCH_MAX_RECORDS", "20");
const STATIC_MEMBER: (&str, &str) = ("KAFKA_CONFIG", "group.instance.id=one");

fn loaded_scene() -> (Scene, Load) {
    let scene = Scene::new(1);
    let mut load = Load::new(&scene);
    load.produce(1_000);
    (scene, load)
}

fn plant(plant: Plant) -> String {
    format!("{}=return", <&str>::from(plant))
}

#[track_caller]
fn assert_caught(found: &[Violation], is_expected: impl Fn(&Violation) -> bool) {
    assert!(found.iter().any(is_expected), "not caught, only {found:?}");
}

#[test]
fn an_offset_committed_before_its_rows_is_caught() {
    let (scene, load) = loaded_scene();
    let failpoints = plant(Plant::OffsetFirst) + ";before_commit=5*off->return(kill)";
    let variables = [SMALL_BATCHES, STATIC_MEMBER, ("FAILPOINTS", &failpoints)];
    scene.start_daemon_with(&variables).wait(PATIENCE);
    let _next = scene.start_daemon_with(&[STATIC_MEMBER]);
    load.wait_until_settled(&scene);
    let found = load.check(&scene);
    assert_caught(&found, |violation| matches!(violation, Violation::Lost(_)));
    assert_caught(&found, |violation| {
        matches!(violation, Violation::CommittedApart(_))
    });
}

#[test]
fn rows_skipped_after_an_error_are_caught() {
    let (scene, load) = loaded_scene();
    // A sequence is not rolled back, so the same row succeeds at the next attempt.
    scene.database.execute(
        "CREATE SEQUENCE mishaps;
         CREATE FUNCTION fail_sometimes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('mishaps') % 100 = 0 THEN
                 RAISE EXCEPTION 'out of luck' USING ERRCODE = 'disk_full';
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER fail_sometimes BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION fail_sometimes();",
    );
    let failpoints = plant(Plant::SkipOnError);
    let _daemon = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", &failpoints)]);
    load.wait_until_settled(&scene);
    assert_caught(&load.check(&scene), |violation| {
        matches!(violation, Violation::Lost(_))
    });
}

#[test]
fn a_former_owner_that_is_not_fenced_is_caught() {
    let (scene, load) = loaded_scene();
    // It is frozen outside of a transaction, because the new owner ends frozen ones. Batches queue up while the first commit
    // sleeps. When it wakes, its writer continues before its poll thread learns that the group has removed it.
    let failpoints =
        plant(Plant::NoFence) + ";committed=1*sleep(500)->1*return(stop);rebalance=sleep(1000)";
    let frozen = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", &failpoints)]);
    frozen.wait_until_logged("failpoint committed");
    let _taker = scene.start_daemon();
    load.wait_until_settled(&scene);
    assert_eq!(load.check(&scene), []);
    frozen.signal(Signal::CONT);
    let mut found = Vec::new();
    wait_until("the frozen one has broken something", PATIENCE, || {
        found = load.check(&scene);
        !found.is_empty()
    });
    assert_caught(&found, |violation| {
        matches!(violation, Violation::OffsetMoved { .. })
    });
    assert_caught(&found, |violation| {
        matches!(violation, Violation::AppliedTwice(_))
    });
}

#[test]
fn swallowed_dead_letters_are_caught() {
    let (scene, load) = loaded_scene();
    let failpoints = plant(Plant::SwallowDeadLetters);
    let _daemon = scene.start_daemon_with(&[("FAILPOINTS", &failpoints)]);
    load.wait_until_settled(&scene);
    let found = load.check(&scene);
    assert!(!found.is_empty(), "not caught");
    assert!(
        found
            .iter()
            .all(|violation| matches!(violation, Violation::NoDeadLetter(_))),
        "{found:?}"
    );
}

#[test]
fn a_batch_applied_again_is_caught() {
    let (scene, load) = loaded_scene();
    // The fence would reject the second attempt.
    let failpoints = format!(
        "{}=5*off->1*return;{}",
        <&str>::from(Plant::ReapplyBatch),
        plant(Plant::NoFence)
    );
    let _daemon = scene.start_daemon_with(&[SMALL_BATCHES, ("FAILPOINTS", &failpoints)]);
    load.wait_until_settled(&scene);
    assert_caught(&load.check(&scene), |violation| {
        matches!(violation, Violation::AppliedTwice(_))
    });
}
