//! Checks the modules of crates: `modules ROOT...`, where each ROOT is the root file of a crate, such as `api/src/lib.rs`.
//!
//! It prints one line for each finding and exits with status 1 if there is any. `cargo xtask check` runs it.
//!
//! | module | what it is for | uses |
//! |---|---|---|
//! | [`source`] | the module tree of a crate, and what each module imports | |
//! | [`rules`] | no circles, nothing taken from the root, and a true table of modules | [`source`] |

mod rules;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::source::Crate;

fn main() -> anyhow::Result<ExitCode> {
    let mut is_clean = true;
    for root in std::env::args_os().skip(1).map(PathBuf::from) {
        let source = Crate::read(&root, &|path| std::fs::read_to_string(path).ok())?;
        for finding in rules::findings(&source) {
            is_clean = false;
            eprintln!("{finding}");
        }
    }
    Ok(if is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
