//! What each role may do, table by table and command by command, and how the roles come to be.

use std::collections::BTreeSet;

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use shared::config::DatabaseSettings;
use shared::db;
use shared::db::rights::{
    FUNCTIONS_OF_CALLERS, FUNCTIONS_OF_OWNER, LETTER_COLUMNS, Role, SEQUENCES, TABLES,
};
use shared::testing::{TestDatabase, run_roles_file};

fn connect_as(database: &TestDatabase, role: Role) -> PgConnection {
    db::connect_blocking(&database.settings_as(role), "orders-test").unwrap()
}

fn sorted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn every_object_of_the_schema_has_a_decision() {
    let database = TestDatabase::create();
    let relations = |kinds: &str| {
        let query = [
            "SELECT relname::text AS value FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN (",
            kinds,
            ") ORDER BY 1",
        ];
        sorted(database.texts(&query.concat()).iter().map(String::as_str))
    };
    assert_eq!(
        relations("'r', 'p', 'v', 'm', 'f'"),
        sorted(TABLES.map(|(name, _)| name))
    );
    assert_eq!(relations("'S'"), sorted(SEQUENCES.map(|(name, _)| name)));
    // What a function may do is what its caller may do, unless it runs as its owner. Then nobody may call it.
    let functions = |condition: &str| {
        let query = [
            "SELECT DISTINCT proname::text AS value FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND ",
            condition,
        ];
        sorted(database.texts(&query.concat()).iter().map(String::as_str))
    };
    assert_eq!(functions("NOT prosecdef"), sorted(FUNCTIONS_OF_CALLERS));
    assert_eq!(functions("prosecdef"), sorted(FUNCTIONS_OF_OWNER));
    for role in Role::LIMITED {
        let may_call = format!(
            "prosecdef AND has_function_privilege('{}', oid, 'EXECUTE')",
            role.name()
        );
        assert_eq!(functions(&may_call), Vec::<String>::new(), "{role:?}");
    }
    let columns = database.texts(
        "SELECT column_name::text AS value FROM information_schema.columns \
          WHERE table_name = 'dead_letters' AND column_name NOT IN ('key', 'payload', 'headers')",
    );
    assert_eq!(
        sorted(columns.iter().map(String::as_str)),
        sorted(LETTER_COLUMNS)
    );
}

/// Whether the statement is refused for lack of a right. What else may be wrong with it comes later. It is rolled back.
fn is_refused(connection: &mut PgConnection, statement: &str) -> bool {
    connection.batch_execute("BEGIN").unwrap();
    let outcome = connection.batch_execute(statement);
    connection.batch_execute("ROLLBACK").unwrap();
    outcome.is_err_and(|error| {
        let message = error.to_string();
        message.contains("permission denied")
            || message.contains("must be owner")
            || message.contains("must be superuser")
            // Nobody can do these to a view.
            || message.contains("view \"order_items\"")
            || message.contains("is not a table")
    })
}

/// The commands on a table, and the privilege that each needs.
fn commands_on(table: &str, first_column: &str) -> [(&'static str, String); 7] {
    [
        ("SELECT", format!("SELECT count(*) FROM {table}")),
        ("INSERT", format!("INSERT INTO {table} DEFAULT VALUES")),
        (
            "UPDATE",
            format!("UPDATE {table} SET \"{first_column}\" = DEFAULT WHERE false"),
        ),
        ("DELETE", format!("DELETE FROM {table} WHERE false")),
        ("TRUNCATE", format!("TRUNCATE {table}")),
        ("OWNER", format!("ALTER TABLE {table} RENAME TO other")),
        (
            "OWNER",
            format!("GRANT SELECT ON {table} TO PUBLIC; DROP TABLE {table}"),
        ),
    ]
}

#[test]
fn each_role_may_do_what_is_listed_and_nothing_else() {
    let database = TestDatabase::create();
    for (place, role) in Role::LIMITED.into_iter().enumerate() {
        let mut connection = connect_as(&database, role);
        for (table, privileges) in TABLES {
            let column = database.texts(&format!(
                "SELECT attname::text AS value FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum = 1"
            ));
            for (privilege, statement) in commands_on(table, &column[0]) {
                let is_granted = privileges[place].contains(&privilege);
                // A right to select some columns is enough to count.
                let counts_letters =
                    role == Role::Reader && table == "dead_letters" && privilege == "SELECT";
                assert_eq!(
                    is_refused(&mut connection, &statement),
                    !is_granted && !counts_letters,
                    "{role:?}: {statement}"
                );
            }
        }
        for (sequence, privileges) in SEQUENCES {
            for (privilege, statement) in [
                ("USAGE", format!("SELECT nextval('{sequence}')")),
                ("SELECT", format!("SELECT last_value FROM {sequence}")),
                ("UPDATE", format!("SELECT setval('{sequence}', 1)")),
            ] {
                // UPDATE also allows to draw.
                let is_granted = privileges[place].contains(&privilege)
                    || privilege == "USAGE" && privileges[place].contains(&"UPDATE");
                assert_eq!(
                    is_refused(&mut connection, &statement),
                    !is_granted,
                    "{role:?}: {statement}"
                );
            }
        }
        for statement in [
            "CREATE TABLE more ()",
            "CREATE SCHEMA more",
            "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "SET session_replication_role = replica",
            "CREATE ROLE more",
            "COPY orders TO PROGRAM 'cat'",
            "SELECT emit_foreign_writes()",
            "CREATE TEMPORARY TABLE mine (); CREATE TRIGGER mine AFTER INSERT ON mine EXECUTE FUNCTION emit_foreign_writes()",
        ] {
            assert!(
                is_refused(&mut connection, statement),
                "{role:?}: {statement}"
            );
        }
    }
}

#[test]
fn the_reader_sees_neither_the_bytes_of_letters_nor_the_ledger() {
    let database = TestDatabase::create();
    let mut reader = connect_as(&database, Role::Reader);
    let columns = LETTER_COLUMNS
        .map(|column| format!("\"{column}\""))
        .join(", ");
    for (statement, is_allowed) in [
        (format!("SELECT {columns} FROM dead_letters"), true),
        (
            "SELECT reason, count(*) FROM dead_letters GROUP BY 1".to_owned(),
            true,
        ),
        ("SELECT payload FROM dead_letters".to_owned(), false),
        ("SELECT key FROM dead_letters".to_owned(), false),
        ("SELECT headers FROM dead_letters".to_owned(), false),
        ("SELECT * FROM dead_letters".to_owned(), false),
        ("SELECT removed_hash('order', 'a')".to_owned(), false),
        (
            "SELECT record_removed('order', '{a}', 'deleted')".to_owned(),
            false,
        ),
        (
            "SELECT * FROM order_items, deliveries, payments".to_owned(),
            true,
        ),
        (
            "SELECT order_items_fault(items) FROM orders".to_owned(),
            true,
        ),
    ] {
        let is_refused = is_refused(&mut reader, &statement);
        assert_eq!(is_refused, !is_allowed, "{statement}");
    }
}

#[test]
fn no_role_is_more_than_it_must_be() {
    let database = TestDatabase::create_empty();
    run_roles_file(&database.settings(), &[]);
    let strong = database.texts(
        "SELECT rolname::text AS value FROM pg_roles WHERE rolname LIKE 'orders\\_%' \
            AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)",
    );
    assert_eq!(strong, Vec::<String>::new());
    let memberships = database.texts(
        "SELECT concat_ws(' ', roleid::regrole, member::regrole) AS value FROM pg_auth_members \
          WHERE member::regrole::text LIKE 'orders\\_%'",
    );
    assert_eq!(memberships, Vec::<String>::new());
    // Who may connect can make the caches drop everything.
    let everybody = database.texts(
        "SELECT privilege_type AS value FROM pg_database, aclexplode(datacl) \
          WHERE datname = current_database() AND grantee = 0",
    );
    assert_eq!(everybody, Vec::<String>::new());
    for role in Role::LIMITED.into_iter().chain([Role::Migrator]) {
        let mut connection = connect_as(&database, role);
        let is_refused = is_refused(&mut connection, "CREATE TABLE public.more ()");
        assert_eq!(is_refused, role != Role::Migrator, "{role:?}");
    }
}

/// Asserts that the schema belongs to the migrator, and that every role has what it needs.
fn assert_complete(database: &TestDatabase) {
    let foreign = database.texts(
        "SELECT relname::text AS value FROM pg_class WHERE relnamespace = 'public'::regnamespace \
            AND relowner <> 'orders_migrator'::regrole \
         UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace \
            AND proowner <> 'orders_migrator'::regrole",
    );
    assert_eq!(foreign, Vec::<String>::new());
    for role in Role::LIMITED {
        let lacking = db::rights::lacking_of_session(role);
        let query = [
            "SELECT coalesce(value, '') AS value FROM (",
            &lacking,
            ") AS found (value)",
        ];
        let mut connection = connect_as(database, role);
        let found = shared::testing::text(&mut connection, &query.concat()).unwrap();
        assert_eq!(found, "", "{role:?}");
    }
}

#[test]
fn the_roles_may_come_before_or_after_the_migrations_and_again() {
    let migrate_as = |settings: DatabaseSettings| {
        let mut connection = db::connect_blocking(&settings, "orders-test").unwrap();
        db::migrate(&mut connection, || false).unwrap().len()
    };
    // Before: the template of all tests is made so.
    let database = TestDatabase::create();
    assert_complete(&database);
    run_roles_file(&database.settings(), &[]);
    assert_complete(&database);
    // After, in a database that another role has migrated.
    let database = TestDatabase::create_empty();
    assert!(migrate_as(database.settings()) > 0);
    run_roles_file(&database.settings(), &[]);
    assert_eq!(migrate_as(database.settings_as(Role::Migrator)), 0);
    assert_complete(&database);
    // A right that was lost comes back with the next `ingestor migrate`.
    database.execute("REVOKE INSERT ON orders FROM orders_api");
    migrate_as(database.settings_as(Role::Migrator));
    assert_complete(&database);
    // A role that may not migrate gets by if nothing is pending.
    assert_eq!(migrate_as(database.settings_as(Role::Ingestor)), 0);
}

#[test]
fn the_documentation_lists_the_same_rights() {
    let text = include_str!("../../../docs/OPERATIONS.md");
    let section = text.split("\n## Roles\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cell = |privileges: &[&str]| privileges.join(", ");
    for (object, [ingestor, api, reader]) in TABLES.into_iter().chain(SEQUENCES) {
        if [ingestor, api, reader]
            .iter()
            .all(|privileges| privileges.is_empty())
            && object != "dead_letters"
        {
            continue;
        }
        let reader = if object == "dead_letters" {
            "SELECT without key, payload, headers".to_owned()
        } else {
            cell(reader)
        };
        let row = format!(
            "| `{object}` | {} | {} | {reader} |",
            cell(ingestor),
            cell(api)
        );
        // An empty cell has one blank.
        let row = row.replace("  ", " ");
        assert!(section.contains(&row), "docs/OPERATIONS.md lacks: {row}");
    }
}
