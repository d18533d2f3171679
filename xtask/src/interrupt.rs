//! Ctrl-C, SIGTERM and SIGHUP: the first asks everything to stop in good order, the second kills at once.
//!
//! Whoever waits for anything calls [`check`] while it waits and returns its error, so that every server and process is
//! stopped by its own `Drop` on the way out. A library user that never calls [`install`] is never interrupted.

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::process;

/// How long waiting loops sleep between looks: short beside anything that is waited for.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The first signal that came, 0 before.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// The error of whatever was interrupted by a signal.
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
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let first = RECEIVED.swap(signal, Ordering::SeqCst) == 0;
                if first {
                    crate::progress::say("\nstopping (once more to kill at once)");
                } else {
                    process::kill_all();
                    std::process::exit(128 + signal);
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

/// Fails with [`Interrupted`] once a signal has come.
pub fn check() -> Result<()> {
    if RECEIVED.load(Ordering::SeqCst) != 0 {
        bail!(Interrupted);
    }
    Ok(())
}

/// The exit code that a shell expects of a process ended by the signal that came, if one came.
pub fn exit_code_opt() -> Option<u8> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// Waits until `probe` answers something, fails, is interrupted, or `timeout` has passed.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        check()?;
        if start.elapsed() >= timeout {
            bail!("{what}: not within {} s", timeout.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    }
}
