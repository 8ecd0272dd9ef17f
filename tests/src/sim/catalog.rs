//! What people and tools ask of the simulated broker.

use std::ops::Bound;

use millrace::broker::{
    Catalog, CatalogError, Error, Fetched, Force, LetterAction, LetterId, LetterStatus, PartitionInfo, StateEntry,
    StateRange, StoredLetter, TopicInfo, UnitInfo,
};
use millrace_core::limits::PARTITIONS_MAX;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::Stream;
use millrace_core::record::Record;

use super::broker::SimBroker;
use super::world::{Letter, World};

impl Catalog for SimBroker {
    async fn topics(&self) -> Result<Vec<TopicInfo>, CatalogError> {
        let world = self.group.world();
        let topic = |(name, logs): (&Topic, &Vec<Vec<Record>>)| {
            let partitions =
                logs.iter().map(|log| PartitionInfo { earliest: 0, next: log.len() as u64, size_bytes: 0 });
            TopicInfo { name: name.to_string(), internal: false, partitions: partitions.collect() }
        };
        Ok(world.topics.iter().map(topic).collect())
    }

    async fn create_topic(&self, topic: Topic, partitions: u32) -> Result<(), CatalogError> {
        let mut world = self.group.world();
        let existing = world.topics.get(&topic).map(|logs| u32::try_from(logs.len()).expect("few partitions"));
        match existing {
            Some(existing) if existing == partitions => Ok(()),
            Some(existing) => Err(CatalogError::PartitionCount { topic, existing, wanted: partitions }),
            None if !(1..=PARTITIONS_MAX).contains(&partitions) => {
                let reason = format!("topic `{topic}` cannot have {partitions} partitions");
                Err(CatalogError::Broker(Error::Transient(reason)))
            }
            None => {
                world.create(topic, partitions);
                Ok(())
            }
        }
    }

    async fn read(
        &self,
        topic: &Topic,
        partition: u32,
        offset: u64,
        max_records: usize,
    ) -> Result<Fetched, CatalogError> {
        let world = self.group.world();
        let logs = world.topics.get(topic).ok_or_else(|| CatalogError::UnknownTopic(topic.clone()))?;
        let log = logs.get(partition as usize);
        let log = log.ok_or_else(|| CatalogError::UnknownPartition(topic.clone(), partition))?;
        Ok(page(Stream::Source, log, offset, max_records))
    }

    async fn units(&self, function: &FunctionName) -> Result<Vec<UnitInfo>, CatalogError> {
        let world = self.group.world();
        Ok(world.units.keys().filter(|unit| unit.function == *function).map(|unit| describe(&world, unit)).collect())
    }

    async fn letters(
        &self,
        function: &FunctionName,
        after: Option<&LetterId>,
        max: usize,
    ) -> Result<Vec<StoredLetter>, CatalogError> {
        let world = self.group.world();
        let of_function = world.letters.iter().filter(|((of, _), _)| of == function);
        let follows = of_function.filter(|((_, id), _)| after.is_none_or(|after| id > after));
        Ok(follows.take(max).map(|((of, id), letter)| letter.stored(of, id)).collect())
    }

    async fn letter(&self, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, CatalogError> {
        let world = self.group.world();
        let letter = world.letters.get(&(function.clone(), id.clone()));
        let unknown = || CatalogError::UnknownLetter(function.clone(), id.clone());
        Ok(letter.ok_or_else(unknown)?.stored(function, id))
    }

    async fn open_letters(&self, function: &FunctionName) -> Result<u64, CatalogError> {
        let world = self.group.world();
        let open = |((of, _), letter): &(&(FunctionName, LetterId), &Letter)| {
            of == function && letter.status == LetterStatus::Open
        };
        Ok(world.letters.iter().filter(open).count() as u64)
    }

    async fn state(&self, unit: &Unit, range: StateRange) -> Result<Vec<StateEntry>, CatalogError> {
        let state = self.group.world().state_of(unit);
        let from = range.after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = state.range((from, Bound::Unbounded)).filter(|(key, _)| key.starts_with(&*range.prefix));
        let mut bytes = 0;
        let fits = entries.take(range.max).take_while(|(key, value)| {
            let first = bytes == 0;
            bytes += key.len() + value.len();
            first || bytes <= range.max_bytes
        });
        Ok(fits.map(|(key, value)| StateEntry { key: key.clone(), value: value.clone() }).collect())
    }

    async fn act_on_letters(
        &self,
        function: &FunctionName,
        ids: &[LetterId],
        action: LetterAction,
        force: Force,
    ) -> Result<(), CatalogError> {
        let mut world = self.group.world();
        let ids: std::collections::BTreeSet<_> = ids.iter().collect();
        for id in &ids {
            let (function, id) = (function.clone(), (*id).clone());
            match world.letters.get(&(function.clone(), id.clone())) {
                None => return Err(CatalogError::UnknownLetter(function, id)),
                Some(letter) if letter.status != LetterStatus::Open && force == Force::No => {
                    return Err(CatalogError::NotOpen { function, id, status: letter.status });
                }
                Some(_) => {}
            }
        }
        for id in ids {
            world.act(function, id, &action);
        }
        drop(world);
        self.group.appended.notify_waiters();
        Ok(())
    }
}

/// At most this many records from an offset on.
pub(super) fn page(stream: Stream, log: &[Record], from: u64, max_records: usize) -> Fetched {
    let start = usize::try_from(from).map_or(log.len(), |start| start.min(log.len()));
    let records: Vec<_> = (from..).zip(log[start..].iter().take(max_records).cloned()).collect();
    Fetched::new(stream, from, records)
}

fn describe(world: &World, unit: &Unit) -> UnitInfo {
    let progress = world.units.get(unit).map(|stored| stored.progress.clone()).unwrap_or_default();
    let source = world.log(&unit.topic, unit.partition);
    let resume = usize::try_from(progress.source.resume).expect("an index");
    UnitInfo {
        unit: unit.clone(),
        source_next: source.len() as u64,
        oldest_unsettled_at: source.get(resume).map(|record| record.timestamp),
        redrive_next: world.redrive.get(unit).map_or(0, |log| log.len() as u64),
        not_records: 0,
        progress,
    }
}
