//! Free ports on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// Below the range that Linux (32768..) and macOS (49152..) take client ports from: a server that was killed finds its port
/// free when it comes back, whatever connections were opened meanwhile.
const FIRST: u32 = 16_000;
const COUNT: u32 = 16_000;

/// A port that nobody listens on.
///
/// Two processes that look at the same moment start at different places; between the look and the server's bind it may
/// still be taken, which the server then reports.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.subsec_nanos());
    let start = process::id()
        .wrapping_mul(7919)
        .wrapping_add(nanoseconds / 1_000);
    for _ in 0..1_000 {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(offset.wrapping_mul(13)) % COUNT;
        if let Ok(port) = u16::try_from(port)
            && is_free(port)
        {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Whether a server could listen on a port of loopback.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether something listens on a port of loopback.
pub fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_then_is_not_free() {
        let port = free_port().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(!is_free(port));
        assert!(answers(port));
        drop(listener);
        assert!(is_free(port));
    }
}
