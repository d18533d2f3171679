//! `ingestor dead-letters`: letters are found, shown, replayed once and never over a newer order, and dropped.

use std::process::Output;

use diesel::connection::SimpleConnection;
use rustix::process::Signal;
use shared::order::Order;
use shared::testing::wait_until;

use crate::support::{PATIENCE, Scene, command};

const CHECK: &str = "ALTER TABLE orders ADD CONSTRAINT no_evil CHECK (entry <> 'EVIL')";
const NO_CHECK: &str = "ALTER TABLE orders DROP CONSTRAINT no_evil";

fn dead_letters(scene: &Scene, arguments: &[&str]) -> Output {
    let arguments: Vec<&str> = ["dead-letters"].iter().chain(arguments).copied().collect();
    command(&arguments, &scene.environment()).output().unwrap()
}

/// Standard output of a command that succeeds.
fn printed(scene: &Scene, arguments: &[&str]) -> String {
    let output = dead_letters(scene, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that fails.
fn refusal(scene: &Scene, arguments: &[&str]) -> String {
    let output = dead_letters(scene, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn evil(scene: &mut Scene, uid: &str) -> Order {
    let mut order = scene.later(uid);
    order.entry = "EVIL".into();
    order
}

/// Makes dead letters of valid orders that only a constraint rejects, and then drops the constraint.
fn scene_with_refused(uids: &[&str]) -> (Scene, Vec<Order>) {
    let mut scene = Scene::new(1);
    scene.database.execute(CHECK);
    let orders: Vec<Order> = uids.iter().map(|uid| evil(&mut scene, uid)).collect();
    scene.produce(&orders);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(i64::try_from(uids.len()).unwrap());
    assert!(daemon.stop().success());
    assert_eq!(scene.stored(), 0);
    scene.database.execute(NO_CHECK);
    (scene, orders)
}

fn states(scene: &Scene) -> Vec<String> {
    scene
        .database
        .texts("SELECT state AS value FROM dead_letters ORDER BY id")
}

#[test]
fn letters_are_listed_page_by_page_and_by_filter() {
    let scene = Scene::new(1);
    for number in 0..7 {
        scene.send(Some("bad"), Some(format!("not json {number}").as_bytes()));
    }
    scene.send(Some("gone"), None);
    scene.flush();
    let _daemon = scene.start_daemon();
    scene.wait_until_settled(8);

    let ids = |arguments: &[&str]| -> Vec<i64> {
        let arguments: Vec<&str> = ["list", "--json"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let lines = printed(&scene, &arguments);
        let id =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_i64();
        lines.lines().map(|line| id(line).unwrap()).collect()
    };
    let all = ids(&[]);
    assert_eq!(all.len(), 8);
    assert!(all.is_sorted_by(|left, right| left > right), "{all:?}");
    let mut paged = Vec::new();
    let mut before = i64::MAX.to_string();
    loop {
        let page = ids(&["--limit", "3", "--before", &before]);
        let Some(last) = page.last() else { break };
        before = last.to_string();
        paged.extend(page);
    }
    assert_eq!(paged, all);
    assert_eq!(ids(&["--reason", "tombstone"]), all[..1]);
    assert_eq!(ids(&["--from-offset", "2", "--to-offset", "3"]), all[4..6]);
    assert_eq!(
        ids(&["--state", "dropped"]).len() + ids(&["--partition", "1"]).len(),
        0
    );
    assert_eq!(ids(&["--until", "2020-01-01T00:00:00Z"]).len(), 0);
    assert_eq!(ids(&["--since", "2020-01-01T00:00:00Z"]), all);

    let table = printed(&scene, &["list", "--limit", "3"]);
    assert!(
        table.contains("tombstone") && table.contains(&format!("--before {}", all[2])),
        "{table}"
    );
    assert!(refusal(&scene, &["list", "--limit", "0"]).contains("1..=1000"));
}

#[test]
fn a_letter_is_shown_with_its_bytes() {
    let scene = Scene::new(1);
    let payload = b"\x1b[2J not json \xff";
    scene.send(Some("a key"), Some(payload));
    scene.flush();
    let _daemon = scene.start_daemon();
    scene.wait_until_settled(1);
    let id = scene
        .database
        .integer("SELECT id AS value FROM dead_letters")
        .to_string();

    let raw = dead_letters(&scene, &["show", &id, "--payload"]);
    assert_eq!(raw.stdout, payload);
    let text = printed(&scene, &["show", &id]);
    assert!(
        text.contains("a key") && text.contains("not_json") && !text.contains('\x1b'),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&printed(&scene, &["show", &id, "--json"])).unwrap();
    assert_eq!(
        (json["reason"].as_str(), json["offset"].as_i64()),
        (Some("not_json"), Some(0))
    );
    assert!(refusal(&scene, &["show", "999999"]).contains("has no dead letter 999999"));
}

#[test]
fn a_letter_is_replayed_once_with_its_event() {
    let (scene, orders) = scene_with_refused(&["first", "second"]);
    let ids = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters ORDER BY id");
    assert!(
        refusal(&scene, &["replay", &ids[0]]).contains("--yes"),
        "you cannot be asked"
    );
    let dry = printed(&scene, &["replay", "--all", "--dry-run"]);
    assert!(
        dry.contains("2 replayed") && dry.contains("nothing was changed"),
        "{dry}"
    );
    assert_eq!(
        (scene.stored(), states(&scene)),
        (0, vec!["new".to_owned(), "new".to_owned()])
    );

    let mut listener = scene.database.connect();
    listener.batch_execute("LISTEN order_events").unwrap();
    let done = printed(
        &scene,
        &[
            "replay",
            "--all",
            "--reason",
            "refused_by_database",
            "--yes",
        ],
    );
    assert!(done.contains("2 replayed, 0 superseded"), "{done}");
    assert_eq!(
        (scene.stored(), states(&scene)),
        (2, vec!["replayed".to_owned(); 2])
    );
    listener.batch_execute("SELECT").unwrap();
    let told: Vec<String> = listener
        .notifications_iter()
        .map(|notification| notification.unwrap().payload)
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    for (payload, order) in told.iter().zip(&orders) {
        assert!(payload.contains(order.order_uid.as_str()), "{payload}");
    }
    let again = refusal(&scene, &["replay", &ids[0], "--yes"]);
    assert!(again.contains("somebody has decided on it"), "{again}");
    assert!(printed(&scene, &["replay", "--all", "--yes"]).contains("no new dead letter matches"));
}

#[test]
fn of_two_replays_at_once_one_fails() {
    let (scene, _) = scene_with_refused(&["only"]);
    scene.audit_writes();
    let id = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters")
        .remove(0);
    // Both wait for the letter, so that they run at the same time.
    let mut gate = scene.database.connect();
    gate.batch_execute("BEGIN; SELECT FROM dead_letters FOR UPDATE")
        .unwrap();
    let arguments = ["dead-letters", "replay", &id, "--yes"];
    let start = || command(&arguments, &scene.environment()).spawn().unwrap();
    let both = [start(), start()];
    wait_until("both wait for the letter", PATIENCE, || {
        let waiting = "SELECT count(*) AS value FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        scene.database.integer(waiting) == 2
    });
    gate.batch_execute("COMMIT").unwrap();
    let mut successes = 0;
    for child in both {
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        successes += usize::from(output.status.success());
        assert!(
            output.status.success() || error.contains("somebody has decided on it"),
            "{error}"
        );
    }
    assert_eq!(successes, 1);
    assert_eq!(
        scene
            .database
            .integer("SELECT count(*) AS value FROM audit"),
        1
    );
}

#[test]
fn a_replay_never_overwrites_a_newer_order() {
    let uids = ["later", "put", "deleted", "earlier"];
    let (mut scene, orders) = scene_with_refused(&uids);
    // The orders were last written by a later message, by a PUT, not at all, and by an earlier message.
    let later = scene.later("later");
    scene.produce(std::slice::from_ref(&later));
    let daemon = scene.start_daemon();
    scene.wait_until_settled(5);
    scene.database.execute(
        "CREATE TEMP TABLE copy AS SELECT * FROM orders;
         UPDATE copy SET order_uid = 'put', source_partition = NULL, source_offset = NULL, source_incarnation = NULL;
         INSERT INTO orders SELECT * FROM copy;
         UPDATE copy SET order_uid = 'earlier', source_partition = 0, source_offset = 2, source_incarnation = 1;
         INSERT INTO orders SELECT * FROM copy;",
    );
    let done = printed(&scene, &["replay", "--all", "--yes"]);
    assert!(done.contains("2 replayed, 2 superseded"), "{done}");
    assert_eq!(
        states(&scene),
        ["superseded", "superseded", "replayed", "replayed"]
    );
    let evil = scene
        .database
        .texts("SELECT order_uid AS value FROM orders WHERE entry = 'EVIL' ORDER BY 1");
    assert_eq!(evil, ["deleted", "earlier"]);
    let items: usize = orders[2].items.len();
    let stored = scene
        .database
        .integer("SELECT count(*) AS value FROM order_items WHERE order_uid = 'deleted'");
    assert_eq!(stored, i64::try_from(items).unwrap());
    daemon.signal(Signal::TERM);
}

#[test]
fn a_letter_of_a_former_topic_is_older_than_every_message_of_the_new_one() {
    let mut scene = Scene::new(1);
    scene.database.execute(CHECK);
    // They are sent separately, so that they are not folded.
    let older = scene.later("older");
    scene.produce(&[older]);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(1);
    for uid in ["older", "gone", "rewritten", "put"] {
        let evil = evil(&mut scene, uid);
        scene.send_order(&evil);
    }
    scene.flush();
    scene.wait_until_settled(5);
    scene.database.execute(NO_CHECK);
    assert!(daemon.stop().success());

    // The letters' offsets are higher than those of the new topic, but that does not make them newer.
    scene.recreate_topic(1);
    let rewritten = [scene.later("rewritten"), scene.later("put")];
    scene.produce(&rewritten);
    let daemon = scene.start_daemon();
    scene.wait_for_incidents(1);
    scene.accept_gap(&["--new-topic"]);
    scene.wait_until_at(2, 2);
    assert!(daemon.stop().success());
    // This is what a PUT does.
    scene.database.execute(
        "UPDATE orders SET source_partition = NULL, source_offset = NULL, source_incarnation = NULL WHERE order_uid = 'put'",
    );
    let done = printed(&scene, &["replay", "--all", "--yes"]);
    assert!(done.contains("2 replayed, 2 superseded"), "{done}");
    assert_eq!(
        states(&scene),
        ["replayed", "replayed", "superseded", "superseded"]
    );
    let rows = scene.database.texts(
        "SELECT concat_ws(' ', order_uid, entry, source_partition, source_incarnation, source_offset) AS value
           FROM orders ORDER BY order_uid",
    );
    assert_eq!(
        rows,
        [
            "gone EVIL 0 1 2",
            "older EVIL 0 1 1",
            "put WBIL",
            "rewritten WBIL 0 2 0"
        ]
    );
}

#[test]
fn letters_that_cannot_be_replayed_are_kept_and_can_be_dropped() {
    let scene = Scene::new(1);
    scene.send(None, Some(b"{}"));
    // Its beginning would be a valid order.
    scene.send(None, Some(&vec![b' '; 900 * 1024]));
    scene.flush();
    let daemon = scene.start_daemon();
    scene.wait_until_settled(2);
    assert!(daemon.stop().success());
    scene
        .database
        .execute("UPDATE dead_letters SET payload_size = payload_size + 1 WHERE \"offset\" = 1");
    let kept = refusal(&scene, &["replay", "--all", "--yes"]);
    assert!(
        kept.contains("invalid_order") && kept.contains("bytes are kept"),
        "{kept}"
    );
    assert_eq!(states(&scene), ["new", "new"]);
    assert!(printed(&scene, &["drop", "--all", "--dry-run"]).contains("2 dropped"));
    assert_eq!(states(&scene), ["new", "new"]);
    let id = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters ORDER BY id")
        .remove(0);
    printed(&scene, &["drop", &id, "--yes"]);
    assert_eq!(states(&scene), ["dropped", "new"]);
    assert!(refusal(&scene, &["drop", &id, "--yes"]).contains("somebody has decided on it"));
    assert!(refusal(&scene, &["replay", "--yes"]).contains("<IDS>"));
    assert!(refusal(&scene, &["replay", &id, "--reason", "x", "--yes"]).contains("--all"));
}
