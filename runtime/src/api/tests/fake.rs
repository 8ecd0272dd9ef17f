//! A log in memory: keeps records, letters and units, and refuses what it is told to refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::partition::partition_of;
use millrace_core::progress::Stream;
use millrace_core::record::Record;
use tokio::sync::{mpsc, watch};

use super::super::types;
use super::NOW;
use crate::broker::{
    Assignment, Broker, Catalog, CatalogError, Commit, CommitOutcome, Error, FetchError, Fetched, Force, GroupFigures,
    LetterAction, LetterId, LetterStatus, Outgoing, Partition, PartitionInfo, Placement, Placing, PublishError,
    StateEntry, StateRange, StateReader, StoredLetter, Subscription, TopicInfo, UnitInfo, Wanted,
};

#[derive(Debug)]
pub(super) struct Fake {
    state: Mutex<State>,
    /// Publishing waits while this is true.
    pub(super) held: watch::Sender<bool>,
    /// How many publishes have begun.
    pub(super) begun: watch::Sender<usize>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) topics: BTreeMap<String, Vec<Vec<Record>>>,
    pub(super) internal: BTreeSet<String>,
    pub(super) letters: BTreeMap<(FunctionName, LetterId), StoredLetter>,
    pub(super) units: Vec<UnitInfo>,
    /// Tells nothing of functions.
    pub(super) is_silent: bool,
    /// Why functions have stopped.
    pub(super) stopped: Option<String>,
    /// What the next publish ends with.
    pub(super) refusal: Option<PublishError>,
    /// What the next change of letters ends with.
    pub(super) letter_refusal: Option<CatalogError>,
    /// Sizes of the changes of letters so far.
    pub(super) changes: Vec<usize>,
    /// State of handlers, by key.
    pub(super) stored: Vec<(Unit, StateEntry)>,
    pub(super) assignments: Vec<mpsc::Sender<Assignment<Broken>>>,
}

/// A partition of a log that cannot go on.
#[derive(Debug)]
pub(super) struct Broken(pub(super) Unit);

/// Its state cannot be read either.
#[derive(Clone, Debug)]
pub(super) struct Unreadable;

impl StateReader for Unreadable {
    fn get(&self, _: Vec<ByteString>) -> impl Future<Output = Result<Vec<Option<Bytes>>, Error>> + Send + 'static {
        std::future::ready(Err(Error::Fatal("a sync failed".to_owned())))
    }

    fn keys(
        &self,
        _: Option<ByteString>,
        _: usize,
    ) -> impl Future<Output = Result<Vec<ByteString>, Error>> + Send + 'static {
        std::future::ready(Err(Error::Fatal("a sync failed".to_owned())))
    }
}

impl Partition for Broken {
    type State = Unreadable;

    fn unit(&self) -> &Unit {
        &self.0
    }

    fn state(&self) -> Unreadable {
        Unreadable
    }

    async fn fetch(&mut self, _: Wanted) -> Result<Fetched, FetchError> {
        Err(Error::Fatal("a sync failed".to_owned()).into())
    }

    fn commit(&mut self, _: Commit) -> impl Future<Output = Result<CommitOutcome, Error>> + Send + 'static {
        std::future::ready(Err(Error::Fatal("a sync failed".to_owned())))
    }
}

impl Fake {
    pub(super) fn with_topics(topics: &[(&str, usize)]) -> Self {
        let topics = topics.iter().map(|&(name, partitions)| (name.to_owned(), vec![Vec::new(); partitions])).collect();
        let state = State { topics, ..State::default() };
        Self { state: Mutex::new(state), held: watch::Sender::new(false), begun: watch::Sender::new(0) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// All records of a topic, in the order of partitions and offsets.
    pub(super) fn records(&self, topic: &str) -> Vec<Record> {
        self.lock().topics[topic].concat()
    }

    /// Makes a topic of the runtime's own.
    pub(super) fn add_internal(&self, name: &str) {
        let mut state = self.lock();
        state.topics.insert(name.to_owned(), vec![Vec::new()]);
        state.internal.insert(name.to_owned());
    }

    pub(super) fn refuse(&self, refusal: PublishError) {
        self.lock().refusal = Some(refusal);
    }
}

impl Broker for Fake {
    type Partition = Broken;

    async fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        self.begun.send_modify(|begun| *begun += 1);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        let mut state = self.lock();
        if let Some(refusal) = state.refusal.take() {
            return Err(refusal);
        }
        let unknown = records.iter().position(|outgoing| !state.topics.contains_key(outgoing.topic.as_str()));
        if let Some(index) = unknown {
            return Err(PublishError::UnknownTopic { index, topic: records[index].topic.clone() });
        }
        let place = |outgoing: Outgoing| {
            let partitions = state.topics.get_mut(outgoing.topic.as_str()).unwrap();
            let partition = match outgoing.placing {
                Placing::Hash(hash) => partition_of(hash, u32::try_from(partitions.len()).unwrap()),
                Placing::Partition(partition) => partition,
            };
            let log = &mut partitions[partition as usize];
            log.push(outgoing.record);
            Placement { partition, offset: log.len() as u64 - 1 }
        };
        Ok(records.into_iter().map(place).collect())
    }

    async fn subscribe(&self, _: Subscription) -> Result<mpsc::Receiver<Assignment<Broken>>, Error> {
        let (sender, receiver) = mpsc::channel(1);
        self.lock().assignments.push(sender);
        Ok(receiver)
    }
}

impl Catalog for Fake {
    async fn topics(&self) -> Result<Vec<TopicInfo>, CatalogError> {
        let state = self.lock();
        let partition = |log: &Vec<Record>| PartitionInfo {
            earliest: 0,
            next: log.len() as u64,
            size_bytes: log.iter().map(|record| record.size_bytes() as u64).sum(),
        };
        let topic = |(name, partitions): (&String, &Vec<Vec<Record>>)| TopicInfo {
            name: name.clone(),
            internal: state.internal.contains(name),
            partitions: partitions.iter().map(partition).collect(),
        };
        Ok(state.topics.iter().map(topic).collect())
    }

    async fn create_topic(&self, topic: Topic, partitions: u32) -> Result<(), CatalogError> {
        self.lock().topics.insert(topic.to_string(), vec![Vec::new(); partitions as usize]);
        Ok(())
    }

    async fn read(&self, topic: &Topic, partition: u32, offset: u64, max: usize) -> Result<Fetched, CatalogError> {
        let state = self.lock();
        let partitions = state.topics.get(topic.as_str()).ok_or(CatalogError::UnknownTopic(topic.clone()))?;
        let log = partitions.get(partition as usize);
        let log = log.ok_or(CatalogError::UnknownPartition(topic.clone(), partition))?;
        let all = (0..).zip(log.iter().cloned());
        let records: Vec<(u64, Record)> = all.skip_while(|(at, _)| *at < offset).take(max).collect();
        let next = records.last().map_or(offset, |(at, _)| at + 1);
        Ok(Fetched { stream: Stream::Source, records, next })
    }

    async fn units(&self, function: &FunctionName) -> Result<Vec<UnitInfo>, CatalogError> {
        let state = self.lock();
        if state.is_silent {
            return Err(Error::Transient("nobody answers".to_owned()).into());
        }
        Ok(state.units.iter().filter(|info| info.unit.function == *function).cloned().collect())
    }

    fn group(&self, _: &FunctionName) -> GroupFigures {
        let last_restore = Duration::from_millis(500);
        GroupFigures { assigned: 5, revoked: 4, fenced: 3, restoring: 2, restored_records: 1, last_restore }
    }

    fn stopped(&self, _: &FunctionName) -> Option<String> {
        self.lock().stopped.clone()
    }

    async fn letters(
        &self,
        function: &FunctionName,
        after: Option<&LetterId>,
        max: usize,
    ) -> Result<Vec<StoredLetter>, CatalogError> {
        let state = self.lock();
        let of_function = state.letters.iter().filter(|((f, id), _)| f == function && after.is_none_or(|a| id > a));
        Ok(of_function.map(|(_, letter)| letter.clone()).take(max).collect())
    }

    async fn letter(&self, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, CatalogError> {
        let found = self.lock().letters.get(&(function.clone(), id.clone())).cloned();
        found.ok_or_else(|| CatalogError::UnknownLetter(function.clone(), id.clone()))
    }

    async fn open_letters(&self, function: &FunctionName) -> Result<u64, CatalogError> {
        let is_open = |letter: &&StoredLetter| letter.function == *function && letter.status == LetterStatus::Open;
        Ok(self.lock().letters.values().filter(is_open).count() as u64)
    }

    async fn state(&self, unit: &Unit, range: StateRange) -> Result<Vec<StateEntry>, CatalogError> {
        let state = self.lock();
        let after = |key: &ByteString| range.after.as_ref().is_none_or(|after| key > after);
        let wanted = |entry: &&StateEntry| entry.key.starts_with(&*range.prefix) && after(&entry.key);
        let stored = state.stored.iter().filter(|(of, _)| of == unit).map(|(_, entry)| entry);
        Ok(stored.filter(wanted).take(range.max).cloned().collect())
    }

    async fn act_on_letters(
        &self,
        function: &FunctionName,
        ids: &[LetterId],
        action: LetterAction,
        force: Force,
    ) -> Result<(), CatalogError> {
        let mut state = self.lock();
        if let Some(refusal) = state.letter_refusal.take() {
            return Err(refusal);
        }
        for id in ids {
            let key = (function.clone(), id.clone());
            let letter = state.letters.get(&key);
            let letter = letter.ok_or_else(|| CatalogError::UnknownLetter(function.clone(), id.clone()))?;
            if letter.status != LetterStatus::Open && force == Force::No {
                let (function, id) = key;
                return Err(CatalogError::NotOpen { function, id, status: letter.status });
            }
        }
        state.changes.push(ids.len());
        for id in ids {
            let letter = state.letters.get_mut(&(function.clone(), id.clone())).unwrap();
            letter.status_at = NOW;
            (letter.status, letter.note) = match &action {
                LetterAction::Redrive => (LetterStatus::Redriven, None),
                LetterAction::Resolve(note) => (LetterStatus::Resolved, note.clone()),
                LetterAction::Discard(note) => (LetterStatus::Discarded, Some(note.clone())),
            };
        }
        Ok(())
    }
}

/// Where an answer says that a record is.
pub(super) fn place(partition: u32, offset: u64) -> types::Place {
    types::Place { partition, offset }
}
