//! The failpoints of test builds.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use rustix::process::{Signal, getpid, kill_process};
use shared::db::schema::consumer_offsets;

use super::{Phase, Plant};
use crate::batch::Batch;
use crate::dead_letters::DeadLetter;
use crate::record::{Consumer, Epoch};

/// Another thread may receive the stop first. This thread must not continue meanwhile.
const STOP_DELAY: Duration = Duration::from_millis(100);

/// Keeps the failpoints armed.
pub struct Armed {
    _scenario: fail::FailScenario<'static>,
}

/// Arms what `FAILPOINTS` says.
pub fn arm() -> Armed {
    Armed {
        _scenario: fail::FailScenario::setup(),
    }
}

/// Does what is armed for a phase. `return(kill)` sends SIGKILL and `return(stop)` sends SIGSTOP to this process, after a
/// line on standard error. The other actions are those of the crate `fail`, such as `sleep(ms)` and `panic`.
pub fn reached(phase: Phase) {
    fail::fail_point!(<&str>::from(phase), |action| signal_self(
        phase,
        action.as_deref()
    ));
}

fn signal_self(phase: Phase, action: Option<&str>) {
    let signal = match action {
        Some("kill") => Signal::KILL,
        Some("stop") => Signal::STOP,
        _ => panic!(
            "FAILPOINTS: {}: give return(kill) or return(stop)",
            <&str>::from(phase)
        ),
    };
    eprintln!("failpoint {}: {signal:?}", <&str>::from(phase));
    if let Err(error) = kill_process(getpid(), signal) {
        panic!("cannot signal this process: {error}");
    }
    std::thread::sleep(STOP_DELAY);
}

/// Whether a fault is planted here and now.
pub fn is_planted(plant: Plant) -> bool {
    fail::fail_point!(<&str>::from(plant), |_| true);
    false
}

/// [`Plant::NoFence`]: sets the row to what the batch expects.
///
/// # Errors
/// Returns the database's error.
pub fn open_fence(
    connection: &mut PgConnection,
    consumer: &Consumer,
    epoch: Epoch,
    batch: &Batch,
) -> QueryResult<()> {
    if !is_planted(Plant::NoFence) {
        return Ok(());
    }
    let key = (&consumer.group_id, &consumer.topic, batch.reading.partition);
    diesel::update(consumer_offsets::table.find(key))
        .set((
            consumer_offsets::epoch.eq(epoch),
            consumer_offsets::owner.eq(consumer.owner),
            consumer_offsets::next_offset.eq(batch.old_next_offset),
        ))
        .execute(connection)
        .map(drop)
}

/// [`Plant::OffsetFirst`]: ends the transaction that moved the offset and begins another one for the rows.
///
/// # Errors
/// Returns the database's error.
pub fn commit_offset(connection: &mut PgConnection) -> QueryResult<()> {
    if is_planted(Plant::OffsetFirst) {
        connection.batch_execute("COMMIT; BEGIN")?;
    }
    Ok(())
}

/// [`Plant::SkipOnError`]: does the work, or nothing of it if the database fails.
///
/// # Errors
/// Returns the work's error, unless the fault is planted.
pub fn skip_on_error<T: Default>(
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    if is_planted(Plant::SkipOnError) {
        return Ok(connection.transaction(work).unwrap_or_default());
    }
    work(connection)
}

/// [`Plant::SwallowDeadLetters`]: returns none of them.
pub fn unless_swallowed(letters: &[DeadLetter]) -> &[DeadLetter] {
    if is_planted(Plant::SwallowDeadLetters) {
        return &[];
    }
    letters
}
