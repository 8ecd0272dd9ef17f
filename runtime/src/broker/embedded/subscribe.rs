//! The committer takes up subscriptions: topics of ours, units with their starts, ownership.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{Progress, StreamProgress};
use tokio::sync::watch;

use super::batch::PartitionId;
use super::committer::Committer;
use super::log::PartitionLog;
use super::prepare;
use super::start::PartitionStart;
use super::state::{TopicState, UnitState};
use super::storage::{Op, Table};
use super::topic::{self, TopicKind, TopicRecord};
use super::unit;
use crate::broker::{CatalogError, Error, Retention, StartAt};

/// More partitions serve nobody on one machine, and each costs a little memory.
pub(super) const PARTITIONS_MAX: u32 = 1024;

/// A unit that somebody owns from now on.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) unit: Arc<UnitState>,
    pub(super) generation: u64,
    pub(super) revoked: watch::Receiver<bool>,
}

/// What a subscription adds, collected before it is written.
#[derive(Default)]
struct Additions {
    ops: Vec<Op>,
    topics: Vec<Arc<TopicState>>,
    units: Vec<Arc<UnitState>>,
}

impl Committer {
    /// Makes a topic unless it exists with this number of partitions.
    pub(super) fn create_topic(&mut self, name: Topic, partitions: u32) -> Result<(), CatalogError> {
        let refuse = |reason| Err(CatalogError::Broker(Error::Transient(reason)));
        if let Some(existing) = self.state.topic(&name) {
            let existing = u32::try_from(existing.partitions.len()).unwrap_or(u32::MAX);
            if existing == partitions {
                return Ok(());
            }
            return Err(CatalogError::PartitionCount { topic: name, existing, wanted: partitions });
        }
        if self.state.names.is_reserved(&name) {
            return refuse(format!("topic `{name}` would begin with the runtime's own prefix: choose another name"));
        }
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return refuse(format!(
                "topic `{name}` cannot have {partitions} partitions: ask for 1 to {PARTITIONS_MAX}"
            ));
        }
        let mut additions = Additions::default();
        self.add_topic(&name, partitions, TopicKind::Events, &mut additions);
        self.apply(additions).map(drop).map_err(CatalogError::from)
    }

    /// Makes a topic of the runtime's own, of one partition, unless it is there.
    pub(super) fn create_internal(&mut self, name: &Topic) -> Result<(), Error> {
        if self.state.topic(name).is_some() {
            return Ok(());
        }
        let mut additions = Additions::default();
        self.add_topic(name, 1, TopicKind::Events, &mut additions);
        self.apply(additions).map(drop)
    }

    /// Changes a topic's own retention; none goes back to the log's.
    pub(super) fn set_retention(&mut self, name: Topic, retention: Option<Retention>) -> Result<(), CatalogError> {
        let topic = self.state.topic(&name).ok_or(CatalogError::UnknownTopic(name))?;
        if topic.retention() == retention {
            return Ok(());
        }
        let key = topic::key(&topic.name);
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let record = TopicRecord { id: topic.id, partitions, kind: topic.kind, retention };
        let value = record.encode(&key);
        self.write(vec![Op::Put(Table::State, key.into(), value)])?;
        topic.set_retention(retention);
        Ok(())
    }

    /// Takes all partitions of the topics for a function, from whoever owns them.
    pub(super) fn subscribe(
        &mut self,
        function: &FunctionName,
        topics: &[Topic],
        from: StartAt,
    ) -> Result<Vec<Owned>, Error> {
        let mut additions = Additions::default();
        self.dead_letter_topic(function, &mut additions)?;
        let mut wanted = Vec::new();
        for name in topics {
            let source = self.state.topic(name).ok_or_else(|| Error::Transient(prepare::missing(name)))?;
            let redrive = self.redrive_topic(function, &source, &mut additions)?;
            wanted.extend(self.units(function, [&source, &redrive], from, &mut additions));
        }
        let dropped = self.state.units_of(function).into_iter().filter(|unit| !topics.contains(&unit.unit.topic));
        let dropped: Vec<_> = dropped.filter(|unit| unit.active.load(Ordering::Relaxed)).collect();
        additions.ops.extend(dropped.iter().map(|unit| record(unit, false)));
        self.apply(additions)?;
        for unit in dropped {
            unit.active.store(false, Ordering::Relaxed);
            unit.revoke();
        }
        let owned = wanted.into_iter().map(|unit| {
            unit.active.store(true, Ordering::Relaxed);
            let (generation, revoked) = unit.take();
            Owned { unit, generation, revoked }
        });
        Ok(owned.collect())
    }

    /// Nobody runs this function any more: what it has not settled can be removed. Says whether records were kept for it.
    pub(super) fn retire(&mut self, function: &FunctionName) -> Result<bool, Error> {
        let units = self.state.units_of(function);
        let active = units.iter().filter(|unit| unit.active.load(Ordering::Relaxed));
        let ops: Vec<_> = active.map(|unit| record(unit, false)).collect();
        let was_active = !ops.is_empty();
        if was_active {
            self.write(ops)?;
        }
        for unit in units {
            unit.active.store(false, Ordering::Relaxed);
            unit.revoke();
        }
        Ok(was_active)
    }

    fn dead_letter_topic(&self, function: &FunctionName, additions: &mut Additions) -> Result<(), Error> {
        let name = self.state.names.dead_letters(function).map_err(|e| Error::Transient(e.to_string()))?;
        if self.state.topic(&name).is_none() {
            self.add_topic(&name, 1, TopicKind::DeadLetter, additions);
        }
        Ok(())
    }

    fn redrive_topic(
        &self,
        function: &FunctionName,
        source: &TopicState,
        additions: &mut Additions,
    ) -> Result<Arc<TopicState>, Error> {
        let name = self.state.names.redrive(function, &source.name).map_err(|e| Error::Transient(e.to_string()))?;
        let partitions = u32::try_from(source.partitions.len()).unwrap_or(u32::MAX);
        let existing = self.state.topic(&name);
        Ok(existing.unwrap_or_else(|| self.add_topic(&name, partitions, TopicKind::Redrive, additions)))
    }

    fn add_topic(&self, name: &Topic, partitions: u32, kind: TopicKind, additions: &mut Additions) -> Arc<TopicState> {
        let newest = self.state.topics().iter().map(|topic| topic.id).max().unwrap_or(0);
        let id = newest + 1 + u32::try_from(additions.topics.len()).unwrap_or(u32::MAX);
        let key = topic::key(name);
        let record = TopicRecord { id, partitions, kind, retention: None };
        let value = record.encode(&key);
        additions.ops.push(Op::Put(Table::State, key.into(), value));
        let log = |partition| PartitionLog::new(PartitionId { topic: id, partition }, PartitionStart::default(), 0, 0);
        let logs = (0..partitions).map(|partition| Arc::new(log(partition).of_kind(kind))).collect();
        let topic = Arc::new(TopicState::new(&record, name.clone(), logs));
        additions.topics.push(topic.clone());
        topic
    }

    /// The units of a function and topic; those that are missing begin where `from` says. A topic never gets more partitions,
    /// so either all are missing or none.
    fn units(
        &self,
        function: &FunctionName,
        [source, redrive]: [&Arc<TopicState>; 2],
        from: StartAt,
        additions: &mut Additions,
    ) -> Vec<Arc<UnitState>> {
        let mut units = Vec::new();
        for (number, (log, redrive)) in (0..).zip(source.partitions.iter().zip(&redrive.partitions)) {
            let name = Unit { function: function.clone(), topic: source.name.clone(), partition: number };
            let unit = self.state.unit(&name).unwrap_or_else(|| {
                let newest = self.state.units().iter().map(|unit| unit.id).max().unwrap_or(0);
                let id = newest + 1 + u32::try_from(additions.units.len()).unwrap_or(u32::MAX);
                let begin = begin(log, redrive, from);
                let unit = Arc::new(UnitState::new(id, name, [log.clone(), redrive.clone()], begin, false));
                additions.units.push(unit.clone());
                unit
            });
            if !unit.active.load(Ordering::Relaxed) {
                additions.ops.push(record(&unit, true));
            }
            units.push(unit);
        }
        units
    }

    fn apply(&mut self, additions: Additions) -> Result<(), Error> {
        if !additions.ops.is_empty() {
            self.write(additions.ops)?;
        }
        additions.topics.into_iter().for_each(|topic| self.state.add_topic(topic));
        additions.units.into_iter().for_each(|unit| self.state.add_unit(unit));
        Ok(())
    }
}

fn begin(source: &PartitionLog, redrive: &PartitionLog, from: StartAt) -> Progress {
    let at = |offset| StreamProgress { start: offset, resume: offset, ..StreamProgress::default() };
    let offset = match from {
        StartAt::Earliest => source.start().earliest,
        StartAt::Latest => source.end(),
    };
    Progress { source: at(offset), redrive: at(redrive.start().earliest), ..Progress::default() }
}

fn record(state: &UnitState, active: bool) -> Op {
    let key = Bytes::copy_from_slice(&unit::key(state.id));
    let value = unit::encode(&key, &state.unit, &state.committed(), active);
    Op::Put(Table::State, key, value)
}
