//! The listener's state, as every reader checks it and operators see it.
//!
//! Written by the listener alone. It keeps the clock, so that the core needs none.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::clock::Clock;
use super::counters::Count;

/// What the listener is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// Waiting for the database or its schema.
    Starting,
    /// Connecting, or waiting to try again.
    Connecting,
    /// Connected; LISTEN or the first proof is awaited.
    Subscribing,
    /// Proven: hits are served of entries that are new or verified; others are being verified.
    Syncing,
    /// Proven, and every entry is verified.
    Live,
    /// Connected, but the proof has grown too old.
    Suspect,
}

impl ListenerState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Starting,
        Self::Connecting,
        Self::Subscribing,
        Self::Syncing,
        Self::Live,
        Self::Suspect,
    ];

    /// Whether hits are served in it.
    pub(super) fn serves(self) -> bool {
        matches!(self, Self::Syncing | Self::Live)
    }

    /// The name in statistics and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::Subscribing => "subscribing",
            Self::Syncing => "syncing",
            Self::Live => "live",
            Self::Suspect => "suspect",
        }
    }
}

/// State, proof and counters of the listener.
#[derive(Debug)]
pub struct ListenerStatus {
    clock: Clock,
    state: AtomicU8,
    /// Milliseconds of `clock` at the newest proof, plus one; 0 is none.
    proof: AtomicU64,
    blind: Mutex<BlindTime>,
    /// Connections that were lost and found again.
    pub reconnects: Count,
    /// Notifications of writers.
    pub events: Count,
    /// Notifications that were not understood.
    pub malformed: Count,
}

/// How long nothing cached could be served.
#[derive(Debug)]
struct BlindTime {
    /// By the status's clock.
    since: Option<Duration>,
    before: Duration,
}

impl ListenerStatus {
    /// Starts the clock.
    pub fn new() -> Self {
        Self {
            clock: Clock::start(),
            state: AtomicU8::new(0),
            proof: AtomicU64::new(0),
            blind: Mutex::new(BlindTime {
                since: Some(Duration::ZERO),
                before: Duration::ZERO,
            }),
            reconnects: Count::default(),
            events: Count::default(),
            malformed: Count::default(),
        }
    }

    /// What the listener is doing.
    pub fn state(&self) -> ListenerState {
        ListenerState::ALL[usize::from(self.state.load(Ordering::SeqCst))]
    }

    pub(super) fn set_state(&self, state: ListenerState) {
        let mut blind = self.blind.lock().unwrap_or_else(PoisonError::into_inner);
        let index = ListenerState::ALL.iter().position(|each| *each == state);
        self.state
            .store(index.unwrap_or_default() as u8, Ordering::SeqCst);
        match (state.serves(), blind.since) {
            (true, Some(since)) => {
                blind.before += self.clock.elapsed().saturating_sub(since);
                blind.since = None;
            }
            (true, None) | (false, Some(_)) => {}
            (false, None) => blind.since = Some(self.clock.elapsed()),
        }
    }

    /// Whether hits may be served: proven within the lease.
    pub fn is_fresh(&self, lease: Duration) -> bool {
        self.fresh_proof_age(lease).is_some()
    }

    /// The age of a proof by which hits may be served.
    pub fn fresh_proof_age(&self, lease: Duration) -> Option<Duration> {
        if !self.state().serves() {
            return None;
        }
        self.proof_age().filter(|age| *age < lease)
    }

    /// Time since the last moment at which every earlier commit is known to have been seen.
    pub fn proof_age(&self) -> Option<Duration> {
        let proof_ms = self.proof.load(Ordering::SeqCst).checked_sub(1)?;
        Some(
            self.clock
                .elapsed()
                .saturating_sub(Duration::from_millis(proof_ms)),
        )
    }

    /// The present moment, for a heartbeat to carry; see [`Self::prove`].
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// A heartbeat sent at `sent_ms` came back: the queue of notifications is in the order of commits, so every commit
    /// before it has been seen.
    pub(super) fn prove(&self, sent_ms: u64) {
        let sent_ms = sent_ms.min(self.now_ms());
        self.proof.fetch_max(sent_ms + 1, Ordering::SeqCst);
    }

    /// The connection is lost, and with it the proof.
    pub(super) fn forget_proof(&self) {
        self.proof.store(0, Ordering::SeqCst);
    }

    /// How long nothing cached could be served, over all times.
    pub fn blind_time(&self) -> Duration {
        let blind = self.blind.lock().unwrap_or_else(PoisonError::into_inner);
        let present = blind
            .since
            .map(|since| self.clock.elapsed().saturating_sub(since));
        blind.before + present.unwrap_or_default()
    }
}

impl Default for ListenerStatus {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(1);

    #[test]
    fn hits_need_a_live_listener_and_a_proof_within_the_lease() {
        let status = ListenerStatus::new();
        assert!(!status.is_fresh(LEASE));
        status.set_state(ListenerState::Live);
        assert!(!status.is_fresh(LEASE), "no proof yet");
        status.prove(status.now_ms());
        assert!(status.is_fresh(LEASE));
        assert!(!status.is_fresh(Duration::ZERO), "older than the lease");
        status.set_state(ListenerState::Suspect);
        assert!(!status.is_fresh(LEASE));
        status.set_state(ListenerState::Live);
        status.forget_proof();
        assert!(!status.is_fresh(LEASE));
    }

    #[test]
    fn a_proof_lies_never_in_the_future_and_never_goes_back() {
        let status = ListenerStatus::new();
        std::thread::sleep(Duration::from_millis(20));
        status.prove(u64::MAX - 1);
        let age = status.proof_age().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(status.proof_age().unwrap() >= age + Duration::from_millis(19));
        let age = status.proof_age().unwrap();
        status.prove(0);
        assert!(status.proof_age().unwrap() < age + Duration::from_millis(10));
    }

    #[test]
    fn blind_time_stands_still_while_live() {
        let status = ListenerStatus::new();
        status.set_state(ListenerState::Live);
        let blind = status.blind_time();
        assert_eq!(status.blind_time(), blind);
        status.set_state(ListenerState::Connecting);
        std::thread::sleep(Duration::from_millis(2));
        assert!(status.blind_time() > blind);
    }
}
