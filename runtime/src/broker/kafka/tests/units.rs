use rdkafka::consumer::{CommitMode, Consumer};

use super::super::member::committed;
use super::support::*;
use crate::broker::Catalog;

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
