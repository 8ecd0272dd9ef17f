//! What publishers and workers do before the committer sees a request: look up topics, check sizes, encode records.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::limits;
use millrace_core::name::Topic;
use millrace_core::progress::{Progress, StreamProgress};
use millrace_core::record::Record;

use super::batch::{self, BATCH_BYTES, PartitionId, Segment};
use super::log::PartitionLog;
use super::state::{State, TopicState, UnitState};
use super::storage::{Op, Table};
use super::{keys, unit, value};
use crate::broker::{Commit, Letter, LetterId, Outgoing, Placement, Placing, PublishError, StateWrite};

/// What the worker may add to a record that goes to a topic of ours: the `millrace-` headers.
const INTERNAL_RECORD_EXTRA_BYTES: usize = 64 * 1024;
/// Says how often a dead letter was redriven.
pub(super) const REDRIVES_HEADER: &str = "millrace-redrives";

/// Encoded records for one partition; they get offsets without a gap.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) log: Arc<PartitionLog>,
    pub(super) segments: Vec<Segment>,
    count: u64,
    /// Room for what is still to come, in bytes.
    room: usize,
}

impl Slot {
    pub(super) fn new(log: Arc<PartitionLog>) -> Self {
        Self { log, segments: Vec::new(), count: 0, room: 0 }
    }

    /// Makes room for a record that will be added.
    fn expect(&mut self, record: &Record) {
        self.room += batch::room(record);
    }

    /// Adds a record, and answers with its place among the slot's records.
    pub(super) fn push(&mut self, record: &Record) -> u64 {
        match self.segments.last_mut() {
            Some(segment) if segment.len() + record.size_bytes() <= BATCH_BYTES => segment.push(record),
            _ => {
                let mut segment = Segment::with_room(self.room.min(BATCH_BYTES).max(batch::room(record)));
                segment.push(record);
                self.segments.push(segment);
            }
        }
        self.room = self.room.saturating_sub(batch::room(record));
        self.count += 1;
        self.count - 1
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len() as u64).sum()
    }
}

/// Encoded records for several partitions.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    /// For each record, its slot and its place in that.
    places: Vec<(usize, u64)>,
}

impl Slots {
    /// Looks up, checks and encodes.
    pub(super) fn of(state: &State, records: &[Outgoing]) -> Result<Self, PublishError> {
        let mut slots = Self { slots: Vec::new(), places: Vec::with_capacity(records.len()) };
        let mut by_partition = BTreeMap::<PartitionId, usize>::new();
        let mut topic: Option<Arc<TopicState>> = None;
        for (index, outgoing) in records.iter().enumerate() {
            if topic.as_ref().is_none_or(|topic| topic.name != outgoing.topic) {
                topic = state.topic(&outgoing.topic);
            }
            let unknown = || PublishError::UnknownTopic { index, topic: outgoing.topic.clone() };
            let topic = topic.as_ref().ok_or_else(unknown)?;
            check_size(state, topic, index, &outgoing.record)?;
            let log = partition(topic, outgoing.placing).ok_or_else(unknown)?;
            let slot = *by_partition.entry(log.id).or_insert_with(|| {
                slots.slots.push(Slot::new(log.clone()));
                slots.slots.len() - 1
            });
            slots.slots[slot].expect(&outgoing.record);
            slots.places.push((slot, 0));
        }
        for ((slot, place), outgoing) in slots.places.iter_mut().zip(records) {
            *place = slots.slots[*slot].push(&outgoing.record);
        }
        Ok(slots)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.slots.iter().map(Slot::bytes).sum()
    }

    /// Which record lies where.
    pub(super) fn into_parts(self) -> (Vec<Slot>, Places) {
        let partitions = self.slots.iter().map(|slot| slot.log.id.partition).collect();
        (self.slots, Places { partitions, places: self.places })
    }
}

/// Tells where records landed, once the offsets are known.
#[derive(Debug)]
pub(super) struct Places {
    partitions: Vec<u32>,
    places: Vec<(usize, u64)>,
}

impl Places {
    /// `bases` holds the first offset of each slot.
    pub(super) fn placements(&self, bases: &[u64]) -> Vec<Placement> {
        let placement = |(slot, place): &(usize, u64)| Placement {
            partition: self.partitions[*slot],
            offset: bases[*slot] + place,
        };
        self.places.iter().map(placement).collect()
    }
}

fn partition(topic: &TopicState, placing: Placing) -> Option<&Arc<PartitionLog>> {
    match placing {
        // As Kafka does it: the sign bit is dropped.
        Placing::Hash(hash) => topic.partitions.get((hash & 0x7fff_ffff) as usize % topic.partitions.len()),
        Placing::Partition(number) => topic.partitions.get(number as usize),
    }
}

fn check_size(state: &State, topic: &TopicState, index: usize, record: &Record) -> Result<(), PublishError> {
    let extra = if topic.kind.is_internal() { INTERNAL_RECORD_EXTRA_BYTES } else { 0 };
    let max_bytes = state.options.record_max_bytes + extra;
    let size_bytes = record.size_bytes();
    if size_bytes > max_bytes {
        return Err(PublishError::TooLarge { index, topic: topic.name.clone(), size_bytes, max_bytes });
    }
    Ok(())
}

/// A commit ready to be written.
#[derive(Debug)]
pub(super) struct PreparedCommit {
    pub(super) unit: Arc<UnitState>,
    pub(super) generation: u64,
    pub(super) at: millrace_core::time::Timestamp,
    pub(super) progress: Arc<Progress>,
    pub(super) unit_value: Bytes,
    /// Key and value of the block of idempotency keys, if there are any.
    pub(super) keys: Option<(Bytes, Bytes)>,
    pub(super) outputs: Vec<Slot>,
    pub(super) letters: Option<Letters>,
    pub(super) resolved: Vec<LetterId>,
    /// Changes of keyspace `values`.
    pub(super) values: Vec<Op>,
}

/// Dead letters with their records.
#[derive(Debug)]
pub(super) struct Letters {
    pub(super) slot: Slot,
    /// Identity and number of redrives, in the order of the slot's records.
    pub(super) entries: Vec<(LetterId, u32)>,
}

/// Checks and encodes a commit, or says why the log will not take it.
pub(super) fn commit(
    state: &State,
    unit: &Arc<UnitState>,
    generation: u64,
    commit: Commit,
) -> Result<PreparedCommit, String> {
    let Commit { at, progress, keys: hashes, outputs, letters, resolved, state: writes } = commit;
    assert_follows(unit, &progress)?;
    let outputs = Slots::of(state, &outputs).map_err(|e| e.to_string())?.slots;
    let letters = if letters.is_empty() { None } else { Some(prepare_letters(state, unit, &letters)?) };
    let values = writes.into_iter().map(|write| prepare_value(unit, write)).collect::<Result<_, _>>()?;
    let block = (!hashes.is_empty()).then(|| {
        let key = keys::key(unit.id, at, progress.commits);
        (Bytes::copy_from_slice(&key), keys::encode(&key, &hashes))
    });
    Ok(PreparedCommit {
        unit: unit.clone(),
        generation,
        at,
        unit_value: unit::encode(&unit::key(unit.id), &unit.unit, &progress, true),
        progress: Arc::new(progress),
        keys: block,
        outputs,
        letters,
        resolved,
        values,
    })
}

fn prepare_value(unit: &UnitState, StateWrite { key, value }: StateWrite) -> Result<Op, String> {
    let stored = value::key(unit.id, &key);
    for (what, bytes, max) in [
        ("the key", key.len(), limits::STATE_KEY_MAX_BYTES),
        ("the value", value.as_ref().map_or(0, Bytes::len), limits::STATE_VALUE_MAX_BYTES),
    ] {
        if bytes > max {
            let key = &key[..key.floor_char_boundary(80)];
            return Err(format!("state `{key}`: {what} has {bytes} bytes, more than {max}"));
        }
    }
    Ok(match value {
        Some(value) => Op::Put(Table::Values, stored.clone(), value::encode(&stored, &value)),
        None => Op::Remove(Table::Values, stored),
    })
}

fn prepare_letters(state: &State, unit: &UnitState, letters: &[Letter]) -> Result<Letters, String> {
    let name = state.names.dead_letters(&unit.unit.function).map_err(|e| e.to_string())?;
    let topic = state.topic(&name).ok_or_else(|| format!("there is no topic `{name}`"))?;
    let log = topic.partitions.first().ok_or_else(|| format!("topic `{name}` has no partition"))?;
    let mut slot = Slot::new(log.clone());
    let mut entries = Vec::with_capacity(letters.len());
    for (index, letter) in letters.iter().enumerate() {
        check_size(state, &topic, index, &letter.record).map_err(|e| format!("dead letter `{}`: {e}", letter.id))?;
        slot.push(&letter.record);
        entries.push((letter.id.clone(), redrives(&letter.record)));
    }
    Ok(Letters { slot, entries })
}

/// How often a record says it was redriven; never, if it does not say.
pub(super) fn redrives(record: &Record) -> u32 {
    let value = record.headers.last(REDRIVES_HEADER);
    value.and_then(|v| std::str::from_utf8(&v).ok()?.parse().ok()).unwrap_or(0)
}

/// A commit that does not follow the one before would lose or repeat events: that is a bug in the worker, and must not
/// reach the disk. A position that a person set can be wrong, and is refused.
fn assert_follows(unit: &UnitState, next: &Progress) -> Result<(), String> {
    let previous = unit.committed();
    assert_eq!(next.commits, previous.commits + 1, "the commit counter of {} must rise by one", unit.unit);
    assert_stream(&unit.unit, &previous.redrive, &next.redrive, unit.redrive.end());
    let (source, end) = (&next.source, unit.source.end());
    if next.reset == previous.reset {
        assert_stream(&unit.unit, &previous.source, source, end);
    } else if source.resume > end {
        return Err(format!("the position of {} cannot be {}: it ends at {end}", unit.unit, source.resume));
    } else {
        let place = StreamProgress { start: source.start, resume: source.start, ..StreamProgress::default() };
        assert_eq!(*source, place, "nothing of {} is settled where its position is set", unit.unit);
    }
    Ok(())
}

fn assert_stream(unit: &millrace_core::name::Unit, previous: &StreamProgress, next: &StreamProgress, end: u64) {
    assert_eq!(next.start, previous.start, "the start of {unit} must not change");
    assert!(next.resume >= previous.resume, "the resume point of {unit} must not go back");
    assert!(next.resume <= end, "the resume point of {unit} must not pass the end of the log");
    let mut settled = next.resume - next.start;
    let mut free_from = next.resume + 1;
    for range in &next.settled_above {
        assert!(range.start >= free_from && range.end > range.start, "ranges settled above by {unit} must be disjoint");
        assert!(range.end <= end, "{unit} must not settle past the end of the log");
        settled += range.end - range.start;
        free_from = range.end + 1;
    }
    assert_eq!(settled, next.totals.sum(), "the accounts of {unit} must balance");
}

/// The redriven form of a dead letter: the same with one more redrive counted.
pub(super) fn redriven(record: &Record, redrives: u32, at: millrace_core::time::Timestamp) -> Record {
    let mut headers = millrace_core::record::HeadersBuilder::default();
    for (name, value) in record.headers.iter().filter(|(name, _)| *name != REDRIVES_HEADER) {
        headers.push(name, value.as_deref());
    }
    headers.push_str(REDRIVES_HEADER, &redrives.to_string());
    Record { timestamp: at, headers: headers.build(), ..record.clone() }
}

/// The topic of a name, for a message.
pub(super) fn missing(topic: &Topic) -> String {
    format!(
        "there is no topic `{topic}`: create it before a function reads it, for example by naming it in the manifest"
    )
}
