//! The memory of all answers under way.
//!
//! An answer takes its memory for as long as its client takes to read it. Therefore the bytes of large answers are counted
//! until hyper has sent or dropped them, and what exceeds the bound is refused with 503. A page is counted before it is read,
//! with all that it may need, and then with what it has.
//!
//! Not counted are answers of one piece: hyper copies them at once, so they keep nothing of ours. The same is true of the
//! pieces of large answers that hyper has taken (`shared::server`). The connections bound both. Exports hold three pages each,
//! and are bounded by their places. The page and its assets are the same memory for everybody.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use shared::order::MAX_ORDER_BYTES;
use warp::reply::Response;

use super::problem::ApiError;
use crate::metrics::answers::AnswerMetrics;
use crate::shares::{Exhausted, Portion, Shares};

/// The memory for all answers. It leaves a process in 512 MiB, the limit of `docker-compose.yaml`, enough for a full cache of
/// `CACHE_CAPACITY_MB` (256), for the program, and for what an allocator adds. It holds 24 of the largest pages while nobody
/// reads them. It is no setting: who raises it must know what the machine has left, and a proxy that reads quickly helps more.
pub const TOTAL_BYTES: usize = 96 * 1024 * 1024;
/// What one client address may hold of it.
const SHARE_BYTES: usize = TOTAL_BYTES / 2;
/// What a page may need while it is read: its text (4 MiB), and as much again while the text is moved to more room.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// What a write may need: the order as it is sent, and as it is answered. A write that is done must not be refused.
const WRITE_BYTES: usize = 3 * MAX_ORDER_BYTES;
/// Shorter answers are copied by hyper at once.
const SMALL_BYTES: usize = 16 * 1024;
/// Semaphores count in `u32`, and the allocator does not give single bytes.
const UNIT_BYTES: usize = 1024;

/// The memory of all answers under way.
#[derive(Debug)]
pub struct Budget {
    shares: Arc<Shares>,
    patience: Duration,
    used_bytes: Gauge,
}

/// Memory that is counted until the value is dropped.
#[derive(Debug)]
pub struct Reserved {
    portion: Portion,
    used_bytes: Gauge,
}

/// Bytes of an answer, and the memory that is counted for them.
struct Counted {
    bytes: Bytes,
    /// Dropped with the last use of the bytes.
    _reserved: Reserved,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    /// Makes a budget. A page waits for memory for as long as `patience`.
    pub fn new(patience: Duration, metrics: &AnswerMetrics) -> Self {
        metrics.limit_bytes.set(TOTAL_BYTES as i64);
        Self {
            shares: Shares::new(units(TOTAL_BYTES), units(SHARE_BYTES)),
            patience,
            used_bytes: metrics.used_bytes.clone(),
        }
    }

    /// Makes a page when there is memory for it, and counts the page until it is sent. The body must be there at once.
    ///
    /// # Errors
    /// Returns `Overloaded` if there was no memory in time, and the error of `making`.
    pub async fn page<E: Into<ApiError>>(
        &self,
        client: IpAddr,
        making: impl Future<Output = Result<Response, E>>,
    ) -> Result<Response, ApiError> {
        let (amount, patience) = (units(PAGE_BYTES), self.patience);
        let portion = self.shares.take(client, amount, patience).await;
        let mut reserved = self.reserved(portion)?;
        let (parts, body) = making.await.map_err(Into::into)?.into_parts();
        let body = body.collect().now_or_never().and_then(Result::ok);
        let bytes = body.ok_or(ApiError::Internal)?.to_bytes();
        // Only one order can be larger than a page.
        reserved.grow(bytes.len())?;
        Ok(Response::from_parts(parts, reserved.attach(bytes).into()))
    }

    /// Waits for the memory that a write needs, and counts it.
    ///
    /// # Errors
    /// Returns `Overloaded` if there was no memory in time.
    pub async fn write(&self, client: IpAddr) -> Result<Reserved, ApiError> {
        let portion = self.shares.take(client, units(WRITE_BYTES), self.patience);
        self.reserved(portion.await)
    }

    /// Counts an answer that is there already, until it is sent.
    ///
    /// # Errors
    /// Returns `Overloaded` if there is no memory left.
    pub fn count(&self, client: IpAddr, bytes: Bytes) -> Result<Bytes, ApiError> {
        if bytes.len() <= SMALL_BYTES {
            return Ok(bytes);
        }
        let portion = self.shares.take_now(client, units(bytes.len()));
        Ok(self.reserved(portion)?.attach(bytes))
    }

    fn reserved(&self, portion: Result<Portion, Exhausted>) -> Result<Reserved, ApiError> {
        let portion = portion.map_err(refusal)?;
        let used_bytes = self.used_bytes.clone();
        used_bytes.inc_by(bytes_of(&portion));
        Ok(Reserved {
            portion,
            used_bytes,
        })
    }
}

impl Reserved {
    /// Counts an answer from now on, and until it is sent, instead of what it might have needed.
    pub fn attach(mut self, bytes: Bytes) -> Bytes {
        let size_bytes = bytes.len();
        if size_bytes <= SMALL_BYTES {
            return bytes;
        }
        self.resize(|portion| portion.shrink(units(size_bytes)));
        let _reserved = self;
        Bytes::from_owner(Counted { bytes, _reserved })
    }

    fn grow(&mut self, size_bytes: usize) -> Result<(), ApiError> {
        self.resize(|portion| portion.grow(units(size_bytes)))
            .map_err(refusal)
    }

    fn resize<T>(&mut self, change: impl FnOnce(&mut Portion) -> T) -> T {
        let before = bytes_of(&self.portion);
        let changed = change(&mut self.portion);
        self.used_bytes.inc_by(bytes_of(&self.portion) - before);
        changed
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.used_bytes.dec_by(bytes_of(&self.portion));
    }
}

fn units(size_bytes: usize) -> u32 {
    u32::try_from(size_bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

fn bytes_of(portion: &Portion) -> i64 {
    i64::from(portion.amount()) * UNIT_BYTES as i64
}

fn refusal(exhausted: Exhausted) -> ApiError {
    ApiError::Overloaded(match exhausted {
        Exhausted::Share => {
            "the answers to this address that it has not read yet take all the memory that one address may use, try again"
        }
        Exhausted::All => {
            "answers that clients have not read yet take all the memory for answers, try again"
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::http::empty;
    use warp::http::StatusCode;

    const MIB: usize = 1024 * 1024;

    fn budget() -> Budget {
        Budget::new(Duration::ZERO, &AnswerMetrics::default())
    }

    fn client(number: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, number).into()
    }

    #[test]
    fn large_answers_are_counted_until_their_last_byte_is_dropped() {
        let budget = budget();
        let answer = budget.count(client(1), vec![0; 200 * 1024].into()).unwrap();
        let rest = answer.clone().split_off(100 * 1024);
        drop(answer);
        assert_eq!(budget.used_bytes.get(), 200 * 1024);
        drop(rest);
        assert_eq!(budget.used_bytes.get(), 0);
        let small = budget.count(client(1), vec![0; SMALL_BYTES].into());
        assert_eq!(budget.used_bytes.get(), 0);
        drop(small);
    }

    #[test]
    fn a_client_gets_half_of_the_memory_and_two_get_all_of_it() {
        let budget = budget();
        let text = Bytes::from(vec![0; MIB]);
        let take = |number| budget.count(client(number), text.clone());
        let detail = |number| take(number).unwrap_err().to_string();
        let first: Vec<_> = (0..48).map(|_| take(1).unwrap()).collect();
        assert!(detail(1).contains("this address"));
        let _second: Vec<_> = (0..48).map(|_| take(2).unwrap()).collect();
        assert!(detail(3).contains("all the memory"));
        drop(first);
        assert!(take(3).is_ok());
    }

    #[tokio::test]
    async fn a_page_is_counted_with_all_it_may_need_and_then_with_what_it_has() {
        let budget = budget();
        let mut held = Vec::new();
        for size in [0, 100 * 1024, 9 * MIB] {
            let before = budget.used_bytes.get();
            let making = async {
                assert_eq!(budget.used_bytes.get() - before, PAGE_BYTES as i64);
                Ok::<_, ApiError>(Response::new(vec![0; size].into()))
            };
            held.push(budget.page(client(1), making).await.unwrap());
            assert_eq!(budget.used_bytes.get() - before, size as i64, "{size}");
        }
        let failing = async { Err(ApiError::DatabaseTimeout) };
        let failed = budget.page(client(1), failing).await;
        assert_eq!(failed.unwrap_err(), ApiError::DatabaseTimeout);
        drop(held);
        let five = (0..6).map(|_| {
            let budget = &budget;
            budget.page(client(1), async move {
                tokio::task::yield_now().await;
                Ok::<_, ApiError>(empty(StatusCode::OK))
            })
        });
        let answers = futures_util::future::join_all(five).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(budget.used_bytes.get(), 0);
    }
}
