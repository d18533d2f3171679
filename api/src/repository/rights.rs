//! Which rights of the database's role a piece of work needs, and which of them the role lacks.

use diesel::QueryResult;
use diesel::sql_types::{Array, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

/// Finds the rights of `$2` on the tables and sequences of `$1` that the role lacks.
const FIND_LACKING: &str = "SELECT coalesce(string_agg(needed || ' on ' || name, ', ' ORDER BY number), '') AS lacking \
     FROM unnest($1, $2) WITH ORDINALITY AS rights (name, needed, number) \
     WHERE NOT CASE needed WHEN 'USAGE' THEN has_sequence_privilege(name, 'USAGE, UPDATE') \
                           ELSE has_table_privilege(name, needed) END";

/// A table or a sequence, and a right on it.
type Right = (&'static str, &'static str);

/// The rights that a piece of work needs besides those of a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights(&'static [Right]);

impl Rights {
    /// A read needs no more.
    pub(super) const NONE: Self = Self(&[]);
    /// Creating, replacing and editing an order.
    pub(super) const STORE: Self = Self(&[
        ("orders", "INSERT"),
        ("orders", "UPDATE"),
        ("order_version_seq", "USAGE"),
    ]);
    /// Deleting an order. The right to update is needed to lock it.
    pub(super) const DELETE: Self = Self(&[
        ("orders", "UPDATE"),
        ("orders", "DELETE"),
        ("consumer_offsets", "SELECT"),
        ("removed_orders_key", "SELECT"),
        ("removed_orders", "SELECT"),
        ("removed_orders", "INSERT"),
        ("removed_orders", "UPDATE"),
    ]);

    /// Asks the server which of them the role lacks, as text for operators; empty if none.
    pub(super) async fn find_lacking(
        &self,
        connection: &mut AsyncPgConnection,
    ) -> QueryResult<String> {
        let (names, rights): (Vec<&str>, Vec<&str>) = self.0.iter().copied().unzip();
        let query = diesel::sql_query(FIND_LACKING)
            .bind::<Array<Text>, _>(names)
            .bind::<Array<Text>, _>(rights);
        let found: Found = query.get_result(connection).await?;
        Ok(found.lacking)
    }
}

#[derive(diesel::QueryableByName)]
struct Found {
    #[diesel(sql_type = Text)]
    lacking: String,
}
