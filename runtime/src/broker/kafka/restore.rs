//! What a newly assigned unit remembers: its idempotency keys and its state, read from their topics up to their ends.
//!
//! Commit markers reach partitions independently of one another, so the newest commit can be hidden behind the last stable
//! offset of the keys' partition although the position that it contains is committed already. So the end is asked for with
//! open transactions included, and waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_core::idempotency::Window;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};

use super::clients::{
    Clients, Quiet, REQUEST_TIMEOUT, at, bounds, has_reached, partitions, unreachable_broker, unsigned,
};
use super::native::TopicId;
use super::reading::goes_on_after;
use super::values::{self, Values};
use super::{keys, native, overflow};
use crate::broker::Error;

/// Between two looks at a partition whose end is still hidden behind an open transaction.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Between two looks at whether anybody still waits for what is read.
const GLANCE: Duration = Duration::from_millis(100);
/// How often a restore that takes long says how far it is.
const TELL: Duration = Duration::from_secs(3);

/// What some partitions of one source topic remember of one function.
pub(super) struct Past<'a> {
    pub(super) clients: &'a Clients,
    pub(super) function: &'a FunctionName,
    pub(super) source: &'a Topic,
    /// Whether anybody still waits for a partition. Where nobody does, what is found of it is not all.
    pub(super) is_wanted: &'a dyn Fn(u32) -> bool,
    /// Is told how many more records were read, while they are read.
    pub(super) count: &'a dyn Fn(u64),
}

/// What the state's topic has, by partition.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) values: BTreeMap<u32, Values>,
    /// The newest progress that was too much for a position's metadata; it may be of use no more.
    pub(super) overflow: BTreeMap<u32, Record>,
    /// How many records it was read from.
    pub(super) records: u64,
}

/// A partition that is read.
struct Left {
    next: u64,
    end: u64,
}

/// Offsets that are still to be read.
fn offsets(left: &BTreeMap<u32, Left>) -> u64 {
    left.values().map(|one| one.end - one.next).sum()
}

impl Past<'_> {
    /// What the source is called by. Blocks.
    pub(super) fn source_id(&self) -> Result<TopicId, Error> {
        let observer = self.clients.observer()?;
        native::topic_id(observer.client(), self.source.as_str(), REQUEST_TIMEOUT)
            .map_err(|code| Error::Transient(format!("Kafka does not tell of topic `{}`: {code}", self.source)))
    }

    /// Puts the keys of each partition that were committed at `oldest` or later into its window, without those that are of an
    /// earlier topic of the source's name. Says how many records there were: at most as many as there were commits since. Blocks.
    pub(super) fn keys(
        &self,
        source_id: TopicId,
        oldest: Timestamp,
        windows: &mut BTreeMap<u32, Window>,
    ) -> Result<u64, Error> {
        let topic = self.clients.names.keys(self.function, self.source).map_err(|e| Error::Fatal(e.to_string()))?;
        let topic = topic.as_str();
        let reader = self.clients.reader()?;
        let ends = self.stable_ends(&reader, topic, windows.keys().copied())?;
        if ends.is_empty() {
            return Ok(0);
        }
        let millis = i64::try_from(oldest.as_millis()).unwrap_or(i64::MAX);
        let times = partitions(ends.keys().map(|partition| (topic, *partition, Offset::Offset(millis))));
        let found =
            reader.offsets_for_times(times, REQUEST_TIMEOUT).map_err(|e| unreachable_broker("find a time", &e))?;
        let mut left = BTreeMap::new();
        for element in found.elements() {
            let partition = unsigned(element.partition());
            // A partition without a record that young has no such offset.
            if let (Offset::Offset(start), Some(end)) = (element.offset(), ends.get(&partition)) {
                left.insert(partition, Left { next: u64::try_from(start).unwrap_or_default(), end: *end });
            }
        }
        self.read(&reader, topic, left, |partition, message| {
            let Some(window) = windows.get_mut(&partition) else { return };
            // Offsets began anew with the topic, and with them the ids of events that have none of their own.
            if message.key().is_some_and(|of| of != source_id.as_bytes()) {
                return;
            }
            match keys::decode(&self.unit(partition), message.payload().unwrap_or_default()) {
                // The first ones can be older than asked for, within the broker's millisecond.
                Ok((_, keys)) if keys.len() == 0 => window.clear(),
                Ok((committed_at, keys)) if committed_at >= oldest => window.insert(committed_at, keys),
                Ok(_) => {}
                Err(error) => {
                    let offset = message.offset();
                    tracing::error!(topic, partition, offset, %error, "Idempotency keys cannot be read and are left out.");
                }
            }
        })
    }

    /// What the state's topic has of some partitions. Blocks.
    pub(super) fn stored(&self, wanted: &[u32]) -> Result<Stored, Error> {
        let topic = self.clients.names.state(self.function, self.source).map_err(|e| Error::Fatal(e.to_string()))?;
        let topic = topic.as_str();
        let reader = self.clients.reader()?;
        let ends = self.stable_ends(&reader, topic, wanted.iter().copied())?;
        let (mut stored, mut damaged) = (Stored::default(), None);
        stored.records = self.read_from_beginning(&reader, topic, ends, |partition, message| {
            let (offset, record) = native::read(message);
            let all = &mut stored.values;
            if overflow::is_it(&record) {
                stored.overflow.insert(partition, record);
            } else if let Err(error) = values::take(&self.unit(partition), &record, all.entry(partition).or_default()) {
                damaged = Some(format!("the state at {topic}/{partition}/{offset} cannot be read: {error}"));
            }
        })?;
        // A handler that finds less than it wrote would do the wrong thing, and nobody would know.
        damaged.map_or(Ok(stored), |damage| Err(Error::Transient(damage)))
    }

    fn unit(&self, partition: u32) -> Unit {
        Unit { function: self.function.clone(), topic: self.source.clone(), partition }
    }

    /// Where partitions end that hold records, open transactions included, once those have ended. Blocks.
    pub(super) fn stable_ends(
        &self,
        reader: &BaseConsumer<Quiet>,
        topic: &str,
        wanted: impl Iterator<Item = u32>,
    ) -> Result<BTreeMap<u32, u64>, Error> {
        let observer = self.clients.observer()?;
        let mut ends = BTreeMap::new();
        for partition in wanted {
            ends.insert(partition, bounds(&observer, topic, partition)?.1);
        }
        ends.retain(|_, end| *end > 0);
        for (partition, end) in &ends {
            wait_until_stable(reader, topic, *partition, *end, || (self.is_wanted)(*partition))?;
        }
        Ok(ends)
    }

    /// Reads partitions whose ends are given from their beginning. Says how many records there were. Blocks.
    pub(super) fn read_from_beginning(
        &self,
        reader: &BaseConsumer<Quiet>,
        topic: &str,
        ends: BTreeMap<u32, u64>,
        each: impl FnMut(u32, &BorrowedMessage<'_>),
    ) -> Result<u64, Error> {
        let mut left = BTreeMap::new();
        for (partition, end) in ends {
            let (earliest, _) = bounds(reader, topic, partition)?;
            left.insert(partition, Left { next: earliest, end });
        }
        self.read(reader, topic, left, each)
    }

    /// Reads until each partition's end was reached or nobody wants it any more; says how many records there were.
    fn read(
        &self,
        reader: &BaseConsumer<Quiet>,
        topic: &str,
        mut left: BTreeMap<u32, Left>,
        mut each: impl FnMut(u32, &BorrowedMessage<'_>),
    ) -> Result<u64, Error> {
        left.retain(|_, one| one.next < one.end);
        if left.is_empty() {
            return Ok(0);
        }
        let starts = left.iter().map(|(partition, one)| (topic, *partition, at(one.next)));
        reader.assign(&partitions(starts)).map_err(|e| unreachable_broker("restore", &e))?;
        let (all, mut records, mut counted) = (offsets(&left), 0, 0);
        let [mut heard, mut looked, mut told] = [Instant::now(); 3];
        while !left.is_empty() {
            match reader.poll(GLANCE) {
                Some(Ok(message)) => {
                    let partition = unsigned(message.partition());
                    // One that is done or not wanted can still have something in the queue.
                    if let Some(one) = left.get_mut(&partition) {
                        one.next = u64::try_from(message.offset()).unwrap_or_default() + 1;
                        records += 1;
                        each(partition, &message);
                        if one.next >= one.end || !(self.is_wanted)(partition) {
                            left.remove(&partition);
                        }
                    }
                    heard = Instant::now();
                }
                // Before the end it is not the end, and more follows.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    let partition = unsigned(partition);
                    if left.get(&partition).is_some_and(|one| has_reached(reader, topic, partition, one.end)) {
                        left.remove(&partition);
                    }
                    heard = Instant::now();
                }
                Some(Err(error)) if goes_on_after(&error) => {}
                Some(Err(error)) => return Err(unreachable_broker("restore", &error)),
                None if heard.elapsed() >= REQUEST_TIMEOUT => {
                    return Err(Error::Transient(
                        "Kafka gave nothing of what is to be restored for ten seconds".to_owned(),
                    ));
                }
                None => {}
            }
            if looked.elapsed() >= GLANCE {
                looked = Instant::now();
                left.retain(|partition, _| (self.is_wanted)(*partition));
                (self.count)(records - std::mem::replace(&mut counted, records));
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                let (function, read) = (self.function, all - offsets(&left));
                tracing::info!(%function, topic, records, offsets = read, of = all, "It is being restored.");
            }
        }
        (self.count)(records - counted);
        Ok(records)
    }
}

/// Waits out transactions that are open below an end, as long as that is wanted. Blocks.
pub(super) fn wait_until_stable(
    reader: &BaseConsumer<Quiet>,
    topic: &str,
    partition: u32,
    end: u64,
    is_wanted: impl Fn() -> bool,
) -> Result<(), Error> {
    while is_wanted() {
        let (_, stable) = bounds(reader, topic, partition)?;
        if stable >= end {
            return Ok(());
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
    Ok(())
}
