//! The embedded durable log: one directory, one process, everything synced before anybody sees it.
//!
//! Where things are: `layout` (the directory and its lock), `preflight` (files looked over before they are opened), `storage`
//! (the engine), one file per kind of record (`batch`, `index`, `topic`, `start`, `unit`, `keys`, `letter`, `deployment`, `component`, `meta`, `value`, `volume`,
//! on top of `frame`), `recovery` (what is committed, read back), `state` and `log` (the same in memory), `prepare` (encoding in
//! the caller's task), `committer` and `group` (the one thread that writes), `subscribe`, `letters`, `decision`, `room`, `clear` and `registry`
//! (what else it does), `retention` (what may go), `fullness` (what does not), `read` and `partition` (fetching), `values` (state of handlers),
//! `catalog`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_core::idempotency::{Bounds, Window};
use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::time::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::committer::{Committer, Publish, Request};
use self::layout::Directory;
use self::names::Names;
pub use self::partition::EmbeddedPartition;
use self::prepare::Slots;
use self::state::{State, UnitState};
use self::storage::{Disk, Storage, StorageError, Table};
pub use self::values::EmbeddedState;
use super::{
    Assignment, Broker, Catalog, CatalogError, Error, Log, Outgoing, Placement, PublishError, Restored, Retention,
    Subscription, frame,
};
use crate::clock::Clock;

mod batch;
mod catalog;
mod clear;
mod committer;
mod component;
mod decision;
mod deployment;
mod entry;
mod fullness;
mod group;
mod index;
mod keys;
mod layout;
mod letter;
mod letters;
mod log;
mod meta;
mod names;
mod pace;
mod partition;
mod preflight;
mod prepare;
mod read;
mod recovery;
mod registry;
mod retention;
mod room;
mod start;
mod state;
mod storage;
mod subscribe;
mod topic;
mod unit;
mod value;
mod values;
mod volume;

#[cfg(test)]
mod tests;

/// Requests that may wait for the committer.
const QUEUE_REQUESTS: usize = 1024;
/// Bytes of records that may wait to be published, in KiB.
const QUEUE_KIB: u32 = 64 * 1024;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it lies. Made if it does not exist; otherwise it must be empty or a log.
    pub dir: PathBuf,
    /// Begins the names of the runtime's own topics. A log keeps the prefix it was made with.
    pub prefix: String,
    /// For topics without a retention of their own.
    pub retention: Retention,
    /// How long resolved and discarded dead letters are kept.
    pub letter_retention: Duration,
    /// Bytes that the log keeps: records, dead letters among them, and the state of handlers. At this bound the oldest settled records of all topics
    /// are removed, and then dead letters that are resolved or discarded; when that does not help, publishing is refused.
    /// Commits go on up to a quarter more.
    pub size_max_bytes: u64,
    /// Largest record in bytes of key, value and headers. Topics of our own take 64 KiB more.
    pub record_max_bytes: usize,
    /// Tells the time of changes made by people, and of retention at the size bound.
    pub clock: Clock,
}

impl Options {
    /// The defaults: prefix `millrace`, records kept for 7 days and closed dead letters for 30, 8 GiB in all, 1 MiB a
    /// record, the system's clock.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            dir: dir.into(),
            prefix: "millrace".to_owned(),
            retention: Retention { max_age: Some(7 * DAY), max_bytes: None },
            letter_retention: limits::DEAD_LETTER_DEFAULT_RETENTION,
            size_max_bytes: 8 << 30,
            record_max_bytes: 1 << 20,
            clock: Clock::system(),
        }
    }
}

/// Why a log could not be opened. Each message names the fix.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made, read or written.
    #[error("cannot use the directory `{dir}`: {reason}; make it writable for this user, or choose another one")]
    NotWritable {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// Another process has it open.
    #[error("the log in `{dir}` is open in {}; stop that one, or choose another directory", holder(*pid))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that has it open, if it could be found out.
        pid: Option<u32>,
    },
    /// There are other files in it.
    #[error("`{dir}` holds other files and is no Millrace log; choose an empty or a new directory")]
    NotALog {
        /// The directory.
        dir: PathBuf,
    },
    /// A Millrace that was never released wrote it.
    #[error(
        "the log in `{dir}` has format {found}, from before the first release; remove it, or choose another directory"
    )]
    OlderFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A newer Millrace wrote it.
    #[error("the log in `{dir}` has format {found}, and this Millrace reads up to {supported}; run a newer Millrace")]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that can be read.
        supported: u32,
    },
    /// It was made with another prefix.
    #[error("the log in `{dir}` was made with the prefix `{existing}`, not `{wanted}`; use that, or another directory")]
    OtherPrefix {
        /// The directory.
        dir: PathBuf,
        /// Its prefix.
        existing: String,
        /// What was asked for.
        wanted: String,
    },
    /// What it holds is not what was written.
    #[error(
        "the log in `{dir}` is corrupted, {place}: {reason}; check the disk, then restore the directory from a backup"
    )]
    Corrupted {
        /// The directory.
        dir: PathBuf,
        /// Which file, or which keyspace and record.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// An open log. Cheap to clone; it closes with its last handle, partition and pending commit.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Handle>);

struct Handle {
    state: Arc<State>,
    /// None once it closes.
    requests: Option<mpsc::Sender<Request>>,
    queue_kib: Arc<Semaphore>,
    committer: Option<JoinHandle<()>>,
    /// Kept so that a subscription's receiver waits instead of ending.
    subscriptions: Mutex<BTreeMap<FunctionName, mpsc::Sender<Assignment<EmbeddedPartition>>>>,
    /// Given up last of all.
    _directory: Directory,
}

impl fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedLog").field("dir", &self.0.state.options.dir).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        // It ends once it has served what waits, so that whoever opens the directory next finds it free.
        if let Some(committer) = self.committer.take() {
            drop(committer.join());
        }
    }
}

impl EmbeddedLog {
    /// Opens a log, or makes one. Blocks on the disk.
    ///
    /// # Errors
    /// If the directory cannot be used, is in use, or does not hold what was written.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        Self::open_on(options, |disk| Arc::new(disk))
    }

    /// Opens a log on a storage engine made of the one on disk.
    fn open_on(options: Options, storage: impl FnOnce(Disk) -> Arc<dyn Storage>) -> Result<Self, OpenError> {
        let directory = Directory::take(&options.dir, &options.prefix)?;
        let corrupted =
            |place: String, reason: String| OpenError::Corrupted { dir: options.dir.clone(), place, reason };
        let path = directory.database();
        preflight::check(&path, Table::ALL.len())
            .map_err(|damage| corrupted(format!("file `{}`", damage.file.display()), damage.reason))?;
        let disk = Disk::open(&path).map_err(|e| match e {
            StorageError::Refused(reason) => OpenError::NotWritable { dir: options.dir.clone(), reason },
            StorageError::Damaged(reason) => corrupted(format!("database `{}`", path.display()), reason),
        })?;
        let storage = storage(disk);
        let damaged = |damage: recovery::Damage| corrupted(damage.place, damage.reason);
        let existing = recovery::prefix(&*storage).map_err(damaged)?;
        if existing != options.prefix {
            return Err(OpenError::OtherPrefix { dir: options.dir, existing, wanted: options.prefix });
        }
        let recovered = recovery::recover(&*storage, &Names::new(&options.prefix)).map_err(damaged)?;
        let state = Arc::new(State::new(options, storage, recovered));
        Self::start(state, directory)
    }

    fn start(state: Arc<State>, directory: Directory) -> Result<Self, OpenError> {
        let unusable = |reason: String| OpenError::NotWritable { dir: state.options.dir.clone(), reason };
        let (requests, waiting) = mpsc::channel(QUEUE_REQUESTS);
        let committer = Committer::new(state.clone());
        let thread = std::thread::Builder::new().name("log-committer".to_owned());
        let thread = thread.spawn(move || committer.run(waiting)).map_err(|e| unusable(e.to_string()))?;
        Ok(Self(Arc::new(Handle {
            state,
            requests: Some(requests),
            queue_kib: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            committer: Some(thread),
            subscriptions: Mutex::default(),
            _directory: directory,
        })))
    }

    /// Waits until the log cannot go on, and says why: the process must stop then. Cancel safe.
    pub async fn failed(&self) -> Error {
        let mut fatal = self.state().watch_fatal();
        let error = fatal.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        error.unwrap_or_else(|| self.stopped())
    }

    /// Removes what retention allows and the size bound asks for at this time, dead letters that are done with, and
    /// idempotency keys older than their windows. To be called every few seconds; [`EmbeddedLog::maintain`] does.
    ///
    /// # Errors
    /// If the log could not act.
    pub async fn tick(&self, now: Timestamp) -> Result<(), Error> {
        // Each pass is short, so that nobody waits long behind it.
        while self.alone(move |committer| committer.tick(now)).await?? {}
        if self.state().is_clearing_due(now) { self.clear_letters(now).await } else { Ok(()) }
    }

    /// Removes dead letters that are done with.
    async fn clear_letters(&self, now: Timestamp) -> Result<(), Error> {
        let functions: BTreeSet<_> = self.state().units().iter().map(|unit| unit.unit.function.clone()).collect();
        for function in functions {
            let Some(mut survey) = self.blocking(move |state| clear::survey(state, &function)).await?? else {
                continue;
            };
            let mut more = true;
            while more {
                (survey, more) =
                    self.alone(move |committer| committer.clear(&mut survey, now).map(|more| (survey, more))).await??;
            }
        }
        Ok(())
    }

    /// Calls [`EmbeddedLog::tick`] again and again until the log fails, and says why.
    pub async fn maintain(&self, every: Duration) -> Error {
        loop {
            tokio::time::sleep(every).await;
            match self.tick(self.state().options.clock.now()).await {
                Ok(()) => {}
                Err(error @ Error::Fatal(_)) => return error,
                Err(error) => tracing::error!(%error, "Retention could not run."),
            }
        }
    }

    /// Gives a topic a retention of its own; none goes back to the log's. Dead letters have theirs, whatever it says, and
    /// redriven records are kept until they are settled.
    ///
    /// # Errors
    /// If there is no such topic, or the log could not act.
    pub async fn set_retention(&self, topic: Topic, retention: Option<Retention>) -> Result<(), CatalogError> {
        self.alone(move |committer| committer.set_retention(topic, retention)).await?
    }

    /// Takes a function's partitions away, and no longer keeps records for it. Its progress stays, should it come back. Says
    /// whether records were kept for it until now.
    ///
    /// # Errors
    /// If the log could not act.
    pub async fn retire(&self, function: FunctionName) -> Result<bool, Error> {
        self.0.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).remove(&function);
        self.alone(move |committer| committer.retire(&function)).await?
    }

    /// Bytes kept of records and of the state of handlers.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.state().kept_bytes()
    }

    fn state(&self) -> &Arc<State> {
        &self.0.state
    }

    fn requests(&self) -> &mpsc::Sender<Request> {
        self.0.requests.as_ref().expect("requests are only taken away when the last handle is dropped")
    }

    /// Why the committer does not answer.
    fn stopped(&self) -> Error {
        self.state().check().err().unwrap_or_else(|| self.state().fail("the committer stopped"))
    }

    /// Runs something on the committer's thread, between two groups.
    async fn alone<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Committer) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.state().check()?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Alone(Box::new(move |committer| drop(reply.send(action(committer)))));
        self.requests().send(request).await.map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())
    }

    /// Runs something that may wait for the disk.
    async fn blocking<T: Send + 'static>(&self, action: impl FnOnce(&State) -> T + Send + 'static) -> Result<T, Error> {
        let state = self.state().clone();
        let result = tokio::task::spawn_blocking(move || action(&state)).await;
        result.map_err(|e| Error::Transient(format!("reading the log was interrupted: {e}")))
    }
}

impl Broker for EmbeddedLog {
    type Partition = EmbeddedPartition;

    async fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        self.state().check()?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let slots = Slots::of(self.state(), &records)?;
        let bytes = slots.bytes();
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, QUEUE_KIB);
        let permit = self.0.queue_kib.clone().try_acquire_many_owned(kib).map_err(|_| PublishError::Busy)?;
        let (slots, places) = slots.into_parts();
        let (reply, answer) = oneshot::channel();
        let publish = Publish { slots, bytes, reply, _permit: permit };
        self.requests().try_send(Request::Publish(publish)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => PublishError::Busy,
            mpsc::error::TrySendError::Closed(_) => self.stopped().into(),
        })?;
        let bases = answer.await.map_err(|_| self.stopped())??;
        Ok(places.placements(&bases))
    }

    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<mpsc::Receiver<Assignment<EmbeddedPartition>>, Error> {
        let Subscription { function, topics, from, window, told: _ } = subscription;
        let taken = function.clone();
        let owned = self.alone(move |committer| committer.subscribe(&taken, &topics, from)).await??;
        let units: Vec<_> = owned.iter().map(|owned| owned.unit.clone()).collect();
        units.iter().for_each(|unit| unit.set_key_window(window.span));
        let keys = self.blocking(move |state| restore_keys(state, &units, window)).await??;
        let siblings = owned.len();
        let (sender, receiver) = mpsc::channel(siblings.max(1));
        for (owned, keys) in owned.into_iter().zip(keys) {
            let progress = (*owned.unit.committed()).clone();
            let partition = EmbeddedPartition::new(self.clone(), &owned);
            let restored = Restored { progress, keys };
            let assignment = Assignment { partition, restored, siblings, revoked: owned.revoked };
            assert!(sender.try_send(assignment).is_ok(), "the channel has room for each assignment");
        }
        self.0.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).insert(function, sender);
        Ok(receiver)
    }
}

/// How often retention runs.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);

impl Log for EmbeddedLog {
    async fn make_topic(&self, topic: Topic, partitions: u32, retention: Retention) -> Result<(), CatalogError> {
        self.create_topic(topic.clone(), partitions).await?;
        self.set_retention(topic, (retention != Retention::default()).then_some(retention)).await
    }

    /// All that a manifest can ask for.
    async fn may_make_topic(&self, _: Topic, _: u32, _: Retention) -> Result<(), CatalogError> {
        Ok(())
    }

    async fn make_internal(&self, topic: Topic, retention: Retention) -> Result<(), CatalogError> {
        let name = topic.clone();
        self.alone(move |committer| committer.create_internal(&name)).await??;
        self.set_retention(topic, Some(retention)).await
    }

    async fn retire(&self, function: FunctionName) -> Result<bool, Error> {
        Self::retire(self, function).await
    }

    async fn run(&self) -> Error {
        tokio::select! {
            error = self.failed() => error,
            error = self.maintain(MAINTENANCE_INTERVAL) => error,
        }
    }

    /// Nobody else waits for a log of one process; it closes with its last handle.
    async fn close(&self, _: Duration) {}
}

/// For each unit its idempotency keys, put into their window as they are read.
fn restore_keys(state: &State, units: &[Arc<UnitState>], bounds: Bounds) -> Result<Vec<Window>, Error> {
    let unreadable = |e: &dyn fmt::Display| Error::Transient(format!("cannot read keyspace `keys` of the log: {e}"));
    let oldest = bounds.oldest(state.options.clock.now());
    let mut restored = Vec::with_capacity(units.len());
    for unit in units {
        let (mut window, mut damage) = (bounds.window(units.len()), None);
        let range = keys::range(unit.id, oldest..Timestamp::MAX);
        let forgot_in = unit.committed().reset.forgot_in;
        let known = |key: &[u8], value: &[u8], window: &mut Window| -> Result<(), frame::Corrupt> {
            let (committed_at, hashes) = keys::decode(key, value)?;
            if keys::commit(key)? >= forgot_in {
                window.insert(committed_at, hashes);
            }
            Ok(())
        };
        let scanned = state.storage.scan(Table::Keys, range, &mut |key, value| match known(key, &value, &mut window) {
            Ok(()) => ControlFlow::Continue(()),
            Err(corrupt) => {
                damage = Some(corrupt);
                ControlFlow::Break(())
            }
        });
        scanned.map_err(|e| unreadable(&e))?;
        if let Some(corrupt) = damage {
            return Err(unreadable(&corrupt));
        }
        restored.push(window);
    }
    Ok(restored)
}
