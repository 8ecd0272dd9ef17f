//! What fills the log, in words: who holds it, and what a person can do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::Ordering;

use millrace_core::name::{FunctionName, Topic};
use millrace_core::units::rounded;

use super::batch::{self, PartitionId};
use super::index::IndexEntry;
use super::log::PartitionLog;
use super::state::{State, UnitState};
use super::storage::Table;

/// Something that cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holding {
    /// Records that a function has not settled: of which topic.
    Unsettled(FunctionName, Topic),
    /// A function's dead letters.
    Letters(FunctionName),
    /// What a function's handler stored.
    State(FunctionName),
}

/// What fills the log most, and the way out.
pub(super) fn explain(state: &State) -> String {
    let (kept, max) = (rounded(state.kept_bytes()), rounded(state.options.size_max_bytes));
    let largest = holdings(state).into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0);
    let Some((holding, bytes)) = largest else {
        return format!("it keeps {kept} and may keep {max}; raise `data.max-size`");
    };
    let what = Said { holding, state };
    format!("it keeps {kept} and may keep {max}; {} of that are {what}, or raise `data.max-size`", rounded(bytes))
}

struct Said<'a> {
    holding: Holding,
    state: &'a State,
}

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holding {
            Holding::Unsettled(function, topic) => write!(
                f,
                "records of `{topic}` that `{function}` has not settled: see `millrace status {function}` for what holds \
                 it up, take it out of the manifest if nobody needs it"
            ),
            Holding::State(function) => {
                write!(f, "state of `{function}`, which only its handler removes: see `millrace state {function}`")
            }
            Holding::Letters(function) => write!(
                f,
                "dead letters of `{function}`, {} of them open: see `millrace dead-letters list --function {function}`, \
                 resolve, discard or redrive them",
                self.state.open_letters(function)
            ),
        }
    }
}

/// Bytes by who holds them. A partition that several functions read is held by the slowest.
fn holdings(state: &State) -> BTreeMap<Holding, u64> {
    let mut holdings = BTreeMap::new();
    let units = state.units();
    let functions: BTreeSet<&FunctionName> = units.iter().map(|unit| &unit.unit.function).collect();
    for function in functions {
        let topic = state.names.dead_letters(function).ok().and_then(|name| state.topic(&name));
        let bytes = topic.map_or(0, |topic| topic.partitions.iter().map(|log| log.info().size_bytes).sum());
        holdings.insert(Holding::Letters(function.clone()), bytes);
        let state = units.iter().filter(|unit| unit.unit.function == *function).map(|unit| unit.volume().bytes).sum();
        holdings.insert(Holding::State(function.clone()), state);
    }
    let mut slowest = BTreeMap::<PartitionId, (u64, &UnitState)>::new();
    let active = units.iter().filter(|unit| unit.active.load(Ordering::Relaxed));
    for unit in active {
        let resume = unit.committed().source.resume;
        let slow = slowest.entry(unit.source.id).or_insert((resume, unit));
        if resume < slow.0 {
            *slow = (resume, unit);
        }
    }
    for (resume, unit) in slowest.into_values() {
        let holding = Holding::Unsettled(unit.unit.function.clone(), unit.unit.topic.clone());
        *holdings.entry(holding).or_default() += bytes_from(state, &unit.source, resume);
    }
    holdings
}

/// Bytes of the batches from the one with `offset` on. What cannot be read counts as nothing: this is only told.
fn bytes_from(state: &State, log: &PartitionLog, offset: u64) -> u64 {
    let written = log.bytes_written();
    let up_to_offset = batch::key(log.id, 0).to_vec()..batch::key(log.id, offset.saturating_add(1)).to_vec();
    let Ok(found) = state.storage.last(Table::Index, up_to_offset) else { return 0 };
    let Some((key, value)) = found else { return log.info().size_bytes };
    let (Some(base), Ok(entry)) = (batch::base_of(&key), IndexEntry::decode(&key, &value)) else { return 0 };
    let holds_it = base + u64::from(entry.count) > offset;
    written.saturating_sub(entry.bytes_before + if holds_it { 0 } else { entry.bytes.into() })
}
