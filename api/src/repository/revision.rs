//! What names a state of an order for ever: its version, and the history of the database that holds it.

use std::fmt;
use std::str::FromStr;

use shared::db::HistoryId;

/// A state of an order. Equal revisions mean equal content.
///
/// As text it is the content of an `ETag`: the version, a hyphen, and the history as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// The version of the order. Within a history it is never used twice.
    pub version: i64,
    /// The history of the database.
    pub history: HistoryId,
}

impl Revision {
    /// Returns the `ETag`: the revision in quotes.
    pub fn etag(self) -> String {
        format!("\"{self}\"")
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            history: HistoryId(history),
        } = self;
        write!(formatter, "{version}-{history:016x}")
    }
}

/// The text is not one that [`Revision`] writes.
#[derive(Debug, thiserror::Error)]
#[error("not a revision")]
pub struct NotARevision;

impl FromStr for Revision {
    type Err = NotARevision;

    fn from_str(text: &str) -> Result<Self, NotARevision> {
        let (version, history) = text.split_once('-').ok_or(NotARevision)?;
        let version = version.parse().map_err(|_| NotARevision)?;
        let history = u64::from_str_radix(history, 16).map_err(|_| NotARevision)?;
        let revision = Self {
            version,
            history: HistoryId(history),
        };
        // Only the spelling that we send counts. The parsers would also accept "+7" and "07".
        if revision.to_string() == text {
            Ok(revision)
        } else {
            Err(NotARevision)
        }
    }
}
