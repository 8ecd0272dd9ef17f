//! The committer makes room: removes what retention allows, and idempotency keys older than their window.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::time::Timestamp;

use super::batch::{self, PartitionId};
use super::committer::Committer;
use super::fullness;
use super::index::IndexEntry;
use super::log::PartitionLog;
use super::retention::{self, Candidate, Removable, Removal, Rule};
use super::start::{self, PartitionStart};
use super::state::{TopicState, UnitState};
use super::storage::{Op, Table};
use super::topic::TopicKind;
use super::{keys, read};
use crate::broker::Error;

/// Batches that one pass looks at in each partition, and key blocks that it removes: everybody else waits meanwhile.
const PASS_BATCHES: usize = 512;
const PASS_KEY_BLOCKS: usize = 2048;
/// At its bound the log looks for room at most this often.
const SEEK_EVERY: Duration = Duration::from_millis(100);

impl Committer {
    /// Whether `bytes` more stay within `max`, if need be after removing what functions have settled.
    pub(super) fn has_room(&mut self, bytes: u64, max: u64) -> bool {
        let fits = |committer: &Self| committer.state.kept_bytes().saturating_add(bytes) <= max;
        if fits(self) {
            self.full_because.clear();
            return true;
        }
        let now = self.state.options.clock.now();
        if self.room_sought_at.is_none_or(|at| now.since(at) >= SEEK_EVERY) {
            self.room_sought_at = Some(now);
            self.full_because.clear();
            if let Err(e) = self.remove_batches(now, self.state.excess_bytes().saturating_add(bytes)) {
                tracing::error!(error = %e, "Room could not be made in the log.");
            }
        }
        let fits = fits(self);
        if !fits && self.full_because.is_empty() {
            self.full_because = fullness::explain(&self.state);
        }
        fits
    }

    /// One pass over all that retention, the size bound and the windows of idempotency keys allow to remove. Answers whether
    /// another one may find more.
    pub(super) fn tick(&mut self, now: Timestamp) -> Result<bool, Error> {
        let mut more = self.remove_batches(now, self.state.excess_bytes())?;
        for unit in self.state.units() {
            if let Some(window) = unit.key_window() {
                more |= self.remove_keys(&unit, now - window)?;
            }
        }
        Ok(more)
    }

    /// One pass; answers whether another one may find more.
    fn remove_batches(&mut self, now: Timestamp, excess_bytes: u64) -> Result<bool, Error> {
        let floors = floors(&self.state.units());
        let mut logs = Vec::new();
        let mut candidates = Vec::new();
        for topic in self.state.topics().iter().filter(|topic| topic.kind != TopicKind::DeadLetter) {
            // Who did what is little, and no flood of events may wash it away.
            if excess_bytes > 0 && topic.kind == TopicKind::Events && self.state.names.is_reserved(&topic.name) {
                continue;
            }
            let rule = self.rule(topic, now);
            let wanted = Wanted::of(rule, excess_bytes);
            for log in &topic.partitions {
                let floor = floors.get(&log.id).copied().unwrap_or_else(|| log.end());
                candidates.push(Candidate { topic: topic.id, rule, batches: self.removable(log, floor, wanted)? });
                logs.push(log.clone());
            }
        }
        let cut_short = candidates.iter().any(|candidate| candidate.batches.len() >= PASS_BATCHES);
        let removals = retention::decide(candidates, excess_bytes);
        let mut removed = false;
        for (log, removal) in logs.iter().zip(removals).filter(|(_, removal)| removal.end > 0) {
            self.remove(log, removal)?;
            removed = true;
        }
        Ok(removed && cut_short)
    }

    fn rule(&self, topic: &TopicState, now: Timestamp) -> Rule {
        if topic.kind == TopicKind::Redrive {
            return Rule::Settled;
        }
        let retention = topic.retention().unwrap_or(self.state.options.retention);
        let size: u64 = topic.partitions.iter().map(|log| log.info().size_bytes).sum();
        Rule::Bounded {
            expired_before: retention.max_age.map(|age| now - age),
            excess_bytes: retention.max_bytes.map_or(0, |max| size.saturating_sub(max)),
        }
    }

    /// Batches below the floor that are wanted, except the last one: it says where the partition ends.
    fn removable(&self, log: &PartitionLog, floor: u64, mut wanted: Wanted) -> Result<VecDeque<Removable>, Error> {
        let (start, end) = (log.start().earliest, log.end());
        let mut found = VecDeque::new();
        let mut damage = None;
        if start >= floor {
            return Ok(found);
        }
        let range = batch::key(log.id, start).to_vec()..batch::key(log.id, floor).to_vec();
        let scanned = self.state.storage.scan(Table::Index, range, &mut |key, value| {
            let entry = match IndexEntry::decode(key, &value) {
                Ok(entry) => entry,
                Err(e) => {
                    damage = Some(e);
                    return ControlFlow::Break(());
                }
            };
            let batch_end = batch::base_of(key).unwrap_or(end) + u64::from(entry.count);
            let batch = Removable { end: batch_end, bytes: entry.bytes.into(), newest: entry.newest };
            if batch_end > floor || batch_end >= end || !wanted.takes(&batch) {
                return ControlFlow::Break(());
            }
            found.push_back(batch);
            if found.len() < PASS_BATCHES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(|e| read::ReadError::from(e).at(log, start))?;
        damage.map_or(Ok(found), |e| Err(read::ReadError::from(e).at(log, start)))
    }

    fn remove(&mut self, log: &Arc<PartitionLog>, removal: Removal) -> Result<(), Error> {
        let previous = log.start();
        let new = PartitionStart { earliest: removal.end, bytes_removed: previous.bytes_removed + removal.bytes };
        let mut ops = Vec::new();
        let range = batch::key(log.id, previous.earliest).to_vec()..batch::key(log.id, new.earliest).to_vec();
        let scanned = self.state.storage.scan(Table::Index, range, &mut |key, _| {
            let key = Bytes::copy_from_slice(key);
            ops.push(Op::Remove(Table::Index, key.clone()));
            ops.push(Op::Remove(Table::Batches, key));
            ControlFlow::Continue(())
        });
        scanned.map_err(|e| read::ReadError::from(e).at(log, previous.earliest))?;
        let key = start::key(log.id);
        ops.push(Op::Put(Table::State, Bytes::copy_from_slice(&key), new.encode(&key)));
        // Nobody may begin to read what is about to go. Should the write fail, the process ends, and nothing is lost.
        log.remove_before(new);
        self.write(ops)?;
        self.state.sub_kept_bytes(removal.bytes);
        Ok(())
    }

    /// Removes key blocks committed before `before`, or some of them; answers whether there are more.
    fn remove_keys(&mut self, unit: &UnitState, before: Timestamp) -> Result<bool, Error> {
        // What was removed already leaves marks that a scan from the very beginning would have to pass.
        let from = unit.keys_removed_before();
        let ops = self.expired_keys(keys::range(unit.id, from..before))?;
        let more = ops.len() >= PASS_KEY_BLOCKS;
        if !ops.is_empty() {
            self.write(ops)?;
        }
        if !more {
            unit.set_keys_removed_before(from.max(before));
        }
        Ok(more)
    }

    fn expired_keys(&self, range: Range<Vec<u8>>) -> Result<Vec<Op>, Error> {
        let mut ops = Vec::new();
        if range.start >= range.end {
            return Ok(ops);
        }
        let scanned = self.state.storage.scan(Table::Keys, range, &mut |key, _| {
            ops.push(Op::Remove(Table::Keys, Bytes::copy_from_slice(key)));
            if ops.len() < PASS_KEY_BLOCKS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(|e| Error::Transient(format!("cannot read keyspace `keys` of the log: {e}")))?;
        Ok(ops)
    }
}

/// How much of a partition a pass needs to see.
#[derive(Clone, Copy)]
struct Wanted {
    all: bool,
    expired_before: Timestamp,
    bytes: u64,
}

impl Wanted {
    fn of(rule: Rule, log_excess_bytes: u64) -> Self {
        match rule {
            Rule::Settled => Self { all: true, expired_before: Timestamp::EPOCH, bytes: 0 },
            Rule::Bounded { expired_before, excess_bytes } => Self {
                all: false,
                expired_before: expired_before.unwrap_or_default(),
                bytes: excess_bytes.max(log_excess_bytes),
            },
        }
    }

    fn takes(&mut self, batch: &Removable) -> bool {
        let takes = self.all || batch.newest < self.expired_before || self.bytes > 0;
        self.bytes = self.bytes.saturating_sub(batch.bytes);
        takes
    }
}

/// Up to where all active functions have settled each partition that any of them reads.
fn floors(units: &[Arc<UnitState>]) -> BTreeMap<PartitionId, u64> {
    let mut floors = BTreeMap::new();
    let mut lower = |id: PartitionId, resume: u64| {
        let floor = floors.entry(id).or_insert(resume);
        *floor = resume.min(*floor);
    };
    for unit in units {
        let committed = unit.committed();
        // What a person redrove waits even for a function that is not active now.
        lower(unit.redrive.id, committed.redrive.resume);
        if unit.active.load(Ordering::Relaxed) {
            lower(unit.source.id, committed.source.resume);
        }
    }
    floors
}
