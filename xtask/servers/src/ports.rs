//! Free ports on loopback.

use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// The range is below those from which Linux (32768..) and macOS (49152..) take the ports of clients. So the port of a
/// killed server is still free when the server comes back, however many connections were opened meanwhile.
const FIRST: u32 = 16_000;
const COUNT: u32 = 16_000;

/// Returns a port that nobody listens on.
///
/// Two processes that search at the same moment start at different places. Another program may still take the port before
/// the server binds it; the server then reports that.
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
    bail!(
        "there is no free port between {FIRST} and {}",
        FIRST + COUNT
    );
}

/// Returns whether a server could listen on a port of loopback.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_then_is_not_free() {
        let port = free_port().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}
