//! What runs, as the log keeps it: deployments of functions, their components, and what each instance says of both. And small
//! entries, which all instances see, such as tokens.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::name::FunctionName;
use millrace_core::time::Timestamp;

use super::Error;

/// The part of a log that says what runs. Whoever has the log has all that it takes to run every function.
pub trait Deployments: Send + Sync + 'static {
    /// All deployments of all functions and all entries, once there are others than those that `seen` was answered with; at once
    /// without it. Cancel safe.
    fn deployments(&self, seen: Option<u64>) -> impl Future<Output = Result<Deployed, Error>> + Send;

    /// Stores a deployment that builds on number `previous` (0 for the first); answers with its number. Durable when it
    /// returns.
    fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> impl Future<Output = Result<u64, DeployError>> + Send;

    /// Stores a component under its digest, unless it is there. Durable when it returns; until then it is not there.
    fn put_component(&self, digest: Digest, content: Bytes) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether a component is there.
    fn has_component(&self, digest: Digest) -> impl Future<Output = Result<bool, Error>> + Send;

    /// A component, if it is there, as it was stored.
    fn component(&self, digest: Digest) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;

    /// The components that are there, in ascending order.
    fn components(&self) -> impl Future<Output = Result<Vec<Digest>, Error>> + Send;

    /// Removes a component, if it is there.
    fn remove_component(&self, digest: Digest) -> impl Future<Output = Result<(), Error>> + Send;

    /// Replaces an entry, or removes it, if no entry was changed since [`Deployed::entries_at`] was `builds_on`. Its content can have
    /// [`limits::ENTRY_MAX_BYTES`]. Durable when it returns, and seen by whoever asks this instance from then on.
    fn put_entry(
        &self,
        name: EntryName,
        content: Option<Bytes>,
        builds_on: u64,
    ) -> impl Future<Output = Result<(), EntryError>> + Send;

    /// Replaces what this instance says of itself.
    fn report(&self, content: Bytes) -> impl Future<Output = Result<(), Error>> + Send;

    /// What each instance said last, by instance.
    fn reports(&self) -> impl Future<Output = Result<Vec<Report>, Error>> + Send;
}

/// Deployments at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// What to wait for others with. Means nothing beyond this process.
    pub seen: u64,
    /// All of them, by function and number.
    pub deployments: Vec<Deployment>,
    /// Whether there are, or may have been, deployments that are not among them: the oldest part of the log is gone, or this process has seen
    /// some of which the log has nothing any more, or some record can be one and cannot be read.
    pub deployments_lost: bool,
    /// All entries, by name.
    pub entries: Vec<Entry>,
    /// Where the log was when the entries were so. What is changed of them builds on it.
    pub entries_at: u64,
    /// Whether there are, or may be, entries that are gone although nobody removed them: this process has seen some of which the log has
    /// nothing any more, or the oldest part of the log is gone, or there are some whose names this version cannot read.
    pub entries_lost: bool,
}

/// The name of an entry: 1 to 100 characters out of `a-z 0-9 . -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(String);

impl EntryName {
    /// Longest name.
    const MAX_CHARS: usize = 100;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EntryName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if text.is_empty() || text.len() > Self::MAX_CHARS || !text.bytes().all(legal) {
            let max = Self::MAX_CHARS;
            return Err(format!("an entry is named by 1 to {max} lower-case letters, digits, dots and hyphens"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Something small that all instances know. What its content means is not the log's to know.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: EntryName,
    /// What was stored.
    pub content: Bytes,
}

impl fmt::Debug for Entry {
    /// Without the content, which may be nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} bytes)", self.name, self.content.len())
    }
}

/// Refuses what is too large for an entry.
pub(super) fn check_entry(content: Option<&Bytes>) -> Result<(), Error> {
    let (bytes, max) = (content.map_or(0, Bytes::len), limits::ENTRY_MAX_BYTES);
    if bytes <= max {
        return Ok(());
    }
    Err(Error::Transient(format!("an entry has {bytes} bytes and can have {max}: leave something out")))
}

/// One deployment of a function. What its content means is not the log's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Whose it is.
    pub function: FunctionName,
    /// 1 for the function's first, and one more for each.
    pub number: u64,
    /// What was stored.
    pub content: Bytes,
}

/// What an instance said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The instance.
    pub instance: String,
    /// When.
    pub at: Timestamp,
    /// What. Its meaning is not the log's to know.
    pub content: Bytes,
    /// Whether that instance is this one.
    pub own: bool,
}

/// Why an entry was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EntryError {
    /// Somebody else changed one meanwhile. It is as it was.
    #[error("others change entries of the log at the same time")]
    Conflict,
    /// The log could not act, or it is not known whether it did.
    #[error(transparent)]
    Broker(#[from] Error),
}

/// Why a deployment was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeployError {
    /// Somebody else deployed meanwhile.
    #[error(
        "function `{function}` has deployment {latest} by now, and this one builds on {expected}: look at it, then try again"
    )]
    Conflict {
        /// The function.
        function: FunctionName,
        /// What the proposal builds on.
        expected: u64,
        /// What is there.
        latest: u64,
    },
    /// The log could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}
