//! librdkafka's clients and how they are configured.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_core::limits;
use millrace_core::name::Topic;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use super::connection::Witness;
use super::names::Names;
use crate::broker::Error;

/// The longest wait for one answer of the broker.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks for a partition's leader.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A killed instance's open transaction holds back readers for this long.
const TRANSACTION_TIMEOUT_MS: u32 = 10_000;
/// What a batch of records takes beside them.
const BATCH_OVERHEAD_BYTES: usize = 61;
/// What a record takes in a request beside its key, value and headers, and some more.
const RECORD_OVERHEAD_BYTES: usize = 64 * limits::KIB;

/// What is fetched ahead for one function, of all of its partitions together.
const AHEAD_BYTES: usize = 32 * limits::MIB;
/// Of one partition: what goes on while the broker is asked for more.
const AHEAD_OF_PARTITION_MIN_BYTES: usize = limits::MIB;
/// More of one partition is of no use.
const AHEAD_OF_PARTITION_MAX_BYTES: usize = 8 * limits::MIB;

/// Properties of librdkafka that are ours, because the promise rests on them, with the reason.
const OURS: [(&str, &str); 20] = [
    ("bootstrap.servers", "it is the setting kafka.bootstrap"),
    ("metadata.broker.list", "it is the setting kafka.bootstrap"),
    ("group.id", "it follows from the prefix and the function's name"),
    ("group.instance.id", "instances come and go"),
    ("enable.auto.commit", "positions are committed with the effects of their events"),
    ("auto.commit.enable", "positions are committed with the effects of their events"),
    ("enable.auto.offset.store", "positions are committed with the effects of their events"),
    ("isolation.level", "what is not committed must not be handled"),
    ("auto.offset.reset", "a position that is gone waits for an operator"),
    ("enable.partition.eof", "the runtime decides where it is needed"),
    ("transactional.id", "it follows from the prefix, the function's name and kafka.instance"),
    ("transaction.timeout.ms", "others wait that long for an instance that was killed"),
    ("enable.idempotence", "a record would be written twice"),
    ("acks", "a record could be lost"),
    ("request.required.acks", "a record could be lost"),
    ("delivery.report.only.error", "the runtime decides where it is needed"),
    ("message.timeout.ms", "it follows from the time-out of transactions"),
    ("delivery.timeout.ms", "it follows from the time-out of transactions"),
    ("partitioner", "the runtime chooses partitions"),
    ("partition.assignment.strategy", "partitions are taken and given back one by one"),
];

/// Checks a property that somebody wants to pass to librdkafka.
///
/// # Errors
/// If it is one that the promise rests on.
pub(super) fn check_property(name: &str) -> Result<(), String> {
    match OURS.iter().find(|(ours, _)| *ours == name) {
        Some((_, reason)) => Err(format!("`{name}` cannot be changed: {reason}; leave it out")),
        None => Ok(()),
    }
}

/// Makes clients. It cannot be shown, because some properties are secret.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) bootstrap: String,
    /// Given by an operator, over ours.
    pub(super) properties: BTreeMap<String, String>,
    pub(super) names: Names,
    /// The most that a source takes at once, of all that are read, as far as it is known.
    pub(super) source_bytes: Arc<AtomicUsize>,
}

/// The largest record that a dead letter can be, with what a broker counts beside it, of sources that take so much at once.
pub(super) fn dead_letter_bytes(source_bytes: usize) -> usize {
    let record_bytes = source_bytes.saturating_sub(BATCH_OVERHEAD_BYTES).max(limits::EVENT_MAX_BYTES);
    record_bytes + limits::DEAD_LETTER_EXTRA_BYTES + RECORD_OVERHEAD_BYTES
}

impl Clients {
    /// Ours, then the operator's, then what the promise rests on.
    fn config(&self, tuned: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        // Whoever is first to use OpenSSL in a process decides whether it tidies up when the process exits. librdkafka would have it
        // do so, while threads that used it end at the same time: both free the same memory, and an exit becomes an abort.
        openssl_sys::init();
        let mut config = ClientConfig::new();
        config.set("client.id", "millrace");
        // OpenSSL is in the binary and knows no place of this system's: the usual ones are looked at.
        config.set("ssl.ca.location", "probe");
        if !self.properties.contains_key("https.ca.pem") {
            config.set("https.ca.location", "probe");
        }
        for (name, value) in tuned {
            config.set(*name, *value);
        }
        // The other protocol knows neither of these.
        let consumer_protocol = self.properties.get("group.protocol").is_some_and(|protocol| protocol == "consumer");
        if consumer_protocol {
            for name in ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"] {
                config.remove(name);
            }
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.bootstrap);
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config
    }

    /// A member of a function's group, not subscribed yet, which can get so many partitions.
    pub(super) fn member(&self, group: &str, partitions: usize) -> Result<BaseConsumer<MemberContext>, Error> {
        let ahead = ahead_of_partition_kilobytes(partitions).to_string();
        let tuned = [
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "2000"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", "500"),
            // A partition that has fewer waits for the broker now and then, although there is more to read.
            ("queued.min.messages", "20000"),
            // Each partition has a queue to itself.
            ("queued.max.messages.kbytes", ahead.as_str()),
            // So soon a partition that was added is read.
            ("topic.metadata.refresh.interval.ms", "30000"),
        ];
        let fixed = [
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
        ];
        made(BaseConsumer::from_config_and_context(&self.config(&tuned, &fixed), MemberContext::default()))
    }

    /// Reads partitions that it is told to, of nobody's group, from their leaders: what is restored from a follower that lags
    /// would not be all. It tells where a partition ends.
    pub(super) fn reader(&self) -> Result<BaseConsumer<Quiet>, Error> {
        let tuned =
            [("fetch.queue.backoff.ms", "2"), ("fetch.wait.max.ms", "10"), ("queued.max.messages.kbytes", "16384")];
        let group = self.names.readers();
        let fixed = [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("client.rack", ""),
        ];
        made(BaseConsumer::from_config_and_context(&self.config(&tuned, &fixed), Quiet))
    }

    /// Asks where partitions end, transactions that are still open included.
    pub(super) fn observer(&self) -> Result<BaseConsumer<Quiet>, Error> {
        let fixed = [("isolation.level", "read_uncommitted")];
        made(BaseConsumer::from_config_and_context(&self.config(&[], &fixed), Quiet))
    }

    /// Hears why there is no connection.
    pub(super) fn witness(&self, fixed: &[(&str, &str)]) -> Result<BaseConsumer<Witness>, Error> {
        made(BaseConsumer::from_config_and_context(&self.config(&[], fixed), Witness::default()))
    }

    /// Asks for what a group committed, without being in it.
    pub(super) fn outsider(&self, group: &str) -> Result<BaseConsumer<Quiet>, Error> {
        let fixed = [("group.id", group), ("enable.auto.commit", "false"), ("isolation.level", "read_committed")];
        made(BaseConsumer::from_config_and_context(&self.config(&[], &fixed), Quiet))
    }

    /// A transactional producer, which tells of each record or only of those that failed. A batch of records has at most
    /// `batch_bytes`, if that is given, or is a single record.
    pub(super) fn producer(
        &self,
        transactional_id: &str,
        batch_bytes: Option<usize>,
        only_failed: bool,
    ) -> Result<BaseProducer<Deliveries>, Error> {
        let largest = dead_letter_bytes(self.source_bytes.load(Ordering::Relaxed)).to_string();
        // What is asked for while markers of the last transaction are written is asked for again after this time.
        let tuned = [("linger.ms", "0.5"), ("message.max.bytes", largest.as_str()), ("retry.backoff.ms", "10")];
        let timeout = TRANSACTION_TIMEOUT_MS.to_string();
        let batch_bytes = batch_bytes.map(|bytes| bytes.to_string());
        let mut fixed = vec![
            ("transactional.id", transactional_id),
            ("transaction.timeout.ms", timeout.as_str()),
            ("message.timeout.ms", timeout.as_str()),
            ("delivery.report.only.error", if only_failed { "true" } else { "false" }),
        ];
        fixed.extend(batch_bytes.as_deref().map(|bytes| ("batch.size", bytes)));
        made(BaseProducer::from_config_and_context(&self.config(&tuned, &fixed), Deliveries::default()))
    }

    /// Makes topics and looks at their settings.
    pub(super) fn admin(&self) -> Result<rdkafka::admin::AdminClient<Quiet>, Error> {
        made(rdkafka::admin::AdminClient::from_config_and_context(&self.config(&[], &[]), Quiet))
    }
}

/// What may be fetched ahead of each of so many partitions of a function; a kilobyte of librdkafka's is 1,000 bytes.
fn ahead_of_partition_kilobytes(partitions: usize) -> usize {
    (AHEAD_BYTES / partitions.max(1)).clamp(AHEAD_OF_PARTITION_MIN_BYTES, AHEAD_OF_PARTITION_MAX_BYTES) / 1000
}

/// A client that cannot be made is configured wrongly; trying again does not help. The value can be a secret, whatever the
/// name is: it may be mistyped.
fn made<T>(made: KafkaResult<T>) -> Result<T, Error> {
    made.map_err(|error| match error {
        KafkaError::ClientConfig(_, description, name, _) => {
            Error::Fatal(format!("kafka.properties: `{name}` cannot be set so: {description}"))
        }
        error => Error::Fatal(format!("a client of Kafka cannot be made: {error}")),
    })
}

/// How many partitions each of some topics has, as the broker says; none where there is no such topic.
pub(super) fn partition_counts<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: Option<&str>,
) -> Result<BTreeMap<String, u32>, Error> {
    let metadata =
        consumer.fetch_metadata(topic, REQUEST_TIMEOUT).map_err(|e| unreachable_broker("list topics", &e))?;
    let there = metadata.topics().iter().filter(|topic| topic.error().is_none());
    Ok(there.map(|topic| (topic.name().to_owned(), u32::try_from(topic.partitions().len()).unwrap_or(0))).collect())
}

/// The oldest offset of a partition, and the one after the last record that the consumer may see. Waits while the partition has
/// no leader, as when its broker has just been started. Blocks.
pub(super) fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: u32,
) -> Result<(u64, u64), Error> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, signed(partition), REQUEST_TIMEOUT) {
            Ok((earliest, end)) => {
                return Ok((u64::try_from(earliest).unwrap_or_default(), u64::try_from(end).unwrap_or_default()));
            }
            Err(error) if error.rdkafka_error_code().is_some_and(is_leaderless) && Instant::now() < deadline => {
                std::thread::park_timeout(LOOK_AGAIN);
            }
            Err(error) => return Err(unreachable_broker(&format!("find the bounds of topic `{topic}`"), &error)),
        }
    }
}

/// Whether a reader that was told of the end of a partition has all of it up to an offset, records or not. Whoever answered may
/// know less of the partition than its leader, such as a leader who has only just become it; there is more to come then.
pub(super) fn has_reached<C: ConsumerContext>(reader: &BaseConsumer<C>, topic: &str, partition: u32, end: u64) -> bool {
    // librdkafka's own position is behind marks of transactions, too.
    let Ok(positions) = reader.position() else { return false };
    let position = positions.find_partition(topic, signed(partition)).map(|element| element.offset());
    matches!(position, Some(rdkafka::Offset::Offset(at)) if u64::try_from(at).is_ok_and(|at| at >= end))
}

/// Nobody is asked who can say; soon somebody will be.
fn is_leaderless(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::NotLeaderForPartition
            // Of a topic that has just been made.
            | Code::UnknownPartition
            | Code::LeaderNotAvailable
            | Code::ReplicaNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
    )
}

/// The broker could not be asked.
pub(super) fn unreachable_broker(what: &str, error: &impl std::fmt::Display) -> Error {
    Error::Transient(format!("Kafka cannot be asked to {what}: {error}"))
}

/// A list of partitions, each with an offset that fits.
pub(super) fn partitions<'a>(wanted: impl IntoIterator<Item = (&'a str, u32, rdkafka::Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in wanted {
        let added = list.add_partition_offset(topic, signed(partition), offset);
        added.expect("a position in Kafka is not negative and fits its numbers");
    }
    list
}

/// Kafka's numbers of partitions have a sign.
pub(super) fn signed(partition: u32) -> i32 {
    i32::try_from(partition).expect("Kafka has no partition of so large a number")
}

/// Kafka's numbers of partitions have a sign.
pub(super) fn unsigned(partition: i32) -> u32 {
    u32::try_from(partition).unwrap_or_default()
}

/// An offset of ours in Kafka's form.
pub(super) fn at(offset: u64) -> rdkafka::Offset {
    rdkafka::Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}

/// Says what librdkafka has to say where it does not frighten: it reports each broken connection as an error, and mends it.
pub(super) fn log(level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
    use rdkafka::config::RDKafkaLogLevel as Level;
    match level {
        Level::Emerg | Level::Alert | Level::Critical => tracing::error!(facility, message, "librdkafka"),
        Level::Error | Level::Warning => tracing::info!(facility, message, "librdkafka"),
        Level::Notice | Level::Info | Level::Debug => tracing::debug!(facility, message, "librdkafka"),
    }
}

/// A client that has nothing to tell.
#[derive(Clone, Debug)]
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Quiet {}

/// A change of what a member owns, as the group's coordinator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Assigned(Vec<(String, u32)>),
    Revoked(Vec<(String, u32)>),
}

/// Keeps changes for the thread that polls: it acts on them when `poll` has returned, not within.
#[derive(Debug, Default)]
pub(super) struct MemberContext(Mutex<VecDeque<Change>>);

impl MemberContext {
    pub(super) fn next_change(&self) -> Option<Change> {
        lock(&self.0).pop_front()
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, _: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let elements = list.elements();
        let units =
            elements.iter().map(|element| (element.topic().to_owned(), unsigned(element.partition()))).collect();
        let assigned = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        lock(&self.0).push_back(if assigned { Change::Assigned(units) } else { Change::Revoked(units) });
    }
}

/// What became of each record sent, by its number.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<Vec<Delivery>>);

/// What became of a record.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) number: usize,
    /// Its offset.
    pub(super) result: Result<u64, RDKafkaErrorCode>,
}

impl Deliveries {
    pub(super) fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let result = match result {
            Ok(message) => Ok(u64::try_from(message.offset()).unwrap_or_default()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        lock(&self.0).push(Delivery { number, result });
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one event, and says whether there was none.
pub(super) fn serve(consumer: &BaseConsumer<MemberContext>) -> Result<bool, Error> {
    match consumer.poll(Duration::ZERO) {
        None => Ok(true),
        Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => Err(Error::Transient(error.to_string())),
        Some(Err(error)) => {
            tracing::debug!(%error, "librdkafka");
            Ok(false)
        }
        // It would be missing among those of its partition.
        Some(Ok(_)) => Err(Error::Transient("a record came outside of its partition's queue".to_owned())),
    }
}

type Places = [(Topic, u32, u64)];

fn list(places: &Places) -> rdkafka::TopicPartitionList {
    partitions(places.iter().map(|(topic, partition, offset)| (topic.as_str(), *partition, at(*offset))))
}

fn without_offsets(lost: &[(Topic, u32)]) -> rdkafka::TopicPartitionList {
    partitions(lost.iter().map(|(topic, partition)| (topic.as_str(), *partition, rdkafka::Offset::Invalid)))
}

/// Takes partitions up, beside those that are there.
pub(super) fn add(consumer: &BaseConsumer<MemberContext>, places: &Places) -> Result<(), Error> {
    consumer.incremental_assign(&list(places)).map_err(|e| unreachable_broker("take partitions up", &e))
}

/// Gives partitions back.
pub(super) fn remove(consumer: &BaseConsumer<MemberContext>, lost: &[(Topic, u32)]) -> Result<(), Error> {
    consumer.incremental_unassign(&without_offsets(lost)).map_err(|e| unreachable_broker("give partitions back", &e))
}

/// Consumers that several threads hold.
pub(super) type Shared<C> = Arc<BaseConsumer<C>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_that_would_break_the_promise_are_refused_by_name() {
        for name in ["isolation.level", "enable.auto.commit", "transactional.id", "acks"] {
            let refused = check_property(name).unwrap_err();
            assert!(refused.starts_with(&format!("`{name}` cannot be changed: ")), "{refused}");
        }
        for name in ["security.protocol", "sasl.password", "fetch.wait.max.ms", "group.protocol"] {
            assert_eq!(check_property(name), Ok(()));
        }
    }

    #[test]
    fn what_is_fetched_ahead_for_a_function_is_bounded_however_many_partitions_it_has() {
        let bytes = |partitions: usize| ahead_of_partition_kilobytes(partitions) * 1000;
        assert!(bytes(0) == bytes(1) && bytes(1) <= AHEAD_OF_PARTITION_MAX_BYTES);
        for partitions in [1, 4, 5, 12, 32] {
            assert!(partitions * bytes(partitions) <= AHEAD_BYTES, "{partitions}");
        }
        for partitions in [1, 12, 32, 33, 1024] {
            assert!(bytes(partitions) >= 1_000_000, "{partitions}: records wait for the broker");
        }
    }

    #[test]
    fn a_property_that_librdkafka_does_not_know_is_named() {
        let clients = Clients {
            bootstrap: "127.0.0.1:1".to_owned(),
            properties: [("fetch.wiat.max.ms".to_owned(), "1".to_owned())].into(),
            names: Names::new("millrace", "a"),
            source_bytes: Arc::default(),
        };
        let error = clients.observer().map(drop).unwrap_err();
        assert!(!error.is_transient());
        assert!(error.to_string().contains("`fetch.wiat.max.ms` cannot be set so"), "{error}");
    }
}
