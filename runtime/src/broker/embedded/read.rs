//! Reading records of a partition at an offset: from memory if they are new, else from disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use millrace_core::record::Record;

use super::batch::{self, Records};
use super::frame::Corrupt;
use super::index::IndexEntry;
use super::log::{PartitionLog, StoredBatch};
use super::storage::{Storage, StorageError, Table};
use crate::broker::Error;

/// Bounds of one read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_records: usize,
    /// Soft: at least one record comes.
    pub(super) max_bytes: usize,
}

/// Why nothing could be read.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    #[error("the batch that holds offset {0} is missing")]
    Missing(u64),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ReadError {
    /// For the user of a partition. Waiting does not mend a disk, but it stops this partition alone and says why.
    pub(super) fn at(self, log: &PartitionLog, offset: u64) -> Error {
        let batch::PartitionId { topic, partition } = log.id;
        Error::Transient(format!(
            "cannot read keyspace `batches` of the log, topic number {topic}, partition {partition}, offset {offset}: {self}; \
             check the disk, then restore the directory from a backup or skip the record"
        ))
    }
}

/// Records with their offsets, ascending.
pub(super) type Read = Vec<(u64, Record)>;

/// Durable records from `offset` on, which must lie between start and end. Does not wait, but can block on the disk.
pub(super) fn records(
    storage: &dyn Storage,
    log: &PartitionLog,
    offset: u64,
    limits: Limits,
) -> Result<Read, ReadError> {
    let batches = match log.tail_from(offset, limits.max_bytes) {
        Some(batches) => batches,
        None => stored(storage, log, offset, limits.max_bytes)?,
    };
    decode(&batches, offset, limits)
}

/// The same for an async caller, which the disk must not hold up.
pub(super) async fn records_async(
    storage: &Arc<dyn Storage>,
    log: &Arc<PartitionLog>,
    offset: u64,
    limits: Limits,
) -> Result<Read, ReadError> {
    match log.tail_from(offset, limits.max_bytes) {
        Some(batches) => decode(&batches, offset, limits),
        None => decode(&stored_async(storage, log, offset, limits.max_bytes).await?, offset, limits),
    }
}

/// Batches from disk, from the one with `offset` on.
pub(super) async fn stored_async(
    storage: &Arc<dyn Storage>,
    log: &Arc<PartitionLog>,
    offset: u64,
    max_bytes: usize,
) -> Result<Vec<StoredBatch>, ReadError> {
    let (storage, log) = (storage.clone(), log.clone());
    let read = tokio::task::spawn_blocking(move || stored(&*storage, &log, offset, max_bytes));
    read.await.unwrap_or_else(|e| Err(StorageError::Refused(e.to_string()).into()))
}

/// The records of batches from `offset` on; none is an error, for the batches were chosen by it.
pub(super) fn decode(batches: &[StoredBatch], offset: u64, limits: Limits) -> Result<Read, ReadError> {
    let mut read = Vec::new();
    let mut bytes = 0;
    for batch in batches.iter().filter(|batch| batch.end() > offset) {
        let mut records = Records::of(batch.base, batch.bytes.clone())?;
        records.skip_to(offset)?;
        while let Some((offset, record)) = records.next()? {
            bytes += record.size_bytes();
            if !read.is_empty() && bytes > limits.max_bytes {
                return Ok(read);
            }
            read.push((offset, record));
            if read.len() >= limits.max_records {
                return Ok(read);
            }
        }
    }
    if read.is_empty() { Err(ReadError::Missing(offset)) } else { Ok(read) }
}

fn stored(
    storage: &dyn Storage,
    log: &PartitionLog,
    offset: u64,
    max_bytes: usize,
) -> Result<Vec<StoredBatch>, ReadError> {
    let up_to_offset = batch::key(log.id, 0).to_vec()..batch::key(log.id, offset + 1).to_vec();
    let (first, _) = storage.last(Table::Index, up_to_offset)?.ok_or(ReadError::Missing(offset))?;
    let mut found: Vec<(Vec<u8>, Result<IndexEntry, Corrupt>)> = Vec::new();
    let mut bytes = 0;
    let range = first.to_vec()..batch::key(log.id, log.end()).to_vec();
    storage.scan(Table::Index, range, &mut |key, value| {
        let entry = IndexEntry::decode(key, &value);
        bytes += entry.as_ref().map_or(0, |entry| entry.bytes as usize);
        found.push((key.to_vec(), entry));
        if bytes < max_bytes { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let mut batches: Vec<StoredBatch> = Vec::new();
    for (key, entry) in found {
        let base = batch::base_of(&key).unwrap_or(0);
        // A gap would pass for offsets without a record.
        if !log.has_gaps && batches.last().is_some_and(|previous| previous.end() != base) {
            return Err(ReadError::Missing(base));
        }
        let value = storage.get(Table::Batches, &key)?.ok_or(ReadError::Missing(base))?;
        batch::check(&key, &value)?;
        let count = entry?.count;
        if Records::of(base, value.clone())?.end() != base + u64::from(count) {
            return Err(Corrupt::Damaged { kind: "index entry", what: "it counts other records than its batch" }.into());
        }
        batches.push(StoredBatch { base, count, bytes: value });
    }
    match batches.first() {
        Some(first) if first.base <= offset && offset < first.end() => Ok(batches),
        Some(_) if log.has_gaps => Ok(batches),
        _ => Err(ReadError::Missing(offset)),
    }
}
