//! Which orders of a batch the database refuses: found by tries that are all rolled back.
//!
//! A constraint refuses the whole batch because of one row. The row is the one that the server names, or else it is
//! searched for; it is left out, messages are folded again, and the rest is tried, until nothing is refused any more.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use super::transaction::{Origin, store_orders};
use crate::batch::{Batch, REFUSED_BY_DATABASE, Refusal, SourcedOrder};

/// Whether an error says that a row can never be stored. Every other one is trouble of the database's own.
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

/// The messages of the batch that the database refuses, by rising offset; changes nothing in the database.
///
/// A row that the server names costs two tries; one that it does not name costs about `log2(n)` more, for `n` orders.
///
/// # Errors
/// Fails as the database does.
pub(super) fn find_refused(
    connection: &mut PgConnection,
    batch: &Batch,
    origin: Origin,
) -> QueryResult<Vec<(i64, Refusal)>> {
    let mut refused: Vec<(i64, Refusal)> = Vec::new();
    let outcome = connection.transaction(|connection| {
        // A deferred constraint would speak up only at the COMMIT.
        connection.batch_execute("SET CONSTRAINTS ALL IMMEDIATE")?;
        let mut tries = Tries { connection, origin };
        loop {
            let left_out: Vec<i64> = refused.iter().map(|(offset, _)| *offset).collect();
            let remaining = batch.folded_without(&left_out);
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
    origin: Origin,
}

impl Tries<'_> {
    /// Writes these orders in a savepoint that is rolled back; answers the constraint's refusal, if there is one.
    fn refusal_of(&mut self, orders: &[SourcedOrder<'_>]) -> QueryResult<Option<Information>> {
        let origin = self.origin;
        let tried = self.connection.transaction(|connection| {
            store_orders(connection, origin, orders.to_vec())?;
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

    /// One message that is refused, of orders that are refused together, and why.
    fn culprit(
        &mut self,
        mut orders: Vec<SourcedOrder<'_>>,
        error: Information,
    ) -> QueryResult<(i64, Information)> {
        if let Some(named) = named_uid(error.as_ref())
            && let Some(order) = orders.iter().find(|order| order.uid() == named)
            // Not on the server's word alone: by itself it must be refused as well.
            && let Some(own_error) = self.refusal_of(&[*order])?
        {
            return Ok((order.offset, own_error));
        }
        // The shortest refused beginning, by offset: its last message is refused after all the earlier ones were not.
        orders.sort_unstable_by_key(|order| order.offset);
        let (mut accepted, mut refused, mut last_error) = (0, orders.len(), error);
        while refused - accepted > 1 {
            let middle = accepted.midpoint(refused);
            let mut beginning = orders[..middle].to_vec();
            beginning.sort_unstable_by_key(SourcedOrder::uid);
            match self.refusal_of(&beginning)? {
                Some(error) => (refused, last_error) = (middle, error),
                None => accepted = middle,
            }
        }
        Ok((orders[refused - 1].offset, last_error))
    }
}

/// The order of the row that the server's detail shows: `Failing row contains (uid, ...` or `Key (order_uid)=(uid) ...`.
/// The table begins with the order's id, and no id has a comma or a parenthesis.
fn named_uid(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<&str> {
    let detail = information.details()?;
    let values = match detail.split_once("(order_uid)=(") {
        Some((_, values)) => values,
        None => detail.split_once('(')?.1,
    };
    values.split([',', ')']).next()
}

/// Names the constraint, not the values: they may be personal.
fn to_refusal(information: &(dyn DatabaseErrorInformation + Send + Sync)) -> Refusal {
    let table = information.table_name().unwrap_or("orders");
    let detail = match (information.constraint_name(), information.column_name()) {
        (Some(constraint), _) => format!("constraint {constraint} of table {table} refuses it"),
        (None, Some(column)) => format!("column {column} of table {table} refuses it"),
        (None, None) => format!("table {table} refuses it: {}", information.message()),
    };
    Refusal {
        reason: REFUSED_BY_DATABASE,
        detail,
    }
}
