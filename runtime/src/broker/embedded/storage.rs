//! The storage engine behind the log: atomic durable writes, point reads, ordered scans. The only file that knows fjall.

use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

/// A keyspace of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    /// Small records of several kinds, told apart by the first byte of the key.
    State,
    /// Record batches.
    Batches,
    /// An entry for each batch.
    Index,
    /// Blocks of idempotency keys.
    Keys,
    /// Components by digest.
    Components,
    /// State of handlers.
    Values,
}

impl Table {
    pub(super) const ALL: [Self; 6] =
        [Self::State, Self::Batches, Self::Index, Self::Keys, Self::Components, Self::Values];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Batches => "batches",
            Self::Index => "index",
            Self::Keys => "keys",
            Self::Components => "components",
            Self::Values => "values",
        }
    }
}

/// One change of an atomic write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Sets a value.
    Put(Table, Bytes, Bytes),
    /// Removes a value.
    Remove(Table, Bytes),
}

/// The storage engine failed, in its own words.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum StorageError {
    /// The system refused, for example because the disk is full.
    #[error("{0}")]
    Refused(String),
    /// What is on disk is not what was written.
    #[error("{0}")]
    Damaged(String),
}

/// Called with key and value until it breaks.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> ControlFlow<()>;

/// What the log needs of a storage engine.
pub(super) trait Storage: Send + Sync + 'static {
    /// Writes all or nothing; durable when it returns. After an error nobody may write again: it is unknown what is on
    /// disk until the directory is opened once more.
    fn write(&self, ops: Vec<Op>) -> Result<(), StorageError>;

    /// Reads one value.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Visits keys of the range in ascending order.
    fn scan(&self, table: Table, range: Range<Vec<u8>>, visit: Visit<'_>) -> Result<(), StorageError>;

    /// The last key of the range with its value.
    fn last(&self, table: Table, range: Range<Vec<u8>>) -> Result<Option<(Bytes, Bytes)>, StorageError>;
}

/// All keys that begin with `prefix`.
pub(super) fn prefixed(prefix: &[u8]) -> Range<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    prefix.to_vec()..end
}

/// Journals are removed once all they hold is in tables, which is forced at this size; it bounds the time to open.
const JOURNALS_MAX_BYTES: u64 = 128 * 1024 * 1024;
const BATCHES_MEMTABLE_BYTES: u64 = 64 * 1024 * 1024;
const SMALL_MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
const BLOCK_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// The first of them only flushes, and passes everything else on: with two it would spin while the other compacts.
const BACKGROUND_THREADS: usize = 3;

/// Writers wait while a keyspace has as many memtables to flush, or tables to compact.
const SEALED_MEMTABLES_MAX: usize = 3;
const UNCOMPACTED_TABLES_MAX: usize = 24;
const BEHIND_WAIT: Duration = Duration::from_millis(1);
const BEHIND_MAX: Duration = Duration::from_secs(60);

/// The log's database on disk.
pub(super) struct Disk {
    keyspaces: Vec<Keyspace>,
    database: Database,
}

impl Disk {
    /// Makes an empty database in `dir`.
    pub(super) fn create(dir: &Path) -> Result<Self, StorageError> {
        guarded(|| {
            let database = builder(dir).open()?;
            let keyspaces = Table::ALL.iter().map(|table| database.keyspace(table.name(), || options(*table)));
            Ok(Self { keyspaces: keyspaces.collect::<Result<_, _>>()?, database })
        })
    }

    /// Opens the database in `dir`, which must have been made by [`Disk::create`].
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        let database = guarded(|| builder(dir).open())?;
        if let Some(missing) = Table::ALL.iter().find(|table| !database.keyspace_exists(table.name())) {
            return Err(StorageError::Damaged(format!("keyspace `{}` is missing", missing.name())));
        }
        guarded(|| {
            let keyspaces = Table::ALL.iter().map(|table| database.keyspace(table.name(), || options(*table)));
            Ok(Self { keyspaces: keyspaces.collect::<Result<_, _>>()?, database: database.clone() })
        })
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.keyspaces[table as usize]
    }

    /// Waits until the background threads have caught up. The engine itself waits at 4 unflushed memtables, after a commit
    /// and for ever if those threads died, for example because the disk is full; so it must not come to that.
    fn wait_for_background(&self) -> fjall::Result<()> {
        wait_while(BEHIND_MAX, || {
            let behind = self.keyspaces.iter().any(is_behind);
            if behind {
                // It fails if a background thread did.
                self.database.persist(PersistMode::Buffer)?;
            }
            Ok(behind)
        })
    }
}

/// Waits as long as it is behind, and gives up after `max`: a process that hangs tells nobody why.
fn wait_while(max: Duration, mut behind: impl FnMut() -> fjall::Result<bool>) -> fjall::Result<()> {
    let began = Instant::now();
    while behind()? {
        if began.elapsed() >= max {
            let reason = format!(
                "what was written could not be moved to its tables within {} s: the disk is too slow, full or gone",
                max.as_secs()
            );
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, reason).into());
        }
        // The engine tells nobody when a flush is done.
        std::thread::park_timeout(BEHIND_WAIT);
    }
    Ok(())
}

fn is_behind(keyspace: &Keyspace) -> bool {
    keyspace.sealed_memtable_count() >= SEALED_MEMTABLES_MAX || keyspace.l0_table_count() >= UNCOMPACTED_TABLES_MAX
}

fn builder(dir: &Path) -> fjall::DatabaseBuilder<Database> {
    Database::builder(dir)
        .cache_size(BLOCK_CACHE_BYTES)
        .max_journaling_size(JOURNALS_MAX_BYTES)
        .worker_threads(BACKGROUND_THREADS)
}

fn options(table: Table) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default();
    match table {
        Table::Batches | Table::Components => {
            options.max_memtable_size(BATCHES_MEMTABLE_BYTES).with_kv_separation(Some(KvSeparationOptions::default()))
        }
        // Most values are small and change often; those of 1 KiB and more are kept apart, so that they are not copied at each merge.
        Table::Values => {
            options.max_memtable_size(SMALL_MEMTABLE_BYTES).with_kv_separation(Some(KvSeparationOptions::default()))
        }
        Table::State | Table::Index | Table::Keys => options.max_memtable_size(SMALL_MEMTABLE_BYTES),
    }
}

/// The engine asserts some of what it reads from disk. Damage must end in a message that names the place, not in a panic of
/// the caller.
fn guarded<T>(action: impl FnOnce() -> fjall::Result<T>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => result.map_err(|e| describe(&e)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("no reason given");
            Err(StorageError::Damaged(format!("the storage engine found what cannot be: {text}")))
        }
    }
}

fn describe(error: &fjall::Error) -> StorageError {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => match e.kind() {
            InvalidData | InvalidInput | NotFound | Other | UnexpectedEof => StorageError::Damaged(e.to_string()),
            _ => StorageError::Refused(e.to_string()),
        },
        fjall::Error::Poisoned => {
            StorageError::Refused("an earlier write in the background failed; the disk may be full".to_owned())
        }
        e => StorageError::Damaged(format!("{e:?}")),
    }
}

impl Storage for Disk {
    fn write(&self, ops: Vec<Op>) -> Result<(), StorageError> {
        guarded(|| {
            self.wait_for_background()?;
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            for op in ops {
                match op {
                    Op::Put(table, key, value) => batch.insert(self.keyspace(table), key, value),
                    Op::Remove(table, key) => batch.remove(self.keyspace(table), key),
                }
            }
            // The engine syncs its journal before it makes the batch visible to any reader.
            batch.commit()
        })
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        guarded(|| self.keyspace(table).get(key)).map(|value| value.map(Bytes::from))
    }

    fn scan(&self, table: Table, range: Range<Vec<u8>>, visit: Visit<'_>) -> Result<(), StorageError> {
        guarded(|| {
            for entry in self.keyspace(table).range(range) {
                let (key, value) = entry.into_inner()?;
                if visit(&key, value.into()).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn last(&self, table: Table, range: Range<Vec<u8>>) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        guarded(|| {
            let last = self.keyspace(table).range(range).next_back();
            last.map(|entry| entry.into_inner().map(|(key, value)| (key.into(), value.into()))).transpose()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_the_background_gives_up_in_the_end() {
        let mut left = 3;
        let caught_up = wait_while(Duration::MAX, || {
            left -= 1;
            Ok(left > 0)
        });
        assert!(caught_up.is_ok() && left == 0);
        let error = wait_while(Duration::ZERO, || Ok(true)).unwrap_err();
        let error = describe(&error);
        let StorageError::Refused(reason) = &error else { panic!("{error:?}") };
        assert!(
            reason.starts_with("what was written could not be moved to its tables within 0 s: the disk"),
            "{reason}"
        );
    }

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        assert_eq!(prefixed(b"ab"), b"ab".to_vec()..b"ac".to_vec());
        assert_eq!(prefixed(b"a\xff"), b"a\xff".to_vec()..b"b".to_vec());
    }
}
