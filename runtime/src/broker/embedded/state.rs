//! What is committed, in memory: topics, units, counts. Changed by the committer alone, after the write that it stands for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::Progress;
use millrace_core::time::Timestamp;
use tokio::sync::watch;

use super::Options;
use super::log::PartitionLog;
use super::names::Names;
use super::storage::Storage;
use super::topic::{TopicKind, TopicRecord};
use super::volume::Volume;
use crate::broker::{Error, Report, Retention};

/// Shared by all handles of an open log.
pub(super) struct State {
    pub(super) options: Options,
    pub(super) names: Names,
    pub(super) storage: Arc<dyn Storage>,
    topics: RwLock<BTreeMap<Topic, Arc<TopicState>>>,
    units: RwLock<BTreeMap<Unit, Arc<UnitState>>>,
    open_letters: RwLock<BTreeMap<FunctionName, u64>>,
    kept_bytes: AtomicU64,
    fatal: watch::Sender<Option<Error>>,
    /// When dead letters were last looked through for what may go.
    cleared_at: Mutex<Option<Timestamp>>,
    /// Rises with each deployment and each change of an entry.
    deployments: watch::Sender<u64>,
    /// Rises with each change of an entry.
    entries_at: AtomicU64,
    /// What this process says of itself. Nobody else asks, so it need not be on disk.
    report: Mutex<Option<Report>>,
}

/// Looking through all dead letters takes a while, so it is done at most this often unless room is needed.
const CLEAR_EVERY: Duration = Duration::from_secs(60);

/// A topic.
#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) id: u32,
    pub(super) name: Topic,
    pub(super) kind: TopicKind,
    pub(super) partitions: Vec<Arc<PartitionLog>>,
    /// Its own, if it differs from the log's.
    retention: RwLock<Option<Retention>>,
}

/// A unit.
#[derive(Debug)]
pub(super) struct UnitState {
    pub(super) id: u32,
    pub(super) unit: Unit,
    pub(super) source: Arc<PartitionLog>,
    pub(super) redrive: Arc<PartitionLog>,
    committed: RwLock<Arc<Progress>>,
    /// How much state its handler keeps.
    volume: RwLock<Volume>,
    /// Whether its function reads this topic; what an inactive one has not settled can be removed.
    pub(super) active: AtomicBool,
    owner: Mutex<Owner>,
    /// Key blocks older than this are removed; zero keeps them.
    key_window_nanos: AtomicU64,
    /// Key blocks committed before this are removed already.
    keys_removed_before_nanos: AtomicU64,
}

/// Who may commit.
#[derive(Debug)]
struct Owner {
    /// Rises with each subscription; a commit of an earlier one is aborted.
    generation: u64,
    revoked: watch::Sender<bool>,
}

impl UnitState {
    pub(super) fn new(id: u32, unit: Unit, logs: [Arc<PartitionLog>; 2], progress: Progress, active: bool) -> Self {
        let [source, redrive] = logs;
        Self {
            id,
            unit,
            source,
            redrive,
            committed: RwLock::new(Arc::new(progress)),
            volume: RwLock::default(),
            active: AtomicBool::new(active),
            owner: Mutex::new(Owner { generation: 0, revoked: watch::Sender::new(true) }),
            key_window_nanos: AtomicU64::new(0),
            keys_removed_before_nanos: AtomicU64::new(0),
        }
    }

    pub(super) fn volume(&self) -> Volume {
        *read(&self.volume)
    }

    pub(super) fn set_volume(&self, volume: Volume) {
        *write(&self.volume) = volume;
    }

    pub(super) fn committed(&self) -> Arc<Progress> {
        read(&self.committed).clone()
    }

    pub(super) fn set_committed(&self, progress: Arc<Progress>) {
        *write(&self.committed) = progress;
    }

    pub(super) fn generation(&self) -> u64 {
        self.owner().generation
    }

    /// Takes the unit from whoever has it. Answers with the new generation, and what tells of its end.
    pub(super) fn take(&self) -> (u64, watch::Receiver<bool>) {
        let mut owner = self.owner();
        owner.revoked.send_replace(true);
        owner.generation += 1;
        owner.revoked = watch::Sender::new(false);
        (owner.generation, owner.revoked.subscribe())
    }

    /// Takes the unit from whoever has it.
    pub(super) fn revoke(&self) {
        let mut owner = self.owner();
        owner.generation += 1;
        owner.revoked.send_replace(true);
    }

    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key_window(&self) -> Option<Duration> {
        match self.key_window_nanos.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(super) fn keys_removed_before(&self) -> Timestamp {
        Timestamp::from_nanos(self.keys_removed_before_nanos.load(Ordering::Relaxed))
    }

    pub(super) fn set_keys_removed_before(&self, at: Timestamp) {
        self.keys_removed_before_nanos.store(at.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn set_key_window(&self, window: Duration) {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        self.key_window_nanos.store(nanos, Ordering::Relaxed);
    }
}

/// What recovery found.
#[derive(Default)]
pub(super) struct Recovered {
    pub(super) topics: BTreeMap<Topic, Arc<TopicState>>,
    pub(super) units: BTreeMap<Unit, Arc<UnitState>>,
    pub(super) open_letters: BTreeMap<FunctionName, u64>,
}

impl State {
    pub(super) fn new(options: Options, storage: Arc<dyn Storage>, recovered: Recovered) -> Self {
        let Recovered { topics, units, open_letters } = recovered;
        let partitions = topics.values().flat_map(|topic| &topic.partitions);
        let records: u64 = partitions.map(|log| log.info().size_bytes).sum();
        let kept = records + units.values().map(|unit| unit.volume().bytes).sum::<u64>();
        Self {
            names: Names::new(&options.prefix),
            options,
            storage,
            topics: RwLock::new(topics),
            units: RwLock::new(units),
            open_letters: RwLock::new(open_letters),
            kept_bytes: AtomicU64::new(kept),
            fatal: watch::Sender::new(None),
            cleared_at: Mutex::default(),
            deployments: watch::Sender::new(1),
            entries_at: AtomicU64::default(),
            report: Mutex::default(),
        }
    }

    pub(super) fn watch_deployments(&self) -> watch::Receiver<u64> {
        self.deployments.subscribe()
    }

    pub(super) fn deployment_added(&self) {
        self.deployments.send_modify(|count| *count += 1);
    }

    pub(super) fn entries_at(&self) -> u64 {
        self.entries_at.load(Ordering::SeqCst)
    }

    pub(super) fn entry_changed(&self) {
        self.entries_at.fetch_add(1, Ordering::SeqCst);
        self.deployment_added();
    }

    pub(super) fn set_report(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    pub(super) fn report(&self) -> Option<Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is time to look for dead letters that may go; if so, that time is now.
    pub(super) fn is_clearing_due(&self, now: Timestamp) -> bool {
        let mut cleared_at = self.cleared_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = cleared_at.is_none_or(|at| now.since(at) >= CLEAR_EVERY) || self.excess_bytes() > 0;
        if due {
            *cleared_at = Some(now);
        }
        due
    }

    pub(super) fn topic(&self, name: &Topic) -> Option<Arc<TopicState>> {
        read(&self.topics).get(name).cloned()
    }

    pub(super) fn topics(&self) -> Vec<Arc<TopicState>> {
        read(&self.topics).values().cloned().collect()
    }

    pub(super) fn add_topic(&self, topic: Arc<TopicState>) {
        write(&self.topics).insert(topic.name.clone(), topic);
    }

    pub(super) fn unit(&self, unit: &Unit) -> Option<Arc<UnitState>> {
        read(&self.units).get(unit).cloned()
    }

    pub(super) fn units(&self) -> Vec<Arc<UnitState>> {
        read(&self.units).values().cloned().collect()
    }

    /// By topic and partition.
    pub(super) fn units_of(&self, function: &FunctionName) -> Vec<Arc<UnitState>> {
        read(&self.units).values().filter(|unit| unit.unit.function == *function).cloned().collect()
    }

    pub(super) fn add_unit(&self, unit: Arc<UnitState>) {
        write(&self.units).insert(unit.unit.clone(), unit);
    }

    pub(super) fn open_letters(&self, function: &FunctionName) -> u64 {
        read(&self.open_letters).get(function).copied().unwrap_or(0)
    }

    pub(super) fn set_open_letters(&self, function: FunctionName, open: u64) {
        write(&self.open_letters).insert(function, open);
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Bytes above nineteen twentieths of the log's bound: room is made ahead, so that publishers need not look for it.
    pub(super) fn excess_bytes(&self) -> u64 {
        self.kept_bytes().saturating_sub(self.options.size_max_bytes / 20 * 19)
    }

    pub(super) fn add_kept_bytes(&self, bytes: u64) {
        self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_kept_bytes(&self, bytes: u64) {
        self.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A unit's state is as large as this from now on.
    pub(super) fn set_volume(&self, unit: &UnitState, volume: Volume) {
        self.add_kept_bytes(volume.bytes);
        self.sub_kept_bytes(unit.volume().bytes);
        unit.set_volume(volume);
    }

    /// Refuses once a write has failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.fatal.borrow().clone().map_or(Ok(()), Err)
    }

    /// Tells when a write has failed.
    pub(super) fn watch_fatal(&self) -> watch::Receiver<Option<Error>> {
        self.fatal.subscribe()
    }

    /// A write failed: from now on nobody writes.
    pub(super) fn fail(&self, reason: &str) -> Error {
        let error = Error::Fatal(format!(
            "cannot write the log in `{}`: {reason}; the process must stop; what was acknowledged is safe, \
             and what was not yet is decided when the log is opened again",
            self.options.dir.display()
        ));
        self.fatal.send_if_modified(|fatal| fatal.is_none().then(|| *fatal = Some(error.clone())).is_some());
        error
    }
}

/// A lock is only poisoned by a bug, and the state behind it is replaced whole.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl TopicState {
    pub(super) fn new(record: &TopicRecord, name: Topic, partitions: Vec<Arc<PartitionLog>>) -> Self {
        let TopicRecord { id, kind, retention, .. } = *record;
        Self { id, name, kind, partitions, retention: RwLock::new(retention) }
    }

    pub(super) fn retention(&self) -> Option<Retention> {
        *read(&self.retention)
    }

    pub(super) fn set_retention(&self, retention: Option<Retention>) {
        *write(&self.retention) = retention;
    }
}
