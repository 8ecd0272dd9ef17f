//! Commits of which nobody knows whether they were made, on a real Kafka: the answer is lost, or the request is.

use std::time::Duration;

use bytes::Bytes;
use millrace::broker::kafka::{KafkaLog, KafkaPartition, Options};
use millrace::broker::{
    Assignment, Broker as _, Catalog as _, Commit, CommitOutcome, Log as _, Outgoing, Partition as _, Placing, StartAt,
    StateReader as _, StateWrite, Subscription,
};
use millrace_core::name::Topic;
use millrace_core::progress::Progress;
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;
use millrace_tests::between::{Between, END_TRANSACTION, Loss};
use millrace_tests::process::Kafka;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn topic(name: &str) -> Topic {
    Topic::new(name.to_owned()).expect("a name")
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes in the end")
}

async fn open(bootstrap: String) -> KafkaLog {
    tokio::task::spawn_blocking(move || KafkaLog::open(Options::new(bootstrap)))
        .await
        .expect("it runs")
        .expect("it opens")
}

async fn assigned(log: &KafkaLog) -> Assignment<KafkaPartition> {
    let subscription = Subscription {
        function: "shop.pay".parse().expect("a name"),
        topics: vec![topic("orders")],
        from: StartAt::Earliest,
        keys_since: Timestamp::EPOCH,
    };
    let mut receiver = within(log.subscribe(subscription)).await.expect("it subscribes");
    let assignment = within(receiver.recv()).await.expect("it is assigned its partition");
    // The subscription lasts as long as this test.
    std::mem::forget(receiver);
    assignment
}

/// A commit after another one, with an output and a value of the state that say which it is.
fn next(before: &Progress, name: &str) -> Commit {
    let now = millrace::clock::Clock::system().now();
    let mut progress = before.clone();
    progress.commits += 1;
    let value = Some(Bytes::copy_from_slice(name.as_bytes()));
    let record = Record { timestamp: now, key: None, value: value.clone(), headers: Headers::default() };
    Commit {
        at: now,
        progress,
        keys: Vec::new(),
        outputs: vec![Outgoing { topic: topic("paid"), placing: Placing::Partition(0), record }],
        letters: Vec::new(),
        resolved: Vec::new(),
        state: vec![StateWrite { key: "last".into(), value }],
    }
}

/// Loses something of a commit until its outcome is not known, and looks at what is found out of it.
async fn check(between: &Between, unit: &mut KafkaPartition, commit: &Commit, loss: Loss) -> CommitOutcome {
    let lost = between.lost();
    between.lose(Some(loss));
    let outcome = within(unit.commit(commit.clone())).await.expect("it is found out");
    between.lose(None);
    assert!(between.lost() > lost, "nothing was lost: {loss:?}");
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_what_became_of_a_commit_is_found_out() {
    let Some(kafka) = Kafka::start() else { return };
    let (front, behind) = kafka.between();
    let between = Between::listen(front, behind).await.expect("the port is free");
    let log = open(front.to_string()).await;
    for name in ["orders", "paid"] {
        log.create_topic(topic(name), 1).await.expect("it is made");
    }
    let Assignment { partition: mut unit, restored, .. } = assigned(&log).await;
    let first = next(&restored.progress, "first");
    let answer = Loss::Answer(END_TRANSACTION);
    assert_eq!(check(&between, &mut unit, &first, answer).await, CommitOutcome::Committed);
    let second = next(&first.progress, "second");
    let request = Loss::Request(END_TRANSACTION);
    assert_eq!(check(&between, &mut unit, &second, request).await, CommitOutcome::Aborted);
    let value =
        async |unit: &KafkaPartition| unit.state().get(vec!["last".into()]).await.expect("it is read").remove(0);
    assert_eq!(value(&unit).await.as_deref(), Some(&b"first"[..]));
    // Done again, it is there once.
    assert_eq!(within(unit.commit(second.clone())).await.expect("it commits"), CommitOutcome::Committed);
    assert_eq!(value(&unit).await.as_deref(), Some(&b"second"[..]));
    let paid = kafka.read("paid");
    let values: Vec<&str> = paid.lines().filter_map(|line| line.rsplit('\t').next()).collect();
    assert_eq!(values, ["first", "second"]);
    within(log.close(Duration::from_secs(10))).await;
}
