//! How long a partition waits for its idempotency keys when it changes hands, beside a consumer that only reads the same records.

use std::time::{Duration, Instant};

use millrace::broker::kafka::{KafkaLog, Options};
use millrace::broker::{Broker as _, Catalog as _, Log as _, StartAt, Subscription, Told};
use millrace_core::idempotency::Bounds;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::time::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::super::figure::{Figure, Goal};
use super::cluster::{self, Cluster};
use super::count;

const KEYS: u64 = 10_000_000;
/// A commit has as many when there is much to do, or more.
const KEYS_A_BLOCK: u64 = 250;
const BLOCKS_A_TRANSACTION: u64 = 100;
const PREFIX: &str = "bench";
const TIMEOUT: Duration = Duration::from_secs(60);
/// In seconds.
const GOAL: f64 = 10.0;

pub(crate) fn measure() -> Vec<Figure> {
    let Some(cluster) = Cluster::start() else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let unit = Unit { function: FunctionName::new("shop", "pay").expect("a name"), topic: topic(), partition: 0 };
    let keys = format!("{PREFIX}.{}.keys.{}", unit.function, unit.topic);
    // What a function needs is made when it is there for the first time.
    runtime.block_on(async {
        let log = open(cluster.bootstrap()).await;
        log.create_topic(topic(), 1).await.expect("the topic can be made");
        drop(log.subscribe(subscription(&unit)).await.expect("it subscribes"));
        log.close(TIMEOUT).await;
    });
    write(&cluster, &keys, &unit);
    let alone = read(&cluster, &keys);
    let (restored, bytes) = runtime.block_on(restore(cluster.bootstrap(), &unit));
    vec![
        Figure::new("kafka.restore.seconds", restored.as_secs_f64(), "s", alone.as_secs_f64(), Goal::Below(GOAL)),
        Figure::shown("  memory of the keys", bytes / f64::from(1 << 20), "MiB"),
    ]
}

fn topic() -> Topic {
    "in".parse().expect("a topic")
}

fn subscription(unit: &Unit) -> Subscription {
    let (function, topics) = (unit.function.clone(), vec![unit.topic.clone()]);
    let window = Bounds { max_keys: usize::try_from(KEYS).expect("it fits"), ..Bounds::default() };
    Subscription { function, topics, from: StartAt::Earliest, window, told: Told::default() }
}

async fn open(bootstrap: &str) -> KafkaLog {
    let options = Options { prefix: PREFIX.to_owned(), ..Options::new(bootstrap) };
    let opening = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await;
    opening.expect("it does not panic").expect("the cluster can be reached")
}

/// How long it takes until a partition is handed over with all keys, and the bytes that they take.
async fn restore(bootstrap: &str, unit: &Unit) -> (Duration, f64) {
    let log = open(bootstrap).await;
    let mut assignments = log.subscribe(subscription(unit)).await.expect("it subscribes");
    let assignment = assignments.recv().await.expect("the partition is assigned");
    let keys = &assignment.restored.keys;
    assert_eq!(keys.len() as u64, KEYS, "all keys are restored");
    let took = log.group(&unit.function).last_restore;
    (took, count(keys.allocated_bytes() as u64))
}

/// Writes blocks of keys as commits of the runtime do.
fn write(cluster: &Cluster, topic: &str, unit: &Unit) {
    let producer: BaseProducer =
        cluster::client(cluster.bootstrap()).set("transactional.id", "writer").create().expect("a client");
    producer.init_transactions(TIMEOUT).expect("the broker answers");
    let now = millrace::clock::Clock::system().now();
    let blocks = KEYS / KEYS_A_BLOCK;
    for first in (0..blocks).step_by(usize::try_from(BLOCKS_A_TRANSACTION).expect("few")) {
        producer.begin_transaction().expect("none is open");
        for number in first..blocks.min(first + BLOCKS_A_TRANSACTION) {
            let block = block(unit, now, number * KEYS_A_BLOCK..(number + 1) * KEYS_A_BLOCK);
            let record = BaseRecord::<[u8], [u8]>::to(topic).partition(0).payload(&block);
            producer.send(record).map_err(|(error, _)| error).expect("there is room");
        }
        producer.commit_transaction(TIMEOUT).expect("the broker takes it");
    }
}

/// Version and checksum, the time of the commit in nanoseconds, seven bits a byte, and the keys.
fn block(unit: &Unit, at: Timestamp, keys: std::ops::Range<u64>) -> Vec<u8> {
    const VERSION: u8 = 1;
    let mut payload = Vec::new();
    let mut nanos = at.as_nanos();
    while nanos >= 0x80 {
        payload.push(nanos.to_le_bytes()[0] | 0x80);
        nanos >>= 7;
    }
    payload.push(nanos.to_le_bytes()[0]);
    for key in keys {
        payload.extend(xxhash_rust::xxh3::xxh3_128(&key.to_le_bytes()).to_le_bytes());
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(unit.to_string().as_bytes()), &[VERSION]);
    let crc = crc32c::crc32c_append(crc, &payload);
    [&[VERSION], &crc.to_le_bytes()[..], &payload].concat()
}

/// How long a consumer takes that does nothing with what it reads.
fn read(cluster: &Cluster, topic: &str) -> Duration {
    let began = Instant::now();
    let mut config = cluster::client(cluster.bootstrap());
    config.set("group.id", "reader").set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.set("enable.auto.commit", "false").create().expect("a client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("a partition");
    consumer.assign(&list).expect("the partition is there");
    let mut blocks = 0;
    loop {
        match consumer.poll(TIMEOUT).expect("the topic is read to its end") {
            Ok(message) => blocks += u64::from(message.payload().is_some()),
            Err(KafkaError::PartitionEOF(_)) => break,
            Err(error) => panic!("{topic}: {error}"),
        }
    }
    assert_eq!(blocks, KEYS / KEYS_A_BLOCK, "all blocks are read");
    began.elapsed()
}
