//! The settings of traces. They are the standard variables of OpenTelemetry, with its names, defaults and forms.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::{Secret, ShownSettings, name_of};

/// What the specification appends to the address of a collector.
const TRACES_PATH: &str = "/v1/traces";

/// The flags and variables of traces.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces (OpenTelemetry)")]
#[expect(
    clippy::doc_markdown,
    reason = "the doc comments are help texts for a terminal"
)]
pub struct TraceArgs {
    /// Address of a collector that takes OTLP over HTTP, such as http://localhost:4318; without it there are no traces
    #[arg(long, env, global = true)]
    otel_exporter_otlp_endpoint: Option<String>,
    /// Headers for the collector, name=value, comma-separated
    #[arg(long, env, global = true, hide_env_values = true)]
    otel_exporter_otlp_headers: Option<Secret>,
    /// File with these headers, in place of OTEL_EXPORTER_OTLP_HEADERS
    #[arg(long, env, global = true)]
    otel_exporter_otlp_headers_file: Option<PathBuf>,
    /// How spans are sent
    #[arg(long, env, global = true, default_value = "http/protobuf")]
    otel_exporter_otlp_protocol: Protocol,
    /// Milliseconds that the collector may take to answer, 1..=600000
    #[arg(long, env, global = true, default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=600_000))]
    otel_exporter_otlp_timeout: u64,
    /// PEM file with the CAs that may have signed the collector's certificate [default: those of the system]
    #[arg(long, env, global = true)]
    otel_exporter_otlp_certificate: Option<PathBuf>,
    /// Name of this program in traces [default: orders-ingestor or orders-api]
    #[arg(long, env, global = true)]
    otel_service_name: Option<String>,
    /// What else describes this process in traces, name=value, comma-separated
    #[arg(long, env, global = true)]
    otel_resource_attributes: Option<String>,
    /// Which requests, messages and batches have spans; parentbased: those whose sender says so
    #[arg(long, env, global = true, default_value = "parentbased_always_on")]
    otel_traces_sampler: SamplerKind,
    /// The share that a sampler with traceidratio takes, 0..=1
    #[arg(long, env, global = true, default_value = "1", value_parser = parse_ratio)]
    otel_traces_sampler_arg: f64,
    /// Milliseconds between two times of sending spans, 1..=600000
    #[arg(long, env, global = true, default_value_t = 5_000,
          value_parser = clap::value_parser!(u64).range(1..=600_000))]
    otel_bsp_schedule_delay: u64,
    /// The most spans that wait to be sent, 1..=1000000; further ones are dropped and counted
    #[arg(long, env, global = true, default_value_t = 2_048,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    otel_bsp_max_queue_size: u32,
    /// The most spans that are sent together, 1..=100000
    #[arg(long, env, global = true, default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    otel_bsp_max_export_batch_size: u32,
}

/// How spans are sent. Only one way is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    HttpProtobuf,
}

impl ValueEnum for Protocol {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::HttpProtobuf]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new("http/protobuf"))
    }
}

/// What decides which requests, messages and batches have spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SamplerKind {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share, by the trace's id.
    #[value(name = "traceidratio")]
    TraceIdRatio,
    /// As the sender says; if no sender says anything, all.
    #[value(name = "parentbased_always_on")]
    ParentBasedAlwaysOn,
    /// As the sender says; if no sender says anything, none.
    #[value(name = "parentbased_always_off")]
    ParentBasedAlwaysOff,
    /// As the sender says; if no sender says anything, a share.
    #[value(name = "parentbased_traceidratio")]
    ParentBasedTraceIdRatio,
}

/// The settings of traces, checked.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// Where spans are sent; `None` if there are no traces.
    pub collector: Option<Collector>,
    /// The name of the program.
    pub service_name: String,
    /// What else describes the process.
    pub attributes: Vec<(String, String)>,
    /// Which requests, messages and batches have spans.
    pub sampler: SamplerKind,
    /// The share that some samplers take, 0..=1.
    pub ratio: f64,
    /// The time between two times of sending.
    pub delay: Duration,
    /// The most spans that wait to be sent.
    pub max_waiting: usize,
    /// The most spans that are sent together.
    pub max_together: usize,
    shown: ShownSettings,
}

/// How to reach a collector.
#[derive(Clone, Debug)]
pub struct Collector {
    /// Where spans are posted to.
    pub url: Uri,
    /// The headers of every request. They are marked as secret, so they are not printed.
    pub headers: HeaderMap,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// PEM file of the CAs; `None` for those of the system.
    pub certificate: Option<PathBuf>,
}

impl TraceArgs {
    /// Checks the settings and reads the files that they name.
    ///
    /// # Errors
    /// Returns an error of one line that names the variable.
    pub fn resolve(self, service_name: &str) -> anyhow::Result<TraceSettings> {
        let headers = Secret::resolve(
            "OTEL_EXPORTER_OTLP_HEADERS",
            self.otel_exporter_otlp_headers.clone(),
            self.otel_exporter_otlp_headers_file.clone(),
        )?;
        let shown = self.shown(service_name, headers.as_ref());
        let endpoint = self.otel_exporter_otlp_endpoint;
        let collector = endpoint.filter(|text| !text.is_empty()).map(|text| {
            anyhow::Ok(Collector {
                url: parse_url(&text)?,
                headers: parse_headers(headers.as_ref().map_or("", Secret::expose))?,
                timeout: Duration::from_millis(self.otel_exporter_otlp_timeout),
                certificate: self.otel_exporter_otlp_certificate,
            })
        });
        let max_waiting = self.otel_bsp_max_queue_size as usize;
        let attributes = self.otel_resource_attributes.unwrap_or_default();
        Ok(TraceSettings {
            collector: collector.transpose()?,
            service_name: named_or(self.otel_service_name, service_name),
            attributes: parse_list("OTEL_RESOURCE_ATTRIBUTES", &attributes)?,
            sampler: self.otel_traces_sampler,
            ratio: self.otel_traces_sampler_arg,
            delay: Duration::from_millis(self.otel_bsp_schedule_delay),
            max_waiting,
            max_together: (self.otel_bsp_max_export_batch_size as usize).min(max_waiting),
            shown,
        })
    }

    fn shown(&self, service_name: &str, headers: Option<&Secret>) -> ShownSettings {
        let headers = headers.cloned().unwrap_or_else(|| Secret::new(""));
        let path = self.otel_exporter_otlp_certificate.as_ref();
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        vec![
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                text(&self.otel_exporter_otlp_endpoint),
            ),
            ("OTEL_EXPORTER_OTLP_HEADERS", format!("{headers:?}")),
            (
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                name_of(self.otel_exporter_otlp_protocol),
            ),
            (
                "OTEL_EXPORTER_OTLP_TIMEOUT",
                self.otel_exporter_otlp_timeout.to_string(),
            ),
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                path.map(|path| path.display().to_string())
                    .unwrap_or_default(),
            ),
            (
                "OTEL_SERVICE_NAME",
                named_or(self.otel_service_name.clone(), service_name),
            ),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                text(&self.otel_resource_attributes),
            ),
            ("OTEL_TRACES_SAMPLER", name_of(self.otel_traces_sampler)),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                self.otel_traces_sampler_arg.to_string(),
            ),
            (
                "OTEL_BSP_SCHEDULE_DELAY",
                self.otel_bsp_schedule_delay.to_string(),
            ),
            (
                "OTEL_BSP_MAX_QUEUE_SIZE",
                self.otel_bsp_max_queue_size.to_string(),
            ),
            (
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                self.otel_bsp_max_export_batch_size.to_string(),
            ),
        ]
    }
}

impl TraceSettings {
    /// The settings without the headers' values.
    pub fn shown(&self) -> ShownSettings {
        self.shown.clone()
    }
}

fn named_or(name: Option<String>, default: &str) -> String {
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

/// Clap also accepts infinity and numbers that are none.
fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok();
    ratio
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "must be a number, 0..=1".to_owned())
}

/// Returns where spans are posted to. The errors do not quote the address, which may contain a password by mistake.
fn parse_url(text: &str) -> anyhow::Result<Uri> {
    const NOT_A_URL: &str =
        "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL such as http://localhost:4318";
    let base: Uri = text.parse().ok().context(NOT_A_URL)?;
    let authority = base.authority().context(NOT_A_URL)?;
    ensure!(
        !authority.as_str().contains('@') && base.query().is_none(),
        "OTEL_EXPORTER_OTLP_ENDPOINT must have neither a user nor a query: put credentials into OTEL_EXPORTER_OTLP_HEADERS"
    );
    let is_http = matches!(base.scheme_str(), Some("http" | "https"));
    ensure!(is_http && !authority.host().is_empty(), NOT_A_URL);
    let url = [text.trim_end_matches('/'), TRACES_PATH].concat();
    url.parse().ok().context(NOT_A_URL)
}

fn parse_headers(text: &str) -> anyhow::Result<HeaderMap> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let mut headers = HeaderMap::new();
    for (name, value) in parse_list(NAME, text)? {
        // The error does not quote the value, which is usually a secret.
        let value = HeaderValue::try_from(value);
        let (Ok(parsed), Ok(mut value)) = (HeaderName::try_from(&name), value) else {
            bail!("{NAME}: {name:?} is not the name of a header, or its value cannot be sent");
        };
        value.set_sensitive(true);
        headers.insert(parsed, value);
    }
    Ok(headers)
}

/// Reads `name=value,...`. Values may be percent-encoded, as in the header `baggage`.
fn parse_list(variable: &str, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let entries = text.split(',').map(str::trim);
    entries
        .enumerate()
        .filter(|(_, entry)| !entry.is_empty())
        .map(|(index, entry)| {
            let number = index + 1;
            let (name, value) = entry
                .split_once('=')
                .filter(|(name, _)| !name.trim().is_empty())
                .with_context(|| format!("{variable}: entry {number} is not name=value"))?;
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .with_context(|| format!("{variable}: entry {number} is not UTF-8"))?;
            Ok((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::testing::parse_arguments;

    #[derive(Parser, Debug)]
    struct Program {
        #[command(flatten)]
        traces: TraceArgs,
    }

    fn settings(arguments: &[&str]) -> anyhow::Result<TraceSettings> {
        parse_arguments::<Program>(arguments)?
            .traces
            .resolve("orders-test")
    }

    fn collector(arguments: &[&str]) -> Collector {
        settings(arguments).unwrap().collector.unwrap()
    }

    #[test]
    fn without_an_address_there_are_no_traces() {
        for arguments in [&[][..], &["--otel-exporter-otlp-endpoint", ""]] {
            let settings = settings(arguments).unwrap();
            assert!(settings.collector.is_none());
            assert_eq!(settings.service_name, "orders-test");
            assert_eq!(settings.sampler, SamplerKind::ParentBasedAlwaysOn);
        }
    }

    #[test]
    fn the_path_of_traces_is_appended_to_the_address() {
        for (address, url) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            (
                "https://a.example/otlp/",
                "https://a.example/otlp/v1/traces",
            ),
        ] {
            let collector = collector(&["--otel-exporter-otlp-endpoint", address]);
            assert_eq!(collector.url.to_string(), url);
        }
    }

    #[test]
    fn headers_are_decoded_and_never_printed() {
        let arguments = [
            "--otel-exporter-otlp-endpoint=http://localhost:4318",
            "--otel-exporter-otlp-headers=Authorization=Bearer%20canary, x-team=orders",
        ];
        let collector = collector(&arguments);
        assert_eq!(collector.headers["authorization"], "Bearer canary");
        assert_eq!(collector.headers["x-team"], "orders");
        let settings = settings(&arguments).unwrap();
        let printed = format!("{settings:?} {:?}", settings.shown());
        assert!(!printed.contains("canary"), "{printed}");
    }

    #[test]
    fn a_wrong_value_is_named_and_a_secret_one_is_not_quoted() {
        let endpoint = "--otel-exporter-otlp-endpoint=http://localhost:4318";
        for (argument, expected) in [
            (
                "--otel-exporter-otlp-endpoint=localhost:4317",
                "OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
            (
                "--otel-exporter-otlp-endpoint=http://u:canary@h",
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
            (
                "--otel-exporter-otlp-headers=canary",
                "OTEL_EXPORTER_OTLP_HEADERS: entry 1",
            ),
            (
                "--otel-exporter-otlp-headers=a b=canary",
                "\"a b\" is not the name",
            ),
            ("--otel-exporter-otlp-protocol=grpc", "http/protobuf"),
            (
                "--otel-resource-attributes=a=1,b",
                "OTEL_RESOURCE_ATTRIBUTES: entry 2",
            ),
            (
                "--otel-traces-sampler=sometimes",
                "parentbased_traceidratio",
            ),
            ("--otel-traces-sampler-arg=1.5", "0..=1"),
            ("--otel-traces-sampler-arg=NaN", "0..=1"),
        ] {
            let mut arguments = vec![argument];
            if !argument.contains("endpoint") {
                arguments.push(endpoint);
            }
            let message = settings(&arguments).unwrap_err().to_string();
            assert!(message.contains(expected), "{argument}: {message}");
            assert!(!message.contains("canary"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn no_more_spans_are_sent_together_than_may_wait() {
        let settings = settings(&["--otel-bsp-max-queue-size", "100"]).unwrap();
        assert_eq!((settings.max_waiting, settings.max_together), (100, 100));
    }
}
