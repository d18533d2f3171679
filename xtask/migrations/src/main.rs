//! `migrations FOLDER`: checks that no migration stops reads or ingestion, nor breaks the processes of the former release.
//!
//! It prints one line for each finding and exits with status 1 if there is any. `cargo xtask check` runs it.
//! `migrations/README.md` lists the rules for people.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`rules`] | what is refused, why, and what to do instead | |
//! | [`syntax`] | names and marks in the syntax tree of a statement | |
//! | [`statements`] | what a statement does to tables | [`rules`], [`syntax`] |
//! | [`files`] | the migrations of a folder | |
//! | [`review`] | all migrations, one after the other: what each statement breaks, and what its author answers for | [`files`], [`rules`], [`statements`], [`syntax`] |

mod files;
mod review;
mod rules;
mod statements;
mod syntax;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

fn main() -> anyhow::Result<ExitCode> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.context("usage: migrations FOLDER")?;
    let findings = review::findings(&files::read_all(&folder)?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
