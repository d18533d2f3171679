//! What the core and those who call it tell each other.

use compact_str::CompactString;

/// A value that tells an order's states apart: of two, the newer has the higher version.
pub trait Versioned {
    /// The version.
    fn version(&self) -> i64;
}

/// The duty to end a load.
#[derive(Debug)]
pub struct Ticket(pub(super) CompactString);

impl Ticket {
    /// The key to load.
    pub fn uid(&self) -> &str {
        &self.0
    }
}

/// What a reader has to do.
#[derive(Debug)]
pub enum Lookup<V, W, S> {
    /// Answer with this value.
    Hit(V),
    /// Answer that there is no such order.
    Missing,
    /// Wait for a load that another reader began or waits for.
    Join(W),
    /// Wait for the load that begins when the one that runs has ended.
    Next(W),
    /// Begin the load now.
    Load(Ticket, S),
    /// Ask the database; store nothing, share nothing.
    Bypass,
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// What is cached, while it is proven.
    Proven,
    /// Only what the database says after this moment.
    Database,
}

/// What a load brought.
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
    /// Whether its result was stored.
    pub is_stored: bool,
    /// The load to begin now.
    pub next: Option<(Ticket, S)>,
}

/// Where a new entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// As the most recently used: somebody asked for it.
    Hot,
    /// As the least recently used, and only where there is room: nobody asked yet.
    Cold,
}
