//! The API on the real log.

use axum::http::Method;
use bytes::Bytes;
use millrace_core::idempotency::Bounds;
use millrace_core::letter::LetterHeaders;
use millrace_core::manifest::Function;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::outcome::Category;
use millrace_core::progress::{Progress, StreamProgress, Totals};
use millrace_core::record::Record;
use serde_json::json;
use tempfile::TempDir;

use super::super::ApiOptions;
use super::super::types::{
    BATCH_TYPE, DeadLetter, DeadLetters, LetterAnswer, Published, Records, SkipAnswer, Status, Topics,
};
use super::{NOW, Server};
use crate::broker::embedded::{EmbeddedLog, Options};
use crate::broker::{
    Broker, Catalog, Commit, CommitOutcome, Letter, LetterId, LetterStatus, Partition, StartAt, Subscription, Told,
};
use crate::clock::Clock;
use crate::registry::Deployment;

async fn server() -> (TempDir, Server<EmbeddedLog>) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { clock: Clock::starting_at(NOW), ..Options::new(directory.path().join("log")) };
    let log = EmbeddedLog::open(options).unwrap();
    log.create_topic(Topic::new("orders").unwrap(), 2).await.unwrap();
    (directory, Server::on(log, ApiOptions::default()).await)
}

fn batch(ids: std::ops::Range<u32>) -> String {
    let event = |id: u32| json!({"specversion": "1.0", "id": id.to_string(), "source": "/s", "type": "t", "data": id});
    json!(ids.map(event).collect::<Vec<_>>()).to_string()
}

/// Lets `shop.pay` settle the first record of a partition as a dead letter.
async fn fail_first_record(log: &EmbeddedLog, record: &Record) -> u32 {
    let function: FunctionName = "shop.pay".parse().unwrap();
    let topic: Topic = "orders".parse().unwrap();
    let subscription = Subscription {
        function: function.clone(),
        topics: vec![topic.clone()],
        from: StartAt::Earliest,
        window: Bounds::default(),
        told: Told::default(),
    };
    let mut assignment = log.subscribe(subscription).await.unwrap().recv().await.unwrap();
    let id = LetterId { topic, partition: assignment.partition.unit().partition, offset: 0 };
    let headers = LetterHeaders {
        function,
        revision: 1,
        category: Category::Rejected,
        reason: "no such customer".into(),
        attempts: 1,
        first_failed_at: NOW,
        last_failed_at: NOW,
        topic: id.topic.clone(),
        partition: id.partition,
        offset: 0,
        idempotency_key: None,
        redrives: 0,
    };
    let totals = Totals { dead_lettered: 1, ..Totals::default() };
    let commit = Commit {
        at: NOW,
        progress: Progress {
            source: StreamProgress { resume: 1, totals, ..StreamProgress::default() },
            commits: 1,
            ..Progress::default()
        },
        keys: Vec::new(),
        outputs: Vec::new(),
        letters: vec![Letter { id: id.clone(), record: headers.seal(record) }],
        resolved: Vec::new(),
        state: Vec::new(),
    };
    assert_eq!(assignment.partition.commit(commit).await.unwrap(), CommitOutcome::Committed);
    id.partition
}

#[tokio::test]
async fn what_is_published_is_read_back() {
    let (_directory, server) = server().await;
    let published: Published = server.post("/v1/topics/orders/events", BATCH_TYPE, batch(0..300)).await.json();
    assert_eq!(published.placements.len(), 300);
    let again: Published = server.post("/v1/topics/orders/events", BATCH_TYPE, batch(0..1)).await.json();
    assert_eq!(again.placements[0].partition, published.placements[0].partition);
    let topics: Topics = server.get("/v1/topics").await.json();
    assert_eq!(topics.topics[0].partitions.iter().map(|partition| partition.next).sum::<u64>(), 301);
    let records: Records = server.get("/v1/topics/orders/events?limit=1000").await.json();
    assert_eq!(records.records.len(), 301);
    for record in &records.records[..300] {
        let event: serde_json::Value = serde_json::from_str(record.event.as_ref().unwrap().get()).unwrap();
        let index: usize = event["id"].as_str().unwrap().parse().unwrap();
        let is_repetition = index == 0 && record.offset == again.placements[0].offset;
        let place = published.placements[index];
        assert!(is_repetition || (record.partition, record.offset) == (place.partition, place.offset), "{record:?}");
    }
}

#[tokio::test]
async fn each_refusal_of_the_log_reaches_the_client() {
    let (_directory, server) = server().await;
    let path = "/v1/topics/orders/events";
    assert_eq!(server.post("/v1/topics/nowhere/events", "text/plain", "x").await.summary(), "404 unknown-topic");
    let large = Bytes::from(vec![b'x'; 2 * millrace_core::limits::MIB]);
    assert_eq!(server.post(path, "text/plain", large).await.summary(), "413 too-large");
    let large = json!([
        {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"},
        {"specversion": "1.0", "id": "2", "source": "/s", "type": "t", "data": "x".repeat(2 * millrace_core::limits::MIB)}
    ]);
    assert_eq!(server.post(path, BATCH_TYPE, large.to_string()).await.summary(), "413 too-large at 1");
    let topics: Topics = server.get("/v1/topics").await.json();
    assert!(topics.topics[0].partitions.iter().all(|partition| partition.next == 0), "all or nothing");
}

#[tokio::test]
async fn a_dead_letter_is_shown_and_redriven() {
    let (_directory, server) = server().await;
    server.post("/v1/topics/orders/events", BATCH_TYPE, batch(0..50)).await;
    let record = Record { value: Some("7".into()), ..Record::default() };
    let partition = fail_first_record(&server.broker, &record).await;
    let listed: DeadLetters = server.get("/v1/dead-letters").await.json();
    let id = format!("orders/{partition}/0");
    assert_eq!((listed.letters.len(), listed.letters[0].id.as_str()), (1, id.as_str()));
    server.activate("pay").await;
    let status: Status = server.get("/v1/status").await.json();
    assert!(status.functions[0].balanced);
    assert_eq!((status.functions[0].totals.dead_lettered, status.functions[0].open_dead_letters), (1, 1));

    let redriven: LetterAnswer = server
        .post("/v1/dead-letters/redrive", "application/json", json!({"function": "shop.pay"}).to_string())
        .await
        .json();
    assert_eq!(redriven.letters.len(), 1);
    let shown: DeadLetter = server.get(&format!("/v1/dead-letters/shop.pay/{id}")).await.json();
    assert_eq!((shown.status, shown.reason.as_str()), (LetterStatus::Redriven, "no such customer"));
    assert!(shown.record.unwrap().event.unwrap().get().contains("\"id\":\"orders/"));
    let again = server.request(Method::POST, "/v1/dead-letters/redrive").header("content-type", "application/json");
    let again = again.body(json!({"function": "shop.pay", "ids": [id]}).to_string().into()).unwrap();
    assert_eq!(server.send(again).await.summary(), "409 dead-letter-not-open");
}

/// Retention removed what a function that was away had not read.
#[tokio::test]
async fn what_is_gone_is_skipped_on_an_operators_word() {
    let (_directory, server) = server().await;
    server.activate("pay").await;
    let pay: FunctionName = "shop.pay".parse().unwrap();
    let skip = async |body: &str| {
        let answer = server.post("/v1/functions/shop.pay/skip", "application/json", body.to_owned()).await;
        answer.json::<SkipAnswer>()
    };
    assert_eq!(skip("{}").await.partitions.len(), 0, "nobody waits for an operator");
    server.registry.deactivate(&pay).await;
    server.broker.retire(pay).await.unwrap();
    for _ in 0..3 {
        server.post("/v1/topics/orders/events", BATCH_TYPE, batch(0..300)).await;
    }
    server.broker.tick(NOW + std::time::Duration::from_secs(8 * 24 * 3600)).await.unwrap();
    let topics: Topics = server.get("/v1/topics").await.json();
    let gone: u64 = topics.topics[0].partitions.iter().map(|partition| partition.earliest).sum();
    assert!(gone > 400, "{gone} records are gone");
    server.activate("pay").await;
    let stopped = loop {
        let status: Status = server.get("/v1/status").await.json();
        if status.functions[0].units.iter().all(|unit| unit.gone > 0) {
            break status;
        }
    };
    let why = stopped.functions[0].units[0].stopped.clone().unwrap();
    assert!(why.contains("records were removed before it read them, from offset 0 to "), "{why}");
    let told = skip(r#"{"dry_run": true}"#).await;
    assert_eq!((told.records, told.partitions.len()), (gone, 2));
    assert_eq!(skip("{}").await.records, gone);
    let status: Status = server.get("/v1/status").await.json();
    let function = &status.functions[0];
    assert!(function.balanced && function.units.iter().all(|unit| unit.stopped.is_none() && unit.gone == 0));
    assert_eq!(function.totals.skipped, gone);
    assert_eq!(skip("{}").await.records, 0);
    let unknown = server.post("/v1/functions/shop.no/skip", "application/json", "{}").await;
    assert_eq!(unknown.summary(), "404 unknown-function");
    let malformed = server.post("/v1/functions/shop.pay/skip", "application/json", r#"{"dryrun": true}"#).await;
    assert_eq!(malformed.summary(), "400 malformed-request");
}

#[tokio::test]
async fn a_function_whose_change_fails_runs_as_before() {
    let (_directory, server) = server().await;
    server.activate("pay").await;
    let name: FunctionName = "shop.pay".parse().unwrap();
    let running = server.registry.function(&name).unwrap();
    let settings = Function { topics: vec![Topic::new("nowhere").unwrap()], ..(*running.settings).clone() };
    let deployment =
        Deployment { settings, digest: "beef".to_owned(), revision: super::idle(), canary: None, paused: false };
    let error = server.registry.activate(deployment).await.unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    let now = server.registry.function(&name).expect("it still runs");
    assert_eq!((now.settings, now.digest), (running.settings, running.digest));
}
