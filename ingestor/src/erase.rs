//! Erases orders, or all orders of a customer, and every copy of them in the database.
//!
//! First the ledger gets its entries, while no batch is under way. From then on no older message stores anything of what is
//! erased. So what is found after that is all there is: the orders, the bytes of dead letters, and the statistics of
//! PostgreSQL. Every step is a small transaction, and doing all of it again completes what was interrupted.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use shared::backoff::Backoff;
use shared::db::models::NewOrder;
use shared::db::removed::{self, How, Kind};
use shared::db::schema::orders;
use shared::order::Order;

use crate::dead_letters::Blanking;
use crate::dead_letters::stored::{self, KeptBytes};
use crate::deletion::{self, ORDERS_PER_STEP};
use crate::ledger::{self, names};

/// The most bytes of dead letters that are read at once.
const LETTER_BYTES_PER_STEP: i64 = 8 * 1024 * 1024;

/// How long the exclusive lock is awaited at a time. New batches wait meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// An SQL expression: may this role analyze the tables?
const OWNS_TABLES: &str = "(SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class \
                            WHERE oid IN ('orders'::regclass, 'dead_letters'::regclass))";

/// An SQL expression: is the table of orders empty, and are there statistics about it or about an index of it?
const HAS_STALE_STATISTICS: &str = "NOT EXISTS (SELECT FROM orders) AND EXISTS ( \
    SELECT FROM pg_stats WHERE schemaname = current_schema() AND tablename IN ('orders', 'orders_person_idx'))";

/// An order that takes the place of the erased ones in the statistics of an empty table.
const PLACEHOLDER: &[u8] = br#"{"order_uid":"erased","track_number":"-","customer_id":"-","date_created":"2000-01-01T00:00:00Z",
    "delivery":{"phone":"00000","email":"erased@example.org"},
    "payment":{"transaction":"-","amount":0,"currency":"XXX","provider":"-"},
    "items":[{"chrt_id":0,"name":"-","brand":"-","price":0,"total_price":0}]}"#;

/// What is to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Every order of this customer.
    Customer(String),
    /// These orders.
    Orders(Vec<String>),
}

/// How much was found or erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Orders.
    pub orders: usize,
    /// Dead letters that have bytes and name what is erased.
    pub letters: usize,
}

impl Subject {
    fn kind(&self) -> Kind {
        match self {
            Self::Customer(_) => Kind::Customer,
            Self::Orders(_) => Kind::Order,
        }
    }

    fn ids(&self) -> Vec<String> {
        match self {
            Self::Customer(id) => vec![id.clone()],
            Self::Orders(uids) => uids.clone(),
        }
    }

    /// Selects its orders.
    fn selection(&self) -> orders::BoxedQuery<'_, diesel::pg::Pg> {
        let query = orders::table.into_boxed();
        match self {
            Self::Customer(id) => query.filter(orders::customer_id.eq(id)),
            Self::Orders(uids) => query.filter(orders::order_uid.eq_any(uids)),
        }
    }
}

/// Counts what would be erased.
///
/// # Errors
/// Returns the database's error.
pub fn measure(connection: &mut PgConnection, subject: &Subject) -> QueryResult<Extent> {
    let uids: Vec<String> = (subject.selection())
        .select(orders::order_uid)
        .load(connection)?;
    let orders = uids.len();
    let known: HashSet<String> = uids.into_iter().collect();
    let mut letters = 0;
    for_each_page(connection, |connection, page| {
        letters += find_letters(connection, subject, &known, page)?.len();
        Ok(())
    })?;
    Ok(Extent { orders, letters })
}

/// Erases the subject, and tells its progress after each step.
///
/// # Errors
/// Returns the error of the database. What was erased until then stays erased; doing it again continues.
pub fn erase(
    connection: &mut PgConnection,
    subject: &Subject,
    mut progress: impl FnMut(Extent),
) -> anyhow::Result<Extent> {
    note_in_ledger(connection, subject).context("cannot write the ledger")?;
    let mut extent = Extent::default();
    loop {
        let started_at = Instant::now();
        let (seen, erased) =
            erase_some_orders(connection, subject).context("cannot erase orders")?;
        if seen == 0 {
            break;
        }
        extent.orders += erased;
        progress(extent);
        deletion::rest(started_at);
    }
    for_each_page(connection, |connection, page| {
        let ids = find_letters(connection, subject, &HashSet::new(), page)?;
        extent.letters += stored::blank(connection, &ids, Blanking::Erased)?;
        progress(extent);
        Ok(())
    })
    .context("cannot erase the bytes of dead letters")?;
    Ok(extent)
}

/// Writes the entries while no batch is under way. A batch that began earlier has committed then, and a later one sees the
/// entries.
fn note_in_ledger(connection: &mut PgConnection, subject: &Subject) -> QueryResult<()> {
    let timeout_ms = LOCK_TIMEOUT.as_millis().to_string();
    let be_patient = ["SET LOCAL lock_timeout = ", &timeout_ms].concat();
    let mut backoff = Backoff::for_database();
    loop {
        let started_at = Instant::now();
        let noted = connection.transaction(|connection| {
            connection.batch_execute(&be_patient)?;
            ledger::shut_out_batches(connection)?;
            removed::record(subject.kind(), How::Erased, subject.ids()).execute(connection)
        });
        match noted {
            Ok(_) => return Ok(()),
            // diesel hides the SQLSTATE of a lock that was not granted in time. A batch is stuck, and others must not wait for
            // it because of us.
            Err(_) if started_at.elapsed() >= LOCK_TIMEOUT => sleep(backoff.next_delay()),
            Err(error) => return Err(error),
        }
    }
}

/// Erases some orders. Returns how many it found, and how many of these it erased: others may have deleted the rest.
fn erase_some_orders(
    connection: &mut PgConnection,
    subject: &Subject,
) -> QueryResult<(usize, usize)> {
    connection.transaction(|connection| {
        let found: Vec<String> = (subject.selection())
            .select(orders::order_uid)
            .limit(ORDERS_PER_STEP)
            .load(connection)?;
        let locked: Vec<(String, String)> = orders::table
            .filter(orders::order_uid.eq_any(&found))
            .select((orders::order_uid, orders::customer_id))
            .order(orders::order_uid)
            .for_update()
            .load(connection)?;
        // Before it was locked, an order may have been given to another customer.
        let locked = locked.into_iter().filter(|(_, customer_id)| match subject {
            Subject::Customer(id) => customer_id == id,
            Subject::Orders(_) => true,
        });
        let locked: Vec<String> = locked.map(|(uid, _)| uid).collect();
        if !locked.is_empty() {
            removed::record(Kind::Order, How::Erased, locked.clone()).execute(connection)?;
            deletion::delete_locked(connection, &locked)?;
        }
        Ok((found.len(), locked.len()))
    })
}

/// Reads the bytes of all dead letters, of every group and topic.
fn for_each_page(
    connection: &mut PgConnection,
    mut work: impl FnMut(&mut PgConnection, &[KeptBytes]) -> QueryResult<()>,
) -> QueryResult<()> {
    let mut after = 0;
    loop {
        let page = stored::bytes_after(connection, after, LETTER_BYTES_PER_STEP)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.id;
        connection.transaction(|connection| work(connection, &page))?;
    }
}

/// Returns the letters that name the subject, one of the orders `known`, or anything that was erased before. A letter that is
/// not JSON also counts if it contains the text of an id anywhere.
fn find_letters(
    connection: &mut PgConnection,
    subject: &Subject,
    known: &HashSet<String>,
    page: &[KeptBytes],
) -> QueryResult<Vec<i64>> {
    let ids = subject.ids();
    let mut found = HashSet::new();
    let mut named = Vec::new();
    for letter in page {
        let names = names::find(letter.key.as_deref(), letter.payload.as_deref());
        let of_kind = match subject {
            Subject::Customer(_) => &names.customers,
            Subject::Orders(_) => &names.orders,
        };
        let payload = letter.payload.as_deref().unwrap_or_default();
        if of_kind.iter().any(|name| ids.contains(name))
            || names.orders.iter().any(|uid| known.contains(uid))
            || names.is_guess && ids.iter().any(|id| contains(payload, id.as_bytes()))
        {
            found.insert(letter.id);
        } else {
            named.push((letter.id, names));
        }
    }
    found.extend(ledger::find_erased(connection, named)?);
    let mut found: Vec<i64> = found.into_iter().collect();
    found.sort_unstable();
    Ok(found)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}

/// Makes PostgreSQL forget the values that its statistics quote. Returns false if the role does not own the tables.
///
/// # Errors
/// Returns the database's error.
pub fn forget_statistics(connection: &mut PgConnection) -> anyhow::Result<bool> {
    if !is_true(connection, OWNS_TABLES)? {
        return Ok(false);
    }
    // It takes seconds if the table is large.
    connection.batch_execute("SET statement_timeout = 0")?;
    if is_true(connection, HAS_STALE_STATISTICS)? {
        // ANALYZE keeps the statistics of a table or an index that is empty.
        let placeholder = Order::decode(PLACEHOLDER).context("the placeholder is no order")?;
        connection.transaction(|connection| {
            diesel::insert_into(orders::table)
                .values(NewOrder::new(&placeholder, None))
                .execute(connection)?;
            connection.batch_execute("ANALYZE orders")?;
            diesel::delete(orders::table.find(placeholder.order_uid.as_str())).execute(connection)
        })?;
    }
    connection.batch_execute("ANALYZE orders, dead_letters")?;
    Ok(true)
}

fn is_true(connection: &mut PgConnection, expression: &str) -> QueryResult<bool> {
    diesel::select(sql::<Bool>(expression)).get_result(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placeholder_is_an_order() {
        assert!(Order::decode(PLACEHOLDER).is_ok());
    }

    #[test]
    fn a_text_is_found_anywhere_but_the_empty_one_nowhere() {
        assert!(contains(b"abc", b"bc") && contains(b"abc", b"abc"));
        assert!(!contains(b"abc", b"abd") && !contains(b"abc", b""));
    }
}
