//! The api under measurement, and the orders that it reads.

use anyhow::Context as _;
use shared::config::DatabaseSettings;
use shared::order::Order;
use shared::testing::{OrderGenerator, TestDatabase};

use super::http::get;
use crate::benchmarks::{Service, copy_orders};

/// Orders are numbered from here, so that wrk and pgbench can make up their ids.
pub(super) const FIRST_UID: usize = 1_000_000_000;
const CHUNK_SIZE: usize = 1_000;

/// Stores orders in a range of numbers; gives the mean size of their JSON in bytes, as the api answers it.
pub(super) fn store_orders(
    database: &TestDatabase,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<f64> {
    let mut connection = database.connect();
    let mut generator = OrderGenerator::new(numbers.start as u64, chrono::Utc::now());
    let (mut json_bytes, count) = (0, numbers.len());
    for first in numbers.clone().step_by(CHUNK_SIZE) {
        let chunk = first..numbers.end.min(first + CHUNK_SIZE);
        let made: Vec<Order> = chunk
            .map(|number| generator.order_with_uid(&(FIRST_UID + number).to_string()))
            .collect();
        for order in &made {
            json_bytes += serde_json::to_vec(order)?.len() + 1;
        }
        copy_orders(&mut connection, &made)?;
    }
    Ok(json_bytes as f64 / count as f64)
}

/// The api, with as many orders in its cache as it may hold.
pub(super) struct Api {
    service: Service,
    pub(super) port: u16,
}

impl Api {
    pub(super) fn start(
        program: &str,
        database: &DatabaseSettings,
        port: u16,
        capacity: usize,
        warmup: usize,
    ) -> anyhow::Result<Self> {
        let mut service = Service::start(
            program,
            &[],
            &[
                ("DB_HOST", database.host.clone()),
                ("DB_PORT", database.port.to_string()),
                ("DB_USER", database.user.clone()),
                ("DB_PASSWORD", database.password.expose().to_owned()),
                ("DB_NAME", database.name.clone()),
                ("SERVER_PORT", port.to_string()),
                ("CACHE_CAPACITY", capacity.to_string()),
                ("CACHE_WARMUP", warmup.to_string()),
            ],
        )?;
        service.wait_for("the api is live and has cached its orders", || {
            let Ok(stats) = stats(port) else {
                return Ok(false);
            };
            Ok(stats["listener"]["state"] == "live" && stats["size"] == warmup)
        })?;
        Ok(Self { service, port })
    }

    /// One of the counts of `GET /api/v1/cache/stats`.
    pub(super) fn count(&self, name: &str) -> anyhow::Result<u64> {
        let stats = stats(self.port)?;
        stats[name]
            .as_u64()
            .with_context(|| format!("no {name} in {stats}"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.service.pid()
    }
}

fn stats(port: u16) -> anyhow::Result<serde_json::Value> {
    let (_, body) = get(port, "/api/v1/cache/stats")?;
    Ok(serde_json::from_str(&body)?)
}
