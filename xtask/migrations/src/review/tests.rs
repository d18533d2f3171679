//! Each rule with wrong and right migrations.

use std::path::Path;

use strum::IntoEnumIterator;

use super::*;
use crate::files::read_all;

/// The root of the workspace.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const NAME: &str = "2026-01-02-000009_create_orders_city_idx";

fn migration(up: &str, runs_in_transaction: bool) -> Migration {
    Migration {
        name: NAME.to_owned(),
        up: up.to_owned(),
        runs_in_transaction,
    }
}

/// Returns the findings as `line: rule on table`.
fn names(migrations: &[Migration]) -> Vec<String> {
    let prefix = format!("migrations/{NAME}/up.sql");
    findings(migrations)
        .iter()
        .map(|finding| {
            let rest = finding.strip_prefix(&prefix).unwrap();
            rest.splitn(4, ": ").take(2).collect::<Vec<_>>()[..]
                .join(": ")
                .trim_start_matches(':')
                .to_owned()
        })
        .collect()
}

/// The migration runs in a transaction and breaks only this rule, in its first line.
#[track_caller]
fn refuses(rule: &str, up: &str) {
    let expected = format!("1: {rule}");
    assert_eq!(names(&[migration(up, true)]), [expected], "{up}");
}

#[track_caller]
fn accepts(up: &str) {
    assert_eq!(names(&[migration(up, true)]), Vec::<String>::new(), "{up}");
}

/// The same for a migration outside of a transaction.
#[track_caller]
fn refuses_outside(rule: &str, up: &str) {
    let expected = format!("1: {rule}");
    assert_eq!(names(&[migration(up, false)]), [expected], "{up}");
}

#[track_caller]
fn accepts_outside(up: &str) {
    assert_eq!(names(&[migration(up, false)]), Vec::<String>::new(), "{up}");
}

#[test]
fn our_own_migrations_keep_the_rules() {
    let migrations = read_all(&Path::new(ROOT).join("migrations")).unwrap();
    assert!(migrations.len() >= 2);
    assert_eq!(findings(&migrations), Vec::<String>::new());
}

#[test]
fn the_readme_lists_every_rule() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("migrations/README.md")).unwrap();
    for rule in Rule::iter() {
        let row = format!("| `{}` |", rule.code());
        assert!(
            readme.contains(&row),
            "migrations/README.md lacks a row {row}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    refuses("syntax", "ALTER TABLE orders ADD COLUMN;");
    refuses("syntax", "DO $$ BEGIN UPDATE; END $$;");
    refuses(
        "unknown on orders",
        "ALTER TABLE orders ATTACH PARTITION old DEFAULT;",
    );
    refuses("unknown", "ALTER DOMAIN price ADD CHECK (value > 0);");
    refuses(
        "dynamic",
        "DO $$ BEGIN EXECUTE 'DROP TABLE orders'; END $$;",
    );
    refuses("dynamic", "DO LANGUAGE plpython3u $$ pass $$;");
    refuses("dynamic", "CALL change_everything();");
    accepts(
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT 1'; END $$;",
    );
    accepts(
        "COMMENT ON TABLE orders IS 'x'; GRANT SELECT ON orders TO reader; INSERT INTO orders DEFAULT VALUES;",
    );
}

#[test]
fn indexes_of_old_tables_are_made_and_dropped_concurrently() {
    refuses(
        "index on orders",
        "CREATE INDEX i ON public.\"orders\" (city);",
    );
    refuses("index on orders", "CREATE UNIQUE INDEX i ON ORDERS (city);");
    refuses("index", "DROP INDEX orders_city_idx;");
    accepts("CREATE TABLE towns (name text); CREATE INDEX towns_idx ON towns (name);");
    accepts_outside("CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_city_idx ON orders (city);");
    accepts_outside(
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS orders_city_idx ON orders (city);",
    );
    accepts_outside(
        "-- Nobody searches by it.\nDROP INDEX CONCURRENTLY IF EXISTS orders_town_idx;",
    );
}

#[test]
fn a_concurrent_build_can_be_repeated() {
    refuses_outside(
        "concurrently",
        "CREATE INDEX CONCURRENTLY orders_city_idx ON orders (city);",
    );
    // `migrate` could not find the invalid index.
    refuses_outside(
        "concurrently",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_town_idx ON orders (city);",
    );
    refuses_outside("concurrently", "DROP INDEX CONCURRENTLY orders_town_idx;");
    // PostgreSQL would choose the name.
    refuses_outside(
        "concurrently",
        "CREATE INDEX CONCURRENTLY ON orders (city);",
    );
}

#[test]
fn outside_of_a_transaction_there_is_one_statement_that_needs_it() {
    let index = "CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_city_idx ON orders (city);";
    refuses("outside-transaction", index);
    refuses_outside(
        "outside-transaction",
        &[index, "COMMENT ON INDEX orders_city_idx IS 'x';"].concat(),
    );
    refuses_outside("outside-transaction", "CREATE TABLE towns (name text);");
    refuses_outside("outside-transaction", "DO $$ BEGIN PERFORM 1; END $$;");
    refuses("outside-transaction", "DO $$ BEGIN COMMIT; END $$;");
    accepts_outside("DO $$ BEGIN PERFORM 1; COMMIT; END $$;");
}

#[test]
fn a_new_column_has_one_value_for_all_old_rows() {
    for default in [
        "gen_random_uuid()",
        "clock_timestamp()",
        "nextval('s')",
        "now() + random() * interval '1 s'",
    ] {
        let up = format!("ALTER TABLE orders ADD COLUMN c text DEFAULT ({default});");
        refuses("column-default on orders", &up);
    }
    refuses(
        "column-default on orders",
        "ALTER TABLE orders ADD c bigserial;",
    );
    refuses(
        "column-default on orders",
        "ALTER TABLE orders ADD c int GENERATED ALWAYS AS (sm_id + 1) STORED;",
    );
    refuses(
        "column-default on orders",
        "ALTER TABLE orders ADD c int GENERATED BY DEFAULT AS IDENTITY;",
    );
    accepts(
        "ALTER TABLE orders ADD COLUMN a text, ADD b timestamptz NOT NULL DEFAULT now(), ADD c bigint[] NOT NULL DEFAULT '{}';",
    );
    accepts(
        "ALTER TABLE orders ADD a timestamptz DEFAULT CURRENT_TIMESTAMP, ADD b int DEFAULT -1, ADD c jsonb DEFAULT '[]'::jsonb;",
    );
    accepts("ALTER TABLE orders ALTER c SET DEFAULT gen_random_uuid();");
}

#[test]
fn a_column_becomes_not_null_after_a_validated_check() {
    let promise = "ALTER TABLE orders ADD CONSTRAINT c CHECK (city IS NOT NULL) NOT VALID;";
    let validate = "ALTER TABLE orders VALIDATE CONSTRAINT c;";
    let set = "ALTER TABLE orders ALTER COLUMN city SET NOT NULL;";
    refuses("not-null on orders", set);
    refuses(
        "not-null on orders",
        "ALTER TABLE orders ADD COLUMN c text NOT NULL;",
    );
    refuses(
        "not-null on orders",
        "ALTER TABLE orders ADD CONSTRAINT c NOT NULL city;",
    );
    let all = [promise, validate, set].map(|up| migration(up, true));
    assert_eq!(names(&all), Vec::<String>::new());
    assert_eq!(
        names(&[all[0].clone(), all[2].clone()]),
        ["1: not-null on orders"]
    );
    let other = migration("ALTER TABLE orders ALTER COLUMN town SET NOT NULL;", true);
    assert_eq!(
        names(&[all[0].clone(), all[1].clone(), other]),
        ["1: not-null on orders"]
    );
    // This check promises nothing about the column.
    let weak = migration(
        "ALTER TABLE orders ADD CONSTRAINT c CHECK (city IS NOT NULL OR sm_id = 0) NOT VALID;",
        true,
    );
    assert_eq!(
        names(&[weak, all[1].clone(), all[2].clone()]),
        ["1: not-null on orders"]
    );
}

#[test]
fn constraints_are_validated_later() {
    refuses(
        "constraint on orders",
        "ALTER TABLE orders ADD CHECK (sm_id > 0);",
    );
    refuses(
        "constraint on orders",
        "ALTER TABLE orders ADD COLUMN c int CHECK (c > 0);",
    );
    refuses(
        "constraint on orders",
        "ALTER TABLE orders ADD COLUMN c int REFERENCES orders;",
    );
    refuses(
        "constraint on orders",
        "ALTER TABLE orders ADD FOREIGN KEY (c) REFERENCES orders;",
    );
    accepts("ALTER TABLE orders ADD CONSTRAINT c CHECK (sm_id > 0) NOT VALID;");
    accepts("ALTER TABLE orders ADD CONSTRAINT c FOREIGN KEY (c) REFERENCES orders NOT VALID;");
    accepts("ALTER TABLE orders DROP CONSTRAINT c;");
}

#[test]
fn validation_has_a_transaction_of_its_own() {
    let both = "ALTER TABLE orders ADD CONSTRAINT c CHECK (sm_id > 0) NOT VALID; ALTER TABLE orders VALIDATE CONSTRAINT c;";
    refuses("validate on orders", both);
    refuses(
        "validate on orders",
        "ALTER TABLE orders VALIDATE CONSTRAINT c, ADD COLUMN d text;",
    );
    accepts(
        "ALTER TABLE orders VALIDATE CONSTRAINT c, VALIDATE CONSTRAINT d; COMMENT ON TABLE orders IS 'x';",
    );
}

#[test]
fn types_stay() {
    refuses(
        "column-type on orders",
        "ALTER TABLE orders ALTER COLUMN sm_id TYPE numeric;",
    );
    refuses(
        "column-type on orders",
        "ALTER TABLE orders ALTER sm_id SET DATA TYPE text USING sm_id::text;",
    );
    accepts(
        "ALTER TABLE orders ALTER COLUMN items SET COMPRESSION lz4, ALTER city SET STATISTICS 200;",
    );
}

#[test]
fn keys_use_an_index_that_is_there() {
    refuses(
        "unique on orders",
        "ALTER TABLE orders ADD PRIMARY KEY (order_uid);",
    );
    refuses(
        "unique on orders",
        "ALTER TABLE orders ADD CONSTRAINT u UNIQUE (track_number);",
    );
    refuses(
        "unique on orders",
        "ALTER TABLE orders ADD COLUMN c text UNIQUE;",
    );
    refuses(
        "unique on orders",
        "ALTER TABLE orders ADD EXCLUDE USING gist (c WITH &&);",
    );
    accepts("ALTER TABLE orders ADD CONSTRAINT u UNIQUE USING INDEX orders_track_number_key;");
}

#[test]
fn tables_are_not_written_anew() {
    refuses("rewrite on orders", "CLUSTER orders USING orders_pkey;");
    refuses("rewrite on orders", "VACUUM FULL orders;");
    refuses("rewrite on orders", "VACUUM (FULL) orders;");
    refuses("rewrite on orders", "REINDEX TABLE orders;");
    refuses("rewrite", "REINDEX INDEX CONCURRENTLY orders_pkey;");
    refuses("rewrite on orders", "ALTER TABLE orders SET UNLOGGED;");
    refuses("rewrite", "REFRESH MATERIALIZED VIEW totals;");
    accepts("REFRESH MATERIALIZED VIEW CONCURRENTLY totals; ANALYZE orders;");
}

#[test]
fn whole_tables_are_neither_locked_nor_changed_at_once() {
    refuses("lock-table on orders", "LOCK TABLE orders IN SHARE MODE;");
    refuses("truncate on orders", "TRUNCATE orders;");
    refuses("whole-table on orders", "UPDATE orders SET note = '';");
    refuses(
        "whole-table on orders",
        "DELETE FROM ONLY orders AS o WHERE sm_id = 1;",
    );
    refuses(
        "whole-table on orders",
        "WITH gone AS (DELETE FROM orders RETURNING 1) SELECT count(*) FROM gone;",
    );
    refuses(
        "whole-table on orders",
        "MERGE INTO orders USING towns ON true WHEN MATCHED THEN DELETE;",
    );
    let batch = "UPDATE orders SET note = '' WHERE order_uid IN (
        SELECT order_uid FROM orders WHERE note IS NULL ORDER BY order_uid LIMIT 1000 FOR UPDATE);";
    // All batches are one transaction.
    refuses("whole-table on orders", batch);
    accepts_outside(&format!(
        "DO $$ BEGIN LOOP {batch} EXIT WHEN NOT FOUND; COMMIT; END LOOP; END $$;"
    ));
    refuses_outside(
        "whole-table on orders",
        "DO $$ BEGIN UPDATE orders SET note = ''; COMMIT; END $$;",
    );
    accepts(
        "CREATE TABLE towns (name text); UPDATE towns SET name = ''; TRUNCATE towns; LOCK TABLE towns;",
    );
}

#[test]
fn what_the_former_release_uses_stays() {
    refuses(
        "rename on orders",
        "ALTER TABLE orders RENAME COLUMN city TO town;",
    );
    refuses(
        "rename on orders",
        "ALTER TABLE orders RENAME TO purchases;",
    );
    refuses("rename on orders", "ALTER TABLE orders SET SCHEMA shop;");
    refuses("drop on orders", "ALTER TABLE orders DROP COLUMN city;");
    refuses("drop on orders", "DROP TABLE orders;");
    refuses("drop", "DROP FUNCTION note_rewind();");
    refuses("drop", "DROP VIEW deliveries;");
    accepts("ALTER TABLE orders RENAME CONSTRAINT a TO b; ALTER INDEX a RENAME TO b;");
    accepts(
        "CREATE OR REPLACE VIEW deliveries AS SELECT 1; ALTER TABLE orders ALTER c DROP NOT NULL;",
    );
}

#[test]
fn one_table_is_locked_at_a_time() {
    let two = "ALTER TABLE orders ADD COLUMN a text; ALTER TABLE dead_letters ADD COLUMN a text;";
    refuses("several-tables", two);
    refuses(
        "several-tables",
        "ALTER TABLE orders ADD CONSTRAINT c FOREIGN KEY (c) REFERENCES shops NOT VALID;",
    );
    accepts("ALTER TABLE orders ADD COLUMN a text; ALTER TABLE orders ADD COLUMN b text;");
    // The lock is short, and a time-out bounds the wait for it.
    accepts("CREATE TRIGGER t AFTER INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION f();");
    accepts(
        "CREATE TABLE lines (order_uid text REFERENCES orders); ALTER TABLE lines ADD COLUMN a text;",
    );
    refuses(
        "several-tables",
        "CREATE TABLE lines (a text REFERENCES orders, b text REFERENCES shops);",
    );
}

#[test]
fn the_program_controls_transactions_and_time_outs() {
    for up in [
        "BEGIN;",
        "COMMIT;",
        "SET lock_timeout = 0;",
        "SET LOCAL statement_timeout = '1h';",
        "RESET ALL;",
    ] {
        refuses("session", up);
    }
}

#[test]
fn statements_in_blocks_count_too() {
    refuses(
        "column-type on orders",
        "DO $$ BEGIN IF true THEN ALTER TABLE orders ALTER a TYPE int; END IF; END $$;",
    );
    refuses(
        "index on orders",
        "DO $$ BEGIN CREATE INDEX i ON orders (city); END $$;",
    );
    accepts("CREATE TABLE towns (a text); DO $$ BEGIN ALTER TABLE towns ALTER a TYPE int; END $$;");
    refuses(
        "whole-table on orders",
        "DO $$ DECLARE uid text; BEGIN FOR uid IN DELETE FROM orders RETURNING order_uid LOOP PERFORM 1; END LOOP; END $$;",
    );
}

#[test]
fn tables_that_may_exist_already_are_not_new() {
    refuses(
        "index on towns",
        "CREATE TABLE IF NOT EXISTS towns (a text); CREATE INDEX i ON towns (a);",
    );
    let both = [
        "CREATE TABLE towns (a text);",
        "CREATE INDEX i ON towns (a);",
    ];
    assert_eq!(
        names(&both.map(|up| migration(up, true))),
        ["1: index on towns"]
    );
}

#[test]
fn an_author_may_answer_for_a_rule_on_a_table() {
    let with = |comment: &str| format!("TRUNCATE towns; -- x\n{comment}\n");
    accepts(&with(
        "-- allow truncate on towns: it has ten rows, and nobody reads it",
    ));
    let refused = ["1: truncate on towns"];
    // There is no reason.
    assert_eq!(
        names(&[migration(&with("-- allow truncate on towns:"), true)]),
        refused
    );
    let of_other = names(&[migration(
        &with("-- allow truncate on orders: why not"),
        true,
    )]);
    assert_eq!(of_other.len(), 2, "{of_other:?}");
    assert!(
        of_other[1].contains("`-- allow truncate on orders` allows nothing"),
        "{of_other:?}"
    );
}
