//! Creates many orders at once: copies of the model, made inside the database.

use chrono::TimeDelta;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use shared::order::Order;
use shared::testing::TestDatabase;

use super::{model, store};

/// Stores the model and copies of it. Each is one second older than the previous one and has `items` items.
pub fn store_copies(database: &TestDatabase, count: i64, items: i32) {
    store(database, &model());
    diesel::sql_query(
        "INSERT INTO orders SELECT copied.* FROM orders, generate_series(1, $1) number, \
         LATERAL jsonb_populate_record(orders, jsonb_build_object( \
             'order_uid', 'copy-' || number, 'date_created', date_created - number * interval '1 second', \
             'payment_amount', number, 'version', nextval('order_version_seq'), \
             'items', ARRAY(SELECT orders.items[0] FROM generate_series(1, $2)))) copied",
    )
    .bind::<BigInt, _>(count)
    .bind::<Integer, _>(items)
    .execute(&mut database.connect())
    .unwrap();
}

/// Returns the copy with this number, as the API must return it.
pub fn copy(number: i64, items: usize) -> Order {
    let mut order = model();
    order.order_uid = format!("copy-{number}").parse().unwrap();
    order.date_created -= TimeDelta::seconds(number);
    order.payment.amount = number;
    order.items = vec![order.items[0].clone(); items];
    order
}
