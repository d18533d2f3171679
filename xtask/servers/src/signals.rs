//! Signals to processes, to process groups and to whole trees of processes.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};

use crate::proc::{children_of, is_running};

/// The children that run, so that a second Ctrl-C can kill them all.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Locks the list of children. A panic elsewhere does not matter: the list is whole after each change.
pub(crate) fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the process group of every child that runs.
pub(crate) fn kill_all() {
    for pid in running().iter() {
        send_to_group(*pid, Signal::KILL);
    }
}

/// Sends a signal to a process group. A group that has ended is not an error.
pub(crate) fn send_to_group(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        kill_process_group(pid, signal).ok();
    }
}

/// Kills a process and all its descendants at one moment, and waits until they are gone.
///
/// To kill the process group of PostgreSQL's first process would not be enough: each of its children has its own group.
///
/// # Errors
/// Fails if one of the processes still runs after 10 s.
pub(crate) fn kill_tree(root: u32) -> Result<()> {
    // It is stopped first, so that it cannot start another child between the look and the kill.
    send(root, Signal::STOP);
    let mut pids = vec![root];
    let mut index = 0;
    while let Some(parent) = pids.get(index).copied() {
        let children = children_of(parent).into_iter();
        pids.extend(children.map(|child| child.pid.cast_unsigned()));
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

/// Sends a signal to a process. A process that has ended is not an error.
fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        kill_process(pid, signal).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

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
        assert!(
            children
                .iter()
                .all(|child| !is_running(child.pid.cast_unsigned()))
        );
    }
}
