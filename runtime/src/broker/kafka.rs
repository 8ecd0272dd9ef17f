//! Apache Kafka as the log: any number of instances, effects exactly once.
//!
//! Per function one thread with one member of its consumer group and one transactional producer (`member.rs`). A commit group is one
//! transaction (`writer.rs`): outputs, dead letters, idempotency keys, and the position with all of the unit's progress as its
//! metadata (`metadata.rs`). The broker checks in it that the member still is one, so a zombie commits nothing.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use millrace_core::name::{FunctionName, InvalidName, Topic};
use rdkafka::admin::AdminClient;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

pub use self::audit::{Finding, Plan, PlannedFunction, Verdict};
use self::clients::{Clients, Quiet, REQUEST_TIMEOUT, Shared, check_property, lock, partition_counts};
use self::growth::Growth;
use self::instances::Instances;
use self::kept::Kept;
use self::letters::Letters;
use self::member::Joining;
use self::member::commit::{Twin, choose};
use self::names::Names;
pub use self::partition::KafkaPartition;
use self::publisher::Publisher;
use self::reading::Reading;
use self::record::Placed;
use self::redrive::Redrives;
use self::registry::Registry;
use super::{
    Assignment, Broker, CatalogError, Error, GroupFigures, Log, Outgoing, Placement, PublishError, Retention,
    Subscription,
};
use crate::clock::Clock;

mod audit;
mod base64;
mod catalog;
mod clients;
mod components;
mod connection;
mod entries;
mod growth;
mod instances;
mod kept;
mod keys;
mod letters;
mod member;
mod metadata;
mod names;
mod native;
mod overflow;
mod partition;
mod publisher;
mod reading;
mod recent;
mod record;
mod redrive;
mod registry;
mod restore;
mod start;
mod status;
#[cfg(test)]
mod tests;
mod topics;
mod unsettled;
mod values;
mod writer;

/// Between two looks for a topic that was just made.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How a log is opened. It cannot be shown, because some properties are secret.
#[derive(Clone)]
pub struct Options {
    /// Addresses of brokers, `host:port` with commas between.
    pub bootstrap: String,
    /// What everything of ours begins with.
    pub prefix: String,
    /// Tells this instance from the others, and stays the same when it starts again; random if there is none.
    pub instance: Option<String>,
    /// Copies of each topic that the runtime makes; none leaves it to the broker.
    pub replication: Option<u16>,
    /// Properties passed to librdkafka. Those that the promise rests on are refused.
    pub properties: BTreeMap<String, String>,
    /// Tells the time of changes made by people.
    pub clock: Clock,
}

impl Options {
    /// The defaults: prefix `millrace`, a random instance, the broker's replication, the system's clock.
    #[must_use]
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            prefix: "millrace".to_owned(),
            instance: None,
            replication: None,
            properties: BTreeMap::new(),
            clock: Clock::system(),
        }
    }
}

/// A cluster that is used. Cheap to clone.
#[derive(Clone)]
pub struct KafkaLog(Arc<Inner>);

struct Inner {
    options: Options,
    clients: Arc<Clients>,
    /// Sees open transactions, and what topics there are.
    observer: Shared<Quiet>,
    reading: Reading,
    admin: Arc<AdminClient<Quiet>>,
    publisher: Publisher,
    redrives: Arc<Redrives>,
    /// Asks for what groups have committed; in none of them.
    teller: Mutex<Shared<Quiet>>,
    running: Mutex<BTreeMap<FunctionName, Running>>,
    twin: Twin,
    letters: Mutex<BTreeMap<FunctionName, Arc<Mutex<Letters>>>>,
    registry: Mutex<Kept<Registry>>,
    instances: Mutex<Kept<Instances>>,
    /// What the process must stop for.
    failure: watch::Sender<Option<Error>>,
    /// Each thread of a function has a copy, so that their end can be waited for.
    ending: Mutex<Option<mpsc::Sender<()>>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

/// What is told of a function that runs here.
#[derive(Default)]
struct Running {
    figures: Arc<Mutex<GroupFigures>>,
    stopped: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("bootstrap", &self.0.options.bootstrap).finish_non_exhaustive()
    }
}

impl KafkaLog {
    /// Connects to a cluster. Blocks until a broker has answered.
    ///
    /// # Errors
    /// If a property is wrong, no broker answers, or TLS or the login fails.
    pub fn open(options: Options) -> Result<Self, Error> {
        let instance = options.instance.clone().unwrap_or_else(random_instance);
        for name in options.properties.keys() {
            check_property(name).map_err(|reason| Error::Fatal(format!("kafka.properties: {reason}")))?;
        }
        let names = Names::new(&options.prefix, &instance);
        let (bootstrap, properties) = (options.bootstrap.clone(), options.properties.clone());
        let clients = Arc::new(Clients { bootstrap, properties, names, source_bytes: Arc::default() });
        connection::establish(&clients)?;
        let observer = Arc::new(clients.observer()?);
        let (ending, ended) = mpsc::channel(1);
        let valid = |topic: Result<Topic, _>| topic.map_err(|e: InvalidName| Error::Fatal(e.to_string()));
        let (registry, instances) = (valid(clients.names.registry())?, valid(clients.names.instances())?);
        Ok(Self(Arc::new(Inner {
            reading: Reading::new(&clients)?,
            admin: Arc::new(clients.admin()?),
            teller: Mutex::new(Arc::new(clients.outsider(&clients.names.readers())?)),
            publisher: Publisher::start(Arc::clone(&clients))?,
            redrives: Redrives::new(&clients)?,
            options,
            clients,
            observer,
            running: Mutex::default(),
            twin: Twin::default(),
            letters: Mutex::default(),
            registry: Mutex::new(Kept::new(registry)),
            instances: Mutex::new(Kept::new(instances)),
            failure: watch::Sender::new(None),
            ending: Mutex::new(Some(ending)),
            ended: tokio::sync::Mutex::new(ended),
        })))
    }

    fn clients(&self) -> &Arc<Clients> {
        &self.0.clients
    }

    fn reading(&self) -> &Reading {
        &self.0.reading
    }

    fn admin(&self) -> &AdminClient<Quiet> {
        &self.0.admin
    }

    fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }

    fn clock(&self) -> Clock {
        self.0.options.clock
    }

    /// As Kafka writes it: -1 for what the broker says.
    fn replication(&self) -> i32 {
        self.0.options.replication.map_or(-1, i32::from)
    }

    fn letters_of(&self, function: &FunctionName) -> Arc<Mutex<Letters>> {
        Arc::clone(lock(&self.0.letters).entry(function.clone()).or_default())
    }

    /// All topics with their partitions. Blocks.
    fn partition_counts(&self) -> Result<BTreeMap<String, u32>, Error> {
        partition_counts(&self.0.observer, None)
    }

    /// The partitions of a topic, if there is such a one. Blocks.
    fn partition_count(&self, topic: &str) -> Result<Option<u32>, Error> {
        Ok(partition_counts(&self.0.observer, Some(topic))?.get(topic).copied())
    }

    /// Waits until topics that were just made are known to all who are asked. Blocks.
    fn wait_for_topics(&self, topics: &[Topic]) -> Result<(), Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        for topic in topics {
            // A broker can know of a topic before it serves it.
            let is_unserved = |count: u32| self.end(topic.as_str(), count.saturating_sub(1)).is_err();
            while self.partition_count(topic.as_str())?.is_none_or(is_unserved) {
                if Instant::now() >= deadline {
                    return Err(Error::Transient(format!("topic `{topic}` was made, and no broker knows of it yet")));
                }
                std::thread::park_timeout(LOOK_AGAIN);
            }
        }
        Ok(())
    }

    /// Where a partition ends, open transactions included. Blocks.
    fn end(&self, topic: &str, partition: u32) -> Result<u64, Error> {
        Ok(clients::bounds(&self.0.observer, topic, partition)?.1)
    }

    /// Chooses partitions. Blocks.
    fn place(&self, records: Vec<Outgoing>) -> Result<Vec<Placed>, PublishError> {
        let mut counts = BTreeMap::new();
        let mut placed = Vec::with_capacity(records.len());
        for (index, Outgoing { topic, placing, record }) in records.into_iter().enumerate() {
            let unknown = || PublishError::UnknownTopic { index, topic: topic.clone() };
            if !counts.contains_key(topic.as_str()) {
                let count = self.partition_count(topic.as_str())?.ok_or_else(unknown)?;
                counts.insert(topic.to_string(), count);
            }
            let partition = choose(placing, counts[topic.as_str()]).ok_or_else(unknown)?;
            let (size_bytes, max_bytes) = (record.size_bytes(), millrace_core::limits::EVENT_MAX_BYTES);
            if size_bytes > max_bytes {
                return Err(PublishError::TooLarge { index, topic, size_bytes, max_bytes });
            }
            placed.push(Placed { topic, partition, record });
        }
        Ok(placed)
    }

    /// Does something that waits for the broker, which alone can be at fault.
    async fn asking<T: Send + 'static>(
        &self,
        action: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.blocking(move |log| Ok(action(log)?)).await.map_err(CatalogError::into_broker)
    }

    /// The sources of a subscription with their partitions. Blocks.
    fn sources(&self, subscription: &Subscription) -> Result<BTreeMap<Topic, u32>, Error> {
        let mut sources = BTreeMap::new();
        for topic in &subscription.topics {
            let count = self.partition_count(topic.as_str())?.ok_or_else(|| {
                let fix = "create it before a function reads it, for example by naming it in the manifest";
                Error::Transient(format!("there is no topic `{topic}`: {fix}"))
            })?;
            sources.insert(topic.clone(), count);
        }
        Ok(sources)
    }
}

/// Enough to tell instances apart.
fn random_instance() -> String {
    format!("{:016x}", random_number())
}

fn random_number() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

impl Broker for KafkaLog {
    type Partition = KafkaPartition;

    async fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let log = self.clone();
        let placing = tokio::task::spawn_blocking(move || log.place(records)).await;
        let placed = placing.map_err(|e| Error::Transient(format!("publishing was interrupted: {e}")))??;
        match self.0.publisher.publish(placed).await {
            // The topic itself can take less than the runtime does.
            Err(PublishError::TooLarge { index, topic, size_bytes, max_bytes }) => {
                let takes = topics::batch_max_bytes(self.admin(), [&topic]).await;
                Err(PublishError::TooLarge { index, topic, size_bytes, max_bytes: takes.unwrap_or(max_bytes) })
            }
            published => published,
        }
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<mpsc::Receiver<Assignment<KafkaPartition>>, Error> {
        let (wanted, runtime) = (subscription.clone(), Handle::current());
        let (function, shown) = (subscription.function.clone(), Running::default());
        let followed = self
            .blocking(move |log| {
                let sources = log.sources(&wanted)?;
                let growth =
                    Growth { clients: log.clients(), admin: log.admin(), observer: &log.0.observer, runtime: &runtime };
                sources.keys().try_for_each(|source| growth.follow(&wanted.function, source))?;
                Ok((sources, log.partition_counts()?))
            })
            .await
            .map_err(CatalogError::into_broker);
        let (sources, existing) = match followed {
            Err(Error::Stopped(reason)) => {
                member::tell_stopped(&function, &shown.stopped, reason);
                lock(&self.0.running).insert(function, shown);
                // Nothing is ever assigned to it.
                return Ok(mpsc::channel(1).1);
            }
            followed => followed?,
        };
        let window = subscription.window.span;
        let source_bytes = topics::batch_max_bytes(self.admin(), sources.keys()).await.unwrap_or_default();
        self.0.clients.source_bytes.fetch_max(source_bytes, Ordering::Relaxed);
        let needed = topics::needed(&self.0.clients, &subscription.function, &sources, window, source_bytes)?;
        topics::make(&self.0.admin, self.replication(), &needed, &existing).await?;
        let siblings = sources.values().map(|count| *count as usize).sum::<usize>().max(1);
        let wanted = subscription.clone();
        let begin = move |log: &Self| {
            log.wait_for_topics(&needed.into_iter().map(|one| one.name).collect::<Vec<_>>())?;
            Ok(start::decide(&log.0.clients, &log.0.observer, (&wanted, &sources), log.clock().now())?)
        };
        self.blocking(begin).await.map_err(CatalogError::into_broker)?;
        let (assignments, receiver) = mpsc::channel(siblings);
        let ending = lock(&self.0.ending).clone();
        let ending = ending.ok_or_else(|| Error::Fatal("the log is closed".to_owned()))?;
        member::start(Joining {
            clients: Arc::clone(&self.0.clients),
            observer: Arc::clone(&self.0.observer),
            admin: Arc::clone(&self.0.admin),
            redrives: Arc::clone(&self.0.redrives),
            subscription,
            assignments,
            siblings,
            runtime: Handle::current(),
            clock: self.clock(),
            figures: Arc::clone(&shown.figures),
            stopped: Arc::clone(&shown.stopped),
            twin: self.0.twin.clone(),
            failure: self.0.failure.clone(),
            _ending: ending,
        })?;
        lock(&self.0.running).insert(function, shown);
        Ok(receiver)
    }
}

impl Log for KafkaLog {
    async fn make_topic(&self, topic: Topic, partitions: u32, retention: Retention) -> Result<(), CatalogError> {
        self.make(topic, partitions, retention).await
    }

    async fn may_make_topic(&self, topic: Topic, partitions: u32, retention: Retention) -> Result<(), CatalogError> {
        self.may_make(topic, partitions, retention).await
    }

    async fn make_internal(&self, topic: Topic, retention: Retention) -> Result<(), CatalogError> {
        Ok(self.make_own(topics::Needed::retained(topic, retention)).await?)
    }

    /// Kafka keeps records by its own settings, whoever reads them.
    async fn retire(&self, _: FunctionName) -> Result<bool, Error> {
        Ok(false)
    }

    /// What Kafka needs done, its brokers do, and whatever happens to them is waited out.
    async fn run(&self) -> Error {
        let mut failure = self.0.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        failed.unwrap_or_else(|| Error::Fatal("the log was closed".to_owned()))
    }

    /// Waits until all functions have left their groups. What has not left in time is taken away by the broker.
    async fn close(&self, within: Duration) {
        drop(lock(&self.0.ending).take());
        let mut ended = self.0.ended.lock().await;
        if tokio::time::timeout(within, ended.recv()).await.is_err() {
            tracing::warn!("Not every function has left its group in time.");
        }
    }
}
