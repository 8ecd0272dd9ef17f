//! Dead letters as people see them: listing, and changing their status.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use millrace_core::name::FunctionName;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::committer::Committer;
use super::frame::Corrupt;
use super::group::Group;
use super::letter::{self, LetterEntry};
use super::prepare::{self, Slot};
use super::read::{self, Limits};
use super::state::State;
use super::storage::{Storage, StorageError, Table, prefixed};
use crate::broker::{CatalogError, Error, Force, LetterAction, LetterId, LetterStatus, Placement, StoredLetter};

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
    let entry = entry(&*state.storage, function, id)?;
    let entry = entry.ok_or_else(|| CatalogError::UnknownLetter(function.clone(), id.clone()))?;
    stored(state, function, id.clone(), entry)
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
    let letters = found.into_iter().map(|found| {
        let (id, entry) = found.map_err(|e| damaged(&e))?;
        stored(state, function, id, entry)
    });
    letters.collect()
}

fn stored(
    state: &State,
    function: &FunctionName,
    id: LetterId,
    entry: LetterEntry,
) -> Result<StoredLetter, CatalogError> {
    let record = record(state, function, entry.place)?;
    let LetterEntry { status, status_at, note, .. } = entry;
    Ok(StoredLetter { function: function.clone(), id, status, status_at, note, record })
}

fn record(state: &State, function: &FunctionName, place: Placement) -> Result<Record, Error> {
    let name = state.names.dead_letters(function).map_err(|e| Error::Transient(e.to_string()))?;
    let topic = state.topic(&name);
    let log = topic.as_ref().and_then(|topic| topic.partitions.get(place.partition as usize));
    let log = log.ok_or_else(|| Error::Transient(format!("there is no topic `{name}`")))?;
    let mut read = read::records(&*state.storage, log, place.offset, ONE).map_err(|e| e.at(log, place.offset))?;
    read.pop().map(|(_, record)| record).ok_or_else(|| read::ReadError::Missing(place.offset).at(log, place.offset))
}

impl Committer {
    /// Changes the status of dead letters, all or none.
    pub(super) fn act_on_letters(
        &mut self,
        function: &FunctionName,
        ids: &[LetterId],
        action: &LetterAction,
        force: Force,
    ) -> Result<(), CatalogError> {
        let now = self.state.options.clock.now();
        let mut group = Group::default();
        let mut closed = 0;
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let entry = entry(&*self.state.storage, function, id)?;
            let entry = entry.ok_or_else(|| CatalogError::UnknownLetter(function.clone(), id.clone()))?;
            if entry.status != LetterStatus::Open && force == Force::No {
                let (function, id, status) = (function.clone(), id.clone(), entry.status);
                return Err(CatalogError::NotOpen { function, id, status });
            }
            closed += u64::from(entry.status == LetterStatus::Open);
            let changed = self.act(function, id, entry, action, now, &mut group)?;
            let key = letter::key(function, id);
            let value = changed.encode(&key);
            group.put(Table::State, Bytes::from(key), value);
        }
        if closed > 0 {
            let open = self.state.open_letters(function).saturating_sub(closed);
            self.stage_open_letters(function, open, &mut group);
        }
        self.write_group(group).map_err(CatalogError::from)
    }

    fn act(
        &self,
        function: &FunctionName,
        id: &LetterId,
        mut entry: LetterEntry,
        action: &LetterAction,
        now: Timestamp,
        group: &mut Group,
    ) -> Result<LetterEntry, CatalogError> {
        entry.status_at = now;
        (entry.status, entry.note) = match action {
            LetterAction::Redrive => {
                entry.redrives += 1;
                self.redrive(function, id, &entry, now, group)?;
                (LetterStatus::Redriven, None)
            }
            LetterAction::Resolve(note) => (LetterStatus::Resolved, note.clone()),
            LetterAction::Discard(reason) => (LetterStatus::Discarded, Some(reason.clone())),
        };
        Ok(entry)
    }

    /// Appends the letter's record to the partition of the redrive topic that stands for its source partition.
    fn redrive(
        &self,
        function: &FunctionName,
        id: &LetterId,
        entry: &LetterEntry,
        now: Timestamp,
        group: &mut Group,
    ) -> Result<(), CatalogError> {
        let record = record(&self.state, function, entry.place)?;
        let name = self.state.names.redrive(function, &id.topic).map_err(|e| Error::Transient(e.to_string()))?;
        let topic = self.state.topic(&name).ok_or(CatalogError::UnknownTopic(name))?;
        let log = topic.partitions.get(id.partition as usize);
        let log = log.ok_or_else(|| CatalogError::UnknownPartition(topic.name.clone(), id.partition))?;
        let mut slot = Slot::new(log.clone());
        slot.push(&prepare::redriven(&record, entry.redrives, now));
        group.append(slot);
        Ok(())
    }
}
