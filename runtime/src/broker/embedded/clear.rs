//! Dead letters that are done with make room: after a while, or sooner when the log needs it. Open and redriven ones stay.
//!
//! There can be many letters, so what may go is found outside the committer's thread. The committer then takes a few at a
//! time, and only those that still are as they were found. A batch goes once no letter lies in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::name::FunctionName;
use millrace_core::time::Timestamp;

use super::batch;
use super::committer::Committer;
use super::frame::Corrupt;
use super::index::IndexEntry;
use super::letter::{self, LetterEntry};
use super::letters;
use super::log::PartitionLog;
use super::start::{self, PartitionStart};
use super::state::State;
use super::storage::{Op, StorageError, Table, prefixed};
use crate::broker::{Error, LetterId, LetterStatus};

/// Letters and batches that the committer removes at a time: everybody else waits meanwhile.
const STEP_LETTERS: usize = 256;
const STEP_BATCHES: usize = 512;
/// Letters removed before their time, before it is seen whether that was enough.
const STEP_LETTERS_EARLY: usize = 32;
/// Closed letters that one survey holds; those closed longest ago come first.
const SURVEY_LETTERS: usize = 8192;

/// One function's dead letters as they were at some moment.
pub(super) struct Survey {
    function: FunctionName,
    log: Arc<PartitionLog>,
    /// Resolved and discarded ones by the time they were, as many as a survey holds.
    closed: BTreeMap<(Timestamp, LetterId), LetterEntry>,
    /// Where records of letters lie.
    needed: BTreeSet<u64>,
    /// Batches in which letters lie, with one past their last offset. The last batch of all is never removed.
    batches: BTreeMap<u64, u64>,
    /// Batches in which no letter lies.
    empty: Vec<u64>,
}

/// Looks at a function's dead letters; none if it never had any. Can block on the disk.
pub(super) fn survey(state: &State, function: &FunctionName) -> Result<Option<Survey>, Error> {
    let name = state.names.dead_letters(function).map_err(|e| Error::Transient(e.to_string()))?;
    let log = state.topic(&name).and_then(|topic| topic.partitions.first().cloned());
    let Some(log) = log.filter(|log| log.end() > 0) else { return Ok(None) };
    // Whatever is added from here on lies in batches that are not looked at.
    let end = log.end();
    let mut survey = Survey {
        function: function.clone(),
        closed: BTreeMap::new(),
        needed: BTreeSet::new(),
        batches: BTreeMap::new(),
        empty: Vec::new(),
        log,
    };
    survey.look_at_letters(state)?;
    survey.look_at_batches(state, end)?;
    Ok(Some(survey))
}

impl Survey {
    fn look_at_letters(&mut self, state: &State) -> Result<(), Error> {
        let prefix = letter::prefix(&self.function);
        let mut damage = None;
        let scanned = state.storage.scan(Table::State, prefixed(&prefix), &mut |key, value| {
            let found = letter::id_of(&prefix, key).and_then(|id| Ok((id, LetterEntry::decode(key, &value)?)));
            match found {
                Ok((id, entry)) => self.take(id, entry),
                Err(e) => damage = Some(e),
            }
            if damage.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        checked(scanned, damage, Table::State)
    }

    fn take(&mut self, id: LetterId, entry: LetterEntry) {
        self.needed.insert(entry.place.offset);
        if matches!(entry.status, LetterStatus::Resolved | LetterStatus::Discarded) {
            self.closed.insert((entry.status_at, id), entry);
            if self.closed.len() > SURVEY_LETTERS {
                self.closed.pop_last();
            }
        }
    }

    fn look_at_batches(&mut self, state: &State, end: u64) -> Result<(), Error> {
        let id = self.log.id;
        let range = batch::key(id, 0).to_vec()..batch::key(id, end).to_vec();
        let mut damage = None;
        let scanned = state.storage.scan(Table::Index, range, &mut |key, value| {
            let base = batch::base_of(key).unwrap_or(end);
            match IndexEntry::decode(key, &value).map(|entry| base + u64::from(entry.count)) {
                Ok(batch_end) if batch_end >= end => return ControlFlow::Break(()),
                Ok(batch_end) if self.needed.range(base..batch_end).next().is_none() => self.empty.push(base),
                Ok(batch_end) => drop(self.batches.insert(base, batch_end)),
                Err(e) => damage = Some(e),
            }
            if damage.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        checked(scanned, damage, Table::Index)
    }

    /// The closed letter that comes next, if it may go.
    fn next(&mut self, closed_before: Timestamp, room_is_needed: bool) -> Option<(LetterId, LetterEntry)> {
        let first = self.closed.first_entry()?;
        let due = room_is_needed || first.key().0 < closed_before;
        due.then(|| first.remove_entry()).map(|((_, id), entry)| (id, entry))
    }

    /// A letter is gone; its batch may be empty now.
    fn forget(&mut self, offset: u64) {
        self.needed.remove(&offset);
        let holding = self.batches.range(..=offset).next_back().map(|(base, end)| (*base, *end));
        if let Some((base, _)) = holding.filter(|(base, end)| self.needed.range(*base..*end).next().is_none()) {
            self.batches.remove(&base);
            self.empty.push(base);
        }
    }
}

fn checked(scanned: Result<(), StorageError>, damage: Option<Corrupt>, table: Table) -> Result<(), Error> {
    let reason = match (scanned, damage) {
        (Ok(()), None) => return Ok(()),
        (Err(e), _) => e.to_string(),
        (Ok(()), Some(e)) => e.to_string(),
    };
    Err(Error::Transient(format!("cannot read keyspace `{}` of the log: {reason}", table.name())))
}

impl Committer {
    /// One step; answers whether another one may find more.
    pub(super) fn clear(&mut self, survey: &mut Survey, now: Timestamp) -> Result<bool, Error> {
        let closed_before = now - self.state.options.letter_retention;
        let room_is_needed = self.state.excess_bytes() > 0;
        let most = if room_is_needed { STEP_LETTERS_EARLY } else { STEP_LETTERS };
        let (mut gone, mut ops) = (Vec::new(), Vec::new());
        let mut looked_at = 0;
        while looked_at < most
            && let Some((id, entry)) = survey.next(closed_before, room_is_needed)
        {
            looked_at += 1;
            // A person may have redriven it meanwhile, or it failed once more.
            if letters::entry(&*self.state.storage, &survey.function, &id)?.as_ref() == Some(&entry) {
                ops.push(Op::Remove(Table::State, letter::key(&survey.function, &id).into()));
                gone.push(entry.place.offset);
            }
        }
        if !ops.is_empty() {
            self.write(ops)?;
        }
        gone.into_iter().for_each(|offset| survey.forget(offset));
        let empty = survey.empty.split_off(survey.empty.len().saturating_sub(STEP_BATCHES));
        self.remove_letter_batches(&survey.log, &empty)?;
        Ok(looked_at == most || !survey.empty.is_empty())
    }

    /// Removes batches wherever they lie: a partition of dead letters may have gaps.
    fn remove_letter_batches(&mut self, log: &Arc<PartitionLog>, bases: &[u64]) -> Result<(), Error> {
        let unreadable = |e: &dyn std::fmt::Display| Error::Transient(format!("cannot read keyspace `index`: {e}"));
        let (mut ops, mut bytes) = (Vec::new(), 0);
        for base in bases {
            let key = Bytes::copy_from_slice(&batch::key(log.id, *base));
            // Another pass may have been quicker.
            let Some(value) = self.state.storage.get(Table::Index, &key).map_err(|e| unreadable(&e))? else { continue };
            bytes += u64::from(IndexEntry::decode(&key, &value).map_err(|e| unreadable(&e))?.bytes);
            ops.push(Op::Remove(Table::Index, key.clone()));
            ops.push(Op::Remove(Table::Batches, key));
        }
        if ops.is_empty() {
            return Ok(());
        }
        let previous = log.start();
        let earliest = self.first_left(log, bases).map_err(|e| unreadable(&e))?;
        let new = PartitionStart { earliest, bytes_removed: previous.bytes_removed + bytes };
        let key = start::key(log.id);
        ops.push(Op::Put(Table::State, Bytes::copy_from_slice(&key), new.encode(&key)));
        log.remove_before(new);
        self.write(ops)?;
        self.state.sub_kept_bytes(bytes);
        Ok(())
    }

    /// The base of the first batch that is not among these.
    fn first_left(&self, log: &PartitionLog, bases: &[u64]) -> Result<u64, StorageError> {
        let bases: BTreeSet<u64> = bases.iter().copied().collect();
        let mut first = log.start().earliest;
        let range = batch::key(log.id, first).to_vec()..batch::key(log.id, log.end()).to_vec();
        self.state.storage.scan(Table::Index, range, &mut |key, _| match batch::base_of(key) {
            Some(base) if !bases.contains(&base) => {
                first = base;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })?;
        Ok(first)
    }
}
