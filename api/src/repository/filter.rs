//! Which orders a list has, and the query that finds them.

use chrono::{DateTime, Utc};
use diesel::dsl::{IntoBoxed, sql};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
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
    /// Only orders whose phone has exactly these digits. Whatever else is in a phone does not count.
    pub phone_digits: Option<String>,
    /// Only orders with this e-mail, whose letters A to Z are in lower case.
    pub email: Option<String>,
    /// Only orders whose id begins with this text.
    pub order_uid_prefix: Option<String>,
    /// Only orders whose track number begins with this text.
    pub track_number_prefix: Option<String>,
}

impl OrderFilter {
    /// Returns whether the filter is on personal data.
    pub fn is_of_person(&self) -> bool {
        self.phone_digits.is_some() || self.email.is_some()
    }
}

/// The digits of a phone, as `orders_person_idx` has them.
const HAS_PHONE_DIGITS: &str =
    "translate(delivery_phone COLLATE \"C\", translate(delivery_phone, '0123456789', ''), '') = ";
/// The same for the e-mail.
const HAS_EMAIL: &str = "lower(delivery_email COLLATE \"C\") = ";

/// What PostgreSQL should know when it plans how to find a person's orders. It believes that `orders_person_idx` finds them in all
/// ranges of the table, because they are in no order there, and that reading the whole table is no dearer. Compiling the
/// plan or starting parallel workers, which such an estimate leads to, takes longer than the search.
const FIND_BY_INDEX: &str = "SET LOCAL enable_seqscan = off; SET LOCAL jit = off; \
                             SET LOCAL max_parallel_workers_per_gather = 0";

/// Prepares a transaction for the queries of a filter.
pub(super) async fn prepare_for(
    filter: &OrderFilter,
    connection: &mut AsyncPgConnection,
) -> QueryResult<()> {
    if filter.is_of_person() {
        connection.batch_execute(FIND_BY_INDEX).await?;
    }
    Ok(())
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
    // diesel prepares the following ones anew each time, because it does not know their text. They need that: the right plan
    // depends on how many orders have a prefix.
    for (condition, value) in [
        (HAS_PHONE_DIGITS, &filter.phone_digits),
        (HAS_EMAIL, &filter.email),
        ("order_uid >= ", &filter.order_uid_prefix),
        ("track_number >= ", &filter.track_number_prefix),
    ] {
        if let Some(value) = value {
            query = query.filter(sql::<Bool>(condition).bind::<Text, _>(value));
        }
    }
    for (condition, prefix) in [
        ("order_uid < ", &filter.order_uid_prefix),
        ("track_number < ", &filter.track_number_prefix),
    ] {
        if let Some(end) = prefix.as_deref().and_then(prefix_end) {
            query = query.filter(sql::<Bool>(condition).bind::<Text, _>(end));
        }
    }
    query
}

/// Returns the first text behind all texts that begin with `prefix`, by the order of their bytes, which is that of their code
/// points. `None` if there is no such text.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars = prefix.chars();
    while let Some(last) = chars.next_back() {
        // The range leaves out what is no character.
        if let Some(next) = (last..=char::MAX).nth(1) {
            return Some([chars.as_str(), next.encode_utf8(&mut [0; 4])].concat());
        }
    }
    None
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
    use diesel::query_builder::{QueryFragment, QueryId};
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

    fn plan_of(query: impl QueryFragment<Pg> + QueryId, connection: &mut PgConnection) -> String {
        let options = "COSTS OFF";
        let explain = Explain { options, query };
        let plan: Vec<String> = diesel::RunQueryDsl::load(explain, connection).unwrap();
        plan.join("\n")
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
                ..OrderFilter::default()
            };
            let query = matching(&filter, has(4).then_some(&position)).limit(51);
            let plan = plan_of(query, connection);
            let lines: Vec<_> = plan.lines().map(str::trim_start).collect();
            let indexes = match (has(0), has(1)) {
                (false, false) => &["orders_newest_idx"][..],
                (true, false) => &["orders_customer_idx"],
                (false, true) => &["orders_track_number_idx"],
                (true, true) => &["orders_customer_idx", "orders_track_number_idx"],
            };
            let is_right = indexes.iter().any(|index| walks(&lines, index));
            assert!(is_right, "{filter:?}:\n{plan}");
        }
    }

    #[test]
    fn searches_use_an_index_and_sort_few_orders() {
        let database = TestDatabase::create();
        let connection = &mut database.connect();
        fill(connection);
        // As on a table that is large enough for parallel workers.
        let as_if_large = [
            "RESET ALL",
            "SET parallel_setup_cost = 0",
            "SET parallel_tuple_cost = 0",
            "SET min_parallel_table_scan_size = 0",
            "SET random_page_cost = 0",
            "SET seq_page_cost = 0",
        ];
        let for_the_session = FIND_BY_INDEX.replace("LOCAL ", "");
        for statement in as_if_large.into_iter().chain(for_the_session.split("; ")) {
            let statement = diesel::sql_query(statement);
            diesel::RunQueryDsl::execute(statement, connection).unwrap();
        }
        let none = OrderFilter::default;
        let text = |value: &str| Some(value.to_owned());
        let position = ("2021-11-28T18:00:00Z".parse().unwrap(), "copy-1".to_owned());
        for (filter, index) in [
            (
                OrderFilter {
                    phone_digits: text("9720000000"),
                    ..none()
                },
                "orders_newest_idx",
            ),
            (
                OrderFilter {
                    phone_digits: text("123456"),
                    ..none()
                },
                "orders_person_idx",
            ),
            (
                OrderFilter {
                    email: text("test@gmail.com"),
                    ..none()
                },
                "orders_newest_idx",
            ),
            (
                OrderFilter {
                    email: text("absent"),
                    ..none()
                },
                "orders_person_idx",
            ),
            (
                OrderFilter {
                    order_uid_prefix: text("copy-1234"),
                    ..none()
                },
                "orders_pkey",
            ),
            (
                OrderFilter {
                    order_uid_prefix: text("cop"),
                    ..none()
                },
                "orders_newest_idx",
            ),
            (
                OrderFilter {
                    track_number_prefix: text("WBILM"),
                    ..none()
                },
                "orders_track_number_idx",
            ),
            (
                OrderFilter {
                    track_number_prefix: text("tra"),
                    ..none()
                },
                "orders_newest_idx",
            ),
        ] {
            for after in [None, Some(&position)] {
                let plan = plan_of(matching(&filter, after).limit(51), connection);
                assert!(plan.contains(index), "{filter:?}:\n{plan}");
                // Nearly all orders have this phone and this e-mail, or begin so.
                let is_common = index == "orders_newest_idx";
                let sorts_all = plan.contains("->  Sort") && is_common;
                assert!(!sorts_all, "{filter:?}:\n{plan}");
                let is_of_person = filter.is_of_person();
                assert!(
                    !(is_of_person && plan.contains("Gather")),
                    "{filter:?}:\n{plan}"
                );
            }
        }
    }

    #[test]
    fn end_of_a_prefix_is_behind_all_that_begin_with_it() {
        for (prefix, end) in [
            ("abc", Some("abd")),
            ("az", Some("a{")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
            ("", None),
        ] {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
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
