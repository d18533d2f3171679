//! The cache: its statistics, warm-up, and dropping all entries.

use serde::Serialize;
use shared::order::format_utc;
use tracing::info;
use warp::http::StatusCode;
use warp::reply::Response;

use super::Call;
use super::listing::parse_limit;
use crate::app::App;
use crate::cache::counters::Eviction;
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
pub async fn clear(Call { app, head, .. }: Call) -> Result<Response, ApiError> {
    head.parameters(&[])?;
    app.cache.clear();
    info!(operation = "clear_cache", "cache operation");
    Ok(empty(StatusCode::NO_CONTENT))
}

#[derive(Serialize)]
struct WarmupAnswer {
    loaded: usize,
    duration_ms: u64,
}

/// Loads the newest orders into the cache.
pub async fn warm_up(Call { app, head, .. }: Call) -> Result<Response, ApiError> {
    let [limit] = head.parameters(&["limit"])?;
    head.require_accepts_json()?;
    let limit = match limit {
        Some(value) => parse_limit(&value, MAX_WARMUP)? as usize,
        None => app.warmup_limit,
    };
    app.require_schema()?;
    if !app.cache.core().accepts_fills() {
        return Err(ApiError::DatabaseUnavailable(
            "the cache cannot be filled while its listener is disconnected, try again",
        ));
    }
    let done = app.cache.warm_up(limit).await?;
    info!(
        operation = "warm_up",
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
struct Stats {
    size: usize,
    capacity: usize,
    negative_size: usize,
    weight_bytes: usize,
    hits: u64,
    negative_hits: u64,
    misses: u64,
    bypasses: u64,
    hit_ratio: Option<f64>,
    loads: LoadStats,
    evictions: EvictionStats,
    listener: ListenerStats,
    audit: AuditStats,
    started_at: String,
}

#[derive(Serialize)]
struct LoadStats {
    started: u64,
    succeeded: u64,
    not_found: u64,
    failed: u64,
    coalesced: u64,
    discarded: u64,
}

#[derive(Serialize)]
struct EvictionStats {
    capacity: u64,
    event: u64,
    resync: u64,
    audit: u64,
}

#[derive(Serialize)]
struct ListenerStats {
    state: &'static str,
    epoch: u64,
    reconnects: u64,
    proof_age_ms: Option<u64>,
    lease_ms: u64,
    events: u64,
    malformed: u64,
    blind_seconds_total: f64,
}

#[derive(Serialize)]
struct AuditStats {
    checked: u64,
    mismatches: u64,
}

impl Stats {
    fn of(app: &App) -> Self {
        let core = app.cache.core();
        let listener = app.cache.listener();
        let audit = app.cache.audit_status();
        let counters = core.counters();
        let (size, negative_size, weight_bytes) = core.sizes();
        let [hits, negative_hits, misses, bypasses] = [
            &counters.hits,
            &counters.negative_hits,
            &counters.misses,
            &counters.bypasses,
        ]
        .map(|count| count.get());
        let lookups = hits + negative_hits + misses + bypasses;
        Self {
            size,
            capacity: core.capacity(),
            negative_size,
            weight_bytes,
            hits,
            negative_hits,
            misses,
            bypasses,
            hit_ratio: (lookups > 0).then(|| (hits + negative_hits) as f64 / lookups as f64),
            loads: LoadStats {
                started: counters.loads_started.get(),
                succeeded: counters.loads_succeeded.get(),
                not_found: counters.loads_not_found.get(),
                failed: counters.loads_failed.get(),
                coalesced: counters.coalesced.get(),
                discarded: counters.discarded.get(),
            },
            evictions: EvictionStats {
                capacity: counters.evictions(Eviction::Capacity),
                event: counters.evictions(Eviction::Event),
                resync: counters.evictions(Eviction::Resync),
                audit: counters.evictions(Eviction::Audit),
            },
            listener: ListenerStats {
                state: listener.state().as_str(),
                epoch: core.epoch(),
                reconnects: listener.reconnects.get(),
                proof_age_ms: listener.proof_age().map(millis),
                lease_ms: millis(app.cache.lease()),
                events: listener.events.get(),
                malformed: listener.malformed.get(),
                blind_seconds_total: listener.blind_time().as_secs_f64(),
            },
            audit: AuditStats {
                checked: audit.checked.get(),
                mismatches: audit.mismatches.get(),
            },
            started_at: format_utc(&app.started_at),
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
