//! Orders that only the database rejects, and the breaker.

use shared::order::Order;
use shared::testing::{InvalidKind, wait_until};

use crate::support::{Daemon, PATIENCE, Scene};

/// A constraint whose error names the row in its detail, as every CHECK does.
const CHECK: &str =
    "ALTER TABLE orders ADD CONSTRAINT orders_no_evil CHECK (track_number <> 'EVIL')";
/// A constraint whose error does not name the row.
const SILENT_TRIGGER: &str = "
    CREATE FUNCTION refuse_evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.track_number = 'EVIL' THEN
            RAISE EXCEPTION 'evil' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END $$;";
const AT_ONCE: &str = "CREATE TRIGGER refuse_evil BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION refuse_evil()";
const AT_COMMIT: &str = "CREATE CONSTRAINT TRIGGER refuse_evil AFTER INSERT OR UPDATE ON orders
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_evil()";

/// Sends `count` orders, of which the database will reject those that `is_evil` selects. Returns the good and the evil
/// ones.
fn send(
    scene: &mut Scene,
    count: usize,
    is_evil: impl Fn(usize) -> bool,
) -> (Vec<Order>, Vec<Order>) {
    let (mut good, mut evil) = (Vec::new(), Vec::new());
    for number in 0..count {
        let mut order = scene.later(&format!("order-{number}"));
        if is_evil(number) {
            order.track_number = "EVIL".into();
            evil.push(order.clone());
        } else {
            good.push(order.clone());
        }
        scene.send(
            Some(order.order_uid.as_str()),
            Some(&serde_json::to_vec(&order).unwrap()),
        );
    }
    scene.flush();
    (good, evil)
}

fn drain(scene: &Scene, records: usize, more: &[(&str, &str)]) -> Daemon {
    let mut variables = vec![("DEAD_LETTER_MAX_CONSECUTIVE", "1000000")];
    variables.extend(more);
    let daemon = scene.start_daemon_with(&variables);
    scene.wait_until_settled(i64::try_from(records).unwrap());
    daemon
}

/// Asserts that every good order is stored once and whole, and that every other one is one dead letter with its original
/// bytes.
fn assert_split(scene: &Scene, good: &[Order], evil: &[Order]) {
    let stored = scene
        .database
        .texts("SELECT order_uid AS value FROM orders ORDER BY order_uid COLLATE \"C\"");
    let mut expected: Vec<String> = good
        .iter()
        .map(|order| order.order_uid.to_string())
        .collect();
    expected.sort();
    assert_eq!(stored, expected);
    let items: usize = good.iter().map(|order| order.items.len()).sum();
    let stored_items = scene
        .database
        .integer("SELECT count(*) AS value FROM order_items");
    assert_eq!(stored_items, i64::try_from(items).unwrap());
    let mut payloads: Vec<String> = evil
        .iter()
        .map(|order| serde_json::to_string(order).unwrap())
        .collect();
    payloads.sort();
    let mut letters = scene.database.texts(
        "SELECT convert_from(payload, 'UTF8') AS value FROM dead_letters WHERE reason = 'refused_by_database'",
    );
    letters.sort();
    assert_eq!(letters, payloads);
}

#[test]
fn one_rejected_order_in_each_batch_leaves_the_rest_of_the_batch_stored() {
    let mut scene = Scene::new(1);
    scene.database.execute(CHECK);
    scene.audit_writes();
    let (good, evil) = send(&mut scene, 3_000, |number| number % 500 == 250);
    let daemon = drain(&scene, 3_000, &[("BATCH_MAX_RECORDS", "500")]);
    assert_split(&scene, &good, &evil);
    let audited = scene
        .database
        .integer("SELECT count(*) AS value FROM audit");
    assert_eq!(
        audited,
        i64::try_from(good.len()).unwrap(),
        "an order was written twice"
    );
    assert!((daemon.metric("orders_ingestor_dead_letters_total") - 6.0).abs() < f64::EPSILON);
    let details = scene
        .database
        .texts("SELECT DISTINCT detail AS value FROM dead_letters");
    assert_eq!(
        details,
        ["constraint orders_no_evil of table orders rejects it"]
    );
}

#[test]
fn any_share_of_rejected_orders_is_separated_from_the_good_ones() {
    for one_in in [100, 2, 1] {
        let mut scene = Scene::new(1);
        scene.database.execute(CHECK);
        let (good, evil) = send(&mut scene, 400, |number| number % one_in == 0);
        drain(&scene, 400, &[]);
        assert_split(&scene, &good, &evil);
    }
}

#[test]
fn a_rejected_order_that_the_server_does_not_name_is_found_by_bisection() {
    for trigger in [AT_ONCE, AT_COMMIT] {
        let mut scene = Scene::new(1);
        scene.database.execute(SILENT_TRIGGER);
        scene.database.execute(trigger);
        let (good, evil) = send(&mut scene, 300, |number| [0, 141, 299].contains(&number));
        drain(&scene, 300, &[]);
        assert_split(&scene, &good, &evil);
    }
}

#[test]
fn an_order_can_be_rejected_because_of_its_items() {
    let mut scene = Scene::new(1);
    scene
        .database
        .execute(r#"ALTER TABLE orders ADD CONSTRAINT no_brand CHECK (NOT items @? '$[*] ? (@.brand == "EVIL")')"#);
    let mut orders: Vec<Order> = (0..50)
        .map(|number| scene.later(&format!("order-{number}")))
        .collect();
    orders[20].items[0].brand = "EVIL".into();
    scene.produce(&orders);
    drain(&scene, 50, &[]);
    let evil = orders.remove(20);
    assert_split(&scene, &orders, &[evil]);
}

#[test]
fn a_good_message_that_was_folded_into_a_rejected_one_is_stored() {
    let mut scene = Scene::new(1);
    scene.database.execute(CHECK);
    let good = scene.later("folded");
    let mut evil = scene.later("folded");
    evil.track_number = "EVIL".into();
    let other = scene.later("other");
    scene.produce(&[good.clone(), other.clone(), evil.clone()]);
    drain(&scene, 3, &[]);
    assert_split(&scene, &[good.clone(), other], &[evil]);
    let amount = scene
        .database
        .integer("SELECT payment_amount AS value FROM orders WHERE order_uid = 'folded'");
    assert_eq!(amount, good.payment.amount);
}

#[test]
fn a_constraint_that_no_single_order_violates_is_a_sick_database() {
    let mut scene = Scene::new(1);
    scene
        .database
        .execute("ALTER TABLE consumer_offsets ADD CONSTRAINT sick CHECK (next_offset < 5)");
    let orders = scene.produce_orders(10);
    let daemon = scene.start_daemon();
    daemon.wait_until_logged("retrying");
    assert_eq!((scene.stored(), scene.dead_letters()), (0, 0));
    scene
        .database
        .execute("ALTER TABLE consumer_offsets DROP CONSTRAINT sick");
    scene.wait_until_settled(10);
    assert_split(&scene, &orders, &[]);
}

/// Sends messages that become dead letters.
fn send_bad(scene: &mut Scene, count: usize) {
    for _ in 0..count {
        let (message, _) = InvalidKind::ALL[0].of(&scene.later("unused"));
        scene.send(Some("bad"), Some(&message));
    }
    scene.flush();
}

#[test]
fn the_breaker_halts_a_partition_above_its_bound_but_not_at_it() {
    let mut scene = Scene::new(1);
    send_bad(&mut scene, 20);
    scene.produce_orders(1);
    send_bad(&mut scene, 19);
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "20")]);
    scene.wait_until_settled(40);
    assert_eq!(halted(&scene), 0);
    send_bad(&mut scene, 1);
    scene.wait_until_settled(41);
    assert_eq!(halted(&scene), 0, "20 in a row are allowed");
    // The count continues after a restart.
    assert!(daemon.stop().success());
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "20")]);
    send_bad(&mut scene, 1);
    wait_until("the partition is halted", PATIENCE, || halted(&scene) == 1);
    assert_eq!(scene.dead_letters(), 41);
    daemon.wait_until_logged("ingestor offsets resume --partition 0");
    wait_until("the process is degraded", PATIENCE, || {
        daemon
            .get("/readyz")
            .is_some_and(|(status, body)| status == 200 && body.contains("degraded"))
    });
    assert!(daemon.metric("orders_ingestor_fences_total").abs() < f64::EPSILON);
    scene.produce_orders(5);
    // The partition stays halted after a restart, too.
    assert!(daemon.stop().success());
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "20")]);
    daemon.wait_until_logged("halted");
    assert_eq!((scene.settled(), scene.stored()), (42, 1));
}

#[test]
fn a_bound_that_is_lowered_below_the_count_halts_at_the_next_bad_message_and_at_no_good_one() {
    let mut scene = Scene::new(1);
    send_bad(&mut scene, 15);
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "20")]);
    scene.wait_until_settled(15);
    assert!(daemon.stop().success());

    let lowered = [("DEAD_LETTER_MAX_CONSECUTIVE", "10")];
    let daemon = scene.start_daemon_with(&lowered);
    scene.produce_orders(1);
    scene.wait_until_settled(16);
    assert_eq!((halted(&scene), scene.stored()), (0, 1));
    send_bad(&mut scene, 10);
    scene.wait_until_settled(26);
    assert_eq!(halted(&scene), 0, "the good order has ended the run");
    assert!(daemon.stop().success());

    let lowered = [("DEAD_LETTER_MAX_CONSECUTIVE", "5")];
    let _daemon = scene.start_daemon_with(&lowered);
    send_bad(&mut scene, 1);
    wait_until("the partition is halted", PATIENCE, || halted(&scene) == 1);
}

fn halted(scene: &Scene) -> i64 {
    scene
        .database
        .integer("SELECT count(*) AS value FROM consumer_offsets WHERE halted")
}
