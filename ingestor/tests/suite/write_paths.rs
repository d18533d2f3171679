//! New orders are copied, and existing ones are replaced. Both ways must end in the same rows, however the messages fall
//! into batches and whoever else writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use diesel::prelude::*;
use shared::db::models::{NewOrder, OrderRow, VersionedOrder};
use shared::db::schema::orders;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase, wait_until};

use crate::support::{Api, PATIENCE, Scene};

/// Everything of every order except what the database itself draws.
const CONTENT: &str =
    "SELECT (to_jsonb(orders) - 'version' - 'created_at' - 'updated_at')::text AS value
    FROM orders ORDER BY order_uid";

/// The number of rows of `orders` that were replaced.
const REPLACED: &str =
    "SELECT n_tup_upd AS value FROM pg_stat_user_tables WHERE relname = 'orders'";

#[test]
fn the_rows_do_not_depend_on_how_messages_fall_into_batches() {
    const MESSAGES: usize = 1_000;
    let runs: Vec<_> = (0..3)
        .map(|seed| std::thread::spawn(move || compare_batch_sizes(seed, MESSAGES)))
        .collect();
    for run in runs {
        run.join().unwrap();
    }
}

/// Reads one topic of random messages into several databases, in batches small and large.
fn compare_batch_sizes(seed: u64, messages: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scene = Scene::new(1);
    let mut latest: BTreeMap<String, Order> = BTreeMap::new();
    // Few keys repeat within a batch, and many across batches.
    let keys = random.usize(20..200);
    for _ in 0..messages {
        let order = scene.later(&format!("order-{}", random.usize(..keys)));
        scene.send_order(&order);
        latest.insert(order.order_uid.to_string(), order);
    }
    scene.flush();

    let whole = messages.to_string();
    let some = random.usize(100..500).to_string();
    let mut contents = Vec::new();
    for batch in ["1", &some, &whole] {
        scene.database = TestDatabase::create();
        let daemon = scene.start_daemon_with(&[
            ("BATCH_MAX_RECORDS", batch),
            // The batch that holds all messages must not close before they have arrived.
            ("INGEST_MEMORY_MB", "512"),
            (
                "BATCH_MAX_AGE_MS",
                if batch == whole { "10000" } else { "10" },
            ),
            ("KAFKA_GROUP_ID", &format!("{}-{batch}", scene.group)),
        ]);
        scene.wait_until_settled(i64::try_from(messages).unwrap());
        assert!(daemon.stop().success());
        contents.push(scene.database.texts(CONTENT));
        wait_until("the server has counted", PATIENCE, || {
            let replaced = scene.database.integer(REPLACED);
            if batch == whole {
                replaced == 0
            } else {
                replaced > 0
            }
        });
    }
    assert!(contents[0].len() == latest.len());
    for (row, order) in contents[0].iter().zip(latest.values()) {
        let amount = format!("\"payment_amount\": {}", order.payment.amount);
        assert!(row.contains(&amount), "seed {seed}: {row}");
        assert_eq!(row.matches("\"chrt_id\"").count(), order.items.len());
    }
    assert!(contents[0] == contents[1], "seed {seed}");
    assert!(contents[1] == contents[2], "seed {seed}");
}

/// The number of rows that were read by sequential scans.
const WALKED: &str =
    "SELECT seq_tup_read AS value FROM pg_stat_user_tables WHERE relname = 'orders'";

#[test]
fn orders_are_found_by_their_keys_in_a_database_that_nobody_has_analysed() {
    const ORDERS: usize = 1_000;
    let mut scene = Scene::new(1);
    scene
        .database
        .execute("ALTER TABLE orders SET (autovacuum_enabled = off)");
    let orders = scene.produce_orders(ORDERS);
    for order in &orders {
        let later = scene.later(order.order_uid.as_str());
        scene.send_order(&later);
    }
    scene.flush();
    let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "100")]);
    scene.wait_until_settled(i64::try_from(2 * ORDERS).unwrap());
    assert!(daemon.stop().success());
    wait_until("the server has counted", PATIENCE, || {
        scene.database.integer(REPLACED) == i64::try_from(ORDERS).unwrap()
    });
    assert_eq!(scene.database.integer(WALKED), 0);
}

/// Records each statement that replaces orders: its session, its transaction, and what its session has prepared for it.
const AUDIT_UPSERTS: &str = "
    CREATE TABLE upserts (id bigserial, pid int, txid bigint, prepared bigint, executions bigint);
    CREATE FUNCTION audit_upsert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO upserts (pid, txid, prepared, executions)
            SELECT pg_backend_pid(), txid_current(), count(*), sum(generic_plans + custom_plans)
              FROM pg_prepared_statements WHERE statement LIKE 'INSERT INTO orders %';
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit_upsert AFTER UPDATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION audit_upsert()";

#[test]
fn repeated_orders_are_replaced_whole_by_one_statement_that_is_prepared_once() {
    const MESSAGES: usize = 3_000;
    let mut scene = Scene::new(1);
    scene.database.execute(AUDIT_UPSERTS);
    let mut latest: BTreeMap<String, Order> = BTreeMap::new();
    for number in 0..MESSAGES {
        // A tenth of them repeat much earlier orders.
        let uid = format!(
            "order-{}",
            if number % 10 == 9 {
                number / 10
            } else {
                number
            }
        );
        let order = scene.later(&uid);
        scene.send_order(&order);
        latest.insert(uid, order);
    }
    scene.flush();
    let daemon = scene.start_daemon_with(&[("BATCH_MAX_RECORDS", "100")]);
    scene.wait_until_settled(i64::try_from(MESSAGES).unwrap());
    assert!(daemon.stop().success());

    let rows: Vec<OrderRow> = orders::table
        .select(OrderRow::as_select())
        .order(orders::order_uid)
        .load(&mut scene.database.connect())
        .unwrap();
    let stored: Vec<Order> = rows
        .into_iter()
        .map(|row| VersionedOrder::try_from(row).unwrap().order)
        .collect();
    assert!(stored.iter().eq(latest.values()));
    let upserts = scene.database.texts(
        "SELECT concat_ws(' ', dense_rank() OVER (ORDER BY pid), dense_rank() OVER (ORDER BY txid), prepared, executions) AS value
           FROM upserts ORDER BY id",
    );
    // There is one in each transaction, always the same prepared statement of the same session.
    assert!(upserts.len() >= 5, "{upserts:?}");
    let expected: Vec<String> = (1..=upserts.len())
        .map(|number| format!("1 {number} 1 {number}"))
        .collect();
    assert_eq!(upserts, expected);
}

#[test]
fn an_order_that_another_writer_inserts_meanwhile_is_replaced_without_trouble() {
    let mut scene = Scene::new(1);
    let daemon = scene.start_daemon();
    let (theirs, ours) = (scene.later("contended"), scene.later("contended"));
    let mut other = scene.database.connect();
    let outcome = other.transaction(|other| {
        diesel::insert_into(orders::table)
            .values(NewOrder::new(&theirs, None))
            .execute(other)?;
        // The daemon sees no row to lock, and then cannot insert one.
        scene.produce(std::slice::from_ref(&ours));
        scene.wait_until_a_lock_is_awaited();
        QueryResult::Ok(())
    });
    outcome.unwrap();
    scene.wait_until_settled(1);
    let of_the_message =
        "SELECT jsonb_array_length(items)::bigint AS value FROM orders WHERE source_offset = 0";
    assert_eq!(
        scene.database.integer(of_the_message),
        i64::try_from(ours.items.len()).unwrap()
    );
    assert_eq!(daemon.metric("orders_ingestor_retries_total"), 0.0);
    assert_eq!(daemon.metric("orders_ingestor_orders_stored_total"), 1.0);
}

/// An order with a mark in its items and in another column, which shows that they belong together.
fn marked_order(generator: &mut OrderGenerator, uid: &str, mark: u64) -> Order {
    let mut order = generator.order_with_uid(uid);
    let mark = i64::try_from(mark).unwrap();
    let mut item = order.items.swap_remove(0);
    item.chrt_id = mark;
    order.items = vec![item; 1 + usize::try_from(mark % 3).unwrap()];
    order.payment.amount = mark;
    order
}

/// A trigger that rejects an order whose items and other columns do not belong together.
const MIXES_NOTHING: &str = "ALTER TABLE orders ADD CONSTRAINT mixes_nothing CHECK (
    jsonb_array_length(items) = 1 + payment_amount % 3
    AND NOT jsonb_path_exists(items, '$[*] ? (@.chrt_id != $mark)', jsonb_build_object('mark', payment_amount)))";

#[test]
fn writers_of_the_same_orders_neither_mix_two_nor_deadlock() {
    const UIDS: usize = 30;
    const MESSAGES: usize = 6_000;
    let scene = Scene::new(4);
    scene.database.execute(MIXES_NOTHING);
    let mut generator = OrderGenerator::new(1, "2026-01-01T00:00:00Z".parse().unwrap());
    let mark = AtomicU64::new(0);
    let uid = |number: usize| format!("order-{number}");
    // The keys spread each order over all partitions, as no producer should. So all writers of both daemons write it.
    for number in 0..MESSAGES {
        let mark = mark.fetch_add(1, Ordering::Relaxed);
        let order = marked_order(&mut generator, &uid(fastrand::usize(..UIDS)), mark);
        let message = serde_json::to_vec(&order).unwrap();
        scene.send(Some(&number.to_string()), Some(&message));
    }
    scene.flush();

    let api = Api::start(&scene.database);
    wait_until("the api is ready", PATIENCE, || {
        api.get("/readyz").status == 200
    });
    let small_batches = [("BATCH_MAX_RECORDS", "40")];
    let daemons = [
        scene.start_daemon_with(&small_batches),
        scene.start_daemon_with(&small_batches),
    ];
    wait_until("orders are being stored", PATIENCE, || scene.stored() > 0);

    let finished = AtomicBool::new(false);
    let replaced = AtomicU64::new(0);
    std::thread::scope(|threads| {
        for seed in 0..3 {
            let (api, finished, replaced, mark) = (&api, &finished, &replaced, &mark);
            threads.spawn(move || {
                let mut generator =
                    OrderGenerator::new(seed, "2026-02-01T00:00:00Z".parse().unwrap());
                while !finished.load(Ordering::Relaxed) {
                    let uid = uid(fastrand::usize(..UIDS));
                    let mark = mark.fetch_add(1, Ordering::Relaxed);
                    let order = marked_order(&mut generator, &uid, mark);
                    let body = serde_json::to_string(&order).unwrap();
                    let path = format!("/api/v1/orders/{uid}");
                    match api.request("PUT", &path, Some(&body)).status {
                        200 => replaced.fetch_add(1, Ordering::Relaxed),
                        // It is not stored yet.
                        404 => continue,
                        status => panic!("a PUT was answered with {status}"),
                    };
                }
            });
        }
        scene.wait_until_settled(i64::try_from(MESSAGES).unwrap());
        finished.store(true, Ordering::Relaxed);
    });
    assert!(replaced.into_inner() > 50);
    assert_eq!(scene.stored(), i64::try_from(UIDS).unwrap());
    assert_eq!(scene.dead_letters(), 0);
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
    // The sessions have ended, so the server has counted them.
    let deadlocks =
        "SELECT deadlocks AS value FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(scene.database.integer(deadlocks), 0);
}
