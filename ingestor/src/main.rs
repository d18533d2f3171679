//! The `ingestor` program: reads the command line, runs the command, sets the exit status.

use ingestor::commands;
use ingestor::config::Cli;

// No allocator of our own: mimalloc 3 keeps freed memory for a second. With orders of 100 KB, which one thread allocates and
// others free, it held 80 MiB while 26 MiB were in use, and it was no faster.
#[tokio::main(worker_threads = 1)] // It only serves the operators' port; the work is done on other threads.
async fn main() {
    let _armed = ingestor::failpoints::arm();
    let outcome = match shared::config::parse::<Cli>() {
        Ok(cli) => commands::execute(cli).await,
        Err(error) => Err(error),
    };
    let status = match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("ingestor: {error:#}");
            1
        }
    };
    // Not by returning: the runtime would wait for threads that hang in a call of a frozen server.
    std::process::exit(status);
}
