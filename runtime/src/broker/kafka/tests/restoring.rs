//! What is read before a partition is handed over, for how long, and what is told of it.

use std::cell::Cell;
use std::time::Duration;

use millrace_core::idempotency::Bounds;
use millrace_core::progress::{KeyHash, Progress, Stream, StreamProgress, Totals};
use millrace_core::time::Timestamp;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, Producer};

use super::super::KafkaLog;
use super::super::clients::{Deliveries, REQUEST_TIMEOUT, at};
use super::super::restore::Past;
use super::support::*;
use crate::broker::{
    Broker, Catalog, Commit, CommitOutcome, Force, GroupFigures, LetterAction, Log, Partition, Wanted,
};

/// Longer than a test takes.
const HELD: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const MANY: u128 = 64;

/// Keys of a commit: more than there is room for with a position.
fn keys_of(number: u64) -> Vec<KeyHash> {
    (0..MANY).map(|key| KeyHash(MANY * u128::from(number) + key)).collect()
}

/// Partition 0 of `orders` has `old` commits, each with many keys of its own, then `new` ones from the time on that is told.
async fn remembering(cluster: &Cluster, old: u64, new: u64) -> (KafkaLog, Timestamp) {
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let now = || Timestamp::from_millis(log.clock().now().as_millis());
    let (mut progress, mut since) = (Progress::default(), Timestamp::EPOCH);
    for number in 0..old + new {
        progress = after(&progress, 1);
        let at = if number < old { now() } else { since };
        commits(&mut partition, Commit { keys: keys_of(number), ..Commit::new(at, progress.clone()) }).await;
        if number + 1 == old {
            since = now() + Duration::from_millis(1);
        }
    }
    (log, since)
}

/// What partition 0 remembers since then, read for as long as it was asked so often whether anybody wants it: how many records
/// were read, and of which commits the keys were found.
async fn remembered(cluster: &Cluster, (log, since): (KafkaLog, Timestamp), wanted_for: u64) -> (u64, Vec<u64>) {
    let orders = cluster.topic("orders");
    let reading = move || {
        let asked = Cell::new(0);
        let is_wanted = |_| asked.replace(asked.get() + 1) < wanted_for;
        let past = Past {
            clients: log.clients(),
            function: &function(),
            source: &orders,
            is_wanted: &is_wanted,
            count: &|_| (),
        };
        let mut windows = [(0, Bounds::default().window(1))].into();
        let records = past.keys(past.source_id().unwrap(), since, &mut windows).unwrap();
        (records, (0..1000).filter(|number| windows[&0].contains(keys_of(*number)[0], since)).collect())
    };
    tokio::task::spawn_blocking(reading).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_not_even_read() {
    let Some(cluster) = Cluster::find() else { return };
    let committed = remembering(&cluster, 150, 7).await;
    assert_eq!(remembered(&cluster, committed, u64::MAX).await, (7, (150..157).collect()));
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_ends_in_the_middle_when_nobody_waits_for_it() {
    let Some(cluster) = Cluster::find() else { return };
    let committed = remembering(&cluster, 0, 100).await;
    // It is asked before the reading begins, after each record, and as time passes.
    let (records, commits) = remembered(&cluster, committed, 20).await;
    assert!((1..=20).contains(&records) && commits.len() as u64 == records, "{records} records, {commits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_small_commits_are_with_their_positions_until_they_are_many() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let topic = log.clients().names.keys(&function(), &cluster.topic("orders")).unwrap();
    let mut progress = Progress::default();
    for (number, written) in (0..43).map(|number| (number, if number < 40 { 0 } else { 41 })) {
        progress = after(&progress, 1);
        let at = log.clock().now();
        for unit in &mut units {
            let keys = vec![KeyHash(number)];
            commits(&mut unit.partition, Commit { keys, ..Commit::new(at, progress.clone()) }).await;
            // A marker reaches the partition a moment after the commit is answered, and until then nobody sees the records.
            let there = loop {
                let read = within(log.read(&topic, unit.partition.unit().partition, 0, 1000)).await.unwrap();
                if read.records.len() >= written {
                    break read.records.len();
                }
            };
            assert_eq!(there, written, "after {number}");
        }
    }
    // Whoever takes over knows all of them, although this instance has not ended in order.
    let second = cluster.open().await;
    let mut taking = cluster.subscribe(&second).await;
    let mut taken = assigned(&mut taking, 1).await.remove(0);
    assert_eq!((taken.restored.keys.len(), taken.restored.progress.clone()), (43, progress.clone()));
    assert!((0..43).all(|number| taken.restored.keys.contains(KeyHash(number), began())));
    commits(&mut taken.partition, Commit { keys: vec![KeyHash(43)], ..commit(&after(&progress, 1)) }).await;
    // One that ends in order leaves them where they stay, should somebody move the position.
    let number = taken.partition.unit().partition;
    drop((taken, taking));
    second.close(Duration::from_secs(10)).await;
    assert_eq!(within(log.read(&topic, number, 0, 1000)).await.unwrap().records.len(), 44);
}

/// Waits until the figures of a function's group are such.
async fn until(log: &KafkaLog, holds: impl Fn(&GroupFigures) -> bool) {
    within(async {
        while !holds(&log.group(&function())) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_a_group_is_counted() {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.orders().await;
    assert_eq!(first.group(&function()), GroupFigures::default());
    let mut receiver = cluster.subscribe(&first).await;
    let mut units = assigned(&mut receiver, 2).await;
    let figures = first.group(&function());
    assert_eq!((figures.assigned, figures.revoked, figures.fenced, figures.restored_records), (2, 0, 0, 0));
    assert_eq!(figures.restoring, 0);
    let progress = after(&Progress::default(), 1);
    for unit in &mut units {
        commits(&mut unit.partition, Commit { keys: keys_of(0), ..commit(&progress) }).await;
    }
    let second = cluster.open().await;
    let mut taking = cluster.subscribe(&second).await;
    let taken = assigned(&mut taking, 1).await.remove(0);
    let figures = second.group(&function());
    assert_eq!((figures.assigned, figures.restoring, figures.restored_records), (1, 0, 1));
    assert!(figures.last_restore > Duration::ZERO);
    until(&first, |figures| figures.revoked == 1).await;
    let lost = &mut units[usize::try_from(taken.partition.unit().partition).unwrap()];
    let outcome = within(lost.partition.commit(commit(&after(&progress, 1)))).await.unwrap();
    assert_eq!((outcome, first.group(&function()).fenced), (CommitOutcome::Aborted, 1));
}

/// What holds back the restore of the first partition of some topics.
async fn held(cluster: &Cluster, log: &KafkaLog, topics: &'static [&str]) -> Vec<BaseProducer<Deliveries>> {
    let (cluster, log) = (cluster.clone(), log.clone());
    let open = move || topics.iter().map(|topic| cluster.leave_open(&log, (topic, 0), HELD)).collect();
    tokio::task::spawn_blocking(open).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_ends_at_once_when_nobody_takes_its_partitions() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    drop(cluster.subscribe(&log).await);
    let _held = held(&cluster, &log, &["orders"]).await;
    let receiver = cluster.subscribe(&log).await;
    until(&log, |figures| figures.restoring == 2).await;
    drop(receiver);
    until(&log, |figures| figures.restoring == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_ends_at_once_when_its_partitions_are_lost() {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.open().await;
    for topic in ["orders", "returns"] {
        first.create_topic(cluster.topic(topic), 1).await.unwrap();
    }
    let subscribe =
        async |log: &KafkaLog| within(log.subscribe(cluster.subscription(&["orders", "returns"]))).await.unwrap();
    drop(subscribe(&first).await);
    let held = held(&cluster, &first, &["orders", "returns"]).await;
    let mut receiver = subscribe(&first).await;
    until(&first, |figures| figures.restoring == 2).await;
    let second = cluster.open().await;
    let mut taking = subscribe(&second).await;
    until(&second, |figures| figures.restoring == 1).await;
    until(&first, |figures| figures.restoring == 1).await;
    let commit = move || held.iter().for_each(|one| one.commit_transaction(REQUEST_TIMEOUT).unwrap());
    tokio::task::spawn_blocking(commit).await.unwrap();
    let units = [assigned(&mut receiver, 1).await.remove(0), assigned(&mut taking, 1).await.remove(0)];
    assert_ne!(units[0].partition.unit(), units[1].partition.unit());
    for unit in units {
        assert!(unit.restored.keys.contains(KeyHash(2), began()) && !*unit.revoked.borrow(), "{:?}", unit.partition);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_lost_does_not_hold_back_the_others() {
    let Some(cluster) = Cluster::find() else { return };
    let committed = remembering(&cluster, 0, 3).await;
    let (orders, log) = (cluster.topic("orders"), committed.0.clone());
    let reading = move || {
        let past = Past {
            clients: log.clients(),
            function: &function(),
            source: &orders,
            is_wanted: &|partition| partition == 0,
            count: &|_| (),
        };
        let _held = cluster.leave_open(&log, ("orders", 1), HELD);
        let mut windows = [0, 1].map(|partition| (partition, Bounds::default().window(1))).into();
        past.keys(past.source_id().unwrap(), Timestamp::EPOCH, &mut windows).unwrap()
    };
    assert_eq!(within(tokio::task::spawn_blocking(reading)).await.unwrap(), 3);
}

/// As when it is told by a follower that lags, or by a leader that has only just become it.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_partition_is_not_believed_before_the_end_that_is_known() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    let (orders, reading) = (cluster.topic("orders"), log.clone());
    let read = move || {
        let clients = reading.clients();
        let past = Past { clients, function: &function(), source: &orders, is_wanted: &|_| true, count: &|_| () };
        // Two publications, each with its mark.
        let ends = [(0, 5)].into();
        past.read_from_beginning(&clients.reader().unwrap(), orders.as_str(), ends, |_, _| ()).unwrap()
    };
    let mut read = tokio::task::spawn_blocking(read);
    let early = tokio::time::timeout(Duration::from_secs(1), &mut read).await;
    assert!(early.is_err(), "it ended before the end: {early:?}");
    cluster.publish(&log, "orders", 0, &["c"]).await;
    assert_eq!(within(read).await.unwrap(), 3);
}

/// Three letters are redriven: one completes, one waits, one fails again. Then the position is lost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_redriven_anew_when_a_position_is_lost() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let mut progress = after(&Progress::default(), 0);
    progress.source.resume = 3;
    progress.source.totals.dead_lettered = 3;
    let letters: Vec<_> = (0..3).zip(["a", "b", "c"]).map(|(offset, text)| cluster.letter(offset, text)).collect();
    let ids: Vec<_> = letters.iter().map(|letter| letter.id.clone()).collect();
    let keys = vec![KeyHash(5)];
    commits(&mut partition, Commit { letters: letters.clone(), keys, ..commit(&progress) }).await;
    within(log.act_on_letters(&function(), &ids, LetterAction::Redrive, Force::No)).await.unwrap();
    progress = after(&progress, 0);
    progress.redrive.resume = 1;
    progress.redrive.settled_above = std::iter::once(2..3).collect();
    progress.redrive.totals = Totals { completed: 1, dead_lettered: 1, ..Totals::default() };
    let (resolved, letters) = (vec![ids[0].clone()], vec![letters[2].clone()]);
    commits(&mut partition, Commit { resolved, letters, ..commit(&progress) }).await;
    drop((partition, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    cluster.forget_positions(&log).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut unit = assigned(&mut receiver, 2).await.swap_remove(0);
    let totals = Totals { duplicate: 1, ..Totals::default() };
    let redrive = StreamProgress { start: 1, resume: 1, settled_above: std::iter::once(2..3).collect(), totals };
    assert_eq!(unit.restored.progress, Progress { redrive, ..Progress::default() });
    // The topic is the same, and what completed is not done twice.
    assert!(unit.restored.keys.contains(KeyHash(5), began()));
    let wanted = Wanted { source: None, redrive: Some(1), max_records: 1, max_bytes: 1 << 20 };
    let fetched = within(unit.partition.fetch(wanted)).await.unwrap();
    assert_eq!((fetched.stream, fetched.records[0].0, texts(&fetched)), (Stream::Redrive, 1, vec!["b".to_owned()]));
    // A tool that moves a position by hand knows nothing of redrives either.
    drop((unit, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let outsider = log.clients().outsider(&log.clients().names.group(&function())).unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(cluster.topic("orders").as_str(), 0, at(2)).unwrap();
    tokio::task::spawn_blocking(move || outsider.commit(&list, CommitMode::Sync).unwrap()).await.unwrap();
    let mut receiver = cluster.subscribe(&log).await;
    let progress = assigned(&mut receiver, 2).await.swap_remove(0).restored.progress;
    assert_eq!((progress.source.resume, progress.redrive.resume), (2, 1));
    assert_eq!(progress.redrive.settled_above.into_iter().flatten().collect::<Vec<_>>(), [2]);
}
