//! What it costs an event that revisions are swapped all the time: its way from its publisher to whoever reads what came of it, with swaps beside
//! without.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hyper::{Method, StatusCode};
use millrace_tests::process::{Api, Dev, application, program, revised_application};
use serde_json::{Value, json};

use super::events;
use super::figure::{Figure, Goal};

/// Events in a batch, one of which is published this often.
const BATCH: u64 = 20;
const BATCH_EVERY: Duration = Duration::from_millis(10);
/// Batches before the clock starts, and while it runs.
const WARM_UP: u64 = 500;
const MEASURED: u64 = 2_500;
/// How often it is asked who runs what. Each time takes a look at the log.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Revisions whose numbers these are take each other's place: each is activated by a deployment of its own.
const REVISIONS: [u64; 2] = [1, 3];
/// The topic that events are published to, and those that what comes of them is in, one for each run.
pub(crate) const IN: &str = "in";
pub(crate) const OUT: [&str; 7] = ["out-1", "out-2", "out-3", "out-4", "out-5", "out-6", "out-7"];
/// How much longer 99 of a hundred events may take while they do.
const RATIO_MAX: f64 = 2.0;

/// In milliseconds, until all instances run what is swapped for what ran.
const CONVERGED_MAX_MS: f64 = 2_000.0;

/// What the figures are called.
pub(crate) struct Names {
    pub(crate) p99: &'static str,
    pub(crate) converged: &'static str,
}

/// How an event's way is with swaps and without.
pub(crate) struct Compared {
    pub(crate) without_ms: f64,
    pub(crate) with_ms: f64,
    pub(crate) swaps: Histogram<u64>,
}

impl Compared {
    pub(crate) fn figures(&self, names: &Names) -> Vec<Figure> {
        let swaps = self.swaps.len() as f64;
        let slowest = self.swaps.max() as f64 / 1e3;
        vec![
            Figure::new(names.p99, self.with_ms, "ms", self.without_ms, Goal::RatioAtMost(RATIO_MAX)),
            Figure::new(names.converged, slowest, "ms", CONVERGED_MAX_MS, Goal::Below(CONVERGED_MAX_MS)),
            Figure::shown("  swaps meanwhile", swaps, "swaps"),
            Figure::shown("  until all run it, median", self.swaps.value_at_quantile(0.5) as f64 / 1e3, "ms"),
        ]
    }
}

pub(crate) fn embedded() -> Vec<Figure> {
    let directory = tempfile::tempdir_in(super::target()).expect("a directory");
    let mut command = Command::new(program());
    command.args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"]);
    let server = Dev::started(command.arg(directory.path().join("data")).current_dir(directory.path()));
    deploy_two(&server.url, directory.path(), 8);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let compared = runtime.expect("a runtime").block_on(async {
        let without_ms = p99(&server.url, OUT[0], 0).await;
        let swapping = Swapping::start(&server.url, 1);
        let with_ms = p99(&server.url, OUT[1], WARM_UP + MEASURED).await;
        Compared { without_ms, with_ms, swaps: swapping.stop().await }
    });
    compared.figures(&Names { p99: "swaps.embedded.p99_ratio", converged: "swaps.embedded.converged" })
}

/// Deploys two revisions of one function.
pub(crate) fn deploy_two(url: &str, directory: &Path, partitions: i32) {
    let topics = std::iter::once(IN).chain(OUT);
    let topics: String = topics.map(|topic| format!("[topics.{topic}]\npartitions = {partitions}\n")).collect();
    let manifest = format!(
        "application = \"swapped\"\n{topics}[functions.handler]\ncomponent = \"guest.wasm\"\ntopics = [\"{IN}\"]\n\
         grants = {{ publish = {OUT:?} }}\n"
    );
    for (name, write) in [("one", application as fn(&Path, &str)), ("other", revised_application)] {
        let path = directory.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        write(&path, &manifest);
        let deployed = Command::new(program()).args(["--server", url, "deploy", "--yes"]).arg(&path).output();
        let deployed = deployed.expect("it can be started");
        assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    }
}

/// Somebody who swaps the two revisions, each time once it runs everywhere.
pub(crate) struct Swapping {
    ended: Arc<AtomicBool>,
    swaps: tokio::task::JoinHandle<Histogram<u64>>,
}

impl Swapping {
    /// On this server, which is one of so many instances.
    pub(crate) fn start(url: &str, instances: usize) -> Self {
        let (url, ended) = (format!("{url}/v1/functions/swapped.handler"), Arc::new(AtomicBool::new(false)));
        let swaps = tokio::spawn(swap(url, instances, Arc::clone(&ended)));
        Self { ended, swaps }
    }

    /// How long each swap took, from the request on until it ran everywhere, in microseconds.
    pub(crate) async fn stop(self) -> Histogram<u64> {
        self.ended.store(true, Ordering::Relaxed);
        self.swaps.await.expect("it ends")
    }
}

async fn swap(url: String, instances: usize, ended: Arc<AtomicBool>) -> Histogram<u64> {
    let api = Api::default();
    let mut swaps = Histogram::new(3).expect("three digits");
    for to in REVISIONS.into_iter().cycle() {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let body = json!({ "to": to }).to_string();
        let began = Instant::now();
        let answer = api.send(Method::POST, &format!("{url}/rollback"), "application/json", body).await;
        assert!(answer.as_ref().is_some_and(|(status, _)| status.is_success()), "{answer:?}");
        while run(&api.get(&format!("{url}/revisions")).await, to) < instances {
            assert!(began.elapsed() < PATIENCE, "revision {to} never runs");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        swaps += u64::try_from(began.elapsed().as_micros()).expect("a minute");
    }
    swaps
}

/// How many instances run this revision, and know the latest deployment.
fn run(told: &Value, revision: u64) -> usize {
    let runs = |one: &&Value| one["revision"] == revision && one["deployment"] == told["latest"];
    told["instances"].as_array().map_or(0, |all| all.iter().filter(runs).count())
}

/// The time that 99 of a hundred events take at most until what comes of them is in a topic, in milliseconds. So many batches were published before.
async fn p99(url: &str, out: &'static str, before: u64) -> f64 {
    let began = Instant::now();
    let reading = tokio::spawn(read(format!("{url}/v1/topics/{out}/events?limit=1000&from="), began));
    let api = Arc::new(Api::default());
    for number in 0..WARM_UP + MEASURED {
        let due = BATCH_EVERY * u32::try_from(number).expect("few");
        tokio::time::sleep_until((began + due).into()).await;
        let (api, url) = (Arc::clone(&api), url.to_owned());
        tokio::spawn(async move {
            let first = (before + number) * BATCH;
            let batch: Vec<String> = (first..first + BATCH).map(|number| event(number, out, began.elapsed())).collect();
            assert_eq!(api.publish(&url, IN, &batch).await, Some(StatusCode::ACCEPTED));
        });
    }
    let histogram = reading.await.expect("all is answered");
    Duration::from_nanos(histogram.value_at_quantile(0.99)).as_secs_f64() * 1e3
}

/// With the time of sending in its data.
fn event(number: u64, out: &str, sent: Duration) -> String {
    let mut data: Value = serde_json::from_str(&events::order()).expect("an order is JSON");
    data["sent"] = u64::try_from(sent.as_nanos()).expect("a minute").into();
    json!({"specversion": "1.0", "id": format!("e-{number}"), "source": "/shop/web", "type": "E.order.placed", "subject": out,
        "partitionkey": format!("customer-{}", number % 1000), "data": data})
    .to_string()
}

/// Looks all the time at what is there, until each event has its answer.
async fn read(url: String, began: Instant) -> Histogram<u64> {
    let api = Api::default();
    let most = u64::try_from(PATIENCE.as_nanos()).expect("a minute");
    let mut histogram = Histogram::new_with_bounds(1, most, 3).expect("three digits");
    let (mut from, mut seen) = ("earliest".to_owned(), 0);
    while seen < (WARM_UP + MEASURED) * BATCH {
        let told = api.get(&format!("{url}{from}")).await;
        let now = began.elapsed();
        for record in told["records"].as_array().expect("records") {
            seen += 1;
            let sent = Duration::from_nanos(record["event"]["data"]["sent"].as_u64().expect("a time"));
            if sent >= BATCH_EVERY * u32::try_from(WARM_UP).expect("few") {
                histogram.saturating_record(u64::try_from(now.saturating_sub(sent).as_nanos()).unwrap_or(most));
            }
        }
        let places = told["next"].as_array().expect("places");
        let place = |place: &Value| format!("{}:{}", place["partition"], place["offset"]);
        from = places.iter().map(place).collect::<Vec<_>>().join(",");
        assert!(now < PATIENCE, "{seen} events are answered");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    histogram
}
