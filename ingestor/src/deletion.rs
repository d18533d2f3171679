//! Deletes many orders in small transactions that disturb nobody. Each emits its events, so every cache drops the orders.

use std::thread::sleep;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use shared::db::schema::orders;
use shared::events::{self, Operation};

/// The most orders of one transaction. It holds their rows for some milliseconds.
pub const ORDERS_PER_STEP: i64 = 200;

/// The longest rest after a step.
const MAX_REST: Duration = Duration::from_secs(1);

/// Deletes orders whose rows the caller's transaction has locked, and tells the caches.
///
/// # Errors
/// Returns the database's error.
pub fn delete_locked(connection: &mut PgConnection, uids: &[String]) -> QueryResult<()> {
    diesel::delete(orders::table.filter(orders::order_uid.eq_any(uids))).execute(connection)?;
    events::notify(Operation::Delete, uids.iter().map(String::as_str))
        .execute(connection)
        .map(drop)
}

/// Rests as long as the step took, so that others get half of the server at least.
pub fn rest(started_at: Instant) {
    sleep(started_at.elapsed().min(MAX_REST));
}
