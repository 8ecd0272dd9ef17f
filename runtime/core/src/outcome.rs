//! How an attempt ended, and why events fail.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytestring::ByteString;

/// Longest reason that is kept, in bytes; longer ones are cut.
pub const REASON_MAX_BYTES: usize = 1024;

/// Why an event failed, which decides what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Trying again may help: the handler said so, or a capability timed out. Retried, then dead-lettered.
    Transient,
    /// The event can never be handled: undecodable, malformed, or an expression over it failed. Dead-lettered at once.
    Invalid,
    /// A business rule said no. Dead-lettered at once.
    Rejected,
    /// Trap, time out, out of memory, a bound exceeded, or refused by the log. Retried, then dead-lettered.
    Unknown,
}

impl Category {
    /// All categories.
    pub const ALL: [Self; 4] = [Self::Transient, Self::Invalid, Self::Rejected, Self::Unknown];

    /// The name in headers, metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }

    /// Whether another attempt may be made.
    #[must_use]
    pub const fn is_retried(self) -> bool {
        matches!(self, Self::Transient | Self::Unknown)
    }

    /// By when a person should have looked at a dead letter, unless the manifest says otherwise.
    #[must_use]
    pub const fn default_deadline(self) -> Duration {
        const HOUR: u64 = 3600;
        Duration::from_secs(match self {
            Self::Transient => HOUR,
            Self::Invalid => 24 * HOUR,
            Self::Rejected => 48 * HOUR,
            Self::Unknown => 4 * HOUR,
        })
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no category.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCategory;

impl fmt::Display for UnknownCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a failure category is one of transient, invalid, rejected, unknown")
    }
}

impl std::error::Error for UnknownCategory {}

impl FromStr for Category {
    type Err = UnknownCategory;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|c| c.as_str() == s).ok_or(UnknownCategory)
    }
}

/// A failure with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub category: Category,
    /// For a person; at most [`REASON_MAX_BYTES`] bytes.
    pub reason: ByteString,
    /// Not before this much time has passed, if the handler asked for it.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure whose reason is cut at [`REASON_MAX_BYTES`].
    #[must_use]
    pub fn new(category: Category, reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        if reason.len() > REASON_MAX_BYTES {
            reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES - '…'.len_utf8()));
            reason.push('…');
        }
        Self { category, reason: reason.into(), retry_after: None }
    }
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler returned without a failure.
    Completed,
    /// The guest did badly.
    Failed(Failure),
}
