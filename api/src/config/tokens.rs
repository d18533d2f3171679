//! The tokens that clients send, and what each of them allows: the form of `API_TOKEN` and of `API_TOKENS_FILE`.
//!
//! The file holds one token per line: `name scopes sha256-of-the-token`, with blanks or tabs between the fields. `#` begins
//! a comment. It holds no secrets, because nobody can find a random token by its hash.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use shared::config::Secret;

/// The bounds of a token's length, in bytes. A shorter one can be guessed, and a longer one is a mistake.
pub const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=512;
/// The longest name of a token, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// The largest file of tokens, in bytes. It holds some ten thousand tokens.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The SHA-256 of a token.
type Hash = [u8; 32];

/// What a token may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Reading orders: one, lists, searches, exports, the feed, statistics.
    Read,
    /// Changing orders.
    Write,
    /// Warm-up, dropping the cache, metrics.
    Operate,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Operate];

    /// The scope's name in the file, and in the header `WWW-Authenticate`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Operate => "operate",
        }
    }
}

/// A set of scopes that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes {
    /// One bit for each scope, at the place of its number.
    bits: u8,
}

impl Scopes {
    const EVERY: Self = Self { bits: 0b111 };

    /// Returns whether the set contains a scope.
    pub fn contains(self, scope: Scope) -> bool {
        self.bits & (1 << scope as u8) != 0
    }
}

impl FromStr for Scopes {
    type Err = anyhow::Error;

    /// Reads names of scopes, comma-separated.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bits = 0;
        for name in text.split(',') {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
            let Some(scope) = scope else {
                bail!("a scope is not one of read, write, operate");
            };
            bits |= 1 << scope as u8;
        }
        Ok(Self { bits })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes = Scope::ALL.into_iter().filter(|scope| self.contains(*scope));
        let names: Vec<_> = scopes.map(Scope::name).collect();
        formatter.write_str(&names.join(","))
    }
}

/// The name of a token, which the log shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(String);

impl FromStr for TokenName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_valid = (1..=MAX_NAME_BYTES).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !is_valid {
            bail!("a name has 1 to {MAX_NAME_BYTES} letters, digits, and . _ -");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A token that is in force.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    /// The name that the log shows.
    pub name: TokenName,
    /// What the token allows.
    pub scopes: Scopes,
    hash: Hash,
}

/// The tokens that are in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    by_hash: HashMap<Hash, Arc<Token>>,
}

impl Tokens {
    /// Reads the tokens from the settings. `None` means that the server has no tokens.
    ///
    /// # Errors
    /// Returns a message that names the setting if the token or the file is wrong.
    pub fn load(api_token: Option<&Secret>, file: Option<&Path>) -> anyhow::Result<Option<Self>> {
        if api_token.is_none() && file.is_none() {
            return Ok(None);
        }
        let mut tokens = match file {
            Some(path) => Self::read(path)
                .with_context(|| format!("API_TOKENS_FILE: {} cannot be used", path.display()))?,
            None => Self::default(),
        };
        if let Some(token) = api_token {
            check_token(token.expose()).context("API_TOKEN")?;
            tokens.insert(Token {
                name: TokenName("API_TOKEN".to_owned()),
                scopes: Scopes::EVERY,
                hash: hash(token.expose()),
            })?;
        }
        Ok(Some(tokens))
    }

    /// Reads a file of tokens.
    fn read(path: &Path) -> anyhow::Result<Self> {
        // Opening a pipe would wait for somebody who writes.
        if !std::fs::metadata(path)?.is_file() {
            bail!("it is no regular file");
        }
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            bail!("it has more than {MAX_FILE_BYTES} bytes");
        }
        text.parse()
    }

    fn insert(&mut self, token: Token) -> anyhow::Result<()> {
        let name = token.name.clone();
        if let Some(other) = self.by_hash.insert(token.hash, Arc::new(token)) {
            bail!("{} and {name} are the same token", other.name);
        }
        Ok(())
    }

    /// Finds the token that a client has sent.
    ///
    /// The search is by hash. How long it takes tells nothing about a token, because nobody can choose a token by the
    /// beginning of its hash. The whole hash is compared in constant time.
    pub fn find(&self, sent: &str) -> Option<&Arc<Token>> {
        let hash = hash(sent);
        let token = self.by_hash.get(&hash)?;
        bool::from(token.hash.ct_eq(&hash)).then_some(token)
    }

    /// Returns whether a token is still in force, with this scope. Its name may have changed.
    pub fn still_allow(&self, token: &Token, scope: Scope) -> bool {
        let current = self.by_hash.get(&token.hash);
        current.is_some_and(|current| current.scopes.contains(scope))
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Returns whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }
}

impl FromStr for Tokens {
    type Err = anyhow::Error;

    /// Reads the content of a file. Errors name the line, and repeat nothing of it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut tokens = Self::default();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            if !line.trim().is_empty() {
                let token = parse_line(line);
                let inserted = token.and_then(|token| tokens.insert(token));
                inserted.with_context(|| format!("line {}", index + 1))?;
            }
        }
        if tokens.is_empty() {
            bail!("it has no token; `api token new NAME SCOPES` makes one");
        }
        Ok(tokens)
    }
}

fn parse_line(line: &str) -> anyhow::Result<Token> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [name, scopes, hash] = fields[..] else {
        bail!("a line has three fields: name, scopes, SHA-256 of the token");
    };
    Ok(Token {
        name: name.parse()?,
        scopes: scopes.parse()?,
        hash: parse_hash(hash)?,
    })
}

fn parse_hash(text: &str) -> anyhow::Result<Hash> {
    let mut hash = Hash::default();
    let is_hash = text.len() == 2 * hash.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        bail!(
            "the SHA-256 of a token has {} hexadecimal digits",
            2 * hash.len()
        );
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)?;
    }
    Ok(hash)
}

/// Checks that clients can send a token: `Authorization` separates it by a blank, and takes only visible characters.
fn check_token(token: &str) -> anyhow::Result<()> {
    if !TOKEN_BYTES.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let (min, max) = (TOKEN_BYTES.start(), TOKEN_BYTES.end());
        bail!("a token has {min} to {max} visible ASCII characters and no blanks");
    }
    Ok(())
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// Returns the SHA-256 of a token as the file writes it.
pub fn hash_text(token: &str) -> String {
    hash(token)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-some-length";

    fn tokens(text: &str) -> anyhow::Result<Tokens> {
        text.replace("HASH", &hash_text(TOKEN)).parse()
    }

    #[test]
    fn a_token_is_found_by_its_hash_with_its_scopes() {
        let text = "\u{feff}# rotated in May\r\n\r\n shop\tread,write  HASH # the shop\r\n";
        let tokens = tokens(text).unwrap();
        let found = tokens.find(TOKEN).unwrap();
        assert_eq!(
            (
                found.name.to_string().as_str(),
                found.scopes.to_string().as_str()
            ),
            ("shop", "read,write")
        );
        assert!(found.scopes.contains(Scope::Write) && !found.scopes.contains(Scope::Operate));
        assert!(tokens.find(&TOKEN[1..]).is_none() && tokens.find("").is_none());
    }

    #[test]
    fn wrong_lines_are_named_and_not_repeated() {
        for (text, reason) in [
            ("", "no token"),
            ("# only a comment\n", "no token"),
            ("shop read", "line 1: a line has three fields"),
            ("shop read HASH HASH", "line 1: a line has three fields"),
            ("shop,read,HASH", "line 1: a line has three fields"),
            ("\nshop admin HASH", "line 2: a scope is not one of"),
            ("shop read, HASH", "line 1: a scope is not one of"),
            ("sh(op read HASH", "line 1: a name has"),
            ("shop read secret-token", "line 1: the SHA-256"),
            ("shop read HASH0", "line 1: the SHA-256"),
            (
                "one read HASH\ntwo write HASH",
                "line 2: one and two are the same token",
            ),
        ] {
            let error = format!("{:#}", tokens(text).unwrap_err());
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(!error.contains("secret-token"), "{error}");
        }
    }

    #[test]
    fn a_token_that_no_client_can_send_is_refused() {
        for token in [
            "q",
            "fifteen-letters",
            "has a blank inside",
            "has\ta-tab-inside",
            "ключ-которого-нет",
            "ends-with-a-blank ",
        ] {
            let error = Tokens::load(Some(&Secret::new(token)), None).unwrap_err();
            let error = format!("{error:#}");
            assert!(
                error.contains("API_TOKEN") && !error.contains(token),
                "{error}"
            );
        }
        let tokens = Tokens::load(Some(&Secret::new(TOKEN)), None)
            .unwrap()
            .unwrap();
        assert!(
            Scope::ALL
                .iter()
                .all(|scope| tokens.find(TOKEN).unwrap().scopes.contains(*scope))
        );
        assert!(Tokens::load(None, None).unwrap().is_none());
    }
}
