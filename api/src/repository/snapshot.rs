//! All orders of a list out of one snapshot, page by page.
//!
//! A page is a statement of its own, the list's, so the statement time-out bounds each of them and not the whole. Between
//! pages the session is idle in its transaction, which PostgreSQL ends after 30 s (`shared::db`): not even a frozen process
//! holds a snapshot, and with it the dead rows of the whole database, for ever.

use std::ops::ControlFlow;
use std::time::Instant;

use diesel::prelude::*;
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection};
use futures_util::TryStreamExt;
use shared::db::models::{OrderRow, VersionedOrder};
use shared::order::Order;

use super::deadpool_types::Object;
use super::page::{OrderFilter, matching};
use super::{Position, Repository, Session, StoreError, within};

/// Most orders of a page: beyond it, starting a statement costs nothing any more.
const MAX_PAGE_ORDERS: i64 = 256;

/// A transaction that sees the orders as they were when it began. Its session ends with it.
pub struct Snapshot {
    session: Option<Session>,
    filter: OrderFilter,
    after: Option<Position>,
    page_orders: i64,
}

impl Repository {
    /// Opens a snapshot of the orders that match.
    ///
    /// # Errors
    /// [`StoreError`] as said there; `Overloaded` while as many are open as may be.
    pub async fn open_snapshot(&self, filter: OrderFilter) -> Result<Snapshot, StoreError> {
        let mut session = self.session_of(&self.snapshot_pool).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let outcome = within(session.limit(), session.connection.batch_execute(begin)).await;
        let began = session.judge(outcome).await;
        let snapshot = Snapshot {
            session: Some(session),
            filter,
            after: None,
            page_orders: MAX_PAGE_ORDERS,
        };
        began.map(|()| snapshot)
    }
}

impl Snapshot {
    /// Gives the next orders to `take`, until it has enough or the page ends, and tells whether more may follow.
    ///
    /// # Errors
    /// [`StoreError`] as said there; nothing more can be read then.
    pub async fn next_page(
        &mut self,
        mut take: impl FnMut(&Order) -> ControlFlow<()>,
    ) -> Result<bool, StoreError> {
        let page_orders = self.page_orders;
        let query = matching(&self.filter, self.after.as_ref()).limit(page_orders);
        let session = self.session.as_mut().ok_or(StoreError::Internal)?;
        session.started = Instant::now();
        let limit = session.limit();
        let read = async {
            let mut rows = query
                .load_stream::<OrderRow>(&mut session.connection)
                .await?;
            let (mut last, mut count, mut has_enough) = (None, 0, false);
            while !has_enough && let Some(row) = rows.try_next().await? {
                let order = VersionedOrder::from(row).order;
                has_enough = take(&order).is_break();
                count += 1;
                last = Some(order);
            }
            QueryResult::Ok((last, count, has_enough))
        };
        let outcome = within(limit, read).await;
        let (last, count, has_enough) = session.judge(outcome).await?;
        if let Some(last) = last {
            self.after = Some((last.date_created, last.order_uid.to_string()));
        }
        // Rows behind those that were enough are thrown away: large orders are asked for in small numbers.
        self.page_orders = if has_enough {
            count
        } else {
            (page_orders * 2).min(MAX_PAGE_ORDERS)
        };
        Ok(has_enough || count == page_orders)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // Never back into the pool: its transaction is open, and a statement may be under way.
        if let Some(session) = self.session.take() {
            drop(Object::take(session.connection));
        }
    }
}
