//! The failpoints of test builds.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text, Uuid as SqlUuid};
use rustix::process::{Signal, getpid, kill_process};

use super::{Phase, Plant};
use crate::batch::Batch;
use crate::dead_letters::DeadLetter;
use crate::offsets::Consumer;

/// A stop reaches another thread first; this one must not run on meanwhile.
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

/// Does what is armed for a phase: `return(kill)` is SIGKILL and `return(stop)` is SIGSTOP to this process, said on
/// standard error first; further ones are those of the crate `fail`, such as `sleep(ms)` and `panic`.
pub fn reached(phase: Phase) {
    fail::fail_point!(phase.name(), |action| signal_self(phase, action.as_deref()));
}

fn signal_self(phase: Phase, action: Option<&str>) {
    let signal = match action {
        Some("kill") => Signal::KILL,
        Some("stop") => Signal::STOP,
        _ => panic!(
            "FAILPOINTS: {}: say return(kill) or return(stop)",
            phase.name()
        ),
    };
    eprintln!("failpoint {}: {signal:?}", phase.name());
    if let Err(error) = kill_process(getpid(), signal) {
        panic!("cannot signal this process: {error}");
    }
    std::thread::sleep(STOP_DELAY);
}

/// Whether a fault is planted here and now.
pub fn is_planted(plant: Plant) -> bool {
    fail::fail_point!(plant.name(), |_| true);
    false
}

/// [`Plant::NoFence`]: has the row claim whatever the batch expects.
///
/// # Errors
/// Fails as the database does.
pub fn open_fence(
    connection: &mut PgConnection,
    consumer: &Consumer,
    epoch: i64,
    batch: &Batch,
) -> QueryResult<()> {
    if !is_planted(Plant::NoFence) {
        return Ok(());
    }
    diesel::sql_query(
        "UPDATE consumer_offsets SET epoch = $1, owner = $2, next_offset = $3
          WHERE group_id = $4 AND topic = $5 AND partition = $6",
    )
    .bind::<BigInt, _>(epoch)
    .bind::<SqlUuid, _>(consumer.owner)
    .bind::<BigInt, _>(batch.old_next_offset)
    .bind::<Text, _>(&consumer.group_id)
    .bind::<Text, _>(&consumer.topic)
    .bind::<Integer, _>(batch.reading.partition)
    .execute(connection)
    .map(drop)
}

/// [`Plant::OffsetFirst`]: ends the transaction that moved the offset and begins another one for the rows.
///
/// # Errors
/// Fails as the database does.
pub fn commit_offset(connection: &mut PgConnection) -> QueryResult<()> {
    if is_planted(Plant::OffsetFirst) {
        connection.batch_execute("COMMIT; BEGIN")?;
    }
    Ok(())
}

/// [`Plant::SkipOnError`]: does the work, or nothing of it where the database fails.
///
/// # Errors
/// Fails as the work does, unless the fault is planted.
pub fn skip_on_error<T: Default>(
    connection: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> QueryResult<T> {
    if is_planted(Plant::SkipOnError) {
        return Ok(connection.transaction(work).unwrap_or_default());
    }
    work(connection)
}

/// [`Plant::SwallowDeadLetters`]: none of them.
pub fn unless_swallowed(letters: &[DeadLetter]) -> &[DeadLetter] {
    if is_planted(Plant::SwallowDeadLetters) {
        return &[];
    }
    letters
}
