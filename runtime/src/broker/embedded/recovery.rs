//! Reads the committed state back when a log is opened, and checks that its parts fit together.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::name::{FunctionName, Topic, Unit};

use super::batch::{self, PartitionId};
use super::frame::Corrupt;
use super::index::IndexEntry;
use super::log::PartitionLog;
use super::names::Names;
use super::start::{self, PartitionStart};
use super::state::{Recovered, TopicState, UnitState};
use super::storage::{Storage, StorageError, Table, prefixed};
use super::topic::{self, TopicRecord};
use super::unit::{self, UnitRecord};
use super::volume::{self, Volume};
use super::{letter, meta};

/// What is wrong with which keyspace.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) place: String,
    pub(super) reason: String,
}

impl Damage {
    fn new(table: Table, reason: &impl ToString) -> Self {
        Self { place: format!("keyspace `{}`", table.name()), reason: reason.to_string() }
    }
}

/// The prefix that the log was made with. It is the first thing written, so a log without it has lost all its content.
pub(super) fn prefix(storage: &dyn Storage) -> Result<String, Damage> {
    let value = storage.get(Table::State, meta::KEY).map_err(|e| Damage::new(Table::State, &e))?;
    let value = value.ok_or_else(|| Damage::new(Table::State, &"it is empty: a journal was emptied"))?;
    meta::decode(&value).map_err(|e| Damage::new(Table::State, &e))
}

/// Topics, units and counts.
pub(super) fn recover(storage: &dyn Storage, names: &Names) -> Result<Recovered, Damage> {
    let topics = topics(storage)?;
    let units = units(storage, names, &topics)?;
    let open_letters = open_letters(storage)?;
    Ok(Recovered { topics, units, open_letters })
}

fn topics(storage: &dyn Storage) -> Result<BTreeMap<Topic, Arc<TopicState>>, Damage> {
    let mut topics = BTreeMap::new();
    for (key, value) in entries(storage, Table::State, prefixed(&[topic::TAG]))? {
        let corrupt = |e: Corrupt| Damage::new(Table::State, &e);
        let name = topic::name_of(&key).map_err(corrupt)?;
        let record = TopicRecord::decode(&key, &value).map_err(corrupt)?;
        let mut logs = Vec::new();
        for partition in 0..record.partitions {
            let log = log(storage, PartitionId { topic: record.id, partition })?;
            logs.push(Arc::new(log.of_kind(record.kind)));
        }
        let topic = TopicState::new(&record, name.clone(), logs);
        topics.insert(name, Arc::new(topic));
    }
    Ok(topics)
}

/// A partition ends where its last batch does; that batch is never removed.
fn log(storage: &dyn Storage, id: PartitionId) -> Result<PartitionLog, Damage> {
    let start_key = start::key(id);
    let start = storage.get(Table::State, &start_key).map_err(|e| Damage::new(Table::State, &e))?;
    let start = start.map(|value| PartitionStart::decode(&start_key, &value)).transpose();
    let start = start.map_err(|e| Damage::new(Table::State, &e))?.unwrap_or_default();
    let broken = |reason: &str| {
        let PartitionId { topic, partition } = id;
        Damage::new(Table::Index, &format!("topic number {topic}, partition {partition}: {reason}"))
    };
    let all = prefixed(&batch::key(id, 0)[..8]);
    let last = storage.last(Table::Index, all).map_err(|e| Damage::new(Table::Index, &e))?;
    let Some((key, value)) = last else {
        if start != PartitionStart::default() {
            return Err(broken("its last batch is missing"));
        }
        return Ok(PartitionLog::new(id, start, 0, 0));
    };
    let entry = IndexEntry::decode(&key, &value).map_err(|e| Damage::new(Table::Index, &e))?;
    let base = batch::base_of(&key).ok_or_else(|| broken("a key is malformed"))?;
    let first =
        storage.get(Table::Index, &batch::key(id, start.earliest)).map_err(|e| Damage::new(Table::Index, &e))?;
    if first.is_none() || base < start.earliest {
        return Err(broken("its first batch is missing"));
    }
    let bytes_written = entry.bytes_before + u64::from(entry.bytes);
    if bytes_written < start.bytes_removed {
        return Err(broken("more was removed than written"));
    }
    Ok(PartitionLog::new(id, start, base + u64::from(entry.count), bytes_written))
}

fn units(
    storage: &dyn Storage,
    names: &Names,
    topics: &BTreeMap<Topic, Arc<TopicState>>,
) -> Result<BTreeMap<Unit, Arc<UnitState>>, Damage> {
    let (mut units, mut volumes) = (BTreeMap::new(), volumes(storage)?);
    for (key, value) in entries(storage, Table::State, prefixed(&[unit::TAG]))? {
        let corrupt = |e: Corrupt| Damage::new(Table::State, &e);
        let id = unit::id_of(&key).map_err(corrupt)?;
        let UnitRecord { unit, progress, active } = UnitRecord::decode(&key, &value).map_err(corrupt)?;
        let log = |topic: &Topic| topics.get(topic)?.partitions.get(unit.partition as usize).cloned();
        let redrive = names.redrive(&unit.function, &unit.topic).ok();
        let logs = log(&unit.topic).zip(redrive.and_then(|topic| log(&topic)));
        let broken = |reason: &str| Damage::new(Table::State, &format!("unit {unit}: {reason}"));
        let (source, redrive) = logs.ok_or_else(|| broken("one of its partitions is missing"))?;
        if progress.source.resume > source.end() || progress.redrive.resume > redrive.end() {
            return Err(broken("it has settled records that the log does not hold"));
        }
        let state = UnitState::new(id, unit.clone(), [source, redrive], progress, active);
        state.set_volume(volumes.remove(&id).unwrap_or_default());
        units.insert(unit, Arc::new(state));
    }
    Ok(units)
}

fn volumes(storage: &dyn Storage) -> Result<BTreeMap<u32, Volume>, Damage> {
    let volumes = entries(storage, Table::State, prefixed(&[volume::TAG]))?;
    let volumes = volumes.into_iter().map(|(key, value)| Ok((volume::unit_of(&key)?, volume::decode(&key, &value)?)));
    volumes.collect::<Result<_, _>>().map_err(|e: Corrupt| Damage::new(Table::State, &e))
}

fn open_letters(storage: &dyn Storage) -> Result<BTreeMap<FunctionName, u64>, Damage> {
    let counts = entries(storage, Table::State, prefixed(&[letter::COUNT_TAG]))?;
    let counts = counts.into_iter().map(|(key, value)| letter::decode_count(&key, &value));
    counts.collect::<Result<_, _>>().map_err(|e| Damage::new(Table::State, &e))
}

fn entries(storage: &dyn Storage, table: Table, range: Range<Vec<u8>>) -> Result<Vec<(Bytes, Bytes)>, Damage> {
    let mut entries = Vec::new();
    let scanned: Result<(), StorageError> = storage.scan(table, range, &mut |key, value| {
        entries.push((Bytes::copy_from_slice(key), value));
        ControlFlow::Continue(())
    });
    scanned.map_err(|e| Damage::new(table, &e))?;
    Ok(entries)
}
