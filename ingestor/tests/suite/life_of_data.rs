//! What was erased is nowhere in the database and never comes back; what is old is removed on demand.

use std::thread;

use chrono::Utc;
use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use shared::order::Order;
use shared::testing::wait_until;

use crate::support::{Api, Daemon, PATIENCE, Scene, create_topic, read_topic};

const HOUR_MS: i64 = 3_600_000;
const CUSTOMER: &str = "customer-17 of Kazan";

/// Every text that must be gone.
const PERSONAL: [&str; 6] = [
    "Wilhelmina",
    "+49301234567",
    "wilhelmina@example.org",
    "Geheimgasse",
    "personal-uid",
    CUSTOMER,
];

/// An order of the customer who is erased.
fn personal(scene: &mut Scene, uid: &str) -> Order {
    let mut order = scene.later(uid);
    order.customer_id = CUSTOMER.into();
    let delivery = &mut order.delivery;
    delivery.name = "Wilhelmina Beispiel".into();
    delivery.phone = "+49301234567".into();
    delivery.email = "wilhelmina@example.org".into();
    delivery.address = "Geheimgasse 7".into();
    order
}

fn json(order: &Order) -> Vec<u8> {
    serde_json::to_vec(order).unwrap()
}

/// The same order, but not valid.
fn invalid(order: &Order) -> Vec<u8> {
    let mut document = serde_json::to_value(order).unwrap();
    document["items"] = serde_json::json!([]);
    document.to_string().into_bytes()
}

/// The lines of a dump that contain what must be gone.
fn traces(scene: &Scene) -> Vec<String> {
    let dump = scene.database.dump();
    let statistics = scene.database.texts(
        "SELECT concat_ws(' ', tablename, attname, most_common_vals, histogram_bounds) AS value FROM pg_stats
          WHERE schemaname = 'public'",
    );
    let lines = dump.lines().map(str::to_owned).chain(statistics);
    // The bytes of letters are dumped in hexadecimal.
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    let is_trace = |line: &String| {
        PERSONAL
            .iter()
            .any(|text| line.contains(text) || line.contains(&hex(text)))
    };
    lines.filter(is_trace).collect()
}

fn erase(scene: &Scene, more: &[&str]) -> String {
    let arguments: Vec<&str> = ["erase"].iter().chain(more).copied().collect();
    scene.run_well(&arguments)
}

fn letters(scene: &Scene) -> Vec<String> {
    scene.database.texts(
        "SELECT concat_ws(' ', \"offset\", octet_length(key), octet_length(payload), blanked_why) AS value FROM dead_letters
          ORDER BY partition, \"offset\"",
    )
}

/// Listens for the events of writers. The caches would drop what was removed without them, too, but only when their audit has
/// found it.
fn listen(scene: &Scene) -> PgConnection {
    let mut listener = scene.database.connect();
    listener.batch_execute("LISTEN order_events").unwrap();
    listener
}

/// Asserts that these orders were announced as deleted.
fn assert_announced<'a>(mut listener: PgConnection, uids: impl IntoIterator<Item = &'a str>) {
    listener.batch_execute("SELECT").unwrap();
    let payloads: Vec<String> = listener
        .notifications_iter()
        .map(|notification| notification.unwrap().payload)
        .filter(|payload| payload.contains("\"delete\""))
        .collect();
    for uid in uids {
        let name = format!("\"{uid}\"");
        assert!(
            payloads.iter().any(|payload| payload.contains(&name)),
            "{uid} was not announced"
        );
    }
}

fn left_out(daemon: &Daemon) -> f64 {
    daemon.metric("orders_ingestor_removed_total")
}

#[test]
fn what_was_erased_is_nowhere_in_the_database_and_does_not_come_back() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    let orders = ["personal-uid-1", "personal-uid-2"].map(|uid| personal(&mut scene, uid));
    scene.produce(&orders);
    scene.produce_orders(1);
    // Letters that name the customer, an order, or neither: as JSON, as broken JSON, by the key, and within an envelope.
    let other = personal(&mut scene, "personal-uid-3");
    scene.send(Some("personal-uid-3"), Some(&invalid(&other)));
    scene.send(None, Some(&json(&orders[0])[..200]));
    scene.send(Some("personal-uid-2"), None);
    let envelope =
        serde_json::json!({"payload": {"after": serde_json::to_string(&other).unwrap()}});
    scene.send(None, Some(envelope.to_string().as_bytes()));
    scene.send(Some("another"), Some(b"{\"order_uid\": \"another\"}"));
    scene.flush();
    scene.wait_until_settled(8);
    assert_eq!((scene.stored(), scene.dead_letters()), (3, 5));
    assert_eq!(api.order("personal-uid-1").status, 200);
    scene.database.execute("ANALYZE");
    assert!(traces(&scene).len() > 5, "{:?}", traces(&scene));

    let plan = erase(&scene, &["--customer", CUSTOMER, "--dry-run"]);
    assert!(
        plan.contains("2 orders and the bytes of 4 dead letters")
            && plan.contains("nothing was changed"),
        "{plan}"
    );
    assert_eq!(scene.stored(), 3);
    let refusal = scene.run_badly(&["erase", "--customer", CUSTOMER]);
    assert!(refusal.contains("--yes"), "{refusal}");
    let listener = listen(&scene);
    let done = erase(&scene, &["--customer", CUSTOMER, "--yes"]);
    assert_announced(listener, ["personal-uid-1", "personal-uid-2"]);
    assert!(
        done.contains("2 orders and the bytes of 4 dead letters"),
        "{done}"
    );
    assert!(traces(&scene).is_empty(), "{:?}", traces(&scene));
    for order in &orders {
        wait_until("the caches have dropped it", PATIENCE, || {
            api.order(order.order_uid.as_str()).status == 404
        });
    }

    // Everything comes again: by a rewind, by a replay, by late messages, good and bad.
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    scene.wait_until_settled(8);
    wait_until("the records were read again", PATIENCE, || {
        left_out(&daemon) > 1.0
    });
    let replay = scene.run(&[
        "dead-letters",
        "replay",
        "--all",
        "--revive-deleted",
        "--yes",
    ]);
    assert!(replay.stderr.contains("erased"), "{replay:?}");
    let late = Utc::now().timestamp_millis() - HOUR_MS;
    let unknown = personal(&mut scene, "personal-uid-4");
    scene.produce_at(&unknown, late);
    scene.produce_at(&orders[1], late);
    scene.send(Some("x"), Some(&invalid(&other)));
    scene.send(Some("personal-uid-1"), Some(b"not json"));
    scene.send(
        None,
        Some(format!("<order customer=\"{CUSTOMER}\"/>").as_bytes()),
    );
    scene.flush();
    scene.wait_until_settled(13);
    assert!(traces(&scene).is_empty(), "{:?}", traces(&scene));
    assert_eq!((scene.stored(), left_out(&daemon)), (1, 4.0));
    let blanked =
        "SELECT count(*) AS value FROM dead_letters WHERE blanked_why = 'erased' AND key IS NULL
                   AND payload IS NULL AND headers = '[]'";
    assert_eq!(scene.database.integer(blanked), 7);

    // A new message is stored, because it is new.
    scene.produce(&orders[..1]);
    scene.wait_until_settled(14);
    assert_eq!(scene.stored(), 2);
    assert!(daemon.stop().success());
}

#[test]
fn an_old_message_writes_no_erased_customer_into_an_order_that_exists() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let order = scene.later("shared-uid");
    scene.produce(std::slice::from_ref(&order));
    scene.wait_until_settled(1);
    erase(&scene, &["--customer", CUSTOMER, "--yes"]);
    let taken_over = personal(&mut scene, "shared-uid");
    scene.produce_at(&taken_over, Utc::now().timestamp_millis() - HOUR_MS);
    scene.wait_until_settled(2);
    assert_eq!(
        scene
            .database
            .texts("SELECT customer_id AS value FROM orders"),
        [order.customer_id.to_string()]
    );
    assert!(daemon.stop().success());
}

#[test]
fn an_erasure_waits_for_the_batch_that_is_under_way() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    scene.produce_orders(1);
    scene.wait_until_settled(1);
    let holder = scene.hold_commits();
    let order = personal(&mut scene, "personal-uid-1");
    scene.produce(std::slice::from_ref(&order));
    scene.wait_until_a_commit_is_held();
    thread::scope(|scope| {
        let erasing = scope.spawn(|| erase(&scene, &["--customer", CUSTOMER, "--yes"]));
        wait_until("the erasure waits", PATIENCE, || {
            let waiting = "SELECT count(*) AS value FROM pg_locks JOIN pg_database ON pg_database.oid = database
                           WHERE datname = current_database() AND mode = 'ExclusiveLock' AND locktype = 'advisory'
                           AND NOT granted";
            scene.database.integer(waiting) > 0
        });
        drop(holder);
        let done = erasing.join().unwrap();
        assert!(done.contains("1 orders"), "{done}");
    });
    scene.wait_until_settled(2);
    assert_eq!((scene.stored(), traces(&scene)), (1, Vec::new()));
    assert!(daemon.stop().success());
}

#[test]
fn an_erasure_that_was_interrupted_is_completed_by_the_next_one() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let orders = ["personal-uid-1", "personal-uid-2"].map(|uid| personal(&mut scene, uid));
    scene.produce(&orders);
    scene.send(Some("personal-uid-1"), Some(b"{}"));
    scene.flush();
    scene.wait_until_settled(3);
    assert!(daemon.stop().success());
    // The table will be empty, and ANALYZE keeps the statistics of an empty table.
    scene.database.execute("ANALYZE");
    // This is as far as it came. The next one cannot know the uid any more.
    scene.database.execute(&format!(
        "SELECT record_removed('customer', ARRAY['{CUSTOMER}'], 'erased');
         SELECT record_removed('order', ARRAY['personal-uid-1'], 'erased');
         DELETE FROM orders WHERE order_uid = 'personal-uid-1'"
    ));
    let done = erase(&scene, &["--customer", CUSTOMER, "--yes"]);
    assert!(
        done.contains("1 orders and the bytes of 1 dead letters"),
        "{done}"
    );
    assert_eq!((scene.stored(), traces(&scene)), (0, Vec::new()));
    let again = erase(
        &scene,
        &["--order", "personal-uid-1", "personal-uid-2", "--yes"],
    );
    assert!(
        again.contains("0 orders and the bytes of 0 dead letters"),
        "{again}"
    );
}

#[test]
fn letters_without_bytes_are_never_relayed_and_say_why() {
    let mut scene = Scene::new(1);
    let order = personal(&mut scene, "personal-uid-1");
    scene.send(Some("personal-uid-1"), Some(&invalid(&order)));
    scene.send(Some("other"), Some(b"other"));
    scene.flush();
    let daemon = scene.start_daemon();
    scene.wait_until_settled(2);
    erase(&scene, &["--order", "personal-uid-1", "--yes"]);
    scene.send(Some("personal-uid-1"), Some(b"{}"));
    scene.flush();
    scene.wait_until_settled(3);
    assert!(daemon.stop().success());
    assert_eq!(letters(&scene), ["0 erased", "1 5 5", "2 erased"]);

    let id = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters ORDER BY id")
        .remove(0);
    let shown = scene.run_well(&["dead-letters", "show", &id]);
    assert!(shown.contains("its bytes were erased at"), "{shown}");
    let refusal = scene.run_badly(&["dead-letters", "show", &id, "--payload"]);
    assert!(refusal.contains("its bytes were erased at"), "{refusal}");
    let kept = scene.run(&["dead-letters", "replay", &id, "--yes"]);
    assert!(kept.stderr.contains("its bytes were erased at"), "{kept:?}");

    let topic = format!("{}-dlq", scene.topic);
    create_topic(scene.brokers(), &topic, 1, &[]);
    let daemon = scene.start_daemon_with(&[("KAFKA_DLQ_TOPIC", &topic)]);
    scene.send(Some("last"), Some(b"last"));
    scene.flush();
    let messages = read_topic(scene.brokers(), &topic, 2);
    let keys: Vec<_> = messages.iter().map(rdkafka::Message::key).collect();
    assert_eq!(keys, [Some(&b"other"[..]), Some(b"last")]);
    assert!(daemon.stop().success());
}

#[test]
fn old_letters_lose_their_bytes_and_say_so() {
    let scene = Scene::new(1);
    for number in 0..3 {
        scene.send(Some("key"), Some(format!("bad {number}").as_bytes()));
    }
    scene.flush();
    let daemon = scene.start_daemon();
    scene.wait_until_settled(3);
    assert!(daemon.stop().success());
    scene.database.execute(
        "UPDATE dead_letters SET created_at = now() - interval '31 days' WHERE \"offset\" < 2;
         UPDATE dead_letters SET state = 'dropped' WHERE \"offset\" = 0",
    );
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_RETENTION_DAYS", "30")]);
    wait_until("the old letters are blanked", PATIENCE, || {
        letters(&scene) == ["0 expired", "1 expired", "2 3 5"]
    });
    wait_until("they are counted", PATIENCE, || {
        (daemon.metric("orders_ingestor_dead_letters_expired_total") - 2.0).abs() < f64::EPSILON
    });
    let (_, metrics) = daemon.get("/metrics").unwrap();
    assert!(
        metrics.contains("dead_letters_expired_total{state=\"new\"} 1"),
        "{metrics}"
    );
    let id = scene
        .database
        .texts("SELECT id::text AS value FROM dead_letters WHERE \"offset\" = 1")
        .remove(0);
    let kept = scene.run(&["dead-letters", "replay", &id, "--yes"]);
    assert!(
        kept.stderr.contains("DEAD_LETTER_RETENTION_DAYS"),
        "{kept:?}"
    );
    let detail = "SELECT count(*) AS value FROM dead_letters WHERE detail <> ''";
    assert_eq!(scene.database.integer(detail), 3);
    assert!(daemon.stop().success());
}

#[test]
fn a_purge_removes_what_is_old_by_both_times_and_tells_the_caches() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let api = Api::start(&scene.database);
    let orders = scene.produce_orders(600);
    scene.send(None, Some(b"bad"));
    scene.flush();
    scene.wait_until_settled(601);
    let uid = |index: usize| orders[index].order_uid.as_str();
    scene.database.execute(&format!(
        "UPDATE orders SET date_created = now() - interval '500 days' - (random() < 0.5)::integer * interval '1 day',
                           created_at = now() - interval '450 days';
         UPDATE orders SET created_at = now() WHERE order_uid = '{}';
         UPDATE orders SET date_created = now() WHERE order_uid = '{}';
         UPDATE dead_letters SET created_at = now() - interval '450 days'",
        uid(1),
        uid(2)
    ));
    assert_eq!(api.order(uid(0)).status, 200);
    let plan = scene.run_well(&["purge", "--older-than", "400d", "--dry-run"]);
    assert!(
        plan.contains("598 orders")
            && plan.contains("1 dead letters")
            && plan.contains("nothing was changed"),
        "{plan}"
    );
    let listener = listen(&scene);
    let done = scene.run_well(&["purge", "--older-than", "400d", "--orders", "--yes"]);
    assert_announced(listener, (3..600).map(uid));
    assert!(
        done.contains("598 orders") && !done.contains("dead letters"),
        "{done}"
    );
    assert_eq!((scene.stored(), scene.dead_letters()), (2, 1));
    wait_until("the caches have dropped it", PATIENCE, || {
        api.order(uid(0)).status == 404
    });
    let done = scene.run_well(&["purge", "--older-than", "400d", "--dead-letters", "--yes"]);
    assert!(
        done.contains("1 dead letters") && !done.contains("orders"),
        "{done}"
    );
    assert_eq!(scene.dead_letters(), 0);
    // The ledger knows nothing of it.
    scene.run_well(&["offsets", "rewind", "--all", "--to", "earliest", "--yes"]);
    wait_until("they are back", PATIENCE, || scene.stored() == 600);
    assert!(left_out(&daemon).abs() < f64::EPSILON);
    assert!(daemon.stop().success());
}
