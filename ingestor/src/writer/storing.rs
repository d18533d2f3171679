//! A writer stores a batch, and reads the rows of idle partitions again.

use std::time::Instant;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use shared::traces::Span;
use tracing::{info, warn};

use super::attempt::{self, Step};
use super::job::{Due, Hold, StoreJob};
use super::trace::{self, BatchTrace};
use super::transaction::Stored;
use super::trouble::Trouble;
use super::{Report, Writer, WriterContext};
use crate::batch::Batch;
use crate::failpoints::{self, Plant};
use crate::offsets::{self, Claim, Patience, Reread};
use crate::record::Reading;

/// How often a batch is tried again at once after another process has inserted one of its new orders. More is trouble.
const MAX_COLLISIONS: u32 = 5;

impl Writer {
    /// Tries once to store a batch. Returns when to try again; `None` if it is stored, or not ours to store any more.
    pub(super) fn store(&mut self, job: &mut StoreJob, hold: &mut Hold) -> Option<Due> {
        const DOING: &str = "store a batch";
        let started_at = Instant::now();
        let reading = job.batch.reading;
        let _log = job.trace.as_ref().map(BatchTrace::enter_log);
        let Some(claim) = self.context.board.claim_of(reading) else {
            if let Some(trace) = &job.trace {
                trace.dropped("the partition is not ours any more");
            }
            self.report(Report::Dropped(job.batch.size_bytes));
            return None;
        };
        let step = self.attempt_to_store(job, &claim, hold.has_failed);
        match step {
            Ok(Step::Stored(_)) if failpoints::is_planted(Plant::ReapplyBatch) => Some(Due::now()),
            Ok(Step::Stored(stored)) => {
                self.stored(&job.batch, &claim, &stored, hold);
                if let Some(trace) = &job.trace {
                    trace.stored(&self.context.consumer, &job.batch, &stored);
                }
                None
            }
            Ok(Step::NotStored) => {
                job.must_settle = false;
                hold.row_is_free();
                Some(Due::now())
            }
            Ok(Step::Refused(refused)) => {
                warn!(
                    kafka.partition = reading.partition.0,
                    kafka.offsets = ?refused.iter().map(|(offset, _)| offset.0).collect::<Vec<_>>(),
                    "a constraint of the database rejects orders: they become dead letters"
                );
                job.batch.refuse(refused);
                Some(Due::now())
            }
            Ok(Step::BringsBack(offsets)) => {
                job.batch.leave_out(&offsets);
                Some(Due::now())
            }
            Ok(Step::Lost) => {
                if let Some(trace) = &job.trace {
                    trace.dropped("fenced");
                }
                self.lose(reading);
                self.report(Report::Dropped(job.batch.size_bytes));
                None
            }
            Ok(Step::NoRow) => {
                // The next look at the row tells a locked one from a missing one.
                job.must_settle = true;
                Some(self.wait_for_row(reading, Patience::Wait, DOING, hold))
            }
            // Another process has inserted one of its orders meanwhile: now the row exists and can be locked.
            Err(Trouble::Query(DieselError::DatabaseError(
                DatabaseErrorKind::UniqueViolation,
                _,
            ))) if hold.collisions < MAX_COLLISIONS => {
                hold.collisions += 1;
                Some(Due::now())
            }
            Err(trouble) => {
                // The answer to a COMMIT may be what was lost.
                job.must_settle = true;
                if let Some(trace) = &job.trace {
                    trace.retried(&trouble);
                }
                Some(self.in_trouble(reading, &trouble, DOING, hold, started_at))
            }
        }
    }

    /// Makes an attempt, with a span of its own if the batch is traced.
    fn attempt_to_store(
        &mut self,
        job: &StoreJob,
        claim: &Claim,
        is_retry: bool,
    ) -> Result<Step, Trouble> {
        let trace = job.trace.as_ref();
        let span = trace.map(|trace| trace.attempt(job.must_settle));
        let entered = span.as_ref().map(Span::enter);
        let step = if job.must_settle {
            self.settle(&job.batch, claim)
        } else {
            self.try_store(&job.batch, claim, is_retry)
        };
        drop(entered);
        if let Some(span) = span {
            trace::end_attempt(&span, &step);
        }
        step
    }

    fn try_store(&mut self, batch: &Batch, claim: &Claim, is_retry: bool) -> Result<Step, Trouble> {
        let WriterContext {
            consumer,
            max_consecutive_bad,
            metrics,
            ..
        } = &self.context;
        let halts = batch.bad_run(claim.consecutive_bad).longest > *max_consecutive_bad;
        let started_at = Instant::now();
        let connection = self.connection.get()?;
        let step = attempt::store(connection, consumer, claim, batch, halts, is_retry)?;
        if matches!(step, Step::Stored(_)) {
            metrics
                .commit_seconds
                .observe(started_at.elapsed().as_secs_f64());
        }
        Ok(step)
    }

    /// Asks the database about a transaction whose outcome is unknown.
    fn settle(&mut self, batch: &Batch, claim: &Claim) -> Result<Step, Trouble> {
        let connection = self.connection.get()?;
        Ok(attempt::settle(
            connection,
            &self.context.consumer,
            claim,
            batch,
        )?)
    }

    fn reread_row(&mut self, reading: Reading, claim: &Claim) -> Result<Reread, Trouble> {
        let connection = self.connection.get()?;
        let consumer = &self.context.consumer;
        let reread = offsets::reread(connection, consumer, reading.partition, claim.epoch)?;
        Ok(reread)
    }

    fn stored(&mut self, batch: &Batch, claim: &Claim, stored: &Stored, hold: &Hold) {
        self.healthy();
        let reading = batch.reading;
        if hold.reports.has_reported() {
            info!(
                kafka.partition = reading.partition.0,
                "the partition is stored again"
            );
        }
        let bad_run = batch.bad_run(claim.consecutive_bad);
        let WriterContext { board, metrics, .. } = &self.context;
        let held_back = stored.held_back.len();
        metrics.batch_stored(batch, stored.written, held_back);
        if held_back > 0 {
            warn!(
                kafka.partition = reading.partition.0,
                held_back,
                "messages that may have been read before were held back, because newer orders may be stored: see \
                 `ingestor dead-letters list --state superseded`"
            );
        }
        let next_offset = batch.new_next_offset;
        board.stored(reading, next_offset, batch.witness(), bad_run.trailing);
        self.report(Report::Stored {
            reading,
            next_offset,
            at: Instant::now(),
            size_bytes: batch.size_bytes,
        });
        if bad_run.longest > self.context.max_consecutive_bad {
            board.withdraw_claim(reading);
            let reason = offsets::halted_reason(reading.partition);
            self.report(Report::Stopped(reading, reason));
        }
    }

    fn lose(&mut self, reading: Reading) {
        self.healthy();
        self.context.metrics.fences.inc();
        warn!(
            kafka.partition = reading.partition.0,
            "fenced: another process has claimed the partition, or its row was changed or removed; what was read is dropped"
        );
        self.context.board.withdraw_claim(reading);
        self.report(Report::Lost(reading));
    }

    /// Reads the row of an idle partition again, so that a rewind or a failover reaches it. Returns when to try again; `None`
    /// if that is done.
    pub(super) fn reread(&mut self, reading: Reading, hold: &mut Hold) -> Option<Due> {
        const DOING: &str = "read an offset again";
        let started_at = Instant::now();
        let claim = self.context.board.claim_of(reading)?;
        match self.reread_row(reading, &claim) {
            Ok(Reread::Ours(next_offset)) if next_offset == claim.next_offset => {
                self.healthy();
                self.context.board.confirm(reading);
                None
            }
            Ok(Reread::Locked) => Some(self.wait_for_row(reading, Patience::Wait, DOING, hold)),
            Ok(Reread::Ours(_) | Reread::Lost) => {
                self.lose(reading);
                None
            }
            Err(trouble) => Some(self.in_trouble(reading, &trouble, DOING, hold, started_at)),
        }
    }
}
