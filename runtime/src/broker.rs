//! The port to a log: what a worker needs ([`Broker`], [`Partition`]), and what people and tools need ([`Catalog`]).

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::idempotency::{self, Window};
use millrace_core::name::{FunctionName, Topic, Unit};
pub use millrace_core::policy::StartAt;
use millrace_core::progress::{KeyHash, Progress, Stream};
use millrace_core::record::Record;
use millrace_core::revision::Resets;
pub use millrace_core::spot::Spot;
pub use millrace_core::state::StateWrite;
use millrace_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

pub use self::deployments::{DeployError, Deployed, Deployment, Deployments, Entry, EntryError, EntryName, Report};

mod deployments;
pub mod embedded;
#[cfg(test)]
mod fixtures;
mod frame;
#[cfg(feature = "kafka")]
pub mod kafka;
mod progress;

/// The host could not act.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Trying again may help. The worker backs off.
    #[error("{0}")]
    Transient(String),
    /// The log cannot go on, for example after a failed sync: the process must stop and recover.
    #[error("{0}")]
    Fatal(String),
    /// One function cannot go on until somebody has acted. The log can, and so can other functions.
    #[error("{0}")]
    Stopped(String),
}

impl Error {
    /// Whether trying again may help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// Records in, atomic commits out.
pub trait Broker: Send + Sync + 'static {
    /// One owned partition.
    type Partition: Partition;

    /// Appends records, all or nothing; durable when it returns. Answers with a place for each, in order.
    fn publish(&self, records: Vec<Outgoing>) -> impl Future<Output = Result<Vec<Placement>, PublishError>> + Send;

    /// Takes up a subscription. Assignments come until the receiver is dropped, or the function stops on its own
    /// ([`Catalog::stopped`]). The redrive topics of the subscription's function exist when it returns.
    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<mpsc::Receiver<Assignment<Self::Partition>>, Error>> + Send;
}

/// One partition of one source topic, owned on behalf of one function, together with its partition of the redrive topic.
pub trait Partition: Send + 'static {
    /// Reads the unit's state.
    type State: StateReader;

    /// Whose it is.
    fn unit(&self) -> &Unit;

    /// Waits until there is something at or after a wanted offset, and answers with what there is up to the bounds of
    /// `wanted`, never empty. Cancel safe.
    fn fetch(&mut self, wanted: Wanted) -> impl Future<Output = Result<Fetched, FetchError>> + Send;

    /// A reader of the unit's state. It goes on reading while records are fetched and while a commit is under way.
    fn state(&self) -> Self::State;

    /// Writes all of a commit, or nothing. At most one commit of a unit is under way at a time; records can be fetched
    /// meanwhile. Dropping the future does not undo the commit. After a transient error nothing of it was written.
    fn commit(&mut self, commit: Commit) -> impl Future<Output = Result<CommitOutcome, Error>> + Send + 'static;
}

/// Reads what is committed of one unit's state: each commit from the moment on that it is answered, and nothing that is not durable.
/// Many reads can be under way at the same time.
pub trait StateReader: Clone + Send + Sync + 'static {
    /// The values under these keys, one for each and in their order; none for a key that is not there.
    fn get(&self, keys: Vec<ByteString>) -> impl Future<Output = Result<Vec<Option<Bytes>>, Error>> + Send + 'static;

    /// The keys after `after` in ascending order of their bytes, at most `max`; fewer only if there are no more.
    fn keys(
        &self,
        after: Option<ByteString>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ByteString>, Error>> + Send + 'static;
}

/// What a function wants to read.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The function.
    pub function: FunctionName,
    /// Its source topics, without repetition.
    pub topics: Vec<Topic>,
    /// Where it starts in a topic that it has not read yet.
    pub from: StartAt,
    /// Which idempotency keys are restored with an assignment.
    pub window: idempotency::Bounds,
    /// Where units were told to go on. One whose position begins anew, or was set by somebody else such as a tool of the log, counts
    /// as having done what it was told until then.
    pub told: Told,
}

/// Where the units of a function were last told to go on, as far as is known at any time.
#[derive(Clone, Debug)]
pub struct Told(pub watch::Receiver<Arc<Resets>>);

impl Default for Told {
    /// Nobody was told anything, and nobody will be.
    fn default() -> Self {
        Self(watch::channel(Arc::default()).1)
    }
}

#[cfg(feature = "kafka")]
impl Told {
    /// A progress that begins here and now, after all that its unit was told.
    pub(crate) fn after(&self, unit: &Unit, mut progress: Progress) -> Progress {
        progress.reset.number = self.0.borrow().of(unit).map_or(0, |target| target.number);
        progress
    }
}

/// A partition that a worker now owns.
#[derive(Debug)]
pub struct Assignment<P> {
    /// The partition.
    pub partition: P,
    /// What is committed for it.
    pub restored: Restored,
    /// Units that the function has in all, wherever they are owned; at least 1.
    pub siblings: usize,
    /// Becomes true once the partition is lost; nothing can be committed from then on.
    pub revoked: watch::Receiver<bool>,
}

/// The committed state of a unit.
#[derive(Debug)]
pub struct Restored {
    /// How far it is, and its parked heads. A unit that never ran is at its start.
    pub progress: Progress,
    /// Idempotency keys: those that were committed within the subscription's window before the assignment, and this unit's
    /// share of them.
    pub keys: Window,
}

/// Which records to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// From this offset of the source partition on.
    pub source: Option<u64>,
    /// From this offset of the redrive partition on.
    pub redrive: Option<u64>,
    /// At most this many records, at least 1.
    pub max_records: usize,
    /// A soft bound on the bytes fetched: at least one record comes whatever its size.
    pub max_bytes: usize,
}

/// Records of one of a unit's logs.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The log.
    pub stream: Stream,
    /// Ascending offsets with their records. An offset that is left out between the wanted offset and `next` is not a record.
    pub records: Vec<(u64, Record)>,
    /// The offset to go on from.
    pub next: u64,
}

impl Fetched {
    /// What was read from an offset on, where nothing follows the last record that is none.
    #[must_use]
    pub fn new(stream: Stream, from: u64, records: Vec<(u64, Record)>) -> Self {
        let next = records.last().map_or(from, |(offset, _)| offset + 1);
        Self { stream, records, next }
    }
}

/// Why nothing could be fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The wanted offset is gone: everything below `earliest` was removed.
    #[error("offset {wanted} of the {stream:?} log is gone: it begins at {earliest}")]
    Gone {
        /// The log.
        stream: Stream,
        /// The offset that was wanted.
        wanted: u64,
        /// The oldest offset there is.
        earliest: u64,
    },
    /// The host could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}

/// A record on its way into a topic.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The topic.
    pub topic: Topic,
    /// Chooses the partition.
    pub placing: Placing,
    /// The record. The log keeps its timestamp in whole milliseconds.
    pub record: Record,
}

/// How the partition is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// By murmur2 of the key, or of source and id, as `millrace_core::partition` computes it.
    Hash(u32),
    /// This one.
    Partition(u32),
}

/// Where a record landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// Why a batch was not published. Nothing of it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no such topic or partition.
    #[error("there is no topic `{topic}`")]
    UnknownTopic {
        /// The record's place in the batch.
        index: usize,
        /// The topic.
        topic: Topic,
    },
    /// A record is larger than the log takes.
    #[error("the record has {size_bytes} bytes, more than the {max_bytes} that `{topic}` takes")]
    TooLarge {
        /// The record's place in the batch.
        index: usize,
        /// The topic.
        topic: Topic,
        /// Its size in bytes.
        size_bytes: usize,
        /// The bound in bytes.
        max_bytes: usize,
    },
    /// The log is at its size bound and must keep what it has.
    #[error("the log is full: {0}")]
    Full(String),
    /// Too many writes wait. Try again later.
    #[error("too many writes are waiting")]
    Busy,
    /// The host could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}

/// All that one unit's events did since its last commit. Written as one.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Wall time.
    pub at: Timestamp,
    /// Progress after this commit.
    pub progress: Progress,
    /// Idempotency keys of the events that completed.
    pub keys: Vec<KeyHash>,
    /// Emitted events.
    pub outputs: Vec<Outgoing>,
    /// Dead letters, new ones and ones that replace an earlier one with the same id.
    pub letters: Vec<Letter>,
    /// Redriven dead letters that completed, and are thereby resolved.
    pub resolved: Vec<LetterId>,
    /// Changes of the unit's state, no key twice.
    pub state: Vec<StateWrite>,
}

impl Commit {
    /// Progress and nothing else.
    #[must_use]
    pub const fn new(at: Timestamp, progress: Progress) -> Self {
        Self {
            at,
            progress,
            keys: Vec::new(),
            outputs: Vec::new(),
            letters: Vec::new(),
            resolved: Vec::new(),
            state: Vec::new(),
        }
    }
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It is durable and visible.
    Committed,
    /// Nothing of it is visible. What was restored or committed before still holds.
    Aborted,
    /// The log refuses some of its content, now and later. Nothing of it is visible.
    Refused {
        /// For a person.
        reason: String,
    },
    /// The log does not allow some of its content now, and takes it once it does. Nothing of it is visible.
    Forbidden {
        /// For a person.
        reason: String,
    },
}

/// The identity of a dead letter: where its event was first read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId {
    /// The source topic.
    pub topic: Topic,
    /// The source partition.
    pub partition: u32,
    /// The offset in the source partition.
    pub offset: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (rest, offset) = s.rsplit_once('/')?;
            let (topic, partition) = rest.rsplit_once('/')?;
            let topic = Topic::new(topic.to_owned()).ok()?;
            Some(Self { topic, partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        };
        parse().ok_or_else(|| format!("`{s}` is not the id of a dead letter: write <topic>/<partition>/<offset>"))
    }
}

/// A dead letter as it is written.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Its identity.
    pub id: LetterId,
    /// The original record with `millrace-` headers added.
    pub record: Record,
}

/// What happened to a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterStatus {
    /// Waits for a person.
    Open,
    /// Sent to its function once more, and not settled yet.
    Redriven,
    /// Done: its redrive completed, or a person said so.
    Resolved,
    /// A person gave it up.
    Discarded,
}

impl fmt::Display for LetterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        })
    }
}

/// A dead letter as it is read.
#[derive(Clone, Debug)]
pub struct StoredLetter {
    /// Whose it is.
    pub function: FunctionName,
    /// Its identity.
    pub id: LetterId,
    /// What happened to it.
    pub status: LetterStatus,
    /// When the status last changed.
    pub status_at: Timestamp,
    /// Why a person resolved or discarded it.
    pub note: Option<String>,
    /// The original record with `millrace-` headers.
    pub record: Record,
}

/// What a person does with dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterAction {
    /// Send it to its function once more.
    Redrive,
    /// It is done.
    Resolve(Option<String>),
    /// It is given up, and this is why.
    Discard(String),
}

/// A topic.
#[derive(Clone, Debug, Serialize)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Whether the runtime made it for itself.
    pub internal: bool,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PartitionInfo {
    /// The oldest offset there is.
    pub earliest: u64,
    /// One past the newest offset.
    pub next: u64,
    /// Bytes kept.
    pub size_bytes: u64,
}

/// A unit's committed progress.
#[derive(Clone, Debug)]
pub struct UnitInfo {
    /// The unit.
    pub unit: Unit,
    /// Its progress as committed.
    pub progress: Progress,
    /// One past the newest offset of its source partition.
    pub source_next: u64,
    /// When the record at its resume point was published, if there is one: now minus this is the lag in time.
    pub oldest_unsettled_at: Option<Timestamp>,
    /// One past the newest offset of its redrive partition.
    pub redrive_next: u64,
    /// How many offsets that are not settled, of both partitions, hold no record, such as the markers of transactions. Exact as
    /// long as little is left, and an estimate else.
    pub not_records: u64,
}

/// A function's place in the group of all instances that run it, since it was activated in this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Partitions that were assigned to it.
    pub assigned: u64,
    /// Those that it lost again: taken away by the group, or with their clients.
    pub revoked: u64,
    /// Commits that were not made because their partition was lost by then, or may have been.
    pub fenced: u64,
    /// Partitions that wait until what they remember is read.
    pub restoring: u64,
    /// Records that were read for that.
    pub restored_records: u64,
    /// How long it took the last time.
    pub last_restore: Duration,
}

/// One value of a unit's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// What it is found by.
    pub key: ByteString,
    /// The value.
    pub value: Bytes,
}

/// Which values of a unit's state to list.
#[derive(Clone, Debug, Default)]
pub struct StateRange {
    /// Only keys that begin with this.
    pub prefix: ByteString,
    /// Only keys after this one.
    pub after: Option<ByteString>,
    /// At most this many values, at least 1.
    pub max: usize,
    /// A soft bound on the bytes of keys and values: at least one comes whatever its size.
    pub max_bytes: usize,
}

/// A change to the status of a dead letter that is not possible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// There is no such topic.
    #[error("there is no topic `{0}`")]
    UnknownTopic(Topic),
    /// There is no such partition.
    #[error("topic `{0}` has no partition {1}")]
    UnknownPartition(Topic, u32),
    /// There is no such dead letter.
    #[error("function `{0}` has no dead letter `{1}`")]
    UnknownLetter(FunctionName, LetterId),
    /// The letter's status does not allow it.
    #[error("dead letter `{id}` of `{function}` is {status}, not open")]
    NotOpen {
        /// Whose it is.
        function: FunctionName,
        /// Its identity.
        id: LetterId,
        /// Its status.
        status: LetterStatus,
    },
    /// A topic exists with another number of partitions.
    #[error(
        "topic `{topic}` has {existing} partitions, and a count cannot be changed later: write `partitions = {existing}` under \
         `[topics.{topic}]` in the manifest, or take a topic of another name for {wanted}"
    )]
    PartitionCount {
        /// The topic.
        topic: Topic,
        /// What it has.
        existing: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// The host could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}

#[cfg(feature = "kafka")]
impl CatalogError {
    /// The same, where nothing but the host can be at fault.
    fn into_broker(self) -> Error {
        match self {
            Self::Broker(error) => error,
            error => Error::Transient(error.to_string()),
        }
    }
}

/// Listing and administration. Reads see only what is durable.
pub trait Catalog: Send + Sync + 'static {
    /// All topics, by name.
    fn topics(&self) -> impl Future<Output = Result<Vec<TopicInfo>, CatalogError>> + Send;

    /// How many partitions each topic has, by name. Unlike [`Catalog::topics`] it asks nothing of the partitions, of which a
    /// cluster can have many that are not ours and some that nobody can tell of.
    fn partition_counts(&self) -> impl Future<Output = Result<BTreeMap<String, u32>, CatalogError>> + Send {
        async {
            let count = |info: &TopicInfo| u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
            Ok(self.topics().await?.into_iter().map(|info| (info.name.clone(), count(&info))).collect())
        }
    }

    /// The topics whose records are kept in this process's own log, by name; none if a cluster keeps them, which has figures of
    /// its own.
    fn kept(&self) -> impl Future<Output = Result<Vec<TopicInfo>, CatalogError>> + Send {
        self.topics()
    }

    /// Makes a topic unless it exists with this number of partitions.
    fn create_topic(&self, topic: Topic, partitions: u32) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Records of one partition from `offset`, or the oldest offset there is, on; empty at the end. Does not wait.
    fn read(
        &self,
        topic: &Topic,
        partition: u32,
        offset: u64,
        max_records: usize,
    ) -> impl Future<Output = Result<Fetched, CatalogError>> + Send;

    /// The offset of a place in a partition: one past the newest record if there is none so young. An offset is itself, whether
    /// or not there is a record. Times are as exact as the clocks of whoever published.
    fn find(
        &self,
        topic: &Topic,
        partition: u32,
        spot: Spot,
    ) -> impl Future<Output = Result<u64, CatalogError>> + Send {
        async move {
            let found = self.topics().await?.into_iter().find(|info| info.name == topic.as_str());
            let found = found.ok_or_else(|| CatalogError::UnknownTopic(topic.clone()))?;
            let bounds = found.partitions.get(partition as usize);
            let bounds = bounds.ok_or_else(|| CatalogError::UnknownPartition(topic.clone(), partition))?;
            let (mut from, mut to) = (bounds.earliest, bounds.next);
            let time = match spot {
                Spot::Earliest => return Ok(from),
                Spot::Latest => return Ok(to),
                Spot::Offset(offset) => return Ok(offset),
                Spot::Time(time) => time,
            };
            while from < to {
                let middle = from + (to - from) / 2;
                match self.read(topic, partition, middle, 1).await?.records.first() {
                    Some((offset, record)) if record.timestamp < time => from = (offset + 1).min(to),
                    Some(_) | None => to = middle,
                }
            }
            Ok(from)
        }
    }

    /// Committed progress of all units of a function, by topic and partition.
    fn units(&self, function: &FunctionName) -> impl Future<Output = Result<Vec<UnitInfo>, CatalogError>> + Send;

    /// Identities and statuses of a function's dead letters after `after`, by id, at most `max`.
    fn letters(
        &self,
        function: &FunctionName,
        after: Option<&LetterId>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<StoredLetter>, CatalogError>> + Send;

    /// What became of a function's place in its group since it was activated here. A log of one process has no groups, and
    /// all is zero.
    fn group(&self, _function: &FunctionName) -> GroupFigures {
        GroupFigures::default()
    }

    /// Why a function that was activated here has stopped on its own, for a person who must act. Its units are settled no further.
    fn stopped(&self, _function: &FunctionName) -> Option<String> {
        None
    }

    /// One dead letter.
    fn letter(
        &self,
        function: &FunctionName,
        id: &LetterId,
    ) -> impl Future<Output = Result<StoredLetter, CatalogError>> + Send;

    /// How many open dead letters a function has.
    fn open_letters(&self, function: &FunctionName) -> impl Future<Output = Result<u64, CatalogError>> + Send;

    /// What a unit's handler has stored, by key; empty at the end, and for a unit that there is not.
    fn state(
        &self,
        unit: &Unit,
        range: StateRange,
    ) -> impl Future<Output = Result<Vec<StateEntry>, CatalogError>> + Send;

    /// Changes the status of dead letters. Only open ones can change, unless `force`. All are looked at before the first
    /// changes, so that a wrong id changes nothing; then up to [`limits::LETTERS_AT_ONCE`](millrace_core::limits::LETTERS_AT_ONCE)
    /// change all or none, and more than that in several such steps. A redrive appends the original record, with its
    /// `millrace-` headers, to the redrive topic in the same commit.
    fn act_on_letters(
        &self,
        function: &FunctionName,
        ids: &[LetterId],
        action: LetterAction,
        force: Force,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send;
}

/// Whether a dead letter that is not open may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Only open ones.
    No,
    /// Any.
    Yes,
}

/// What a process asks of its log, beside what its workers and people ask.
pub trait Log: Broker + Catalog + Deployments {
    /// Makes a topic unless it exists with this number of partitions. Its records are kept for as long as the retention says,
    /// and where it says nothing, for as long as the log says.
    fn make_topic(
        &self,
        topic: Topic,
        partitions: u32,
        retention: Retention,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Whether such a topic could be made, or is there; it makes none.
    fn may_make_topic(
        &self,
        topic: Topic,
        partitions: u32,
        retention: Retention,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Makes a topic of the runtime's own, of one partition, unless it is there. Its records are kept for as long as the retention says.
    fn make_internal(
        &self,
        topic: Topic,
        retention: Retention,
    ) -> impl Future<Output = Result<(), CatalogError>> + Send;

    /// Nobody runs this function any more: nothing need be kept for it. Its progress stays, should it come back. Says whether
    /// anything was kept.
    fn retire(&self, function: FunctionName) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Does what is due every few seconds, until the log cannot go on, and says why: the process must stop then.
    fn run(&self) -> impl Future<Output = Error> + Send;

    /// Lets others go on with what this process owned, once its workers have ended. Takes no longer than `within`.
    fn close(&self, within: Duration) -> impl Future<Output = ()> + Send;
}

/// How long records are kept after every active function has settled them. A record that an active function has not
/// settled is kept whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Batches whose newest record is older are removed; none keeps them for ever. Kept in whole milliseconds.
    pub max_age: Option<Duration>,
    /// While the topic has more bytes, its oldest batches are removed; none sets no bound.
    pub max_bytes: Option<u64>,
}
