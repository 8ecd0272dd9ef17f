//! Names that cannot be wrong.

use std::fmt;
use std::str::FromStr;

use bytestring::ByteString;
use serde::{Deserialize, Serialize};

/// Longest name of a topic, as in Kafka.
pub const TOPIC_MAX_CHARS: usize = 249;
/// Longest name of an application or of a function within it.
pub const LABEL_MAX_CHARS: usize = 63;

/// What everything of ours in a broker begins with, unless the configuration says otherwise.
pub const DEFAULT_PREFIX: &str = "millrace";
/// Longest prefix.
pub const PREFIX_MAX_CHARS: usize = 32;

/// Why a text is not a name. Its message names the text, the rule and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName(String);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidName {}

/// The name of a topic: 1 to 249 characters out of `a-z A-Z 0-9 . _ -`, not `.` or `..`, as in Kafka.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Topic(ByteString);

impl Topic {
    /// Checks a name.
    ///
    /// # Errors
    /// If it is not a name that Kafka would take.
    pub fn new(name: impl Into<ByteString>) -> Result<Self, InvalidName> {
        let name = name.into();
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > TOPIC_MAX_CHARS || !name.bytes().all(legal) || matches!(&*name, "." | "..") {
            return Err(InvalidName(format!(
                "`{}` cannot name a topic: use 1 to {TOPIC_MAX_CHARS} letters, digits, dots, underscores and hyphens",
                shortened(&name)
            )));
        }
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Topic {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl TryFrom<String> for Topic {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> Self {
        topic.0.into()
    }
}

/// The full name of a function, `<application>.<function>`; both parts match `[a-z][a-z0-9-]{0,62}`.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionName {
    full: ByteString,
    dot: usize,
}

impl FunctionName {
    /// Joins an application's name and a function's name within it.
    ///
    /// # Errors
    /// If either part breaks the rule; the message names the part.
    pub fn new(application: &str, function: &str) -> Result<Self, InvalidName> {
        check_label("application", application)?;
        check_label("function", function)?;
        Ok(Self { full: format!("{application}.{function}").into(), dot: application.len() })
    }

    /// The application's name.
    #[must_use]
    pub fn application(&self) -> &str {
        &self.as_str()[..self.dot]
    }

    /// The function's name within the application.
    #[must_use]
    pub fn function(&self) -> &str {
        &self.as_str()[self.dot + 1..]
    }

    /// The full name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

/// Where a function's dead letters are kept: `<prefix>.<application>.<function>.dead-letter`.
///
/// # Errors
/// If the name would be too long for a topic.
pub fn dead_letter_topic(prefix: &str, function: &FunctionName) -> Result<Topic, InvalidName> {
    derived_topic(format!("{prefix}.{function}.dead-letter"))
}

/// Where dead letters that were read from `source` go to be handled once more:
/// `<prefix>.<application>.<function>.redrive.<source>`.
///
/// # Errors
/// If the name would be too long for a topic.
pub fn redrive_topic(prefix: &str, function: &FunctionName, source: &Topic) -> Result<Topic, InvalidName> {
    derived_topic(format!("{prefix}.{function}.redrive.{source}"))
}

fn derived_topic(name: String) -> Result<Topic, InvalidName> {
    let chars = name.len();
    Topic::new(name).map_err(|InvalidName(message)| {
        if chars <= TOPIC_MAX_CHARS {
            return InvalidName(message);
        }
        InvalidName(format!(
            "{message}; this name has {chars} characters: shorten the application's, the function's or the source's name"
        ))
    })
}

/// Where it is kept who did what: `<prefix>.audit`.
///
/// # Errors
/// If the prefix is none.
pub fn audit_topic(prefix: &str) -> Result<Topic, InvalidName> {
    derived_topic(format!("{prefix}.audit"))
}

/// Whether a topic's name is one of those the runtime makes for itself: it begins with the prefix and a dot.
#[must_use]
pub fn is_reserved(prefix: &str, topic: &str) -> bool {
    topic.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

/// Checks a prefix: the name of an application, and not longer than [`PREFIX_MAX_CHARS`].
///
/// # Errors
/// If it is not one.
pub fn check_prefix(prefix: &str) -> Result<(), InvalidName> {
    check_label("a prefix", prefix)?;
    if prefix.len() <= PREFIX_MAX_CHARS {
        return Ok(());
    }
    Err(InvalidName(format!("`{prefix}` is too long for a prefix: use at most {PREFIX_MAX_CHARS} characters")))
}

/// Checks the name of an application or function.
///
/// # Errors
/// If it does not match `[a-z][a-z0-9-]{0,62}`; the message names `what`.
pub fn check_label(what: &str, label: &str) -> Result<(), InvalidName> {
    let first = label.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let rest = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if first && rest && label.len() <= LABEL_MAX_CHARS {
        return Ok(());
    }
    Err(InvalidName(format!(
        "`{}` cannot name {what}: use a lower-case letter, then up to 62 lower-case letters, digits and hyphens",
        shortened(label)
    )))
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl FromStr for FunctionName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (application, function) = s.split_once('.').ok_or_else(|| {
            InvalidName(format!(
                "`{}` is not the full name of a function: write <application>.<function>",
                shortened(s)
            ))
        })?;
        Self::new(application, function)
    }
}

/// The unit of ownership: one function reading one partition of one source topic. One worker owns it with its lanes,
/// its idempotency keys and its accounts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// The function.
    pub function: FunctionName,
    /// The source topic.
    pub topic: Topic,
    /// The partition of the source topic.
    pub partition: u32,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}/{}", self.function, self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_are_checked_for_their_length() {
        let label = "f".repeat(LABEL_MAX_CHARS);
        let function = FunctionName::new("orders", "pay").unwrap();
        let long = FunctionName::new(&label, &label).unwrap();
        let topic = |chars: usize| Topic::new("t".repeat(chars)).unwrap();
        let shown = |topic: Result<Topic, InvalidName>| topic.map_or_else(|e| e.to_string(), |t| t.to_string());
        assert_eq!(shown(dead_letter_topic("millrace", &function)), "millrace.orders.pay.dead-letter");
        assert_eq!(shown(audit_topic("millrace")), "millrace.audit");
        assert_eq!(shown(redrive_topic("staging", &function, &topic(3))), "staging.orders.pay.redrive.ttt");
        assert!(redrive_topic("millrace", &long, &topic(104)).is_ok());
        assert!(shown(redrive_topic("millrace", &long, &topic(105))).contains("this name has 250 characters: shorten"));
        assert!(dead_letter_topic(&"p".repeat(PREFIX_MAX_CHARS), &long).is_ok());
    }

    #[test]
    fn the_runtimes_own_names_begin_with_the_prefix_and_a_dot() {
        for (topic, reserved) in
            [("millrace.a", true), ("millrace.", true), ("millrace", false), ("millraces.a", false)]
        {
            assert_eq!(is_reserved("millrace", topic), reserved, "{topic}");
        }
        assert!(check_prefix("staging-2").is_ok());
        assert!(check_prefix("a.b").is_err());
        assert!(check_prefix(&"p".repeat(PREFIX_MAX_CHARS + 1)).is_err());
    }
}
