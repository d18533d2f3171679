//! The listener's state, which every reader checks and operators see.
//!
//! Only the listener writes it. The clock is kept here, so that the core needs none.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::clock::Clock;
use super::counters::Count;

/// What the listener is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// The process waits for the database or its schema.
    Starting,
    /// The listener connects, or waits before it tries again.
    Connecting,
    /// The listener is connected, and waits for LISTEN or the first proof.
    Subscribing,
    /// There is a proof. New and verified entries are served; the others are being verified.
    Syncing,
    /// There is a proof, and every entry is verified.
    Live,
    /// The listener is connected, but the proof is older than the lease.
    Suspect,
}

impl ListenerState {
    /// All states in the order of their numbers, with their names in statistics and metrics.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Starting, "starting"),
        (Self::Connecting, "connecting"),
        (Self::Subscribing, "subscribing"),
        (Self::Syncing, "syncing"),
        (Self::Live, "live"),
        (Self::Suspect, "suspect"),
    ];

    /// Whether hits are served in this state.
    pub(super) fn serves(self) -> bool {
        matches!(self, Self::Syncing | Self::Live)
    }

    /// Returns the state's name in statistics and metrics.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// State, proof and counters of the listener.
#[derive(Debug)]
pub struct ListenerStatus {
    clock: Clock,
    /// The age that the proof must stay below for hits to be served.
    pub lease: Duration,
    state: AtomicU8,
    /// The time of the newest proof by `clock`, in milliseconds, plus one. 0 means that there is no proof.
    proof: AtomicU64,
    blind: Mutex<BlindTime>,
    /// Connections that were lost.
    pub reconnects: Count,
    /// Notifications of writers.
    pub events: Count,
    /// Notifications that were not understood.
    pub malformed: Count,
    /// How often every entry was dropped at once.
    pub flushes: Count,
}

/// For how long nothing cached could be served.
#[derive(Debug)]
struct BlindTime {
    now: Sight,
    /// The sum of all earlier blind times.
    before: Duration,
}

/// Since when hits are served, or are not, by the status's clock. While they are served, the lease may still run out.
#[derive(Clone, Copy, Debug)]
enum Sight {
    Blind(Duration),
    Serving(Duration),
}

impl ListenerStatus {
    /// Starts the clock. There is no proof yet.
    pub fn new(lease: Duration) -> Self {
        Self {
            clock: Clock::start(),
            lease,
            state: AtomicU8::new(ListenerState::Starting as u8),
            proof: AtomicU64::new(0),
            blind: Mutex::new(BlindTime {
                now: Sight::Blind(Duration::ZERO),
                before: Duration::ZERO,
            }),
            reconnects: Count::default(),
            events: Count::default(),
            malformed: Count::default(),
            flushes: Count::default(),
        }
    }

    /// Returns what the listener is doing.
    pub fn state(&self) -> ListenerState {
        ListenerState::ALL[usize::from(self.state.load(Ordering::SeqCst))].0
    }

    pub(super) fn set_state(&self, state: ListenerState) {
        let mut blind = self.blind.lock();
        self.state.store(state as u8, Ordering::SeqCst);
        let now = self.clock.elapsed();
        match (state.serves(), blind.now) {
            (true, Sight::Blind(since)) => {
                blind.before += now.saturating_sub(since);
                blind.now = Sight::Serving(now);
            }
            (true, Sight::Serving(_)) | (false, Sight::Blind(_)) => {}
            (false, Sight::Serving(since)) => {
                blind.now = Sight::Blind(now.min(self.lease_end(since)));
            }
        }
    }

    /// Returns whether hits may be served: whether the listener is in a state that serves and its proof is younger than the
    /// lease.
    pub fn is_fresh(&self) -> bool {
        self.fresh_proof_age().is_some()
    }

    /// Returns the age of the proof if hits may be served because of it; see [`Self::is_fresh`].
    pub fn fresh_proof_age(&self) -> Option<Duration> {
        if !self.state().serves() {
            return None;
        }
        self.proof_age().filter(|age| *age < self.lease)
    }

    /// Returns the time since the last moment of which it is proven that the listener has seen every earlier commit.
    pub fn proof_age(&self) -> Option<Duration> {
        let proven = self.proven()?;
        Some(self.clock.elapsed().saturating_sub(proven))
    }

    /// The time of the newest proof.
    fn proven(&self) -> Option<Duration> {
        let proof_ms = self.proof.load(Ordering::SeqCst).checked_sub(1)?;
        Some(Duration::from_millis(proof_ms))
    }

    /// When the lease runs out, or has run out, for hits that are served since `since`.
    fn lease_end(&self, since: Duration) -> Duration {
        let end = self.proven().map(|proven| proven + self.lease);
        end.unwrap_or_default().max(since)
    }

    /// The present time in milliseconds, for a heartbeat to carry; see [`Self::prove`].
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// Renews the proof, because a heartbeat has returned that was sent at `sent_ms`. The queue of notifications is in the order
    /// of commits, so the listener has seen every commit from before that moment.
    pub(super) fn prove(&self, sent_ms: u64) {
        let mut blind = self.blind.lock();
        if let Sight::Serving(since) = blind.now {
            // The lease may have run out before anybody noticed, for example while the whole process stood still.
            let now = self.clock.elapsed();
            blind.before += now.saturating_sub(self.lease_end(since));
            blind.now = Sight::Serving(now);
        }
        let sent_ms = sent_ms.min(self.now_ms());
        self.proof.fetch_max(sent_ms + 1, Ordering::SeqCst);
    }

    /// Drops the proof, because the connection is lost.
    pub(super) fn forget_proof(&self) {
        self.proof.store(0, Ordering::SeqCst);
    }

    /// Returns for how long in all nothing cached could be served.
    pub fn blind_time(&self) -> Duration {
        let blind = self.blind.lock();
        let present_since = match blind.now {
            Sight::Blind(since) => since,
            Sight::Serving(since) => self.lease_end(since),
        };
        blind.before + self.clock.elapsed().saturating_sub(present_since)
    }
}

#[cfg(test)]
mod tests {
    use shared::testing::wait_until;

    use super::*;

    const LEASE: Duration = Duration::from_secs(1);

    #[test]
    fn hits_need_a_live_listener_and_a_proof_within_the_lease() {
        let status = ListenerStatus::new(LEASE);
        assert!(!status.is_fresh());
        status.set_state(ListenerState::Live);
        assert!(!status.is_fresh(), "no proof yet");
        status.prove(status.now_ms());
        assert!(status.is_fresh());
        status.set_state(ListenerState::Suspect);
        assert!(!status.is_fresh());
        status.set_state(ListenerState::Live);
        status.forget_proof();
        assert!(!status.is_fresh());
    }

    #[test]
    fn proof_is_never_in_the_future_and_never_goes_back() {
        let status = ListenerStatus::new(LEASE);
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
    fn time_after_the_lease_counts_as_blind_although_nobody_noticed() {
        let status = ListenerStatus::new(Duration::ZERO);
        status.prove(status.now_ms());
        status.set_state(ListenerState::Live);
        assert!(!status.is_fresh(), "older than the lease");
        let blind = status.blind_time();
        wait_until("the blind time grows", LEASE, || {
            status.blind_time() >= blind + Duration::from_millis(19)
        });
        let later = status.blind_time();
        status.prove(status.now_ms());
        assert!(status.blind_time() >= later);
        status.set_state(ListenerState::Suspect);
        assert!(status.blind_time() >= later);
    }

    #[test]
    fn blind_time_stands_still_while_live() {
        let status = ListenerStatus::new(LEASE);
        status.prove(status.now_ms());
        status.set_state(ListenerState::Live);
        let blind = status.blind_time();
        assert_eq!(status.blind_time(), blind);
        status.set_state(ListenerState::Connecting);
        std::thread::sleep(Duration::from_millis(2));
        assert!(status.blind_time() > blind);
    }
}
