//! Functions that are told to go on from another place, on both logs.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::{Method, StatusCode};
use millrace_tests::process::{Api, Kafka};
use serde_json::{Value, json};

use super::revisions::{FUNCTION, ONE, done, embedded, millrace, on_kafka, order, run_everywhere, two_versions, until};

/// How often a process is killed right after a position was set.
const KILLS: usize = 5;
/// What Kafka writes at the end of a transaction, into each partition of `orders` that has a part in it, and of one that it takes the place of.
const MARKERS: u64 = 8;

async fn publish(url: &str, ids: std::ops::Range<usize>) {
    let batch: Vec<String> = ids.map(|n| order(&format!("o-{n}"), n)).collect();
    assert_eq!(Api::default().publish(url, "orders", &batch).await, Some(StatusCode::ACCEPTED));
}

/// How often each event was handled so that it was committed.
async fn handled(url: &str) -> BTreeMap<String, usize> {
    let mut handled = BTreeMap::new();
    for record in Api::default().records(url, "payments").await.iter().flatten() {
        *handled.entry(record["event"]["causationid"].as_str().expect("a cause").to_owned()).or_default() += 1;
    }
    handled
}

/// Each of the events was handled this often, and no other was.
async fn assert_handled(url: &str, expected: impl IntoIterator<Item = (usize, usize)>) {
    let expected = expected.into_iter().map(|(n, times)| (format!("o-{n}"), times)).collect::<BTreeMap<_, _>>();
    let found = handled(url).await;
    assert!(found == expected, "{} of {} events: {found:?}", found.len(), expected.len());
}

fn reset(url: &str, arguments: &[&str]) -> Value {
    let said = done(url, &[&["functions", "reset", "pay", "--yes", "--json"], arguments].concat());
    serde_json::from_str(&said).expect("an answer")
}

async fn totals(url: &str) -> Value {
    Api::default().settled(url).await["functions"][0]["totals"].clone()
}

/// Backwards, forwards, to a time, and with keys forgotten. Each batch that is published can take so many offsets that no event has.
async fn goes_on_where_it_is_told_to(url: &str, markers: u64) {
    publish(url, 0..100).await;
    Api::default().settled(url).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let between = millrace_core::time::Timestamp::from_millis(
        u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("few"),
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    publish(url, 100..150).await;
    Api::default().settled(url).await;

    let plan = reset(url, &["--from", "earliest", "--dry-run"]);
    let count = |plan: &Value, name: &str| plan[name].as_u64().expect("a number");
    assert!((150..=150 + 2 * markers).contains(&count(&plan, "again")) && plan["passed_over"] == 0, "{plan:#}");
    assert_eq!((&plan["again"], &plan["dry_run"]), (&plan["within_window"], &json!(true)));
    assert_eq!(totals(url).await["duplicate"], 0, "nothing was done");
    reset(url, &["--from", "earliest"]);
    assert_eq!(totals(url).await["duplicate"], 150, "what completed is a duplicate");
    reset(url, &["--from", &between.to_rfc3339()]);
    assert_eq!(totals(url).await["duplicate"], 50);
    assert_handled(url, (0..150).map(|n| (n, 1))).await;

    done(url, &["functions", "pause", "pay"]);
    publish(url, 150..180).await;
    let passed = reset(url, &["--from", "latest"]);
    // What no event has at the end of the batch before waits as well.
    let counted = count(&passed, "passed_over");
    assert!((30..=30 + 2 * markers).contains(&counted) && passed["again"] == 0, "{passed:#}");
    done(url, &["functions", "resume", "pay"]);
    publish(url, 180..190).await;
    Api::default().settled(url).await;
    assert_handled(url, (0..190).filter(|n| !(150..180).contains(n)).map(|n| (n, 1))).await;

    reset(url, &["--from", "earliest", "--forget"]);
    Api::default().settled(url).await;
    let times = |n: usize| if (150..180).contains(&n) { 1 } else { 2 };
    assert_handled(url, (0..190).map(|n| (n, times(n)))).await;
    let status = Api::default().settled(url).await;
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
}

async fn ask(url: &str, from: &str) -> u64 {
    let (path, body) = (format!("{url}/v1/functions/{FUNCTION}/reset"), json!({ "from": from }).to_string());
    let (status, answer) =
        Api::default().send(Method::POST, &path, "application/json", body).await.expect("the server answers");
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    answer["number"].as_u64().expect("a number")
}

/// Waits until each partition has obeyed.
async fn obeyed(url: &str, number: u64) {
    until(url, &format!("functions/{FUNCTION}"), |function| {
        let units = function["units"].as_array().expect("units");
        units.len() == 4 && units.iter().all(|unit| unit["reset"] == number)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_goes_on_where_it_is_told_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, _] = two_versions(directory.path());
    done(&server.url, &["deploy", &one, "--yes"]);
    goes_on_where_it_is_told_to(&server.url, 0).await;
    let ran = millrace(&server.url, &["functions", "reset", "pay", "--from", "yesterday", "--yes"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(1) && said.contains("write `earliest`, `latest`, a time"), "{said}");
    let history = done(&server.url, &["functions", "history", "pay"]);
    assert!(history.contains("reset 4 partitions"), "{history}");
    // Whatever was decided before the last end is not done twice, and what was forgotten stays so.
    drop(server);
    let server = embedded(directory.path());
    let before = handled(&server.url).await;
    Api::default().settled(&server.url).await;
    let duplicates = totals(&server.url).await["duplicate"].as_u64();
    assert_eq!((handled(&server.url).await, duplicates), (before, Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_obeys_once_it_is_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let [one, _] = two_versions(directory.path());
    let mut number = 0;
    for kill in 0..KILLS {
        let server = embedded(directory.path());
        if kill == 0 {
            done(&server.url, &["deploy", &one, "--yes"]);
        }
        publish(&server.url, 20 * kill..20 * kill + 20).await;
        number = ask(&server.url, "earliest").await;
        server.kill();
    }
    let server = embedded(directory.path());
    obeyed(&server.url, number).await;
    Api::default().settled(&server.url).await;
    assert_handled(&server.url, (0..20 * KILLS).map(|n| (n, 1))).await;
}

/// Whoever owns a partition obeys, whichever instance was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_whoever_owns_a_partition_goes_on_where_it_is_told_to() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let [one, _] = two_versions(directory.path());
    let [first, second] = ["a", "b"].map(|name| on_kafka(directory.path(), name, &kafka.bootstrap));
    done(&first.url, &["deploy", &one, "--yes"]);
    run_everywhere(&second.url, ONE, 2).await;
    goes_on_where_it_is_told_to(&first.url, MARKERS).await;
    // One that is killed leaves it to the other, which knows what was forgotten.
    let before = handled(&first.url).await;
    let number = ask(&first.url, "earliest").await;
    first.kill();
    obeyed(&second.url, number).await;
    Api::default().settled(&second.url).await;
    assert_eq!(handled(&second.url).await, before);
    assert_eq!(totals(&second.url).await["duplicate"], 190);
}
