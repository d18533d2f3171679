//! An order as a list has it: whole, or as a summary.

use chrono::{DateTime, Utc};
use compact_str::CompactString;
use diesel::prelude::*;
use diesel::sql_types::Jsonb;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Serialize, Serializer};
use shared::db::HistoryId;
use shared::db::models::{OrderRow, ShortText, VersionedOrder};
use shared::db::schema::orders;
use shared::order::{Order, format_utc};

use super::filter::OrderQuery;
use super::{Position, Revision, StoreError, unreadable};

/// How much of each order a list has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// All of it.
    #[default]
    Whole,
    /// An [`OrderSummary`].
    Summary,
}

/// An order of a list.
#[derive(Debug)]
pub struct ListedOrder {
    /// What the list has of the order.
    pub content: Content,
    /// The revision that was read.
    pub revision: Revision,
}

/// What a list has of an order.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// The whole order.
    Whole(Box<Order>),
    /// Its summary.
    Summary(OrderSummary),
}

/// The summary of an order, without personal data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OrderSummary {
    /// The order's id.
    pub order_uid: CompactString,
    /// The parcel's tracking number.
    pub track_number: CompactString,
    /// The customer's id.
    pub customer_id: CompactString,
    /// When the shop created the order.
    #[serde(serialize_with = "serialize_utc")]
    pub date_created: DateTime<Utc>,
    /// The number of items.
    pub items_count: usize,
    /// The sum paid. It has no unit.
    pub amount: i64,
    /// The currency's code.
    pub currency: CompactString,
    /// What `ETag` is in an answer with the whole order.
    pub etag: String,
}

impl ListedOrder {
    /// Returns the order's id.
    pub fn order_uid(&self) -> &str {
        match &self.content {
            Content::Whole(order) => order.order_uid.as_str(),
            Content::Summary(summary) => &summary.order_uid,
        }
    }

    /// Returns the order's place in the list.
    pub fn position(&self) -> Position {
        let date_created = match &self.content {
            Content::Whole(order) => order.date_created,
            Content::Summary(summary) => summary.date_created,
        };
        (date_created, self.order_uid().to_owned())
    }

    fn whole(row: OrderRow, history: HistoryId) -> Result<Self, StoreError> {
        let VersionedOrder { order, version } =
            VersionedOrder::try_from(row).map_err(unreadable)?;
        Ok(Self {
            content: Content::Whole(Box::new(order)),
            revision: Revision { version, history },
        })
    }

    fn summary(row: SummaryRow, history: HistoryId) -> Self {
        let revision = Revision {
            version: row.version,
            history,
        };
        let summary = OrderSummary {
            order_uid: row.order_uid.into(),
            track_number: row.track_number.into(),
            customer_id: row.customer_id.into(),
            date_created: row.date_created,
            // The table has no order with fewer than one or more than a thousand.
            items_count: usize::try_from(row.items_count).unwrap_or_default(),
            amount: row.payment_amount,
            currency: row.payment_currency.into(),
            etag: revision.etag(),
        };
        Self {
            content: Content::Summary(summary),
            revision,
        }
    }
}

define_sql_function! {
    /// The number of elements of an array. The server counts the items, and sends none of them.
    fn jsonb_array_length(array: Jsonb) -> Integer;
}

/// The columns of a summary.
#[derive(Queryable, Selectable)]
#[diesel(table_name = orders, check_for_backend(diesel::pg::Pg))]
struct SummaryRow {
    order_uid: ShortText,
    track_number: ShortText,
    customer_id: ShortText,
    date_created: DateTime<Utc>,
    #[diesel(select_expression = jsonb_array_length(orders::items))]
    items_count: i32,
    payment_amount: i64,
    payment_currency: ShortText,
    version: i64,
}

/// The orders that a query finds, as they arrive. An order that cannot be read is an error of its own.
pub(super) type ListedOrders<'a> = BoxStream<'a, QueryResult<Result<ListedOrder, StoreError>>>;

/// Runs a query.
pub(super) async fn read_listed<'a>(
    query: OrderQuery<'a>,
    view: View,
    connection: &'a mut AsyncPgConnection,
    history: HistoryId,
) -> QueryResult<ListedOrders<'a>> {
    Ok(match view {
        View::Whole => {
            let query = query.select(OrderRow::as_select());
            let rows = query.load_stream::<OrderRow>(connection).await?;
            rows.map_ok(move |row| ListedOrder::whole(row, history))
                .boxed()
        }
        View::Summary => {
            let query = query.select(SummaryRow::as_select());
            let rows = query.load_stream::<SummaryRow>(connection).await?;
            rows.map_ok(move |row| Ok(ListedOrder::summary(row, history)))
                .boxed()
        }
    })
}

fn serialize_utc<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_utc(time))
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;
    use diesel::pg::Pg;

    use super::*;
    use crate::repository::filter::{OrderFilter, matching};

    #[test]
    fn neither_items_nor_personal_data_are_read_for_a_summary() {
        let filter = OrderFilter::default();
        let query = matching(&filter, None).select(SummaryRow::as_select());
        let text = debug_query::<Pg, _>(&query).to_string();
        let text = text.replace("jsonb_array_length(\"orders\".\"items\")", "");
        assert!(
            !text.contains("items") && !text.contains("delivery"),
            "{text}"
        );
    }
}
