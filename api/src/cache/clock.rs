//! Time since the process started, which includes the time while the machine sleeps. `Instant` stands still during sleep: a
//! proof from before the sleep would look young after it.

use std::time::Duration;

/// A clock that starts at zero and also runs while the machine sleeps.
#[derive(Debug)]
pub(super) struct Clock {
    started: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        now().saturating_sub(self.started)
    }
}

/// Time since the machine started.
#[cfg(target_os = "linux")]
fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither number is ever negative on this clock.
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Time since the first call.
#[cfg(not(target_os = "linux"))]
fn now() -> Duration {
    static FIRST: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    FIRST.elapsed()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn clock_counts_the_time_of_sleep() {
        // The first number of this file is CLOCK_BOOTTIME, in hundredths of a second.
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((now().as_secs_f64() - seconds).abs() < 1.0);
    }
}
