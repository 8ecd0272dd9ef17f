//! The composition root: open the log, stage and activate functions, serve, drain.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use millrace_core::expression::{Filter, KeyExpression};
use millrace_core::intake::Intake;
use millrace_core::limits;
use millrace_core::manifest::{self, Function, Manifest};
use millrace_core::name::{FunctionName, Topic};
use millrace_core::units::rounded;

use crate::api::{Api, ApiOptions};
use crate::broker::embedded::{self, EmbeddedLog, OpenError};
#[cfg(feature = "kafka")]
use crate::broker::kafka::{self, KafkaLog};
use crate::broker::{self, CatalogError, DeployError, Deployment as Deployed, Log, Retention};
use crate::clock::Clock;
use crate::config::Config;
use crate::registry::{Deployment, Registry, lock};
use crate::sandbox::{self, Component, Engine, EngineOptions, FunctionOptions, Guest, GuestLimits, Refusal};
use crate::telemetry::{self, Exporter};
use crate::worker::Revision;
use crate::worker::feed::Feed;

/// How long others are waited for after everything was drained, such as for the group that a function leaves.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A revision of a function on the real sandbox.
#[derive(Debug)]
pub struct Staged {
    number: u64,
    intake: Intake,
    keeps_state: bool,
    function: sandbox::Function,
}

impl Revision for Staged {
    type Sandbox = Guest;

    fn number(&self) -> u64 {
        self.number
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn keeps_state(&self) -> bool {
        self.keeps_state
    }

    fn sandbox(&self) -> Guest {
        self.function.guest()
    }
}

/// Why the process could not start. Each message names the fix.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The sandbox.
    #[error("the sandbox cannot be prepared: {0}")]
    Sandbox(#[from] sandbox::Error),
    /// The log could not act.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// A topic cannot be made.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The address.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        reason: String,
    },
}

/// Why a function could not be staged. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The component's file cannot be read.
    #[error("{function}: cannot read the component `{}`: {reason}; build it with `millrace build`", file.display())]
    Missing {
        /// The function.
        function: FunctionName,
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The component's file is larger than a component can be.
    #[error(
        "{function}: the component `{}` has {}, more than {}; build it in release mode, and strip it",
        file.display(),
        rounded(*size_bytes),
        rounded(limits::COMPONENT_MAX_BYTES as u64)
    )]
    TooLarge {
        /// The function.
        function: FunctionName,
        /// The file.
        file: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The component is refused.
    #[error("{function}: {reason}")]
    Refused {
        /// The function.
        function: FunctionName,
        /// Why, and what to do.
        reason: Refusal,
    },
    /// An expression does not compile.
    #[error("{function}: {key}: {reason}")]
    Expression {
        /// The function.
        function: FunctionName,
        /// The key in the manifest.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// Others deploy the function at the same time, and something else.
    #[error(transparent)]
    Conflict(DeployError),
    /// The log could not act.
    #[error("{function}: {reason}")]
    Broker {
        /// The function.
        function: FunctionName,
        /// Why.
        reason: broker::Error,
    },
}

/// A running process: log, sandbox, functions.
pub struct Server<L: Log = EmbeddedLog> {
    log: Arc<L>,
    engine: Engine,
    registry: Registry<L, Staged>,
    clock: Clock,
    config: Config,
    /// Topics that exist, for whoever asks in the middle of an invocation.
    topics: Arc<RwLock<HashSet<Topic>>>,
    /// The latest deployment of each function: its number and what it says.
    deployed: Mutex<BTreeMap<FunctionName, (u64, Bytes)>>,
    /// Sends spans, until the process ends.
    exporter: Mutex<Option<Exporter>>,
}

impl Server {
    /// Opens the embedded log and prepares the sandbox. Blocks on the disk.
    ///
    /// # Errors
    /// If the log cannot be opened or the sandbox not be prepared.
    pub async fn open(config: Config) -> Result<Self, StartError> {
        let clock = Clock::system();
        let options = embedded::Options {
            prefix: config.prefix.clone(),
            retention: Retention {
                max_age: Some(config.topics.retention_age),
                max_bytes: Some(config.topics.retention_bytes),
            },
            letter_retention: config.storage.letter_retention,
            size_max_bytes: config.storage.max_bytes,
            clock,
            ..embedded::Options::new(config.data.join("log"))
        };
        Self::start(config, clock, move || Ok(EmbeddedLog::open(options)?)).await
    }
}

#[cfg(feature = "kafka")]
impl Server<KafkaLog> {
    /// Connects to Kafka and prepares the sandbox.
    ///
    /// # Errors
    /// If no broker answers, a property is wrong, or the sandbox cannot be prepared.
    pub async fn connect(config: Config) -> Result<Self, StartError> {
        let clock = Clock::system();
        let options = kafka_options(&config, clock);
        Self::start(config, clock, move || Ok(KafkaLog::open(options)?)).await
    }

    /// Connects to Kafka alone, for whoever only wants to look at it.
    ///
    /// # Errors
    /// If no broker answers, or a property is wrong.
    pub async fn reach(config: &Config) -> Result<KafkaLog, StartError> {
        let options = kafka_options(config, Clock::system());
        let opening = tokio::task::spawn_blocking(move || KafkaLog::open(options));
        Ok(opening.await.map_err(|e| broker::Error::Fatal(e.to_string()))??)
    }
}

#[cfg(feature = "kafka")]
fn kafka_options(config: &Config, clock: Clock) -> kafka::Options {
    kafka::Options {
        prefix: config.prefix.clone(),
        instance: config.kafka.instance.clone(),
        replication: config.kafka.replication,
        properties: config.kafka.properties.clone(),
        clock,
        ..kafka::Options::new(&config.kafka.bootstrap)
    }
}

impl<L: Log> Server<L> {
    async fn start(
        config: Config,
        clock: Clock,
        open: impl FnOnce() -> Result<L, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let engine = EngineOptions { cache_dir: Some(config.data.join("compiled")), ..EngineOptions::default() };
        let opening = tokio::task::spawn_blocking(move || Ok::<_, StartError>((open()?, Engine::new(engine)?)));
        let (log, engine) = opening.await.map_err(|e| broker::Error::Fatal(e.to_string()))??;
        let log = Arc::new(log);
        let deployed = latest(log.deployments(None).await?.deployments);
        let (tracing, exporter) = telemetry::start(&config.otlp);
        let server = Self {
            registry: Registry::new(Arc::clone(&log), clock).with_tracing(tracing),
            log,
            engine,
            clock,
            config,
            topics: Arc::default(),
            deployed: Mutex::new(deployed),
            exporter: Mutex::new(exporter),
        };
        server.look_at_topics().await?;
        Ok(server)
    }

    /// The functions that run here.
    #[must_use]
    pub fn registry(&self) -> &Registry<L, Staged> {
        &self.registry
    }

    /// Tells of the events of functions activated from now on.
    pub fn set_feed(&mut self, feed: Feed) {
        self.registry = self.registry.clone().with_feed(feed);
    }

    /// The log, for whoever reads it from within the process.
    #[must_use]
    pub fn log(&self) -> &L {
        &self.log
    }

    /// The resolved configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the topics that a manifest mentions, and gives each its retention; answers with those that are new. Nothing is
    /// done if one of them exists with another number of partitions.
    ///
    /// # Errors
    /// If one exists with another number of partitions, or the log could not act.
    pub async fn make_topics(&self, manifest: &Manifest) -> Result<Vec<String>, StartError> {
        let existing = self.log.partition_counts().await?;
        let settings = |topic: &Topic| manifest.topics.iter().find(|settings| settings.name == *topic);
        let wanted = |topic: &Topic| settings(topic).and_then(|settings| settings.partitions);
        for topic in manifest.mentioned_topics() {
            if let (Some(wanted), Some(existing)) = (wanted(topic), existing.get(topic.as_str()).copied())
                && wanted != existing
            {
                return Err(CatalogError::PartitionCount { topic: topic.clone(), existing, wanted }.into());
            }
        }
        let mut made = Vec::new();
        for topic in manifest.mentioned_topics() {
            let partitions = existing.get(topic.as_str()).copied().or(wanted(topic));
            let own = settings(topic).map(|settings| settings.retention).unwrap_or_default();
            // What it does not say is the configuration's to say.
            let retention = if own == manifest::Retention::default() {
                Retention::default()
            } else {
                Retention {
                    max_age: own.age.or(Some(self.config.topics.retention_age)),
                    max_bytes: own.size_bytes.or(Some(self.config.topics.retention_bytes)),
                }
            };
            self.log.make_topic(topic.clone(), partitions.unwrap_or(self.config.topics.partitions), retention).await?;
            if !existing.contains_key(topic.as_str()) {
                made.push(topic.to_string());
            }
        }
        self.look_at_topics().await?;
        Ok(made)
    }

    /// Lets go of functions that are not in the manifest, be it that they run here or that an earlier process ran them, maybe
    /// when the application had another name: the log need not keep records for them. Their progress and their dead letters
    /// stay, should they come back. Answers with their names. Only for a log with one application.
    ///
    /// # Errors
    /// If the log could not act.
    pub async fn retire_others(&self, manifest: &Manifest) -> Result<Vec<FunctionName>, broker::Error> {
        let running = self.registry.functions().into_iter().map(|info| info.settings.name.clone());
        let refused = self.registry.refused();
        let here: Vec<FunctionName> = running.chain(refused.keys().cloned()).collect();
        let known = lock(&self.deployed).keys().cloned().chain(here).collect::<Vec<_>>().into_iter();
        let gone: BTreeSet<FunctionName> =
            known.filter(|name| manifest.functions.iter().all(|function| function.name != *name)).collect();
        let mut retired = Vec::new();
        for name in gone {
            self.registry.deactivate(&name).await;
            if self.log.retire(name.clone()).await? || refused.contains_key(&name) {
                retired.push(name);
            }
        }
        Ok(retired)
    }

    async fn look_at_topics(&self) -> Result<(), StartError> {
        let topics = self.log.partition_counts().await?.into_keys().filter_map(|name| Topic::new(name).ok()).collect();
        *self.topics.write().unwrap_or_else(PoisonError::into_inner) = topics;
        Ok(())
    }

    /// Reads, checks and compiles a function's component, stores the deployment if it is a new one, and runs it in place
    /// of the revision that ran before. Answers with the revision's number.
    ///
    /// # Errors
    /// If anything is wrong with it; the revision that ran before goes on. If there is none, the registry remembers why.
    pub async fn activate(&self, function: &Function, directory: &Path) -> Result<u64, StageError> {
        let activated = self.stage(function, directory).await;
        if let Err(error) = &activated {
            let reason = error.to_string();
            // Whoever shows it names the function anyway.
            let without_name = reason.strip_prefix(&format!("{}: ", function.name));
            self.registry.refuse(&function.name, without_name.unwrap_or(&reason).to_owned());
        }
        activated
    }

    async fn stage(&self, function: &Function, directory: &Path) -> Result<u64, StageError> {
        let intake = intake(function)?;
        let component = self.load(function, directory).await?;
        let digest = component.digest().to_string();
        let options = self.options(function);
        let staged = sandbox::Function::new(&self.engine, &component, options)
            .map_err(|reason| StageError::Refused { function: function.name.clone(), reason })?;
        let number = self.number(function, &digest).await.map_err(|error| match error {
            DeployError::Broker(reason) => StageError::Broker { function: function.name.clone(), reason },
            conflict @ DeployError::Conflict { .. } => StageError::Conflict(conflict),
        })?;
        let revision = Staged { number, intake, keeps_state: function.grants.state, function: staged };
        let activated = self.registry.activate(Deployment { settings: function.clone(), digest, revision }).await;
        activated.map_err(|reason| StageError::Broker { function: function.name.clone(), reason })?;
        Ok(number)
    }

    async fn load(&self, function: &Function, directory: &Path) -> Result<Component, StageError> {
        let bytes = read_component(function, directory).await?;
        let refused = |reason| StageError::Refused { function: function.name.clone(), reason };
        self.engine.load(bytes).await.map_err(refused)
    }

    fn options(&self, function: &Function) -> FunctionOptions {
        let topics = Arc::clone(&self.topics);
        FunctionOptions {
            known_topics: Arc::new(move |topic| topics.read().unwrap_or_else(PoisonError::into_inner).contains(topic)),
            ..function_options(function)
        }
    }

    /// The number of this deployment: a new one unless it says the same as the latest.
    async fn number(&self, function: &Function, digest: &str) -> Result<u64, DeployError> {
        let content = serde_json::json!({ "component": digest, "function": function }).to_string();
        let content = Bytes::from(content);
        let known = lock(&self.deployed).get(&function.name).cloned();
        let number = match self.propose(&function.name, known, &content).await {
            Err(DeployError::Conflict { .. }) => {
                // Another instance was quicker, with the same as a rule.
                let known = latest(self.log.deployments(None).await?.deployments).remove(&function.name);
                self.propose(&function.name, known, &content).await?
            }
            number => number?,
        };
        lock(&self.deployed).insert(function.name.clone(), (number, content));
        Ok(number)
    }

    /// Deploys on top of the latest deployment that is known, unless that says the same.
    async fn propose(
        &self,
        function: &FunctionName,
        known: Option<(u64, Bytes)>,
        content: &Bytes,
    ) -> Result<u64, DeployError> {
        match known {
            Some((number, said)) if said == *content => Ok(number),
            known => {
                let previous = known.map_or(0, |(number, _)| number);
                self.log.append_deployment(function.clone(), previous, content.clone()).await
            }
        }
    }

    /// Listens where the configuration says.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub async fn listen(&self) -> Result<tokio::net::TcpListener, StartError> {
        let address = self.config.http.listen;
        tokio::net::TcpListener::bind(address).await.map_err(|e| StartError::Listen { address, reason: e.to_string() })
    }

    /// Serves until `stop` ends or the log fails, then drains.
    ///
    /// # Errors
    /// If the log failed: the process must stop then.
    pub async fn run(
        &self,
        listener: tokio::net::TcpListener,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), broker::Error> {
        let http = &self.config.http;
        let options = ApiOptions {
            allowed_hosts: http.hosts.clone(),
            prefix: self.config.prefix.clone(),
            max_concurrent: http.requests_in_flight,
            max_body_bytes: http.request_max_bytes,
            drain: self.config.drain,
        };
        let api = Api::new(options, Arc::clone(&self.log), self.registry.clone(), self.clock);
        api.set_ready();
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(crate::api::serve(listener, api, async {
            stopped.await.ok();
        }));
        let mut failure = self.registry.failure();
        let failed = tokio::select! {
            () = stop => None,
            _ = failure.wait_for(Option::is_some) => None,
            error = self.log.run() => Some(error),
        };
        if let Some(error) = failed {
            // Until the last request is answered, the API says so.
            self.registry.fail(error);
        }
        let failed = failure.borrow_and_update().clone();
        drop(stopping);
        self.stop().await;
        if let Err(error) = serving.await {
            tracing::error!(%error, "The server ended abruptly.");
        }
        let exporter = lock(&self.exporter).take();
        if let Some(exporter) = exporter {
            exporter.finish().await;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Drains all functions, within the time that the configuration gives them, and lets go of the log.
    pub async fn stop(&self) {
        self.registry.drain(self.config.drain).await;
        self.log.close(CLOSE_TIMEOUT).await;
    }
}

/// The latest deployment of each function: its number and what it says.
fn latest(deployments: Vec<Deployed>) -> BTreeMap<FunctionName, (u64, Bytes)> {
    deployments.into_iter().map(|d| (d.function, (d.number, d.content))).collect()
}

/// Reads a function's component.
///
/// # Errors
/// If it cannot be read, is no file, or is larger than a component can be.
pub async fn read_component(function: &Function, directory: &Path) -> Result<Bytes, StageError> {
    let file = directory.join(&function.component);
    let missing = |reason| StageError::Missing { function: function.name.clone(), file: file.clone(), reason };
    let metadata = tokio::fs::metadata(&file).await.map_err(|e| missing(e.to_string()))?;
    if !metadata.is_file() {
        return Err(missing("it is not a file".to_owned()));
    }
    if metadata.len() > limits::COMPONENT_MAX_BYTES as u64 {
        let (function, size_bytes) = (function.name.clone(), metadata.len());
        return Err(StageError::TooLarge { function, file, size_bytes });
    }
    Ok(tokio::fs::read(&file).await.map_err(|e| missing(e.to_string()))?.into())
}

/// How a function takes records in.
///
/// # Errors
/// If an expression does not compile.
pub fn intake(function: &Function) -> Result<Intake, StageError> {
    let wrong =
        |key: &'static str, reason: String| StageError::Expression { function: function.name.clone(), key, reason };
    let filter = function.filter.as_deref().map(Filter::compile).transpose();
    let key = function.idempotency.key.as_deref().map(KeyExpression::compile).transpose();
    Ok(Intake {
        ordering: function.ordering,
        filter: filter.map_err(|e| wrong("filter", e.to_string()))?,
        key: key.map_err(|e| wrong("idempotency.key", e.to_string()))?,
    })
}

/// What a manifest says of a function's guests; all granted topics are taken for known.
#[must_use]
pub fn function_options(function: &Function) -> FunctionOptions {
    FunctionOptions {
        name: function.name.clone(),
        config: function.config.clone().into_iter().collect(),
        publish: function.grants.publish.clone(),
        state: function.grants.state,
        known_topics: Arc::new(|_| true),
        limits: GuestLimits {
            time: function.limits.time,
            memory_bytes: function.limits.memory_bytes,
            emitted_events: function.limits.emitted_events,
            emitted_bytes: function.limits.emitted_bytes,
            event_bytes: limits::EVENT_MAX_BYTES,
            log_bytes: function.limits.log_bytes,
            ..GuestLimits::default()
        },
        reuse: NonZeroU32::new(function.instance.reuse_events).unwrap_or(NonZeroU32::MIN),
    }
}
