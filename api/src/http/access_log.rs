//! The log lines of requests, as `LOG_ACCESS` chooses them. They hold no path, no query and no body, because these name orders
//! and customers.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shared::throttle::Throttle;
use tracing::info;
use warp::http::StatusCode;

use super::request::Sender;
use crate::config::AccessLog;
use crate::config::tokens::Token;

/// Refused requests leave at most one line in this time, so that a scanner cannot fill the disk.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(1);

/// What a line says of a request.
#[derive(Debug)]
pub struct Access<'a> {
    /// Who has sent it.
    pub sender: Sender,
    /// The name of its token; `None` without a token.
    pub token: Option<&'a Arc<Token>>,
    /// Its method.
    pub method: &'a str,
    /// The name of its route.
    pub route: &'static str,
    /// The status of its answer.
    pub status: StatusCode,
    /// How long the answer took.
    pub duration: Duration,
}

/// Writes the lines.
#[derive(Debug)]
pub struct AccessLogger {
    which: AccessLog,
    refusals: Mutex<Refusals>,
}

#[derive(Debug)]
struct Refusals {
    throttle: Throttle,
    unlogged: u64,
}

impl AccessLogger {
    /// Logs these requests.
    pub fn new(which: AccessLog) -> Self {
        Self {
            which,
            refusals: Mutex::new(Refusals {
                throttle: Throttle::every(REFUSAL_INTERVAL),
                unlogged: 0,
            }),
        }
    }

    /// Returns whether a request with this answer leaves a line. A refused one is counted by that.
    pub fn wants(&self, status: StatusCode) -> bool {
        match self.which {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Refused => is_refusal(status) && self.refusals.lock().is_due(),
        }
    }

    /// Writes the line of a request that [`Self::wants`] one.
    pub fn log(&self, access: &Access<'_>) {
        let unlogged = std::mem::take(&mut self.refusals.lock().unlogged);
        let Sender { peer, client } = access.sender;
        info!(
            target: "api::access",
            client = %client,
            peer = (peer != client).then(|| tracing::field::display(peer)),
            token = access.token.map(|token| tracing::field::display(&token.name)),
            method = access.method,
            route = access.route,
            status_code = access.status.as_u16(),
            duration_ms = access.duration.as_micros() as f64 / 1000.0,
            unlogged = (unlogged > 0).then_some(unlogged),
            "request"
        );
    }
}

impl Refusals {
    fn is_due(&mut self) -> bool {
        let is_due = self.throttle.is_due();
        if !is_due {
            self.unlogged += 1;
        }
        is_due
    }
}

/// Whether a request was refused because of who has sent it, or because it is not HTTP as we speak it.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 429)
}
