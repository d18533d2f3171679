//! A table that already holds many orders: what a program costs after years, not on its first day.

use anyhow::Context as _;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::copy_orders;

/// Connections that fill the table.
const CONNECTIONS: usize = 2;
const ORDERS_PER_COPY: usize = 1_000;
/// Seeds of the orders that fill the table; those that are measured have others, and so other uids.
const FIRST_SEED: u64 = 0xbe51_de00;

/// Fills the table with orders that are older than those to come.
///
/// The indexes are made after the rows, which is several times as fast as keeping them up to date.
pub(super) fn fill(database: &TestDatabase, count: usize) -> anyhow::Result<()> {
    println!("filling the table with {count} orders");
    let indexes =
        database.texts("SELECT indexdef AS value FROM pg_indexes WHERE tablename = 'orders'");
    let drop_secondary = database.texts(
        "SELECT 'DROP INDEX ' || indexname AS value FROM pg_indexes WHERE tablename = 'orders' AND indexname <> 'orders_pkey'",
    );
    let mut connection = database.connect();
    connection.batch_execute(&drop_secondary.join(";"))?;
    connection.batch_execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let share = count / CONNECTIONS + usize::from(number < count % CONNECTIONS);
                scope
                    .spawn(move || copy(&mut database.connect(), FIRST_SEED + number as u64, share))
            })
            .collect();
        for thread in threads {
            let copied = thread.join();
            copied.map_err(|_| anyhow::anyhow!("a thread that copies panicked"))??;
        }
        anyhow::Ok(())
    })?;
    connection.batch_execute("SET maintenance_work_mem = '1GB'")?;
    for index in indexes {
        connection
            .batch_execute(&index)
            .with_context(|| format!("cannot make an index again: {index}"))?;
    }
    connection.batch_execute(
        "ALTER TABLE orders ADD CONSTRAINT orders_pkey PRIMARY KEY USING INDEX orders_pkey",
    )?;
    connection.batch_execute("VACUUM (FREEZE, ANALYZE) orders")?;
    Ok(())
}

fn copy(connection: &mut PgConnection, seed: u64, count: usize) -> QueryResult<()> {
    let oldest = chrono::Utc::now() - chrono::TimeDelta::days(365);
    let mut generator = OrderGenerator::new(seed, oldest);
    for first in (0..count).step_by(ORDERS_PER_COPY) {
        let made: Vec<Order> = (first..count.min(first + ORDERS_PER_COPY))
            .map(|_| generator.next_order())
            .collect();
        copy_orders(connection, &made)?;
    }
    Ok(())
}
