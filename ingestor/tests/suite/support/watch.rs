//! The processor time and the log lines of a daemon that waits for something.

use std::time::Instant;

use super::Daemon;

/// The daemon's processor time and log since some moment.
pub struct Watch<'a> {
    daemon: &'a Daemon,
    started_at: Instant,
    cpu_seconds: f64,
    log_lines: usize,
}

impl<'a> Watch<'a> {
    pub fn start(daemon: &'a Daemon) -> Self {
        Self {
            daemon,
            started_at: Instant::now(),
            cpu_seconds: cpu_seconds(daemon),
            log_lines: daemon.log().lines().count(),
        }
    }

    /// Asserts that it took less than a fifth of a core and wrote fewer than 50 lines per second.
    pub fn assert_calm(&self) {
        let elapsed = self.started_at.elapsed().as_secs_f64();
        let cpu = (cpu_seconds(self.daemon) - self.cpu_seconds) / elapsed;
        assert!(cpu < 0.2, "{:.0} % of a core", cpu * 100.0);
        let lines = self.daemon.log().lines().count() - self.log_lines;
        let lines_per_second = lines as f64 / elapsed;
        assert!(lines_per_second < 50.0, "{lines_per_second} lines a second");
    }
}

fn cpu_seconds(daemon: &Daemon) -> f64 {
    servers::proc::cpu_seconds(daemon.pid()).unwrap()
}
