//! Time since the process started, that of a suspended machine included: `Instant` stands still in its sleep, and a proof
//! from before it would look young after it.

use std::time::Duration;

/// A clock that starts at zero and goes on while the machine sleeps.
#[derive(Debug)]
pub(super) struct Clock {
    started: Reading,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: read() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        since(self.started)
    }
}

/// Time since the machine's start.
#[cfg(target_os = "linux")]
type Reading = Duration;

#[cfg(target_os = "linux")]
fn read() -> Reading {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is ever negative on this clock.
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(target_os = "linux")]
fn since(started: Reading) -> Duration {
    read().saturating_sub(started)
}

#[cfg(not(target_os = "linux"))]
type Reading = std::time::Instant;

#[cfg(not(target_os = "linux"))]
fn read() -> Reading {
    std::time::Instant::now()
}

#[cfg(not(target_os = "linux"))]
fn since(started: Reading) -> Duration {
    started.elapsed()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn clock_is_the_one_that_counts_sleep() {
        // The first number of this file is CLOCK_BOOTTIME, in hundredths of a second.
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((read().as_secs_f64() - seconds).abs() < 1.0);
    }
}
