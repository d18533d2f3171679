//! The live feed: which events it sends, when, and to whom, and what happens to clients that do not read.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use shared::config::ShutdownSettings;
use shared::order::Order;
use shared::testing::{TcpProxy, TestDatabase, eventually};

use crate::support::download::{Cut, Download};
use crate::support::{PATIENCE, TestApi, generator, model, notify, store, terminate_listener};

const PATH: &str = "/api/v1/events";

/// A client of the feed.
struct Follower {
    download: Download,
    text: String,
    last_id: Option<String>,
}

impl Follower {
    /// Begins to follow behind the event with this id, or at the present moment.
    async fn start(api: &TestApi, last_id: Option<&str>) -> Self {
        Self::start_at(api, PATH, last_id).await
    }

    /// Follows only these orders.
    async fn start_for(api: &TestApi, uids: &str, last_id: Option<&str>) -> Self {
        Self::start_at(api, &format!("{PATH}?order_uids={uids}"), last_id).await
    }

    async fn start_at(api: &TestApi, path: &str, last_id: Option<&str>) -> Self {
        let header = last_id.map(|id| format!("Last-Event-ID: {id}\r\n"));
        let download = Download::start_with(api.port, path, &header.unwrap_or_default()).await;
        assert_eq!(download.status(), 200, "{}", download.head);
        let mut follower = Self {
            download,
            text: String::new(),
            last_id: None,
        };
        // Without an id, the first block is a greeting that names the newest id.
        if last_id.is_none() {
            let greeting = follower.next_block().await.unwrap();
            assert!(greeting.starts_with("retry: 3000\nid: "), "{greeting}");
        }
        follower
    }

    /// Reads everything up to the next empty line.
    async fn next_block(&mut self) -> Result<String, Cut> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let id = block.lines().find_map(|line| line.strip_prefix("id: "));
                self.last_id = id.map(str::to_owned).or(self.last_id.take());
                return Ok(block);
            }
            let chunk = self.download.next_chunk().await?.ok_or(Cut)?;
            self.text.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    /// Reads the next event: its name and its data.
    async fn next(&mut self) -> Result<(String, Value), Cut> {
        let event = tokio::time::timeout(PATIENCE, self.read_event()).await;
        event.expect("no event has come in time")
    }

    /// Skips comments.
    async fn read_event(&mut self) -> Result<(String, Value), Cut> {
        loop {
            let block = self.next_block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(event), Some(data)) = (field("event: "), field("data: ")) {
                return Ok((event.to_owned(), serde_json::from_str(data).unwrap()));
            }
        }
    }

    async fn expect(&mut self, event: &str, data: Value) {
        assert_eq!(self.next().await.unwrap(), (event.to_owned(), data));
    }

    /// Waits until the events have named all of these orders, in any batches.
    async fn expect_upserts(&mut self, mut uids: Vec<&str>) {
        while !uids.is_empty() {
            let (event, data) = self.next().await.unwrap();
            assert_eq!((event.as_str(), &data["op"]), ("order", &json!("upsert")));
            let told = data["order_uids"].as_array().unwrap();
            uids.retain(|uid| !told.contains(&json!(uid)));
        }
    }
}

fn upsert(order: &Order) -> Value {
    json!({"op": "upsert", "order_uids": [order.order_uid.as_str()]})
}

async fn metric(api: &TestApi, name: &str) -> u64 {
    let metrics = api.get("/metrics").await.body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("{name} is missing"));
    line.trim().parse().unwrap()
}

async fn clients_are(api: &TestApi, count: u64) {
    eventually("this number of clients follows", PATIENCE, async || {
        metric(api, "orders_api_sse_clients").await == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_after_an_event_gets_no_older_version() {
    let api = TestApi::start().await;
    let mut order = model();
    api.store(&order).await;
    let path = format!("/order/{}", order.order_uid);
    let mut follower = Follower::start(&api, None).await;
    for round in 1..=10 {
        // The order is cached, so only the event can bring the new version.
        api.get(&path).await;
        order.sm_id = round;
        store(&api.database, &order);
        follower.expect("order", upsert(&order)).await;
        assert_eq!(api.get(&path).await.json()["sm_id"], round);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_through_the_api_are_sent_as_well() {
    let api = TestApi::start().await;
    let order = model();
    api.store(&order).await;
    let mut follower = Follower::start(&api, None).await;
    assert_eq!(api.put(&order, &[]).await.status, 200);
    follower.expect("order", upsert(&order)).await;
    let path = format!("/api/v1/orders/{}", order.order_uid);
    assert_eq!(api.send("DELETE", &path, &[], b"").await.status, 204);
    let deleted = json!({"op": "delete", "order_uids": [order.order_uid.as_str()]});
    follower.expect("order", deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_comes_back_gets_what_it_has_missed() {
    let api = TestApi::start().await;
    let mut generator = generator();
    let orders: Vec<_> = (0..3).map(|_| generator.next_order()).collect();
    let mut follower = Follower::start(&api, None).await;
    // The id of the greeting is enough to go on from, before any event.
    let greeting_id = follower.last_id.clone().unwrap();
    api.store(&orders[0]).await;
    follower.expect("order", upsert(&orders[0])).await;
    let id = follower.last_id.clone().unwrap();
    drop(follower);
    api.store(&orders[1]).await;
    api.store(&orders[2]).await;
    let uids: Vec<_> = orders
        .iter()
        .map(|order| order.order_uid.as_str())
        .collect();
    let mut back = Follower::start(&api, Some(&id)).await;
    back.expect_upserts(uids[1..].to_vec()).await;
    let mut from_greeting = Follower::start(&api, Some(&greeting_id)).await;
    from_greeting.expect("order", upsert(&orders[0])).await;
    from_greeting.expect_upserts(uids[1..].to_vec()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_some_orders_gets_only_their_events_and_every_resync() {
    let api = TestApi::start().await;
    let mut all = Follower::start(&api, None).await;
    let mut some = Follower::start_for(&api, "b,absent,d", None).await;
    let mut one = Follower::start_for(&api, "d", None).await;
    let notify = |payload: Value| notify(&mut api.database.connect(), &payload.to_string());
    let changed = |op: &str, uids: &[&str]| json!({"v": 1, "op": op, "uids": uids});
    let told = |op: &str, uids: &[&str]| json!({"op": op, "order_uids": uids});
    // Together in one transaction and one event.
    notify(changed("upsert", &["a", "b", "c", "d", "upsert"])).unwrap();
    let everything = told("upsert", &["a", "b", "c", "d", "upsert"]);
    all.expect("order", everything).await;
    some.expect("order", told("upsert", &["b", "d"])).await;
    one.expect("order", told("upsert", &["d"])).await;
    assert_eq!(some.last_id, all.last_id, "the same event has the same id");
    notify(changed("delete", &["a"])).unwrap();
    all.expect("order", told("delete", &["a"])).await;
    notify(changed("delete", &["b"])).unwrap();
    all.expect("order", told("delete", &["b"])).await;
    some.expect("order", told("delete", &["b"])).await;
    notify(changed("flush", &[])).unwrap();
    for client in [&mut all, &mut some, &mut one] {
        client.expect("resync", json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_some_orders_that_comes_back_gets_what_it_has_missed_of_them() {
    let api = TestApi::start().await;
    let mut generator = generator();
    let orders: Vec<_> = (0..3).map(|_| generator.next_order()).collect();
    let mut follower = Follower::start(&api, None).await;
    let id = follower.last_id.clone().unwrap();
    for order in &orders {
        api.store(order).await;
        follower.expect("order", upsert(order)).await;
    }
    let uids = [&orders[0].order_uid, &orders[2].order_uid].map(|uid| uid.as_str());
    let mut back = Follower::start_for(&api, &uids.join(","), Some(&id)).await;
    back.expect("order", upsert(&orders[0])).await;
    back.expect("order", upsert(&orders[2])).await;
    assert_eq!(back.last_id, follower.last_id);
    let mut lost = Follower::start_for(&api, uids[0], Some("unknown-1")).await;
    lost.expect("resync", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_orders_are_at_most_100_valid_ids() {
    let api = TestApi::start().await;
    let ids = |count: usize| (0..count).map(|number| format!("id-{number}"));
    let listed = |count| ids(count).collect::<Vec<_>>().join(",");
    for method in ["GET", "HEAD"] {
        for wrong in [
            "",
            "a,,b",
            "a,",
            "a%20b",
            "-a",
            "a&order_uids=b",
            &listed(101),
        ] {
            let path = format!("{PATH}?order_uids={wrong}");
            let refused = api.send(method, &path, &[], b"").await;
            assert_eq!(refused.status, 400, "{method} {wrong}");
            if method == "GET" {
                assert_eq!(refused.problem().1, "invalid_parameter", "{wrong}");
            }
        }
    }
    Follower::start_for(&api, &listed(100), None).await;
    Follower::start_for(&api, "a,a%2Cb", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_id_is_answered_with_resync() {
    let api = TestApi::start().await;
    let other = TestApi::start_unready(Arc::clone(&api.database), |_| {}).await;
    other.wait_until_live().await;
    let foreign = Follower::start(&other, None).await.last_id.unwrap();
    let own = Follower::start(&api, None).await.last_id.unwrap();
    assert_ne!(foreign, own);
    let later = format!("{own}0");
    for id in [&*foreign, &later, "0", "\u{e9}", "x".repeat(1000).as_str()] {
        let mut follower = Follower::start(&api, Some(id)).await;
        follower.expect("resync", json!({})).await;
        // The event has an id to go on from.
        let id = follower.last_id.unwrap();
        let mut follower = Follower::start(&api, Some(&id)).await;
        api.store(&model()).await;
        follower.expect("order", upsert(&model())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_of_the_listener_every_client_gets_resync() {
    let api = TestApi::start().await;
    let order = model();
    api.store(&order).await;
    let path = format!("/order/{}", order.order_uid);
    api.get(&path).await;
    let mut follower = Follower::start(&api, None).await;
    let id = follower.last_id.clone().unwrap();
    // No event tells of this change. If there were one, a listener that is back at once might receive it after `resync`.
    api.database
        .execute("UPDATE orders SET sm_id = 1234, version = nextval('order_version_seq')");
    terminate_listener(&api.database);
    while follower.next().await.unwrap().0 != "resync" {}
    assert_eq!(api.get(&path).await.json()["sm_id"], 1234);
    // A client that was away at that time gets it, too.
    let mut back = Follower::start(&api, Some(&id)).await;
    while back.next().await.unwrap().0 != "resync" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn event_that_names_no_orders_sends_resync_to_every_client() {
    let api = TestApi::start().await;
    let mut follower = Follower::start(&api, None).await;
    for payload in [
        r#"{"v":1,"op":"flush","uids":[]}"#,
        "nonsense",
        r#"{"v":2}"#,
    ] {
        notify(&mut api.database.connect(), payload).unwrap();
        follower.expect("resync", json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_follows_before_the_database_is_reachable_gets_resync_afterwards() {
    let database = TestDatabase::create();
    let settings = database.settings();
    let proxy = TcpProxy::start(&settings.host, settings.port).await;
    proxy.cut();
    let api = TestApi::start_unready(database.into(), |config| {
        config.database.host = "127.0.0.1".to_owned();
        config.database.port = proxy.port();
    })
    .await;
    let mut follower = Follower::start(&api, None).await;
    proxy.mend();
    follower.expect("resync", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_uid_cannot_forge_events() {
    let api = TestApi::start().await;
    let mut follower = Follower::start(&api, None).await;
    let uid = "a\n\nevent: resync\ndata: {}\n\n\r\u{2028}\"";
    let payload = json!({"v": 1, "op": "upsert", "uids": [uid]}).to_string();
    notify(&mut api.database.connect(), &payload).unwrap();
    let told = json!({"op": "upsert", "order_uids": [uid]});
    follower.expect("order", told).await;
}

/// The number of orders in a flood.
const FLOOD: usize = 30_000;

/// Sends events of about half the size of the ring. They name different orders in each of 26 rounds.
fn flood(api: &TestApi, round: u8) {
    let flood = "SELECT pg_notify('order_events', json_build_object('v', 1, 'op', 'upsert', 'uids', uids)::text) \
        FROM (SELECT array_agg(lpad(number::text, 64, 'LETTER')) uids FROM generate_series(1, 30000) number \
              GROUP BY number / 100) payloads";
    let letter = char::from(b'a' + round % 26).to_string();
    api.database.execute(&flood.replace("LETTER", &letter));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_is_too_slow_is_cut_off_and_gets_resync() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        // Nothing but its slowness may end the stream.
        config.server.deadlines.write = Duration::from_secs(600);
    })
    .await;
    let mut slow = Follower {
        download: Download::start_narrow_with(api.port, PATH, "").await,
        text: String::new(),
        last_id: None,
    };
    slow.next_block().await.unwrap();
    let mut other = Follower::start(&api, None).await;
    // This is much more than the ring and the socket hold. A client that reads gets everything, and waits for no other client.
    for round in 0..10 {
        flood(&api, round);
        let mut told = 0;
        while told < FLOOD {
            let (_, data) = other.next().await.unwrap();
            told += data["order_uids"].as_array().unwrap().len();
        }
    }
    while slow.next().await.is_ok() {}
    assert_eq!(metric(&api, "orders_api_sse_dropped_total").await, 1);
    let mut back = Follower::start(&api, slow.last_id.as_deref()).await;
    back.expect("resync", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_ends_the_connection_of_a_client_that_reads_nothing() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.server.deadlines.write = Duration::from_millis(300);
    })
    .await;
    let _silent = Download::start_narrow_with(api.port, PATH, "").await;
    clients_are(&api, 1).await;
    // The system takes some megabytes before the connection stalls. More at once would leave the ring before the time is up, and
    // the stream would be ended for its slowness.
    for round in 0..10 {
        flood(&api, round);
        let ended = tokio::time::timeout(Duration::from_secs(1), clients_are(&api, 0));
        if ended.await.is_ok() {
            break;
        }
    }
    // The connection ends after its stream.
    let name = r#"orders_api_http_dropped_connections_total{reason="write_timeout"}"#;
    eventually("the connection is counted", PATIENCE, async || {
        metric(&api, name).await == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_frees_its_place() {
    let api = TestApi::start().await;
    let followers = [
        Follower::start(&api, None).await,
        Follower::start(&api, None).await,
    ];
    clients_are(&api, 2).await;
    drop(followers);
    clients_are(&api, 0).await;
    assert_eq!(metric(&api, "orders_api_sse_dropped_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_clients_are_refused() {
    let api = TestApi::start().await;
    let mut followers = Vec::new();
    // Each address gets a tenth of the places, and then those that it has refuse it nothing else.
    for address in 2..12 {
        for _ in 0..100 {
            let follower = Download::start_from([127, 0, 0, address], api.port, PATH).await;
            assert_eq!(follower.status(), 200, "{address}");
            followers.push(follower);
        }
        if address == 2 {
            let refused = Download::start_from([127, 0, 0, 2], api.port, PATH).await;
            assert_eq!(refused.status(), 503, "the share of this address");
            let refused = String::from_utf8(refused.bytes().await.unwrap()).unwrap();
            assert!(refused.contains("this address"), "{refused}");
        }
    }
    let refused = api.get(PATH).await;
    assert_eq!(refused.problem(), (503, "overloaded".into()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(
        refused.body.contains("the limit of clients"),
        "{}",
        refused.body
    );
    assert_eq!(api.get("/livez").await.status, 200);
    followers.pop();
    eventually("there is room again", PATIENCE, async || {
        Download::start_with(api.port, PATH, "").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_connections_are_closed() {
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.shutdown_drain = Duration::from_secs(1);
        config.shutdown = ShutdownSettings::new(Duration::from_secs(60));
    })
    .await;
    let mut follower = Follower::start(&api, None).await;
    let stopped = async {
        api.shutdown.cancel();
        store(&api.database, &model());
        let event = follower.next().await;
        assert!(event.is_ok(), "the stream has ended before the drain");
        assert_eq!(follower.next().await, Err(Cut));
        api.stop().await;
    };
    // This is sooner than the next comment, at which the server would notice the stop in any case.
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_is_neither_stored_nor_held_back_nor_compressed() {
    let api = TestApi::start().await;
    let accepts = "Accept: text/event-stream\r\nAccept-Encoding: gzip, br\r\n";
    let download = Download::start_with(api.port, PATH, accepts).await;
    for header in [
        "content-type: text/event-stream\r\n",
        "cache-control: no-store, no-transform\r\n",
        "x-accel-buffering: no\r\n",
    ] {
        assert!(download.head.contains(header), "{}", download.head);
    }
    assert!(!download.head.contains("content-encoding"));
    let head = api.send("HEAD", PATH, &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-type")),
        (200, Some("text/event-stream"))
    );
    assert_eq!(metric(&api, "orders_api_sse_clients").await, 1);
}
