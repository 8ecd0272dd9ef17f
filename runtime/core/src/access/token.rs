//! A token: what is shown, what is kept, and how the one is told by the other.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ADMINISTRATOR, Pattern, Rate, Role};
use crate::digest::Digest;
use crate::limits;
use crate::time::Timestamp;

/// What all tokens begin with, so that one in the wrong place is recognized.
const MARK: &str = "mr_";
/// What names of entries of tokens begin with in a log.
const ENTRY: &str = "token.";
const ID_CHARS: usize = 12;
const SECRET_CHARS: usize = 64;

/// By what a token is known: 12 lower-case hexadecimal digits. No secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(String);

impl TokenId {
    /// As it is written.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name under which a log keeps it.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("{ENTRY}{self}")
    }

    /// The token that is kept under this name, if it is one; otherwise what stands in place of its id, in a way that only a later version
    /// knows.
    pub(super) fn of_entry(name: &str) -> Option<Result<Self, &str>> {
        let id = name.strip_prefix(ENTRY)?;
        Some(id.parse().map_err(|_| id))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TokenId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_hex(text, ID_CHARS) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("an id of a token is {ID_CHARS} lower-case hexadecimal digits; `millrace tokens list` shows them"))
    }
}

fn is_hex(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What is kept of a secret: its SHA-256. A secret is 256 random bits, so that nobody finds it by guessing, and a hash that is slow
/// on purpose, as for passwords, would protect nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Digest);

impl Secret {
    /// One that no text has.
    pub(super) const NONE: Self = Self(Digest::from_bytes([0; 32]));

    /// What is kept of this text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Digest::of(text.as_bytes()))
    }

    /// Whether it is this text. Takes as long whichever it is.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        let shown = Digest::of(text.as_bytes());
        let differing = self.0.as_bytes().iter().zip(shown.as_bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is shown once, when a token is made: `mr_<id>_<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: TokenId,
    secret: String,
}

impl Shown {
    /// A token of these random bytes.
    #[must_use]
    pub fn of_random(id: [u8; 6], secret: [u8; 32]) -> Self {
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id: TokenId(id), secret: Digest::from_bytes(secret).to_string() }
    }

    /// The text, which is a secret.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{MARK}{}_{}", self.id, self.secret)
    }

    /// What is kept of it.
    #[must_use]
    pub fn secret(&self) -> Secret {
        Secret::of(&self.secret)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}_...", self.id)
    }
}

/// Id and secret of what somebody shows.
pub(super) fn parts(shown: &str) -> Option<(TokenId, &str)> {
    let (id, secret) = shown.strip_prefix(MARK)?.split_once('_')?;
    Some((id.parse().ok()?, secret)).filter(|_| is_hex(secret, SECRET_CHARS))
}

/// A text without the secrets of tokens in it: `mr_9f3a6c01d2e4_***` stands for each.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, from)) = rest.split_once(MARK) {
        kept.push_str(before);
        kept.push_str(MARK);
        rest = from;
        let Some((id, secret)) = from.split_at_checked(ID_CHARS).filter(|(id, _)| is_hex(id, ID_CHARS)) else {
            continue;
        };
        let Some(secret) = secret.strip_prefix('_') else { continue };
        kept.push_str(id);
        kept.push_str("_***");
        // One that was written down wrong is told as little, and one that was taken out already stays as it is.
        rest = secret.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
        rest = rest.strip_prefix("***").unwrap_or(rest);
    }
    kept.push_str(rest);
    kept
}

/// A token as it is kept. A field that is not known makes it unreadable: it could be a restriction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What people call it: 1 to 100 bytes, for their eyes.
    pub name: String,
    /// What is kept of its secret.
    pub secret: Secret,
    /// What it is trusted with, at least one.
    pub roles: BTreeSet<Role>,
    /// The functions that it is for; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<Pattern>,
    /// The topics that it is for; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<Pattern>,
    /// How many requests it may send; none means as many as the configuration says. Versions that know no rates cannot read a token that has
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Who made it, as far as that is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// From when on it does not hold, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

impl Token {
    /// Checks what people chose.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn check(&self) -> Result<(), InvalidToken> {
        let invalid = |reason: String| Err(InvalidToken(reason));
        let (name, max) = (&self.name, limits::TOKEN_NAME_MAX_BYTES);
        if name.trim() != name || name.is_empty() || name.len() > max || name.chars().any(char::is_control) {
            return invalid(format!("`name` is 1 to {max} bytes, without spaces at its ends and control characters"));
        }
        if name.eq_ignore_ascii_case(ADMINISTRATOR) {
            return invalid(format!("`name`: `{ADMINISTRATOR}` means another one; choose another name"));
        }
        if self.roles.is_empty() {
            return invalid(format!(
                "`roles` is empty; give at least one of {}",
                Role::ALL.map(Role::as_str).join(", ")
            ));
        }
        let most = limits::TOKEN_PATTERNS_MAX;
        if self.functions.len() > most || self.topics.len() > most {
            return invalid(format!("a token can have {most} patterns for functions, and as many for topics"));
        }
        let publishes_alone = self.roles.iter().all(|role| *role == Role::Publish);
        if publishes_alone && !self.functions.is_empty() && self.topics.is_empty() {
            return invalid(
                "whoever has the role `publish` alone has to do with no functions, and patterns for these restrict nothing: give patterns for topics"
                    .to_owned(),
            );
        }
        if self.roles.contains(&Role::Admin) && !(self.functions.is_empty() && self.topics.is_empty()) {
            return invalid("whoever has the role `admin` can make tokens without patterns: leave them out".to_owned());
        }
        Ok(())
    }

    /// Whether it has not expired.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.expires_ms.is_none_or(|expires| now.as_millis() < expires)
    }

    /// Whether it is an administrator's for ever.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.roles.contains(&Role::Admin) && self.expires_ms.is_none()
    }

    /// As a log keeps it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Its maps have keys that are texts, so that nothing can go wrong.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Read back, if this version can read it.
    #[must_use]
    pub fn decode(content: &[u8]) -> Option<Self> {
        serde_json::from_slice(content).ok()
    }
}

/// Why a token cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidToken(String);

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidToken {}
