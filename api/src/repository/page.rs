//! The list of orders, and one page of it.

use chrono::{DateTime, Utc};
use diesel::dsl::{IntoBoxed, Select};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use shared::db::models::VersionedOrder;
use shared::db::orders::{OrderWithItems, SelectOrder, select_order};
use shared::db::schema::orders;

use super::{Position, Repository, StoreError, older_than, within};

/// Which orders to list; what is `None` does not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderFilter {
    /// Of this customer only.
    pub customer_id: Option<String>,
    /// With this track number only.
    pub track_number: Option<String>,
    /// Created then or later.
    pub from: Option<DateTime<Utc>>,
    /// Created before then.
    pub to: Option<DateTime<Utc>>,
}

impl Repository {
    /// Reads at most `limit` orders, newest first, from behind `after` on.
    ///
    /// # Errors
    /// [`StoreError`] as said there.
    pub async fn list_orders(
        &self,
        filter: &OrderFilter,
        after: Option<&Position>,
        limit: i64,
    ) -> Result<Vec<VersionedOrder>, StoreError> {
        let mut session = self.session().await?;
        let query = matching(filter, after).limit(limit);
        let outcome = within(
            session.limit(),
            query.load::<OrderWithItems>(&mut session.connection),
        )
        .await;
        let rows = session.settle(outcome).await?;
        Ok(rows.into_iter().map(VersionedOrder::from).collect())
    }
}

type OrderQuery<'a> = IntoBoxed<'a, Select<orders::table, SelectOrder>, Pg>;

/// The orders that match, newest first, from behind `after` on.
pub(super) fn matching<'a>(filter: &'a OrderFilter, after: Option<&Position>) -> OrderQuery<'a> {
    let mut query = orders::table
        .select(select_order())
        .into_boxed()
        .order((orders::date_created.desc(), orders::order_uid.desc()));
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
    if let Some(position) = after {
        query = query.filter(older_than(position));
    }
    query
}
