//! Sends spans to a collector: OTLP over HTTP, as protobuf.
//!
//! The messages are the library's. Its exporter is not used: it hides why a request has failed, and it reads variables of the
//! environment that are no settings of ours.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use prost::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::metrics::{FAILED, REJECTED, SENT};
use super::queue::Waiting;
use crate::config::Collector;
use crate::throttle::Throttle;

/// The largest answer that is read. A collector has little to say.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The most characters of a collector's words in the log.
const MAX_WORDS: usize = 200;

/// Sends spans, and counts what becomes of them.
#[derive(Debug)]
pub(super) struct Exporter {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: HeaderMap,
    timeout: Duration,
    /// The library calls from a thread of its own, which serves no sockets.
    runtime: Handle,
    resource: ResourceAttributesWithSchema,
    waiting: Arc<Waiting>,
    reports: Mutex<Throttle>,
}

impl Exporter {
    pub(super) fn new(collector: &Collector, waiting: Arc<Waiting>) -> anyhow::Result<Self> {
        let mut headers = collector.headers.clone();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        let program = concat!("order-service/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(program));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(collector)?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            url: collector.url.clone(),
            headers,
            timeout: collector.timeout,
            runtime: Handle::current(),
            resource: ResourceAttributesWithSchema::default(),
            waiting,
            reports: Mutex::new(Throttle::for_reports()),
        })
    }

    /// Returns how many of the spans the collector has rejected, and its reason.
    async fn send(&self, spans: Vec<SpanData>) -> anyhow::Result<(u64, String)> {
        let message = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &self.resource),
        };
        let mut request = Request::new(Full::from(message.encode_to_vec()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request);
        let exchange = async move {
            let response = response.await.context("no answer")?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
            let body = body.collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("half an answer: {error}"))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let timeout = self.timeout;
        // The timer, too, belongs to the runtime.
        let exchange = async move { tokio::time::timeout(timeout, exchange).await };
        let exchange = self.runtime.spawn(exchange);
        let answer = exchange.await.context("the process is stopping")?;
        let (status, body) =
            answer.with_context(|| format!("no answer within {:?}", self.timeout))??;
        if status != StatusCode::OK {
            bail!("it answered {status}");
        }
        let answer = ExportTraceServiceResponse::decode(body).context("it answered no OTLP")?;
        let partial = answer.partial_success.unwrap_or_default();
        Ok((
            u64::try_from(partial.rejected_spans).unwrap_or_default(),
            partial.error_message,
        ))
    }

    fn is_report_due(&self) -> bool {
        self.reports.lock().is_due()
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len() as u64;
        self.waiting.leave(spans.len());
        let metrics = &self.waiting.metrics;
        match self.send(spans).await {
            Ok((rejected, reason)) => {
                let rejected = rejected.min(count);
                metrics.count(REJECTED, rejected);
                metrics.count(SENT, count - rejected);
                if rejected > 0 {
                    if self.is_report_due() {
                        let reason: String = reason.chars().take(MAX_WORDS).collect();
                        warn!(rejected, reason, "the collector rejects spans");
                    }
                    return Ok(());
                }
                let mut reports = self.reports.lock();
                if reports.has_reported() {
                    reports.reset();
                    info!("the collector takes spans again");
                }
                Ok(())
            }
            Err(error) => {
                metrics.count(FAILED, count);
                if self.is_report_due() {
                    warn!(
                        spans = count,
                        "cannot send spans to {}: {error:#}", self.url
                    );
                }
                Err(OTelSdkError::InternalFailure(error.to_string()))
            }
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Trusts the CAs of the settings, or those of the system. Without TLS none is needed.
pub(super) fn tls(collector: &Collector) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_root_certificates(roots(collector)?)
        .with_no_client_auth();
    Ok(config)
}

fn roots(collector: &Collector) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &collector.certificate {
        let place = || format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {}", path.display());
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("{} cannot be read", place()))?;
        for certificate in certificates {
            let certificate = certificate.with_context(|| format!("{} is not PEM", place()))?;
            roots
                .add(certificate)
                .with_context(|| format!("{} has an unusable certificate", place()))?;
        }
        if roots.is_empty() {
            bail!("{} has no certificate", place());
        }
    } else if collector.url.scheme_str() == Some("https") {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            bail!(
                "this system has no CA certificates for OTEL_EXPORTER_OTLP_ENDPOINT: install ca-certificates, or set \
                 OTEL_EXPORTER_OTLP_CERTIFICATE"
            );
        }
    }
    Ok(roots)
}
