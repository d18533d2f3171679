//! `Accept: application/x-ndjson`: all matching orders as a stream, one a line, out of one snapshot.
//!
//! A task reads pages and hands them to the answer's body, one ahead of the client: a slow client slows the reading, one
//! that leaves ends it. The body ends well only when the task says so. However else the task ends, the connection is cut in
//! the middle of the chunked body, so no client takes a part for the whole.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug, warn};
use warp::Reply;
use warp::reply::Response;

use crate::app::App;
use crate::http::problem::ApiError;
use crate::metrics::exports::{ExportOutcome, RunningExport};
use crate::repository::{OrderFilter, Snapshot, StoreError};

/// The media type.
pub const NDJSON: &str = "application/x-ndjson";

/// Size at which a page is handed over. Three are in memory at most: being read, waiting, being sent.
const PAGE_BYTES: usize = 256 * 1024;
/// How long a client may take nothing. Below the 30 s after which PostgreSQL ends a session idle in its transaction.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an export may take: while its snapshot is open, no dead row of the database can be removed.
const MAX_DURATION: Duration = Duration::from_secs(60 * 60);

enum Part {
    Lines(Bytes),
    End,
}

/// What the connection is cut with; hyper logs it.
#[derive(Debug, thiserror::Error)]
#[error("the export ended early")]
struct Cut;

/// Answers with all orders that match.
///
/// # Errors
/// As the database says; from the second page on, failures cut the connection.
pub async fn stream_orders(app: &Arc<App>, filter: OrderFilter) -> Result<Response, ApiError> {
    let mut snapshot = app.repository.open_snapshot(filter).await?;
    let first = Page::read(&mut snapshot).await?;
    let (parts_tx, mut parts_rx) = mpsc::channel(1);
    let export = Export {
        app: Arc::clone(app),
        snapshot,
        parts_tx,
    };
    tokio::spawn(export.run(first).in_current_span());
    let body = stream::poll_fn(move |context| {
        parts_rx.poll_recv(context).map(|part| match part {
            Some(Part::Lines(lines)) => Some(Ok(lines)),
            Some(Part::End) => None,
            None => Some(Err(Cut)),
        })
    });
    Ok(warp::reply::stream(body).into_response())
}

/// The answer to HEAD: of unknown length, as that to GET is.
pub fn no_orders() -> Response {
    warp::reply::stream(stream::empty::<Result<Bytes, Cut>>()).into_response()
}

struct Page {
    lines: Bytes,
    orders: u64,
    has_more: bool,
}

impl Page {
    async fn read(snapshot: &mut Snapshot) -> Result<Self, StoreError> {
        let (mut lines, mut orders) = (Vec::new(), 0);
        let has_more = snapshot
            .next_page(|order| {
                serde_json::to_writer(&mut lines, order)
                    .expect("an order has string keys only and nothing that can fail to serialise");
                lines.push(b'\n');
                orders += 1;
                if lines.len() < PAGE_BYTES {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .await?;
        Ok(Self {
            lines: lines.into(),
            orders,
            has_more,
        })
    }
}

struct Export {
    app: Arc<App>,
    snapshot: Snapshot,
    parts_tx: mpsc::Sender<Part>,
}

impl Export {
    async fn run(mut self, first: Page) {
        let app = Arc::clone(&self.app);
        let running = app.metrics.exports.started();
        let started = Instant::now();
        let client_left = self.parts_tx.clone();
        let outcome = tokio::select! {
            // All that was to be sent counts first: the client leaves right after it.
            biased;
            outcome = self.send_all(first, &running) => outcome,
            () = client_left.closed() => ExportOutcome::ClientLeft,
            () = app.shutdown.cancelled() => ExportOutcome::Shutdown,
            () = tokio::time::sleep_until(started + MAX_DURATION) => ExportOutcome::TooLong,
        };
        let duration_ms = started.elapsed().as_millis();
        match outcome {
            ExportOutcome::Completed | ExportOutcome::ClientLeft | ExportOutcome::Shutdown => {
                debug!(?outcome, duration_ms, "export ended");
            }
            _ => warn!(?outcome, duration_ms, "export cut"),
        }
        running.end(outcome);
    }

    async fn send_all(&mut self, first: Page, running: &RunningExport<'_>) -> ExportOutcome {
        let mut page = first;
        loop {
            running.count_orders(page.orders);
            if let Err(outcome) = self.send(Part::Lines(page.lines)).await {
                return outcome;
            }
            if !page.has_more {
                return match self.send(Part::End).await {
                    Ok(()) => ExportOutcome::Completed,
                    Err(outcome) => outcome,
                };
            }
            page = match Page::read(&mut self.snapshot).await {
                Ok(page) => page,
                // What failed is in the log already.
                Err(_) => return ExportOutcome::Failed,
            };
        }
    }

    async fn send(&self, part: Part) -> Result<(), ExportOutcome> {
        match timeout(STALL_TIMEOUT, self.parts_tx.send(part)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ExportOutcome::ClientLeft),
            Err(_) => Err(ExportOutcome::Stalled),
        }
    }
}
