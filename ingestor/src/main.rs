//! The `ingestor` program: configuration, logging, the command, the exit status.

use std::process::ExitCode;

use ingestor::commands;
use ingestor::config::Cli;

// No allocator of our own: mimalloc 3 keeps what is freed for a second. With orders of 100 KB, read on one thread and freed
// on others, it held 80 MiB for 26 in use, and was no faster beside bare COPY.
#[tokio::main(worker_threads = 1)] // Serves the operators' port only; the work is done on threads of its own.
async fn main() -> ExitCode {
    let _armed = ingestor::failpoints::arm();
    let outcome = match shared::config::parse::<Cli>() {
        Ok(cli) => commands::execute(cli).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingestor: {error:#}");
            ExitCode::FAILURE
        }
    }
}
