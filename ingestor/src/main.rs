//! The `ingestor` program: configuration, logging, the command, the exit status.

use std::process::ExitCode;

use ingestor::commands;
use ingestor::config::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
