//! Reading and accounting for the state of handlers.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use super::frame::Corrupt;
use super::state::{State, UnitState};
use super::storage::{Op, StorageError, Table};
use super::volume::Volume;
use super::{EmbeddedLog, value};
use crate::broker::{Error, StateEntry, StateRange, StateReader};

/// Reads what is committed of one unit's state.
#[derive(Clone, Debug)]
pub struct EmbeddedState {
    log: EmbeddedLog,
    unit: Arc<UnitState>,
}

impl EmbeddedState {
    pub(super) const fn new(log: EmbeddedLog, unit: Arc<UnitState>) -> Self {
        Self { log, unit }
    }
}

impl StateReader for EmbeddedState {
    fn get(&self, keys: Vec<ByteString>) -> impl Future<Output = Result<Vec<Option<Bytes>>, Error>> + Send + 'static {
        let Self { log, unit } = self.clone();
        async move {
            // A unit without state is the only one whose reads cannot touch the disk.
            if unit.volume().values == 0 {
                return Ok(vec![None; keys.len()]);
            }
            log.blocking(move |state| keys.iter().map(|key| get(state, &unit, key)).collect()).await?
        }
    }

    fn keys(
        &self,
        after: Option<ByteString>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ByteString>, Error>> + Send + 'static {
        let Self { log, unit } = self.clone();
        let range = StateRange { after, max, max_bytes: usize::MAX, ..StateRange::default() };
        async move {
            let entries = log.blocking(move |state| list(state, &unit, &range)).await??;
            Ok(entries.into_iter().map(|entry| entry.key).collect())
        }
    }
}

fn unreadable(unit: &UnitState, reason: &dyn std::fmt::Display) -> Error {
    Error::Transient(format!("cannot read keyspace `values` of the log, unit {}: {reason}", unit.unit))
}

fn get(state: &State, unit: &UnitState, key: &str) -> Result<Option<Bytes>, Error> {
    let key = value::key(unit.id, key);
    let stored = state.storage.get(Table::Values, &key).map_err(|e| unreadable(unit, &e))?;
    stored.map(|stored| value::decode(&key, &stored)).transpose().map_err(|e| unreadable(unit, &e))
}

/// Values of a unit by key.
pub(super) fn list(state: &State, unit: &UnitState, range: &StateRange) -> Result<Vec<StateEntry>, Error> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let StateRange { prefix, after, max, max_bytes } = range;
    let wanted = value::range(unit.id, prefix, after.as_deref());
    if *max == 0 || wanted.is_empty() {
        return Ok(found);
    }
    let mut damage = None;
    let scanned = state.storage.scan(Table::Values, wanted, &mut |key, stored| match entry(key, &stored) {
        Ok(entry) => {
            bytes += entry.key.len() + entry.value.len();
            if !found.is_empty() && bytes > *max_bytes {
                return ControlFlow::Break(());
            }
            found.push(entry);
            if found.len() < *max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
        Err(e) => {
            damage = Some(e);
            ControlFlow::Break(())
        }
    });
    scanned.map_err(|e| unreadable(unit, &e))?;
    damage.map_or(Ok(found), |e| Err(unreadable(unit, &e)))
}

fn entry(key: &[u8], stored: &Bytes) -> Result<StateEntry, Corrupt> {
    Ok(StateEntry { key: value::key_of(key)?, value: value::decode(key, stored)? })
}

/// What a unit's state counts for once these values are written. Each key is in it once.
pub(super) fn volume_after(state: &State, unit: &UnitState, ops: &[Op]) -> Result<Volume, StorageError> {
    let mut volume = unit.volume();
    // The keyspace's key begins with the unit, which the handler did not write.
    let key_bytes = |key: &Bytes| key.len() - size_of::<u32>();
    for op in ops {
        let (Op::Put(_, key, _) | Op::Remove(_, key)) = op;
        if let Some(earlier) = state.storage.get(Table::Values, key)? {
            volume.remove(Volume::of(key_bytes(key), earlier.len()));
        }
        if let Op::Put(_, key, stored) = op {
            volume.add(Volume::of(key_bytes(key), stored.len()));
        }
    }
    Ok(volume)
}
