//! Finds the orders of a batch that the database rejects, by attempts that are all rolled back.
//!
//! When a constraint rejects a batch, one row is to blame. If the server names the row, it is that one. Otherwise it is
//! found by bisection. The row is left out, the messages are folded again, and the rest is tried, until nothing is rejected
//! any more.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use super::transaction::store_orders;
use crate::batch::{Batch, SourcedOrder};
use crate::guard::Guard;
use crate::record::{Offset, Reason, Refusal};

/// Returns whether an error means that a row can never be stored. Every other error means a sick database.
pub fn is_refusal(error: &DieselError) -> bool {
    use DatabaseErrorKind::{
        CheckViolation, ExclusionViolation, ForeignKeyViolation, NotNullViolation,
    };
    matches!(
        error,
        DieselError::DatabaseError(
            CheckViolation | ExclusionViolation | ForeignKeyViolation | NotNullViolation,
            _
        )
    )
}

/// Returns the messages of the batch that the database rejects, by rising offset. Changes nothing in the database.
///
/// A row that the server names costs two attempts. Any other row costs about `log2(n)` more, for `n` orders.
///
/// # Errors
/// Returns the database's error if it is not a refusal.
pub(super) fn find_refused(
    connection: &mut PgConnection,
    batch: &Batch,
    guard: &Guard,
) -> QueryResult<Vec<(Offset, Refusal)>> {
    let mut refused: Vec<(Offset, Refusal)> = Vec::new();
    let outcome = connection.transaction(|connection| {
        // Otherwise a deferred constraint would be checked only at the COMMIT.
        connection.batch_execute("SET CONSTRAINTS ALL IMMEDIATE")?;
        let mut tries = Tries { connection, guard };
        loop {
            let left_out: Vec<Offset> = refused.iter().map(|(offset, _)| *offset).collect();
            let remaining = batch.folded_without(&left_out, guard);
            let Some(error) = tries.refusal_of(&remaining)? else {
                return Err(DieselError::RollbackTransaction);
            };
            let (offset, error) = tries.culprit(remaining, error)?;
            let place = refused.partition_point(|(earlier, _)| *earlier < offset);
            refused.insert(place, (offset, to_refusal(error.as_ref())));
        }
    });
    match outcome {
        Ok(()) | Err(DieselError::RollbackTransaction) => Ok(refused),
        Err(error) => Err(error),
    }
}

type Information = Box<dyn DatabaseErrorInformation + Send + Sync>;

struct Tries<'a> {
    connection: &'a mut PgConnection,
    guard: &'a Guard,
}

impl Tries<'_> {
    /// Writes these orders in a savepoint that is rolled back. Returns the constraint's error, if there is one.
    fn refusal_of(&mut self, orders: &[SourcedOrder<'_>]) -> QueryResult<Option<Information>> {
        let guard = self.guard;
        let tried = self.connection.transaction(|connection| {
            store_orders(connection, guard, orders.to_vec())?;
            Err::<(), _>(DieselError::RollbackTransaction)
        });
        match tried {
            Ok(()) | Err(DieselError::RollbackTransaction) => Ok(None),
            Err(error) if is_refusal(&error) => match error {
                DieselError::DatabaseError(_, information) => Ok(Some(information)),
                other => Err(other),
            },
            Err(error) => Err(error),
        }
    }

    /// Returns one rejected message, of orders that are rejected together, and why it is rejected.
    fn culprit(
        &mut self,
        mut orders: Vec<SourcedOrder<'_>>,
        error: Information,
    ) -> QueryResult<(Offset, Information)> {
        if let Some(named) = named_uid(error.as_ref())
            && let Some(order) = orders.iter().find(|order| order.uid() == named)
            // The server's detail is not proof: the order must also be rejected by itself.
            && let Some(own_error) = self.refusal_of(&[*order])?
        {
            return Ok((order.offset(), own_error));
        }
        // Finds the shortest rejected prefix by offset. Its last message is rejected, because the shorter prefix is not.
        orders.sort_unstable_by_key(|order| order.offset());
        let (mut accepted, mut refused, mut last_error) = (0, orders.len(), error);
        while refused - accepted > 1 {
            let middle = accepted.midpoint(refused);
            let mut prefix = orders[..middle].to_vec();
            prefix.sort_unstable_by_key(SourcedOrder::uid);
            match self.refusal_of(&prefix)? {
                Some(error) => (refused, last_error) = (middle, error),
                None => accepted = middle,
            }
        }
        Ok((orders[refused - 1].offset(), last_error))
    }
}

/// Returns the uid in the server's detail: `Failing row contains (uid, ...` or `Key (order_uid)=(uid) ...`. The uid is the
/// table's first column, and no uid has a comma or a parenthesis.
fn named_uid(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<&str> {
    let detail = information.details()?;
    let values = match detail.split_once("(order_uid)=(") {
        Some((_, values)) => values,
        None => detail.split_once('(')?.1,
    };
    values.split([',', ')']).next()
}

/// Names the constraint but no values, because they may be personal data.
fn to_refusal(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> Refusal {
    let table = information.table_name().unwrap_or("orders");
    let detail = match (information.constraint_name(), information.column_name()) {
        (Some(constraint), _) => format!("constraint {constraint} of table {table} rejects it"),
        (None, Some(column)) => format!("column {column} of table {table} rejects it"),
        (None, None) => format!("table {table} rejects it: {}", information.message()),
    };
    Refusal {
        reason: Reason::RefusedByDatabase,
        detail,
    }
}
