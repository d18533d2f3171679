//! What can be wrong with an order.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// One thing that is wrong with an order, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// JSON pointer (RFC 6901) to the field; empty for the whole document.
    pub pointer: String,
    /// What the field must be. It never quotes the value, because orders hold personal data.
    pub detail: Cow<'static, str>,
}

impl Fault {
    /// A fault of the document as a whole.
    pub(super) fn of_document(detail: String) -> Self {
        Self {
            pointer: String::new(),
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pointer = if self.pointer.is_empty() {
            "the document"
        } else {
            &self.pointer
        };
        write!(formatter, "{pointer}: {}", self.detail)
    }
}

/// All faults in one line, as people read them.
pub(super) fn list(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(Fault::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
