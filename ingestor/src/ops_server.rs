//! The operators' port: `/livez`, `/readyz`, `/health`, `/metrics`.

use std::sync::Arc;

use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;
use warp::http::{Response, StatusCode};
use warp::{Filter, Rejection};

use crate::metrics::Metrics;
use crate::status::{Health, Status};

/// Media type of what `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `finished`.
pub async fn serve(
    listener: TcpListener,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    finished: CancellationToken,
) {
    // An operator's connection that is left open must not keep the process.
    tokio::select! {
        () = warp::serve(routes(status, metrics)).incoming(listener).run() => {}
        () = finished.cancelled() => {}
    }
}

fn routes(
    status: Arc<Status>,
    metrics: Arc<Metrics>,
) -> impl Filter<Extract = (Response<String>,), Error = Rejection> + Clone + Send + Sync + 'static {
    let live = warp::path!("livez").map(|| json_response(StatusCode::OK, &json!({"status": "ok"})));
    let of_health = status.clone();
    let health = warp::path!("health").map(move || health_response(&of_health));
    let ready = warp::path!("readyz").map(move || health_response(&status));
    let measured = warp::path!("metrics").map(move || metrics_response(&metrics));
    live.or(health)
        .unify()
        .or(ready)
        .unify()
        .or(measured)
        .unify()
}

/// Down is 503; degraded is 200, because all processes would leave a balancer together.
fn health_response(status: &Status) -> Response<String> {
    let (health, checks) = status.health();
    let code = if health == Health::Down {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let version = env!("CARGO_PKG_VERSION");
    json_response(
        code,
        &json!({"status": health.as_str(), "checks": checks, "version": version}),
    )
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
