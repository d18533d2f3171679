//! When heartbeats prove that the listener has seen every commit. Like the core, this has no I/O, and `api/model` compiles it
//! as well.

use super::sync::sound;

/// The heartbeats of one connection that have come back. A heartbeat is a statement that reads the database's history and
/// notifies the connection itself.
///
/// Times are in milliseconds. 0 stands for a heartbeat that was never sent.
#[derive(Debug, Default)]
pub struct Heartbeats {
    compared_ms: u64,
    echoed_ms: u64,
}

impl Heartbeats {
    /// Notes that the heartbeat of this time has read the same history as the one before it.
    pub fn compare(&mut self, sent_ms: u64) {
        self.compared_ms = sent_ms;
    }

    /// Notes that the notification of this heartbeat has arrived, and so every event from before it.
    pub fn echo(&mut self, sent_ms: u64) {
        self.echoed_ms = sent_ms;
    }

    /// The time up to which every commit was seen, in the history that the listener hears of. `None` if nothing is proven yet,
    /// and while a flush is delayed: what it has to drop is still there.
    pub fn proven_ms(&self, is_flush_delayed: bool) -> Option<u64> {
        if sound!(is_flush_delayed, ProofDuringADelayedFlush, false) {
            return None;
        }
        let echoed_ms = sound!(self.echoed_ms, ProofWithoutTheEcho, u64::MAX);
        let compared_ms = sound!(self.compared_ms, ProofWithoutTheHistory, u64::MAX);
        Some(compared_ms.min(echoed_ms)).filter(|sent_ms| *sent_ms > 0)
    }
}
