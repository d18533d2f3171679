//! Ctrl-C, SIGTERM and SIGHUP: the first signal asks everything to stop in good order, the second one kills at once.
//!
//! Code that waits calls [`check`] while it waits and returns its error. So each server and process is stopped by its own
//! `Drop` on the way out. A program that never calls [`install`] is never interrupted.

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{progress, signals};

/// How long waiting loops sleep between two looks. It is short compared to anything that they wait for.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The first signal that came; 0 if none has come.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// The error of work that a signal has interrupted.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to listen for the signals.
pub fn install() -> Result<()> {
    let mut received = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in received.forever() {
                let is_first = RECEIVED.swap(signal, Ordering::SeqCst) == 0;
                if is_first {
                    progress::say("\nstopping (press Ctrl-C again to kill everything at once)");
                } else {
                    signals::kill_all();
                    std::process::exit(128 + signal);
                }
            }
        })
        .context("cannot start the thread that waits for signals")?;
    Ok(())
}

/// Checks that no signal has come.
///
/// # Errors
/// Returns [`Interrupted`] after a signal has come.
pub fn check() -> Result<()> {
    if RECEIVED.load(Ordering::SeqCst) != 0 {
        bail!(Interrupted);
    }
    Ok(())
}

/// Returns the exit code that a shell expects of a process that the received signal has ended; `None` without a signal.
pub fn exit_code() -> Option<u8> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// Waits until `probe` returns a value.
///
/// # Errors
/// Returns the error of `probe`, [`Interrupted`] after a signal, or an error that begins with `problem` once `timeout` has
/// passed.
pub fn wait_for<T>(
    problem: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        check()?;
        if start.elapsed() >= timeout {
            bail!("{problem} within {} s", timeout.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    }
}
