//! The real binary on a real Kafka.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flights_sample::Row;
use millrace_tests::process::{Api, Dev, Kafka, root};
use rustix::process::Signal;

use super::{assert_each_flight_is_there_once, events};

/// How often an instance is killed while others work.
const KILLS: usize = 6;
/// How often the broker is.
const BROKER_KILLS: usize = 3;
const ROWS: usize = 3000;
/// For so long it is looked what an instance does without a broker.
const WAITING: Duration = Duration::from_secs(8);
/// Of the configuration that the tests use.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);

fn flights() -> PathBuf {
    root().join("guest-examples/flights")
}

/// Rows that are all different.
pub(super) fn different_rows(count: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = flights_sample::rows().into_iter().filter(|row| row.key.is_some()).collect();
    let mut seen = HashMap::new();
    rows.retain(|row| seen.insert(row.value.clone(), ()).is_none());
    rows.truncate(count);
    rows
}

/// Publishes until all is acknowledged.
async fn publish(api: &Api, url: &str, events: &[String]) {
    for batch in events.chunks(20) {
        // Not known, or not now: the same events once more.
        while api.publish(url, "flights-raw", batch).await.is_none_or(|status| status.as_u16() != 202) {}
    }
}

/// Two instances work at the same time, and one after the other is killed and replaced in the middle of what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_effects_happen_once_and_in_order_whenever_an_instance_is_killed() {
    let Some(kafka) = Kafka::start() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let api = Api::default();
    let rows = different_rows(ROWS);
    let events = events(&rows);
    let start = |number: usize| Dev::serve(&flights(), &data.path().join(number.to_string()), &kafka.bootstrap);
    let mut instances = vec![start(0), start(1)];
    for (round, part) in events.chunks(ROWS.div_ceil(KILLS + 1)).enumerate() {
        publish(&api, &instances[1].url, part).await;
        if round < KILLS {
            instances.remove(0).kill();
            instances.push(start(round + 2));
        }
    }
    let last = instances.pop().expect("two instances run");
    assert!(instances.remove(0).stop(), "an instance that is asked to stop ends well");
    api.settled(&last.url).await;
    assert_each_flight_is_there_once(&api, &last.url, &rows).await;
    assert!(last.stop(), "the last one too");
}

/// Commits are under way whenever the broker is killed, so that nobody knows of some whether they were made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_effects_happen_once_whenever_the_broker_is_killed() {
    let Some(kafka) = Kafka::start() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let api = Api::default();
    let rows = different_rows(ROWS);
    let events = events(&rows);
    let start = || Dev::serve(&flights(), data.path(), &kafka.bootstrap);
    let instance = start();
    for part in events.chunks(ROWS.div_ceil(BROKER_KILLS + 1)).take(BROKER_KILLS) {
        publish(&api, &instance.url, part).await;
        kafka.kill();
        kafka.start_again();
    }
    let rest = &events[ROWS.div_ceil(BROKER_KILLS + 1) * BROKER_KILLS..];
    publish(&api, &instance.url, rest).await;
    kafka.kill();
    waits_for_the_broker_without_haste(&instance).await;
    nobody_waits_for_a_broker_that_is_gone(data.path(), &kafka.bootstrap);
    ends_at_once_when_asked_twice(instance).await;
    kafka.start_again();
    let instance = start();
    api.settled(&instance.url).await;
    assert_each_flight_is_there_once(&api, &instance.url, &rows).await;
    kafka.kill();
    instance.signal(Signal::TERM);
    assert!(instance.ended().await.success(), "nothing is left to commit, so it ends well without a broker");
}

/// The broker starts on the same machine, as may others: there must be processors left.
async fn waits_for_the_broker_without_haste(instance: &Dev) {
    let before = instance.cpu_time();
    tokio::time::sleep(WAITING).await;
    let took = instance.cpu_time() - before;
    assert!(took < WAITING / 4, "while there is no broker, {took:?} of {WAITING:?} are spent");
}

fn nobody_waits_for_a_broker_that_is_gone(data: &Path, bootstrap: &str) {
    let output = Dev::serving(&flights(), data, bootstrap).output().expect("the binary can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(bootstrap) && said.contains("see that Kafka runs there"), "{said}");
}

/// What is under way does not come to its end, be it for want of a broker; the second signal does not wait for it.
pub(super) async fn ends_at_once_when_asked_twice(instance: Dev) {
    instance.signal(Signal::TERM);
    let mut stopping = false;
    let api = Api::default();
    while !stopping {
        stopping = api
            .send(hyper::Method::GET, &format!("{}/readyz", instance.url), "text/plain", String::new())
            .await
            .is_none_or(|(status, _)| !status.is_success());
    }
    instance.signal(Signal::TERM);
    assert_eq!(instance.ended().await.code(), Some(130));
}

/// While an instance sleeps, another one takes over what it was in the middle of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_an_instance_that_wakes_up_late_commits_nothing_and_works_again() {
    let Some(kafka) = Kafka::start() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let api = Api::default();
    let rows = different_rows(ROWS);
    let events = events(&rows);
    let said = place.path().join("said");
    let log = Stdio::from(File::create(&said).expect("a file"));
    let sleeper = Dev::serve_telling(&flights(), &place.path().join("0"), &kafka.bootstrap, log);
    let (first, rest) = events.split_at(ROWS / 3);
    publish(&api, &sleeper.url, first).await;
    sleeper.signal(Signal::STOP);
    let other = Dev::serve(&flights(), &place.path().join("1"), &kafka.bootstrap);
    let (second, third) = rest.split_at(rest.len() / 2);
    let asleep = tokio::time::sleep(SESSION_TIMEOUT * 3);
    tokio::join!(publish(&api, &other.url, second), asleep);
    sleeper.signal(Signal::CONT);
    publish(&api, &other.url, third).await;
    api.settled(&other.url).await;
    // The one that slept works again: alone it goes on with what the other one leaves.
    assert!(other.stop(), "an instance that is asked to stop ends well");
    api.settled(&sleeper.url).await;
    assert_each_flight_is_there_once(&api, &sleeper.url, &rows).await;
    assert!(sleeper.stop(), "the one that slept ends well");
    let said = std::fs::read_to_string(&said).expect("the log can be read");
    assert!(said.contains("Partitions were revoked."), "it was never told that it lost its partitions:\n{said}");
}
