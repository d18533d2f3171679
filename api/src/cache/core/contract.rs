//! The types by which the core and its callers talk to each other.

use compact_str::CompactString;

/// A value with a version. Within a history, two states of an order have different versions.
pub trait Versioned {
    /// Returns the version.
    fn version(&self) -> i64;
}

/// The duty to end a load: whoever holds it must call [`Core::complete`](super::Core::complete).
#[derive(Debug)]
pub struct Ticket(pub(super) CompactString);

impl Ticket {
    /// Returns the key to load.
    pub fn uid(&self) -> &str {
        &self.0
    }
}

/// What a reader has to do.
#[derive(Debug)]
pub enum Lookup<V, W, S> {
    /// The reader answers with this value.
    Hit(V),
    /// The reader answers that there is no such order.
    Missing,
    /// The reader waits for a load that another reader began or waits for.
    Join(W),
    /// The reader waits for the load that begins when the present one has ended.
    Next(W),
    /// The reader begins the load now.
    Load(Ticket, S),
    /// The reader asks the database itself. It stores nothing and shares nothing.
    Bypass,
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// A cached answer, while the listener's proof is fresh.
    Proven,
    /// Only an answer that the database gives after this moment.
    Database,
}

/// The result of a load.
#[derive(Debug)]
pub enum Loaded<V> {
    /// The value and its weight in bytes.
    Found(V, usize),
    /// There is no such order.
    NotFound,
    /// The database gave no answer.
    Failed,
}

impl<V: Versioned> Loaded<V> {
    pub(super) fn version(&self) -> Option<i64> {
        match self {
            Self::Found(value, _) => Some(value.version()),
            Self::NotFound | Self::Failed => None,
        }
    }
}

/// How a load ended.
#[derive(Debug)]
pub struct Completed<S> {
    /// What became of the result of the load.
    pub stored: Stored,
    /// The load that the caller must begin now.
    pub next: Option<(Ticket, S)>,
}

impl<S> Completed<S> {
    /// Returns whether the result of the load was stored.
    pub fn is_stored(&self) -> bool {
        self.stored == Stored::Yes
    }
}

/// What became of the result of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It was stored.
    Yes,
    /// There is nothing to store, or it may be older than what the listener has heard of.
    Discarded,
    /// There was no room: a cold entry pushes nothing out, and no entry may be heavier than the whole cache.
    NoRoom,
}

/// Where a new entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// To the most recently used entries, because somebody asked for it.
    Hot,
    /// To the least recently used entries, and only if there is room, because nobody asked for it yet.
    Cold,
}
