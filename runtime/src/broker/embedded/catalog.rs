//! Listing and administration.

use std::sync::Arc;

use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::Stream;

use super::EmbeddedLog;
use super::decision::Decision;
use super::log::PartitionLog;
use super::read::{self, Limits, ReadError};
use super::state::{State, UnitState};
use super::{letters, values};
use crate::broker::{
    Catalog, CatalogError, Error, Fetched, Force, LetterAction, LetterId, StateEntry, StateRange, StoredLetter,
    TopicInfo, UnitInfo,
};

/// Soft bound of what one read of a topic answers.
const READ_MAX_BYTES: usize = 4 * 1024 * 1024;

impl Catalog for EmbeddedLog {
    async fn topics(&self) -> Result<Vec<TopicInfo>, CatalogError> {
        let topics = self.state().topics().into_iter().map(|topic| TopicInfo {
            name: topic.name.to_string(),
            internal: topic.kind.is_internal() || self.state().names.is_reserved(&topic.name),
            partitions: topic.partitions.iter().map(|log| log.info()).collect(),
        });
        Ok(topics.collect())
    }

    async fn create_topic(&self, topic: Topic, partitions: u32) -> Result<(), CatalogError> {
        self.alone(move |committer| committer.create_topic(topic, partitions)).await?
    }

    async fn read(
        &self,
        topic: &Topic,
        partition: u32,
        offset: u64,
        max_records: usize,
    ) -> Result<Fetched, CatalogError> {
        let found = self.state().topic(topic).ok_or_else(|| CatalogError::UnknownTopic(topic.clone()))?;
        let log = found.partitions.get(partition as usize);
        let log = log.ok_or_else(|| CatalogError::UnknownPartition(topic.clone(), partition))?;
        let limits = Limits { max_records, max_bytes: READ_MAX_BYTES };
        loop {
            let offset = offset.max(log.start().earliest);
            if offset >= log.end() || max_records == 0 {
                return Ok(Fetched::new(Stream::Source, offset, Vec::new()));
            }
            match read::records_async(&self.state().storage, log, offset, limits).await {
                Ok(records) => return Ok(Fetched::new(Stream::Source, offset, records)),
                Err(ReadError::Missing(_)) if log.start().earliest > offset => {}
                Err(e) => return Err(e.at(log, offset).into()),
            }
        }
    }

    async fn units(&self, function: &FunctionName) -> Result<Vec<UnitInfo>, CatalogError> {
        let mut units = Vec::new();
        for unit in self.state().units_of(function) {
            units.push(describe(self.state(), &unit).await?);
        }
        Ok(units)
    }

    async fn letters(
        &self,
        function: &FunctionName,
        after: Option<&LetterId>,
        max: usize,
    ) -> Result<Vec<StoredLetter>, CatalogError> {
        let (function, after) = (function.clone(), after.cloned());
        self.blocking(move |state| letters::list(state, &function, after.as_ref(), max)).await?
    }

    async fn letter(&self, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, CatalogError> {
        let (function, id) = (function.clone(), id.clone());
        self.blocking(move |state| letters::one(state, &function, &id)).await?
    }

    async fn open_letters(&self, function: &FunctionName) -> Result<u64, CatalogError> {
        Ok(self.state().open_letters(function))
    }

    async fn state(&self, unit: &Unit, range: StateRange) -> Result<Vec<StateEntry>, CatalogError> {
        let Some(unit) = self.state().unit(unit) else { return Ok(Vec::new()) };
        Ok(self.blocking(move |state| values::list(state, &unit, &range)).await??)
    }

    async fn act_on_letters(
        &self,
        function: &FunctionName,
        ids: &[LetterId],
        action: LetterAction,
        force: Force,
    ) -> Result<(), CatalogError> {
        self.decide(Decision { function: function.clone(), action, force }, ids).await
    }
}

async fn describe(state: &State, unit: &UnitState) -> Result<UnitInfo, Error> {
    let progress = unit.committed();
    let oldest = oldest_unsettled(state, &unit.source, progress.source.resume).await?;
    Ok(UnitInfo {
        unit: unit.unit.clone(),
        source_next: unit.source.end(),
        oldest_unsettled_at: oldest,
        redrive_next: unit.redrive.end(),
        not_records: 0,
        progress: (*progress).clone(),
    })
}

async fn oldest_unsettled(
    state: &State,
    log: &Arc<PartitionLog>,
    resume: u64,
) -> Result<Option<millrace_core::time::Timestamp>, Error> {
    let from = resume.max(log.start().earliest);
    if from >= log.end() {
        return Ok(None);
    }
    match read::records_async(&state.storage, log, from, Limits { max_records: 1, max_bytes: 1 }).await {
        Ok(records) => Ok(records.first().map(|(_, record)| record.timestamp)),
        Err(ReadError::Missing(_)) if log.start().earliest > from => Ok(None),
        Err(e) => Err(e.at(log, from)),
    }
}
