//! The real binary, the real disk, the real sandbox.

#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/chaos.rs"]
mod chaos;
#[path = "e2e/corpus.rs"]
mod corpus;
#[path = "e2e/deploy.rs"]
mod deploy;
#[path = "e2e/full_disk.rs"]
mod full_disk;
#[path = "e2e/kafka.rs"]
mod kafka;

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::time::Duration;

use flights_sample::{DELAYED, FLIGHTS, MALFORMED, REPEATED, Row};
use hyper::Method;
use millrace_tests::process::{Api, Dev, assert_accounts_balance, program, root};
use rustix::process::Signal;
use serde_json::Value;

#[path = "e2e/audit.rs"]
mod audit;
#[path = "e2e/canaries.rs"]
mod canaries;
#[path = "e2e/development.rs"]
mod development;
#[path = "e2e/figures.rs"]
mod figures;
#[path = "e2e/instances.rs"]
mod instances;
#[path = "e2e/interrupted.rs"]
mod interrupted;
#[path = "e2e/invoke.rs"]
mod invoke;
#[path = "e2e/kept.rs"]
mod kept;
#[path = "e2e/many.rs"]
mod many;
#[path = "e2e/new.rs"]
mod new;
#[path = "e2e/resets.rs"]
mod resets;
#[path = "e2e/revisions.rs"]
mod revisions;
#[path = "e2e/secured.rs"]
mod secured;
#[path = "e2e/serve_check.rs"]
mod serve_check;
#[path = "e2e/shutdown.rs"]
mod shutdown;
#[path = "e2e/signatures.rs"]
mod signatures;
#[path = "e2e/spans.rs"]
mod spans;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/tokens.rs"]
mod tokens;
#[path = "e2e/unknown.rs"]
mod unknown;

/// How often the process is killed in the middle of its work.
const KILLS: u32 = 50;
/// Another number in this variable lets it be killed at other moments.
const KILLS_SEED: &str = "KILLS_SEED";
/// Events that are published at once meanwhile.
const BATCH: usize = 20;
/// Further than any flight goes, in miles.
const DISTANCE_STEP: u64 = 10_000;
/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn the_demonstration_balances() {
    let demo = Command::new(program())
        .args(["demo", "guest-examples/orders"])
        .env("DEMO_EXIT", "1")
        .current_dir(root())
        .output()
        .expect("the binary can be started");
    let (out, err) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{out}\n{err}");
    for expected in ["orders.reserve-stock", "millrace dead-letters redrive orders.arrange-shipping", "balance"] {
        assert!(out.contains(expected), "{expected} is missing:\n{out}");
    }
}

/// Its verdict is worth something only if it can be another one. As many events are expected as there are, but one of them is about
/// something else.
#[test]
fn the_demonstration_notices_an_event_that_is_missing() {
    let (orders, directory) = (root().join("guest-examples/orders"), tempfile::tempdir().expect("a directory"));
    let read = |name: &str| std::fs::read_to_string(orders.join(name)).expect("a file");
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("a file");
    let is_kept = |line: &&str| !line.starts_with("build =") && !line.starts_with("watch =");
    let manifest: Vec<String> = read("millrace.toml").lines().filter(is_kept).map(str::to_owned).collect();
    write("millrace.toml", manifest.join("\n").replace("../..", &root().to_string_lossy()));
    write("orders.ndjson", read("orders.ndjson"));
    let (notified, other) = (r#""customer.notified": "o-1 "#, r#""customer.notified": "o-0 "#);
    assert!(read("expected.json").contains(notified));
    write("expected.json", read("expected.json").replace(notified, other));
    let demo = Command::new(program()).arg("demo").arg(directory.path()).env("DEMO_EXIT", "1").output();
    let demo = demo.expect("the binary can be started");
    let (out, err) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert_eq!(demo.status.code(), Some(1), "{out}\n{err}");
    for expected in ["about these are missing: o-0", "about these are too many: o-1"] {
        assert!(err.contains(expected), "{expected} is missing:\n{err}");
    }
}

/// As `make demo` runs it: it stays until Ctrl-C, and then leaves nothing behind, neither its data nor the process that it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demonstration_goes_on_until_ctrl_c() {
    let mut demo = Command::new(program());
    demo.args(["demo", "guest-examples/orders"]).current_dir(root());
    // On a free port, because the usual one may be taken.
    let demo = Dev::started(demo.env_remove("DEMO_EXIT").env("MILLRACE_HTTP_LISTEN", "127.0.0.1:0"));
    demo.says("It goes on running. Ctrl-C stops it.");
    let data = std::env::temp_dir().join(format!("millrace-demo-{}", demo.id()));
    let (api, url) = (Api::default(), format!("{}/v1/status", demo.url));
    api.get(&url).await;
    assert!(data.exists(), "there is no {}", data.display());
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().await.code(), Some(0));
    assert!(!data.exists(), "{} is left", data.display());
    let answer = api.send(Method::GET, &url, "application/json", String::new()).await;
    assert!(answer.is_none(), "what it started goes on: {answer:?}");
}

/// OpenSSL, curl and librdkafka are in the binary, whatever versions of them are installed.
#[test]
fn the_binary_needs_nothing_but_the_system_s_c_library() {
    let needed = match Command::new("ldd").arg(program()).output() {
        Ok(needed) => needed,
        Err(e) => return millrace_tests::not_tested("what the binary needs", &format!("ldd: {e}")),
    };
    let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
    let names = needed.lines().filter_map(|line| line.split_whitespace().next());
    let of_c =
        ["linux-vdso.so", "ld-linux", "libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so"];
    let others: Vec<&str> = names.filter(|name| !of_c.iter().any(|one| name.contains(one))).collect();
    assert!(needed.contains("libc.so") && others.is_empty(), "{needed}");
}

/// A handler that keeps no state needs no grant for it, so the SDK must not import what is not called.
#[test]
fn only_handlers_that_keep_state_import_it() {
    for (component, keeps_state) in [
        ("hello", false),
        ("flights_normalise", false),
        ("flights_alert", true),
        ("orders_charge_payment", false),
        ("orders_notify_customer", false),
        ("orders_reward_customer", true),
    ] {
        let file = root().join(format!("target/wasm32-wasip2/guest/{component}.wasm"));
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}; run `make guests`", file.display()));
        let imports = bytes.windows(13).any(|name| name == b"wasi:keyvalue");
        assert_eq!(imports, keeps_state, "{component}");
    }
}

fn events(rows: &[Row]) -> Vec<String> {
    rows.iter().enumerate().map(|(number, row)| row.to_cloud_event(number)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_flights_are_counted_right() {
    let data = tempfile::tempdir().expect("a directory");
    let dev = Dev::start("flights", data.path());
    let api = Api::default();
    for batch in events(&flights_sample::rows()).chunks(500) {
        let status = api.publish(&dev.url, "flights-raw", batch).await;
        assert_eq!(status.map(|s| s.as_u16()), Some(202));
    }
    let status = api.settled(&dev.url).await;
    let totals = |name: &str| {
        let functions = status["functions"].as_array().expect("functions");
        let function = functions.iter().find(|f| f["name"] == name).expect("the function runs");
        let count = |outcome: &str| function["totals"][outcome].as_u64().expect("a number");
        (count("completed"), count("filtered"), count("duplicate"), count("dead_lettered"))
    };
    let (flights, delayed) = (FLIGHTS as u64, DELAYED as u64);
    assert_eq!(totals("flights.normalise"), (flights, 0, REPEATED as u64, MALFORMED as u64));
    assert_eq!(totals("flights.alert"), (delayed, flights - delayed, 0, 0));
    let count = async |topic: &str| api.records(&dev.url, topic).await.iter().map(Vec::len).sum::<usize>();
    assert_eq!(count("flights").await, FLIGHTS);
    assert_eq!(count("alerts").await, DELAYED);
    assert_accounts_balance(&api, &dev.url, &status).await;
}

/// What makes a flight itself, as its row and as its event tell it.
fn flight_of_row(row: &Row) -> Option<String> {
    let row: Value = serde_json::from_str(&row.value).ok()?;
    let date = row["date"].as_str()?.replace('/', "-").replace(' ', "T");
    Some(format!("{date}:00Z {} {} {} {}", row["origin"], row["destination"], row["distance"], row["delay"]))
}

fn flight_of_event(event: &Value) -> String {
    let data = &event["data"];
    let time = event["time"].as_str().expect("a time");
    format!("{time} {} {} {} {}", data["origin"], data["destination"], data["distance"], data["delay"])
}

/// Rows without an end, and how far they are published.
struct Load {
    rows: Vec<Row>,
    /// Rows that are there for certain.
    published: usize,
    /// Whether nobody knows yet what becomes of the one that was sent last.
    under_way: bool,
}

impl Load {
    /// Without the malformed ones and the repetitions: what is published twice here is published twice by need.
    fn new() -> Self {
        Self { rows: kafka::different_rows(usize::MAX), published: 0, under_way: false }
    }

    /// After the last flight all come again, each time as others: over another distance.
    fn row(&self, at: usize) -> Row {
        let (round, row) = (at / self.rows.len(), &self.rows[at % self.rows.len()]);
        let mut flight: Value = serde_json::from_str(&row.value).expect("no row is malformed");
        let distance = flight["distance"].as_u64().expect("a number");
        assert!(distance < DISTANCE_STEP, "in the next round there is a flight like {flight}");
        flight["distance"] = (distance + DISTANCE_STEP * round as u64).into();
        Row { key: row.key.clone(), value: flight.to_string() }
    }

    fn published(&self) -> Vec<Row> {
        (0..self.published).map(|at| self.row(at)).collect()
    }

    /// Publishes so many batches, one after the other and each until it is acknowledged.
    async fn publish(&mut self, api: &Api, url: &str, batches: u64) {
        let mut acknowledged = 0;
        while acknowledged < batches {
            let end = self.published + BATCH;
            let batch: Vec<String> = (self.published..end).map(|at| self.row(at).to_cloud_event(at)).collect();
            self.under_way = true;
            let status = api.publish(url, "flights-raw", &batch).await;
            self.under_way = false;
            if status.is_some_and(|status| status.as_u16() == 202) {
                (self.published, acknowledged) = (end, acknowledged + 1);
            } else {
                // Not known, or not now: the same events once more.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Random numbers below a bound, the same each time unless the environment says otherwise.
fn random() -> impl FnMut(u64) -> u64 {
    let mut random = std::env::var(KILLS_SEED).map_or(88_172_645_463_325_252, |text| {
        let seed = text.parse::<u64>().ok().filter(|seed| *seed > 0);
        seed.unwrap_or_else(|| panic!("{KILLS_SEED}={text}: write a number above 0"))
    });
    move |bound| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    }
}

/// Publishes while the process is killed and started again and again, then compares what came out with what went in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effects_happen_once_and_in_order_whenever_the_process_is_killed() {
    let data = tempfile::tempdir().expect("a directory");
    let (api, mut load, mut random) = (Api::default(), Load::new(), random());
    let mut interrupted = 0;
    for kill in 0..KILLS {
        let dev = Dev::start("flights", data.path());
        // How much is acknowledged in this life, and when it ends after that, while more is published.
        let (batches, rest) = (random(24), Duration::from_millis(random(40)));
        let taken = tokio::time::timeout(PATIENCE, load.publish(&api, &dev.url, batches)).await;
        assert!(taken.is_ok(), "before kill {kill} the process takes no more events: {} are published", load.published);
        tokio::select! {
            // First, so that something is under way however short the rest is.
            biased;
            () = load.publish(&api, &dev.url, u64::MAX) => {}
            () = tokio::time::sleep(rest) => {}
        }
        dev.kill();
        interrupted += u32::from(load.under_way);
    }
    assert!(interrupted > KILLS / 2, "only {interrupted} kills came while a batch was under way");
    let dev = Dev::start("flights", data.path());
    // A batch whose answer was lost may be there or not; now it is there for certain.
    let taken = tokio::time::timeout(PATIENCE, load.publish(&api, &dev.url, 1)).await;
    assert!(taken.is_ok(), "after the last kill the process takes no more events");
    let status = api.settled(&dev.url).await;
    assert_accounts_balance(&api, &dev.url, &status).await;
    assert_each_flight_is_there_once(&api, &dev.url, &load.published()).await;
}

/// Each row came out once, in the order of its key, and each delay with an alert.
async fn assert_each_flight_is_there_once(api: &Api, url: &str, rows: &[Row]) {
    let place: HashMap<String, usize> =
        rows.iter().enumerate().filter_map(|(at, row)| Some((flight_of_row(row)?, at))).collect();
    let mut found: BTreeMap<usize, u32> = BTreeMap::new();
    let mut last: HashMap<String, usize> = HashMap::new();
    for record in api.records(url, "flights").await.iter().flatten() {
        let flight = flight_of_event(&record["event"]);
        let at = *place.get(&flight).unwrap_or_else(|| panic!("{flight} was not published"));
        *found.entry(at).or_default() += 1;
        let key = record["key"].as_str().expect("a key").to_owned();
        if let Some(before) = last.insert(key, at) {
            assert!(before < at, "flight {at} overtook flight {before} of the same origin");
        }
    }
    assert_eq!(found.len(), rows.len(), "a flight is lost");
    assert!(found.values().all(|times| *times == 1), "a flight was recorded twice");
    let alerts = api.records(url, "alerts").await;
    // What the handler counts is its state: a write lost, or kept of an attempt that never happened, would show in it.
    let mut late: HashMap<String, u64> = HashMap::new();
    for alert in alerts.iter().flatten() {
        let data = &alert["event"]["data"];
        let count = late.entry(data["origin"].as_str().expect("an origin").to_owned()).or_default();
        *count += 1;
        assert_eq!(data["late"], *count, "the state of {} is not that of its alerts", data["origin"]);
    }
    let alerts = alerts.iter().map(Vec::len).sum::<usize>();
    let delayed =
        |row: &&Row| serde_json::from_str::<Value>(&row.value).is_ok_and(|row| row["delay"].as_i64() > Some(60));
    assert_eq!(alerts, rows.iter().filter(delayed).count());
}
