//! A person decides what becomes of dead letters.
//!
//! Letters and records are read outside of the committer's thread, and a bounded number of letters changes in one write: a
//! redriven record can be as large as records get, and everybody else waits meanwhile.

use std::collections::BTreeSet;

use millrace_core::limits::LETTERS_AT_ONCE;
use millrace_core::name::FunctionName;

use super::EmbeddedLog;
use super::committer::Committer;
use super::group::Group;
use super::letter::LetterEntry;
use super::letters::{entry, put, record};
use super::prepare::{self, Slot};
use super::state::State;
use crate::broker::{CatalogError, Error, Force, LetterAction, LetterId, LetterStatus};

/// A decision about one function's letters.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) function: FunctionName,
    pub(super) action: LetterAction,
    pub(super) force: Force,
}

/// A letter as it was found, and what the decision makes of it.
struct Prepared {
    id: LetterId,
    found: LetterEntry,
    changed: LetterEntry,
    /// Its record on the way to the redrive topic.
    redriven: Option<Slot>,
}

impl EmbeddedLog {
    /// Acts on letters in steps. All are looked at before the first changes.
    pub(super) async fn decide(&self, decision: Decision, ids: &[LetterId]) -> Result<(), CatalogError> {
        let ids: Vec<LetterId> = ids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if ids.len() > LETTERS_AT_ONCE {
            let (decision, ids) = (decision.clone(), ids.clone());
            self.blocking(move |state| ids.iter().try_for_each(|id| decision.look_at(state, id).map(drop))).await??;
        }
        for step in ids.chunks(LETTERS_AT_ONCE) {
            let (looking, step) = (decision.clone(), step.to_vec());
            let prepared = self
                .blocking(move |state| {
                    step.into_iter().map(|id| looking.prepare(state, id)).collect::<Result<Vec<_>, _>>()
                })
                .await??;
            let acting = decision.clone();
            self.alone(move |committer| committer.act_on_letters(&acting, prepared)).await??;
        }
        Ok(())
    }
}

impl Decision {
    /// The letter's entry, if it may change.
    fn look_at(&self, state: &State, id: &LetterId) -> Result<LetterEntry, CatalogError> {
        let found = entry(&*state.storage, &self.function, id)?;
        let found = found.ok_or_else(|| CatalogError::UnknownLetter(self.function.clone(), id.clone()))?;
        if found.status != LetterStatus::Open && self.force == Force::No {
            let (function, id, status) = (self.function.clone(), id.clone(), found.status);
            return Err(CatalogError::NotOpen { function, id, status });
        }
        Ok(found)
    }

    fn prepare(&self, state: &State, id: LetterId) -> Result<Prepared, CatalogError> {
        let found = self.look_at(state, &id)?;
        let mut changed = LetterEntry { status_at: state.options.clock.now(), ..found.clone() };
        let mut redriven = None;
        (changed.status, changed.note) = match &self.action {
            LetterAction::Redrive => {
                changed.redrives += 1;
                redriven = Some(self.redrive(state, &id, &changed)?);
                (LetterStatus::Redriven, None)
            }
            LetterAction::Resolve(note) => (LetterStatus::Resolved, note.clone()),
            LetterAction::Discard(reason) => (LetterStatus::Discarded, Some(reason.clone())),
        };
        Ok(Prepared { id, found, changed, redriven })
    }

    /// The letter's record for the partition of the redrive topic that stands for its source partition.
    fn redrive(&self, state: &State, id: &LetterId, entry: &LetterEntry) -> Result<Slot, CatalogError> {
        let record = record(state, &self.function, entry.place)?;
        let name = state.names.redrive(&self.function, &id.topic).map_err(|e| Error::Transient(e.to_string()))?;
        let topic = state.topic(&name).ok_or(CatalogError::UnknownTopic(name))?;
        let log = topic.partitions.get(id.partition as usize);
        let log = log.ok_or_else(|| CatalogError::UnknownPartition(topic.name.clone(), id.partition))?;
        let mut slot = Slot::new(log.clone());
        slot.push(&prepare::redriven(&record, entry.redrives, entry.status_at));
        Ok(slot)
    }
}

impl Committer {
    /// Changes the status of letters, all or none.
    fn act_on_letters(&mut self, decision: &Decision, prepared: Vec<Prepared>) -> Result<(), CatalogError> {
        let function = &decision.function;
        let mut group = Group::default();
        let mut closed = 0;
        for Prepared { id, found, changed, redriven } in prepared {
            if decision.look_at(&self.state, &id)? != found {
                let reason =
                    format!("dead letter `{id}` of `{function}` changed meanwhile: look at it, and decide again");
                return Err(Error::Transient(reason).into());
            }
            closed += u64::from(found.status == LetterStatus::Open);
            if let Some(slot) = redriven {
                group.append(slot);
            }
            put(&mut group, function, &id, &changed);
        }
        if closed > 0 {
            let open = self.state.open_letters(function).saturating_sub(closed);
            group.open_letters.insert(function.clone(), open);
        }
        self.write_group(group).map_err(CatalogError::from)
    }
}
