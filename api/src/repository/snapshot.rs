//! Reads all orders of a list from one snapshot, page by page.
//!
//! Each page is a statement of its own, the same as that of the list. The statement time-out therefore bounds each page and
//! not the whole. Between pages the session is idle in its transaction, which PostgreSQL ends after 30 s (`shared::db`). So
//! even a frozen process cannot hold a snapshot for ever. While one is held, no dead row of the database can be removed.

use std::ops::ControlFlow;

use diesel::prelude::*;
use diesel_async::SimpleAsyncConnection;
use futures_util::TryStreamExt;

use super::filter::{OrderFilter, matching, prepare_for};
use super::listed::{ListedOrder, View, read_listed};
use super::{Position, Repository, SELECT, Session, StoreError};

/// The largest number of orders on a page. With more, the share of a statement's fixed cost no longer falls.
const MAX_PAGE_ORDERS: i64 = 256;

/// A transaction that sees the orders as they were when it began. Its connection is closed with it.
pub struct Snapshot {
    session: Session,
    filter: OrderFilter,
    view: View,
    after: Option<Position>,
    page_orders: i64,
}

impl Repository {
    /// Opens a snapshot of the orders that match.
    ///
    /// # Errors
    /// Returns `Overloaded` if as many snapshots are open as may be, and another [`StoreError`] if the database gave no
    /// answer.
    pub async fn open_snapshot(
        &self,
        filter: OrderFilter,
        view: View,
    ) -> Result<Snapshot, StoreError> {
        // Made first: from here on the connection does not go back to the pool.
        let mut snapshot = Snapshot {
            session: self.session(&self.snapshot_pool).await?,
            filter,
            view,
            after: None,
            page_orders: MAX_PAGE_ORDERS,
        };
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let filter = &snapshot.filter;
        let began = snapshot.session.run("BEGIN", 1, async |connection| {
            connection.batch_execute(begin).await?;
            prepare_for(filter, connection).await
        });
        began.await?;
        Ok(snapshot)
    }
}

impl Snapshot {
    /// Returns how much it reads of each order.
    pub fn view(&self) -> View {
        self.view
    }

    /// Gives the next orders to `take`, until it breaks or the page ends. Returns whether more orders may follow, and the last one
    /// that it took.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer or an order cannot be read. Nothing more can be read then.
    pub async fn next_page(
        &mut self,
        mut take: impl FnMut(&ListedOrder) -> ControlFlow<()>,
    ) -> Result<(bool, Option<ListedOrder>), StoreError> {
        let page_orders = self.page_orders;
        let query = matching(&self.filter, self.after.as_ref()).limit(page_orders);
        let (view, history) = (self.view, self.session.history());
        let read = async |connection: &mut _| {
            let mut orders = read_listed(query, view, connection, history).await?;
            let (mut last, mut count, mut has_enough) = (None, 0, false);
            while !has_enough && let Some(order) = orders.try_next().await? {
                let order = match order {
                    Ok(order) => order,
                    Err(error) => return Ok(Err(error)),
                };
                has_enough = take(&order).is_break();
                count += 1;
                last = Some(order);
            }
            Ok(Ok((last, count, has_enough)))
        };
        let (last, count, has_enough) = self.session.run(SELECT, 1, read).await??;
        if let Some(last) = &last {
            self.after = Some(last.position());
        }
        // The rows behind the last one that was taken are thrown away. Pages of large orders are therefore short.
        self.page_orders = if has_enough {
            count
        } else {
            (page_orders * 2).min(MAX_PAGE_ORDERS)
        };
        Ok((has_enough || count == page_orders, last))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // The transaction is open, and a statement may still be running.
        self.session.close();
    }
}
