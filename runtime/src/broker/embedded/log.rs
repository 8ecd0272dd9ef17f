//! One partition in memory: where it begins and ends, and its newest batches. What is older is read from disk.

use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

use super::batch::PartitionId;
use super::start::PartitionStart;
use super::topic::TopicKind;
use crate::broker::PartitionInfo;

/// A durable batch.
#[derive(Clone, Debug)]
pub(super) struct StoredBatch {
    pub(super) base: u64,
    pub(super) count: u32,
    pub(super) bytes: Bytes,
}

impl StoredBatch {
    pub(super) fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }
}

/// A partition.
#[derive(Debug)]
pub(super) struct PartitionLog {
    pub(super) id: PartitionId,
    /// Batches in the middle can be gone: so it is with dead letters. Otherwise a gap is damage.
    pub(super) has_gaps: bool,
    /// One past the newest durable offset. Nobody reads further, whatever the storage engine shows already.
    end: watch::Sender<u64>,
    extent: RwLock<Extent>,
}

#[derive(Debug)]
struct Extent {
    start: PartitionStart,
    /// Bytes of all batches ever written.
    bytes_written: u64,
    /// The newest batches, without a gap up to the end.
    tail: VecDeque<StoredBatch>,
}

impl PartitionLog {
    pub(super) fn new(id: PartitionId, start: PartitionStart, end: u64, bytes_written: u64) -> Self {
        let extent = RwLock::new(Extent { start, bytes_written, tail: VecDeque::new() });
        Self { id, has_gaps: false, end: watch::Sender::new(end), extent }
    }

    /// The same for a topic of this kind.
    pub(super) fn of_kind(self, kind: TopicKind) -> Self {
        Self { has_gaps: kind == TopicKind::DeadLetter, ..self }
    }

    /// One past the newest durable offset.
    pub(super) fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// Tells when the end moves.
    pub(super) fn watch_end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// The oldest offset there is, and the bytes removed before it.
    pub(super) fn start(&self) -> PartitionStart {
        self.read().start
    }

    /// Bytes of all batches ever written.
    pub(super) fn bytes_written(&self) -> u64 {
        self.read().bytes_written
    }

    pub(super) fn info(&self) -> PartitionInfo {
        let end = self.end();
        let extent = self.read();
        PartitionInfo {
            earliest: extent.start.earliest,
            next: end,
            size_bytes: extent.bytes_written - extent.start.bytes_removed,
        }
    }

    /// Takes up durable batches; they are seen once [`PartitionLog::publish`] says so.
    pub(super) fn append(&self, batches: impl IntoIterator<Item = StoredBatch>) {
        let mut extent = self.extent.write().unwrap_or_else(PoisonError::into_inner);
        for batch in batches {
            extent.bytes_written += batch.bytes.len() as u64;
            extent.tail.push_back(batch);
        }
    }

    /// Lets everybody read up to `end`.
    pub(super) fn publish(&self, end: u64) {
        let previous = self.end.send_replace(end);
        assert!(previous <= end, "the end of a partition went back from {previous} to {end}");
    }

    /// Forgets the oldest batch in memory if it is the one with this base.
    pub(super) fn forget(&self, base: u64) {
        let mut extent = self.extent.write().unwrap_or_else(PoisonError::into_inner);
        if extent.tail.front().is_some_and(|batch| batch.base == base) {
            extent.tail.pop_front();
        }
    }

    /// Nothing before the new start is read any more.
    pub(super) fn remove_before(&self, start: PartitionStart) {
        let mut extent = self.extent.write().unwrap_or_else(PoisonError::into_inner);
        assert!(start.earliest >= extent.start.earliest, "the start of a partition went back");
        extent.start = start;
        while extent.tail.front().is_some_and(|batch| batch.end() <= start.earliest) {
            extent.tail.pop_front();
        }
    }

    /// Durable batches in memory from the one with `offset` on, until `max_bytes` are reached; none if it is not in memory.
    pub(super) fn tail_from(&self, offset: u64, max_bytes: usize) -> Option<Vec<StoredBatch>> {
        let end = self.end();
        let extent = self.read();
        let first = extent.tail.partition_point(|batch| batch.end() <= offset);
        extent.tail.get(first).filter(|batch| batch.base <= offset)?;
        let mut bytes = 0;
        let mut taken = Vec::new();
        for batch in extent.tail.range(first..).take_while(|batch| batch.base < end) {
            bytes += batch.bytes.len();
            taken.push(batch.clone());
            if bytes >= max_bytes {
                break;
            }
        }
        Some(taken)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Extent> {
        self.extent.read().unwrap_or_else(PoisonError::into_inner)
    }
}
