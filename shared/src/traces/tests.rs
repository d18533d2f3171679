//! The way of a span to a collector.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::config::TraceArgs;
use crate::testing::{Manner, TestCollector, eventually, parse_arguments};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser, Debug)]
struct Program {
    #[command(flatten)]
    traces: TraceArgs,
}

/// Traces to a collector, and what is counted of them.
struct Scene {
    traces: Traces,
    registry: Registry,
}

impl Scene {
    fn start(collector: &TestCollector, more: &[&str]) -> Self {
        let endpoint = collector.endpoint();
        let arguments = [
            "--otel-exporter-otlp-endpoint",
            endpoint.as_str(),
            "--otel-bsp-schedule-delay=10",
        ];
        let program: Program = parse_arguments(&[&arguments, more].concat()).unwrap();
        let settings = program.traces.resolve("orders-test").unwrap();
        let mut registry = Registry::default();
        let metrics = TraceMetrics::register(&mut registry);
        Self {
            traces: Traces::start(&settings, &metrics).unwrap().unwrap(),
            registry,
        }
    }

    fn begin(&self, name: &str) -> Span {
        let new = NewSpan {
            name: name.to_owned(),
            kind: SpanKind::Internal,
            started_at: SystemTime::now(),
            links: Vec::new(),
        };
        self.traces.begin(Origin::NONE, new)
    }

    async fn wait_for(&self, outcome: &str, count: usize) {
        let line = format!("trace_spans_total{{outcome=\"{outcome}\"}} {count}\n");
        eventually(&line, PATIENCE, async || {
            let mut text = String::new();
            encode(&mut text, &self.registry).unwrap();
            text.contains(&line)
        })
        .await;
    }
}

#[tokio::test]
async fn what_thread_and_future_work_for_is_the_parent_of_their_parts() {
    let collector = TestCollector::start(Manner::Takes);
    let scene = Scene::start(&collector, &[]);
    assert!(current().is_none() && part("orphan").is_none());
    let root = scene.begin("root");
    {
        let _entered = root.enter();
        let outcome: Result<(), &str> = leaf("failing", || {
            // A leaf has no spans of its own.
            assert!(part("inner").is_none());
            Err("reason")
        });
        assert_eq!(outcome, Err("reason"));
    }
    let work = async {
        tokio::task::yield_now().await;
        leaf_async("awaited", async { Ok::<_, ()>(current().is_some()) }).await
    };
    let spawned = tokio::spawn(within(Some(&root), work));
    assert!(current().is_none());
    assert_eq!(spawned.await.unwrap(), Ok(true));
    root.end();
    scene.wait_for("sent", 3).await;
    let root = collector.wait_for("root", |span| span.name == "root");
    let failing = collector.wait_for("failing", |span| span.is_child_of(&root));
    assert!(failing.has_failed && failing.name == "failing");
    collector.wait_for("awaited", |span| {
        span.is_child_of(&root) && span.name == "awaited" && !span.has_failed
    });
}

#[tokio::test]
async fn each_span_is_counted_by_what_became_of_it() {
    let collector = TestCollector::start(Manner::RejectsOne);
    let scene = Scene::start(&collector, &["--otel-exporter-otlp-timeout=300"]);
    scene.begin("rejected").end();
    scene.wait_for("rejected", 1).await;
    collector.set_manner(Manner::Refuses);
    scene.begin("refused").end();
    scene.wait_for("failed", 1).await;
    collector.set_manner(Manner::Hangs);
    scene.begin("not answered in time").end();
    scene.wait_for("failed", 2).await;
    collector.set_manner(Manner::Takes);
    scene.begin("sent").end();
    scene.wait_for("sent", 1).await;
    scene.traces.finish(PATIENCE).await;
    scene.wait_for("dropped", 0).await;
}

#[tokio::test]
async fn spans_that_find_no_place_are_dropped_and_those_that_wait_at_the_end_too() {
    let collector = TestCollector::start(Manner::Hangs);
    let scene = Scene::start(&collector, &["--otel-bsp-max-queue-size=3"]);
    // One is under way, and the collector never answers.
    scene.begin("under way").end();
    eventually("one is under way", PATIENCE, async || {
        collector.requests() > 0
    })
    .await;
    for _ in 0..5 {
        scene.begin("waiting").end();
    }
    scene.wait_for("dropped", 2).await;
    let began = Instant::now();
    scene.traces.finish(Duration::from_millis(50)).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    scene.wait_for("dropped", 5).await;
}

#[tokio::test]
async fn the_collector_may_have_a_certificate_of_a_private_ca() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let collector = TestCollector::start_with_tls(Arc::new(config));
    let file = PemFile::write(&cert.pem());
    let path = file.0.to_str().unwrap();
    let scene = Scene::start(&collector, &["--otel-exporter-otlp-certificate", path]);
    scene.begin("sent over TLS").end();
    scene.wait_for("sent", 1).await;

    // Nobody else trusts it.
    let scene = Scene::start(&collector, &[]);
    scene.begin("refused").end();
    scene.wait_for("failed", 1).await;
}

/// A file that is removed when the test ends.
struct PemFile(PathBuf);

impl PemFile {
    fn write(text: &str) -> Self {
        let name = format!("orders-ca-{}.pem", uuid::Uuid::new_v4());
        let file = Self(std::env::temp_dir().join(name));
        std::fs::write(&file.0, text).unwrap();
        file
    }
}

impl Drop for PemFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}
