//! What the tests share: a prefix of its own for each, short ways to say things.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use millrace_core::idempotency::Bounds;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{KeyHash, Progress};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::producer::{BaseProducer, Producer};
use tokio::sync::mpsc;

use super::super::clients::{Deliveries, REQUEST_TIMEOUT};
use super::super::member::commit::plain;
use super::super::native;
use super::super::record::Placed;
use super::super::{KafkaLog, KafkaPartition, Options, keys, random_instance};
pub(super) use crate::broker::fixtures::after;
use crate::broker::fixtures::{self, text};
use crate::broker::{
    Assignment, Broker, Catalog, Commit, CommitOutcome, Fetched, Letter, LetterId, Outgoing, Partition, Placing,
    StartAt, Subscription, Told, Wanted,
};
use crate::clock::Clock;

/// Names the cluster that the tests use, as `host:port`.
const BOOTSTRAP: &str = "KAFKA_BOOTSTRAP";
/// The group protocol for tests that are not about one: `classic` or `consumer`.
const PROTOCOL: &str = "KAFKA_GROUP_PROTOCOL";
/// Far longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the tests began: a broker takes no times of the future, and soon removes what is old.
pub(super) fn began() -> Timestamp {
    static BEGAN: OnceLock<Timestamp> = OnceLock::new();
    *BEGAN.get_or_init(|| Timestamp::from_millis(Clock::system().now().as_millis()))
}

/// The group protocol that is asked for.
pub(super) fn protocol() -> Option<String> {
    std::env::var(PROTOCOL).ok()
}

/// A cluster, and names that nobody else uses.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) bootstrap: String,
    pub(super) prefix: String,
    /// What the names of topics end with.
    suffix: String,
}

impl Cluster {
    /// None, with a loud line, if there is no cluster to test on.
    #[expect(clippy::print_stderr, reason = "whoever reads the output of the tests must see that these did not run")]
    pub(super) fn find() -> Option<Self> {
        let Some(bootstrap) = std::env::var(BOOTSTRAP).ok().filter(|address| !address.is_empty()) else {
            eprintln!("##### SKIPPED: there is no Kafka to test on; set {BOOTSTRAP}, or run `make test` #####");
            return None;
        };
        // Some tests make clients of their own before ours.
        openssl_sys::init();
        // RUST_LOG=millrace=debug shows what the adapter says.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        drop(tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init());
        let suffix = random_instance();
        Some(Self { bootstrap, prefix: format!("test-{suffix}"), suffix })
    }

    /// Another instance.
    pub(super) async fn open(&self) -> KafkaLog {
        self.open_with(&[]).await
    }

    pub(super) async fn open_with(&self, properties: &[(&str, &str)]) -> KafkaLog {
        let mut options = Options { prefix: self.prefix.clone(), ..Options::new(&self.bootstrap) };
        options.properties.extend(protocol().map(|protocol| ("group.protocol".to_owned(), protocol)));
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        options.properties.extend(properties);
        // The broker decides it there.
        if options.properties.get("group.protocol").is_some_and(|protocol| protocol == "consumer") {
            options.properties.remove("session.timeout.ms");
        }
        tokio::task::spawn_blocking(move || KafkaLog::open(options)).await.unwrap().unwrap()
    }

    pub(super) fn topic(&self, name: &str) -> Topic {
        Topic::new(format!("{name}-{}", self.suffix)).unwrap()
    }

    /// An instance, with the topic `orders` of two partitions.
    pub(super) async fn orders(&self) -> KafkaLog {
        let log = self.open().await;
        log.create_topic(self.topic("orders"), 2).await.unwrap();
        log
    }

    pub(super) fn outgoing(&self, name: &str, partition: u32, value: &str) -> Outgoing {
        Outgoing { topic: self.topic(name), placing: Placing::Partition(partition), record: record(value) }
    }

    pub(super) async fn publish(&self, log: &KafkaLog, name: &str, partition: u32, values: &[&str]) {
        let records = values.iter().map(|value| self.outgoing(name, partition, value)).collect();
        within(log.publish(records)).await.unwrap();
    }

    pub(super) fn subscription(&self, topics: &[&str]) -> Subscription {
        Subscription {
            function: function(),
            topics: topics.iter().map(|topic| self.topic(topic)).collect(),
            from: StartAt::Earliest,
            window: Bounds::default(),
            told: Told::default(),
        }
    }

    pub(super) async fn subscribe(&self, log: &KafkaLog) -> mpsc::Receiver<Assignment<KafkaPartition>> {
        within(log.subscribe(self.subscription(&["orders"]))).await.unwrap()
    }

    /// Does what the broker does with the positions of a group in which nobody was for long enough.
    pub(super) async fn forget_positions(&self, log: &KafkaLog) {
        let group = log.clients().names.group(&function());
        let options = rdkafka::admin::AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let deleted = log.admin().delete_groups(&[group.as_str()], &options).await.unwrap();
        deleted.into_iter().for_each(|deleted| drop(deleted.unwrap()));
    }

    /// A commit as another instance leaves it that is killed in the middle: nothing is there of it but the block with
    /// the key 2, and no end. The broker ends it after `timeout`. Blocks.
    pub(super) fn leave_open(
        &self,
        log: &KafkaLog,
        (topic, partition): (&str, u32),
        timeout: Duration,
    ) -> BaseProducer<Deliveries> {
        let unit = Unit { function: function(), topic: self.topic(topic), partition };
        let producer: BaseProducer<Deliveries> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("transactional.id", format!("{}.other.{topic}.{partition}", self.prefix))
            .set("transaction.timeout.ms", timeout.as_millis().to_string())
            .create_with_context(Deliveries::default())
            .unwrap();
        producer.init_transactions(REQUEST_TIMEOUT).unwrap();
        producer.begin_transaction().unwrap();
        let value = keys::encode(&unit, began(), &[KeyHash(2)]);
        let topic = log.clients().names.keys(&unit.function, &unit.topic).unwrap();
        let placed = Placed { topic, partition, record: plain(began(), None, value.into()) };
        native::send(producer.client(), &placed, 0).unwrap();
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer
    }

    /// All that a partition holds.
    pub(super) async fn all(&self, log: &KafkaLog, name: &str, partition: u32) -> Vec<String> {
        let mut found = Vec::new();
        let mut next = 0;
        loop {
            let fetched = within(log.read(&self.topic(name), partition, next, 1000)).await.unwrap();
            if fetched.records.is_empty() {
                return found;
            }
            next = fetched.next;
            found.extend(texts(&fetched));
        }
    }

    pub(super) fn letter(&self, offset: u64, value: &str) -> Letter {
        use millrace_core::letter::LetterHeaders;
        let headers = LetterHeaders {
            function: function(),
            revision: 1,
            category: millrace_core::outcome::Category::Unknown,
            reason: "it failed".into(),
            attempts: 1,
            first_failed_at: began(),
            last_failed_at: began(),
            topic: self.topic("orders"),
            partition: 0,
            offset,
            idempotency_key: None,
            redrives: 0,
        };
        Letter {
            id: LetterId { topic: self.topic("orders"), partition: 0, offset },
            record: headers.seal(&record(value)),
        }
    }
}

pub(super) fn function() -> FunctionName {
    "shop.pay".parse().unwrap()
}

/// What must come, comes.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes within a minute")
}

pub(super) fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

/// Deletes a topic, and waits until the broker knows it no more: for a moment after it was told, it takes records for it.
pub(super) async fn delete(log: &KafkaLog, topic: &Topic) {
    let deleted = log.admin().delete_topics(&[topic.as_str()], &admin_options()).await.unwrap();
    deleted.into_iter().for_each(|deleted| drop(deleted.unwrap()));
    while within(Catalog::partition_counts(log)).await.unwrap().contains_key(topic.as_str()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// This many assignments, by partition.
pub(super) async fn assigned(
    receiver: &mut mpsc::Receiver<Assignment<KafkaPartition>>,
    count: usize,
) -> Vec<Assignment<KafkaPartition>> {
    let mut assignments = Vec::new();
    while assignments.len() < count {
        assignments.push(within(receiver.recv()).await.expect("the function is assigned its partitions"));
    }
    assignments.sort_by_key(|assignment| assignment.partition.unit().partition);
    assignments
}

pub(super) fn texts(fetched: &Fetched) -> Vec<String> {
    fetched.records.iter().map(|(_, record)| text(record)).collect()
}

pub(super) fn wanted(source: u64) -> Wanted {
    Wanted { source: Some(source), redrive: Some(0), max_records: 100, max_bytes: 1 << 20 }
}

/// Fetches until this many records have come.
pub(super) async fn fetch(partition: &mut KafkaPartition, from: u64, count: usize) -> Vec<String> {
    let (mut next, mut found) = (from, Vec::new());
    while found.len() < count {
        let fetched = within(partition.fetch(wanted(next))).await.unwrap();
        next = fetched.next;
        found.extend(texts(&fetched));
    }
    found
}

pub(super) fn record(value: &str) -> Record {
    fixtures::record(value, began())
}

pub(super) fn commit(progress: &Progress) -> Commit {
    Commit::new(began(), progress.clone())
}

pub(super) async fn commits(partition: &mut KafkaPartition, commit: Commit) {
    assert_eq!(within(partition.commit(commit)).await.unwrap(), CommitOutcome::Committed);
}
