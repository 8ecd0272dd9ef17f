//! Instances come and go while commits are under way; a plain consumer that shares nothing with the adapter then finds each
//! output once, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_core::progress::Progress;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use tokio::sync::watch;

use super::support::*;
use crate::broker::kafka::{KafkaLog, KafkaPartition};
use crate::broker::{Assignment, Broker, Catalog, CommitOutcome, Log, Outgoing, Partition, Placing, Wanted};

const PARTITIONS: u32 = 4;
const RECORDS_A_ROUND: u64 = 500;
const ROUNDS: u32 = 6;
const INSTANCES_MAX: usize = 4;
/// Longer than a transaction that nobody ends stays open.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened to commits, over all instances.
#[derive(Debug, Default)]
struct Tally {
    committed: AtomicU64,
    aborted: AtomicU64,
    /// Whoever began them was gone before they ended.
    abandoned: AtomicU64,
}

/// A commit under way, from its beginning to whatever becomes of it.
struct UnderWay<'a> {
    tally: &'a Tally,
    commits: &'a watch::Sender<usize>,
    ended: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(tally: &'a Tally, commits: &'a watch::Sender<usize>) -> Self {
        commits.send_modify(|commits| *commits += 1);
        Self { tally, commits, ended: false }
    }

    fn end(mut self, committed: bool) {
        let counter = if committed { &self.tally.committed } else { &self.tally.aborted };
        counter.fetch_add(1, Ordering::Relaxed);
        self.ended = true;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.commits.send_modify(|commits| *commits -= 1);
        if !self.ended {
            self.tally.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Copies each record of a partition to the partition of the same number, until the partition is lost.
async fn copy(
    assignment: Assignment<KafkaPartition>,
    to: millrace_core::name::Topic,
    tally: Arc<Tally>,
    commits: watch::Sender<usize>,
) {
    let Assignment { mut partition, restored, mut revoked, .. } = assignment;
    let mut progress: Progress = restored.progress;
    loop {
        let wanted =
            Wanted { source: Some(progress.source.resume), redrive: None, max_records: 10, max_bytes: 1 << 20 };
        let fetched = tokio::select! {
            _ = revoked.wait_for(|revoked| *revoked) => return,
            fetched = partition.fetch(wanted) => fetched.unwrap(),
        };
        let mut next = progress.clone();
        next.source.totals.completed += fetched.records.len() as u64;
        next.source.totals.not_a_record += fetched.next - next.source.resume - fetched.records.len() as u64;
        next.source.resume = fetched.next;
        next.commits += 1;
        let placing = Placing::Partition(partition.unit().partition);
        let outputs = fetched.records.into_iter().map(|(_, record)| Outgoing { topic: to.clone(), placing, record });
        let written = crate::broker::Commit { outputs: outputs.collect(), ..commit(&next) };
        let under_way = UnderWay::begin(&tally, &commits);
        match partition.commit(written).await {
            Ok(CommitOutcome::Committed) => {
                under_way.end(true);
                progress = next;
            }
            Ok(CommitOutcome::Aborted) | Err(_) => {
                under_way.end(false);
                if *revoked.borrow() {
                    return;
                }
            }
            Ok(CommitOutcome::Refused { reason } | CommitOutcome::Forbidden { reason }) => panic!("{reason}"),
        }
    }
}

/// One instance that copies; it leaves in order when it is told to.
struct Instance {
    log: KafkaLog,
    /// How many of its commits are under way.
    commits: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    async fn start(cluster: &Cluster, tally: &Arc<Tally>) -> Self {
        let log = cluster.open_with(&[("session.timeout.ms", "6000")]).await;
        let mut assignments = cluster.subscribe(&log).await;
        let (to, tally) = (cluster.topic("copies"), Arc::clone(tally));
        let (sender, commits) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut workers = tokio::task::JoinSet::new();
            while let Some(assignment) = assignments.recv().await {
                workers.spawn(copy(assignment, to.clone(), Arc::clone(&tally), sender.clone()));
            }
        });
        Self { log, commits, task }
    }

    /// Ends in the middle of a commit.
    async fn stop(mut self) {
        within(self.commits.wait_for(|commits| *commits > 0)).await.unwrap();
        self.end().await;
    }

    async fn end(self) {
        self.task.abort();
        drop(self.task.await);
        self.log.close(Duration::from_secs(10)).await;
    }
}

/// What a consumer of nobody's finds in a topic, by partition. The positions of a commit can be visible before its records,
/// so what is still open is waited for.
fn read_independently(bootstrap: &str, topic: &str) -> BTreeMap<i32, Vec<String>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("{topic}-reader"))
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    (0..PARTITIONS).for_each(|partition| {
        list.add_partition_offset(topic, partition.cast_signed(), rdkafka::Offset::Beginning).unwrap();
    });
    let uncommitted: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    let end = |consumer: &BaseConsumer, partition: u32| {
        consumer.fetch_watermarks(topic, partition.cast_signed(), PATIENCE).unwrap().1
    };
    for partition in 0..PARTITIONS {
        let (began, all) = (Instant::now(), end(&uncommitted, partition));
        while end(&consumer, partition) < all {
            assert!(began.elapsed() < PATIENCE, "a transaction stays open in partition {partition}");
            std::thread::yield_now();
        }
    }
    consumer.assign(&list).unwrap();
    let (mut found, mut ended) = (BTreeMap::<i32, Vec<String>>::new(), 0);
    while ended < PARTITIONS {
        match consumer.poll(PATIENCE).expect("the topic is read to its end") {
            Ok(message) => {
                let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
                found.entry(message.partition()).or_default().push(text);
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_output_is_there_once_however_instances_come_and_go() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open().await;
    for topic in ["orders", "copies"] {
        log.create_topic(cluster.topic(topic), PARTITIONS).await.unwrap();
    }
    let tally = Arc::new(Tally::default());
    let mut running = vec![Instance::start(&cluster, &tally).await];
    let mut published = 0u64;
    for round in 0..ROUNDS {
        let (enough, changing) = (published + RECORDS_A_ROUND, AtomicBool::new(true));
        let changed = async {
            if (round % 3 == 2 && running.len() > 1) || running.len() == INSTANCES_MAX {
                running.remove(0).stop().await;
            }
            running.push(Instance::start(&cluster, &tally).await);
            changing.store(false, Ordering::Relaxed);
        };
        let publishing = async {
            while published < enough || changing.load(Ordering::Relaxed) {
                let batch: Vec<Outgoing> = (published..published + 20)
                    .map(|n| {
                        cluster.outgoing("orders", u32::try_from(n % u64::from(PARTITIONS)).unwrap(), &n.to_string())
                    })
                    .collect();
                published += batch.len() as u64;
                within(log.publish(batch)).await.unwrap();
            }
        };
        tokio::join!(changed, publishing);
    }
    let began = Instant::now();
    loop {
        // A transaction that somebody left open hides the positions for a while.
        let units = within(log.units(&function())).await;
        let completed = units.iter().flatten().map(|unit| unit.progress.source.totals.completed).sum::<u64>();
        if completed == published {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "{published} never end: {tally:?} {units:#?}");
        tokio::task::yield_now().await;
    }
    let (bootstrap, topic) = (cluster.bootstrap.clone(), cluster.topic("copies").to_string());
    let found = tokio::task::spawn_blocking(move || read_independently(&bootstrap, &topic)).await.unwrap();
    for partition in 0..PARTITIONS {
        let expected: Vec<String> = (0..published)
            .filter(|n| n % u64::from(PARTITIONS) == u64::from(partition))
            .map(|n| n.to_string())
            .collect();
        assert_eq!(found[&partition.cast_signed()], expected, "partition {partition}: {tally:?}");
    }
    assert!(tally.abandoned.load(Ordering::Relaxed) > 0, "no commit was under way when an instance ended: {tally:?}");
    for instance in running {
        instance.end().await;
    }
}
