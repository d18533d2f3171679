//! `cargo xtask`: what developers run.

use std::process::ExitCode;

use xtask::{interrupt, progress, stack};

fn main() -> ExitCode {
    progress::start_clock();
    let outcome = interrupt::install().and_then(|()| match std::env::args().nth(1).as_deref() {
        Some("stack") => stack::run(),
        _ => anyhow::bail!("usage: cargo xtask stack"),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            ExitCode::from(interrupt::exit_code_opt().unwrap_or(1))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
