//! Dead letters as people see them, and as commits change them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use millrace_core::name::FunctionName;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::committer::Committer;
use super::frame::Corrupt;
use super::group::Group;
use super::letter::{self, LetterEntry};
use super::prepare::{Letters, Slot};
use super::read::{self, Limits};
use super::state::State;
use super::storage::{Storage, StorageError, Table, prefixed};
use crate::broker::{CatalogError, Error, LetterId, LetterStatus, Placement, StoredLetter};

const ONE: Limits = Limits { max_records: 1, max_bytes: 1 };

/// The committed entry of a dead letter, if there is one.
pub(super) fn entry(
    storage: &dyn Storage,
    function: &FunctionName,
    id: &LetterId,
) -> Result<Option<LetterEntry>, Error> {
    let key = letter::key(function, id);
    let value = storage.get(Table::State, &key).map_err(|e| unreadable(&e))?;
    value.map(|value| LetterEntry::decode(&key, &value)).transpose().map_err(|e| damaged(&e))
}

fn unreadable(e: &StorageError) -> Error {
    Error::Transient(format!("cannot read keyspace `state` of the log: {e}"))
}

fn damaged(e: &Corrupt) -> Error {
    Error::Transient(format!("keyspace `state` of the log: {e}; restore the directory from a backup"))
}

/// One dead letter with its record.
pub(super) fn one(state: &State, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, CatalogError> {
    let unknown = || CatalogError::UnknownLetter(function.clone(), id.clone());
    let entry = entry(&*state.storage, function, id)?.ok_or_else(unknown)?;
    stored(state, function, id.clone(), entry)?.ok_or_else(unknown)
}

/// Dead letters after `after`, by identity.
pub(super) fn list(
    state: &State,
    function: &FunctionName,
    after: Option<&LetterId>,
    max: usize,
) -> Result<Vec<StoredLetter>, CatalogError> {
    let prefix = letter::prefix(function);
    let mut range = prefixed(&prefix);
    if let Some(after) = after {
        // The least key above that of `after`.
        range.start = [&letter::key(function, after)[..], &[0]].concat();
    }
    let mut found = Vec::new();
    if max > 0 {
        let scanned = state.storage.scan(Table::State, range, &mut |key, value| {
            found.push(letter::id_of(&prefix, key).and_then(|id| Ok((id, LetterEntry::decode(key, &value)?))));
            if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(|e| unreadable(&e))?;
    }
    let letters = found.into_iter().filter_map(|found| match found {
        Ok((id, entry)) => stored(state, function, id, entry).transpose(),
        Err(e) => Some(Err(damaged(&e).into())),
    });
    letters.collect()
}

/// A letter with its record; none if it was removed meanwhile.
fn stored(
    state: &State,
    function: &FunctionName,
    id: LetterId,
    mut found: LetterEntry,
) -> Result<Option<StoredLetter>, CatalogError> {
    let record = loop {
        match record(state, function, found.place) {
            Ok(record) => break record,
            Err(error) => match entry(&*state.storage, function, &id)? {
                None => return Ok(None),
                // It failed once more, and its earlier record went.
                Some(newer) if newer.place != found.place => found = newer,
                Some(_) => return Err(error.into()),
            },
        }
    };
    let LetterEntry { status, status_at, note, .. } = found;
    Ok(Some(StoredLetter { function: function.clone(), id, status, status_at, note, record }))
}

pub(super) fn record(state: &State, function: &FunctionName, place: Placement) -> Result<Record, Error> {
    let name = state.names.dead_letters(function).map_err(|e| Error::Transient(e.to_string()))?;
    let topic = state.topic(&name);
    let log = topic.as_ref().and_then(|topic| topic.partitions.get(place.partition as usize));
    let log = log.ok_or_else(|| Error::Transient(format!("there is no topic `{name}`")))?;
    let mut read = read::records(&*state.storage, log, place.offset, ONE).map_err(|e| e.at(log, place.offset))?;
    // Where the batch is gone, the next one is read.
    let found = read.pop().filter(|(offset, _)| *offset == place.offset);
    found.map(|(_, record)| record).ok_or_else(|| read::ReadError::Missing(place.offset).at(log, place.offset))
}

/// Dead letters that a commit changes.
#[derive(Debug, Default)]
pub(super) struct LetterChanges {
    /// Their records.
    slot: Option<Slot>,
    opened: BTreeMap<LetterId, Opened>,
    /// Redriven ones that completed, with what they were.
    resolved: BTreeMap<LetterId, LetterEntry>,
}

#[derive(Debug)]
struct Opened {
    /// Which record of the slot it is.
    index: u64,
    redrives: u32,
    was_open: bool,
}

impl Committer {
    /// What a commit's dead letters were before it. A letter that was redriven twice by force can come twice: the last one
    /// counts, and it is open if either failed.
    pub(super) fn letter_changes(
        &self,
        function: &FunctionName,
        letters: Option<Letters>,
        resolved: &[LetterId],
    ) -> Result<LetterChanges, Error> {
        let storage = &*self.state.storage;
        let mut changes = LetterChanges::default();
        if let Some(Letters { slot, entries }) = letters {
            for (index, (id, redrives)) in (0..).zip(entries) {
                let was_open = entry(storage, function, &id)?.is_some_and(|entry| entry.status == LetterStatus::Open);
                changes.opened.insert(id, Opened { index, redrives, was_open });
            }
            changes.slot = Some(slot);
        }
        for id in resolved.iter().filter(|id| !changes.opened.contains_key(id)) {
            // A person may have decided otherwise meanwhile.
            if let Some(entry) = entry(storage, function, id)?.filter(|entry| entry.status == LetterStatus::Redriven) {
                changes.resolved.insert(id.clone(), entry);
            }
        }
        Ok(changes)
    }

    /// Appends the letters' records and writes their entries.
    pub(super) fn stage_letters(
        &self,
        function: &FunctionName,
        at: Timestamp,
        changes: LetterChanges,
        group: &mut Group,
    ) {
        let LetterChanges { slot, opened, resolved } = changes;
        if let Some(slot) = slot {
            let partition = slot.log.id.partition;
            let base = group.append(slot);
            for (id, Opened { index, redrives, .. }) in &opened {
                let place = Placement { partition, offset: base + index };
                let entry =
                    LetterEntry { status: LetterStatus::Open, status_at: at, note: None, place, redrives: *redrives };
                put(group, function, id, &entry);
            }
        }
        for (id, entry) in resolved {
            put(group, function, &id, &LetterEntry { status: LetterStatus::Resolved, status_at: at, ..entry });
        }
        let newly_open = opened.values().filter(|opened| !opened.was_open).count() as u64;
        if newly_open > 0 {
            let open = group.open_letters.entry(function.clone()).or_insert_with(|| self.state.open_letters(function));
            *open += newly_open;
        }
    }
}

pub(super) fn put(group: &mut Group, function: &FunctionName, id: &LetterId, entry: &LetterEntry) {
    let key = letter::key(function, id);
    let value = entry.encode(&key);
    group.put(Table::State, key, value);
}
