use std::time::Duration;

use bytes::Bytes;
use millrace_core::outcome::Category;
use millrace_core::progress::{KeyHash, ParkedHead, Position, Progress, Stream};

use rdkafka::consumer::{CommitMode, Consumer};

use super::super::KafkaPartition;
use super::super::member::committed;
use super::support::*;
use crate::broker::{
    Broker, Catalog, CommitOutcome, KeyBlock, Log, Partition, Placement, PublishError, StartAt, StateRange,
    StateReader as _, StateWrite, Subscription,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_read_back_as_it_was() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut given = cluster.outgoing("orders", 1, "a");
    given.record.headers =
        [("ce_id", Some(&b"1"[..])), ("none", None), ("raw", Some(&[0xff][..]))].into_iter().collect();
    let places = within(log.publish(vec![cluster.outgoing("orders", 0, "x"), given.clone()])).await.unwrap();
    assert_eq!(places, [Placement { partition: 0, offset: 0 }, Placement { partition: 1, offset: 0 }]);
    let read = within(log.read(&cluster.topic("orders"), 1, 0, 10)).await.unwrap();
    assert_eq!(read.records, [(0, given.record)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_something_wrong_is_refused_as_a_whole() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let batch = vec![cluster.outgoing("orders", 0, "a"), cluster.outgoing("nowhere", 0, "b")];
    let error = within(log.publish(batch)).await.unwrap_err();
    assert!(matches!(error, PublishError::UnknownTopic { index: 1, .. }), "{error}");
    let batch = vec![cluster.outgoing("orders", 0, "a"), cluster.outgoing("orders", 0, &"x".repeat(1 << 20))];
    let error = within(log.publish(batch)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { index: 1, .. }), "{error}");
    assert_eq!(cluster.all(&log, "orders", 0).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_assigns_each_partition_and_makes_the_topics_it_needs() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let units = assigned(&mut receiver, 2).await;
    assert!(units.iter().all(|unit| unit.siblings == 2 && unit.restored.progress == Progress::default()));
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
    let error = log.subscribe(cluster.subscription(&["nowhere"])).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("create it before"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_function_starts_is_decided_once() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    for _ in 0..2 {
        let latest = Subscription { from: StartAt::Latest, ..cluster.subscription(&["orders"]) };
        let mut receiver = within(log.subscribe(latest)).await.unwrap();
        let starts: Vec<_> =
            assigned(&mut receiver, 2).await.iter().map(|a| a.restored.progress.source.resume).collect();
        // Two records and the mark of the transaction that they were published in.
        assert_eq!(starts, [3, 0]);
        cluster.publish(&log, "orders", 0, &["c"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_restored_as_it_was_written_and_its_outputs_are_visible() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    log.create_topic(cluster.topic("payments"), 1).await.unwrap();
    cluster.publish(&log, "orders", 0, &["a", "b", "c", "d"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let mut partition = units.swap_remove(0).partition;
    assert_eq!(fetch(&mut partition, 0, 4).await, ["a", "b", "c", "d"]);
    let mut progress = after(&Progress::default(), 1);
    progress.source.settled_above = std::iter::once(2..4).collect();
    progress.source.totals.filtered = 2;
    progress.parked = vec![ParkedHead {
        position: Position { stream: Stream::Source, offset: 1 },
        attempts: 3,
        first_failed_at: began(),
        due_at: began() + Duration::from_secs(3600),
        category: Category::Transient,
    }];
    let mut first = commit(&progress);
    first.keys = vec![KeyHash(1), KeyHash(u128::MAX)];
    first.outputs = vec![cluster.outgoing("payments", 0, "paid"), cluster.outgoing("orders", 1, "again")];
    commits(&mut partition, first).await;
    assert_eq!(cluster.all(&log, "payments", 0).await, ["paid"]);
    assert_eq!(cluster.all(&log, "orders", 1).await, ["again"]);
    // Going back to the position, as after an abort, gives the same again.
    assert_eq!(fetch(&mut partition, 1, 3).await, ["b", "c", "d"]);
    drop((partition, units, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    let restored = assigned(&mut receiver, 2).await.swap_remove(0).restored;
    assert_eq!(restored.progress, progress);
    assert_eq!(restored.keys, [KeyBlock { committed_at: began(), keys: vec![KeyHash(1), KeyHash(u128::MAX)] }]);
    let units = within(log.units(&function())).await.unwrap();
    assert_eq!((units[0].progress.clone(), units[0].oldest_unsettled_at), (progress, Some(began())));
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_that_of_the_commits_that_were_made_whoever_owns_the_unit() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let write = |key: &str, value: Option<&'static str>| StateWrite {
        key: key.into(),
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
    };
    let read = async |partition: &KafkaPartition| {
        let values = partition.state().get(["kept", "gone", "refused"].map(Into::into).to_vec()).await.unwrap();
        values
            .into_iter()
            .map(|value| value.map(|value| String::from_utf8(value.to_vec()).unwrap()))
            .collect::<Vec<_>>()
    };
    let mut first = commit(&after(&Progress::default(), 1));
    first.state = vec![write("kept", Some("1")), write("gone", Some("2"))];
    let mut second = commit(&after(&first.progress, 1));
    second.state = vec![write("kept", Some("3")), write("gone", None)];
    let mut refused = commit(&after(&second.progress, 1));
    refused.state = vec![write("refused", Some("4"))];
    refused.outputs = vec![cluster.outgoing("nowhere", 0, "x")];
    commits(&mut partition, first).await;
    commits(&mut partition, second).await;
    let outcome = within(partition.commit(refused)).await.unwrap();
    assert!(matches!(outcome, CommitOutcome::Refused { .. }), "{outcome:?}");
    let expected = [Some("3".to_owned()), None, None];
    assert_eq!(read(&partition).await, expected);
    drop((partition, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    let partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    assert_eq!(read(&partition).await, expected);
    assert_eq!(partition.state().keys(None, 10).await.unwrap(), ["kept"]);
    let range = StateRange { max: 10, max_bytes: 1 << 20, ..StateRange::default() };
    let listed = within(log.state(partition.unit(), range)).await.unwrap();
    assert_eq!(listed.iter().map(|entry| (&*entry.key, &entry.value[..])).collect::<Vec<_>>(), [("kept", &b"3"[..])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_older_than_the_window_are_not_restored() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let mut progress = Progress::default();
    for (hours, key) in [(3, 1), (1, 2)] {
        progress = after(&progress, 1);
        let at = began() - Duration::from_secs(3600 * hours);
        let mut next = crate::broker::Commit { at, ..commit(&progress) };
        next.keys = vec![KeyHash(key)];
        commits(&mut partition, next).await;
    }
    drop((partition, receiver));
    let recent =
        Subscription { keys_since: began() - Duration::from_secs(2 * 3600), ..cluster.subscription(&["orders"]) };
    let mut receiver = within(log.subscribe(recent)).await.unwrap();
    let restored = assigned(&mut receiver, 2).await.swap_remove(0).restored;
    assert_eq!(restored.keys.iter().map(|block| block.keys.clone()).collect::<Vec<_>>(), [vec![KeyHash(2)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_the_broker_refuses_leaves_nothing() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let progress = after(&Progress::default(), 1);
    for (name, value) in [("nowhere", "a".to_owned()), ("orders", "x".repeat(1 << 20)), ("orders", "x".repeat(3 << 20))]
    {
        let mut refused = commit(&progress);
        refused.outputs = vec![cluster.outgoing("orders", 1, "good"), cluster.outgoing(name, 1, &value)];
        let outcome = within(partition.commit(refused)).await.unwrap();
        assert!(matches!(outcome, CommitOutcome::Refused { .. }), "{name}: {outcome:?}");
    }
    assert_eq!(cluster.all(&log, "orders", 1).await, [""; 0]);
    commits(&mut partition, commit(&progress)).await;
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
