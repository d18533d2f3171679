//! Whatever is accepted can be stored and comes back equal.

use diesel::prelude::*;
use serde_json::{Value, json};
use shared::db::models::{NewOrder, NewOrderItem, VersionedOrder};
use shared::db::orders::{OrderWithItems, select_order};
use shared::db::schema::{order_items, orders};
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, model_json};

fn store(connection: &mut PgConnection, order: &Order) {
    diesel::copy_from(orders::table)
        .from_insertable(&[NewOrder::new(order, Some((1, 2)))])
        .execute(connection)
        .unwrap();
    let items: Vec<NewOrderItem<'_>> = NewOrderItem::all_of(order).collect();
    diesel::copy_from(order_items::table)
        .from_insertable(&items)
        .execute(connection)
        .unwrap();
}

fn load(connection: &mut PgConnection, uid: &str) -> VersionedOrder {
    let row: OrderWithItems = orders::table
        .find(uid)
        .select(select_order())
        .first(connection)
        .unwrap();
    VersionedOrder::from(row)
}

/// Valid orders at the bounds of what is valid.
fn extreme_orders() -> Vec<Order> {
    let mut documents: Vec<Value> = Vec::new();
    let mut change = |uid: &str, changes: &[(&str, Value)]| {
        let mut document: Value = serde_json::from_str(model_json()).unwrap();
        for (pointer, value) in changes {
            *document.pointer_mut(pointer).unwrap() = value.clone();
        }
        document["order_uid"] = uid.into();
        documents.push(document);
    };
    let largest = json!(9_007_199_254_740_991_u64);
    change(
        "largest",
        &[
            ("/payment/amount", largest.clone()),
            ("/sm_id", largest.clone()),
            ("/items/0/price", largest),
        ],
    );
    change(
        "longest",
        &[
            ("/delivery/name", json!("𝄞".repeat(256))),
            ("/delivery/address", json!("ж".repeat(512))),
            (
                "/entry",
                json!("\\\"'\u{2028}\u{feff}\u{fffd}\t".replace('\t', "")),
            ),
            ("/delivery/phone", json!("+".repeat(27) + "12345")),
        ],
    );
    change(
        &"x".repeat(64),
        &[("/date_created", json!("2000-01-01T00:00:00.000001Z"))],
    );
    change(
        "latest",
        &[
            ("/date_created", json!("2100-12-31T23:59:59.999999+00:00")),
            ("/payment/payment_dt", json!(4_102_444_800_u64)),
        ],
    );
    change(
        "copy-escapes",
        &[
            ("/entry", json!("\\N")),
            ("/locale", json!("\\.")),
            ("/shardkey", json!("null")),
        ],
    );
    let item = json!({"chrt_id": 0, "name": "n", "brand": "b", "price": 0, "total_price": 0});
    change(
        "thousand-items",
        &[("/items", Value::Array(vec![item; 1000]))],
    );
    documents
        .iter()
        .map(|document| Order::decode(document.to_string().as_bytes()).unwrap())
        .collect()
}

/// What the saved corpus of the fuzz target holds of orders that are accepted.
fn corpus_orders() -> Vec<Order> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/order");
    let files = std::fs::read_dir(folder).unwrap();
    let accepted: Vec<Order> = files
        .filter_map(|file| Order::decode(&std::fs::read(file.unwrap().path()).unwrap()).ok())
        .zip(0..)
        .map(|(mut order, number)| {
            order.order_uid = format!("corpus-{number}").parse().unwrap();
            order
        })
        .collect();
    assert!(accepted.len() >= 4, "{} of the corpus", accepted.len());
    accepted
}

#[test]
fn every_accepted_order_comes_back_equal() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let mut generator = OrderGenerator::new(11, "2026-01-01T00:00:00.123456Z".parse().unwrap());
    let generated = (0..200).map(|_| generator.next_order());
    let mut last_version = 0;
    let saved = extreme_orders().into_iter().chain(corpus_orders());
    for order in generated.chain(saved) {
        store(&mut connection, &order);
        let stored = load(&mut connection, order.order_uid.as_str());
        assert_eq!(stored.order, order);
        assert!(stored.version > last_version);
        last_version = stored.version;
    }
}
