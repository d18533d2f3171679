//! How many requests a client address may send in a minute. There is no limit unless the operator sets one.
//!
//! Requests are counted in fixed windows, because only these can be described exactly in the headers. The number of
//! remembered addresses is bounded; those that were not seen for longest are forgotten and start with a new window. Behind
//! a proxy all clients have one address, so the proxy must set the limits there.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use shared::server::subscriber;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

use super::OPS_PATHS;
use super::problem::ApiError;

const WINDOW: Duration = Duration::from_secs(60);
/// These take about a megabyte.
const MAX_PEERS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Counts the requests of each client address.
#[derive(Debug)]
pub struct RateLimiter {
    per_minute: NonZeroU32,
    peers: Mutex<LruCache<IpAddr, Window>>,
}

#[derive(Debug)]
struct Window {
    started: Instant,
    taken: u32,
}

/// What is left of a client's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    per_minute: u32,
    /// `None` if nothing was left for this request.
    remaining: Option<u32>,
    reset_seconds: u64,
}

impl RateLimiter {
    /// Allows each client address so many requests in a minute.
    pub fn new(per_minute: NonZeroU32) -> Self {
        Self {
            per_minute,
            peers: Mutex::new(LruCache::new(MAX_PEERS)),
        }
    }

    /// Counts a request. Returns `None` if it watches the process: such clients must get answers even while a client is
    /// refused.
    pub fn take(&self, peer: IpAddr, path: &str) -> Option<Quota> {
        (!OPS_PATHS.contains(&path)).then(|| self.take_at(peer, Instant::now()))
    }

    fn take_at(&self, peer: IpAddr, now: Instant) -> Quota {
        let mut peers = self.peers.lock();
        let window = peers.get_or_insert_mut(subscriber(peer), || Window {
            started: now,
            taken: 0,
        });
        if now.duration_since(window.started) >= WINDOW {
            *window = Window {
                started: now,
                taken: 0,
            };
        }
        let remaining = self.per_minute.get().checked_sub(window.taken + 1);
        if remaining.is_some() {
            window.taken += 1;
        }
        let left = WINDOW.saturating_sub(now.duration_since(window.started));
        Quota {
            per_minute: self.per_minute.get(),
            remaining,
            reset_seconds: left.as_secs_f64().ceil() as u64,
        }
    }
}

impl Quota {
    /// Checks that the request was within the limit.
    ///
    /// # Errors
    /// Returns `RateLimited` if it was not.
    pub fn check(&self) -> Result<(), ApiError> {
        match self.remaining {
            Some(_) => Ok(()),
            None => Err(ApiError::RateLimited {
                retry_after_seconds: self.reset_seconds,
            }),
        }
    }

    /// Tells the client what is left (draft-ietf-httpapi-ratelimit-headers).
    pub fn set_headers(&self, headers: &mut HeaderMap) {
        let policy = format!("\"default\";q={};w={}", self.per_minute, WINDOW.as_secs());
        let remaining = self.remaining.unwrap_or(0);
        let state = format!("\"default\";r={remaining};t={}", self.reset_seconds);
        for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
            let value = HeaderValue::try_from(value)
                .expect("digits, quotes and semicolons are valid in a header");
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> RateLimiter {
        RateLimiter::new(NonZeroU32::new(3).unwrap())
    }

    #[test]
    fn peer_gets_its_requests_each_minute_and_no_more() {
        let (limiter, start) = (limiter(), Instant::now());
        let peer = "192.0.2.1".parse().unwrap();
        let remaining = |seconds: u64| {
            let quota = limiter.take_at(peer, start + Duration::from_secs(seconds));
            (quota.remaining, quota.reset_seconds)
        };
        assert_eq!(remaining(0), (Some(2), 60));
        assert_eq!(remaining(1), (Some(1), 59));
        assert_eq!(remaining(2), (Some(0), 58));
        assert_eq!(remaining(3), (None, 57));
        assert_eq!(remaining(59), (None, 1));
        assert_eq!(remaining(60), (Some(2), 60));
        assert_eq!(remaining(200), (Some(2), 60));
    }

    #[test]
    fn peers_are_subscribers_and_their_number_is_bounded() {
        let (limiter, now) = (limiter(), Instant::now());
        let remaining = |peer: &str| limiter.take_at(peer.parse().unwrap(), now).remaining;
        assert_eq!(remaining("192.0.2.1"), Some(2));
        assert_eq!(remaining("192.0.2.2"), Some(2));
        assert_eq!(remaining("::ffff:192.0.2.1"), Some(1));
        assert_eq!(remaining("2001:db8:0:1::1"), Some(2));
        assert_eq!(remaining("2001:db8:0:1:ffff::2"), Some(1));
        assert_eq!(remaining("2001:db8:0:2::1"), Some(2));
        for number in 0..20_000 {
            limiter.take_at(std::net::Ipv4Addr::from_bits(number).into(), now);
        }
        assert_eq!(limiter.peers.lock().len(), MAX_PEERS.get());
    }

    #[test]
    fn what_watches_the_process_is_not_limited() {
        let limiter = limiter();
        let peer = "192.0.2.1".parse().unwrap();
        assert!(limiter.take(peer, "/order/a").is_some());
        for path in OPS_PATHS {
            assert_eq!(limiter.take(peer, path), None);
        }
    }
}
