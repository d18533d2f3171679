//! The cache: its statistics, warm-up, and dropping all entries.

use serde::Serialize;
use shared::order::format_utc;
use tracing::info;
use warp::http::StatusCode;
use warp::reply::Response;

use super::Call;
use super::listing::parse_limit;
use crate::app::App;
use crate::cache::audit::AuditStatus;
use crate::cache::counters::{Count, Counters, Evictions, Loads, Lookups};
use crate::http::problem::ApiError;
use crate::http::{empty, json_response};

/// The maximum `limit` of a warm-up. It loads at most as many orders as the cache holds.
const MAX_WARMUP: u32 = 10_000_000;

/// Answers with the cache's statistics.
pub async fn stats(Call { app, head, .. }: Call) -> Result<Response, ApiError> {
    head.parameters(&[])?;
    head.require_accepts_json()?;
    Ok(json_response(StatusCode::OK, &Stats::of(&app)))
}

/// Drops every entry of the cache.
pub async fn clear(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    head.parameters(&[])?;
    app.cache.core.clear();
    info!(
        operation = "clear_cache",
        token = grant.token_name(),
        "cache operation"
    );
    Ok(empty(StatusCode::NO_CONTENT))
}

#[derive(Serialize)]
struct WarmupAnswer {
    loaded: usize,
    duration_ms: u64,
}

/// Loads the newest orders into the cache.
pub async fn warm_up(
    Call {
        app, grant, head, ..
    }: Call,
) -> Result<Response, ApiError> {
    let [limit] = head.parameters(&["limit"])?;
    head.require_accepts_json()?;
    let limit = match limit {
        Some(value) => parse_limit(&value, MAX_WARMUP)? as usize,
        None => app.warmup_limit,
    };
    app.require_schema()?;
    if !app.cache.core.accepts_fills() {
        return Err(ApiError::DatabaseUnavailable(
            "the cache cannot be filled while its listener is disconnected, try again",
        ));
    }
    let done = app.cache.warm_up(limit).await?;
    info!(
        operation = "warm_up",
        token = grant.token_name(),
        orders = done.loaded,
        "cache operation"
    );
    let answer = WarmupAnswer {
        loaded: done.loaded,
        duration_ms: millis(done.duration),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

/// The body of `GET /api/v1/cache/stats`.
#[derive(Serialize)]
struct Stats<'a> {
    size: usize,
    capacity: usize,
    negative_size: usize,
    weight_bytes: usize,
    #[serde(flatten)]
    lookups: &'a Lookups,
    hit_ratio: Option<f64>,
    loads: &'a Loads,
    evictions: &'a Evictions,
    listener: ListenerStats<'a>,
    audit: &'a AuditStatus,
    started_at: String,
}

#[derive(Serialize)]
struct ListenerStats<'a> {
    state: &'static str,
    epoch: u64,
    reconnects: &'a Count,
    proof_age_ms: Option<u64>,
    lease_ms: u64,
    events: &'a Count,
    malformed: &'a Count,
    blind_seconds_total: f64,
}

impl<'a> Stats<'a> {
    fn of(app: &'a App) -> Self {
        let core = &app.cache.core;
        let listener = &app.cache.listener;
        let (size, negative_size, weight_bytes) = core.sizes();
        let Counters {
            lookups,
            loads,
            evictions,
        } = core.counters();
        let hits = lookups.hits.get() + lookups.negative_hits.get();
        let all = hits + lookups.misses.get() + lookups.bypasses.get();
        Self {
            size,
            capacity: core.capacity().entries.get(),
            negative_size,
            weight_bytes,
            lookups,
            hit_ratio: (all > 0).then(|| hits as f64 / all as f64),
            loads,
            evictions,
            listener: ListenerStats {
                state: listener.state().as_str(),
                epoch: core.epoch(),
                reconnects: &listener.reconnects,
                proof_age_ms: listener.proof_age().map(millis),
                lease_ms: millis(app.cache.listener.lease),
                events: &listener.events,
                malformed: &listener.malformed,
                blind_seconds_total: listener.blind_time().as_secs_f64(),
            },
            audit: &app.cache.audit_status,
            started_at: format_utc(&app.started_at),
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
