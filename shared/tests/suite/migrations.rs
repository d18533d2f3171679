//! The migrations, down and up, and what the schema promises.

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_migrations::MigrationHarness;
use shared::db::{self, MIGRATIONS};
use shared::testing::TestDatabase;

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
    assert_eq!(db::migrate(&mut connection).unwrap().len(), all.len());
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

    db::migrate(&mut connection).unwrap();
    assert_eq!(schema_of(&database), first);
}

#[test]
fn two_processes_may_migrate_at_once() {
    let database = TestDatabase::create_empty();
    let applied: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| db::migrate(&mut database.connect()).unwrap().len()))
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
fn schema_matches_the_database() {
    let database = TestDatabase::create();
    let of_database: Vec<String> = database.texts(
        "SELECT concat_ws(' ', table_name, column_name, CASE WHEN is_nullable = 'YES' THEN 'Nullable<' END || kind
                || CASE WHEN is_nullable = 'YES' THEN '>' ELSE '' END, CASE WHEN is_nullable = 'NO' THEN kind END) AS value
           FROM (SELECT *, CASE data_type WHEN 'text' THEN 'Text' WHEN 'bigint' THEN 'Int8' WHEN 'integer' THEN 'Int4'
                        WHEN 'timestamp with time zone' THEN 'Timestamptz' WHEN 'uuid' THEN 'Uuid' WHEN 'boolean' THEN 'Bool'
                        WHEN 'bytea' THEN 'Bytea' WHEN 'jsonb' THEN 'Jsonb' ELSE data_type::text END AS kind
                   FROM information_schema.columns) AS columns
           JOIN information_schema.tables USING (table_schema, table_name)
          WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name <> '__diesel_schema_migrations'
          ORDER BY table_name::text COLLATE \"C\", ordinal_position",
    );
    let mut tables: Vec<Vec<String>> = Vec::new();
    for line in include_str!("../../src/db/schema.rs")
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("diesel::joinable!"))
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

#[test]
fn constraints_refuse_what_validation_would() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let columns = "track_number, entry, delivery_name, delivery_phone, delivery_zip, delivery_city, delivery_address,
        delivery_region, delivery_email, payment_transaction, payment_request_id, payment_currency, payment_provider,
        payment_amount, payment_dt, payment_bank, payment_delivery_cost, payment_goods_total, payment_custom_fee, locale,
        internal_signature, customer_id, delivery_service, shardkey, sm_id, date_created, oof_shard";
    let values = "'t', '', 'n', '12345', '', 'c', 'a', 'r', 'e@e.example', 'x', '', 'USD', 'p', 1, 0, '', 0, 0, 0, '', '', 'c',
        '', '', 0, '2026-01-01Z', ''";
    let insert = [
        "INSERT INTO orders (order_uid, ",
        columns,
        ") VALUES ('a', ",
        values,
        ")",
    ]
    .concat();
    connection.batch_execute(&insert).unwrap();
    for statement in [
        "UPDATE orders SET payment_amount = -1",
        "UPDATE orders SET payment_amount = 9007199254740992",
        "UPDATE orders SET payment_currency = 'US'",
        "UPDATE orders SET delivery_name = ''",
        "UPDATE orders SET delivery_address = repeat('a', 513)",
        "UPDATE orders SET date_created = '2101-01-01Z'",
        "UPDATE orders SET order_uid = repeat('a', 65)",
        "INSERT INTO order_items VALUES ('a', 1000, 1, '', 1, '', 'n', 0, '', 1, 0, 'b', 0)",
        "INSERT INTO order_items VALUES ('a', 0, 1, '', 1, '', 'n', 101, '', 1, 0, 'b', 0)",
    ] {
        let refused = connection
            .transaction(|connection| connection.batch_execute(statement))
            .unwrap_err();
        assert!(
            matches!(
                refused,
                Error::DatabaseError(DatabaseErrorKind::CheckViolation, _)
            ),
            "{statement}: {refused}"
        );
    }
    connection
        .batch_execute(
            "INSERT INTO order_items VALUES ('a', 0, 1, '', 1, '', 'n', 0, '', 1, 0, 'b', 0)",
        )
        .unwrap();
    assert_eq!(
        database.texts("SELECT name || city || address AS value FROM deliveries"),
        ["nca"]
    );
    assert_eq!(
        database.texts("SELECT currency || amount AS value FROM payments"),
        ["USD1"]
    );
    connection.batch_execute("DELETE FROM orders").unwrap();
    assert_eq!(
        database.integer("SELECT count(*) AS value FROM order_items"),
        0
    );
}

#[test]
fn versions_rise_and_every_table_is_described() {
    let database = TestDatabase::create();
    assert_eq!(database.integer("SELECT seqcache AS value FROM pg_sequence WHERE seqrelid = 'order_version_seq'::regclass"), 1);
    let silent = database.texts(
        "SELECT relname::text AS value FROM pg_class
          WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> '__diesel_schema_migrations'
            AND obj_description(oid) IS NULL",
    );
    assert!(silent.is_empty(), "without a COMMENT: {silent:?}");
}
