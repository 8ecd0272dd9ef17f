//! A new revision for a share of the keys: on both logs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use millrace_tests::process::{Api, Kafka};
use serde_json::{Value, json};

use super::revisions::{
    Load, MANIFEST, done, embedded, everywhere, handled, millrace, on_kafka, order, revisions, run_everywhere,
    two_versions,
};

/// Enough that a share of them is one within a hundredth.
const KEYS: usize = 10_000;
/// The share of the first canary, in per cent.
const SHARE: f64 = 20.0;
/// The number of the revision that is the first canary.
const CANARY: u64 = 3;

/// An event for each key, in rounds whose events differ.
async fn publish_round(urls: &[String], round: &str) {
    for first in (0..KEYS).step_by(500) {
        let batch: Vec<String> = (first..first + 500).map(|n| order(&format!("{round}-{n}"), n)).collect();
        let url = &urls[first / 500 % urls.len()];
        assert_eq!(Api::default().publish(url, "orders", &batch).await, Some(StatusCode::ACCEPTED));
    }
}

/// What the handlers of one round emitted, by key.
fn of_round<'a>(handled: &'a BTreeMap<String, String>, round: &str) -> Vec<&'a str> {
    (0..KEYS).map(|n| &*handled[&format!("{round}-{n}")]).collect()
}

/// The share of what the canary emitted, in per cent.
fn share_of(words: &[&str], word: &str) -> f64 {
    words.iter().filter(|found| **found == word).count() as f64 / words.len() as f64 * 100.0
}

/// Waits until so many instances run this revision as their canary, or none, if it is null.
async fn canary_everywhere(url: &str, revision: &Value, instances: usize) {
    everywhere(url, instances, |one| one["canary"]["revision"] == *revision).await;
}

/// Waits until these instances together have completed so many events with each revision. One that lost a partition may tell of it
/// a little later, and what it could not commit was attempted more than once.
async fn have_completed(urls: &[String], wanted: [(u64, u64); 2]) {
    let began = Instant::now();
    for (revision, events) in wanted {
        let most = if urls.len() == 1 { events } else { events * 2 };
        loop {
            let found = completed(&urls[0], revision).await;
            if (events..=most).contains(&found) {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{found} events of revision {revision}, not {events}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How many attempts of a revision completed their event on all instances, by what one of them says.
async fn completed(url: &str, revision: u64) -> u64 {
    let figures = revisions(url).await["figures"].clone();
    let mut all = figures.as_array().expect("figures").iter();
    all.find(|one| one["revision"] == revision).map_or(0, |one| one["completed"].as_u64().expect("a number"))
}

/// A canary handles its share of the keys, and the same ones from round to round.
async fn takes_its_share(urls: &[String], [one, other]: &[String; 2]) -> Vec<String> {
    let (url, api) = (&urls[0], Api::default());
    done(url, &["deploy", one, "--yes"]);
    run_everywhere(url, 1, urls.len()).await;
    let said = done(url, &["deploy", other, "--yes", "--canary", "20%"]);
    assert!(said.contains("as a canary, for 20% of the keys") && said.contains("revision 3 runs"), "{said}");
    canary_everywhere(url, &json!(CANARY), urls.len()).await;
    for round in ["first", "second"] {
        publish_round(urls, round).await;
    }
    api.settled(url).await;
    let handled = handled(url).await;
    let first = of_round(&handled, "first");
    assert!((share_of(&first, "omitted") - SHARE).abs() <= 1.0, "{}%", share_of(&first, "omitted"));
    assert_eq!(first, of_round(&handled, "second"), "a key was handled by both");
    let of_canary = handled.values().filter(|word| *word == "omitted").count() as u64;
    have_completed(urls, [(CANARY, of_canary), (1, 2 * KEYS as u64 - of_canary)]).await;
    let said = done(url, &["functions", "show", "pay"]);
    assert!(said.contains("revision 1, canary 3 for 20% of the keys"), "{said}");
    assert!(done(url, &["functions", "list"]).contains("1 + 3 (20%)"));
    let history = done(url, &["functions", "history", "pay"]);
    assert!(history.contains("deploy canary for 20%") && history.contains("canary 3 for 20%"), "{history}");
    first.into_iter().map(ToOwned::to_owned).collect()
}

/// While events come, a canary begins, gets a larger share and becomes active, and another one begins and is given up. Each key is
/// handled in order, once for each event, and by one revision at a time.
async fn comes_and_goes_under_load(urls: &[String], [one, _]: &[String; 2]) {
    let (url, api, load) = (&urls[0], Api::default(), Arc::new(Load::default()));
    let loading = tokio::spawn(Arc::clone(&load).run(url.clone()));
    load.more(500).await;
    done(url, &["functions", "canary", "pay", "--share", "60%"]);
    load.held.store(true, Ordering::Relaxed);
    publish_round(urls, "larger").await;
    api.settled(url).await;
    load.held.store(false, Ordering::Relaxed);
    load.more(500).await;
    let said = done(url, &["functions", "promote", "pay", "--yes"]);
    assert!(said.contains("revision 3 handles all keys"), "{said}");
    run_everywhere(url, CANARY, urls.len()).await;
    canary_everywhere(url, &Value::Null, urls.len()).await;
    load.more(500).await;
    done(url, &["deploy", one, "--yes", "--canary", "50%"]);
    load.more(500).await;
    let said = done(url, &["functions", "rollback", "pay", "--yes"]);
    assert!(said.contains("is given up, revision 3 handles all keys"), "{said}");
    canary_everywhere(url, &Value::Null, urls.len()).await;
    // From here on nothing is the given up one's.
    publish_round(urls, "after").await;
    load.more(100).await;
    load.ended.store(true, Ordering::Relaxed);
    loading.await.expect("it ends");
    let status = api.settled(url).await;
    let words = handled(url).await;
    assert_eq!(share_of(&of_round(&words, "after"), "omitted"), 100.0);
    let larger = share_of(&of_round(&words, "larger"), "omitted");
    assert!((larger - 60.0).abs() <= 1.0, "{larger}%");
    let events = load.published.load(Ordering::Relaxed);
    assert_eq!(words.keys().filter(|id| id.starts_with("o-")).count(), events, "an event is lost");
    one_revision_at_a_time(url).await;
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
}

/// The outputs of each key are in the order of its events, and change from one revision to the other no more often than somebody
/// changed what runs: to the canary or with its promotion, then to the second canary and back.
async fn one_revision_at_a_time(url: &str) {
    let mut keys: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for record in Api::default().records(url, "payments").await.iter().flatten() {
        let event = &record["event"];
        if let Some(number) = event["causationid"].as_str().expect("a cause").strip_prefix("o-") {
            let number = number.parse().expect("a number");
            let outputs = keys.entry(record["key"].as_str().expect("a key").to_owned()).or_default();
            outputs.push((number, event["type"].as_str().expect("a type").to_owned()));
        }
    }
    assert_eq!(keys.len(), 50);
    let mut back = 0;
    for (key, outputs) in &keys {
        assert!(outputs.is_sorted_by_key(|(number, _)| number), "{key}: {outputs:?}");
        let changes = outputs.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
        let most = if outputs[0].1 == "emitted" { 3 } else { 2 };
        assert!(changes <= most && outputs.last().is_some_and(|(_, word)| word == "omitted"), "{key}: {outputs:?}");
        back += usize::from(changes >= 2);
    }
    assert!((10..=40).contains(&back), "{back} of 50 keys were the second canary's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_handles_its_share_until_it_is_promoted_or_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let versions = two_versions(directory.path());
    let before = takes_its_share(std::slice::from_ref(&server.url), &versions).await;
    // A process that begins anew has both from its first event on.
    server.kill();
    let server = embedded(directory.path());
    let urls = [server.url.clone()];
    publish_round(&urls, "third").await;
    Api::default().settled(&server.url).await;
    assert_eq!(of_round(&handled(&server.url).await, "third"), before);
    comes_and_goes_under_load(&urls, &versions).await;
    assert!(server.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_all_instances_handle_the_same_share() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let instances = ["a", "b"].map(|name| on_kafka(directory.path(), name, &kafka.bootstrap));
    let urls = instances.each_ref().map(|instance| instance.url.clone());
    let before = takes_its_share(&urls, &versions).await;
    // What was another instance's goes on with the same revision.
    let [first, second] = instances;
    second.kill();
    let urls = [first.url.clone()];
    publish_round(&urls, "third").await;
    Api::default().settled(&first.url).await;
    assert_eq!(of_round(&handled(&first.url).await, "third"), before);
    let third = on_kafka(directory.path(), "c", &kafka.bootstrap);
    canary_everywhere(&first.url, &json!(CANARY), 2).await;
    comes_and_goes_under_load(&[first.url.clone(), third.url.clone()], &versions).await;
}

/// Who decides about a canary sees how both do, side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_times_of_both_revisions_are_told_side_by_side() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let (url, api) = (&server.url, Api::default());
    done(url, &["deploy", &one, "--yes"]);
    done(url, &["deploy", &other, "--yes", "--canary", "20%"]);
    let good: Vec<String> = (0..200).map(|n| order(&format!("good-{n}"), n)).collect();
    assert_eq!(api.publish(url, "orders", &good).await, Some(StatusCode::ACCEPTED));
    api.settled(url).await;
    let words = handled(url).await;
    let of_canary = (0..200).filter(|n| words[&format!("good-{n}")] == "omitted");
    // What the fixture calls invalid, for keys of the canary's alone.
    let invalid = of_canary.map(|n| order(&format!("bad-{n}"), n).replace("E.order", "i.order"));
    let invalid: Vec<String> = invalid.collect();
    assert_eq!(api.publish(url, "orders", &invalid).await, Some(StatusCode::ACCEPTED));
    api.settled(url).await;
    let (few, all) = (invalid.len() as u64, good.len() as u64);
    let figures = revisions(url).await["figures"].clone();
    let of = |revision: u64| {
        let found = figures.as_array().expect("figures").iter().find(|one| one["revision"] == revision);
        found.unwrap_or_else(|| panic!("{figures:#}")).clone()
    };
    let (active, canary) = (of(1), of(CANARY));
    let counts = |one: &Value| (one["completed"].as_u64(), one["failed_attempts"].as_u64());
    assert_eq!((counts(&active), counts(&canary)), ((Some(all - few), Some(0)), (Some(few), Some(few))));
    assert_eq!((&active["failure_rate"], &canary["failure_rate"]), (&json!(0.0), &json!(0.5)));
    for one in [&active, &canary] {
        assert!(one["invoke_p50_seconds"].as_f64() <= one["invoke_p99_seconds"].as_f64(), "{one:#}");
        assert!(one["invoke_p50_seconds"].as_f64() > Some(0.0), "{one:#}");
    }
    let shown = done(url, &["functions", "show", "pay"]);
    let line = |what: &str| shown.lines().find(|line| line.split_whitespace().nth(1) == Some(what)).map(str::to_owned);
    let (active, canary) = (line("active").expect("a line"), line("canary").expect("a line"));
    assert!(active.contains(" 0.00%") && canary.contains(" 50.00%"), "{shown}");
    let metrics = api.ask(hyper::Method::GET, &format!("{url}/metrics"), &[], String::new()).await;
    let (_, metrics) = metrics.expect("the server answers");
    let failed = metrics.lines().filter(|line| line.starts_with("millrace_revision_failed_attempts_total"));
    let failed: Vec<&str> = failed.filter(|line| line.contains("faas_version=\"3\"")).collect();
    assert!(matches!(failed[..], [line] if line.ends_with(&format!(" {few}"))), "{failed:?}");
}

/// What would take events in otherwise, or has nothing to run beside, is refused before anything is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_canary_is_refused_with_what_differs() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let url = &server.url;
    let refused = |arguments: &[&str]| {
        let ran = millrace(url, arguments);
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    let said = refused(&["deploy", &one, "--yes", "--canary", "5%"]);
    assert!(said.contains("no revision runs that was uploaded") && said.contains("without --canary"), "{said}");
    done(url, &["deploy", &one, "--yes"]);
    let manifest = |more: &str| {
        std::fs::write(std::path::Path::new(&other).join("millrace.toml"), format!("{MANIFEST}{more}"))
            .expect("a file");
    };
    manifest("filter = 'event.type != \"x\"'\nretry = { attempts = 2 }\nparked = { limit = 7 }\n");
    let said = refused(&["deploy", &other, "--yes", "--canary", "5%"]);
    assert!(said.contains("in filter, retry, parked") && said.contains("deploy it without --canary"), "{said}");
    for wrong in ["0%", "100%", "5", "0.001%"] {
        let ran = millrace(url, &["deploy", &other, "--yes", "--canary", wrong]);
        assert_eq!(ran.status.code(), Some(2), "{wrong}: {ran:?}");
    }
    for arguments in [&["functions", "promote", "pay", "--yes"][..], &["functions", "canary", "pay", "--share", "5%"]] {
        let said = refused(arguments);
        assert!(said.contains("shop.pay has no canary") && said.contains("--canary 5%"), "{said}");
    }
    assert_eq!(revisions(url).await["latest"], 2, "nothing was changed");
    // What concerns a single invocation may differ.
    manifest("config = { a = 'x' }\nlimits = { time = '9s' }\n");
    done(url, &["deploy", &other, "--yes", "--canary", "0.5%"]);
    let there = revisions(url).await;
    assert_eq!((&there["active"], &there["canary"]), (&json!(1), &json!({"revision": 3, "share": "0.5%"})));
    let said = done(url, &["functions", "diff", "pay"]);
    assert!(said.contains("config.a: none -> \"x\"") && said.contains("component:"), "{said}");
    // The same again, with another share, is no new revision.
    done(url, &["deploy", &other, "--yes", "--canary", "1%"]);
    let there = revisions(url).await;
    assert_eq!((&there["latest"], &there["canary"]), (&json!(5), &json!({"revision": 3, "share": "1%"})));
    done(url, &["deploy", &other, "--yes"]);
    run_everywhere(url, 6, 1).await;
    assert_eq!(revisions(url).await["canary"], Value::Null);
}
