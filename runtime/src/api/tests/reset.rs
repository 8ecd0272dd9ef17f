//! Positions that a person sets.

use std::time::Duration;

use millrace_core::name::Unit;
use millrace_core::progress::{Progress, StreamProgress, Totals};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use serde_json::{Value, json};

use super::super::types::{ResetAnswer, Revisions};
use super::{Answer, NOW, Server};
use crate::broker::UnitInfo;

/// Ten records in each of two partitions, an hour between one and the next; the last one was published just now.
fn record(number: u64) -> Record {
    Record { timestamp: published(number), key: None, headers: [].into_iter().collect(), value: None }
}

fn published(number: u64) -> Timestamp {
    NOW - Duration::from_secs((9 - number) * 3600)
}

/// All below 6 is settled, and what is at 8.
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
fn unit(partition: u32) -> UnitInfo {
    let totals = Totals { completed: 7, ..Totals::default() };
    UnitInfo {
        unit: Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition },
        progress: Progress {
            source: StreamProgress { start: 0, resume: 6, settled_above: vec![8..9], totals },
            ..Progress::default()
        },
        source_next: 10,
        oldest_unsettled_at: None,
        redrive_next: 0,
        not_records: 0,
    }
}

async fn server() -> Server {
    let server = Server::start().await;
    server.activate_with("pay", "idempotency = { window = '150m' }").await;
    {
        let mut log = server.broker.lock();
        log.units = vec![unit(0), unit(1)];
        for partition in &mut log.topics.get_mut("orders").unwrap()[..2] {
            *partition = (0..10).map(record).collect();
        }
    }
    let manifest = "application = 'shop'\n[functions.pay]\ncomponent = 'pay.wasm'\ntopics = ['orders']\n";
    let body = json!({"component": "e".repeat(64), "manifest": manifest});
    assert_eq!(server.deploy("shop.pay", &body).await.status, 200);
    let activated = server.post("/v1/functions/shop.pay/rollback", "application/json", r#"{"to": 1}"#).await;
    assert_eq!(activated.status, 200);
    server
}

async fn reset(server: &Server, body: &Value) -> Answer {
    server.post("/v1/functions/shop.pay/reset", "application/json", body.to_string()).await
}

#[tokio::test]
async fn a_dry_run_says_what_comes_again_and_what_is_passed_over() {
    let server = server().await;
    for (from, to, again, within_window, passed_over) in [
        (json!("earliest"), 0, 7, 1, 0),
        (json!("latest"), 10, 0, 0, 3),
        (json!(published(4).to_rfc3339()), 4, 3, 1, 0),
        (json!((published(4) + Duration::from_millis(1)).to_rfc3339()), 5, 2, 1, 0),
        (json!(published(8).to_rfc3339()), 8, 1, 1, 2),
        (json!("1970-01-01T00:00:00Z"), 0, 7, 1, 0),
        (json!("2500-01-01T00:00:00Z"), 10, 0, 0, 3),
    ] {
        let answer: ResetAnswer = reset(&server, &json!({"from": from, "dry_run": true})).await.json();
        assert_eq!((answer.dry_run, answer.number, answer.window_seconds), (true, 3, 9000.0), "{from}");
        assert_eq!((answer.again, answer.within_window), (2 * again, 2 * within_window), "{from}");
        assert_eq!(answer.passed_over, 2 * passed_over, "{from}");
        let [first, second] = &answer.partitions[..] else { panic!("{answer:?}") };
        assert_eq!((first.partition, first.from, first.to), (0, 6, to), "{from}");
        assert_eq!((second.partition, second.to, second.again), (1, to, again), "{from}");
    }
    let history: Revisions = server.get("/v1/functions/shop.pay/revisions").await.json();
    assert_eq!(history.latest, 2, "a dry run changes nothing");
}

#[tokio::test]
async fn a_reset_is_on_record_with_its_partitions() {
    let server = server().await;
    let only = json!({"from": "3", "topic": "orders", "partition": 1, "forget": true, "builds_on": 2});
    let answer: ResetAnswer = reset(&server, &only).await.json();
    assert_eq!((answer.number, answer.dry_run, answer.forget, answer.partitions.len()), (3, false, true, 1));
    assert_eq!(reset(&server, &only).await.summary(), "409 conflict", "it builds on what is not the latest");
    let answer: ResetAnswer = reset(&server, &json!({"from": "earliest"})).await.json();
    assert_eq!((answer.number, answer.partitions.len()), (4, 2));
    let history: Revisions = server.get("/v1/functions/shop.pay/revisions").await.json();
    let told: Vec<_> = history.deployments[2..].iter().map(|one| (one.action.as_str(), one.partitions)).collect();
    assert_eq!(told, [("reset", Some(1)), ("reset", Some(2))]);
}

#[tokio::test]
async fn what_is_no_place_is_refused_with_what_to_say() {
    let server = server().await;
    for (body, expected, says) in [
        (json!({}), "400 malformed-request", "`from`"),
        (json!({"from": "yesterday"}), "400 malformed-request", "write `earliest`, `latest`, a time"),
        (json!({"from": "earliest", "form": 1}), "400 malformed-request", "form"),
        (json!({"from": "3"}), "400 malformed-request", "there are 2: name `topic` and `partition`"),
        (json!({"from": "11", "partition": 0}), "400 malformed-request", "choose one from 0 to 10"),
        (json!({"from": "earliest", "topic": "payments"}), "404 unknown-topic", "only `orders`"),
        (json!({"from": "earliest", "partition": 7}), "404 unknown-partition", "partition 7"),
    ] {
        let answer = reset(&server, &body).await;
        assert_eq!(answer.summary(), expected, "{body}");
        assert!(answer.problem().detail.contains(says), "{}", answer.problem().detail);
    }
    let unknown = server.post("/v1/functions/shop.none/reset", "application/json", r#"{"from": "latest"}"#).await;
    assert_eq!(unknown.summary(), "404 unknown-function");
}
