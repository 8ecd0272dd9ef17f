//! Commits of which nobody knows whether they were made, on a real Kafka: the answer is lost, or the request is, or the answer tells
//! of an error.

use std::time::Duration;

use bytes::Bytes;
use millrace::broker::kafka::{KafkaLog, KafkaPartition, Options};
use millrace::broker::{
    Assignment, Broker as _, Catalog as _, Commit, CommitOutcome, Log as _, Outgoing, Partition as _, Placing, StartAt,
    StateReader as _, StateWrite, Subscription, Told,
};
use millrace_core::idempotency::Bounds;
use millrace_core::name::Topic;
use millrace_core::progress::Progress;
use millrace_core::record::{Headers, Record};
use millrace_tests::between::{ADD_OFFSETS, Between, END_TRANSACTION, HEARTBEAT, Loss, PRODUCE};
use millrace_tests::process::Kafka;
use tokio::sync::mpsc;

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

type Assignments = mpsc::Receiver<Assignment<KafkaPartition>>;

async fn subscribed(log: &KafkaLog) -> Assignments {
    let subscription = Subscription {
        function: "shop.pay".parse().expect("a name"),
        topics: vec![topic("orders")],
        from: StartAt::Earliest,
        window: Bounds::default(),
        told: Told::default(),
    };
    within(log.subscribe(subscription)).await.expect("it subscribes")
}

async fn assigned(receiver: &mut Assignments) -> Assignment<KafkaPartition> {
    within(receiver.recv()).await.expect("it is assigned its partition")
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

/// Errors of Kafka's, by its numbers, each with a request that it is the answer to.
const ERRORS: [(&str, i16, i16); 6] = [
    ("the coordinator loads", END_TRANSACTION, 14),
    ("there is no coordinator", END_TRANSACTION, 15),
    ("the coordinator has moved", END_TRANSACTION, 16),
    ("the group's coordinator has moved", ADD_OFFSETS, 16),
    ("the disk is full", PRODUCE, 56),
    ("another producer has taken over", END_TRANSACTION, 90),
];
/// Ends a client for good.
const FENCED_INSTANCE_ID: i16 = 82;

/// Each error three times; what is committed is there all the same. Answers with the last commit.
async fn errors_are_waited_out(between: &Between, unit: &mut KafkaPartition, before: &Commit) -> Commit {
    let mut last = before.clone();
    for (name, request, error) in ERRORS {
        let commit = next(&last.progress, name);
        let outcome = check(between, unit, &commit, Loss::Error(request, error, 3)).await;
        assert_eq!(outcome, CommitOutcome::Committed, "{name}");
        last = commit;
    }
    last
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
    let mut receiver = subscribed(&log).await;
    let Assignment { partition: mut unit, restored, mut revoked, .. } = assigned(&mut receiver).await;
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
    let last = errors_are_waited_out(&between, &mut unit, &second).await;
    // An error that its client takes for the end of it: another one takes its place.
    between.lose(Some(Loss::Error(HEARTBEAT, FENCED_INSTANCE_ID, usize::MAX)));
    within(revoked.wait_for(|revoked| *revoked)).await.expect("it loses its partition");
    between.lose(None);
    let again = assigned(&mut receiver).await;
    assert_eq!(again.restored.progress, last.progress);
    let paid = kafka.read("paid");
    let values: Vec<&str> = paid.lines().filter_map(|line| line.rsplit('\t').next()).collect();
    let all = ["first", "second"].into_iter().chain(ERRORS.map(|(name, ..)| name));
    assert_eq!(values, all.collect::<Vec<_>>());
    drop((again, unit, receiver));
    within(log.close(Duration::from_secs(10))).await;
}
