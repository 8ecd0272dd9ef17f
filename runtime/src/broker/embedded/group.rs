//! A commit group: what several requests want written, as one atomic write.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::name::FunctionName;
use millrace_core::progress::Progress;
use tokio::sync::oneshot;

use super::batch::{self, BATCH_BYTES, PartitionId, Segment};
use super::index::IndexEntry;
use super::letter;
use super::log::{PartitionLog, StoredBatch};
use super::prepare::Slot;
use super::state::UnitState;
use super::storage::{Op, Table};
use super::volume::{self, Volume};
use crate::broker::{CommitOutcome, Error, PublishError};

/// Bounds of one group: larger ones gain nothing, and make everybody in it wait.
const GROUP_MAX_BYTES: u64 = 8 * 1024 * 1024;
const GROUP_MAX_REQUESTS: usize = 4096;

/// Where the first offset of each slot is answered.
pub(super) type PublishReply = oneshot::Sender<Result<Vec<u64>, PublishError>>;
/// Where a commit is answered.
pub(super) type CommitReply = oneshot::Sender<Result<CommitOutcome, Error>>;

/// Changes collected so far, and what to do once they are durable.
#[derive(Debug, Default)]
pub(super) struct Group {
    pending: BTreeMap<PartitionId, Pending>,
    ops: Vec<Op>,
    bytes: u64,
    /// Counts of open dead letters that change.
    pub(super) open_letters: BTreeMap<FunctionName, u64>,
    /// Units whose state changes, with how large it is then.
    volumes: Vec<(Arc<UnitState>, Volume)>,
    published: Vec<(Vec<u64>, PublishReply)>,
    committed: Vec<(Arc<UnitState>, Arc<Progress>, CommitReply)>,
}

/// Batches to be appended to one partition.
#[derive(Debug)]
struct Pending {
    log: Arc<PartitionLog>,
    end: u64,
    batches: Vec<Joined>,
}

/// Segments that become one batch.
#[derive(Debug)]
struct Joined {
    base: u64,
    first: Segment,
    others: Vec<Segment>,
    bytes: usize,
}

/// Batches appended to one partition, to be taken up once durable.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) log: Arc<PartitionLog>,
    pub(super) end: u64,
    pub(super) batches: Vec<StoredBatch>,
}

/// A group ready to be written.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) ops: Vec<Op>,
    pub(super) appended: Vec<Appended>,
    pub(super) open_letters: BTreeMap<FunctionName, u64>,
    pub(super) volumes: Vec<(Arc<UnitState>, Volume)>,
    pub(super) replies: Replies,
}

/// Who waits for a group.
#[derive(Debug)]
pub(super) struct Replies {
    published: Vec<(Vec<u64>, PublishReply)>,
    committed: Vec<(Arc<UnitState>, Arc<Progress>, CommitReply)>,
}

impl Group {
    /// Bytes of records in it, and by how much state grows.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Publishes in it.
    pub(super) const fn publishes(&self) -> usize {
        self.published.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= GROUP_MAX_BYTES || self.published.len() + self.committed.len() >= GROUP_MAX_REQUESTS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.ops.is_empty()
    }

    pub(super) fn put(&mut self, table: Table, key: impl Into<Bytes>, value: Bytes) {
        self.ops.push(Op::Put(table, key.into(), value));
    }

    /// Appends records to their partition; answers with the offset of the first.
    pub(super) fn append(&mut self, slot: Slot) -> u64 {
        self.bytes += slot.bytes();
        let pending = self.pending.entry(slot.log.id).or_insert_with(|| Pending {
            end: slot.log.end(),
            log: slot.log,
            batches: Vec::new(),
        });
        let first = pending.end;
        for segment in slot.segments {
            let base = pending.end;
            pending.end += u64::from(segment.count());
            let bytes = segment.len();
            match pending.batches.last_mut() {
                Some(last) if last.bytes + bytes <= BATCH_BYTES => {
                    last.bytes += bytes;
                    last.others.push(segment);
                }
                _ => pending.batches.push(Joined { base, first: segment, others: Vec::new(), bytes }),
            }
        }
        first
    }

    /// Changes a unit's state; `volume` says how large it is then.
    pub(super) fn put_values(&mut self, unit: &Arc<UnitState>, values: Vec<Op>, volume: Volume) {
        self.bytes += volume.bytes.saturating_sub(unit.volume().bytes);
        self.ops.extend(values);
        let key = volume::key(unit.id);
        self.put(Table::State, key.to_vec(), volume::encode(&key, volume));
        self.volumes.push((unit.clone(), volume));
    }

    pub(super) fn answer_published(&mut self, bases: Vec<u64>, reply: PublishReply) {
        self.published.push((bases, reply));
    }

    pub(super) fn answer_committed(&mut self, unit: Arc<UnitState>, progress: Arc<Progress>, reply: CommitReply) {
        self.committed.push((unit, progress, reply));
    }

    /// Gives each batch its checksum and its index entry.
    pub(super) fn seal(self) -> Sealed {
        let Self { pending, mut ops, open_letters, volumes, published, committed, .. } = self;
        for (function, open) in &open_letters {
            let key = letter::count_key(function);
            let value = letter::encode_count(&key, *open);
            ops.push(Op::Put(Table::State, key.into(), value));
        }
        let mut appended = Vec::with_capacity(pending.len());
        for Pending { log, end, batches } in pending.into_values() {
            let mut bytes_before = log.bytes_written();
            let mut stored = Vec::with_capacity(batches.len());
            for Joined { base, first, others, .. } in batches {
                let segment = first.joined(&others);
                let key = Bytes::copy_from_slice(&batch::key(log.id, base));
                let (count, newest) = (segment.count(), segment.newest());
                let bytes = segment.seal(&key);
                let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let entry = IndexEntry { count, bytes: size, bytes_before, newest };
                bytes_before += bytes.len() as u64;
                ops.push(Op::Put(Table::Index, key.clone(), entry.encode(&key)));
                ops.push(Op::Put(Table::Batches, key, bytes.clone()));
                stored.push(StoredBatch { base, count, bytes });
            }
            appended.push(Appended { log, end, batches: stored });
        }
        Sealed { ops, appended, open_letters, volumes, replies: Replies { published, committed } }
    }
}

impl Replies {
    /// It is durable. A worker that is gone no longer wants to know.
    pub(super) fn succeed(self) {
        for (unit, progress, reply) in self.committed {
            unit.set_committed(progress);
            drop(reply.send(Ok(CommitOutcome::Committed)));
        }
        for (bases, reply) in self.published {
            drop(reply.send(Ok(bases)));
        }
    }

    /// Nobody knows whether it is durable.
    pub(super) fn fail(self, error: &Error) {
        for (_, _, reply) in self.committed {
            drop(reply.send(Err(error.clone())));
        }
        for (_, reply) in self.published {
            drop(reply.send(Err(error.clone().into())));
        }
    }
}
