//! The built program, measured with its own `millrace bench` on an application with both guests.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use millrace_tests::process;
use serde::Deserialize;

use super::figure::{Figure, Goal};
use super::{Guests, dispatch, events, sandbox, skeleton};

/// Events of one measure with a kept instance; a fresh one gets a quarter.
const EVENTS: u64 = 1_000_000;
/// How often a case and its limit are measured, one after the other; the middle one counts. The machine is another each minute.
const TURNS: usize = 3;
/// Requests under way at the same time: with few of them the log syncs few events at once, and the cores wait for the disk.
const SENDERS: &str = "16";
/// Events a second for the latency, and how many in a request.
const RATE: (u32, u64) = (20_000, 20);
/// How long the latency is looked at.
const LATENCY_SECONDS: u64 = 20;
/// Events for the growth of memory.
const MANY: u64 = 20_000_000;

/// A part of what `millrace bench --json` says.
#[derive(Deserialize)]
struct Report {
    per_second: f64,
    cpu_micros_per_event: f64,
    log_cpu_micros_per_event: f64,
    sender_cpu_micros_per_event: f64,
    functions: Vec<Function>,
    latency: Option<Latency>,
    memory: Vec<Memory>,
}

#[derive(Deserialize)]
struct Function {
    totals: Totals,
}

#[derive(Deserialize)]
struct Totals {
    completed: u64,
}

#[derive(Deserialize)]
struct Latency {
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
}

#[derive(Deserialize)]
struct Memory {
    settled: u64,
    resident_bytes: f64,
}

/// One way to run a handler.
struct Case {
    name: &'static str,
    component: &'static str,
    reuse: u32,
    /// Events a second.
    goal: f64,
}

const CASES: [Case; 4] = [
    Case { name: "embedded.throughput.reused", component: "tiny.wasm", reuse: 1000, goal: 120_000.0 },
    Case { name: "embedded.throughput.json", component: "json.wasm", reuse: 1000, goal: 60_000.0 },
    Case { name: "embedded.throughput.fresh", component: "tiny.wasm", reuse: 1, goal: 60_000.0 },
    Case { name: "embedded.throughput.fresh_json", component: "json.wasm", reuse: 1, goal: 25_000.0 },
];

pub(crate) fn throughput(guests: &Guests) -> Vec<Figure> {
    let (parse, core) = (dispatch::accepted(), dispatch::handled());
    let mut figures = Vec::new();
    for Case { name, component, reuse, goal } in CASES {
        let count = if reuse == 1 { EVENTS / 4 } else { EVENTS };
        let turn = |_| {
            let scratch = tempfile::tempdir_in(super::target()).expect("a directory");
            let limit = skeleton::throughput(scratch.path(), guests.named(component), reuse == 1, count);
            let application = Application::new(guests, component, reuse, "");
            let report =
                application.bench(&["--count", &count.to_string(), "--batch", "100", "--connections", SENDERS]);
            assert_eq!(report.functions[0].totals.completed, count, "each event is handled once");
            (report, limit)
        };
        let mut turns: Vec<(Report, f64)> = (0..TURNS).map(turn).collect();
        turns.sort_by(|(a, to_a), (b, to_b)| (a.per_second / to_a).total_cmp(&(b.per_second / to_b)));
        let (report, limit) = turns.swap_remove(TURNS / 2);
        let goal = Goal::AtLeast { ratio: 0.3, value: goal };
        figures.push(Figure::new(name, report.per_second, "events/s", limit, goal));
        figures.extend(parts(&report, sandbox::nanos(guests.named(component), reuse), core, parse));
    }
    figures
}

/// Where the CPU time of an event goes. Some parts are measured by themselves, undisturbed by the others.
fn parts(report: &Report, sandbox: f64, core: f64, parse: f64) -> Vec<Figure> {
    let all = report.cpu_micros_per_event * 1e3;
    let (sender, log) = (report.sender_cpu_micros_per_event * 1e3, report.log_cpu_micros_per_event * 1e3);
    let parts = [
        ("  CPU time, all parts", all),
        ("    making the requests", sender),
        ("    the log's threads", log),
        ("    sandbox, measured by itself", sandbox),
        ("    core, measured by itself", core),
        ("    JSON to record, by itself", parse),
        ("    HTTP, workers, disturbance", all - sender - log - sandbox - core - parse),
    ];
    parts.map(|(name, nanos)| Figure::shown(name, nanos, "ns CPU")).into()
}

pub(crate) fn latency(guests: &Guests) -> Vec<Figure> {
    let (rate, batch) = RATE;
    let count = u64::from(rate) * LATENCY_SECONDS;
    let scratch = tempfile::tempdir_in(super::target()).expect("a directory");
    let limit = skeleton::latency(scratch.path(), &guests.tiny, rate, batch, count);
    let application = Application::new(guests, "tiny.wasm", 1000, "");
    let arguments = ["--count", &count.to_string(), "--rate", &rate.to_string(), "--batch", &batch.to_string()];
    let latency = application.bench(&arguments).latency.expect("outputs were seen");
    vec![
        Figure::new("embedded.latency.p99", latency.p99_ms, "ms", limit, Goal::Below(5.0)),
        Figure::shown("embedded.latency.p50", latency.p50_ms, "ms"),
        Figure::shown("embedded.latency.p999", latency.p999_ms, "ms"),
    ]
}

/// Memory after half and after all of very many events, with a window of keys that is full long before.
pub(crate) fn growth(guests: &Guests) -> Vec<Figure> {
    let application = Application::new(guests, "tiny.wasm", 1000, "retention.size = \"64MiB\"");
    let memory = application.bench(&["--count", &MANY.to_string(), "--batch", "200"]).memory;
    // Memory breathes with flushes and compaction: the middle one of some figures counts.
    let around = |from: u64, to: u64| {
        let within = memory.iter().filter(|memory| (from..=to).contains(&memory.settled));
        let mut bytes: Vec<f64> = within.map(|memory| memory.resident_bytes).collect();
        bytes.sort_by(f64::total_cmp);
        bytes[bytes.len() / 2] / f64::from(1 << 20)
    };
    let (half, all) = (around(MANY * 2 / 5, MANY * 3 / 5), around(MANY * 4 / 5, MANY));
    vec![Figure::new("memory.growth", all, "MiB", half, Goal::RatioAtMost(1.05))]
}

/// The time until `millrace dev` has an application ready that is built: the first time, when it is compiled, and after that.
pub(crate) fn ready(guests: &Guests) -> Vec<Figure> {
    let application = Application::new(guests, "json.wasm", 1000, "");
    let times = (0..5).map(|_| {
        let began = Instant::now();
        let mut dev = Dev(application
            .command("dev")
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts"));
        let output = BufReader::new(dev.0.stdout.take().expect("it has an output"));
        let address =
            output.lines().map_while(Result::ok).find_map(|line| Some(line.split_once(" on http://")?.1.to_owned()));
        let address = address.expect("it says where it listens");
        assert!(is_ready(&address), "who says it is ready answers so");
        began.elapsed().as_secs_f64()
    });
    let mut times: Vec<f64> = times.collect();
    let first = times[0];
    times.sort_by(f64::total_cmp);
    vec![
        Figure::new("dev.ready", times[times.len() / 2], "s", 1.0, Goal::RatioAtMost(1.0)),
        Figure::new("dev.ready.first", first, "s", 1.0, Goal::RatioAtMost(1.0)),
    ]
}

fn is_ready(address: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return false };
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// A process that ends with its owner.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An application on disk with one function, eight partitions, and events to publish.
struct Application(tempfile::TempDir);

impl Application {
    fn new(guests: &Guests, component: &str, reuse: u32, retention: &str) -> Self {
        let dir = tempfile::tempdir_in(super::target()).expect("a directory");
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("it can be written");
        write("tiny.wasm", &guests.tiny);
        write("json.wasm", &guests.json);
        write("events.ndjson", events::lines().as_bytes());
        let manifest = format!(
            r#"application = "bench"

[topics.in]
partitions = 8
{retention}

[topics.out]
partitions = 8
{retention}

[functions.handler]
component = "{component}"
topics = ["in"]
grants = {{ publish = ["out"] }}
instance = {{ reuse = {reuse} }}
idempotency = {{ max-keys = 1_000_000 }}
"#
        );
        write("millrace.toml", manifest.as_bytes());
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, command: &str) -> Command {
        let program: PathBuf = process::program();
        let mut called = Command::new(program);
        called.arg(command).arg(self.path());
        called
    }

    fn bench(&self, arguments: &[&str]) -> Report {
        let file = self.path().join("events.ndjson");
        let mut command = self.command("bench");
        command.arg("--file").arg(file).arg("--json").args(arguments);
        let output = command.stderr(Stdio::inherit()).output().expect("it can be started");
        assert!(output.status.success(), "`millrace bench` failed: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("it answers with a report")
    }
}
