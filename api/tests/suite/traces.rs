//! Traces: what a request's header leads to, what is in no span, and that a collector in trouble harms nothing.

use std::time::{Duration, Instant};

use api::config::Cli;
use serde_json::Value;
use shared::config::TraceSettings;
use shared::testing::{
    Manner, ReceivedSpan, TestCollector, TestDatabase, eventually, parse_arguments,
};

use crate::support::program::Program;
use crate::support::{Answer, PATIENCE, TableLock, TestApi, generator, model};

const UID: &str = "b563feb7b2b84b6test";
/// The number of the kinds of spans in OTLP.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// The span of a client who asks for a trace.
struct Client {
    trace_id: String,
    span_id: &'static str,
}

impl Client {
    fn new() -> Self {
        Self {
            trace_id: uuid::Uuid::new_v4().simple().to_string(),
            span_id: "00f067aa0ba902b7",
        }
    }

    fn header(&self) -> String {
        format!("00-{}-{}-01", self.trace_id, self.span_id)
    }

    fn unsampled(&self) -> String {
        format!("00-{}-{}-00", self.trace_id, self.span_id)
    }

    async fn get(&self, api: &TestApi, path: &str) -> Answer {
        let header = self.header();
        api.send("GET", path, &[("traceparent", &header)], b"")
            .await
    }
}

/// Settings that send every span at once, and trace only what a client asks for.
fn traces_to(endpoint: &str, more: &[&str]) -> TraceSettings {
    let arguments = [
        "--otel-exporter-otlp-endpoint",
        endpoint,
        "--otel-bsp-schedule-delay=20",
        "--otel-traces-sampler=parentbased_always_off",
    ];
    let cli: Cli = parse_arguments(&[&arguments, more].concat()).unwrap();
    cli.config().unwrap().traces
}

async fn traced_api(collector: &TestCollector) -> TestApi {
    TestApi::start_with(TestDatabase::create(), |config| {
        config.traces = traces_to(&collector.endpoint(), &[]);
    })
    .await
}

/// Waits for the span of a client's request.
fn server_span(collector: &TestCollector, client: &Client) -> ReceivedSpan {
    collector.wait_for("the request", |span| {
        span.kind == SERVER && span.trace_id == client.trace_id
    })
}

fn child(collector: &TestCollector, parent: &ReceivedSpan, name: &str) -> ReceivedSpan {
    collector.wait_for(name, |span| span.name == name && span.is_child_of(parent))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_leads_to_its_load_and_its_statement() {
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    api.store(&model()).await;
    let client = Client::new();
    let path = format!("/order/{UID}");
    assert_eq!(client.get(&api, &path).await.status, 200);

    let request = server_span(&collector, &client);
    assert_eq!(request.name, "GET /order/{order_uid}");
    assert_eq!(request.parent_id, client.span_id);
    assert_eq!(request.attribute("http.route"), "/order/{order_uid}");
    assert_eq!(request.attribute("http.request.method"), "GET");
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(
        request.attribute("orders.cache_status"),
        "orders; fwd=miss; stored"
    );
    assert_eq!(request.resource["service.name"], "orders-api");
    let load = child(&collector, &request, "load an order");
    let statement = child(&collector, &load, "SELECT orders");
    assert_eq!(statement.kind, CLIENT);
    assert_eq!(statement.attribute("db.system.name"), "postgresql");

    // A hit has no other span.
    let hitting = Client::new();
    assert_eq!(hitting.get(&api, &path).await.status, 200);
    let hit = server_span(&collector, &hitting);
    assert_eq!(hit.attribute("orders.cache_status"), "orders; hit");
    api.stop().await;
    assert_eq!(collector.trace(&hitting.trace_id).len(), 1);
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains(UID), "{everything}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_leads_to_the_steps_of_its_transaction() {
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    let path = format!("/api/v1/orders/{UID}");
    for (method, expected, name, steps) in [
        (
            "POST",
            201,
            "UPSERT orders",
            &["lock the row", "insert the row"][..],
        ),
        (
            "PUT",
            200,
            "UPSERT orders",
            &["lock the row", "replace the row"],
        ),
        ("PATCH", 200, "UPDATE orders", &["lock the row"]),
        (
            "DELETE",
            204,
            "DELETE orders",
            &["lock the row", "delete the row", "note it in the ledger"],
        ),
    ] {
        let client = Client::new();
        let header = client.header();
        let mut headers = vec![("traceparent", header.as_str())];
        let (target, body) = match method {
            "POST" => ("/api/v1/orders", serde_json::to_vec(&model()).unwrap()),
            "PUT" => (path.as_str(), serde_json::to_vec(&model()).unwrap()),
            "PATCH" => (path.as_str(), br#"{"locale":"de"}"#.to_vec()),
            _ => (path.as_str(), Vec::new()),
        };
        match method {
            "PATCH" => headers.push(("Content-Type", "application/merge-patch+json")),
            "DELETE" => {}
            _ => headers.push(("Content-Type", "application/json")),
        }
        let answer = api.send(method, target, &headers, &body).await;
        assert_eq!(answer.status, expected, "{method}: {}", answer.body);
        let request = server_span(&collector, &client);
        let transaction = child(&collector, &request, name);
        for step in steps.iter().chain(&["notify the caches", "COMMIT"]) {
            child(&collector, &transaction, step);
        }
    }
    api.stop().await;
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains(UID), "{everything}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_joins_a_load_links_to_it() {
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    api.store(&model()).await;
    let lock = TableLock::take(&api.database, "orders");
    let (first, second) = (Client::new(), Client::new());
    let path = format!("/order/{UID}");
    let joining = async {
        eventually("the load runs", PATIENCE, async || {
            api.stats().await["loads"]["started"] == 1
        })
        .await;
        second.get(&api, &path).await
    };
    let unlock = async {
        eventually("the second reader has joined", PATIENCE, async || {
            api.stats().await["loads"]["coalesced"] == 1
        })
        .await;
        lock.release();
    };
    let (answer, joined, ()) = tokio::join!(first.get(&api, &path), joining, unlock);
    assert_eq!((answer.status, joined.status), (200, 200));
    let request = server_span(&collector, &first);
    let load = child(&collector, &request, "load an order");
    let joined = server_span(&collector, &second);
    assert!(joined.is_linked_to(&load), "{joined:#?}");
    assert_eq!(
        joined.attribute("orders.cache_status"),
        "orders; fwd=miss; collapsed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_that_share_a_statement_link_to_the_one_that_it_belongs_to() {
    const READERS: usize = 5;
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    let mut orders = generator();
    let mut paths = Vec::new();
    for number in 0..READERS {
        let uid = format!("uid-{number}");
        api.store(&orders.order_with_uid(&uid)).await;
        paths.push(format!("/order/{uid}"));
    }
    let lock = TableLock::take(&api.database, "orders");
    let clients: Vec<Client> = (0..READERS).map(|_| Client::new()).collect();
    let readers = clients.iter().zip(&paths);
    let readers =
        futures_util::future::join_all(readers.map(|(client, path)| client.get(&api, path)));
    let unlock = async {
        eventually("all readers wait", PATIENCE, async || {
            api.stats().await["loads"]["started"] == READERS
        })
        .await;
        lock.release();
    };
    let (answers, ()) = tokio::join!(readers, unlock);
    assert!(answers.iter().all(|answer| answer.status == 200));
    api.stop().await;
    let spans = collector.spans();
    let loads: Vec<&ReceivedSpan> = spans
        .iter()
        .filter(|span| span.name == "load an order")
        .collect();
    assert_eq!(loads.len(), READERS);
    let has_statement = |load: &ReceivedSpan| {
        let mut statements = spans.iter().filter(|span| span.name == "SELECT orders");
        statements.any(|statement| statement.is_child_of(load))
    };
    // Two statements run at a time, so at least three of the five loads have shared one.
    let (leading, led): (Vec<_>, Vec<_>) = loads.into_iter().partition(|load| has_statement(load));
    assert!(!led.is_empty() && !leading.is_empty());
    for load in led {
        assert!(
            leading.iter().any(|leader| load.is_linked_to(leader)),
            "{load:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_sampled_leaves_nothing() {
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    let (unsampled, sampled) = (Client::new(), Client::new());
    let header = unsampled.unsampled();
    for path in ["/order/a", "/api/v1/orders"] {
        let headers = [("traceparent", header.as_str())];
        let answer = api.send("GET", path, &headers, b"").await;
        assert!(!answer.body.contains("trace_id"), "{}", answer.body);
    }
    // Nobody asks, and the sampler begins no traces.
    api.get("/order/a").await;
    api.send("GET", "/order/a", &[("traceparent", "nonsense")], b"")
        .await;
    sampled.get(&api, "/order/a").await;
    server_span(&collector, &sampled);
    api.stop().await;
    let spans = collector.spans();
    assert!(
        spans.iter().all(|span| span.trace_id == sampled.trace_id),
        "{spans:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_and_the_log_name_the_trace() {
    let collector = TestCollector::start(Manner::Takes);
    let database = TestDatabase::create();
    let endpoint = collector.endpoint();
    let program = Program::start(
        &database,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20canary",
            ),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
            ("OTEL_SERVICE_NAME", "shop"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test",
            ),
            ("LOG_ACCESS", "all"),
        ],
    )
    .await;
    let client = Client::new();
    let answer = program
        .send(&format!(
            "GET /order/nobody HTTP/1.1\r\nHost: localhost\r\ntraceparent: {}\r\nConnection: close\r\n\r\n",
            client.header()
        ))
        .await;
    assert_eq!(answer.status, 404);
    let problem: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["trace_id"], client.trace_id);
    program
        .wait_until_logged(&format!("trace_id={}", client.trace_id))
        .await;
    let request = server_span(&collector, &client);
    assert_eq!(request.attribute("orders.problem.code"), "order_not_found");
    // The client's fault is no failure of the server.
    assert!(!request.has_failed);
    assert_eq!(request.resource["service.name"], "shop");
    assert_eq!(request.resource["deployment.environment.name"], "test");
    let authorization = collector.header("authorization");
    assert_eq!(authorization.as_deref(), Some("Bearer canary"));
    assert!(!program.log().contains("canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_database_is_a_failed_span() {
    let collector = TestCollector::start(Manner::Takes);
    let api = traced_api(&collector).await;
    api.database
        .execute("ALTER TABLE orders RENAME COLUMN locale TO local");
    let client = Client::new();
    assert_eq!(client.get(&api, "/api/v1/orders").await.status, 500);
    let request = server_span(&collector, &client);
    assert!(request.has_failed);
    assert_eq!(request.attribute("error.type"), "500");
    assert!(child(&collector, &request, "SELECT orders").has_failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_sent_when_the_process_stops() {
    let collector = TestCollector::start(Manner::Takes);
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.traces = traces_to(&collector.endpoint(), &[]);
        config.traces.delay = Duration::from_secs(600);
    })
    .await;
    let client = Client::new();
    client.get(&api, "/order/a").await;
    assert_eq!(collector.requests(), 0);
    api.stop().await;
    assert!(!collector.trace(&client.trace_id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_requests_are_answered_and_spans_are_counted_as_failed() {
    let port = servers::ports::free_port().unwrap();
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        config.traces = traces_to(&format!("http://127.0.0.1:{port}"), &[]);
    })
    .await;
    let failed = "orders_api_trace_spans_total{outcome=\"failed\"}";
    eventually("spans have failed", PATIENCE, async || {
        assert_eq!(Client::new().get(&api, "/order/a").await.status, 404);
        api.metric(failed).await > 0
    })
    .await;
    assert_eq!(
        api.metric("orders_api_trace_spans_total{outcome=\"sent\"}")
            .await,
        0
    );
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_fills_a_bounded_queue_and_delays_no_stop() {
    let collector = TestCollector::start(Manner::Hangs);
    let api = TestApi::start_with(TestDatabase::create(), |config| {
        let few = ["--otel-bsp-max-queue-size=5"];
        config.traces = traces_to(&collector.endpoint(), &few);
        config.shutdown = shared::config::ShutdownSettings::new(Duration::from_secs(2));
    })
    .await;
    let dropped = "orders_api_trace_spans_total{outcome=\"dropped\"}";
    eventually("spans are dropped", PATIENCE, async || {
        assert_eq!(Client::new().get(&api, "/order/a").await.status, 404);
        api.metric(dropped).await > 0
    })
    .await;
    let stopped_at = Instant::now();
    api.stop().await;
    let taken = stopped_at.elapsed();
    assert!(taken < Duration::from_secs(4), "{taken:?}");
}
