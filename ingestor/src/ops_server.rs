//! The operators' port: `/livez`, `/readyz`, `/health`, `/metrics`.

use std::sync::Arc;

use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;
use warp::http::{Response, StatusCode};
use warp::{Filter, Rejection};

use crate::board::{Board, Health};
use crate::metrics::Metrics;

/// The media type of what `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the port until `finished`.
pub async fn serve(
    listener: TcpListener,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    finished: CancellationToken,
) {
    // A connection that an operator leaves open must not keep the process alive.
    tokio::select! {
        () = warp::serve(routes(board, metrics)).incoming(listener).run() => {}
        () = finished.cancelled() => {}
    }
}

fn routes(
    board: Arc<Board>,
    metrics: Arc<Metrics>,
) -> impl Filter<Extract = (Response<String>,), Error = Rejection> + Clone + Send + Sync + 'static {
    let live = warp::path!("livez").map(|| json_response(StatusCode::OK, &json!({"status": "ok"})));
    let health = warp::path!("health").or(warp::path!("readyz")).unify();
    let health = health.map(move || health_response(&board));
    let measured = warp::path!("metrics").map(move || metrics_response(&metrics));
    live.or(health).unify().or(measured).unify()
}

/// Down is 503. Degraded is 200: otherwise a balancer would lose all processes at once.
fn health_response(board: &Board) -> Response<String> {
    let (health, checks) = board.health();
    let code = if health == Health::Down {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let version = env!("CARGO_PKG_VERSION");
    let body = json!({"status": <&str>::from(health), "checks": checks, "version": version});
    json_response(code, &body)
}

fn json_response(code: StatusCode, body: &serde_json::Value) -> Response<String> {
    response(code, "application/json", format!("{body}\n"))
}

fn metrics_response(metrics: &Metrics) -> Response<String> {
    match metrics.render() {
        Ok(text) => response(StatusCode::OK, OPENMETRICS, text),
        Err(failure) => {
            error!("cannot render the metrics: {failure}");
            response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain",
                "cannot render the metrics\n".to_owned(),
            )
        }
    }
}

fn response(code: StatusCode, media_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(
        "content-type",
        warp::http::HeaderValue::from_static(media_type),
    );
    response
}
