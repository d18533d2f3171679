//! The api under measurement, and the orders that it reads.

use anyhow::Context as _;
use servers::ports::free_port;
use servers::process::Process;
use shared::config::DatabaseSettings;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::http::get;
use crate::benchmarks::copy::Chunk;
use crate::benchmarks::services::{self, wait_for};

/// The orders have consecutive numbers from this one on, so that wrk and pgbench can make up their ids.
pub(super) const FIRST_UID: usize = 1_000_000_000;
const CHUNK_SIZE: usize = 1_000;

/// Stores orders with a range of numbers. Returns the mean size in bytes of their JSON, as the api sends it.
pub(super) fn store_orders(
    database: &TestDatabase,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<f64> {
    let mut connection = database.connect();
    let mut generator = OrderGenerator::new(numbers.start as u64, chrono::Utc::now());
    let (mut json_bytes, count) = (0, numbers.len());
    for first in numbers.clone().step_by(CHUNK_SIZE) {
        let chunk = first..numbers.end.min(first + CHUNK_SIZE);
        let orders: Vec<Order> = chunk
            .map(|number| generator.order_with_uid(&(FIRST_UID + number).to_string()))
            .collect();
        for order in &orders {
            json_bytes += serde_json::to_vec(order)?.len() + 1;
        }
        Chunk::from_api(&orders).copy(&mut connection)?;
    }
    Ok(json_bytes as f64 / count as f64)
}

/// A running api.
pub(super) struct Api {
    service: Process,
    pub(super) port: u16,
}

impl Api {
    /// Starts it, with more variables, and waits until it has cached `warmup` orders.
    pub(super) fn start(
        program: &str,
        database: &DatabaseSettings,
        capacity: usize,
        warmup: usize,
        variables: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut service = services::api(program, database, port)
            .env("CACHE_CAPACITY", capacity.to_string())
            .env("CACHE_CAPACITY_MB", "0")
            .env("CACHE_WARMUP", warmup.to_string())
            .envs(variables)
            .spawn()?;
        let problem = "the api is not live, or has not cached its orders";
        wait_for(&mut service, problem, || {
            let Ok(stats) = stats(port) else {
                return Ok(false);
            };
            Ok(stats["listener"]["state"] == "live" && stats["size"] == warmup)
        })?;
        Ok(Self { service, port })
    }

    /// Returns one of the counts of `GET /api/v1/cache/stats`.
    pub(super) fn count(&self, name: &str) -> anyhow::Result<u64> {
        let stats = stats(self.port)?;
        stats[name]
            .as_u64()
            .with_context(|| format!("the statistics have no {name}: {stats}"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.service.pid()
    }
}

fn stats(port: u16) -> anyhow::Result<serde_json::Value> {
    let stats = get(port, "/api/v1/cache/stats")?;
    Ok(serde_json::from_slice(stats.as_bytes())?)
}
