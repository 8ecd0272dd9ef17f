//! The limit: a loop on the same client that answers events exactly once, without a sandbox and without anything that a
//! runtime has to keep.

use std::path::Path;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::cluster::{PARTITIONS, client};

/// The first argument that makes this program the loop.
pub(crate) const WORD: &str = "native-loop";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Writes down what headers an output has: a name and a value on each line, without a line break in them.
pub(super) fn write_headers(file: &Path, headers: &[(String, Vec<u8>)]) {
    let line = |(name, value): &(String, Vec<u8>)| format!("{name}={}\n", String::from_utf8_lossy(value));
    std::fs::write(file, headers.iter().map(line).collect::<String>()).expect("it can be written");
}

/// Answers events until it is killed. Arguments: the broker, from, to, the group, the file of headers, and how many
/// records a transaction has at most.
pub(crate) fn run(arguments: &[String]) -> ! {
    let [bootstrap, from, to, group, headers, most] = arguments else { panic!("six arguments: {arguments:?}") };
    let headers = std::fs::read_to_string(headers).expect("the headers are there");
    let headers: Vec<(&str, &str)> = headers.lines().filter_map(|line| line.split_once('=')).collect();
    let most: usize = most.parse().expect("a number");

    let mut config = client(bootstrap);
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.set("auto.offset.reset", "earliest").set("fetch.queue.backoff.ms", "2");
    let consumer: BaseConsumer = config.create().expect("a client");
    consumer.subscribe(&[from]).expect("the topic is there");
    let mut config = client(bootstrap);
    config.set("transactional.id", group).set("linger.ms", "0.5").set("delivery.report.only.error", "true");
    let producer: BaseProducer = config.create().expect("a client");
    producer.init_transactions(TIMEOUT).expect("the broker answers");

    loop {
        let mut next = [None; PARTITIONS as usize];
        let mut waiting = TIMEOUT;
        for taken in 0..most {
            let Some(message) = consumer.poll(waiting) else { break };
            let message = message.expect("it can be read");
            if taken == 0 {
                producer.begin_transaction().expect("nothing is open");
                waiting = Duration::ZERO;
            }
            answer(&producer, to, &message, &headers);
            next[usize::try_from(message.partition()).expect("not negative")] = Some(message.offset() + 1);
        }
        let mut positions = TopicPartitionList::new();
        for (partition, next) in (0..PARTITIONS).zip(next) {
            if let Some(next) = next {
                positions.add_partition_offset(from, partition, Offset::Offset(next)).expect("a position");
            }
        }
        if positions.count() == 0 {
            continue;
        }
        // While records are on their way; the commit waits for them.
        let member = consumer.group_metadata().expect("it is a member");
        producer.send_offsets_to_transaction(&positions, &member, TIMEOUT).expect("nobody else is in the group");
        producer.commit_transaction(TIMEOUT).expect("the broker answers");
        // A transaction that begins before the markers of the last one are written waits for 20 ms.
        std::thread::park_timeout(Duration::from_millis(3));
    }
}

/// Answers an event with one of the same data and key, with an id of its own.
fn answer(producer: &BaseProducer, to: &str, message: &impl Message, headers: &[(&str, &str)]) {
    let mut answered = OwnedHeaders::new_with_capacity(headers.len());
    for (key, value) in headers {
        if *key == "ce_id" {
            let own =
                format!("{:0width$}", message.offset() * 100 + i64::from(message.partition()), width = value.len());
            answered = answered.insert(Header { key, value: Some(&own) });
        } else {
            answered = answered.insert(Header { key, value: Some(*value) });
        }
    }
    let mut record = BaseRecord::<[u8], [u8]>::to(to).headers(answered);
    record.key = message.key();
    record.payload = message.payload();
    while let Err((error, again)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull), "{error}");
        producer.poll(Duration::from_millis(1));
        record = again;
    }
}
