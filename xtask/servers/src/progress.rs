//! What the developer sees: one line for each step, with the seconds since the start.

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

/// Prints text and a line end. A closed pipe is not an error (`make demo | head`).
pub fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{text}")
        .and_then(|()| output.flush())
        .ok();
}
