//! One page of the list of orders.

use std::ops::ControlFlow;

use diesel::prelude::*;
use diesel_async::AsyncPgConnection;
use futures_util::TryStreamExt;
use shared::db::HistoryId;

use super::filter::{OrderFilter, matching, prepare_for};
use super::listed::{ListedOrder, View, read_listed};
use super::{Answered, Position, Repository, SELECT, StoreError};

/// How many orders the first statement of a page asks for at most, and how many times as many each further one.
///
/// Rows that find no place on the page are read in vain. So a statement asks for many orders only after many have found one. A
/// page takes at most three statements.
const FIRST_ORDERS: u32 = 64;
const GROWTH: u32 = 4;
const MAX_STATEMENTS: u32 = 3;

impl Repository {
    /// Gives orders to `take`, newest first: those behind `after`, or the newest of all. Ends after `limit` orders, or when
    /// `take` breaks because it has no place for the order. Returns whether there are more orders than it took.
    ///
    /// Only one order is in memory at a time. All of them are read from one snapshot.
    ///
    /// # Errors
    /// Returns a [`StoreError`] if the database gave no answer, or one of the orders cannot be read.
    pub async fn read_page(
        &self,
        filter: &OrderFilter,
        view: View,
        after: Option<&Position>,
        limit: u32,
        take: impl FnMut(&ListedOrder) -> ControlFlow<()> + Send,
    ) -> Result<Answered<bool>, StoreError> {
        let mut session = self.session(&self.pool).await?;
        let history = session.history();
        let mut page = Page {
            filter,
            view,
            history,
            after: after.cloned(),
            // One additional order shows whether another page follows.
            wanted: limit + 1,
            take,
        };
        let has_more = if page.wanted <= FIRST_ORDERS && !filter.is_of_person() {
            let read = session.run(SELECT, 1, async |connection| page.read(connection).await);
            read.await??
        } else {
            let read = async |connection: &mut AsyncPgConnection| {
                let mut snapshot = connection.build_transaction().read_only().repeatable_read();
                snapshot
                    .run(async |connection| {
                        prepare_for(filter, connection).await?;
                        page.read(connection).await
                    })
                    .await
            };
            session.run(SELECT, MAX_STATEMENTS, read).await??
        };
        Ok(Answered {
            content: has_more,
            history,
        })
    }
}

/// A page under way.
struct Page<'a, T> {
    filter: &'a OrderFilter,
    view: View,
    history: HistoryId,
    after: Option<Position>,
    /// How many orders are still to be read. The last one is not taken.
    wanted: u32,
    take: T,
}

impl<T: FnMut(&ListedOrder) -> ControlFlow<()> + Send> Page<'_, T> {
    async fn read(
        &mut self,
        connection: &mut AsyncPgConnection,
    ) -> QueryResult<Result<bool, StoreError>> {
        let mut statement_orders = FIRST_ORDERS;
        loop {
            let asked = self.wanted.min(statement_orders);
            match self.read_by_one_statement(connection, asked).await? {
                Ok(None) => statement_orders *= GROWTH,
                Ok(Some(has_more)) => return Ok(Ok(has_more)),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Returns whether more orders follow, `None` if the next statement will tell.
    async fn read_by_one_statement(
        &mut self,
        connection: &mut AsyncPgConnection,
        asked: u32,
    ) -> QueryResult<Result<Option<bool>, StoreError>> {
        let query = matching(self.filter, self.after.as_ref()).limit(asked.into());
        let mut orders = read_listed(query, self.view, connection, self.history).await?;
        let mut last = None;
        let mut missing = asked;
        while let Some(order) = orders.try_next().await? {
            let order = match order {
                Ok(order) => order,
                Err(error) => return Ok(Err(error)),
            };
            if self.wanted == 1 || (self.take)(&order).is_break() {
                return Ok(Ok(Some(true)));
            }
            self.wanted -= 1;
            missing -= 1;
            last = Some(order);
        }
        if let Some(last) = last {
            self.after = Some(last.position());
        }
        Ok(Ok((missing > 0).then_some(false)))
    }
}
