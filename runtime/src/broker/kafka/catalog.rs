//! Listing and administration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_core::letter;
use millrace_core::limits::{LETTERS_AT_ONCE, PARTITIONS_MAX};
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{Stream, StreamProgress};
use millrace_core::time::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;

use super::KafkaLog;
use super::clients::{Quiet, REQUEST_TIMEOUT, lock, unreachable_broker};
use super::letters::Letters;
use super::member::Committed;
use super::member::commit::changed;
use super::record::Placed;
use super::restore::Past;
use super::status::StatusChange;
use super::{native, overflow, topics, values};
use crate::broker::{
    Catalog, CatalogError, Error, Fetched, Force, GroupFigures, LetterAction, LetterId, LetterStatus, PartitionInfo,
    PublishError, Retention, Spot, StateEntry, StateRange, StoredLetter, TopicInfo, UnitInfo,
};

/// Records that are looked at to tell how much of what is left is none.
const LAG_LOOKED_AT: usize = 200;

impl KafkaLog {
    /// Blocks.
    fn check_partition(&self, topic: &Topic, partition: u32) -> Result<(), CatalogError> {
        let count = self.partition_count(topic.as_str())?.ok_or_else(|| CatalogError::UnknownTopic(topic.clone()))?;
        if partition >= count {
            return Err(CatalogError::UnknownPartition(topic.clone(), partition));
        }
        Ok(())
    }
}

impl Catalog for KafkaLog {
    async fn partition_counts(&self) -> Result<BTreeMap<String, u32>, CatalogError> {
        self.blocking(|log| Ok(counted(log)?)).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, CatalogError> {
        self.blocking(|log| {
            let mut topics = Vec::new();
            for (name, partitions) in counted(log)? {
                let info = |partition| {
                    let (earliest, next) = log.reading().bounds(&name, partition)?;
                    Ok(PartitionInfo { earliest, next, size_bytes: 0 })
                };
                let partitions = (0..partitions).map(info).collect::<Result<_, Error>>()?;
                topics.push(TopicInfo { internal: log.clients().names.is_reserved(&name), partitions, name });
            }
            Ok(topics)
        })
        .await
    }

    async fn kept(&self) -> Result<Vec<TopicInfo>, CatalogError> {
        Ok(Vec::new())
    }

    async fn create_topic(&self, topic: Topic, partitions: u32) -> Result<(), CatalogError> {
        self.make(topic, partitions, Retention::default()).await
    }

    async fn read(
        &self,
        topic: &Topic,
        partition: u32,
        offset: u64,
        max_records: usize,
    ) -> Result<Fetched, CatalogError> {
        let topic = topic.clone();
        self.blocking(move |log| {
            log.check_partition(&topic, partition)?;
            let page = log.reading().page(topic.as_str(), partition, offset, max_records)?;
            Ok(Fetched { stream: Stream::Source, records: page.records, next: page.next })
        })
        .await
    }

    async fn find(&self, topic: &Topic, partition: u32, spot: Spot) -> Result<u64, CatalogError> {
        let topic = topic.clone();
        self.blocking(move |log| {
            log.check_partition(&topic, partition)?;
            Ok(log.reading().find(topic.as_str(), partition, spot)?)
        })
        .await
    }

    async fn units(&self, function: &FunctionName) -> Result<Vec<UnitInfo>, CatalogError> {
        let function = function.clone();
        self.blocking(move |log| {
            let found = log.positions(&function)?;
            Ok(found.into_iter().map(|one| describe(log, &function, one)).collect::<Result<_, _>>()?)
        })
        .await
    }

    fn group(&self, function: &FunctionName) -> GroupFigures {
        lock(&self.0.running).get(function).map(|running| *lock(&running.figures)).unwrap_or_default()
    }

    fn stopped(&self, function: &FunctionName) -> Option<String> {
        lock(&self.0.running).get(function).and_then(|running| running.stopped.get().cloned())
    }

    async fn letters(
        &self,
        function: &FunctionName,
        after: Option<&LetterId>,
        max: usize,
    ) -> Result<Vec<StoredLetter>, CatalogError> {
        let (name, after) = (function.clone(), after.cloned());
        self.with_letters(function, move |log, letters| {
            let found = letters.after(after.as_ref(), max);
            Ok(found.iter().map(|(id, entry)| entry.stored(log, &name, id)).collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn letter(&self, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, CatalogError> {
        let (name, id) = (function.clone(), id.clone());
        self.with_letters(function, move |log, letters| {
            let entry = letters.get(&id).ok_or_else(|| CatalogError::UnknownLetter(name.clone(), id.clone()))?;
            Ok(entry.stored(log, &name, &id)?)
        })
        .await
    }

    async fn open_letters(&self, function: &FunctionName) -> Result<u64, CatalogError> {
        self.with_letters(function, |_, letters| Ok(letters.open())).await
    }

    async fn state(&self, unit: &Unit, range: StateRange) -> Result<Vec<StateEntry>, CatalogError> {
        let unit = unit.clone();
        self.blocking(move |log| {
            let (function, source, partition) = (&unit.function, &unit.topic, unit.partition);
            let topic = log.clients().names.state(function, source).map_err(|e| Error::Fatal(e.to_string()))?;
            if log.partition_count(topic.as_str())?.is_none_or(|count| partition >= count) {
                return Ok(Vec::new());
            }
            let past = Past { clients: log.clients(), function, source, is_wanted: &|_| true, count: &|_| () };
            let found = past.stored(&[partition])?.values;
            Ok(found.get(&partition).map(|found| values::list(found, &range)).unwrap_or_default())
        })
        .await
    }

    async fn act_on_letters(
        &self,
        function: &FunctionName,
        ids: &[LetterId],
        action: LetterAction,
        force: Force,
    ) -> Result<(), CatalogError> {
        let ids: Vec<LetterId> = ids.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let name = function.clone();
        let looked_at = ids.clone();
        self.with_letters(function, move |_, letters| {
            looked_at.iter().try_for_each(|id| look_at(letters, &name, id, force))
        })
        .await?;
        for step in ids.chunks(LETTERS_AT_ONCE) {
            let (name, step, action) = (function.clone(), step.to_vec(), action.clone());
            let records = self
                .with_letters(function, move |log, letters| {
                    let acting = step.iter().map(|id| act(log, letters, &name, id, &action));
                    Ok(acting.collect::<Result<Vec<_>, CatalogError>>()?.concat())
                })
                .await?;
            self.publisher().publish(records).await.map_err(|e| match e {
                PublishError::Broker(error) => CatalogError::Broker(error),
                error => CatalogError::Broker(Error::Transient(error.to_string())),
            })?;
        }
        Ok(())
    }
}

/// All topics but the broker's own, such as `__consumer_offsets`.
fn counted(log: &KafkaLog) -> Result<BTreeMap<String, u32>, Error> {
    let mut counts = log.partition_counts()?;
    counts.retain(|name, _| !name.starts_with("__"));
    Ok(counts)
}

/// Whether a letter may change.
fn look_at(letters: &Letters, function: &FunctionName, id: &LetterId, force: Force) -> Result<(), CatalogError> {
    let (function, id) = (function.clone(), id.clone());
    match letters.get(&id) {
        None => Err(CatalogError::UnknownLetter(function, id)),
        Some(entry) if entry.status != LetterStatus::Open && force == Force::No => {
            Err(CatalogError::NotOpen { function, id, status: entry.status })
        }
        Some(_) => Ok(()),
    }
}

/// What one action writes.
fn act(
    log: &KafkaLog,
    letters: &Letters,
    function: &FunctionName,
    id: &LetterId,
    action: &LetterAction,
) -> Result<Vec<Placed>, CatalogError> {
    let invalid = |e: millrace_core::name::InvalidName| CatalogError::Broker(Error::Fatal(e.to_string()));
    let (names, now) = (&log.clients().names, log.clock().now());
    let statuses = names.statuses(function).map_err(invalid)?;
    let change = match action {
        LetterAction::Redrive => StatusChange::Redriven,
        LetterAction::Resolve(note) => StatusChange::Resolved(note.clone()),
        LetterAction::Discard(reason) => StatusChange::Discarded(reason.clone()),
    };
    let mut records = vec![changed(&statuses, id, now, &change)];
    if *action == LetterAction::Redrive {
        let entry = letters.get(id).ok_or_else(|| CatalogError::UnknownLetter(function.clone(), id.clone()))?;
        let mut record = letter::redriven(&entry.stored(log, function, id)?.record, entry.redriven.saturating_add(1));
        record.timestamp = now;
        let topic = names.redrive(function, &id.topic).map_err(invalid)?;
        records.push(Placed { topic, partition: id.partition, record });
    }
    Ok(records)
}

/// The units of a function: the partitions of its redrive topics are those of its sources.
fn units_of(log: &KafkaLog, function: &FunctionName) -> Result<Vec<(Topic, u32)>, Error> {
    let mut units = Vec::new();
    for (name, count) in log.partition_counts()? {
        if let Some(source) = log.clients().names.source_of_redrive(function, &name) {
            units.extend((0..count).map(|partition| (source.clone(), partition)));
        }
    }
    units.sort();
    Ok(units)
}

/// Its position, and what lies before it. What follows the position and is no record, such as the mark of a transaction, is
/// nothing to wait for.
fn describe(log: &KafkaLog, function: &FunctionName, found: Committed) -> Result<UnitInfo, Error> {
    let Committed { topic, partition, progress, is_short, .. } = found;
    let mut progress = progress.unwrap_or_default();
    let (names, invalid) = (&log.clients().names, |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string()));
    let redrives = names.redrive(function, &topic).map_err(invalid)?;
    let unit = Unit { function: function.clone(), topic: topic.clone(), partition };
    if is_short {
        let state = names.state(function, &topic).map_err(invalid)?;
        progress = overflow::find(log.reading(), &state, &unit, progress.commits)?.unwrap_or(progress);
    }
    let source = left(log, topic.as_str(), partition, &progress.source)?;
    let redrive = left(log, redrives.as_str(), partition, &progress.redrive)?;
    Ok(UnitInfo {
        unit,
        progress,
        source_next: source.end,
        oldest_unsettled_at: source.oldest_at,
        redrive_next: redrive.end,
        not_records: source.not_records + redrive.not_records,
    })
}

/// What a log has beyond a position.
struct Left {
    end: u64,
    oldest_at: Option<Timestamp>,
    not_records: u64,
}

fn left(log: &KafkaLog, topic: &str, partition: u32, progress: &StreamProgress) -> Result<Left, Error> {
    let resume = progress.resume;
    let page = log.reading().page(topic, partition, resume, LAG_LOOKED_AT)?;
    let Some((_, oldest)) = page.records.first() else {
        return Ok(Left { end: resume, oldest_at: None, not_records: 0 });
    };
    let end = page.end.max(page.next);
    let records = page.records.iter().filter(|(offset, _)| !progress.is_settled(*offset)).count() as u64;
    let looked_at = progress.unsettled_below(page.next);
    let beyond = progress.unsettled_below(end).saturating_sub(looked_at);
    let not_records = looked_at.saturating_sub(records);
    // Of the rest the same share.
    let more = (u128::from(beyond) * u128::from(not_records)).checked_div(u128::from(looked_at)).unwrap_or(0);
    let not_records = not_records + u64::try_from(more).expect("a share of a number is smaller");
    Ok(Left { end, oldest_at: Some(oldest.timestamp), not_records })
}

impl KafkaLog {
    /// Makes a topic unless it exists with this number of partitions.
    pub(super) async fn make(&self, topic: Topic, partitions: u32, retention: Retention) -> Result<(), CatalogError> {
        if self.exists(&topic, partitions).await? {
            return Ok(());
        }
        let needed = topics::Needed::retained_events(topic.clone(), partitions, retention);
        topics::ask_for_events(self.admin(), self.replication(), &needed, true).await?;
        self.blocking(move |log| Ok(log.wait_for_topics(&[topic])?)).await
    }

    /// Whether the broker would make such a topic, unless it is there.
    pub(super) async fn may_make(
        &self,
        topic: Topic,
        partitions: u32,
        retention: Retention,
    ) -> Result<(), CatalogError> {
        if self.exists(&topic, partitions).await? {
            return Ok(());
        }
        let needed = topics::Needed::retained_events(topic, partitions, retention);
        topics::ask_for_events(self.admin(), self.replication(), &needed, false).await
    }

    /// Whether a topic exists. Refuses another number of partitions than it has, and a name or a number that no topic for events can have.
    async fn exists(&self, topic: &Topic, partitions: u32) -> Result<bool, CatalogError> {
        let name = topic.clone();
        let existing = self.blocking(move |log| Ok(log.partition_count(name.as_str())?)).await?;
        match existing {
            Some(existing) if existing == partitions => return Ok(true),
            Some(existing) => {
                return Err(CatalogError::PartitionCount { topic: topic.clone(), existing, wanted: partitions });
            }
            None => {}
        }
        let refuse = |reason| Err(CatalogError::Broker(Error::Transient(reason)));
        if self.clients().names.is_reserved(topic.as_str()) {
            return refuse(format!("topic `{topic}` would begin with the runtime's own prefix: choose another name"));
        }
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return refuse(format!(
                "topic `{topic}` cannot have {partitions} partitions: ask for 1 to {PARTITIONS_MAX}"
            ));
        }
        Ok(false)
    }

    /// What is committed for a function, whoever runs it. No transaction is waited for: while one is open, what was committed
    /// before is told.
    fn positions(&self, function: &FunctionName) -> Result<Vec<Committed>, Error> {
        let names = &self.clients().names;
        let registry = self.registry_topic()?;
        let ask = |teller: &BaseConsumer<Quiet>| {
            native::group_positions(teller.client(), &names.group(function), (registry.as_str(), REQUEST_TIMEOUT))
        };
        let teller = Arc::clone(&*lock(&self.0.teller));
        let found = match ask(&teller) {
            Err(code) if code != RDKafkaErrorCode::GroupAuthorizationFailed => {
                // It may have asked a coordinator that is none any more, and would go on doing so.
                let anew = Arc::new(self.clients().outsider(&names.readers())?);
                let mut current = lock(&self.0.teller);
                if Arc::ptr_eq(&current, &teller) {
                    *current = Arc::clone(&anew);
                }
                drop(current);
                ask(&anew)
            }
            found => found,
        };
        let found = found.map_err(|code| unreachable_broker("tell what is committed", &code))?;
        let found = native::by_partition(&found);
        let units = units_of(self, function)?.into_iter().map(|(topic, partition)| {
            let position = found.get(&(topic.as_str(), partition)).copied();
            Committed::read(&Unit { function: function.clone(), topic, partition }, position)
        });
        units.collect()
    }

    /// Looks at a function's letters as they are now.
    async fn with_letters<T: Send + 'static>(
        &self,
        function: &FunctionName,
        look: impl FnOnce(&Self, &Letters) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let function = function.clone();
        self.blocking(move |log| {
            let letters = log.letters_of(&function);
            let mut letters = lock(&letters);
            letters.catch_up(log, &function)?;
            look(log, &letters)
        })
        .await
    }

    /// Does something that waits for the broker.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        action: impl FnOnce(&Self) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let log = Self(Arc::clone(&self.0));
        let result = tokio::task::spawn_blocking(move || action(&log)).await;
        result.map_err(|e| CatalogError::Broker(Error::Transient(format!("asking Kafka was interrupted: {e}"))))?
    }
}
