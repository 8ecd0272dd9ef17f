//! The logs that there are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace::broker::embedded::{self, EmbeddedLog};
use millrace::broker::kafka::{self, KafkaLog};
use millrace::broker::{Broker, Catalog, Log as _};
use millrace::clock::Clock;
use millrace_core::name::Topic;
use millrace_core::time::Timestamp;
use millrace_tests::sim::{SimBroker, SimCluster};
use tempfile::TempDir;

/// A log that can be opened by one instance after the other, or by several.
pub(crate) trait Subject: Sized {
    type Log: Broker + Catalog;

    /// Nothing is in it. None, with a loud line, where there is none to test on.
    async fn new() -> Option<Self>;

    /// One more instance. Where a log is for one process, all share it.
    async fn open(&self) -> Self::Log;

    /// Ends an instance as a process does that was told to, once everything that it gave out was dropped.
    async fn close(&self, log: Self::Log);

    /// A name that nobody else uses.
    fn topic(&self, name: &str) -> Topic;

    fn clock(&self) -> Clock;

    /// The time now in whole milliseconds, as logs keep it.
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock().now().as_millis())
    }
}

/// A directory, and the log in it with the number of its users.
pub(crate) struct Embedded {
    dir: TempDir,
    open: Mutex<(Option<EmbeddedLog>, usize)>,
    clock: Clock,
}

impl Subject for Embedded {
    type Log = EmbeddedLog;

    async fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        Some(Self { dir, open: Mutex::default(), clock: Clock::system() })
    }

    async fn open(&self) -> EmbeddedLog {
        let mut open = self.open.lock().expect("nothing panics while it holds the log");
        let opening =
            || EmbeddedLog::open(embedded::Options { clock: self.clock, ..embedded::Options::new(self.dir.path()) });
        open.1 += 1;
        open.0.get_or_insert_with(|| opening().expect("the log can be opened")).clone()
    }

    async fn close(&self, log: EmbeddedLog) {
        drop(log);
        let mut open = self.open.lock().expect("nothing panics while it holds the log");
        open.1 -= 1;
        if open.1 == 0 {
            open.0 = None;
        }
    }

    fn topic(&self, name: &str) -> Topic {
        name.parse().expect("a topic")
    }

    fn clock(&self) -> Clock {
        self.clock
    }
}

/// A cluster, by the newer protocol of consumer groups or the classic one.
pub(crate) struct Kafka<const CONSUMER_PROTOCOL: bool> {
    bootstrap: String,
    /// Tells what this test makes from what others do.
    suffix: String,
    clock: Clock,
}

impl<const CONSUMER_PROTOCOL: bool> Subject for Kafka<CONSUMER_PROTOCOL> {
    type Log = KafkaLog;

    #[expect(clippy::print_stderr, reason = "whoever reads the output of the tests must see that these did not run")]
    async fn new() -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Some(bootstrap) = std::env::var("KAFKA_BOOTSTRAP").ok().filter(|address| !address.is_empty()) else {
            eprintln!("##### SKIPPED: there is no Kafka to test on; set KAFKA_BOOTSTRAP, or run `make test` #####");
            return None;
        };
        let clock = Clock::system();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let suffix = format!("{}-{}-{number}", clock.now().as_nanos(), std::process::id());
        Some(Self { bootstrap, suffix, clock })
    }

    async fn open(&self) -> KafkaLog {
        let mut options =
            kafka::Options { prefix: format!("test-{}", self.suffix), ..kafka::Options::new(&self.bootstrap) };
        let protocol = if CONSUMER_PROTOCOL { "consumer" } else { "classic" };
        options.properties.insert("group.protocol".into(), protocol.into());
        let opened = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await;
        opened.expect("opening does not panic").expect("the cluster can be reached")
    }

    async fn close(&self, log: KafkaLog) {
        log.close(Duration::from_secs(10)).await;
    }

    fn topic(&self, name: &str) -> Topic {
        format!("{name}-{}", self.suffix).parse().expect("a topic")
    }

    fn clock(&self) -> Clock {
        self.clock
    }
}

pub(crate) struct Simulator(SimCluster);

impl Subject for Simulator {
    type Log = SimBroker;

    async fn new() -> Option<Self> {
        Some(Self(SimCluster::new(0)))
    }

    async fn open(&self) -> SimBroker {
        self.0.open()
    }

    async fn close(&self, log: SimBroker) {
        log.leave();
    }

    fn topic(&self, name: &str) -> Topic {
        name.parse().expect("a topic")
    }

    fn clock(&self) -> Clock {
        self.0.clock()
    }
}
