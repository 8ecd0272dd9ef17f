//! The broker, its topics, and what a client of nobody's finds there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_core::codec;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use millrace_tests::process::Kafka;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers as _, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::super::events;

pub(super) const PARTITIONS: i32 = 8;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A broker of its own.
pub(super) struct Cluster {
    kafka: Kafka,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

/// What was found in a topic.
pub(super) struct Outputs {
    pub(super) records: u64,
    /// Records with different ids.
    pub(super) distinct: u64,
    /// At least so many transactions wrote them: as many as there are in the partition with most.
    pub(super) transactions: u64,
    /// Of the first one.
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl Cluster {
    /// None if there is none to be had.
    pub(super) fn start() -> Option<Self> {
        let kafka = Kafka::start_with("log.retention.check.interval.ms=600000")?;
        let admin = client(&kafka.bootstrap).create().expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Some(Self { kafka, admin, runtime })
    }

    pub(super) fn bootstrap(&self) -> &str {
        &self.kafka.bootstrap
    }

    /// Makes a topic; one that is just being deleted is waited for.
    pub(super) fn create(&self, topic: &str) {
        let began = Instant::now();
        loop {
            let wanted = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
            let made = self.runtime.block_on(self.admin.create_topics([&wanted], &AdminOptions::new()));
            match made.expect("the broker answers").remove(0) {
                Ok(_) => return,
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) if began.elapsed() < TIMEOUT => {
                    std::thread::park_timeout(Duration::from_millis(100));
                }
                Err((topic, code)) => panic!("{topic} cannot be made: {code}"),
            }
        }
    }

    pub(super) fn delete(&self, topic: &str) {
        let deleted = self.runtime.block_on(self.admin.delete_topics(&[topic], &AdminOptions::new()));
        deleted.expect("the broker answers").remove(0).expect("the topic is there");
    }

    /// Publishes so many events.
    pub(super) fn publish(&self, topic: &str, count: u64) {
        let producer: BaseProducer = client(self.bootstrap()).set("linger.ms", "20").create().expect("a client");
        for number in 0..count {
            let event = events::event(number);
            let key = event.extension("partitionkey").map(|key| Bytes::copy_from_slice(key.as_bytes()));
            send(&producer, topic, &codec::encode(&event, key, Timestamp::EPOCH));
        }
        producer.flush(TIMEOUT).expect("the broker takes them");
    }

    /// Somebody who looks at what a group has committed.
    pub(super) fn observer(&self, group: &str) -> BaseConsumer {
        // Transactions that are open hide positions from whoever reads only what is committed.
        let mut config = client(self.bootstrap());
        config.set("group.id", group).set("isolation.level", "read_uncommitted").create().expect("a client")
    }

    /// What is in a topic that nobody writes to any more.
    pub(super) fn outputs(&self, topic: &str) -> Outputs {
        let consumer = reader(self.bootstrap(), topic);
        let (mut ids, mut headers) = (HashSet::new(), Vec::new());
        let (mut records, mut ended) = ([0; PARTITIONS as usize], 0);
        while ended < PARTITIONS {
            match consumer.poll(TIMEOUT).expect("the topic is read to its end") {
                Ok(message) => {
                    let found = message.headers().expect("an event has headers");
                    let id = found.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
                    ids.insert(xxhash_rust::xxh3::xxh3_128(id.expect("an event has an id")));
                    records[usize::try_from(message.partition()).expect("not negative")] += 1;
                    if headers.is_empty() {
                        let owned = |header: Header<'_, &[u8]>| {
                            (header.key.to_owned(), header.value.unwrap_or_default().to_owned())
                        };
                        headers = found.iter().map(owned).collect();
                    }
                }
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{topic}: {error}"),
            }
        }
        let markers = (0..PARTITIONS).zip(records).map(|(partition, records): (i32, u64)| {
            let (_, end) = consumer.fetch_watermarks(topic, partition, TIMEOUT).expect("the broker answers");
            u64::try_from(end).expect("not negative") - records
        });
        Outputs {
            records: records.iter().sum(),
            distinct: ids.len() as u64,
            transactions: markers.max().expect("there are partitions"),
            headers,
        }
    }
}

/// How many records of a topic the observed group has committed.
pub(super) fn committed(observer: &BaseConsumer, topic: &str) -> u64 {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, PARTITIONS - 1);
    let committed = observer.committed_offsets(list, TIMEOUT).expect("the broker answers");
    let offsets = committed.elements().into_iter().filter_map(|element| element.offset().to_raw());
    offsets.map(|offset| u64::try_from(offset).unwrap_or(0)).sum()
}

/// Reads what is committed in a topic, from its beginning.
pub(super) fn reader(bootstrap: &str, topic: &str) -> BaseConsumer {
    let mut config = client(bootstrap);
    config.set("group.id", "reader").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.set("enable.partition.eof", "true").set("fetch.queue.backoff.ms", "1");
    let consumer: BaseConsumer = config.create().expect("a client");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("the partitions are there");
    consumer
}

/// Sends a record, once there is room for it.
pub(super) fn send(producer: &BaseProducer, topic: &str, record: &Record) {
    let mut headers = OwnedHeaders::new();
    for (key, value) in record.headers.iter() {
        headers = headers.insert(Header { key, value: value.as_deref() });
    }
    let mut wanted = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
    wanted.key = record.key.as_deref();
    wanted.payload = record.value.as_deref();
    loop {
        match producer.send(wanted) {
            Ok(()) => break,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                wanted = again;
                producer.poll(Duration::from_millis(1));
            }
            Err((error, _)) => panic!("{topic}: {error}"),
        }
    }
    producer.poll(Duration::ZERO);
}

pub(super) fn client(bootstrap: &str) -> ClientConfig {
    // As the product does.
    openssl_sys::init();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}
