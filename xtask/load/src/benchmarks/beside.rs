//! A table that already has many orders. It shows what a program costs after years, not on its first day.

use anyhow::Context as _;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::copy::Chunk;
use super::joined;

/// How many connections fill the table.
const CONNECTIONS: usize = 2;
const ORDERS_PER_COPY: usize = 1_000;
/// Seeds of the orders that fill the table. The orders that are measured have other seeds, and therefore other uids.
const FIRST_SEED: u64 = 0xbe51_de00;

/// Fills the table with orders that are older than those that will follow.
///
/// The indexes are created after the rows. That is several times as fast as keeping them up to date.
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
                let seed = FIRST_SEED + number as u64;
                scope.spawn(move || copy(&mut database.connect(), seed, share))
            })
            .collect();
        let mut threads = threads.into_iter();
        threads.try_for_each(|thread| joined(thread.join()))
    })?;
    connection.batch_execute("SET maintenance_work_mem = '1GB'")?;
    for index in indexes {
        connection
            .batch_execute(&index)
            .with_context(|| format!("cannot create an index again: {index}"))?;
    }
    connection.batch_execute(
        "ALTER TABLE orders ADD CONSTRAINT orders_pkey PRIMARY KEY USING INDEX orders_pkey",
    )?;
    connection.batch_execute("VACUUM (FREEZE, ANALYZE) orders")?;
    Ok(())
}

fn copy(connection: &mut PgConnection, seed: u64, count: usize) -> anyhow::Result<()> {
    let oldest = chrono::Utc::now() - chrono::TimeDelta::days(365);
    let mut generator = OrderGenerator::new(seed, oldest);
    for first in (0..count).step_by(ORDERS_PER_COPY) {
        let orders: Vec<Order> = (first..count.min(first + ORDERS_PER_COPY))
            .map(|_| generator.next_order())
            .collect();
        Chunk::from_api(&orders).copy(connection)?;
    }
    Ok(())
}
