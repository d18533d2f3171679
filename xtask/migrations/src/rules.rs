//! What is refused, why, and what to do instead.

/// A rule. `migrations/README.md` lists all of them by their codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub(crate) enum Rule {
    Syntax,
    Unknown,
    Index,
    Concurrently,
    OutsideTransaction,
    ColumnDefault,
    NotNull,
    Constraint,
    Validate,
    ColumnType,
    Unique,
    Rewrite,
    LockTable,
    Truncate,
    WholeTable,
    Rename,
    Drop,
    SeveralTables,
    Dynamic,
    Session,
}

impl Rule {
    /// The code, why it is refused and what to do instead.
    pub(crate) fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Syntax => ("syntax", "this is not SQL that PostgreSQL accepts"),
            Self::Unknown => (
                "unknown",
                "nobody has looked up yet which locks this takes and for how long: do so, and teach xtask/migrations",
            ),
            Self::Index => (
                "index",
                "it stops all writers until the index is built, or all who use the table: use CONCURRENTLY, in a migration \
                 of its own",
            ),
            Self::Concurrently => (
                "concurrently",
                "an interrupted build could not be repeated: write CREATE INDEX CONCURRENTLY IF NOT EXISTS name, or DROP INDEX \
                 CONCURRENTLY IF EXISTS name, and call the folder of a new index NUMBER_create_name",
            ),
            Self::OutsideTransaction => (
                "outside-transaction",
                "a migration outside of a transaction must be one statement, so that no half of it stays: CREATE or DROP INDEX \
                 CONCURRENTLY, or a DO block that commits; and these need run_in_transaction = false in metadata.toml",
            ),
            Self::ColumnDefault => (
                "column-default",
                "it writes every row anew under a lock that stops everybody: add the column without it, set the default, and \
                 fill the rows in batches",
            ),
            Self::NotNull => (
                "not-null",
                "it reads the whole table under a lock that stops everybody, or the former release's INSERT fails: first add \
                 CHECK (column IS NOT NULL) NOT VALID and validate it in migrations of their own",
            ),
            Self::Constraint => (
                "constraint",
                "it reads the whole table under a lock that stops all writers: add the constraint as NOT VALID, and validate it \
                 in a migration of its own",
            ),
            Self::Validate => (
                "validate",
                "what else the transaction has locked stays locked while the table is read: put VALIDATE CONSTRAINT into a \
                 migration of its own",
            ),
            Self::ColumnType => (
                "column-type",
                "it writes every row anew under a lock that stops everybody, and the former release expects the old type: add \
                 a column, fill it in batches, and drop the old one in a later release",
            ),
            Self::Unique => (
                "unique",
                "it builds an index under a lock that stops everybody: build a unique index CONCURRENTLY in a migration of its \
                 own, and name it here by USING INDEX",
            ),
            Self::Rewrite => (
                "rewrite",
                "it writes the table or its indexes anew: that is upkeep, which operators do, not a change of the schema",
            ),
            Self::LockTable => (
                "lock-table",
                "the lock is held to the end of the migration: each statement takes the locks that it needs",
            ),
            Self::Truncate => ("truncate", "it stops everybody, and removes data"),
            Self::WholeTable => (
                "whole-table",
                "the rows stay locked until the end, against the order in which our writers lock rows: change them in batches \
                 that are committed, in a DO block outside of a transaction",
            ),
            Self::Rename => (
                "rename",
                "the former release still uses the old name: add the new one, and drop the old one in a later release",
            ),
            Self::Drop => (
                "drop",
                "the former release may still use it: drop it in a later release",
            ),
            Self::SeveralTables => (
                "several-tables",
                "it holds the lock on one table while it waits for the next: use a migration for each table",
            ),
            Self::Dynamic => (
                "dynamic",
                "nobody can check SQL that is put together at run time",
            ),
            Self::Session => (
                "session",
                "`ingestor migrate` begins and ends the transactions and sets the time-outs",
            ),
        }
    }

    /// The name by which a person refers to it.
    pub(crate) fn code(self) -> &'static str {
        self.texts().0
    }
}
