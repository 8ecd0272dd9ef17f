//! The built program on a real Kafka, beside a loop on the same client without a sandbox, and beside Kafka Streams.
//!
//! All read the same events from one broker on this machine and answer each with one of the same size and headers, exactly
//! once. Each is a process of its own, so that what it takes can be told.

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_tests::process;

use super::Guests;
use super::figure::{Figure, Goal};
use cluster::{Cluster, Outputs};
use contestant::Contestant;

mod cluster;
mod contestant;
pub(crate) mod functions;
mod latency;
pub(crate) mod native;
pub(crate) mod restore;
pub(crate) mod swaps;

/// Events of one run.
const EVENTS: u64 = 600_000;
/// How many go before the clock starts.
const WARM_UP: u64 = EVENTS / 5;
/// Each contestant is measured so often, in turns; the best counts.
const TURNS: usize = 2;
/// How often the peer commits, in milliseconds.
const INTERVALS_MS: [u32; 4] = [5, 10, 25, 100];
/// With how many threads.
const THREADS: [u32; 2] = [1, 2];
/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at how far a run is.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How a run went.
#[derive(Clone, Copy, Debug)]
struct Run {
    per_second: f64,
    cpu_nanos_per_event: f64,
    peak_bytes: f64,
}

pub(crate) fn measure(guests: &Guests) -> Vec<Figure> {
    let Some(bench) = Bench::new(guests) else { return Vec::new() };
    bench.cluster.create("in");
    bench.cluster.publish("in", EVENTS);
    // Until then the broker has not compiled all that it needs; and it shows what an output is like.
    bench.run(bench.ours(1000, "in"));
    let (mut native, mut reused, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        native.push(bench.run(bench.native()));
        reused.push(bench.run(bench.ours(1000, "in")));
        fresh.push(bench.run(bench.ours(1, "in")));
    }
    let settings = INTERVALS_MS.into_iter().flat_map(|interval| THREADS.map(|threads| (interval, threads)));
    let streams = settings.map(|(interval, threads)| bench.run(bench.streams(interval, threads, "in"))).collect();
    let [native, reused, fresh, streams] = [native, reused, fresh, streams].map(best);
    let ratio = |name, run: Run, limit: Run, ratio| {
        Figure::new(name, run.per_second, "events/s", limit.per_second, Goal::AtLeast { ratio, value: 0.0 })
    };
    let mut figures = vec![ratio("kafka.native.ratio", reused, native, 0.6)];
    figures.extend(reused.usage("  CPU time", "  memory"));
    figures.extend(native.usage("  CPU time of the native loop", "  memory of the native loop"));
    figures.push(ratio("kafka.native.fresh_ratio", fresh, native, 0.35));
    figures.extend(fresh.usage("  CPU time", "  memory"));
    figures.push(ratio("kafka.streams.ratio", reused, streams, 1.2));
    figures.extend(streams.usage("  CPU time of Kafka Streams", "  memory of Kafka Streams"));
    figures.extend(latency::measure(&bench));
    figures
}

#[expect(clippy::needless_pass_by_value, reason = "a function of each list")]
fn best(runs: Vec<Run>) -> Run {
    *runs.iter().max_by(|a, b| a.per_second.total_cmp(&b.per_second)).expect("there was a run")
}

impl Run {
    fn usage(self, cpu: &'static str, memory: &'static str) -> [Figure; 2] {
        [
            Figure::shown(cpu, self.cpu_nanos_per_event, "ns CPU"),
            Figure::shown(memory, self.peak_bytes / f64::from(1 << 20), "MiB"),
        ]
    }
}

/// What all runs share.
struct Bench<'a> {
    guests: &'a Guests,
    cluster: Cluster,
    directory: tempfile::TempDir,
    /// Where Kafka Streams is.
    streams: PathBuf,
    /// What the first run wrote.
    outputs: OnceCell<Outputs>,
    names: Cell<u32>,
}

impl<'a> Bench<'a> {
    /// None if there is no Kafka to be had.
    fn new(guests: &'a Guests) -> Option<Self> {
        let cluster = Cluster::start()?;
        let directory = tempfile::tempdir_in(super::target()).expect("a directory");
        let streams = contestant::fetch_streams();
        Some(Self { guests, cluster, directory, streams, outputs: OnceCell::new(), names: Cell::new(0) })
    }

    /// A name that no other run has.
    fn name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.names.replace(self.names.get() + 1))
    }

    /// `millrace serve` on an application with one function.
    fn ours(&self, reuse: u32, from: &str) -> Contestant {
        let name = self.name("ours");
        let application = self.directory.path().join(&name);
        std::fs::create_dir(&application).expect("a directory");
        let write =
            |file: &str, bytes: &[u8]| std::fs::write(application.join(file), bytes).expect("it can be written");
        write("tiny.wasm", self.guests.named("tiny.wasm"));
        let manifest = format!(
            r#"application = "{name}"

[topics.{from}]
partitions = {partitions}

[topics.out]
partitions = {partitions}

[functions.handler]
component = "tiny.wasm"
topics = ["{from}"]
grants = {{ publish = ["out"] }}
instance = {{ reuse = {reuse} }}
idempotency = {{ max-keys = 1_000_000 }}
"#,
            partitions = cluster::PARTITIONS
        );
        write("millrace.toml", manifest.as_bytes());
        let mut command = Command::new(process::program());
        command.arg("serve").arg(&application).arg("--data").arg(application.join("data"));
        command.args(["--listen", "127.0.0.1:0", "--log-level", "error"]);
        command.arg("--set").arg(format!("kafka.bootstrap={}", self.cluster.bootstrap()));
        Contestant { group: format!("millrace.{name}.handler"), name: format!("ours, reuse {reuse}"), command }
    }

    /// The loop of [`native`], with transactions as large as ours are on average.
    fn native(&self) -> Contestant {
        let outputs = self.outputs.get().expect("ours ran first");
        let group = self.name("native");
        let mut command = Command::new(std::env::current_exe().expect("this program is a file"));
        command.arg(native::WORD).args([self.cluster.bootstrap(), "in", "out", &group]).arg(self.headers());
        command.arg((EVENTS / outputs.transactions).to_string());
        Contestant { group, name: "native loop".to_owned(), command }
    }

    /// Kafka Streams, which commits so often.
    fn streams(&self, interval_ms: u32, threads: u32, from: &str) -> Contestant {
        let group = self.name("streams");
        let mut command = contestant::java(&self.streams);
        command.args([self.cluster.bootstrap(), from, "out", &group]).arg(self.headers());
        command.args([interval_ms.to_string(), threads.to_string()]).arg(self.directory.path().join(&group));
        Contestant { name: format!("Kafka Streams, {interval_ms} ms, {threads} threads"), group, command }
    }

    /// The file with the headers that an output of ours has; all write the same.
    fn headers(&self) -> PathBuf {
        self.directory.path().join("headers")
    }

    /// Runs it on all events, checks what it wrote, and says how it went.
    #[expect(clippy::print_stdout, reason = "long work shows how far it is")]
    fn run(&self, mut contestant: Contestant) -> Run {
        self.cluster.create("out");
        let observer = self.cluster.observer(&contestant.group);
        let mut running = contestant.start();
        let (began, mut warm) = (Instant::now(), None);
        let (warm, last) = loop {
            let look = (cluster::committed(&observer, "in"), running.usage(), Instant::now());
            match warm {
                None if look.0 >= WARM_UP => warm = Some(look),
                Some(warm) if look.0 >= EVENTS => break (warm, look),
                _ => {}
            }
            assert!(began.elapsed() < PATIENCE, "{}: {} of {EVENTS} after {PATIENCE:?}", contestant.name, look.0);
            std::thread::park_timeout(LOOK_AGAIN);
        };
        drop(running);
        let outputs = self.cluster.outputs("out");
        assert_eq!(outputs.distinct, EVENTS, "{}: each event is answered", contestant.name);
        assert_eq!(outputs.records, EVENTS, "{}: each event is answered once", contestant.name);
        self.cluster.delete("out");
        let events = count(last.0 - warm.0);
        let run = Run {
            per_second: events / last.2.duration_since(warm.2).as_secs_f64(),
            cpu_nanos_per_event: (last.1.cpu_nanos - warm.1.cpu_nanos) / events,
            peak_bytes: last.1.peak_bytes,
        };
        let each = EVENTS / outputs.transactions;
        println!("    {:<34} {:>11.0} events/s  {each} in a transaction", contestant.name, run.per_second);
        if self.outputs.get().is_none() {
            native::write_headers(&self.headers(), &outputs.headers);
            drop(self.outputs.set(outputs));
        }
        run
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}
