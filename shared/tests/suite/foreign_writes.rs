//! What others change than our own writers, the database announces itself, with a new version.

use std::collections::{BTreeMap, BTreeSet};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use shared::events::{MAX_PAYLOAD_BYTES, Operation};
use shared::testing::{Notifications, TestDatabase};

/// Orders `a`, `b` and `c` with two items each; ours, so that nothing is announced.
const THREE_ORDERS: &str = "
    INSERT INTO orders (order_uid, track_number, entry, delivery_name, delivery_phone, delivery_zip, delivery_city,
            delivery_address, delivery_region, delivery_email, payment_transaction, payment_request_id, payment_currency,
            payment_provider, payment_amount, payment_dt, payment_bank, payment_delivery_cost, payment_goods_total,
            payment_custom_fee, locale, internal_signature, customer_id, delivery_service, shardkey, sm_id, date_created,
            oof_shard)
        SELECT uid, 't', '', 'n', '12345', '', 'c', 'a', 'r', 'e@e.example', 'x', '', 'USD', 'p', 1, 0, '', 0, 0, 0, '', '',
               'c', '', '', 0, '2026-01-01Z', '' FROM unnest('{a,b,c}'::text[]) AS uid;
    INSERT INTO order_items SELECT order_uid, position, 1, '', 1, '', 'n', 0, '', 1, 0, 'b', 0
        FROM orders, generate_series(0, 1) AS position";

/// More orders, like `a`; `{}` stands for the uids.
fn more_orders(database: &TestDatabase, uids: &str) {
    let statements = [
        "CREATE TABLE more AS SELECT * FROM orders WHERE order_uid = 'a';
         ALTER TABLE more DROP COLUMN order_uid, DROP COLUMN version;
         CREATE TABLE columns AS SELECT string_agg(attname, ',') AS names FROM pg_attribute
             WHERE attrelid = 'more'::regclass AND attnum > 0 AND NOT attisdropped;
         DO $$ BEGIN EXECUTE (SELECT 'INSERT INTO orders (order_uid,' || names || ') SELECT uid,' || names || ' FROM more, (",
        uids,
        ") AS uids (uid)' FROM columns); END $$",
    ];
    database.execute(&statements.concat());
}

fn three_orders() -> TestDatabase {
    let database = TestDatabase::create();
    database.execute(THREE_ORDERS);
    database
}

fn versions(database: &TestDatabase) -> BTreeMap<String, String> {
    let rows = database.texts("SELECT order_uid || ' ' || version AS value FROM orders");
    rows.iter()
        .map(|row| row.split_once(' ').unwrap())
        .map(|(uid, version)| (uid.to_owned(), version.to_owned()))
        .collect()
}

#[test]
fn each_statement_of_a_foreign_writer_is_announced_once_and_draws_versions() {
    let upsert = |uids: &[&str]| {
        format!(
            r#"{{"v":1,"op":"upsert","uids":["{}"]}}"#,
            uids.join(r#"",""#)
        )
    };
    let flush = r#"{"v":1,"op":"flush","uids":[]}"#.to_owned();
    let ab = || (vec![upsert(&["a", "b"])], vec!["a", "b"]);
    for (statement, (payloads, changed)) in [
        ("UPDATE orders SET locale = 'de' WHERE order_uid <= 'b'", ab()),
        ("UPDATE orders SET locale = 'de' WHERE order_uid = 'x'", (vec![], vec![])),
        ("UPDATE orders SET version = 1 WHERE order_uid <= 'b'", ab()),
        ("UPDATE order_items SET price = 7 WHERE order_uid <= 'b'", ab()),
        ("UPDATE order_items SET position = 9, order_uid = 'b' WHERE order_uid = 'a' AND position = 0", ab()),
        ("DELETE FROM order_items WHERE order_uid <= 'b'", ab()),
        ("INSERT INTO order_items VALUES ('a', 7, 1, '', 1, '', 'n', 0, '', 1, 0, 'b', 0),
              ('b', 7, 1, '', 1, '', 'n', 0, '', 1, 0, 'b', 0)", ab()),
        // Through the view, as anyone may who looks for deliveries.
        ("UPDATE deliveries SET city = 'Berlin' WHERE order_uid <= 'b'", ab()),
        ("DELETE FROM orders WHERE order_uid = 'a'", (vec![r#"{"v":1,"op":"delete","uids":["a"]}"#.to_owned()], vec!["a"])),
        // What is copied and brought back has the same version; its content may be another.
        ("CREATE TEMPORARY TABLE kept AS SELECT * FROM orders WHERE order_uid = 'a'; DELETE FROM orders WHERE order_uid = 'a';
          INSERT INTO orders SELECT * FROM kept", (vec![r#"{"v":1,"op":"delete","uids":["a"]}"#.to_owned(), upsert(&["a"])], vec!["a"])),
        ("DELETE FROM order_items WHERE order_uid = 'a'; UPDATE orders SET order_uid = 'd' WHERE order_uid = 'a'",
            (vec![upsert(&["a", "d"]), upsert(&["a"])], vec!["a", "d"])),
        ("INSERT INTO orders SELECT * FROM orders ON CONFLICT (order_uid) DO UPDATE SET locale = 'de' WHERE orders.order_uid <= 'b'", ab()),
        ("TRUNCATE order_items", (vec![flush.clone()], vec!["a", "b", "c"])),
        ("TRUNCATE orders CASCADE", (vec![flush], vec!["a", "b", "c"])),
    ] {
        let database = three_orders();
        let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
        let mut connection = database.connect_foreign();
        connection
            .transaction(|connection| connection.batch_execute(statement))
            .unwrap();
        let mut received = notifications.payloads();
        received.sort();
        assert_eq!(received, payloads, "{statement}");
        let after = versions(&database);
        let uids: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differing: Vec<_> = uids
            .into_iter()
            .filter(|uid| before.get(*uid) != after.get(*uid))
            .collect();
        assert_eq!(differing, changed, "{statement}");
        let highest = before.values().map(|version| version.parse::<i64>().unwrap()).max();
        for uid in changed.iter().filter_map(|uid| after.get(*uid)) {
            assert!(uid.parse::<i64>().ok() > highest, "{statement}: an old version");
        }
    }
}

#[test]
fn our_own_sessions_are_left_alone_but_for_truncate_and_migrations() {
    let database = three_orders();
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    database.execute(
        "UPDATE orders SET locale = 'de'; UPDATE order_items SET price = 7;
         DELETE FROM order_items WHERE order_uid = 'b'; DELETE FROM orders WHERE order_uid = 'c'",
    );
    assert_eq!(notifications.payloads(), [""; 0]);
    assert!(
        versions(&database)
            .iter()
            .all(|(uid, version)| before.get(uid) == Some(version))
    );
    // We never truncate.
    database.execute("TRUNCATE order_items");
    assert_eq!(notifications.events()[0].operation, Operation::Flush);

    // A migration does not emit, so it counts as foreign; the session is ours again after it.
    database.execute(
        "CREATE FUNCTION on_migration() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE orders SET locale = 'fr'; RETURN NULL; END $$;
         CREATE TRIGGER on_migration AFTER INSERT ON __diesel_schema_migrations EXECUTE FUNCTION on_migration();
         DELETE FROM __diesel_schema_migrations WHERE version = '20261125000012';
         DROP FUNCTION emit_foreign_writes CASCADE; DROP FUNCTION notify_order_events",
    );
    let mut connection = database.connect();
    shared::db::migrate(&mut connection).unwrap();
    assert_eq!(notifications.events()[0].uids, ["a", "b"]);
    connection
        .batch_execute("UPDATE orders SET locale = 'de'")
        .unwrap();
    assert_eq!(notifications.payloads(), [""; 0]);
}

#[test]
fn many_orders_are_announced_in_payloads_within_the_bound_and_very_many_by_one() {
    let database = three_orders();
    let mut notifications = Notifications::listen(&database);
    // Whoever writes by hand is held to no alphabet: quotes and backslashes double, control characters take six bytes.
    more_orders(
        &database,
        "SELECT rpad(number || right(E''\\u0001\"\\\\\\\\ж'', number % 5), 64, substr(E''\\u0001\"\\\\\\\\жx'', 1 + number % 5, 1)) FROM generate_series(1, 2000) AS number",
    );
    let mut connection = database.connect_foreign();
    connection
        .batch_execute("UPDATE orders SET locale = 'de'")
        .unwrap();
    let payloads = notifications.payloads();
    assert!(
        payloads
            .iter()
            .all(|payload| payload.len() <= MAX_PAYLOAD_BYTES)
    );
    let bytes: usize = payloads.iter().map(String::len).sum();
    assert!(
        payloads.len() <= 1 + bytes / 7_000,
        "{} payloads of {bytes} bytes",
        payloads.len()
    );
    let mut uids: Vec<String> = payloads
        .iter()
        .flat_map(|payload| shared::events::parse(payload).unwrap().uids)
        .collect();
    uids.sort();
    let mut stored = database.texts("SELECT order_uid AS value FROM orders");
    stored.sort();
    assert_eq!(stored.len(), 2003);
    assert!(
        stored.iter().any(|uid| uid.contains('\u{1}'))
            && stored.iter().any(|uid| uid.contains('"'))
    );
    assert!(uids == stored);

    database.execute("DROP TABLE more, columns");
    more_orders(
        &database,
        "SELECT ''many-'' || number FROM generate_series(1, 8000) AS number",
    );
    connection
        .batch_execute("UPDATE orders SET locale = 'en'")
        .unwrap();
    let events = notifications.events();
    assert_eq!((events.len(), events[0].operation), (1, Operation::Flush));
}

#[test]
fn guard_works_for_a_role_with_few_rights_and_cannot_be_led_astray() {
    let database = three_orders();
    let role = database.settings().name;
    let executable = "SELECT count(*) AS value FROM information_schema.routine_privileges
        WHERE routine_name = 'emit_foreign_writes' AND grantee = 'PUBLIC'";
    assert_eq!(database.integer(executable), 0);
    // The tests' role makes no others; a table of the same names in another schema stands for the hostile part.
    database.execute(
        &[
            "CREATE SCHEMA ",
            &role,
            "; CREATE TABLE ",
            &role,
            ".orders (order_uid text, version bigint, updated_at timestamptz)",
        ]
        .concat(),
    );
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    let mut connection = database.connect_foreign();
    let mislead = [
        "SET search_path = ",
        &role,
        ", public; CREATE TEMPORARY TABLE orders (order_uid text)",
    ]
    .concat();
    connection.batch_execute(&mislead).unwrap();
    connection
        .batch_execute("UPDATE order_items SET price = 7 WHERE order_uid = 'a'")
        .unwrap();
    assert_eq!(notifications.events()[0].uids, ["a"]);
    assert_ne!(versions(&database)["a"], before["a"]);
    // Its own path and mark end with the function.
    let path = "SELECT 1 FROM orders WHERE current_setting('orders.emits', true) = 'on'";
    assert_eq!(diesel::sql_query(path).execute(&mut connection).unwrap(), 0);
}
