//! The ledger `removed_orders`: what was deleted or erased, so that no older message brings it back.
//!
//! The api writes an entry with each DELETE, and `ingestor erase` for what it erases. Only the ingestor reads the ledger: POST
//! and PUT may create a removed order again. The database itself hashes what is recorded, so that writers need no key.

use diesel::sql_types::{Array, Text};
use strum::IntoStaticStr;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// One order, by its `order_uid`.
    Order,
    /// Every order of a customer, by the `customer_id`.
    Customer,
}

/// How something was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum How {
    /// By the api's DELETE.
    Deleted,
    /// By `ingestor erase`. No option of any command brings it back.
    Erased,
}

diesel::define_sql_function! {
    /// A function of the migrations: writes entries, and returns how many.
    fn record_removed(kind: Text, ids: Array<Text>, how: Text) -> BigInt;
}

/// The statement that [`record`] returns.
pub type Record = diesel::dsl::select<record_removed<&'static str, Vec<String>, &'static str>>;

/// Builds the statement that notes a removal in the ledger. Run it in the transaction that removes the orders, after their
/// rows were locked: it notes what was not read at that time.
pub fn record(kind: Kind, how: How, ids: Vec<String>) -> Record {
    let (kind, how): (&'static str, &'static str) = (kind.into(), how.into());
    diesel::select(record_removed(kind, ids, how))
}

#[cfg(test)]
mod tests {
    use diesel::pg::Pg;
    use diesel::query_builder::QueryFragment;

    use super::*;

    #[test]
    fn recording_is_prepared_once() {
        let statement = record(Kind::Order, How::Deleted, vec!["a".to_owned()]);
        let may_be_kept = QueryFragment::<Pg>::is_safe_to_cache_prepared(&statement, &Pg);
        assert_eq!(may_be_kept, Ok(true));
    }
}
