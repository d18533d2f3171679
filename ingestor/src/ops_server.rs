//! The operators' port: `/livez`, `/readyz`, `/health`, `/metrics`.

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use shared::server::{self, Exposition, Limits, RequestBody, Stop, Unreadable};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::board::{Board, Health};
use crate::metrics::Metrics;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Serves the port until `finished`.
pub async fn serve(
    listener: TcpListener,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    finished: CancellationToken,
) {
    let stop = Stop::when_finished(finished);
    let connections = metrics.connections.clone();
    let operators = Arc::new(Operators { board, metrics });
    let answer = move |_, request| ready(Ok(operators.answer(&request)));
    let limits = Limits::for_operators();
    server::serve(listener, limits, connections, stop, answer, refuse).await;
}

/// Answers a request that nobody can read.
fn refuse(_peer: IpAddr, unreadable: Unreadable) -> Response<String> {
    let text = match unreadable {
        Unreadable::Malformed(detail) => format!("{detail}\n"),
        _ => format!("{}\n", unreadable.status()),
    };
    response(unreadable.status(), TEXT, text)
}

/// What operators may ask for.
struct Operators {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

impl Operators {
    fn answer(&self, request: &Request<RequestBody>) -> Response<String> {
        let answer: fn(&Self, &Request<RequestBody>) -> Response<String> =
            match request.uri().path() {
                "/livez" => |_, _| Self::livez(),
                "/readyz" | "/health" => |operators, _| operators.health(),
                "/metrics" => {
                    |operators, request| operators.metrics(Exposition::asked_for(request.headers()))
                }
                _ => {
                    let paths = "there are /livez, /readyz, /health and /metrics\n";
                    return response(StatusCode::NOT_FOUND, TEXT, paths.to_owned());
                }
            };
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return answer(self, request);
        }
        let methods = "GET, HEAD";
        let refused = format!("allowed are {methods}\n");
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, refused);
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(methods));
        refused
    }

    fn livez() -> Response<String> {
        json_response(StatusCode::OK, &json!({"status": "ok"}))
    }

    /// Down is 503. Degraded is 200: otherwise a balancer would lose all processes at once.
    fn health(&self) -> Response<String> {
        let (health, checks) = self.board.health();
        let code = if health == Health::Down {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let version = env!("CARGO_PKG_VERSION");
        let body = json!({"status": <&str>::from(health), "checks": checks, "version": version});
        json_response(code, &body)
    }

    fn metrics(&self, format: Exposition) -> Response<String> {
        match self.metrics.render() {
            Ok(text) => response(StatusCode::OK, format.content_type(), format.write(text)),
            Err(failure) => {
                error!("cannot render the metrics: {failure}");
                let text = "cannot render the metrics\n".to_owned();
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
            }
        }
    }
}

fn json_response(code: StatusCode, body: &serde_json::Value) -> Response<String> {
    response(code, JSON, format!("{body}\n"))
}

fn response(code: StatusCode, media_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
