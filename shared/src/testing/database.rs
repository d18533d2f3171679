//! One database per test, cloned from a migrated template.
//!
//! NOTIFY is per database and is sent only on commit, so neither schemas nor rolled-back transactions would do.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use servers::postgres::{PrivatePostgres, find_binaries};
use servers::process::Launch;

use crate::config::{DatabaseSettings, Secret, SslMode};
use crate::db::rights::{LETTER_COLUMNS, Role, SEQUENCES, TABLES};
use crate::db::{self, HistoryId, STANDING, Standing};

/// What operators run to make the roles.
const ROLES_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/postgres/roles.sql");

/// The advisory lock that lets one test process make the template at a time.
const TEMPLATE_LOCK: i64 = 0x7465_6d70;

/// A migrated database that belongs to one test and is dropped when the test ends.
#[derive(Debug)]
pub struct TestDatabase {
    server: DatabaseSettings,
    settings: DatabaseSettings,
}

/// The server that the variables `DB_HOST` and so on name. `make test` and `cargo xtask stack` set them.
///
/// # Panics
/// Panics if no server is named, because a test must not use a server that nobody gave it.
pub fn database_settings_from_environment() -> DatabaseSettings {
    let variable = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: run the tests with `make test`, or see CONTRIBUTING.md")
        })
    };
    DatabaseSettings {
        host: variable("DB_HOST"),
        port: variable("DB_PORT").parse().unwrap(),
        user: variable("DB_USER"),
        password: Secret::new(variable("DB_PASSWORD")),
        name: variable("DB_NAME"),
        sslmode: SslMode::Disable,
        sslrootcert: None,
    }
}

/// The database of a private server, for tests that damage or stop their server.
pub fn settings_of(server: &PrivatePostgres) -> DatabaseSettings {
    DatabaseSettings {
        host: server.host().to_owned(),
        port: server.port(),
        user: server.user().to_owned(),
        password: Secret::new(server.password()),
        name: server.database().to_owned(),
        sslmode: SslMode::Disable,
        sslrootcert: None,
    }
}

/// Returns the environment variables that make a program use a database.
pub fn variables_of(database: &DatabaseSettings) -> Vec<(String, String)> {
    [
        ("DB_HOST", database.host.as_str()),
        ("DB_PORT", &database.port.to_string()),
        ("DB_USER", &database.user),
        ("DB_PASSWORD", database.password.expose()),
        ("DB_NAME", &database.name),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Returns the single integer that a query selects as `value`.
///
/// # Errors
/// Returns the error of the database.
pub fn integer(connection: &mut PgConnection, query: &str) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        value: i64,
    }
    let row: Row = diesel::sql_query(query).get_result(connection)?;
    Ok(row.value)
}

/// Returns the single text that a query selects as `value`.
///
/// # Errors
/// Returns the error of the database.
pub fn text(connection: &mut PgConnection, query: &str) -> QueryResult<String> {
    let row: TextRow = diesel::sql_query(query).get_result(connection)?;
    Ok(row.value)
}

#[derive(QueryableByName)]
struct TextRow {
    #[diesel(sql_type = Text)]
    value: String,
}

/// Runs the file that operators run, as a superuser, with psql's variables.
pub fn run_roles_file(database: &DatabaseSettings, variables: &[(&str, &str)]) {
    let mut psql = launch(database, "psql").args(["--no-psqlrc", "--file", ROLES_FILE]);
    for (name, value) in variables {
        psql = psql.args(["--set", &format!("{name}={value}")]);
    }
    psql.output_of("").unwrap();
}

impl TestDatabase {
    /// Makes a database with the whole schema.
    pub fn create() -> Self {
        Self::create_on(database_settings_from_environment())
    }

    /// Makes a database with the whole schema on a given server.
    pub fn create_on(server: DatabaseSettings) -> Self {
        let mut connection = connect(&server);
        let template = templates(&server, &mut connection).migrated;
        Self::clone_of(&template, server, &mut connection)
    }

    /// Makes a database without any table, in which the service's roles have rights.
    pub fn create_empty() -> Self {
        let server = database_settings_from_environment();
        let mut connection = connect(&server);
        let template = templates(&server, &mut connection).empty;
        Self::clone_of(&template, server, &mut connection)
    }

    fn clone_of(template: &str, server: DatabaseSettings, connection: &mut PgConnection) -> Self {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        execute(
            connection,
            &["CREATE DATABASE ", &name, " TEMPLATE ", template].concat(),
        );
        let settings = DatabaseSettings {
            name,
            ..server.clone()
        };
        Self { server, settings }
    }

    /// How to reach the database as the superuser, who may look at everything.
    pub fn settings(&self) -> DatabaseSettings {
        self.settings.clone()
    }

    /// How a program reaches the database: as a role of its own.
    pub fn settings_as(&self, role: Role) -> DatabaseSettings {
        DatabaseSettings {
            user: role.name().to_owned(),
            ..self.settings.clone()
        }
    }

    /// A connection to the database.
    pub fn connect(&self) -> PgConnection {
        connect(&self.settings)
    }

    /// A connection like one of a program.
    pub fn connect_as(&self, role: Role) -> PgConnection {
        connect(&self.settings_as(role))
    }

    /// A connection like one of `psql`: its writes are those of a foreign writer.
    pub fn connect_foreign(&self) -> PgConnection {
        let settings = &self.settings;
        let conninfo = format!(
            "host='{}' port={} user='{}' password='{}' dbname='{}'",
            settings.host,
            settings.port,
            settings.user,
            settings.password.expose(),
            settings.name
        );
        PgConnection::establish(&conninfo).unwrap()
    }

    /// The single integer that a query selects as `value`.
    pub fn integer(&self, query: &str) -> i64 {
        integer(&mut self.connect(), query).unwrap()
    }

    /// The texts that a query selects as `value`.
    pub fn texts(&self, query: &str) -> Vec<String> {
        let rows: Vec<TextRow> = diesel::sql_query(query).load(&mut self.connect()).unwrap();
        rows.into_iter().map(|row| row.value).collect()
    }

    /// The history of the database.
    pub fn history(&self) -> HistoryId {
        let standing = diesel::sql_query(STANDING).get_result::<Standing>(&mut self.connect());
        standing.unwrap().history.hash_id()
    }

    /// Runs statements.
    pub fn execute(&self, statements: &str) {
        execute(&mut self.connect(), statements);
    }

    /// Everything in the database, as statements that replace what is there then.
    pub fn dump(&self) -> String {
        let dump = self.launch("pg_dump").args(["--clean", "--if-exists"]);
        dump.output_of("").unwrap()
    }

    /// Restores a [`Self::dump`] into the database, which may be in use.
    pub fn restore(&self, dump: &str) {
        let psql = self.launch("psql").args(["--no-psqlrc", "--quiet"]);
        psql.args(["--set", "ON_ERROR_STOP=1"])
            .output_of(dump)
            .unwrap();
    }

    /// Prepares a program of PostgreSQL that connects to the database.
    fn launch(&self, program: &str) -> Launch {
        launch(&self.settings, program)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A failed test may have stopped the server. Its own message must stay the last one.
        if let Ok(mut connection) = db::connect_blocking(&self.server, "orders-test") {
            use diesel::connection::SimpleConnection;
            let drop_database = [
                "DROP DATABASE IF EXISTS ",
                &self.settings.name,
                " WITH (FORCE)",
            ]
            .concat();
            connection.batch_execute(&drop_database).ok();
        }
    }
}

fn connect(settings: &DatabaseSettings) -> PgConnection {
    db::connect_blocking(settings, "orders-test").unwrap()
}

fn execute(connection: &mut PgConnection, statements: &str) {
    use diesel::connection::SimpleConnection;
    connection.batch_execute(statements).unwrap();
}

fn launch(settings: &DatabaseSettings, program: &str) -> Launch {
    Launch::new(program, find_binaries().unwrap().join(program))
        .env("PGHOST", &settings.host)
        .env("PGPORT", settings.port.to_string())
        .env("PGUSER", &settings.user)
        .env("PGPASSWORD", settings.password.expose())
        .env("PGDATABASE", &settings.name)
}

/// The databases that are copied. Their names change with the files that they are made of.
struct Templates {
    /// Only with the roles.
    empty: String,
    /// With the schema.
    migrated: String,
}

/// Returns the templates. They are made if they do not exist yet.
fn templates(server: &DatabaseSettings, connection: &mut PgConnection) -> Templates {
    let fingerprint = schema_fingerprint();
    let templates = Templates {
        empty: format!("template_empty_{fingerprint}"),
        migrated: format!("template_{fingerprint}"),
    };
    diesel::sql_query("SELECT pg_advisory_lock($1)")
        .bind::<BigInt, _>(TEMPLATE_LOCK)
        .execute(connection)
        .unwrap();
    make_template(
        server,
        connection,
        (&templates.empty, "template0"),
        add_roles,
    );
    make_template(
        server,
        connection,
        (&templates.migrated, &templates.empty),
        migrate_as_migrator,
    );
    diesel::sql_query("SELECT pg_advisory_unlock($1)")
        .bind::<BigInt, _>(TEMPLATE_LOCK)
        .execute(connection)
        .unwrap();
    templates
}

fn make_template(
    server: &DatabaseSettings,
    connection: &mut PgConnection,
    (name, origin): (&str, &str),
    fill: fn(&DatabaseSettings),
) {
    let exists = diesel::sql_query("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind::<Text, _>(name)
        .execute(connection)
        .unwrap();
    if exists != 0 {
        return;
    }
    // It is filled under another name, so that an unfinished one is never used as the template.
    let unfinished = format!("{name}_unfinished");
    for statement in [
        ["DROP DATABASE IF EXISTS ", &unfinished].concat(),
        ["CREATE DATABASE ", &unfinished, " TEMPLATE ", origin].concat(),
    ] {
        execute(connection, &statement);
    }
    fill(&DatabaseSettings {
        name: unfinished.clone(),
        ..server.clone()
    });
    let rename = ["ALTER DATABASE ", &unfinished, " RENAME TO ", name].concat();
    execute(connection, &rename);
}

/// Runs the file that operators run.
fn add_roles(database: &DatabaseSettings) {
    let mut connection = connect(database);
    let known = "SELECT count(*) AS value FROM pg_roles WHERE rolname = 'orders_api'";
    let password = database.password.expose();
    let passwords = [
        ("migrator_password", password),
        ("ingestor_password", password),
        ("api_password", password),
        ("reader_password", password),
    ];
    // The passwords of roles that somebody else has made stay as they are.
    let is_known = integer(&mut connection, known).unwrap() > 0;
    run_roles_file(database, if is_known { &[] } else { &passwords });
    // What a test itself creates may be used by everybody, for example by its triggers in the sessions of a program.
    execute(
        &mut connection,
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC; \
         ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; \
         ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC",
    );
}

fn migrate_as_migrator(database: &DatabaseSettings) {
    let migrator = DatabaseSettings {
        user: Role::Migrator.name().to_owned(),
        ..database.clone()
    };
    db::migrate(&mut connect(&migrator), || false).unwrap();
}

/// A number that changes when a migration or the roles change.
fn schema_fingerprint() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("up.sql"))
        .filter(|file| file.exists())
        .collect();
    files.sort();
    files.push(ROLES_FILE.into());
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    format!("{:?}", (TABLES, SEQUENCES, LETTER_COLUMNS)).hash(&mut hasher);
    hasher.finish()
}
