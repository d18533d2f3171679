//! `api token`: makes tokens for `API_TOKENS_FILE`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config::command::TokenCommand;
use crate::config::tokens::hash_text;

/// Begins every token that we make, so that programs that search for leaked secrets can recognise one.
const PREFIX: &str = "orders_";
/// As many random bytes as a SHA-256 has: nobody can find a token by trying.
const RANDOM_BYTES: usize = 32;

/// Does what the command line asks for.
///
/// # Errors
/// Returns an error if the operating system has no random numbers.
pub(super) fn token(command: &TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::New { name, scopes } = command;
    let token = new_token()?;
    eprintln!("The first line is the token. It is shown only now: give it to the client.");
    eprintln!(
        "The second line is for API_TOKENS_FILE. The api reads the file again within 30 s, and on SIGHUP."
    );
    println!("{token}\n{name} {scopes} {}", hash_text(&token));
    Ok(())
}

fn new_token() -> anyhow::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok([PREFIX, &URL_SAFE_NO_PAD.encode(bytes)].concat())
}
