//! Health of the process, and its metrics.

use serde_json::{Value, json};
use shared::server::Exposition;
use warp::http::header::{CONTENT_TYPE, RETRY_AFTER};
use warp::http::{HeaderValue, StatusCode};
use warp::reply::Response;

use super::Call;
use crate::app::App;
use crate::cache::status::ListenerState;
use crate::http::json_response;
use crate::http::problem::ApiError;
use crate::repository::StoreError;

const AUDIT_ALARM: &str =
    "a cached order was outdated although no event had announced the change, see the log";

const NO_WRITES: &str = "the database accepts no writes";

/// The health of the process.
struct Health {
    status: &'static str,
    database: Result<(), &'static str>,
    writes: Result<(), &'static str>,
}

impl Health {
    async fn of(app: &App) -> Self {
        let accepts_writes = app.repository.accepts_writes().await;
        let database = match (app.has_schema(), accepts_writes) {
            // If every connection is busy, that is load and not an outage.
            (true, Ok(_) | Err(StoreError::Overloaded)) => Ok(()),
            (false, Ok(_) | Err(StoreError::Overloaded)) => Err("waiting for the schema"),
            (_, Err(_)) => Err("the database cannot be reached"),
        };
        let writes = match accepts_writes {
            Ok(false) => Err(NO_WRITES),
            _ => database,
        };
        let is_live = app.cache.listener.is_fresh();
        let status = match database {
            _ if app.stopping.has_begun() => "down",
            Err(_) => "down",
            Ok(()) if !is_live || writes.is_err() || app.cache.audit_status.is_alarmed() => {
                "degraded"
            }
            Ok(()) => "ok",
        };
        Self {
            status,
            database,
            writes,
        }
    }

    fn response(&self, value: &Value) -> Response {
        if self.status != "down" {
            return json_response(StatusCode::OK, value);
        }
        let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, value);
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

/// `/livez`: the process answers. Nothing else is checked: if this probe failed together with the database, every process
/// would be restarted during an outage.
pub async fn livez(_: Call) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &json!({"status": "ok"})))
}

/// `/readyz`: whether to send requests to this process. Blind counts as degraded, not as down: at a failover all processes
/// become blind together, and all of them still answer.
pub async fn readyz(Call { app, .. }: Call) -> Result<Response, ApiError> {
    let health = Health::of(&app).await;
    let detail = match health.database {
        _ if app.stopping.has_begun() => "stopping",
        Err(reason) => reason,
        Ok(()) if health.writes.is_err() => NO_WRITES,
        Ok(()) if app.cache.audit_status.is_alarmed() => AUDIT_ALARM,
        Ok(()) if health.status == "degraded" => {
            "the listener is disconnected, so reads go to the database"
        }
        Ok(()) => "ready",
    };
    let mut answer = json!({"status": health.status, "detail": detail});
    if let Some(progress) = app.cache.warmup_progress() {
        answer["warmup"] = json!({"seen": progress.seen, "limit": progress.limit});
    }
    Ok(health.response(&answer))
}

/// `/health`: the state of the process for people.
pub async fn health(Call { app, .. }: Call) -> Result<Response, ApiError> {
    let health = Health::of(&app).await;
    let listener = &app.cache.listener;
    let state = listener.state();
    let answer = json!({
        "status": health.status,
        "checks": {
            "database": match health.database {
                Ok(()) => json!({"status": "ok"}),
                Err(reason) => json!({"status": "down", "detail": reason}),
            },
            "writes": match health.writes {
                Ok(()) => json!({"status": "ok"}),
                Err(reason) => json!({"status": "degraded", "detail": reason}),
            },
            "listener": {
                "status": if state == ListenerState::Live { "ok" } else { "degraded" },
                "state": state.as_str(),
                "proof_age_ms": listener.proof_age().map(|age| age.as_millis() as u64),
            },
            "audit": if app.cache.audit_status.is_alarmed() {
                json!({"status": "degraded", "detail": AUDIT_ALARM})
            } else {
                json!({"status": "ok"})
            },
        },
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(health.response(&answer))
}

/// `/metrics`: the metrics for Prometheus.
pub async fn metrics(Call { app, head, .. }: Call) -> Result<Response, ApiError> {
    let format = Exposition::asked_for(&head.headers);
    let mut response = Response::new(format.write(app.metrics.encode()).into());
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}
