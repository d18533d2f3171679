//! Changes that the benchmark commits itself, as our writers do. They change orders that nobody else changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use shared::db::schema::orders;
use shared::events::{self, Operation};

use super::watcher::{Awaited, Lane, Start};

/// The time between two looks at the watchers.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// Changes one order after another until `is_stopped` is set.
pub(super) fn commit(
    connection: &mut PgConnection,
    uids: &[String],
    samples_per_second: u32,
    lane: &mut Lane<'_>,
    is_stopped: &AtomicBool,
) -> anyhow::Result<()> {
    let interval = Duration::from_secs_f64(1.0 / f64::from(samples_per_second));
    let is_over = |lane: &Lane<'_>| is_stopped.load(Ordering::Relaxed) || lane.has_failed();
    for uid in uids.iter().cycle() {
        let due_at = Instant::now() + interval;
        lane.prepare(uid, true);
        while lane.is_prepared().is_none() && !is_over(lane) {
            thread::sleep(LOOK_INTERVAL);
        }
        if is_over(lane) {
            lane.cancel();
            return Ok(());
        }
        let change = change(connection, uid)?;
        lane.start(&Start {
            begun_at: change.begun_at,
            at: Instant::now(),
            awaited: Awaited::Version(change.version),
        });
        while !is_over(lane) && (Instant::now() < due_at || !lane.is_idle()) {
            thread::sleep(LOOK_INTERVAL);
        }
    }
    Ok(())
}

/// A change that has committed.
pub(super) struct Change {
    version: i64,
    /// When the answer to BEGIN had arrived.
    pub(super) begun_at: Instant,
    /// When the answers to all statements before COMMIT had arrived.
    pub(super) written_at: Instant,
}

/// Changes an order in one transaction, which has committed when this returns.
pub(super) fn change(connection: &mut PgConnection, uid: &str) -> QueryResult<Change> {
    connection.transaction(|connection| {
        let begun_at = Instant::now();
        let version = diesel::update(orders::table.find(uid))
            .set((
                orders::version.eq(sql::<BigInt>("nextval('order_version_seq')")),
                orders::payment_amount.eq(orders::payment_amount + 1),
            ))
            .returning(orders::version)
            .get_result(connection)?;
        events::notify(Operation::Upsert, [uid]).execute(connection)?;
        Ok(Change {
            version,
            begun_at,
            written_at: Instant::now(),
        })
    })
}
