//! The metrics of the pool of database connections. The pool is asked when somebody asks for them.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use crate::repository::Repository;

#[derive(Debug)]
pub(super) struct DatabaseCollector(pub(super) Repository);

impl Collector for DatabaseCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pool = self.0.pool_use();
        let mut write = |name: &str, help: &str, count: usize| {
            let gauge = ConstGauge::new(count as i64);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        let help = "Connections to the database in use";
        write("database_busy_connections", help, pool.busy)?;
        let help = "Connections to the database open and free";
        write("database_idle_connections", help, pool.idle)?;
        let help = "Most connections to the database";
        write("database_max_connections", help, pool.max)?;
        let help = "Reads and writes that wait for a connection";
        write("database_waiting_requests", help, pool.waiting)
    }
}
