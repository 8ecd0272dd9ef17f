//! What a newly assigned unit remembers: its idempotency keys and its state, read from their topics up to their ends.
//!
//! Commit markers reach partitions independently of one another, so the newest commit can be hidden behind the last stable
//! offset of the keys' partition although the position that it contains is committed already. So the end is asked for with
//! open transactions included, and waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::clients::{Clients, Quiet, REQUEST_TIMEOUT, bounds, partitions, unreachable_broker, unsigned};
use super::reading::is_mended_by_itself;
use super::values::{self, Values};
use super::{keys, record};
use crate::broker::{Error, KeyBlock};

/// Between two looks at a partition whose end is still hidden behind an open transaction.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Key blocks committed since `since`, of some partitions of one source topic, by partition. Blocks.
pub(super) fn keys(
    clients: &Clients,
    function: &FunctionName,
    source: &Topic,
    wanted: &[u32],
    since: Timestamp,
) -> Result<BTreeMap<u32, Vec<KeyBlock>>, Error> {
    let topic = clients.names.keys(function, source).map_err(|e| Error::Fatal(e.to_string()))?;
    let topic = topic.as_str();
    let ends = ends(&clients.observer()?, topic, wanted)?;
    let reader = clients.reader()?;
    for (partition, end) in &ends {
        wait_until_stable(&reader, topic, *partition, *end)?;
    }
    let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let times = partitions(wanted.iter().map(|partition| (topic, *partition, Offset::Offset(millis))));
    let found = reader.offsets_for_times(times, REQUEST_TIMEOUT).map_err(|e| unreachable_broker("find a time", &e))?;
    let mut left = BTreeMap::new();
    let mut starts = Vec::new();
    for element in found.elements() {
        let partition = unsigned(element.partition());
        // A partition without a record that young has no such offset.
        if let Offset::Offset(start) = element.offset()
            && let Some(end) = ends.get(&partition).filter(|end| u64::try_from(start).unwrap_or_default() < **end)
        {
            starts.push((topic, partition, Offset::Offset(start)));
            left.insert(partition, *end);
        }
    }
    let mut blocks = BTreeMap::<u32, Vec<KeyBlock>>::new();
    if !starts.is_empty() {
        reader.assign(&partitions(starts)).map_err(|e| unreachable_broker("read idempotency keys", &e))?;
        read(&reader, left, |topic, partition, offset, record| {
            match keys::decode(&unit(function, source, partition), record.value.as_deref().unwrap_or_default()) {
                Ok(block) => blocks.entry(partition).or_default().push(block),
                Err(error) => {
                    tracing::error!(topic, partition, offset, %error, "Idempotency keys cannot be read and are left out.");
                }
            }
        })?;
    }
    // Blocks of the broker's millisecond that are older than asked for.
    blocks.values_mut().for_each(|blocks| blocks.retain(|block| block.committed_at >= since));
    Ok(blocks)
}

/// The state of some partitions of one source topic, by partition. Blocks.
pub(super) fn values(
    clients: &Clients,
    function: &FunctionName,
    source: &Topic,
    wanted: &[u32],
) -> Result<BTreeMap<u32, Values>, Error> {
    let topic = clients.names.state(function, source).map_err(|e| Error::Fatal(e.to_string()))?;
    let topic = topic.as_str();
    let mut left = ends(&clients.observer()?, topic, wanted)?;
    left.retain(|_, end| *end > 0);
    let mut all = BTreeMap::<u32, Values>::new();
    if left.is_empty() {
        return Ok(all);
    }
    let reader = clients.reader()?;
    for (partition, end) in &left {
        wait_until_stable(&reader, topic, *partition, *end)?;
    }
    let starts = left.keys().map(|partition| (topic, *partition, Offset::Beginning));
    reader.assign(&partitions(starts)).map_err(|e| unreachable_broker("read state", &e))?;
    let mut damaged = None;
    read(&reader, left, |topic, partition, offset, record| {
        let values = all.entry(partition).or_default();
        if let Err(error) = values::take(&unit(function, source, partition), record, values) {
            damaged = Some(format!("the state at {topic}/{partition}/{offset} cannot be read: {error}"));
        }
    })?;
    // A handler that finds less than it wrote would do the wrong thing, and nobody would know.
    damaged.map_or(Ok(all), |damage| Err(Error::Transient(damage)))
}

fn unit(function: &FunctionName, source: &Topic, partition: u32) -> Unit {
    Unit { function: function.clone(), topic: source.clone(), partition }
}

/// Where partitions end, open transactions included.
fn ends(observer: &BaseConsumer<Quiet>, topic: &str, wanted: &[u32]) -> Result<BTreeMap<u32, u64>, Error> {
    let end = |partition: &u32| bounds(observer, topic, *partition).map(|(_, end)| (*partition, end));
    wanted.iter().map(end).collect()
}

/// Waits out transactions that are open below an end.
pub(super) fn wait_until_stable(
    reader: &BaseConsumer<Quiet>,
    topic: &str,
    partition: u32,
    end: u64,
) -> Result<(), Error> {
    loop {
        let (_, stable) = bounds(reader, topic, partition)?;
        if stable >= end {
            return Ok(());
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// Reads until each partition's end was reached. `each` gets topic, partition, offset and record.
fn read(
    reader: &BaseConsumer<Quiet>,
    mut left: BTreeMap<u32, u64>,
    mut each: impl FnMut(&str, u32, u64, &Record),
) -> Result<(), Error> {
    while !left.is_empty() {
        match reader.poll(REQUEST_TIMEOUT) {
            Some(Ok(message)) => {
                let partition = unsigned(message.partition());
                let (offset, record) = record::read(&message);
                each(message.topic(), partition, offset, &record);
                if left.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                    left.remove(&partition);
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&unsigned(partition));
            }
            Some(Err(error)) if is_mended_by_itself(&error) => {}
            Some(Err(error)) => return Err(unreachable_broker("restore", &error)),
            None => {
                return Err(Error::Transient(
                    "Kafka gave nothing of what is to be restored for ten seconds".to_owned(),
                ));
            }
        }
    }
    Ok(())
}
