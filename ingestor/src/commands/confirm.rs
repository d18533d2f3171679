//! Asks the user before something is changed.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};

/// Asks on the terminal, and returns only after a typed `yes`. With `yes` it does not ask.
///
/// # Errors
/// Returns an error if the answer is not `yes`, or if standard input is no terminal.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "{question}\nstandard input is not a terminal, so you cannot be asked: repeat the command with --yes"
        );
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}\nType yes to continue: ")
        .and_then(|()| stderr.flush())
        .context("cannot ask")?;
    let mut answer = String::new();
    stdin
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if answer.trim() != "yes" {
        bail!("nothing was changed");
    }
    Ok(())
}
