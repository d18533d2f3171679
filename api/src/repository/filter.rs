//! Which orders a list has, and the query that finds them.

use chrono::{DateTime, Utc};
use diesel::dsl::IntoBoxed;
use diesel::pg::Pg;
use diesel::prelude::*;
use shared::db::schema::orders;

use super::{Position, older_than};

/// Which orders to list. A field that is `None` does not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderFilter {
    /// Only orders of this customer.
    pub customer_id: Option<String>,
    /// Only orders with this track number.
    pub track_number: Option<String>,
    /// Only orders that were created at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only orders that were created before this time.
    pub to: Option<DateTime<Utc>>,
}

pub(super) type OrderQuery<'a> = IntoBoxed<'a, orders::table, Pg>;

/// The orders that match the filter, in no order.
pub(super) fn filtered(filter: &OrderFilter) -> OrderQuery<'_> {
    let mut query = orders::table.into_boxed();
    if let Some(customer_id) = &filter.customer_id {
        query = query.filter(orders::customer_id.eq(customer_id));
    }
    if let Some(track_number) = &filter.track_number {
        query = query.filter(orders::track_number.eq(track_number));
    }
    if let Some(from) = filter.from {
        query = query.filter(orders::date_created.ge(from));
    }
    if let Some(to) = filter.to {
        query = query.filter(orders::date_created.lt(to));
    }
    query
}

/// The orders that match the filter, newest first: those behind `after`, or the newest of all.
pub(super) fn matching<'a>(filter: &'a OrderFilter, after: Option<&Position>) -> OrderQuery<'a> {
    let mut query = filtered(filter).order((orders::date_created.desc(), orders::order_uid.desc()));
    // A position that is not older than `to` excludes nothing more. It is left out: otherwise PostgreSQL would enter the index
    // there, and read every order between the two in vain.
    if let Some(position) = after.filter(|(date, _)| filter.to.is_none_or(|to| *date < to)) {
        query = query.filter(older_than(position));
    }
    query
}

#[cfg(test)]
mod tests {
    use shared::db::models::NewOrder;
    use shared::order::Order;
    use shared::testing::{TestDatabase, model_json};

    use super::*;
    use crate::repository::explain::Explain;

    fn fill(connection: &mut PgConnection) {
        let model = Order::decode(model_json().as_bytes()).unwrap();
        let insert = diesel::insert_into(orders::table).values(NewOrder::new(&model, None));
        diesel::RunQueryDsl::execute(insert, connection).unwrap();
        // Many customers and track numbers, each within a short time: every index but the right one is slow.
        let copies = "INSERT INTO orders SELECT copied.* FROM orders, generate_series(1, 20000) number, \
             LATERAL jsonb_populate_record(orders, jsonb_build_object( \
                 'order_uid', 'copy-' || number, 'date_created', date_created + number * interval '1 minute', \
                 'customer_id', 'customer-' || number / 1000, 'track_number', 'track-' || number / 500, \
                 'version', nextval('order_version_seq'))) copied";
        // For a few orders sorting can be cheaper. The test is about whether it is ever needed.
        let settings = "SELECT set_config(name, 'off', false) \
                        FROM (VALUES ('enable_sort'), ('enable_bitmapscan')) settings (name)";
        for statement in [copies, "ANALYZE orders", settings] {
            let statement = diesel::sql_query(statement);
            diesel::RunQueryDsl::execute(statement, connection).unwrap();
        }
    }

    #[test]
    fn every_combination_of_filters_walks_an_index_in_the_order_of_the_list() {
        let database = TestDatabase::create();
        let connection = &mut database.connect();
        fill(connection);
        let time = |text: &str| Some(text.parse().unwrap());
        let position = (time("2021-11-28T18:00:00Z").unwrap(), "copy-1".to_owned());
        for bits in 0..32 {
            let has = |bit: u32| bits & (1 << bit) != 0;
            let filter = OrderFilter {
                customer_id: has(0).then(|| "customer-3".into()),
                track_number: has(1).then(|| "track-7".into()),
                from: time("2021-11-28T12:00:00Z").filter(|_| has(2)),
                to: time("2021-11-28T20:00:00Z").filter(|_| has(3)),
            };
            let query = matching(&filter, has(4).then_some(&position)).limit(51);
            let explain = Explain {
                options: "COSTS OFF",
                query,
            };
            let plan: Vec<String> = diesel::RunQueryDsl::load(explain, connection).unwrap();
            let lines: Vec<_> = plan.iter().map(|line| line.trim_start()).collect();
            let indexes = match (has(0), has(1)) {
                (false, false) => &["orders_newest_idx"][..],
                (true, false) => &["orders_customer_idx"],
                (false, true) => &["orders_track_number_idx"],
                (true, true) => &["orders_customer_idx", "orders_track_number_idx"],
            };
            let is_right = indexes.iter().any(|index| walks(&lines, index));
            assert!(is_right, "{filter:?}:\n{}", plan.join("\n"));
        }
    }

    #[test]
    fn position_newer_than_the_end_of_the_filter_is_left_out() {
        let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let filter = OrderFilter {
            to: Some(time("2021-11-28T20:00:00Z")),
            ..OrderFilter::default()
        };
        for (date_created, counts) in [
            ("2021-11-28T19:59:59Z", true),
            ("2021-11-28T20:00:00Z", false),
        ] {
            let position = (time(date_created), "copy-1".to_owned());
            let text = diesel::debug_query(&matching(&filter, Some(&position))).to_string();
            assert_eq!(
                text.contains("(date_created, order_uid) <"),
                counts,
                "{text}"
            );
        }
    }

    /// Whether the plan walks the index in order, and reads no order that the times exclude.
    fn walks(lines: &[&str], index: &str) -> bool {
        let scan = ["->  Index Scan Backward using ", index, " on orders"].concat();
        let reads_in_vain = |line: &&str| line.starts_with("Filter:") && line.contains("date");
        lines[1] == scan && !lines.iter().any(reads_in_vain)
    }
}
