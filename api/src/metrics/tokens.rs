//! The metrics of the tokens.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::register;

/// The metrics of the tokens; clones share them.
#[derive(Clone, Debug)]
pub struct TokenMetrics {
    in_force: Gauge,
    is_file_bad: Gauge,
    reloads: Counter,
}

impl TokenMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let help = "1 while the file of tokens cannot be used and the former tokens stay in force";
        Self {
            in_force: register(registry, "tokens", "Tokens in force"),
            is_file_bad: register(registry, "tokens_file_bad", help),
            reloads: register(registry, "tokens_reloads", "Changes of the tokens in force"),
        }
    }

    /// Records the number of tokens after a start.
    pub fn loaded(&self, count: usize) {
        self.in_force.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Records that other tokens are in force now.
    pub fn reloaded(&self, count: usize) {
        self.loaded(count);
        self.reloads.inc();
    }

    /// Records whether the file of tokens could be used.
    pub fn file_is_bad(&self, is_bad: bool) {
        self.is_file_bad.set(is_bad.into());
    }
}
