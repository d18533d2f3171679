//! What each role of `deploy/postgres/roles.sql` may do with each object of the schema.
//!
//! This is the only list. A migration grants what it says, `doctor` compares a program's role with it, and tests compare it with
//! the schema and with the documentation.

use anyhow::Context;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};

/// A role of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns the schema, and so may do everything with it: migrations, `ingestor erase`, `ingestor purge`.
    Migrator,
    /// The daemon, and every other command of the ingestor.
    Ingestor,
    /// The api.
    Api,
    /// People and reports.
    Reader,
}

impl Role {
    /// The roles that do not own the schema.
    pub const LIMITED: [Self; 3] = [Self::Ingestor, Self::Api, Self::Reader];

    /// The role's name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Migrator => "orders_migrator",
            Self::Ingestor => "orders_ingestor",
            Self::Api => "orders_api",
            Self::Reader => "orders_reader",
        }
    }
}

/// What a role may do with an object.
type Privileges = &'static [&'static str];

const NONE: Privileges = &[];
const READ: Privileges = &["SELECT"];
const WRITE: Privileges = &["SELECT", "INSERT", "UPDATE"];
const WRITE_AND_DELETE: Privileges = &["SELECT", "INSERT", "UPDATE", "DELETE"];
const DRAW: Privileges = &["USAGE"];
/// `setval` needs UPDATE.
const DRAW_AND_SET: Privileges = &["SELECT", "USAGE", "UPDATE"];

/// An object, and the privileges of [`Role::LIMITED`] on it.
pub type Row = (&'static str, [Privileges; 3]);

/// Tables and views.
///
/// The api notes a deletion in the ledger with what every group was to read next. It needs the key of the ledger for that, as the
/// ingestor does to compare messages with the ledger. Only `ingestor erase` and `ingestor purge`, which are run by the owner, and
/// the api delete.
pub const TABLES: [Row; 11] = [
    //                              ingestor, api, reader
    ("orders", [WRITE, WRITE_AND_DELETE, READ]),
    ("deliveries", [NONE, NONE, READ]),
    ("payments", [NONE, NONE, READ]),
    ("order_items", [NONE, NONE, READ]),
    ("consumer_offsets", [WRITE, READ, READ]),
    ("offset_incidents", [WRITE, NONE, READ]),
    ("dead_letters", [WRITE, NONE, NONE]),
    ("removed_orders", [READ, WRITE, NONE]),
    ("removed_orders_key", [READ, READ, NONE]),
    ("service_history", [WRITE, READ, READ]),
    ("__diesel_schema_migrations", [READ, READ, READ]),
];

/// The columns of `dead_letters` that the reader may select: all but the message itself.
pub const LETTER_COLUMNS: [&str; 17] = [
    "id",
    "group_id",
    "topic",
    "incarnation",
    "partition",
    "offset",
    "payload_size",
    "message_timestamp",
    "reason",
    "detail",
    "state",
    "created_at",
    "updated_at",
    "relayed_at",
    "relay_error",
    "blanked_at",
    "blanked_why",
];

/// Sequences. Those of identity columns need no rights: whoever may insert draws from them.
pub const SEQUENCES: [Row; 4] = [
    ("order_version_seq", [DRAW_AND_SET, DRAW, NONE]),
    ("incarnation_seq", [DRAW, NONE, NONE]),
    ("dead_letters_id_seq", [NONE, NONE, NONE]),
    ("offset_incidents_id_seq", [NONE, NONE, NONE]),
];

/// Functions that run with the rights of their caller. So everybody may call them: they allow nothing.
pub const FUNCTIONS_OF_CALLERS: [&str; 8] = [
    "advance_consumer_offset",
    "lock_removed_orders",
    "look_at_removed_orders",
    "note_rewind",
    "order_items_fault",
    "record_removed",
    "removed_hash",
    "unread_positions",
];

/// Functions that run with the rights of the owner. Only triggers call them, and nobody else may.
pub const FUNCTIONS_OF_OWNER: [&str; 1] = ["emit_foreign_writes"];

/// A right that a role needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    is_on_sequence: bool,
    object: &'static str,
    /// A column, if the right is on it alone.
    column: &'static str,
    privilege: &'static str,
}

/// The rights of a role; of the owner none, because it has all.
fn rights_of(role: Role) -> Vec<Right> {
    let Some(place) = Role::LIMITED.iter().position(|limited| *limited == role) else {
        return Vec::new();
    };
    let tables = TABLES.iter().map(|row| (false, row));
    let sequences = SEQUENCES.iter().map(|row| (true, row));
    let on_objects = tables.chain(sequences);
    let mut rights: Vec<Right> = on_objects
        .flat_map(|(is_on_sequence, (object, privileges))| {
            privileges[place].iter().map(move |privilege| Right {
                is_on_sequence,
                object,
                column: "",
                privilege,
            })
        })
        .collect();
    if role == Role::Reader {
        rights.extend(LETTER_COLUMNS.map(|column| Right {
            is_on_sequence: false,
            object: "dead_letters",
            column,
            privilege: "SELECT",
        }));
    }
    rights
}

/// A query for the rights of `role` that the database role `grantee` lacks, an SQL expression: `selected` of them. What does not exist is not looked at.
fn lacking(role: Role, grantee: &str, selected: &str) -> String {
    let rights: Vec<String> = rights_of(role)
        .iter()
        .map(|right| {
            let kind = if right.is_on_sequence {
                "SEQUENCE"
            } else {
                "TABLE"
            };
            let (object, column, privilege) = (right.object, right.column, right.privilege);
            format!("('{kind}', '{object}', '{column}', '{privilege}')")
        })
        .collect();
    [
        "SELECT ",
        selected,
        " FROM (VALUES ",
        &rights.join(", "),
        ") AS needed (kind, object, part, privilege), (SELECT ",
        grantee,
        "::name AS grantee) AS role \
          WHERE NOT CASE WHEN kind = 'SEQUENCE' THEN has_sequence_privilege(grantee, to_regclass(object)::oid, privilege) \
                         WHEN part <> '' THEN has_column_privilege(grantee, to_regclass(object)::oid, part, privilege) \
                         ELSE has_table_privilege(grantee, to_regclass(object)::oid, privilege) END",
    ]
    .concat()
}

/// A query for the rights of `role` that the session's role lacks, as one text such as `INSERT on orders, USAGE on ...`; null if
/// there is none. The role must not be the owner, which lacks nothing.
pub fn lacking_of_session(role: Role) -> String {
    lacking(
        role,
        "current_user",
        "string_agg(privilege || ' on ' || object, ', ')",
    )
}

/// Grants all roles that exist what they lack. It does nothing for a role that does not own the schema.
///
/// # Errors
/// Returns the database's error.
pub fn grant(connection: &mut PgConnection) -> anyhow::Result<()> {
    const IS_OWNER: &str = "coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class \
                                       WHERE oid = to_regclass('orders')), false)";
    const STATEMENT: &str = "format('GRANT %s%s ON %s %I TO %I', privilege, CASE WHEN part = '' THEN '' \
                             ELSE format(' (%I)', part) END, kind, object, grantee) AS value";
    let is_owner: bool = diesel::select(sql::<Bool>(IS_OWNER)).get_result(connection)?;
    if !is_owner {
        return Ok(());
    }
    for role in Role::LIMITED {
        let exists = sql::<Bool>("EXISTS (SELECT FROM pg_roles WHERE rolname = ")
            .bind::<Text, _>(role.name())
            .sql(")");
        if !diesel::select(exists).get_result(connection)? {
            continue;
        }
        let grantee = ["'", role.name(), "'"].concat();
        let statements: Vec<Statement> =
            diesel::sql_query(lacking(role, &grantee, STATEMENT)).load(connection)?;
        for Statement { value } in statements {
            (connection.batch_execute(&value)).with_context(|| format!("{value} failed"))?;
        }
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Statement {
    #[diesel(sql_type = Text)]
    value: String,
}
