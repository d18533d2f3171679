//! Files of tokens for tests.

use std::fs;
use std::path::PathBuf;

use api::config::tokens::hash_text;

/// A file of tokens, which is removed with the value.
pub struct TokenFile {
    pub path: PathBuf,
}

impl TokenFile {
    /// Writes a file of tokens with these names and scopes.
    pub fn new(tokens: &[(&str, &str)]) -> Self {
        let name = format!("tokens-{}", uuid::Uuid::new_v4());
        let file = Self {
            path: std::env::temp_dir().join(name),
        };
        file.write(tokens);
        file
    }

    /// Puts other tokens into the file.
    pub fn write(&self, tokens: &[(&str, &str)]) {
        let lines = tokens.iter().map(|(name, scopes)| {
            let hash = hash_text(&token(name));
            format!("{name}\t{scopes} {hash}\n")
        });
        fs::write(&self.path, lines.collect::<String>()).unwrap();
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// The token with this name.
fn token(name: &str) -> String {
    format!("token-of-tests-named-{name}")
}

/// The value of `Authorization` that sends the token with this name.
pub fn bearer(name: &str) -> String {
    format!("Bearer {}", token(name))
}
