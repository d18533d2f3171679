//! What a daemon costs while it waits for something.

use std::time::{Duration, Instant};

use super::Daemon;

/// The kernel counts CPU time in these; a constant on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The daemon's processor time and log from a moment on.
pub struct Watch<'a> {
    daemon: &'a Daemon,
    started_at: Instant,
    cpu: Duration,
    log_lines: usize,
}

impl<'a> Watch<'a> {
    pub fn start(daemon: &'a Daemon) -> Self {
        Self {
            daemon,
            started_at: Instant::now(),
            cpu: cpu_time(daemon),
            log_lines: daemon.log().lines().count(),
        }
    }

    /// It took less than a fifth of a core and wrote less than 50 lines a second.
    pub fn assert_calm(&self) {
        let elapsed = self.started_at.elapsed().as_secs_f64();
        let cpu = (cpu_time(self.daemon) - self.cpu).as_secs_f64() / elapsed;
        assert!(cpu < 0.2, "{:.0} % of a core", cpu * 100.0);
        let lines = self.daemon.log().lines().count() - self.log_lines;
        let lines_per_second = lines as f64 / elapsed;
        assert!(lines_per_second < 50.0, "{lines_per_second} lines a second");
    }
}

fn cpu_time(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    // Behind the name, which is in brackets: the state is field 3, user and system time are 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}
