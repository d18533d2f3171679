//! Signals to processes, to groups and to whole trees.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, kill_process, kill_process_group};

/// A signal to send.
pub use rustix::process::Signal;

/// The children that run, so that a second Ctrl-C can kill them all.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

pub(super) fn register(pid: u32) {
    RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid);
}

pub(super) fn unregister(pid: u32) {
    RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&pid);
}

/// Kills the group of every child that runs.
pub fn kill_all() {
    for pid in RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        send_to_group(*pid, Signal::KILL);
    }
}

/// Sends a signal to a process; one that has ended is no error.
pub(crate) fn send(pid: u32, signal: Signal) {
    if let Some(pid) = to_pid(pid) {
        kill_process(pid, signal).ok();
    }
}

/// Sends a signal to a process group; one that has ended is no error.
pub(super) fn send_to_group(pid: u32, signal: Signal) {
    if let Some(pid) = to_pid(pid) {
        kill_process_group(pid, signal).ok();
    }
}

/// Kills a process and all its children at one moment, and waits until they are gone.
///
/// The groups of PostgreSQL's backends are their own, so killing the postmaster's group would leave them.
pub fn kill_tree(root: u32) -> Result<()> {
    // Stopped first: it must not start another child between the look and the kill.
    send(root, Signal::STOP);
    let mut pids = vec![root];
    let mut index = 0;
    while let Some(parent) = pids.get(index).copied() {
        pids.extend(children_of(parent));
        index += 1;
    }
    for pid in &pids {
        send(*pid, Signal::KILL);
    }
    let start = Instant::now();
    while pids.iter().any(|pid| is_running(*pid)) {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("process {root} or a child of it survived SIGKILL");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether a process exists and is no zombie.
pub fn is_running(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat_fields(&stat).is_some_and(|(state, _)| state != "Z" && state != "X"),
        Err(_) if fs::exists("/proc/self/stat").unwrap_or(false) => false,
        Err(_) => ps(&["-o", "stat=", "-p", &pid.to_string()])
            .is_some_and(|state| !state.trim().is_empty() && !state.trim().starts_with('Z')),
    }
}

/// The processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return children_by_ps(parent);
    };
    let parent = parent.to_string();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|stat| stat_fields(&stat).map(|(_, ppid)| ppid == parent))
                .unwrap_or(false)
        })
        .collect()
}

/// For systems without /proc; a bare Debian, in turn, has no `ps`.
fn children_by_ps(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    ps(&["-A", "-o", "pid=,ppid="])
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let pid = fields.next()?.parse().ok()?;
            (fields.next()? == parent).then_some(pid)
        })
        .collect()
}

fn ps(arguments: &[&str]) -> Option<String> {
    let output = Command::new("ps").args(arguments).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// State and parent out of `/proc/<pid>/stat`; the command's name, in parentheses, may itself hold both.
fn stat_fields(stat: &str) -> Option<(&str, &str)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    Some((fields.next()?, fields.next()?))
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        assert_eq!(stat_fields("12 (a) Z (b) S 34 5 6"), Some(("S", "34")));
        assert_eq!(stat_fields("nothing"), None);
    }

    #[test]
    fn a_tree_is_killed_as_a_whole() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 300 & sleep 300 & wait"])
            .spawn()
            .unwrap();
        let start = Instant::now();
        while children_of(shell.id()).len() < 2 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        let children = children_of(shell.id());
        kill_tree(shell.id()).unwrap();
        shell.wait().unwrap();
        assert!(children.iter().all(|pid| !is_running(*pid)));
    }
}
