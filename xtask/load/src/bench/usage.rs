//! What processes have used, as Linux counts it in `/proc`.

use std::collections::HashMap;
use std::fs;

use anyhow::Context as _;

/// Linux counts in hundredths of a second for programs, whatever the kernel does (`USER_HZ` in `man 5 proc`).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds that a process has used itself.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    Ok(Stat::read(pid)?.own_ticks as f64 / TICKS_PER_SECOND)
}

/// Highest resident memory of a process in MiB.
pub(crate) fn peak_memory_mib(pid: u32) -> anyhow::Result<f64> {
    memory_of(pid, "VmHWM:")
}

/// Resident memory of a process in MiB.
pub(crate) fn memory_mib(pid: u32) -> anyhow::Result<f64> {
    memory_of(pid, "VmRSS:")
}

fn memory_of(pid: u32, name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("no {name} the process has ended"))?;
    let kib: f64 = value.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// CPU time in seconds of a server and all its children, those that have ended included; of one child not: `except`.
pub(crate) fn family_cpu_seconds(parent: u32, except: u32) -> anyhow::Result<f64> {
    loop {
        let before = Stat::read(parent)?;
        let children: u64 = children_of(parent)?
            .iter()
            .filter(|(pid, _)| **pid != except)
            .map(|(_, stat)| stat.own_ticks + stat.ended_children_ticks)
            .sum();
        // A child that ends moves its time to its parent: then nothing of this look fits together.
        if Stat::read(parent)?.ended_children_ticks == before.ended_children_ticks {
            let ticks = before.own_ticks + before.ended_children_ticks + children;
            return Ok(ticks as f64 / TICKS_PER_SECOND);
        }
    }
}

fn children_of(parent: u32) -> anyhow::Result<HashMap<u32, Stat>> {
    let pids = fs::read_dir("/proc")
        .context("no /proc: CPU time is measured on Linux alone")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // What ends between the two looks has no time any more.
    Ok(pids
        .filter_map(|pid| Some((pid, Stat::read(pid).ok()?)))
        .filter(|(_, stat)| stat.parent == parent)
        .collect())
}

/// A line of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of children that have ended and were waited for.
    ended_children_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text).with_context(|| format!("cannot understand {path}: {text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field, a name in parentheses, may hold spaces and parentheses; the state follows it.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own_ticks: ticks(11)? + ticks(12)?,
            ended_children_ticks: ticks(13)? + ticks(14)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use shared::testing::wait_until;

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 9 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            stat,
            Stat {
                parent: 7,
                own_ticks: 120,
                ended_children_ticks: 7
            }
        );
        assert_eq!(Stat::parse("42 (short) S 7"), None);
    }

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
        wait_until(
            "the running child counts too",
            Duration::from_secs(30),
            || seconds(0) > of_ended_child + 0.1,
        );
        assert!((seconds(family.running_child) - of_ended_child).abs() < 0.1);
    }
}
