//! What the developer sees: one line a step, with the seconds since the start.

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Starts the clock of [`step`].
pub fn start_clock() {
    START.get_or_init(Instant::now);
}

/// Prints one line about a step, with the seconds since the start.
pub fn step(text: &str) {
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs_f32();
    say(&format!("[{elapsed:6.1} s] {text}"));
}

/// Prints text and a line end; a closed pipe is no reason to stop (`make demo | head`).
pub fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.write_all(b"\n"))
        .and_then(|()| output.flush())
        .ok();
}
