//! What was deleted through the api stays deleted, whatever comes again: a rewind, a late message, a batch that is under way, a
//! replay. A new message stores the order again.

use std::thread;

use chrono::Utc;
use diesel::connection::SimpleConnection;
use hmac::{Hmac, KeyInit, Mac};
use ingestor::ledger::Hasher;
use sha2::Sha256;
use shared::db::removed::Kind;
use shared::order::Order;
use shared::testing::{TestDatabase, wait_until};

use crate::support::{Api, Daemon, PATIENCE, Scene};

const HOUR_MS: i64 = 3_600_000;

fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

fn delete(api: &Api, uid: &str) {
    let answer = api.request("DELETE", &format!("/api/v1/orders/{uid}"), None);
    assert_eq!(answer.status, 204, "{answer:?}");
}

fn uids(scene: &Scene) -> Vec<String> {
    scene
        .database
        .texts("SELECT order_uid AS value FROM orders ORDER BY 1")
}

fn left_out(daemon: &Daemon) -> f64 {
    daemon.metric("orders_ingestor_removed_total")
}

/// Stores orders with these uids, and returns them.
fn store(scene: &mut Scene, uids: &[&str]) -> Vec<Order> {
    let orders: Vec<Order> = uids.iter().map(|uid| scene.later(uid)).collect();
    let before = scene.settled();
    scene.produce(&orders);
    scene.wait_until_settled(before + i64::try_from(orders.len()).unwrap());
    orders
}

#[test]
fn hashes_are_hmac_and_the_database_makes_the_same() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let hasher = Hasher::read(&mut connection).unwrap();
    let pad = database
        .texts("SELECT encode(inner_pad, 'hex') AS value FROM removed_orders_key")
        .remove(0);
    let key: Vec<u8> = (0..64)
        .map(|index| u8::from_str_radix(&pad[2 * index..2 * index + 2], 16).unwrap() ^ 0x36)
        .collect();
    assert!(key[..32] != [0; 32] && key[32..] == [0; 32]);
    for (kind, name, id) in [
        (Kind::Order, "order", "b563feb7b2b84b6test"),
        (Kind::Customer, "customer", "Иван 1"),
    ] {
        let mut hmac = Hmac::<Sha256>::new_from_slice(&key[..32]).unwrap();
        hmac.update(format!("{name}:{id}").as_bytes());
        let expected = hmac.finalize().into_bytes();
        let hash = hasher.hash(kind, id);
        assert_eq!(hash.as_bytes(), &expected[..16]);
        let query = format!("SELECT removed_hash('{name}', '{id}')::text AS value");
        assert_eq!(database.texts(&query), [hash.to_string()]);
    }
}

#[test]
fn a_rewind_to_the_earliest_record_brings_nothing_back() {
    let mut scene = Scene::new(2);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["a", "b", "c"]);
    delete(&api, "b");
    delete(&api, "c");
    // It comes back by a new message, and that is the state to which the rewind leads.
    store(&mut scene, &["c"]);
    let before = scene
        .database
        .texts("SELECT concat_ws(' ', order_uid, source_offset) AS value FROM orders ORDER BY 1");
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    scene.wait_until_settled(4);
    wait_until("the records were read again", PATIENCE, || {
        left_out(&daemon) > 0.0
    });
    let after = scene
        .database
        .texts("SELECT concat_ws(' ', order_uid, source_offset) AS value FROM orders ORDER BY 1");
    assert_eq!(after, before);
    assert_eq!(
        (uids(&scene), scene.dead_letters()),
        (vec!["a".to_owned(), "c".to_owned()], 0)
    );
    assert_eq!(api.order("b").status, 404);
    assert!(daemon.stop().success());
}

#[test]
fn a_new_incarnation_of_the_offsets_brings_nothing_back() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["a", "b"]);
    delete(&api, "a");
    // This is what accepting the incident of a recreated topic does. All offsets are higher than those that the ledger noted.
    scene.database.execute(
        "UPDATE consumer_offsets SET incarnation = incarnation + 1, next_offset = 0, last_offset = NULL, last_timestamp = NULL",
    );
    wait_until("the records were read again", PATIENCE, || {
        left_out(&daemon) > 0.0
    });
    scene.wait_until_settled(2);
    assert_eq!(uids(&scene), ["b"]);
    assert!(daemon.stop().success());
}

#[test]
fn only_a_later_message_stores_a_deleted_order_again() {
    let mut scene = Scene::new(1);
    // A message that is left out is not a bad one: this would halt the partition.
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "1")]);
    let api = Api::start(&scene.database);
    store(&mut scene, &["late"]);
    delete(&api, "late");
    for offset in 1..4 {
        // The producer sent it long ago.
        let order = scene.later("late");
        scene.produce_at(&order, now_ms() - HOUR_MS);
        scene.wait_until_settled(offset + 1);
    }
    assert_eq!((scene.stored(), scene.dead_letters()), (0, 0));
    wait_until("they are counted", PATIENCE, || {
        (left_out(&daemon) - 3.0).abs() < f64::EPSILON
    });
    // What exists is replaced by it, as ever.
    let other = scene.later("other");
    scene.produce(std::slice::from_ref(&other));
    scene.produce_at(&other, now_ms() - HOUR_MS);
    let new = scene.later("late");
    scene.produce(&[new]);
    scene.wait_until_settled(7);
    assert_eq!(uids(&scene), ["late", "other"]);
    assert!((left_out(&daemon) - 3.0).abs() < f64::EPSILON);
    // Nothing was read of this one before it was deleted, but its clock runs ahead.
    assert!(daemon.stop().success());
    let ahead = scene.later("ahead");
    scene.produce_at(&ahead, now_ms() + HOUR_MS);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(8);
    delete(&api, "ahead");
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    scene.wait_until_settled(8);
    wait_until("it is left out by its offset", PATIENCE, || {
        left_out(&daemon) > 0.0
    });
    assert_eq!(uids(&scene), ["late", "other"]);
    assert!(daemon.stop().success());
}

/// As after a PUT: what the api has written is newer than every message that was read before it.
#[test]
fn an_order_that_was_created_again_is_kept_by_a_rewind_and_replaced_by_a_new_message() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["a"]);
    delete(&api, "a");
    let created = scene.later("a");
    let body = serde_json::to_string(&created).unwrap();
    let answer = api.request("POST", "/api/v1/orders", Some(&body));
    assert_eq!(answer.status, 201, "{answer:?}");
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    wait_until("the old message is held back", PATIENCE, || {
        scene.dead_letters() == 1
    });
    scene.wait_until_settled(1);
    let is_stored = |order: &Order| api.order("a").json() == serde_json::to_value(order).unwrap();
    assert!(is_stored(&created));
    let new = store(&mut scene, &["a"]).remove(0);
    wait_until("the new message has replaced it", PATIENCE, || {
        is_stored(&new)
    });
    assert_eq!(scene.dead_letters(), 1);
    assert!(daemon.stop().success());
}

#[test]
fn each_message_of_a_batch_is_judged_by_itself() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["twice", "gone"]);
    delete(&api, "twice");
    delete(&api, "gone");
    assert!(daemon.stop().success());
    // The last message of "twice" is old, the one before is new.
    let (new, old) = (scene.later("twice"), scene.later("twice"));
    scene.produce_at(&new, now_ms() + 1000);
    scene.produce_at(&old, now_ms() - HOUR_MS);
    let gone = scene.later("gone");
    scene.produce_at(&gone, now_ms() - HOUR_MS);
    let daemon = scene.start_daemon();
    scene.wait_until_settled(5);
    assert_eq!(uids(&scene), ["twice"]);
    assert_eq!(
        scene
            .database
            .integer("SELECT source_offset AS value FROM orders"),
        2
    );
    wait_until("both are counted", PATIENCE, || {
        (left_out(&daemon) - 2.0).abs() < f64::EPSILON
    });
    assert!(daemon.stop().success());
}

#[test]
fn an_old_message_that_a_constraint_rejects_leaves_no_letter() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["a", "b"]);
    delete(&api, "b");
    scene
        .database
        .execute("ALTER TABLE orders ADD CONSTRAINT no_b CHECK (order_uid <> 'b')");
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    wait_until("it is left out", PATIENCE, || left_out(&daemon) > 0.0);
    scene.wait_until_settled(2);
    assert_eq!(
        (uids(&scene), scene.dead_letters()),
        (vec!["a".to_owned()], 0)
    );
    assert!(daemon.stop().success());
}

#[test]
fn an_order_that_is_created_and_deleted_while_a_batch_is_under_way_stays_deleted() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["before"]);
    // The batch waits when it begins to copy: it has locked what exists, and knows that "u" does not.
    let mut gate = scene.database.connect();
    gate.batch_execute(
        "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF current_setting('application_name') = 'orders-ingestor' THEN
                 PERFORM pg_advisory_xact_lock_shared(4);
             END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER held BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION wait_for_test();
         SELECT pg_advisory_lock(4);",
    )
    .unwrap();
    let message = scene.later("u");
    scene.produce(std::slice::from_ref(&message));
    scene.wait_until_a_lock_is_awaited();
    gate.batch_execute(
        "INSERT INTO orders SELECT (jsonb_populate_record(o, '{\"order_uid\": \"u\"}')).* FROM orders AS o",
    )
    .unwrap();
    delete(&api, "u");
    gate.batch_execute("SELECT pg_advisory_unlock(4)").unwrap();
    scene.wait_until_settled(2);
    assert_eq!(uids(&scene), ["before"]);
    assert!(daemon.stop().success());
}

#[test]
fn a_deletion_that_waits_for_a_batch_counts_its_messages_as_read() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["u"]);
    let holder = scene.hold_commits();
    // Its clock runs ahead, so that only its offset tells that it is old.
    let message = scene.later("u");
    scene.produce_at(&message, now_ms() + HOUR_MS);
    scene.wait_until_a_commit_is_held();
    let deleting = thread::scope(|scope| {
        let deleting = scope.spawn(|| api.request("DELETE", "/api/v1/orders/u", None).status);
        wait_until("the api waits for the row", PATIENCE, || {
            let waiting =
                "SELECT count(*) AS value FROM pg_stat_activity WHERE datname = current_database()
                           AND application_name = 'orders-api' AND wait_event_type = 'Lock'";
            scene.database.integer(waiting) > 0
        });
        drop(holder);
        deleting.join().unwrap()
    });
    assert_eq!(deleting, 204);
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    wait_until("both are left out", PATIENCE, || left_out(&daemon) > 1.0);
    assert_eq!(scene.stored(), 0);
    assert!(daemon.stop().success());
}

#[test]
fn a_replay_brings_a_deleted_order_back_only_on_demand() {
    let mut scene = Scene::new(1);
    scene
        .database
        .execute("ALTER TABLE orders ADD CONSTRAINT no_evil CHECK (entry <> 'EVIL')");
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    for uid in ["u", "v"] {
        let mut evil = scene.later(uid);
        evil.entry = "EVIL".into();
        scene.produce(std::slice::from_ref(&evil));
    }
    scene.wait_until_settled(2);
    // Later messages are stored, and then deleted.
    store(&mut scene, &["u", "v"]);
    delete(&api, "u");
    delete(&api, "v");
    scene
        .database
        .execute("ALTER TABLE orders DROP CONSTRAINT no_evil");
    let replay = |more: &[&str]| {
        let arguments: Vec<&str> = ["dead-letters", "replay", "--yes"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        scene.run_well(&arguments)
    };
    let ids = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters ORDER BY id");
    let told = replay(&[&ids[0]]);
    assert!(
        told.contains("1 stay deleted") && told.contains("--revive-deleted"),
        "{told}"
    );
    assert_eq!(scene.stored(), 0);
    let told = replay(&[&ids[1], "--revive-deleted"]);
    assert!(told.contains("1 replayed"), "{told}");
    assert_eq!(uids(&scene), ["v"]);
    assert_eq!(
        scene
            .database
            .texts("SELECT state AS value FROM dead_letters ORDER BY id"),
        ["superseded", "replayed"]
    );
    assert!(daemon.stop().success());
}

#[test]
fn an_old_message_is_known_among_any_number_of_entries() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    store(&mut scene, &["first", "second"]);
    delete(&api, "first");
    // More than are read at once.
    scene.database.execute(
        "SELECT record_removed('order', ARRAY(SELECT 'x' || number FROM generate_series(1, 1000) AS number), 'deleted')",
    );
    delete(&api, "second");
    for (settled, uid) in [(3, "first"), (4, "second"), (5, "third")] {
        let order = scene.later(uid);
        scene.produce_at(&order, now_ms() - HOUR_MS);
        scene.wait_until_settled(settled);
    }
    assert_eq!(uids(&scene), ["third"]);
    assert!(daemon.stop().success());
}
