//! The migrations, down and up, and what the schema promises.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_migrations::MigrationHarness;
use serde_json::{Value, json};
use servers::postgres::{Options, PrivatePostgres};
use shared::config::{DatabaseSettings, Secret};
use shared::db::models::NewOrder;
use shared::db::schema::orders;
use shared::db::{self, MIGRATIONS};
use shared::order::Order;
use shared::testing::{TestDatabase, model_json, settings_of, wait_until};

/// Everything that migrations make: columns, constraints, indexes, functions, views, comments.
fn schema_of(database: &TestDatabase) -> Vec<String> {
    database.texts(
        "SELECT concat_ws(' ', 'column', table_name, ordinal_position, column_name, data_type, is_nullable, column_default) AS value
           FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '__diesel_schema_migrations'
         UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
           FROM pg_constraint WHERE connamespace = 'public'::regnamespace
         UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
         UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
         UNION ALL SELECT definition FROM pg_views WHERE schemaname = 'public'
         UNION ALL SELECT sequencename::text FROM pg_sequences WHERE schemaname = 'public'
         UNION ALL SELECT concat_ws(' ', 'comment', objoid::regclass, objsubid, description)
           FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid >= 16384
         ORDER BY 1",
    )
}

#[test]
fn migrations_go_up_down_and_up_again() {
    let database = TestDatabase::create_empty();
    let mut connection = database.connect();
    let all = db::pending_migrations(&mut connection).unwrap();
    assert_eq!(
        db::migrate(&mut connection, || false).unwrap().len(),
        all.len()
    );
    assert!(db::pending_migrations(&mut connection).unwrap().is_empty());
    let first = schema_of(&database);
    assert!(first.len() > 100, "{first:?}");

    connection.revert_all_migrations(MIGRATIONS).unwrap();
    let left = schema_of(&database);
    assert!(
        left.iter()
            .all(|line| line.contains("__diesel_schema_migrations")),
        "left behind: {left:?}"
    );

    db::migrate(&mut connection, || false).unwrap();
    assert_eq!(schema_of(&database), first);
}

#[test]
fn two_processes_may_migrate_at_once() {
    let database = TestDatabase::create_empty();
    let applied: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    db::migrate(&mut database.connect(), || false)
                        .unwrap()
                        .len()
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(
        applied,
        MigrationSource::<Pg>::migrations(&MIGRATIONS)
            .unwrap()
            .len()
    );
}

#[test]
fn a_wait_for_another_process_that_migrates_can_be_ended() {
    let database = TestDatabase::create_empty();
    let mut other = database.connect();
    other
        .batch_execute("SELECT pg_advisory_lock(122537101324915)")
        .unwrap();
    let stopped = db::migrate(&mut database.connect(), || true).unwrap_err();
    assert_eq!(
        stopped.to_string(),
        "stopped while another process migrated the database"
    );
}

#[test]
fn a_migration_that_waits_for_a_table_lets_others_pass_and_is_tried_again() {
    let database = TestDatabase::create_empty();
    let mut connection = database.connect();
    let all = db::pending_migrations(&mut connection).unwrap();
    connection.run_next_migration(MIGRATIONS).unwrap();
    let mut holder = database.connect();
    holder
        .batch_execute("BEGIN; LOCK TABLE __diesel_schema_migrations")
        .unwrap();
    std::thread::scope(|scope| {
        let migrating = scope.spawn(|| db::migrate(&mut database.connect(), || false));
        let waits = "SELECT count(*) AS value FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                     WHERE datname = current_database() AND NOT granted";
        let wait_for = |what, number| {
            wait_until(what, Duration::from_secs(20), || {
                database.integer(waits) == number
            });
        };
        wait_for("it waits", 1);
        wait_for("it gives way", 0);
        wait_for("it waits again", 1);
        holder.batch_execute("COMMIT").unwrap();
        assert_eq!(migrating.join().unwrap().unwrap().len(), all.len() - 1);
    });
}

#[test]
fn pending_migrations_are_found_with_no_right_but_to_read() {
    let server = PrivatePostgres::start(&Options::default()).unwrap();
    let owner = settings_of(&server);
    server
        .psql_as_superuser(
            "CREATE ROLE reader LOGIN PASSWORD 'reader'; REVOKE ALL ON SCHEMA public FROM PUBLIC",
        )
        .unwrap();
    let reader = DatabaseSettings {
        user: "reader".to_owned(),
        password: Secret::new("reader"),
        ..owner.clone()
    };
    let pending = || {
        let mut connection = db::connect_blocking(&reader, "orders-test").unwrap();
        db::pending_migrations(&mut connection).unwrap()
    };
    let all = MigrationSource::<Pg>::migrations(&MIGRATIONS).unwrap();
    assert_eq!(pending().len(), all.len());
    db::migrate(
        &mut db::connect_blocking(&owner, "orders-test").unwrap(),
        || false,
    )
    .unwrap();
    server
        .psql_as_superuser("GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        .unwrap();
    assert!(pending().is_empty());
}

#[test]
fn schema_matches_the_database() {
    let database = TestDatabase::create();
    let of_database: Vec<String> = database.texts(
        "SELECT concat_ws(' ', table_name, column_name, CASE WHEN is_nullable = 'YES' THEN 'Nullable<' END || kind
                || CASE WHEN is_nullable = 'YES' THEN '>' ELSE '' END, CASE WHEN is_nullable = 'NO' THEN kind END) AS value
           FROM (SELECT *, CASE data_type WHEN 'text' THEN 'Text' WHEN 'bigint' THEN 'Int8' WHEN 'integer' THEN 'Int4'
                        WHEN 'timestamp with time zone' THEN 'Timestamptz' WHEN 'uuid' THEN 'Uuid' WHEN 'boolean' THEN 'Bool'
                        WHEN 'bytea' THEN 'Bytea' WHEN 'jsonb' THEN 'Jsonb'
                        ELSE CASE udt_name WHEN '_int8' THEN 'Array<Int8>' ELSE data_type::text END END AS kind
                   FROM information_schema.columns) AS columns
           JOIN information_schema.tables USING (table_schema, table_name)
          WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name <> '__diesel_schema_migrations'
          ORDER BY table_name::text COLLATE \"C\", ordinal_position",
    );
    let mut tables: Vec<Vec<String>> = Vec::new();
    for line in include_str!("../../src/db/schema.rs")
        .lines()
        .map(str::trim)
    {
        if line.ends_with(") {") {
            tables.push(vec![line.split(' ').next().unwrap().to_owned()]);
        } else if let (Some((column, kind)), Some(table)) =
            (line.split_once(" -> "), tables.last_mut())
        {
            let row = format!("{} {column} {}", table[0], kind.trim_end_matches(','));
            table.push(row);
        }
    }
    tables.sort();
    let of_code: Vec<String> = tables
        .into_iter()
        .flat_map(|table| table.into_iter().skip(1))
        .collect();
    assert_eq!(of_code, of_database);
}

/// Whether the only order can be changed like this; it stays as it was.
#[track_caller]
fn accepts(connection: &mut PgConnection, change: &str) -> bool {
    let update = ["UPDATE orders SET ", change].concat();
    let outcome = connection.transaction(|connection| {
        connection.batch_execute(&update)?;
        Err::<(), _>(Error::RollbackTransaction)
    });
    match outcome {
        Err(Error::RollbackTransaction) => true,
        Err(Error::DatabaseError(DatabaseErrorKind::CheckViolation, _)) => false,
        other => panic!("{change}: {other:?}"),
    }
}

/// A database with the model order, and one session of ours and one of a foreign writer.
fn model_order() -> (TestDatabase, Order, [PgConnection; 2]) {
    let database = TestDatabase::create();
    let order = Order::decode(model_json().as_bytes()).unwrap();
    let mut ours = database.connect();
    diesel::insert_into(orders::table)
        .values(NewOrder::new(&order, None))
        .execute(&mut ours)
        .unwrap();
    let foreign = database.connect_foreign();
    (database, order, [ours, foreign])
}

fn columns(database: &TestDatabase, condition: &str) -> Vec<String> {
    let query = [
        "SELECT column_name::text AS value FROM information_schema.columns WHERE table_name = 'orders' AND ",
        condition,
        " ORDER BY 1",
    ];
    database.texts(&query.concat())
}

#[test]
fn texts_and_integers_are_held_to_the_bounds_of_lenient_rules() {
    let (database, _, connections) = model_order();
    let texts = columns(&database, "data_type = 'text'");
    let integers = columns(
        &database,
        "data_type = 'bigint' AND column_name NOT IN ('version', 'source_offset')",
    );
    assert_eq!((texts.len(), integers.len()), (21, 6));
    for mut connection in connections {
        for column in &texts {
            let (least, most) = match column.as_str() {
                "order_uid" => (1, 64),
                "track_number"
                | "customer_id"
                | "payment_transaction"
                | "payment_currency"
                | "payment_provider" => (1, 256),
                "delivery_address" => (0, 512),
                _ => (0, 256),
            };
            let mut accepts = |length: usize| {
                let change = format!("{column} = repeat('𝄞', {length})");
                accepts(&mut connection, &change)
            };
            assert!(accepts(least) && accepts(most), "{column}");
            assert!(!accepts(most + 1) && accepts(0) == (least == 0), "{column}");
        }
        for column in &integers {
            let most: i64 = match column.as_str() {
                "payment_dt" => 4_102_444_800,
                _ => 9_007_199_254_740_991,
            };
            let mut accepts = |value: i64| accepts(&mut connection, &format!("{column} = {value}"));
            assert!(accepts(0) && accepts(most), "{column}");
            assert!(!accepts(-1) && !accepts(most + 1), "{column}");
        }
    }
}

#[test]
fn an_order_is_dated_from_the_year_1_to_9999_in_utc() {
    let (_database, _, connections) = model_order();
    for mut connection in connections {
        // The session's time zone does not matter.
        connection
            .batch_execute("SET timezone = 'Pacific/Kiritimati'")
            .unwrap();
        for (time, is_accepted) in [
            ("0001-01-01T00:00:00Z", true),
            ("0001-12-31 23:59:59.999999Z BC", false),
            ("0001-01-01T00:00:00+00:01", false),
            ("9999-12-31T23:59:59.999999Z", true),
            ("10000-01-01T00:00:00+14:00", true),
            ("9999-12-31T23:59:59-00:01", false),
            ("10000-01-01T00:00:00Z", false),
            ("infinity", false),
            ("-infinity", false),
        ] {
            let change = format!("date_created = '{time}'");
            assert_eq!(accepts(&mut connection, &change), is_accepted, "{time}");
        }
    }
}

#[test]
fn items_are_an_array_of_one_to_a_thousand() {
    let (_database, _, connections) = model_order();
    let repeated = |count: usize| {
        format!(
            "(SELECT jsonb_agg(items -> (number - number)) FROM generate_series(1, {count}) AS number)"
        )
    };
    for mut connection in connections {
        for (items, is_accepted) in [
            (repeated(1), true),
            (repeated(1_000), true),
            (repeated(1_001), false),
            ("items -> 0".to_owned(), false),
            ("'[]'".to_owned(), false),
            ("'{}'".to_owned(), false),
            ("'null'".to_owned(), false),
            ("'7'".to_owned(), false),
            ("'\"text\"'".to_owned(), false),
            ("'true'".to_owned(), false),
        ] {
            let change = ["items = ", &items].concat();
            assert_eq!(accepts(&mut connection, &change), is_accepted, "{items}");
        }
        let null = connection.batch_execute("UPDATE orders SET items = NULL");
        assert!(matches!(
            null,
            Err(Error::DatabaseError(DatabaseErrorKind::NotNullViolation, _))
        ));
    }
}

#[test]
fn what_is_searched_and_locked_by_sorts_as_in_rust() {
    let database = TestDatabase::create();
    assert_eq!(
        columns(&database, "collation_name = 'C'"),
        ["customer_id", "order_uid", "track_number"]
    );
}

#[test]
fn every_entity_has_a_view() {
    let (database, mut order, [mut ours, _]) = model_order();
    order.order_uid = "two-items".parse().unwrap();
    let mut second = order.items[0].clone();
    (second.chrt_id, second.name) = (0, "second".into());
    order.items.push(second);
    diesel::insert_into(orders::table)
        .values(NewOrder::new(&order, None))
        .execute(&mut ours)
        .unwrap();
    let rows = |view: &str| -> Vec<Value> {
        let query = [
            "SELECT (to_jsonb(entity) - 'order_uid')::text AS value FROM ",
            view,
            " AS entity WHERE order_uid = 'two-items'",
        ];
        let rows = database.texts(&query.concat());
        let parse = |row: &String| serde_json::from_str(row).unwrap();
        rows.iter().map(parse).collect()
    };
    assert_eq!(rows("deliveries"), [json!(order.delivery)]);
    assert_eq!(rows("payments"), [json!(order.payment)]);
    let mut items: Vec<Value> = order.items.iter().map(|item| json!(item)).collect();
    (items[0]["position"], items[1]["position"]) = (json!(0), json!(1));
    assert_eq!(rows("order_items"), items);
    assert_eq!(
        database.integer("SELECT count(*) AS value FROM order_items"),
        3
    );
    for statement in [
        "UPDATE order_items SET price = 7",
        "DELETE FROM order_items",
    ] {
        assert!(ours.batch_execute(statement).is_err(), "{statement}");
    }
}

#[test]
fn a_database_of_before_the_first_release_is_refused_and_left_as_it_is() {
    let database = TestDatabase::create_empty();
    database.execute(
        "CREATE TABLE orders (order_uid text PRIMARY KEY);
         CREATE TABLE order_items (order_uid text REFERENCES orders);",
    );
    let relations = || {
        database.texts("SELECT relname::text AS value FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")
    };
    let before = (relations(), schema_of(&database));
    // The first session stays open. It holds no lock that the second one needs.
    let mut connections = [database.connect(), database.connect()];
    for connection in &mut connections {
        let refusals = [
            db::migrate(connection, || false).unwrap_err(),
            db::pending_migrations(connection).unwrap_err(),
        ];
        for refusal in refusals {
            let message = format!("{refusal:#}");
            for part in [
                "before the first release",
                "create an empty database",
                "DB_NAME",
            ] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
    assert_eq!((relations(), schema_of(&database)), before);
}

#[test]
fn versions_rise_and_every_table_and_view_is_described() {
    let database = TestDatabase::create();
    assert_eq!(database.integer("SELECT seqcache AS value FROM pg_sequence WHERE seqrelid = 'order_version_seq'::regclass"), 1);
    let silent = database.texts(
        "SELECT relname::text AS value FROM pg_class
          WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND relname <> '__diesel_schema_migrations'
            AND obj_description(oid) IS NULL",
    );
    assert!(silent.is_empty(), "without a COMMENT: {silent:?}");
}
