use std::cell::Cell;
use std::time::Duration;

use millrace_core::idempotency::Bounds;
use millrace_core::progress::{KeyHash, Progress};
use millrace_core::time::Timestamp;
use rdkafka::consumer::{CommitMode, Consumer};

use super::super::KafkaLog;
use super::super::member::committed;
use super::super::restore::Past;
use super::support::*;
use crate::broker::{Catalog, Commit};

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_makes_the_topics_it_needs() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let _receiver = cluster.subscribe(&log).await;
    let mine = |name: &String| name.starts_with(&cluster.prefix);
    let topics = log.topics().await.unwrap().into_iter().filter(|topic| mine(&topic.name));
    let topics: Vec<_> = topics.map(|topic| (topic.name, topic.internal, topic.partitions.len())).collect();
    let (prefix, orders) = (&cluster.prefix, cluster.topic("orders"));
    let expected = [
        (format!("{prefix}.shop.pay.dead-letter"), true, 1),
        (format!("{prefix}.shop.pay.dead-letter-status"), true, 1),
        (format!("{prefix}.shop.pay.keys.{orders}"), true, 2),
        (format!("{prefix}.shop.pay.redrive.{orders}"), true, 2),
        (format!("{prefix}.shop.pay.state.{orders}"), true, 2),
    ];
    assert_eq!(topics, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_of_transactions_are_told_apart_from_records_that_wait() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    drop(cluster.subscribe(&log).await);
    let left = async || {
        let units = within(log.units(&function())).await.unwrap();
        let unit = units.into_iter().find(|info| info.unit.partition == 0).unwrap();
        (unit.progress.source.unsettled_below(unit.source_next), unit.not_records)
    };
    assert_eq!(left().await, (0, 0));
    for values in [&["a", "b"][..], &["c"], &["d"]] {
        cluster.publish(&log, "orders", 0, values).await;
    }
    // Each of the three publications is a transaction, and has a marker.
    assert_eq!(left().await, (7, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tool_committed_is_a_position_without_progress() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let outsider = log.clients().outsider(&log.clients().names.group(&function())).unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for (partition, metadata) in [(0, "set by hand"), (1, "")] {
        let mut element = list.add_partition(cluster.topic("orders").as_str(), partition);
        element.set_offset(rdkafka::Offset::Offset(i64::from(2 - partition * 2))).unwrap();
        element.set_metadata(metadata);
    }
    let orders = cluster.topic("orders");
    let found = tokio::task::spawn_blocking(move || {
        outsider.commit(&list, CommitMode::Sync).unwrap();
        committed(&outsider, &function(), &[(orders, 0)]).unwrap().remove(0).progress.unwrap()
    });
    let found = found.await.unwrap();
    assert_eq!((found.source.start, found.source.resume, found.commits), (2, 2, 0));
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    assert_eq!(units[0].restored.progress, found);
    assert_eq!(fetch(&mut units[0].partition, 2, 1).await, ["c"]);
}

/// Partition 0 of `orders` has `old` commits, each with a key of its own, then `new` ones from the time on that is told.
async fn remembering(cluster: &Cluster, old: u64, new: u64) -> (KafkaLog, Timestamp) {
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let now = || Timestamp::from_millis(log.clock().now().as_millis());
    let (mut progress, mut since) = (Progress::default(), Timestamp::EPOCH);
    for number in 0..old + new {
        progress = after(&progress, 1);
        let at = if number < old { now() } else { since };
        commits(&mut partition, Commit { keys: vec![KeyHash(number.into())], ..Commit::new(at, progress.clone()) })
            .await;
        if number + 1 == old {
            since = now() + Duration::from_millis(1);
        }
    }
    (log, since)
}

/// What partition 0 remembers since then, read for as long as it was asked so often whether anybody wants it: how many records
/// were read, and which keys were found.
async fn remembered(cluster: &Cluster, (log, since): (KafkaLog, Timestamp), wanted_for: u64) -> (u64, Vec<u128>) {
    let orders = cluster.topic("orders");
    let reading = move || {
        let asked = Cell::new(0);
        let is_wanted = |_| asked.replace(asked.get() + 1) < wanted_for;
        let past = Past { clients: log.clients(), function: &function(), source: &orders, is_wanted: &is_wanted };
        let mut windows = [(0, Bounds::default().window(1))].into();
        let records = past.keys(since, &mut windows).unwrap();
        (records, (0..1000).filter(|key| windows[&0].contains(KeyHash(*key), since)).collect())
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
    let (records, keys) = remembered(&cluster, committed, 20).await;
    assert!((1..=20).contains(&records) && keys.len() as u64 == records, "{records} records, {keys:?}");
}
