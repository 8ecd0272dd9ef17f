//! What the tests share: a log in a directory that is thrown away, short ways to say things, a storage that fails.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::idempotency::Bounds;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::Progress;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use tempfile::TempDir;

use super::super::storage::{Op, Storage, StorageError, Table, Visit};
use super::super::{EmbeddedLog, EmbeddedPartition, Options};
pub(super) use crate::broker::fixtures::after;
use crate::broker::fixtures::{self, text};
use crate::broker::{
    Assignment, Broker, Catalog, Commit, CommitOutcome, Error, Fetched, Letter, LetterId, Outgoing, Partition, Placing,
    StartAt, StateRange, StateWrite, Subscription, Told, Wanted,
};
use crate::clock::Clock;

/// What the tests' clocks read when they start.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn topic(name: &str) -> Topic {
    Topic::new(name.to_owned()).unwrap()
}

pub(super) fn function(name: &str) -> FunctionName {
    name.parse().unwrap()
}

pub(super) fn options(dir: &Path) -> Options {
    Options { clock: Clock::starting_at(NOW), ..Options::new(dir) }
}

/// A directory with an empty log. Making one syncs many files, so it is made once and its files are written anew.
pub(super) fn empty() -> TempDir {
    static FILES: OnceLock<Vec<(PathBuf, Content)>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let made = tempfile::tempdir().unwrap();
        drop(EmbeddedLog::open(options(made.path())).unwrap());
        let relative = |path: &PathBuf| path.strip_prefix(made.path()).unwrap().to_owned();
        files(made.path()).iter().map(|path| (relative(path), Content::of(path).unwrap())).collect()
    });
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        content.write(&path);
    }
    for keyspace in ["1", "2", "3", "4", "5", "6"] {
        std::fs::create_dir_all(dir.path().join("log/keyspaces").join(keyspace).join("tables")).unwrap();
    }
    dir
}

/// A file: what is written of it, and its length with the zeros that follow.
struct Content {
    used: Vec<u8>,
    len: u64,
}

impl Content {
    fn of(path: &Path) -> std::io::Result<Self> {
        let mut used = std::fs::read(path)?;
        let len = used.len() as u64;
        used.truncate(used.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1));
        Ok(Self { used, len })
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, &self.used).unwrap();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(self.len).unwrap();
    }
}

/// A log with the topic `orders` of two partitions.
pub(super) async fn orders() -> (TempDir, EmbeddedLog) {
    let dir = empty();
    let log = EmbeddedLog::open(options(dir.path())).unwrap();
    log.create_topic(topic("orders"), 2).await.unwrap();
    (dir, log)
}

/// Closes a log and opens it again. Nothing else may hold it.
pub(super) fn reopen(dir: &TempDir, log: EmbeddedLog) -> EmbeddedLog {
    drop(log);
    EmbeddedLog::open(options(dir.path())).unwrap()
}

pub(super) fn outgoing(name: &str, partition: u32, value: &str) -> Outgoing {
    Outgoing { topic: topic(name), placing: Placing::Partition(partition), record: record(value) }
}

pub(super) async fn publish(log: &EmbeddedLog, name: &str, partition: u32, values: &[&str]) {
    let records = values.iter().map(|value| outgoing(name, partition, value)).collect();
    log.publish(records).await.unwrap();
}

pub(super) fn texts(fetched: &Fetched) -> Vec<(u64, String)> {
    fetched.records.iter().map(|(offset, record)| (*offset, text(record))).collect()
}

/// All that a partition holds.
pub(super) async fn all(log: &EmbeddedLog, name: &str, partition: u32) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let mut next = 0;
    loop {
        let fetched = log.read(&topic(name), partition, next, 7).await.unwrap();
        if fetched.records.is_empty() {
            return found;
        }
        next = fetched.next;
        found.extend(texts(&fetched));
    }
}

pub(super) fn numbered(from: u64, values: &[&str]) -> Vec<(u64, String)> {
    (from..).zip(values.iter().map(ToString::to_string)).collect()
}

pub(super) fn subscription(name: &str, topics: &[&str]) -> Subscription {
    Subscription {
        function: function(name),
        topics: topics.iter().map(|t| topic(t)).collect(),
        from: StartAt::Earliest,
        window: Bounds::default(),
        told: Told::default(),
    }
}

/// All assignments that a subscription gives at once.
pub(super) async fn assignments(log: &EmbeddedLog, subscription: Subscription) -> Vec<Assignment<EmbeddedPartition>> {
    let mut receiver = log.subscribe(subscription).await.unwrap();
    let mut assignments = Vec::new();
    while let Ok(assignment) = receiver.try_recv() {
        assignments.push(assignment);
    }
    assignments
}

/// The assignment of partition 0 of `orders`.
pub(super) async fn assigned(log: &EmbeddedLog, name: &str) -> Assignment<EmbeddedPartition> {
    assignments(log, subscription(name, &["orders"])).await.swap_remove(0)
}

pub(super) fn wanted(source: u64) -> Wanted {
    Wanted { source: Some(source), redrive: None, max_records: 100, max_bytes: 1 << 20 }
}

/// Progress after one more redriven record than `before`.
pub(super) fn after_redrive(before: &Progress) -> Progress {
    let mut progress = before.clone();
    progress.redrive.resume += 1;
    progress.redrive.totals.completed += 1;
    progress.commits += 1;
    progress
}

pub(super) fn record(value: &str) -> Record {
    fixtures::record(value, NOW)
}

pub(super) fn commit(progress: &Progress) -> Commit {
    Commit::new(NOW, progress.clone())
}

pub(super) async fn commits(partition: &mut EmbeddedPartition, commit: Commit) {
    assert_eq!(partition.commit(commit).await.unwrap(), CommitOutcome::Committed);
}

pub(super) fn state_write(key: &str, value: Option<&str>) -> StateWrite {
    StateWrite { key: key.into(), value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())) }
}

/// All that a unit's handler stored, read in small pages.
pub(super) async fn stored(log: &EmbeddedLog, unit: &Unit) -> BTreeMap<ByteString, Bytes> {
    let mut found = BTreeMap::new();
    let mut range = StateRange { max: 2, max_bytes: 1 << 20, ..StateRange::default() };
    loop {
        let page = Catalog::state(log, unit, range.clone()).await.unwrap();
        let Some(last) = page.last() else { return found };
        range.after = Some(last.key.clone());
        found.extend(page.into_iter().map(|entry| (entry.key, entry.value)));
    }
}

/// Bytes of all records and all state, counted anew.
pub(super) async fn size(log: &EmbeddedLog) -> u64 {
    let topics = log.topics().await.unwrap();
    let records: u64 = topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.size_bytes).sum();
    let mut state = 0;
    let everything = vec![0]..vec![u8::MAX; 5];
    let count = |key: &[u8], value: Bytes| {
        state += (key.len() - 4 + value.len()) as u64;
        std::ops::ControlFlow::Continue(())
    };
    log.0.state.storage.scan(Table::Values, everything, &mut { count }).unwrap();
    records + state
}

pub(super) fn letter_id(offset: u64) -> LetterId {
    LetterId { topic: topic("orders"), partition: 0, offset }
}

pub(super) fn letter(offset: u64, value: &str) -> Letter {
    Letter { id: letter_id(offset), record: record(value) }
}

pub(super) fn redrive_wanted(offset: u64) -> Wanted {
    Wanted { source: None, redrive: Some(offset), max_records: 100, max_bytes: 1 << 20 }
}

pub(super) fn is_fatal(error: &Error) -> bool {
    !error.is_transient()
}

/// Copies a directory as it is now.
pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A file can vanish while the directory is copied, as the storage engine tidies up.
            if let Ok(content) = Content::of(&entry.path()) {
                content.write(&target);
            }
        }
    }
}

/// All files below a directory, in a fixed order.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Holds up writes until it is told to let them through, and counts them.
pub(super) struct Gate {
    inner: Arc<dyn Storage>,
    open: Arc<(Mutex<bool>, Condvar)>,
    pub(super) writes: Arc<AtomicU64>,
}

impl Gate {
    pub(super) fn open_on(dir: &Path) -> (EmbeddedLog, Self) {
        let mut handle = None;
        let log = EmbeddedLog::open_on(options(dir), |disk| {
            let (open, writes) = (Arc::new((Mutex::new(true), Condvar::new())), Arc::default());
            let gate = |inner| Self { inner, open: Arc::clone(&open), writes: Arc::clone(&writes) };
            let disk = Arc::new(disk);
            handle = Some(gate(disk.clone()));
            Arc::new(gate(disk))
        });
        (log.unwrap(), handle.unwrap())
    }

    pub(super) fn set_open(&self, open: bool) {
        *self.open.0.lock().unwrap() = open;
        self.open.1.notify_all();
    }
}

impl Storage for Gate {
    fn write(&self, ops: Vec<Op>) -> Result<(), StorageError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        drop(self.open.1.wait_while(self.open.0.lock().unwrap(), |open| !*open).unwrap());
        self.inner.write(ops)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(table, key)
    }

    fn scan(&self, table: Table, range: Range<Vec<u8>>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.inner.scan(table, range, visit)
    }

    fn last(&self, table: Table, range: Range<Vec<u8>>) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.inner.last(table, range)
    }
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing is written: the disk is full.
    Full,
    /// All is written, but nobody knows: the sync failed.
    Unsynced,
}

/// Lets a number of writes through, then fails one, and tells whether anybody wrote after that.
pub(super) struct Faulty {
    inner: Arc<dyn Storage>,
    fault: Fault,
    left: AtomicU64,
    failed: AtomicBool,
    pub(super) wrote_again: Arc<AtomicBool>,
}

impl Faulty {
    pub(super) fn after(inner: Arc<dyn Storage>, writes: u64, fault: Fault) -> Self {
        Self { inner, fault, left: AtomicU64::new(writes), failed: AtomicBool::new(false), wrote_again: Arc::default() }
    }
}

impl Storage for Faulty {
    fn write(&self, ops: Vec<Op>) -> Result<(), StorageError> {
        if self.failed.load(Ordering::SeqCst) {
            self.wrote_again.store(true, Ordering::SeqCst);
        }
        if self.left.load(Ordering::SeqCst) > 0 {
            self.left.fetch_sub(1, Ordering::SeqCst);
            return self.inner.write(ops);
        }
        self.failed.store(true, Ordering::SeqCst);
        match self.fault {
            Fault::Full => Err(StorageError::Refused("No space left on device (os error 28)".to_owned())),
            Fault::Unsynced => {
                self.inner.write(ops)?;
                Err(StorageError::Refused("Input/output error (os error 5)".to_owned()))
            }
        }
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(table, key)
    }

    fn scan(&self, table: Table, range: Range<Vec<u8>>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.inner.scan(table, range, visit)
    }

    fn last(&self, table: Table, range: Range<Vec<u8>>) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.inner.last(table, range)
    }
}
