//! What others change than our own writers, the database checks and announces itself, with a new version.

use std::collections::{BTreeMap, BTreeSet};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_migrations::MigrationHarness;
use shared::db::models::{NewOrder, OrderRow, VersionedOrder};
use shared::db::schema::orders;
use shared::db::{self, MIGRATIONS};
use shared::events::{MAX_PAYLOAD_BYTES, Operation};
use shared::order::Order;
use shared::testing::{Notifications, OrderGenerator, TestDatabase};

/// Orders `a`, `b` and `c` with two items each; ours, so that nothing is announced.
const THREE_ORDERS: &str = r#"
    INSERT INTO orders (order_uid, track_number, entry, delivery_name, delivery_phone, delivery_zip, delivery_city,
            delivery_address, delivery_region, delivery_email, payment_transaction, payment_request_id, payment_currency,
            payment_provider, payment_amount, payment_dt, payment_bank, payment_delivery_cost, payment_goods_total,
            payment_custom_fee, items, locale, internal_signature, customer_id, delivery_service, shardkey, sm_id,
            date_created, oof_shard)
        SELECT uid, 't', '', 'n', '12345', '', 'c', 'a', 'r', 'e@e.example', 'x', '', 'USD', 'p', 1, 0, '', 0, 0, 0,
               jsonb_build_array(item, item), '', '', 'c', '', '', 0, '2026-01-01Z', ''
          FROM unnest('{a,b,c}'::text[]) AS uid,
               (VALUES ('{"chrt_id": 1, "track_number": "", "price": 1, "rid": "", "name": "n", "sale": 0, "size": "",
                          "total_price": 1, "nm_id": 0, "brand": "b", "status": 0}'::jsonb)) AS items (item)"#;

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
        ("UPDATE orders SET items[0]['price'] = '5' WHERE order_uid <= 'b'", ab()),
        ("UPDATE orders SET items = items - 1 WHERE order_uid <= 'b'", ab()),
        ("UPDATE orders SET items = items || items WHERE order_uid <= 'b'", ab()),
        // Through the view, which a person may use to look for deliveries.
        ("UPDATE deliveries SET city = 'Berlin' WHERE order_uid <= 'b'", ab()),
        ("DELETE FROM orders WHERE order_uid = 'a'", (vec![r#"{"v":1,"op":"delete","uids":["a"]}"#.to_owned()], vec!["a"])),
        // A row that is copied and brought back has the same version, but its content may differ.
        ("CREATE TEMPORARY TABLE kept AS SELECT * FROM orders WHERE order_uid = 'a'; DELETE FROM orders WHERE order_uid = 'a';
          INSERT INTO orders SELECT * FROM kept", (vec![r#"{"v":1,"op":"delete","uids":["a"]}"#.to_owned(), upsert(&["a"])], vec!["a"])),
        ("UPDATE orders SET order_uid = 'd' WHERE order_uid = 'a'", (vec![upsert(&["a", "d"])], vec!["a", "d"])),
        ("INSERT INTO orders SELECT * FROM orders ON CONFLICT (order_uid) DO UPDATE SET locale = 'de' WHERE orders.order_uid <= 'b'", ab()),
        ("TRUNCATE orders", (vec![flush], vec!["a", "b", "c"])),
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
fn our_own_sessions_are_left_alone_but_for_truncate() {
    let database = three_orders();
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    database.execute(
        "UPDATE orders SET locale = 'de', items[0]['price'] = '5'; DELETE FROM orders WHERE order_uid = 'c'",
    );
    assert_eq!(notifications.payloads(), [""; 0]);
    assert!(
        versions(&database)
            .iter()
            .all(|(uid, version)| before.get(uid) == Some(version))
    );
    // Our programs never truncate.
    database.execute("TRUNCATE orders");
    assert_eq!(notifications.events()[0].operation, Operation::Flush);
}

#[test]
fn a_migration_counts_as_foreign_and_the_session_is_ours_again_after_it() {
    let database = TestDatabase::create_empty();
    let mut connection = database.connect();
    // This also makes the table of migrations.
    assert!(
        !connection
            .pending_migrations(MIGRATIONS)
            .unwrap()
            .is_empty()
    );
    let statements = [
        "CREATE FUNCTION on_migration() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NOT EXISTS (SELECT FROM orders) THEN ",
        THREE_ORDERS,
        "; END IF; RETURN NULL; END $$;
         CREATE TRIGGER on_migration AFTER INSERT ON __diesel_schema_migrations EXECUTE FUNCTION on_migration()",
    ];
    database.execute(&statements.concat());
    let mut notifications = Notifications::listen(&database);
    db::migrate(&mut connection, || false).unwrap();
    assert_eq!(notifications.events()[0].uids, ["a", "b", "c"]);
    connection
        .batch_execute("UPDATE orders SET locale = 'de'")
        .unwrap();
    assert_eq!(notifications.payloads(), [""; 0]);
}

/// The fields of an item, each with the rule that it breaks where it is wrong.
const FIELDS: [(&str, &str); 11] = [
    ("chrt_id", "an integer from 0 to 9007199254740991"),
    ("track_number", "a text of 0 to 256 characters"),
    ("price", "an integer from 0 to 9007199254740991"),
    ("rid", "a text of 0 to 256 characters"),
    ("name", "a text of 1 to 256 characters"),
    ("sale", "an integer from 0 to 100"),
    ("size", "a text of 0 to 256 characters"),
    ("total_price", "an integer from 0 to 9007199254740991"),
    ("nm_id", "an integer from 0 to 9007199254740991"),
    ("brand", "a text of 1 to 256 characters"),
    ("status", "an integer from 0 to 9007199254740991"),
];

/// Right and wrong values of a field under a rule, as JSON.
fn values_under(rule: &str) -> (Vec<String>, Vec<String>) {
    let text_of = |length: usize| format!("\"{}\"", "𝄞".repeat(length));
    let mut wrong = ["null", "true", "{}", "[]"].map(str::to_owned).to_vec();
    let right = if let Some(most) = rule.strip_prefix("an integer from 0 to ") {
        let too_much = (most.parse::<i64>().unwrap() + 1).to_string();
        wrong.extend(["-1", &too_much, "0.5", "1.0", "1e400", "\"1\""].map(str::to_owned));
        ["0", most, "1e2"].map(str::to_owned).to_vec()
    } else {
        let least = usize::from(rule.starts_with("a text of 1 "));
        wrong.extend((0..least).chain([257]).map(text_of));
        wrong.push("1".to_owned());
        [least, 256].map(text_of).to_vec()
    };
    (right, wrong)
}

/// The message by which the items of a foreign writer are refused.
#[track_caller]
fn refusal<T: std::fmt::Debug>(what: &str, outcome: QueryResult<T>) -> String {
    match outcome {
        Err(Error::DatabaseError(DatabaseErrorKind::CheckViolation, information)) => {
            assert_eq!(information.constraint_name(), Some("orders_items_fields"));
            assert_eq!(information.table_name(), Some("orders"));
            assert_eq!(information.column_name(), Some("items"));
            information.message().to_owned()
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// As our programs read.
fn read_all(connection: &mut PgConnection) -> QueryResult<Vec<VersionedOrder>> {
    let rows: Vec<OrderRow> = orders::table
        .select(OrderRow::as_select())
        .load(connection)?;
    let orders = rows.into_iter().map(VersionedOrder::try_from);
    orders
        .collect::<Result<_, _>>()
        .map_err(|error| Error::DeserializationError(Box::new(error)))
}

#[test]
fn every_field_of_a_foreign_writers_items_is_checked() {
    let database = three_orders();
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    let mut connection = database.connect_foreign();
    for (field, rule) in FIELDS {
        let (right, wrong) = values_under(rule);
        for index in 0..2 {
            let update =
                |items: &str| format!("UPDATE orders SET items = {items} WHERE order_uid = 'a'");
            let set = |json: &String| {
                update(&format!(
                    "jsonb_set(items, '{{{index},{field}}}', '{json}')"
                ))
            };
            let remove = update(&format!("items #- '{{{index},{field}}}'"));
            let expected = format!("order a: items[{index}].{field} must be {rule}");
            for statement in wrong.iter().map(set).chain([remove]) {
                let message = refusal(&statement, connection.batch_execute(&statement));
                assert_eq!(message, expected, "{statement}");
            }
            for statement in right.iter().map(set) {
                let undone = connection.transaction(|connection| {
                    connection.batch_execute(&statement)?;
                    read_all(connection)?;
                    Err::<(), _>(Error::RollbackTransaction)
                });
                assert_eq!(undone, Err(Error::RollbackTransaction), "{statement}");
            }
        }
    }
    assert_eq!(versions(&database), before);
    assert_eq!(notifications.payloads(), [""; 0]);
}

#[test]
fn whatever_the_statement_bad_items_of_a_foreign_writer_are_refused() {
    let database = three_orders();
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    let mut connection = database.connect_foreign();
    let b_chrt_id = "order b: items[1].chrt_id must be an integer from 0 to 9007199254740991";
    for (statement, expected) in [
        (
            "UPDATE orders SET items[1] = '7' WHERE order_uid = 'b'",
            b_chrt_id,
        ),
        (
            "UPDATE orders SET items[1] = '[]' WHERE order_uid = 'b'",
            b_chrt_id,
        ),
        // If there are several faults, the first one is named: by order, item and field.
        (
            "UPDATE orders SET items[1]['status'] = '-1', items[1]['chrt_id'] = '-1' WHERE order_uid >= 'b'",
            b_chrt_id,
        ),
        (
            "UPDATE orders SET items[0]['rid'] = CASE order_uid WHEN 'c' THEN '1' ELSE '\"\"' END::jsonb",
            "order c: items[0].rid must be a text of 0 to 256 characters",
        ),
        (
            "INSERT INTO orders SELECT (jsonb_populate_record(orders, '{\"order_uid\": \"d\", \"items\": [{}]}')).* FROM orders WHERE order_uid = 'a'",
            "order d: items[0].chrt_id must be an integer from 0 to 9007199254740991",
        ),
        (
            "INSERT INTO orders SELECT * FROM orders WHERE order_uid = 'b' ON CONFLICT (order_uid) DO UPDATE SET items[1] = '7'",
            b_chrt_id,
        ),
    ] {
        assert_eq!(
            refusal(statement, connection.batch_execute(statement)),
            expected
        );
    }
    let mut generator = OrderGenerator::new(1, "2026-01-01T00:00:00Z".parse().unwrap());
    let mut copied = [generator.order_with_uid("x"), generator.order_with_uid("y")];
    copied[1].items[0].price = -1;
    let outcome = copy(&mut connection, &copied);
    assert_eq!(
        refusal("COPY", outcome),
        "order y: items[0].price must be an integer from 0 to 9007199254740991"
    );
    assert_eq!(versions(&database), before);
    assert_eq!(notifications.payloads(), [""; 0]);

    copied[1].items[0].price = 1;
    assert_eq!(copy(&mut connection, &copied), Ok(2));
    assert_eq!(notifications.events()[0].uids, ["x", "y"]);
}

fn copy(connection: &mut PgConnection, orders: &[Order]) -> QueryResult<usize> {
    let rows: Vec<_> = orders
        .iter()
        .map(|order| NewOrder::new(order, None))
        .collect();
    diesel::copy_from(orders::table)
        .from_insertable(&rows)
        .execute(connection)
}

#[test]
fn items_may_have_more_keys_and_our_own_sessions_are_not_checked() {
    let database = three_orders();
    let mut foreign = database.connect_foreign();
    foreign
        .batch_execute("UPDATE orders SET items[0]['note'] = '{\"x\": null}' WHERE order_uid = 'a'")
        .unwrap();
    assert_eq!(read_all(&mut foreign).unwrap().len(), 3);
    database.execute("UPDATE orders SET items = '[7]' WHERE order_uid = 'b'");
    // Anybody may look for rows that our programs would not have stored.
    let executable = "SELECT has_function_privilege('public', 'order_items_fault(jsonb)', 'EXECUTE')::int::bigint AS value";
    assert_eq!(database.integer(executable), 1);
    let faults = "SELECT concat_ws(' ', order_uid, order_items_fault(items)) AS value FROM orders ORDER BY order_uid";
    assert_eq!(
        database.texts(faults),
        [
            "a",
            "b items[0].chrt_id must be an integer from 0 to 9007199254740991",
            "c"
        ]
    );
}

#[test]
fn many_orders_are_announced_in_payloads_within_the_bound_and_very_many_by_one() {
    let database = three_orders();
    let mut notifications = Notifications::listen(&database);
    // The uid of a foreign writer may have any characters. JSON doubles quotes and backslashes, and a control character
    // takes six bytes.
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
    let executable = "SELECT count(*) AS value FROM information_schema.routine_privileges
        WHERE routine_name = 'emit_foreign_writes' AND grantee = 'PUBLIC'";
    assert_eq!(database.integer(executable), 0);
    // The role of the tests cannot create roles. A schema with the same names, first in the search path, plays the
    // hostile role.
    let functions = [
        "nextval(text)",
        "nextval(regclass)",
        "order_items_fault(jsonb)",
        "jsonb_typeof(jsonb)",
        "to_json(text)",
        "pg_notify(text, text)",
    ];
    let function = |signature| {
        format!(
            "; CREATE FUNCTION {signature} RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'led astray'; END $$"
        )
    };
    let hostile = "CREATE SCHEMA hostile; SET search_path = hostile;
         CREATE TABLE orders (order_uid text, version bigint, updated_at timestamptz);
         CREATE SEQUENCE order_version_seq;
         CREATE FUNCTION joined(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'led astray'; END $$;
         CREATE OPERATOR || (LEFTARG = text, RIGHTARG = text, FUNCTION = joined)";
    database.execute(&[hostile, &functions.map(function).concat()].concat());
    let (before, mut notifications) = (versions(&database), Notifications::listen(&database));
    let mut connection = database.connect_foreign();
    connection
        .batch_execute(
            "SET search_path = hostile, pg_catalog, public;
             CREATE TEMPORARY TABLE orders (order_uid text); CREATE TEMPORARY TABLE changed (order_uid text, items jsonb)",
        )
        .unwrap();
    for function in [
        "nextval('public.order_version_seq'::text)",
        "order_items_fault('[]')",
        "'a'::text || 'b'::text",
    ] {
        let select = ["SELECT ", function].concat();
        let astray = connection.batch_execute(&select).unwrap_err();
        assert!(
            astray.to_string().contains("led astray"),
            "{function}: {astray}"
        );
    }
    connection
        .batch_execute("UPDATE public.orders SET items[0]['price'] = '5' WHERE order_uid = 'a'")
        .unwrap();
    assert_eq!(notifications.events()[0].uids, ["a"]);
    assert_ne!(versions(&database)["a"], before["a"]);
    let bad = "UPDATE public.orders SET items[0]['price'] = '-1' WHERE order_uid = 'a'";
    let message = refusal(bad, connection.batch_execute(bad));
    assert!(message.starts_with("order a: items[0].price"), "{message}");
    let fault = "SELECT 1 WHERE public.order_items_fault('[{}]') LIKE 'items[0].chrt_id must %'";
    assert_eq!(
        diesel::sql_query(fault).execute(&mut connection).unwrap(),
        1
    );
    // The function's own search path and setting end with it.
    let kept = "SELECT 1 WHERE current_setting('search_path') = 'hostile, pg_catalog, public'
        AND current_setting('orders.emits', true) IS DISTINCT FROM 'on'";
    assert_eq!(diesel::sql_query(kept).execute(&mut connection).unwrap(), 1);
}
