use std::sync::Arc;
use std::time::Duration;

use millrace_core::name::Topic;
use millrace_core::record::Record;
use millrace_core::revision::{Action, Change, History, Place};
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::consumer::{CommitMode, Consumer};

use super::super::clients::REQUEST_TIMEOUT;
use super::super::member::committed;
use super::super::{KafkaLog, Plan, PlannedFunction, Verdict};
use super::support::*;
use crate::broker::{Broker, Catalog, Commit, Log, Outgoing, Placing, PublishError, Retention, Subscription, Told};

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
    // What was said of the positions before does not hold for them any more.
    let (said, told) = told(&cluster);
    let subscription = || Subscription { told: told.clone(), ..cluster.subscription(&["orders"]) };
    let mut receiver = within(log.subscribe(subscription())).await.unwrap();
    let mut units = assigned(&mut receiver, 2).await;
    let progress = &units[0].restored.progress;
    assert_eq!((&progress.source, progress.commits, progress.reset.number), (&found.source, 0, said));
    assert_eq!(fetch(&mut units[0].partition, 2, 1).await, ["c"]);
    // What the function commits is its own again, and obeys what is said next.
    let mut next = after(&units[0].restored.progress, 1);
    next.reset.forgot_in = 1;
    commits(&mut units[0].partition, Commit::new(log.clock().now(), next.clone())).await;
    drop((units, receiver));
    let second = cluster.open().await;
    let mut taking = within(second.subscribe(subscription())).await.unwrap();
    let units = assigned(&mut taking, 2).await;
    assert_eq!(units[0].restored.progress, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_a_function_began_is_not_said_to_it() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let (said, told) = told(&cluster);
    let mut receiver = within(log.subscribe(Subscription { told, ..cluster.subscription(&["orders"]) })).await.unwrap();
    let units = assigned(&mut receiver, 2).await;
    let numbers: Vec<u64> = units.iter().map(|unit| unit.restored.progress.reset.number).collect();
    assert_eq!(numbers, [said, said]);
}

/// Both partitions were told to go on from offset 1; with the number of that deployment.
fn told(cluster: &Cluster) -> (u64, Told) {
    let place = |partition: u32| Place { topic: cluster.topic("orders"), partition, offset: 1, oldest: false };
    let action = Action::Reset { positions: vec![place(0), place(1)], forget: true };
    let mut history = History::default();
    history.apply(7, &Change::new(action, began(), "").encode());
    (7, Told(tokio::sync::watch::channel(Arc::new(history.resets().clone())).1))
}

/// A setting of a topic.
async fn setting(log: &KafkaLog, topic: &Topic, name: &str) -> String {
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let found = log.admin().describe_configs([&ResourceSpecifier::Topic(topic.as_str())], &options).await.unwrap();
    found.into_iter().next().unwrap().unwrap().get(name).unwrap().value.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_the_runtimes_own_is_made_once_it_is_needed_with_its_retention() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let Some(cluster) = Cluster::find() else { return };
    let (log, other) = (cluster.open().await, cluster.open().await);
    let topic = log.audit_topic().unwrap();
    let record = || vec![Outgoing { topic: topic.clone(), placing: Placing::Partition(0), record: Record::default() }];
    let missing = within(log.publish(record())).await.unwrap_err();
    assert!(matches!(missing, PublishError::UnknownTopic { .. }), "{missing}");
    let retention = Retention { max_age: Some(DAY), max_bytes: Some(1 << 20) };
    let (a, b) =
        tokio::join!(log.make_internal(topic.clone(), retention), other.make_internal(topic.clone(), retention));
    a.and(b).unwrap();
    for (name, expected) in [("retention.ms", "86400000"), ("retention.bytes", "1048576"), ("cleanup.policy", "delete")]
    {
        assert_eq!(setting(&log, &topic, name).await, expected);
    }
    for log in [&log, &other] {
        within(log.publish(record())).await.unwrap();
    }
    let topics = within(log.topics()).await.unwrap();
    let own = topics.iter().find(|info| info.name == topic.as_str()).unwrap();
    assert!(own.internal && own.partitions.len() == 1 && own.partitions[0].next >= 2, "{own:?}");
}

/// A function wants its keys for a day, then for a week, then for a day again.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_kept_for_as_long_as_was_ever_asked() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let keys = log.clients().names.keys(&function(), &cluster.topic("orders")).unwrap();
    let kept = async || Duration::from_millis(setting(&log, &keys, "retention.ms").await.parse().unwrap());
    let subscribe = async |window| {
        let mut subscription = cluster.subscription(&["orders"]);
        subscription.window.span = window;
        drop(within(log.subscribe(subscription)).await.unwrap());
    };
    subscribe(DAY).await;
    let first = kept().await;
    assert!(first >= DAY && first < 2 * DAY, "{first:?}");
    // An operator's own, which nobody may reset.
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let millis = first.as_millis().to_string();
    let altered = AlterConfig::new(ResourceSpecifier::Topic(keys.as_str()));
    let altered = altered.set("retention.ms", &millis).set("segment.bytes", "10000000").set("segment.ms", "1234567");
    log.admin().alter_configs([&altered], &options).await.unwrap().remove(0).unwrap();
    let function = PlannedFunction {
        name: function(),
        sources: vec![cluster.topic("orders")],
        emits: Vec::new(),
        window: 7 * DAY,
    };
    let plan = Plan { topics: [(cluster.topic("orders"), (2, true))].into(), functions: vec![function] };
    let found = log.audit(&plan).await.unwrap();
    let of_keys = found.iter().find(|finding| finding.subject == format!("topic {keys}")).unwrap();
    assert!(of_keys.verdict == Verdict::Good && of_keys.detail.contains("retention.ms="), "{of_keys:?}");
    assert_eq!(kept().await, first, "a check changes nothing");
    for window in [7 * DAY, DAY] {
        subscribe(window).await;
        assert!(kept().await >= 7 * DAY);
        let others = [setting(&log, &keys, "segment.bytes").await, setting(&log, &keys, "segment.ms").await];
        assert_eq!(others, ["10000000", "1234567"]);
    }
}
