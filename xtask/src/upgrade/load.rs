//! Readers and writers of the api, and how far ingestion is.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use servers::interrupt::wait_for;
use servers::postgres::PrivatePostgres;
use servers::project;

use crate::stack::Stack;

/// The uid of the sample order, `shared/data/model.json`.
pub(super) const SAMPLE_UID: &str = "b563feb7b2b84b6test";

/// How often the offsets are read.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the requests rest.
const REQUEST_INTERVAL: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT_SECONDS: u64 = 10;

/// How many records the ingestors have settled.
#[derive(Debug)]
pub(crate) struct Settled<'a> {
    postgres: &'a PrivatePostgres,
}

impl<'a> Settled<'a> {
    pub(crate) fn new(servers: &'a Stack) -> Result<Self> {
        let postgres = servers
            .postgres()
            .context("there is no private PostgreSQL")?;
        Ok(Self { postgres })
    }

    /// Runs statements, and returns what they print.
    pub(crate) fn psql(&self, statements: &str) -> Result<String> {
        self.postgres.psql(statements)
    }

    /// Returns the number that a query selects.
    pub(crate) fn number(&self, query: &str) -> Result<u64> {
        let answer = self.psql(query)?;
        let answer = answer.trim();
        answer
            .parse()
            .with_context(|| format!("`{query}` answered {answer:?}"))
    }

    /// Returns how many records of each partition are settled.
    fn offsets(&self) -> Result<Vec<u64>> {
        let answer = self.psql("SELECT next_offset FROM consumer_offsets ORDER BY partition")?;
        let offsets = answer.lines().map(str::parse).collect::<Result<_, _>>();
        offsets.with_context(|| format!("the offsets are {answer:?}"))
    }

    fn records(&self) -> Result<u64> {
        Ok(self.offsets()?.iter().sum())
    }

    /// Waits until so many records are settled in all.
    pub(crate) fn wait_for(&self, expected: u64, patience: Duration) -> Result<()> {
        wait_for(
            &format!("{expected} records are not settled"),
            patience,
            || {
                let records = self.records()?;
                ensure!(
                    records <= expected,
                    "{records} records are settled, but only {expected} were sent"
                );
                Ok((records == expected).then_some(()))
            },
        )
    }

    /// Waits until so many records more are settled.
    pub(crate) fn wait_for_more(&self, more: u64, patience: Duration) -> Result<()> {
        let expected = self.records()? + more;
        wait_for(
            &format!("no {more} records more are settled"),
            patience,
            || Ok((self.records()? >= expected).then_some(())),
        )
    }
}

/// The load on the api, and the watch on ingestion.
#[derive(Debug)]
pub(super) struct Load {
    /// The api that is asked.
    port: AtomicU16,
    requests: AtomicU64,
    pub is_over: AtomicBool,
    /// While it is true, new orders arrive all the time.
    pub is_streaming: AtomicBool,
}

impl Load {
    pub(super) fn new(port: u16) -> Self {
        Self {
            port: AtomicU16::new(port),
            requests: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            is_streaming: AtomicBool::new(false),
        }
    }

    /// Sends all further requests to another api, as a balancer does, and waits for the answer to the last one before.
    pub(super) fn send_to(&self, port: u16) -> Result<()> {
        self.port.store(port, Ordering::SeqCst);
        let answered = self.requests.load(Ordering::SeqCst) + 2;
        wait_for("no request is answered", Duration::from_secs(30), || {
            Ok((self.requests.load(Ordering::SeqCst) >= answered).then_some(()))
        })
    }

    /// Reads and replaces the sample order and reads the list until the end, and returns how many requests were answered.
    ///
    /// # Errors
    /// Returns an error at the first request that fails.
    pub(super) fn send_requests(&self) -> Result<u64> {
        let model = std::fs::read(project::root().join("shared/data/model.json"))
            .context("cannot read the sample order")?;
        let order = format!("/api/v1/orders/{SAMPLE_UID}");
        while !self.is_over.load(Ordering::Relaxed) {
            let number = self.requests.load(Ordering::SeqCst);
            let url = |path: &str| {
                let port = self.port.load(Ordering::SeqCst);
                format!("http://127.0.0.1:{port}{path}")
            };
            let request = match number % 10 {
                0 => minreq::put(url(&order))
                    .with_header("content-type", "application/json")
                    .with_body(model.clone()),
                1 => minreq::get(url("/api/v1/orders?limit=20")),
                _ => minreq::get(url(&order)),
            };
            let answer = request
                .with_timeout(REQUEST_TIMEOUT_SECONDS)
                .send()
                .with_context(|| format!("request {number} was not answered"))?;
            ensure!(
                answer.status_code == 200,
                "request {number} was answered with {}: {}",
                answer.status_code,
                answer.as_str().unwrap_or_default()
            );
            self.requests.fetch_add(1, Ordering::SeqCst);
            thread::sleep(REQUEST_INTERVAL);
        }
        Ok(self.requests.load(Ordering::SeqCst))
    }

    /// Returns the longest time in which no record of a partition was settled although new ones arrived.
    pub(super) fn watch_ingestion(&self, settled: &Settled<'_>) -> Result<Duration> {
        let (mut longest, mut former) = (Duration::ZERO, settled.offsets()?);
        let mut risen_at = vec![Instant::now(); former.len()];
        while !self.is_over.load(Ordering::Relaxed) {
            let present = settled.offsets()?;
            ensure!(
                present.len() == former.len(),
                "a partition was added or removed"
            );
            for (number, offset) in present.iter().enumerate() {
                if *offset > former[number] || !self.is_streaming.load(Ordering::Relaxed) {
                    risen_at[number] = Instant::now();
                }
                longest = longest.max(risen_at[number].elapsed());
            }
            former = present;
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(longest)
    }
}
