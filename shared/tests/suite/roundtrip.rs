//! Whatever is accepted can be stored and comes back equal, however it is written.

use std::collections::HashMap;
use std::time::Duration;

use diesel::prelude::*;
use serde_json::{Value, json};
use shared::db::models::{NewOrder, OrderRow, Source, VersionedOrder};
use shared::db::orders::UpsertOrders;
use shared::db::schema::orders;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, model_json, wait_until};

fn source(offset: i64) -> Source {
    Source {
        partition: 3,
        incarnation: 1,
        offset,
    }
}

fn rows<'a>(orders: &[&'a Order], source: Option<Source>) -> Vec<NewOrder<'a>> {
    let row = |order: &&'a Order| NewOrder::new(order, source);
    orders.iter().map(row).collect()
}

fn copy(connection: &mut PgConnection, orders: &[&Order], source: Option<Source>) {
    diesel::copy_from(orders::table)
        .from_insertable(&rows(orders, source))
        .execute(connection)
        .unwrap();
}

/// Answers the versions.
fn upsert(connection: &mut PgConnection, orders: &[&Order], source: Option<Source>) -> Vec<i64> {
    UpsertOrders::new(&rows(orders, source))
        .load(connection)
        .unwrap()
}

/// What is stored, by uid.
fn stored(connection: &mut PgConnection) -> HashMap<String, VersionedOrder> {
    let query = orders::table.select(OrderRow::as_select());
    let rows: Vec<OrderRow> = query.load(connection).unwrap();
    rows.into_iter()
        .map(|row| VersionedOrder::try_from(row).unwrap())
        .map(|stored| (stored.order.order_uid.to_string(), stored))
        .collect()
}

#[track_caller]
fn assert_stored(connection: &mut PgConnection, expected: &[&Order]) {
    let stored = stored(connection);
    for order in expected {
        assert_eq!(stored[order.order_uid.as_str()].order, **order);
    }
}

/// Pieces of text that break a writer which escapes wrongly, or a reader which guesses.
const HOSTILE: [&str; 40] = [
    "\"",
    "\\",
    "'",
    "/",
    "\\N",
    "\\.",
    "\\\"",
    "\\u0000",
    "\\n",
    "\\x00",
    "$1",
    "%s",
    ";",
    "--",
    ",",
    ":",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "null",
    "NULL",
    "true",
    "rid",
    "\"rid\"",
    "chrt_id",
    "{\"price\":1}",
    "[{},null]",
    "1e400",
    " ",
    "\u{a0}",
    "\u{2028}",
    "\u{2029}",
    "\u{202e}",
    "e\u{301}",
    "\u{feff}",
    "\u{ffff}",
    "\u{10ffff}",
];

/// Texts of the model that may be empty.
const OPTIONAL: [&str; 11] = [
    "entry",
    "zip",
    "request_id",
    "bank",
    "rid",
    "size",
    "locale",
    "internal_signature",
    "delivery_service",
    "shardkey",
    "oof_shard",
];

fn hostile_text(random: &mut fastrand::Rng, may_be_empty: bool) -> String {
    let pieces = match random.u8(0..10) {
        0 if may_be_empty => 0,
        0 => 256,
        _ => random.usize(1..20),
    };
    let text = (0..pieces).map(|_| HOSTILE[random.usize(..HOSTILE.len())]);
    text.collect::<String>().chars().take(256).collect()
}

/// Replaces every text and number that may be anything.
fn make_hostile(random: &mut fastrand::Rng, name: &str, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                make_hostile(random, name, field);
            }
        }
        Value::Array(items) => {
            for item in items {
                make_hostile(random, name, item);
            }
        }
        _ if [
            "order_uid",
            "date_created",
            "phone",
            "email",
            "currency",
            "payment_dt",
        ]
        .contains(&name) => {}
        Value::String(text) => *text = hostile_text(random, OPTIONAL.contains(&name)),
        _ if name == "sale" => *value = random.u8(0..=100).into(),
        _ => *value = [0, 1, random.u64(..1 << 53), (1 << 53) - 1][random.usize(..4)].into(),
    }
}

fn hostile_orders(count: usize) -> Vec<Order> {
    let mut random = fastrand::Rng::with_seed(17);
    let mut generator = OrderGenerator::new(17, "2026-01-01T00:00:00.999999Z".parse().unwrap());
    let mut order = || {
        let mut document = serde_json::to_value(generator.next_order()).unwrap();
        make_hostile(&mut random, "", &mut document);
        Order::decode(document.to_string().as_bytes()).unwrap()
    };
    (0..count).map(|_| order()).collect()
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
    change(
        "hostile-items",
        &[
            ("/items/0/rid", json!("rid")),
            ("/items/0/name", json!("𝄞".repeat(256))),
            ("/items/0/size", json!("")),
            (
                "/items/0/brand",
                json!(r#"{"brand": "\u0000\N", "rid": null}"#),
            ),
            ("/items/0/total_price", json!(0)),
        ],
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

/// Orders of every kind.
fn all_orders() -> Vec<Order> {
    let mut generator = OrderGenerator::new(11, "2026-01-01T00:00:00.123456Z".parse().unwrap());
    let generated: Vec<Order> = (0..100).map(|_| generator.next_order()).collect();
    let all = [
        generated,
        hostile_orders(400),
        extreme_orders(),
        corpus_orders(),
    ];
    all.concat()
}

#[test]
fn every_accepted_order_comes_back_equal_after_copy() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let orders = all_orders();
    for chunk in orders.chunks(40) {
        copy(&mut connection, &Vec::from_iter(chunk), Some(source(7)));
    }
    assert_stored(&mut connection, &Vec::from_iter(&orders));
    let versions = stored(&mut connection);
    let version = |order: &Order| versions[order.order_uid.as_str()].version;
    assert!(orders.is_sorted_by(|earlier, later| version(earlier) < version(later)));
}

#[test]
fn every_accepted_order_comes_back_equal_after_upserts_that_replace_and_insert() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let orders = all_orders();
    // Every second order exists, with the content of another one.
    let mut before: Vec<Order> = orders.iter().skip(1).step_by(2).cloned().collect();
    for (before, order) in before.iter_mut().zip(orders.iter().step_by(2)) {
        before.order_uid = order.order_uid.clone();
    }
    copy(&mut connection, &Vec::from_iter(&before), Some(source(7)));
    let existing = stored(&mut connection);
    assert!(existing.len() >= orders.len() / 2);
    let mut highest = existing
        .values()
        .map(|stored| stored.version)
        .max()
        .unwrap();
    for chunk in orders.chunks(40) {
        for version in upsert(&mut connection, &Vec::from_iter(chunk), Some(source(8))) {
            assert!(version > highest);
            highest = version;
        }
    }
    assert_stored(&mut connection, &Vec::from_iter(&orders));
    assert_eq!(stored(&mut connection).len(), orders.len());
}

#[test]
fn an_upsert_answers_the_version_of_each_row_and_takes_over_its_source() {
    let database = TestDatabase::create();
    let mut connection = database.connect();
    let mut generator = OrderGenerator::new(13, "2026-01-01T00:00:00Z".parse().unwrap());
    let mut order = |uid: &str| generator.order_with_uid(uid);
    let first = [order("replaced"), order("put"), order("kept")];
    copy(&mut connection, &Vec::from_iter(&first), Some(source(7)));
    let replacing = [order("replaced"), order("new")];
    let by_message = upsert(
        &mut connection,
        &Vec::from_iter(&replacing),
        Some(source(8)),
    );
    let by_api = upsert(&mut connection, &[&order("put")], None);

    let stored = stored(&mut connection);
    let version = |uid: &str| stored[uid].version;
    assert_eq!(by_message, [version("replaced"), version("new")]);
    assert_eq!(by_api, [version("put")]);
    let rows = database.texts(
        "SELECT concat_ws(' ', order_uid, source_partition, source_incarnation, source_offset, created_at < updated_at) AS value
           FROM orders ORDER BY order_uid",
    );
    assert_eq!(
        rows,
        ["kept 3 1 7 f", "new 3 1 8 f", "put t", "replaced 3 1 8 t"]
    );
}

#[test]
fn an_upsert_that_waited_for_a_row_draws_its_version_after_the_wait() {
    const WAITING: &str = "SELECT count(*) AS value FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let database = TestDatabase::create();
    let (mut first, mut second) = (database.connect(), database.connect());
    let order = Order::decode(model_json().as_bytes()).unwrap();
    copy(&mut first, &[&order], None);
    std::thread::scope(|threads| {
        let transaction = first.transaction(|first| {
            upsert(first, &[&order], None);
            let waiting = threads.spawn(|| upsert(&mut second, &[&order], None));
            wait_until("the second one waits", Duration::from_secs(60), || {
                database.integer(WAITING) == 1
            });
            QueryResult::Ok((upsert(first, &[&order], None), waiting))
        });
        let (before, waiting) = transaction.unwrap();
        assert!(waiting.join().unwrap() > before);
    });
}
