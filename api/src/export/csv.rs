//! Orders as comma-separated values (RFC 4180), with a row for each item. Columns are named by the paths of the JSON.
//!
//! Spreadsheets take a cell that begins with certain characters for a formula, and would run what a stranger has ordered. Such a
//! text gets an apostrophe in front, by which spreadsheets tell texts. A phone that begins with `+` has it, too.

use shared::order::{Item, Order, format_utc};

use crate::repository::{OrderSummary, View};

/// What a formula begins with. Some programs skip tabs and line breaks before it, and some take the full-width forms of the
/// signs for the signs themselves (OWASP, CSV Injection).
const FORMULA_BEGINNINGS: [char; 11] = [
    '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
];

/// A row that is being written.
struct Row<'a> {
    text: &'a mut Vec<u8>,
    is_begun: bool,
}

impl<'a> Row<'a> {
    fn new(text: &'a mut Vec<u8>) -> Self {
        let is_begun = false;
        Self { text, is_begun }
    }

    fn cell(&mut self, value: &str) {
        if self.is_begun {
            self.text.push(b',');
        }
        self.is_begun = true;
        if value.contains([',', '"', '\r', '\n']) {
            let quoted = ["\"", &value.replace('"', "\"\""), "\""].concat();
            self.text.extend_from_slice(quoted.as_bytes());
        } else {
            self.text.extend_from_slice(value.as_bytes());
        }
    }

    fn text(&mut self, value: &str) {
        if value.starts_with(FORMULA_BEGINNINGS) {
            self.cell(&["'", value].concat());
        } else {
            self.cell(value);
        }
    }

    /// Numbers of orders are never negative, so none can be taken for a formula.
    fn number(&mut self, value: i64) {
        self.cell(&value.to_string());
    }

    fn end(self) {
        self.text.extend_from_slice(b"\r\n");
    }
}

type ItemColumn = (&'static str, fn(&mut Row<'_>, &Order, &Item));
type SummaryColumn = (&'static str, fn(&mut Row<'_>, &OrderSummary));

#[rustfmt::skip] // One line per column.
const ITEM_COLUMNS: [ItemColumn; 39] = [
    ("order_uid", |row, order, _| row.text(order.order_uid.as_str())),
    ("track_number", |row, order, _| row.text(&order.track_number)),
    ("entry", |row, order, _| row.text(&order.entry)),
    ("delivery.name", |row, order, _| row.text(&order.delivery.name)),
    ("delivery.phone", |row, order, _| row.text(&order.delivery.phone)),
    ("delivery.zip", |row, order, _| row.text(&order.delivery.zip)),
    ("delivery.city", |row, order, _| row.text(&order.delivery.city)),
    ("delivery.address", |row, order, _| row.text(&order.delivery.address)),
    ("delivery.region", |row, order, _| row.text(&order.delivery.region)),
    ("delivery.email", |row, order, _| row.text(&order.delivery.email)),
    ("payment.transaction", |row, order, _| row.text(&order.payment.transaction)),
    ("payment.request_id", |row, order, _| row.text(&order.payment.request_id)),
    ("payment.currency", |row, order, _| row.text(&order.payment.currency)),
    ("payment.provider", |row, order, _| row.text(&order.payment.provider)),
    ("payment.amount", |row, order, _| row.number(order.payment.amount)),
    ("payment.payment_dt", |row, order, _| row.number(order.payment.payment_dt)),
    ("payment.bank", |row, order, _| row.text(&order.payment.bank)),
    ("payment.delivery_cost", |row, order, _| row.number(order.payment.delivery_cost)),
    ("payment.goods_total", |row, order, _| row.number(order.payment.goods_total)),
    ("payment.custom_fee", |row, order, _| row.number(order.payment.custom_fee)),
    ("item.chrt_id", |row, _, item| row.number(item.chrt_id)),
    ("item.track_number", |row, _, item| row.text(&item.track_number)),
    ("item.price", |row, _, item| row.number(item.price)),
    ("item.rid", |row, _, item| row.text(&item.rid)),
    ("item.name", |row, _, item| row.text(&item.name)),
    ("item.sale", |row, _, item| row.number(item.sale.into())),
    ("item.size", |row, _, item| row.text(&item.size)),
    ("item.total_price", |row, _, item| row.number(item.total_price)),
    ("item.nm_id", |row, _, item| row.number(item.nm_id)),
    ("item.brand", |row, _, item| row.text(&item.brand)),
    ("item.status", |row, _, item| row.number(item.status)),
    ("locale", |row, order, _| row.text(&order.locale)),
    ("internal_signature", |row, order, _| row.text(&order.internal_signature)),
    ("customer_id", |row, order, _| row.text(&order.customer_id)),
    ("delivery_service", |row, order, _| row.text(&order.delivery_service)),
    ("shardkey", |row, order, _| row.text(&order.shardkey)),
    ("sm_id", |row, order, _| row.number(order.sm_id)),
    ("date_created", |row, order, _| row.text(&format_utc(&order.date_created))),
    ("oof_shard", |row, order, _| row.text(&order.oof_shard)),
];

#[rustfmt::skip] // One line per column.
const SUMMARY_COLUMNS: [SummaryColumn; 8] = [
    ("order_uid", |row, summary| row.text(&summary.order_uid)),
    ("track_number", |row, summary| row.text(&summary.track_number)),
    ("customer_id", |row, summary| row.text(&summary.customer_id)),
    ("date_created", |row, summary| row.text(&format_utc(&summary.date_created))),
    // At most 1,000.
    ("items_count", |row, summary| row.number(summary.items_count as i64)),
    ("amount", |row, summary| row.number(summary.amount)),
    ("currency", |row, summary| row.text(&summary.currency)),
    ("etag", |row, summary| row.text(&summary.etag)),
];

/// Writes the names of the columns.
pub(super) fn write_header(view: View, text: &mut Vec<u8>) {
    let mut row = Row::new(text);
    match view {
        View::Whole => ITEM_COLUMNS.iter().for_each(|(name, _)| row.cell(name)),
        View::Summary => SUMMARY_COLUMNS.iter().for_each(|(name, _)| row.cell(name)),
    }
    row.end();
}

/// Writes the row of an item, which has the fields of its order, too.
pub(super) fn write_item(order: &Order, item: &Item, text: &mut Vec<u8>) {
    let mut row = Row::new(text);
    for (_, write) in ITEM_COLUMNS {
        write(&mut row, order, item);
    }
    row.end();
}

/// Writes the row of a summary.
pub(super) fn write_summary(summary: &OrderSummary, text: &mut Vec<u8>) {
    let mut row = Row::new(text);
    for (_, write) in SUMMARY_COLUMNS {
        write(&mut row, summary);
    }
    row.end();
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use shared::testing::model_json;

    use super::*;

    #[test]
    fn cells_are_quoted_as_needed_and_guarded_against_formulas() {
        for (value, cell) in [
            ("", ""),
            ("plain", "plain"),
            ("a b ", "a b "),
            ("a,b", "\"a,b\""),
            ("a\"b\"", "\"a\"\"b\"\"\""),
            ("a\nb", "\"a\nb\""),
            ("a\r\nb", "\"a\r\nb\""),
            ("=1+1", "'=1+1"),
            ("\n=1+1", "\"'\n=1+1\""),
            ("\u{ff1d}1+1", "'\u{ff1d}1+1"),
            ("+49 30", "'+49 30"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            (
                "=cmd|'/c calc'!A0,\"x\"",
                "\"'=cmd|'/c calc'!A0,\"\"x\"\"\"",
            ),
            ("a=1", "a=1"),
            ("'=1", "'=1"),
        ] {
            let mut text = Vec::new();
            let mut row = Row::new(&mut text);
            row.text("first");
            row.text(value);
            row.number(7);
            row.end();
            let expected = ["first,", cell, ",7\r\n"].concat();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }

    #[test]
    fn columns_are_the_paths_of_the_json() {
        let order: Value = serde_json::from_str(model_json()).unwrap();
        let mut paths = Vec::new();
        for (name, value) in order.as_object().unwrap() {
            let (prefix, members) = match value {
                Value::Object(members) => (name.as_str(), members),
                Value::Array(items) => ("item", items[0].as_object().unwrap()),
                _ => {
                    paths.push(name.clone());
                    continue;
                }
            };
            paths.extend(members.keys().map(|member| format!("{prefix}.{member}")));
        }
        let mut columns = ITEM_COLUMNS.map(|(name, _)| name);
        columns.sort_unstable();
        paths.sort_unstable();
        assert_eq!(columns, *paths);
    }
}
