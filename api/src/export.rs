//! `Accept: application/x-ndjson` and `text/csv`: all matching orders as a stream, from one snapshot.
//!
//! A task reads pages and hands them to the answer's body, one page ahead of the client. A slow client therefore slows down
//! the reading, and a client that leaves ends it. The body ends normally only when the task says so. If the task ends in any
//! other way, the connection is cut in the middle of the chunked body. No client can then take a part for the whole.

mod csv;
mod format;

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use shared::traces::{self, Span};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};
use warp::Reply;
use warp::reply::Response;

use crate::metrics::exports::{ExportMetrics, ExportOutcome};
use crate::repository::{ListedOrder, Snapshot, StoreError};
use crate::shares::Portion;

pub use format::Format;

/// The size at which a page is handed over. At most three pages are in memory: one is read, one waits, one is sent.
/// An order of many items is larger as CSV, where each row repeats the order, so it may be sent in several parts.
const PAGE_BYTES: usize = 256 * 1024;
/// A page is handed over in parts of at most this size, so that a client that reads slowly can be told from one that reads
/// nothing.
const PART_BYTES: usize = 16 * 1024;
/// How long a client may read nothing. This is less than the 30 s after which PostgreSQL ends a session that is idle in its
/// transaction.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an export may take. While its snapshot is open, no dead row of the database can be removed.
const MAX_DURATION: Duration = Duration::from_secs(60 * 60);

enum Part {
    Text(Bytes),
    End,
}

/// The error that cuts the connection; hyper logs it.
#[derive(Debug, thiserror::Error)]
#[error("the export ended early")]
struct Cut;

/// Answers with all orders of a snapshot. `withdrawn` and `shutdown` cut the connection. `place` is held until the export ends.
///
/// # Errors
/// Returns a [`StoreError`] if the database gave no answer, or an order of the first page cannot be read. From the second page
/// on, a failure cuts the connection.
pub async fn stream_orders(
    mut snapshot: Snapshot,
    format: Format,
    place: Portion,
    metrics: &ExportMetrics,
    withdrawn: impl Future<Output = ()> + Send + 'static,
    shutdown: &CancellationToken,
) -> Result<Response, StoreError> {
    let beginning = format.beginning(snapshot.view());
    let first = Page::read(&mut snapshot, format, beginning).await?;
    let (parts_tx, mut parts_rx) = mpsc::channel(PAGE_BYTES / PART_BYTES);
    let export = Export {
        format,
        snapshot,
        parts_tx,
        metrics: metrics.clone(),
        // Its statements have no spans: an export of a million orders has thousands.
        span: traces::part("export"),
        _place: place,
    };
    let running = export.run(first, withdrawn, shutdown.clone());
    tokio::spawn(running.in_current_span());
    let body = stream::poll_fn(move |context| {
        parts_rx.poll_recv(context).map(|part| match part {
            Some(Part::Text(text)) => Some(Ok(text)),
            Some(Part::End) => None,
            None => Some(Err(Cut)),
        })
    });
    Ok(warp::reply::stream(body).into_response())
}

/// The answer to HEAD, whose length is unknown like that of the answer to GET.
pub fn no_orders() -> Response {
    warp::reply::stream(stream::empty::<Result<Bytes, Cut>>()).into_response()
}

struct Page {
    text: Bytes,
    orders: u64,
    has_more: bool,
    /// The last order, if it did not fit, and its first item that is missing.
    rest: Option<(ListedOrder, usize)>,
}

impl Page {
    /// Reads orders and appends them to `text`.
    async fn read(
        snapshot: &mut Snapshot,
        format: Format,
        mut text: Vec<u8>,
    ) -> Result<Self, StoreError> {
        let (mut orders, mut next_item) = (0, None);
        let next_page = snapshot.next_page(|order| {
            next_item = format.write(&order.content, 0, &mut text);
            orders += 1;
            if text.len() < PAGE_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        let (has_more, last) = next_page.await?;
        Ok(Self {
            text: text.into(),
            orders,
            has_more,
            rest: last.zip(next_item),
        })
    }
}

struct Export {
    format: Format,
    snapshot: Snapshot,
    parts_tx: mpsc::Sender<Part>,
    metrics: ExportMetrics,
    /// Its span, if it is traced. It outlives that of the request, which ends when the answer begins.
    span: Option<Span>,
    /// Dropped after the snapshot, whose connection it stands for.
    _place: Portion,
}

impl Export {
    async fn run(
        mut self,
        first: Page,
        withdrawn: impl Future<Output = ()>,
        shutdown: CancellationToken,
    ) {
        let (metrics, span) = (self.metrics.clone(), self.span.clone());
        let _running = metrics.started();
        let started = Instant::now();
        let client = self.parts_tx.clone();
        let outcome = tokio::select! {
            // The end of the sending comes first, because the client leaves right after it.
            biased;
            sent = self.send_all(first) => sent.err().unwrap_or(ExportOutcome::Completed),
            () = client.closed() => ExportOutcome::ClientLeft,
            () = withdrawn => ExportOutcome::Withdrawn,
            () = shutdown.cancelled() => ExportOutcome::Shutdown,
            () = sleep(MAX_DURATION) => ExportOutcome::TooLong,
        };
        let duration_ms = started.elapsed().as_millis();
        match outcome {
            ExportOutcome::Completed
            | ExportOutcome::ClientLeft
            | ExportOutcome::Withdrawn
            | ExportOutcome::Shutdown => {
                debug!(?outcome, duration_ms, "export ended");
            }
            _ => warn!(?outcome, duration_ms, "export cut"),
        }
        metrics.ended(outcome);
        if let Some(span) = span {
            span.set("orders.export.outcome", outcome.as_str());
            if outcome != ExportOutcome::Completed {
                span.fail("");
            }
        }
    }

    async fn send_all(&mut self, mut page: Page) -> Result<(), ExportOutcome> {
        loop {
            self.metrics.count_orders(page.orders);
            self.send_text(page.text).await?;
            while let Some((order, item)) = page.rest {
                let mut text = Vec::new();
                let next_item = self.format.write(&order.content, item, &mut text);
                self.send_text(text.into()).await?;
                page.rest = next_item.map(|item| (order, item));
            }
            if !page.has_more {
                return self.send(Part::End).await;
            }
            let next = Page::read(&mut self.snapshot, self.format, Vec::new()).await;
            // The repository has logged the failure.
            page = next.map_err(|_| ExportOutcome::Failed)?;
        }
    }

    async fn send_text(&self, mut text: Bytes) -> Result<(), ExportOutcome> {
        while !text.is_empty() {
            let part = text.split_to(text.len().min(PART_BYTES));
            self.send(Part::Text(part)).await?;
        }
        Ok(())
    }

    async fn send(&self, part: Part) -> Result<(), ExportOutcome> {
        match timeout(STALL_TIMEOUT, self.parts_tx.send(part)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ExportOutcome::ClientLeft),
            Err(_) => Err(ExportOutcome::Stalled),
        }
    }
}
