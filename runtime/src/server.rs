//! The composition root: open the log, stage and activate functions, serve, drain.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_core::limits;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::FunctionName;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::api::{AccessOptions, Api, ApiOptions, Keyring as _};
use crate::broker::embedded::{self, EmbeddedLog, OpenError};
#[cfg(feature = "kafka")]
use crate::broker::kafka::{self, KafkaLog};
use crate::broker::{self, CatalogError, Log, Retention};
use crate::clock::Clock;
use crate::config::Config;
use crate::registry::{Registry, lock};
use crate::sandbox::{self, Compiler, Engine, EngineOptions};
use crate::telemetry::{self, Exporter};
use crate::tls;
use crate::worker::feed::Feed;

mod activation;
mod follow;
mod ledger;
mod report;
mod revisions;
mod stage;
mod strays;
mod tokens;
mod topics;

use ledger::Ledger;
use revisions::Revisions;
use stage::without_name;
pub use stage::{StageError, Staged, function_options, intake, read_component};
use tokens::Keys;
use topics::Topics;

/// How long others are waited for after everything was drained, such as for the group that a function leaves.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Others could reach the API, and it would let everybody in.
    #[error(
        "the API would listen on {address}, where others can reach it, and nobody needs a token: give an administrator's token with \
         http.admin-token-file or MILLRACE_ADMIN_TOKEN, or say http.allow-anonymous = true if the network is closed"
    )]
    Exposed {
        /// The address.
        address: std::net::SocketAddr,
    },
    /// The certificate of the API.
    #[error(transparent)]
    Tls(#[from] tls::Unusable),
    /// The address.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        reason: String,
    },
}

/// A running process: log, sandbox, functions.
pub struct Server<L: Log = EmbeddedLog> {
    log: Arc<L>,
    revisions: Revisions<L>,
    clock: Clock,
    config: Config,
    /// The certificate that the API shows; without one it speaks plain HTTP.
    tls: Option<Arc<tls::Identity>>,
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

/// Whether only this machine reaches it.
fn is_of_this_machine(address: std::net::SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl<L: Log> Server<L> {
    async fn start(
        config: Config,
        clock: Clock,
        open: impl FnOnce() -> Result<L, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let files = config.http.tls_certificate_file.clone().zip(config.http.tls_key_file.clone());
        let files = files.map(|(certificate, key)| tls::Files { certificate, key });
        // Before anything runs that would have to be stopped again.
        let tls = files.map(|files| tls::Identity::open(files, clock)).transpose()?.map(Arc::new);
        let cache_dir = Some(config.data.join("compiled"));
        let engine = EngineOptions { cache_dir, compiler: Compiler::apart(), ..EngineOptions::default() };
        let opening = tokio::task::spawn_blocking(move || Ok::<_, StartError>((open()?, Engine::new(engine)?)));
        let (log, engine) = opening.await.map_err(|e| broker::Error::Fatal(e.to_string()))??;
        let log = Arc::new(log);
        let (tracing, exporter) = telemetry::start(&config.otlp);
        let revisions = Revisions {
            registry: Registry::new(Arc::clone(&log), clock).with_tracing(tracing),
            engine,
            clock,
            prefix: config.prefix.clone(),
            signatures: Arc::new(config.signatures.trusted.clone()),
            topics: Topics::new(Arc::clone(&log), config.topics.clone()),
            keys: Keys::new(Arc::clone(&log)),
            ledger: Ledger::new(Arc::clone(&log), &config.prefix, clock)
                .map_err(|e| broker::Error::Fatal(e.to_string()))?,
            known: Arc::default(),
            changing: Arc::default(),
            examining: Arc::new(Semaphore::new(1)),
            loading: Arc::new(Semaphore::new(limits::FUNCTIONS_STARTED_AT_ONCE)),
            starting: Arc::new(Semaphore::new(limits::FUNCTIONS_STARTED_AT_ONCE)),
            here: Arc::default(),
            changed: Arc::default(),
            log: Arc::clone(&log),
        };
        revisions.refresh().await?;
        revisions.topics.look().await?;
        Ok(Self { log, revisions, clock, config, tls, exporter: Mutex::new(exporter) })
    }

    /// The functions that run here.
    #[must_use]
    pub fn registry(&self) -> &Registry<L, Staged> {
        &self.revisions.registry
    }

    /// Tells of the events of functions activated from now on.
    pub fn set_feed(&mut self, feed: Feed) {
        self.revisions.registry = self.revisions.registry.clone().with_feed(feed);
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
        Ok(self.revisions.topics.make(manifest).await?)
    }

    /// Runs what was uploaded. What cannot run is remembered with its reason.
    ///
    /// # Errors
    /// If the log could not be read.
    pub async fn activate_uploaded(&self) -> Result<(), broker::Error> {
        self.revisions.catch_up().await
    }

    /// Lets go of functions that are not in the manifest, be it that they run here or that an earlier process ran them, maybe
    /// when the application had another name: the log need not keep records for them. Their progress and their dead letters
    /// stay, should they come back. Answers with their names. Only for a log with one application.
    ///
    /// # Errors
    /// If the log could not act.
    pub async fn retire_others(&self, manifest: &Manifest) -> Result<Vec<FunctionName>, broker::Error> {
        let running = self.registry().functions().into_iter().map(|info| info.settings.name.clone());
        let refused = self.registry().refused();
        let here: Vec<FunctionName> = running.chain(refused.keys().cloned()).collect();
        let known = lock(&self.revisions.known).histories.keys().cloned().chain(here).collect::<Vec<_>>().into_iter();
        let gone: BTreeSet<FunctionName> = known
            .filter(|name| manifest.functions.iter().all(|function| function.name != *name))
            .filter(|name| !self.revisions.is_uploaded(name))
            .collect();
        let mut retired = Vec::new();
        for name in gone {
            let _alone = self.revisions.alone(&name).await;
            self.registry().deactivate(&name).await;
            if self.log.retire(name.clone()).await? || refused.contains_key(&name) {
                retired.push(name);
            }
        }
        Ok(retired)
    }

    /// Reads, checks and compiles a function's component, stores the deployment if it is a new one, and runs it in place
    /// of the revision that ran before. Answers with the revision's number.
    ///
    /// # Errors
    /// If anything is wrong with it, or if an uploaded revision runs in its place; the revision that ran before goes on. If
    /// there is none, the registry remembers why.
    pub async fn activate(&self, function: &Function, directory: &Path) -> Result<u64, StageError> {
        let activated = self.revisions.activate(function, directory).await;
        if let Err(error) = &activated {
            self.registry().refuse(&function.name, without_name(error, &function.name));
        }
        activated
    }

    /// Listens where the configuration says.
    ///
    /// # Errors
    /// If the address cannot be used, or if others could reach it and nobody needs a token.
    pub async fn listen(&self) -> Result<tokio::net::TcpListener, StartError> {
        let (address, http) = (self.config.http.listen, &self.config.http);
        let tokens = self.revisions.keys.tokens();
        let is_closed = http.admin_token.is_some() || tokens.are_needed();
        if !is_closed && !is_of_this_machine(address) && !http.allow_anonymous {
            return Err(StartError::Exposed { address });
        }
        if http.admin_token.is_none() && tokens.count() > 0 && !tokens.iter().any(|(_, token)| token.lasts()) {
            tracing::error!(
                "There are tokens, and none with the role admin that does not expire: to make or revoke others, give the server \
                 http.admin-token-file and start it again."
            );
        }
        tokio::net::TcpListener::bind(address).await.map_err(|e| StartError::Listen { address, reason: e.to_string() })
    }

    /// The address under which clients ask for it.
    #[must_use]
    pub fn url(&self, address: std::net::SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Who may do what, for whoever comes in here.
    fn access(&self, listener: &tokio::net::TcpListener) -> AccessOptions {
        let http = &self.config.http;
        let is_near = listener.local_addr().is_ok_and(is_of_this_machine);
        AccessOptions {
            open_without_tokens: is_near || http.allow_anonymous,
            open_metrics: http.metrics_open,
            admin_token: http.admin_token,
            rate: http.rate(),
        }
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
            access: self.access(&listener),
            max_concurrent: http.requests_in_flight,
            max_body_bytes: http.request_max_bytes,
            drain: self.config.drain,
            tls: self.tls.clone(),
        };
        let api = Api::new(options, Arc::clone(&self.log), self.registry().clone(), self.clock);
        let api = api.with_deployer(Arc::new(self.revisions.clone()));
        let api = api.with_keyring(Arc::new(self.revisions.keys.clone()));
        let api = api.with_journal(Arc::new(self.revisions.ledger.clone()));
        api.set_ready();
        let _reading_again = self.tls.clone().map(|tls| {
            let mut reading = JoinSet::new();
            reading.spawn(async move { tls.follow(tls::LOOK_EVERY).await });
            reading
        });
        let (unfollow, unfollowed) = watch::channel(false);
        let mut following = tokio::spawn(self.revisions.clone().follow(unfollowed));
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(crate::api::serve(listener, api, async {
            stopped.await.ok();
        }));
        let mut failure = self.registry().failure();
        let failed = tokio::select! {
            () = stop => None,
            _ = failure.wait_for(Option::is_some) => None,
            error = self.log.run() => Some(error),
            ended = &mut following => {
                let why = ended.err().map_or_else(String::new, |error| format!(": {error}"));
                Some(broker::Error::Fatal(format!("following what is deployed has ended{why}")))
            }
        };
        if let Some(error) = failed {
            // Until the last request is answered, the API says so.
            self.registry().fail(error);
        }
        let failed = failure.borrow_and_update().clone();
        drop(stopping);
        unfollow.send_replace(true);
        // A function that starts while all are drained would be left over.
        if !following.is_finished() && tokio::time::timeout(self.config.drain, &mut following).await.is_err() {
            following.abort();
        }
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
        self.registry().drain(self.config.drain).await;
        self.log.close(CLOSE_TIMEOUT).await;
    }
}
