//! What the kernel tells about processes, read from `/proc`.
//!
//! Other systems than Linux have no `/proc`. There a process counts as running until it has been waited for, no process has
//! children, and reading CPU time or memory fails.

use std::fs;

use anyhow::{Context as _, Result};
use procfs_core::process::{Stat, Status};
use procfs_core::{FromRead as _, LoadAverage};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// For programs Linux counts CPU time in hundredths of a second, whatever the kernel's own clock is (`USER_HZ` in
/// `man 5 proc`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns whether a process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    let exists = Pid::from_raw(pid.cast_signed())
        .is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH));
    exists && !stat(pid).is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'))
}

/// Returns the CPU time in seconds that a process has used, without its children.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(seconds(own_ticks(&stat(pid)?)))
}

/// Returns the CPU time in seconds that a server and all its children have used, except one child.
///
/// Children that have ended count too.
pub fn family_cpu_seconds(parent: u32, except: u32) -> Result<f64> {
    loop {
        let before = stat(parent)?;
        let children: u64 = children_of(parent)
            .iter()
            .filter(|child| child.pid != except.cast_signed())
            .map(|child| own_ticks(child) + ended_children_ticks(child))
            .sum();
        // When a child ends, its time moves to its parent. Then the numbers of this look do not fit together.
        if ended_children_ticks(&stat(parent)?) == ended_children_ticks(&before) {
            let own = own_ticks(&before) + ended_children_ticks(&before);
            return Ok(seconds(own + children));
        }
    }
}

/// Returns the resident memory of a process in MiB.
pub fn memory_mib(pid: u32) -> Result<f64> {
    mib(status(pid)?.vmrss)
}

/// Returns the highest resident memory that a process has had, in MiB.
pub fn peak_memory_mib(pid: u32) -> Result<f64> {
    mib(status(pid)?.vmhwm)
}

/// Returns the load averages of the last 1, 5 and 15 minutes.
pub fn load_averages() -> Result<[f32; 3]> {
    let averages = LoadAverage::from_file("/proc/loadavg")?;
    Ok([averages.one, averages.five, averages.fifteen])
}

/// Returns the processes whose parent is `parent`.
pub(crate) fn children_of(parent: u32) -> Vec<Stat> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        // A process that ends between the two looks is left out.
        .filter_map(|pid| stat(pid).ok())
        .filter(|stat| stat.ppid == parent.cast_signed())
        .collect()
}

fn stat(pid: u32) -> Result<Stat> {
    Ok(Stat::from_file(format!("/proc/{pid}/stat"))?)
}

fn status(pid: u32) -> Result<Status> {
    Ok(Status::from_file(format!("/proc/{pid}/status"))?)
}

fn mib(kib_opt: Option<u64>) -> Result<f64> {
    let kib = kib_opt.context("the process has ended")?;
    Ok(kib as f64 / 1024.0)
}

fn own_ticks(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}

/// The CPU time of the children that have ended and were waited for.
fn ended_children_ticks(stat: &Stat) -> u64 {
    (stat.cutime + stat.cstime).cast_unsigned()
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// A shell that has waited for a busy child and has another one, which is busy until it is killed.
    struct Family {
        parent: Child,
        running_child: u32,
    }

    impl Family {
        fn start() -> Self {
            let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
            let script = format!("sh -c '{busy}; :'; sh -c 'while :; do :; done' & echo $!; wait");
            let mut parent = Command::new("sh")
                .args(["-c", &script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(parent.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            Self {
                parent,
                running_child: line.trim().parse().unwrap(),
            }
        }
    }

    impl Drop for Family {
        fn drop(&mut self) {
            Command::new("kill")
                .arg(self.running_child.to_string())
                .status()
                .unwrap();
            self.parent.wait().unwrap();
        }
    }

    #[test]
    fn the_time_of_children_counts_while_they_run_and_after() {
        let family = Family::start();
        let seconds = |except| family_cpu_seconds(family.parent.id(), except).unwrap();
        let of_ended_child = seconds(family.running_child);
        assert!(of_ended_child > 0.0);
        let start = Instant::now();
        while seconds(0) <= of_ended_child + 0.1 {
            assert!(start.elapsed() < Duration::from_secs(30));
            thread::sleep(Duration::from_millis(10));
        }
        assert!((seconds(family.running_child) - of_ended_child).abs() < 0.1);
    }
}
