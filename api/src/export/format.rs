//! The formats of exports.

use super::PAGE_BYTES;
use super::csv;
use crate::repository::{Content, View};

/// The format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An order per line, as JSON.
    Ndjson,
    /// For spreadsheets: a row per item, or a row per summary.
    Csv,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Ndjson, Self::Csv];

    /// Returns the media type, by which clients ask for the format.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => self.media_type(),
            // Without the charset, programs may take the text for ASCII (RFC 7111, section 5.1).
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    /// Returns what precedes the orders.
    pub(super) fn beginning(self, view: View) -> Vec<u8> {
        let mut text = Vec::new();
        if self == Self::Csv {
            csv::write_header(view, &mut text);
        }
        text
    }

    /// Writes an order, or the rest of it from an item on. A large order may fill the page before its end; then this returns the
    /// item that comes next.
    pub(super) fn write(
        self,
        order: &Content,
        first_item: usize,
        text: &mut Vec<u8>,
    ) -> Option<usize> {
        match (self, order) {
            (Self::Ndjson, order) => {
                serde_json::to_writer(&mut *text, order).expect(
                    "an order has only string keys, and serialising its fields cannot fail",
                );
                text.push(b'\n');
            }
            (Self::Csv, Content::Summary(summary)) => csv::write_summary(summary, text),
            (Self::Csv, Content::Whole(order)) => {
                for (index, item) in order.items.iter().enumerate().skip(first_item) {
                    if index > first_item && text.len() >= PAGE_BYTES {
                        return Some(index);
                    }
                    csv::write_item(order, item, text);
                }
            }
        }
        None
    }
}
