//! A collector of traces: it takes OTLP over HTTP and keeps the spans.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// How the collector treats a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It takes the spans.
    Takes,
    /// It takes all but one, and says so.
    RejectsOne,
    /// It answers 503.
    Refuses,
    /// It never answers.
    Hangs,
}

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct ReceivedSpan {
    /// The id of its trace, in hexadecimal.
    pub trace_id: String,
    /// Its id, in hexadecimal.
    pub span_id: String,
    /// The id of its parent, in hexadecimal; empty if it has none.
    pub parent_id: String,
    /// Its name.
    pub name: String,
    /// The number of its kind: 1 internal, 2 server, 3 client, 5 consumer.
    pub kind: i32,
    /// Its attributes, as text.
    pub attributes: HashMap<String, String>,
    /// The ids of the traces and spans to which it is linked.
    pub links: Vec<(String, String)>,
    /// The names of its events.
    pub events: Vec<String>,
    /// Whether it has failed.
    pub has_failed: bool,
    /// The attributes of the process, as text.
    pub resource: HashMap<String, String>,
}

impl ReceivedSpan {
    /// Returns an attribute, or an empty text.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Returns whether it is a child of another span.
    pub fn is_child_of(&self, parent: &Self) -> bool {
        self.trace_id == parent.trace_id && self.parent_id == parent.span_id
    }

    /// Returns whether it is linked to another span.
    pub fn is_linked_to(&self, other: &Self) -> bool {
        let ids = (other.trace_id.clone(), other.span_id.clone());
        self.links.contains(&ids)
    }
}

/// A running collector. Its threads end with the process.
#[derive(Debug)]
pub struct TestCollector {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    requests: usize,
    spans: Vec<ReceivedSpan>,
    headers: HashMap<String, String>,
}

impl TestCollector {
    /// Starts a collector on a free port.
    pub fn start(manner: Manner) -> Self {
        Self::start_with(manner, None)
    }

    /// Starts one that speaks TLS, for the name `localhost`.
    pub fn start_with_tls(config: Arc<ServerConfig>) -> Self {
        Self::start_with(Manner::Takes, Some(config))
    }

    fn start_with(manner: Manner, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            manner,
            requests: 0,
            spans: Vec::new(),
            headers: HashMap::new(),
        }));
        let address = match &tls {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || match tls {
                    Some(config) => {
                        let session = ServerConnection::new(config).unwrap();
                        serve_all(StreamOwned::new(session, stream), &state);
                    }
                    None => serve_all(stream, &state),
                });
            }
        });
        Self { address, state }
    }

    /// Returns the value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.address.clone()
    }

    /// Changes how it treats the next requests.
    pub fn set_manner(&self, manner: Manner) {
        self.state.lock().manner = manner;
    }

    /// Returns how many requests it has received.
    pub fn requests(&self) -> usize {
        self.state.lock().requests
    }

    /// Returns a header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        self.state.lock().headers.get(name).cloned()
    }

    /// Returns the spans that it has taken.
    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.state.lock().spans.clone()
    }

    /// Returns the spans of a trace.
    pub fn trace(&self, trace_id: &str) -> Vec<ReceivedSpan> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace_id == trace_id);
        spans
    }

    /// Waits for a span.
    ///
    /// # Panics
    /// Panics with all spans if it does not come in time.
    pub fn wait_for(
        &self,
        description: &str,
        is_wanted: impl Fn(&ReceivedSpan) -> bool,
    ) -> ReceivedSpan {
        super::wait_for(Duration::from_secs(30), || {
            let spans = self.spans();
            let found = spans.iter().find(|span| is_wanted(span)).cloned();
            found.ok_or_else(|| format!("{description}\n{spans:#?}"))
        })
    }
}

fn serve_all(stream: impl Read + Write, state: &Mutex<State>) {
    let mut stream = BufReader::new(stream);
    while serve(&mut stream, state).is_some() {}
}

/// Serves one request. Returns `None` when the connection has ended.
fn serve(reader: &mut BufReader<impl Read + Write>, state: &Mutex<State>) -> Option<()> {
    let mut headers = HashMap::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    assert_eq!(line, "POST /v1/traces HTTP/1.1\r\n");
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    let manner = {
        let mut state = state.lock();
        state.requests += 1;
        state.headers = headers;
        if matches!(state.manner, Manner::Takes | Manner::RejectsOne) {
            state.spans.extend(received(request));
        }
        state.manner
    };
    let rejected = ExportTracePartialSuccess {
        rejected_spans: 1,
        error_message: "one is too old".to_owned(),
    };
    let (status, partial_success) = match manner {
        Manner::Takes => ("200 OK", None),
        Manner::RejectsOne => ("200 OK", Some(rejected)),
        Manner::Refuses => ("503 Service Unavailable", None),
        Manner::Hangs => {
            // Until the client gives up.
            reader.read_line(&mut line).ok();
            return None;
        }
    };
    let body = ExportTraceServiceResponse { partial_success }.encode_to_vec();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {length}\r\n\r\n"
    );
    let answer = [head.as_bytes(), &body[..]].concat();
    let writer = reader.get_mut();
    writer.write_all(&answer).and_then(|()| writer.flush()).ok()
}

fn received(request: ExportTraceServiceRequest) -> Vec<ReceivedSpan> {
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = texts(resource_spans.resource.unwrap_or_default().attributes);
        for span in resource_spans
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans)
        {
            spans.push(received_span(span, resource.clone()));
        }
    }
    spans
}

fn received_span(span: Span, resource: HashMap<String, String>) -> ReceivedSpan {
    let links = span.links.iter();
    let links = links.map(|link| (hexadecimal(&link.trace_id), hexadecimal(&link.span_id)));
    ReceivedSpan {
        trace_id: hexadecimal(&span.trace_id),
        span_id: hexadecimal(&span.span_id),
        parent_id: hexadecimal(&span.parent_span_id),
        links: links.collect(),
        events: span.events.into_iter().map(|event| event.name).collect(),
        has_failed: span.status.is_some_and(|status| status.code == 2),
        name: span.name,
        kind: span.kind,
        attributes: texts(span.attributes),
        resource,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is_true)) => is_true.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .into_iter()
        .map(|attribute| (attribute.key, text(attribute.value)))
        .collect()
}
