//! The ledger of removed orders, as the ingestor reads it: which messages are too old to bring an order back.
//!
//! A message is new for something that was removed only if it was produced later, by its timestamp, and had not been read by
//! then, by its position. Everything else is skipped. The ledger holds hashes; [`names`] finds what a refused message names.

pub mod names;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::db::removed::{How, Kind};
use shared::db::schema::{removed_orders, removed_orders_key};
use uuid::Uuid;

use crate::record::{Consumer, Incarnation, Offset, Partition, Position};
use names::Names;

/// Hashes of one query. With 16 bytes each, the query stays small.
const HASHES_PER_QUERY: usize = 10_000;

/// The most recent entries that are read instead of looking up hashes. So many cost a tenth of looking up a batch's hashes.
const MAX_RECENT: i64 = 500;

diesel::define_sql_function! {
    /// A function of the migrations.
    fn look_at_removed_orders() -> Record<(Nullable<Timestamptz>, Nullable<Timestamptz>)>;
}

diesel::define_sql_function! {
    /// A function of the migrations.
    fn lock_removed_orders() -> Bool;
}

/// The times of the ledger's newest entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// When something was removed last; none if the ledger is empty.
    pub removed_at: Option<DateTime<Utc>>,
    /// When something was erased last.
    pub erased_at: Option<DateTime<Utc>>,
}

/// Looks at the ledger, and shuts out an erasure until the caller's transaction ends. What this transaction writes is seen by
/// any later erasure, and it sees every earlier one.
///
/// Call it *after* the orders were written: from then on nobody can delete them before the transaction has ended.
///
/// # Errors
/// Returns the database's error.
pub fn look(connection: &mut PgConnection) -> QueryResult<Newest> {
    let (removed_at, erased_at) =
        diesel::select(look_at_removed_orders()).get_result::<(_, _)>(connection)?;
    Ok(Newest {
        removed_at,
        erased_at,
    })
}

/// Waits for all batches that are under way, and holds up new ones until the caller's transaction ends.
///
/// # Errors
/// Returns the database's error, also if `lock_timeout` passes.
pub fn shut_out_batches(connection: &mut PgConnection) -> QueryResult<()> {
    diesel::select(lock_removed_orders())
        .get_result::<bool>(connection)
        .map(drop)
}

/// Makes the hashes of the ledger, as the database's function `removed_hash` does.
pub struct Hasher {
    inner: Sha256,
    outer: Sha256,
}

impl Hasher {
    /// Reads the key.
    ///
    /// # Errors
    /// Returns the database's error.
    pub fn read(connection: &mut PgConnection) -> QueryResult<Self> {
        let (inner_pad, outer_pad): (Vec<u8>, Vec<u8>) = removed_orders_key::table
            .select((removed_orders_key::inner_pad, removed_orders_key::outer_pad))
            .first(connection)?;
        Ok(Self {
            inner: Sha256::new_with_prefix(inner_pad),
            outer: Sha256::new_with_prefix(outer_pad),
        })
    }

    /// The first 128 bits of HMAC-SHA-256.
    pub fn hash(&self, kind: Kind, id: &str) -> Uuid {
        let mut inner = self.inner.clone();
        inner.update(<&str>::from(kind));
        inner.update(b":");
        inner.update(id);
        let hash = self.outer.clone().chain_update(inner.finalize()).finalize();
        let (first, _) = hash.split_at(16);
        Uuid::from_slice(first).unwrap_or_default()
    }
}

/// An entry of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Whether it was erased, not only deleted.
    pub is_erased: bool,
    removed_at: DateTime<Utc>,
    positions: Value,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The group and the topic.
    pub consumer: &'a Consumer,
    /// The partition.
    pub partition: Partition,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The message's offset and timestamp.
    pub position: Position,
}

impl Entry {
    /// Returns whether a message is new for what was removed.
    pub fn is_new(&self, place: Place<'_>) -> bool {
        is_later(place.position.timestamp_ms, self.removed_at)
            && self
                .unread_from(place)
                .is_none_or(|unread| (place.incarnation, place.position.offset) >= unread)
    }

    /// What was next to be read of the message's partition; none if the group did not read it then.
    fn unread_from(&self, place: Place<'_>) -> Option<(Incarnation, Offset)> {
        let Consumer {
            group_id, topic, ..
        } = place.consumer;
        let position = &self.positions[group_id][topic][place.partition.to_string()];
        let incarnation = i32::try_from(position[0].as_i64()?).ok()?;
        Some((Incarnation(incarnation), Offset(position[1].as_i64()?)))
    }
}

/// Returns whether a message was produced after a time, as far as is known.
pub fn is_later(timestamp_ms: Option<i64>, time: DateTime<Utc>) -> bool {
    timestamp_ms.is_some_and(|ms| ms.saturating_mul(1000) > time.timestamp_micros())
}

/// Returns the entries with these hashes, as far as they were written since a time: for later messages that were never read
/// before, earlier entries do not count.
///
/// Mostly there are few such entries, and none of them has such a hash. Reading them is cheaper than looking up every hash.
///
/// # Errors
/// Returns the database's error.
pub fn find_since(
    connection: &mut PgConnection,
    since_ms: Option<i64>,
    mut hashes: Vec<Uuid>,
) -> QueryResult<HashMap<Uuid, Entry>> {
    if let Some(since) = since_ms.and_then(DateTime::from_timestamp_millis) {
        let recent: Vec<Uuid> = removed_orders::table
            .filter(removed_orders::removed_at.ge(since))
            .select(removed_orders::hash)
            .order(removed_orders::removed_at.desc())
            .limit(MAX_RECENT)
            .load(connection)?;
        if i64::try_from(recent.len()).is_ok_and(|count| count < MAX_RECENT) {
            let recent: HashSet<Uuid> = recent.into_iter().collect();
            hashes.retain(|hash| recent.contains(hash));
        }
    }
    find(connection, hashes)
}

/// Returns the entries with these hashes.
///
/// # Errors
/// Returns the database's error.
pub fn find(
    connection: &mut PgConnection,
    mut hashes: Vec<Uuid>,
) -> QueryResult<HashMap<Uuid, Entry>> {
    // Neighbours are on the same page of the index.
    hashes.sort_unstable();
    hashes.dedup();
    let mut entries = HashMap::new();
    for chunk in hashes.chunks(HASHES_PER_QUERY) {
        let rows: Vec<(Uuid, String, DateTime<Utc>, Value)> = removed_orders::table
            .filter(removed_orders::hash.eq_any(chunk))
            .select((
                removed_orders::hash,
                removed_orders::how,
                removed_orders::removed_at,
                removed_orders::positions,
            ))
            .load(connection)?;
        entries.extend(rows.into_iter().map(|(hash, how, removed_at, positions)| {
            let entry = Entry {
                is_erased: how == <&str>::from(How::Erased),
                removed_at,
                positions,
            };
            (hash, entry)
        }));
    }
    Ok(entries)
}

/// Returns the keys of those messages that name something that was erased, whenever it was.
///
/// # Errors
/// Returns the database's error.
pub fn find_erased<K: Copy + Eq + Hash>(
    connection: &mut PgConnection,
    named: impl IntoIterator<Item = (K, Names)>,
) -> QueryResult<HashSet<K>> {
    let hasher = Hasher::read(connection)?;
    let mut keys_by_hash: HashMap<Uuid, Vec<K>> = HashMap::new();
    for (key, names) in named {
        let orders = names.orders.iter().map(|id| (Kind::Order, id));
        let customers = names.customers.iter().map(|id| (Kind::Customer, id));
        for (kind, id) in orders.chain(customers) {
            keys_by_hash
                .entry(hasher.hash(kind, id))
                .or_default()
                .push(key);
        }
    }
    let entries = find(connection, keys_by_hash.keys().copied().collect())?;
    let erased = entries.iter().filter(|(_, entry)| entry.is_erased);
    Ok(erased
        .flat_map(|(hash, _)| keys_by_hash[hash].iter().copied())
        .collect())
}

#[cfg(test)]
mod tests {
    use diesel::pg::Pg;
    use diesel::query_builder::QueryFragment;
    use serde_json::json;

    use super::*;

    #[test]
    fn looking_is_prepared_once() {
        let look = diesel::select(look_at_removed_orders());
        let may_be_kept = QueryFragment::<Pg>::is_safe_to_cache_prepared(&look, &Pg);
        assert_eq!(may_be_kept, Ok(true));
    }

    #[test]
    fn a_message_is_new_if_it_is_later_and_was_not_read_by_then() {
        let entry = Entry {
            is_erased: false,
            removed_at: DateTime::from_timestamp_micros(5_000_500).unwrap(),
            positions: json!({"group": {"orders": {"0": [3, 100]}, "other": {"0": [9, 900]}}}),
        };
        let consumer = |group_id: &str| Consumer {
            group_id: group_id.to_owned(),
            topic: "orders".to_owned(),
            owner: Uuid::nil(),
        };
        for (group, partition, incarnation, offset, timestamp_ms, is_new) in [
            ("group", 0, 3, 100, Some(5_001), true),
            ("group", 0, 3, 99, Some(5_001), false),
            ("group", 0, 3, 100, Some(5_000), false),
            ("group", 0, 3, 100, None, false),
            ("group", 0, 4, 0, Some(5_001), true),
            ("group", 0, 2, 200, Some(5_001), false),
            // Nothing is known about these, so the time alone decides.
            ("group", 1, 0, 0, Some(5_001), true),
            ("other", 0, 0, 0, Some(5_001), true),
            ("other", 0, 0, 0, Some(5_000), false),
            ("group", 0, 3, 100, Some(i64::MAX), true),
        ] {
            let place = Place {
                consumer: &consumer(group),
                partition: Partition(partition),
                incarnation: Incarnation(incarnation),
                position: Position {
                    offset: Offset(offset),
                    timestamp_ms,
                },
            };
            assert_eq!(entry.is_new(place), is_new, "{place:?}");
        }
    }
}
