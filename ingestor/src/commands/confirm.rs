//! Asks a person before something is changed.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};

/// Asks on the terminal, and goes on only after a typed `yes`. With `yes` nobody is asked.
///
/// # Errors
/// Fails where the answer is another one, and where there is nobody to ask.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "{question}\nnobody can be asked, as standard input is no terminal: repeat it with --yes"
        );
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}\nType yes to go on: ")
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
