//! Short ways to say what the promises are about.

use std::time::Duration;

use bytes::Bytes;
use millrace::broker::{
    Assignment, Broker, Catalog, Commit, CommitOutcome, Fetched, Letter, LetterId, Outgoing, Partition, Placement,
    Placing, StartAt, Subscription, Told, Wanted,
};
use millrace_core::idempotency::Bounds;
use millrace_core::letter::LetterHeaders;
use millrace_core::name::FunctionName;
use millrace_core::outcome::Category;
use millrace_core::progress::Progress;
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;
use tokio::sync::mpsc;

use super::subjects::Subject;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is awaited.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The partitions of one log.
pub(crate) type PartitionOf<S> = <<S as Subject>::Log as Broker>::Partition;

/// What must come, comes.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes within a minute")
}

/// Looks again and again until something holds.
pub(crate) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    within(async {
        while !holds().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
}

pub(crate) fn function() -> FunctionName {
    "shop.pay".parse().expect("a name")
}

/// A log with the topic `orders` of two partitions, and what is in the first of them.
pub(crate) async fn orders<S: Subject>(subject: &S, values: &[&str]) -> S::Log {
    let log = subject.open().await;
    within(log.create_topic(subject.topic("orders"), 2)).await.expect("the topic can be made");
    if !values.is_empty() {
        publish(subject, &log, values).await;
    }
    log
}

pub(crate) fn record(value: &str, timestamp: Timestamp) -> Record {
    Record {
        timestamp,
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Headers::default(),
    }
}

pub(crate) fn outgoing<S: Subject>(subject: &S, name: &str, partition: u32, value: &str) -> Outgoing {
    let record = record(value, subject.now());
    Outgoing { topic: subject.topic(name), placing: Placing::Partition(partition), record }
}

/// Into the first partition of `orders`.
pub(crate) async fn publish<S: Subject>(subject: &S, log: &S::Log, values: &[&str]) -> Vec<Placement> {
    let records = values.iter().map(|value| outgoing(subject, "orders", 0, value)).collect();
    within(log.publish(records)).await.expect("the records are taken")
}

pub(crate) fn texts(fetched: &Fetched) -> Vec<String> {
    let text = |record: &Record| String::from_utf8_lossy(&record.value.clone().unwrap_or_default()).into_owned();
    fetched.records.iter().map(|(_, record)| text(record)).collect()
}

/// All that a partition holds.
pub(crate) async fn records<S: Subject>(subject: &S, log: &S::Log, name: &str, partition: u32) -> Vec<Record> {
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let page = within(log.read(&subject.topic(name), partition, next, 7)).await.expect("the topic can be read");
        if page.records.is_empty() {
            return found;
        }
        next = page.next;
        found.extend(page.records.into_iter().map(|(_, record)| record));
    }
}

pub(crate) async fn all<S: Subject>(subject: &S, log: &S::Log, name: &str, partition: u32) -> Vec<String> {
    let text = |record: Record| String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
    records(subject, log, name, partition).await.into_iter().map(text).collect()
}

pub(crate) fn subscription<S: Subject>(subject: &S) -> Subscription {
    let topics = vec![subject.topic("orders")];
    Subscription {
        function: function(),
        topics,
        from: StartAt::Earliest,
        window: Bounds::default(),
        told: Told::default(),
    }
}

/// What a subscription is assigned.
pub(crate) struct Assigned<P> {
    /// By partition.
    pub(crate) units: Vec<Assignment<P>>,
    /// More of it.
    pub(crate) receiver: mpsc::Receiver<Assignment<P>>,
}

impl<P: Partition> Assigned<P> {
    /// The first partition, and what keeps it assigned.
    pub(crate) fn first(&mut self) -> &mut Assignment<P> {
        &mut self.units[0]
    }

    /// Waits for one more.
    pub(crate) async fn next(&mut self) -> Assignment<P> {
        within(self.receiver.recv()).await.expect("there is an assignment")
    }
}

/// Both partitions of `orders`.
pub(crate) async fn subscribe<S: Subject>(log: &S::Log, subscription: Subscription) -> Assigned<PartitionOf<S>> {
    let mut assigned = none_yet::<S>(log, subscription).await;
    while assigned.units.len() < 2 {
        let next = assigned.next().await;
        assigned.units.push(next);
    }
    assigned.units.sort_by_key(|assignment| assignment.partition.unit().clone());
    assigned
}

/// A subscription before anything is assigned.
pub(crate) async fn none_yet<S: Subject>(log: &S::Log, subscription: Subscription) -> Assigned<PartitionOf<S>> {
    let receiver = within(log.subscribe(subscription)).await.expect("the topics are there");
    Assigned { units: Vec::new(), receiver }
}

pub(crate) fn wanted(source: u64) -> Wanted {
    Wanted { source: Some(source), redrive: None, max_records: 100, max_bytes: 1 << 20 }
}

pub(crate) fn redrive_wanted(offset: u64) -> Wanted {
    Wanted { source: None, redrive: Some(offset), max_records: 100, max_bytes: 1 << 20 }
}

/// Fetches until this many records have come.
pub(crate) async fn fetch(partition: &mut impl Partition, mut wanted: Wanted, count: usize) -> Vec<Record> {
    let mut found = Vec::new();
    while found.len() < count {
        let fetched = within(partition.fetch(wanted)).await.expect("there are records");
        let from = if wanted.source.is_some() { &mut wanted.source } else { &mut wanted.redrive };
        *from = Some(fetched.next);
        found.extend(fetched.records.into_iter().map(|(_, record)| record));
    }
    found
}

pub(crate) async fn fetch_texts(partition: &mut impl Partition, wanted: Wanted, count: usize) -> Vec<String> {
    let text = |record: Record| String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned();
    fetch(partition, wanted, count).await.into_iter().map(text).collect()
}

/// Progress after `completed` more source records than `before`.
pub(crate) fn after(before: &Progress, completed: u64) -> Progress {
    let mut progress = before.clone();
    progress.source.resume += completed;
    progress.source.totals.completed += completed;
    progress.commits += 1;
    progress
}

/// Progress after `failed` more source records than `before` became dead letters.
pub(crate) fn after_failures(before: &Progress, failed: u64) -> Progress {
    let mut progress = before.clone();
    progress.source.resume += failed;
    progress.source.totals.dead_lettered += failed;
    progress.commits += 1;
    progress
}

pub(crate) async fn commits(partition: &mut impl Partition, commit: Commit) {
    assert_eq!(within(partition.commit(commit)).await.expect("the log can act"), CommitOutcome::Committed);
}

pub(crate) fn letter_id<S: Subject>(subject: &S, offset: u64) -> LetterId {
    LetterId { topic: subject.topic("orders"), partition: 0, offset }
}

pub(crate) fn letter<S: Subject>(subject: &S, offset: u64, value: &str) -> Letter {
    let (id, now) = (letter_id(subject, offset), subject.now());
    let headers = LetterHeaders {
        function: function(),
        revision: 1,
        category: Category::Unknown,
        reason: "it failed".into(),
        attempts: 1,
        first_failed_at: now,
        last_failed_at: now,
        topic: id.topic.clone(),
        partition: id.partition,
        offset,
        idempotency_key: None,
        redrives: 0,
    };
    Letter { record: headers.seal(&record(value, now)), id }
}
