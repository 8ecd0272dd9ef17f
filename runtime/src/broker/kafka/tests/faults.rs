//! What goes wrong in a cluster, beside what kills: each is recovered from, or told with a reason, and nothing is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use millrace_core::name::Unit;
use millrace_core::outcome::Category;
use millrace_core::progress::{KeyHash, ParkedHead, Position, Progress, Stream};
use rdkafka::admin::{AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, Producer};
use tokio::sync::mpsc;

use super::super::clients::{Deliveries, REQUEST_TIMEOUT, at, signed};
use super::super::recent::Recent;
use super::super::record::Placed;
use super::super::writer::{Ended, Writer};
use super::super::{KafkaLog, KafkaPartition, metadata};
use super::support::*;
use crate::broker::{
    Assignment, Broker, Catalog, Commit, CommitOutcome, FetchError, Force, LetterAction, Log, Partition, PublishError,
    StateReader as _, StateWrite, Subscription, Wanted,
};

/// Waits as long as this for something that must not come.
const SILENCE: Duration = Duration::from_secs(2);
/// Far longer than anything takes that nothing holds up, and less than an answer of the broker may take.
const PROMPT: Duration = Duration::from_secs(4);

impl Cluster {
    /// Changes of topics are noticed at once.
    async fn open_attentive(&self) -> KafkaLog {
        self.open_with(&[("topic.metadata.refresh.interval.ms", "500")]).await
    }

    async fn make_topic(&self, log: &KafkaLog, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let name = self.topic(name);
        let mut topic = NewTopic::new(name.as_str(), partitions, TopicReplication::Fixed(1));
        for (setting, value) in settings {
            topic = topic.set(setting, value);
        }
        let made = log.admin().create_topics([&topic], &admin_options()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
        let log = log.clone();
        tokio::task::spawn_blocking(move || log.wait_for_topics(&[name]).unwrap()).await.unwrap();
    }

    async fn delete_topic(&self, log: &KafkaLog, name: &str) {
        delete(log, &self.topic(name)).await;
    }

    async fn raise_partitions(&self, log: &KafkaLog, name: &str, count: usize) {
        let name = self.topic(name);
        let raised = log.admin().create_partitions([&NewPartitions::new(name.as_str(), count)], &admin_options()).await;
        raised.unwrap().into_iter().for_each(|raised| drop(raised.unwrap()));
    }

    /// Removes the records of partition 0 before an offset, as retention does.
    async fn remove_before(&self, log: &KafkaLog, name: &str, offset: u64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(self.topic(name).as_str(), 0, at(offset)).unwrap();
        log.admin().delete_records(&list, &admin_options()).await.unwrap();
    }
}

/// A commit of a partition as another instance leaves it that is killed in the middle: nothing but its end is missing. The
/// broker ends it after `timeout`.
fn begin_commit(
    cluster: &Cluster,
    log: &KafkaLog,
    partition: u32,
    (progress, has_position): (&Progress, bool),
    timeout: Duration,
) -> BaseProducer<Deliveries> {
    let (clients, orders) = (log.clients(), cluster.topic("orders"));
    let unit = Unit { function: function(), topic: orders.clone(), partition };
    let producer = cluster.leave_open(log, ("orders", partition), timeout);
    if has_position {
        let mut offsets = rdkafka::TopicPartitionList::new();
        let mut element = offsets.add_partition(orders.as_str(), signed(partition));
        element.set_offset(at(progress.source.resume)).unwrap();
        element.set_metadata(metadata::encode(&unit, progress, &Recent::default()).text);
        let member = clients.outsider(&clients.names.group(&function())).unwrap().group_metadata().unwrap();
        producer.send_offsets_to_transaction(&offsets, &member, REQUEST_TIMEOUT).unwrap();
    }
    producer
}

/// How a transaction that holds others back ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Committed,
    Aborted,
}

/// What a unit remembers is complete however long the end of an earlier commit is held back.
async fn check_held_back(has_position: bool, end: End) {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let progress = after(&Progress::default(), 1);
    let mut first = commit(&progress);
    first.keys = vec![KeyHash(1)];
    commits(&mut partition, first).await;
    drop((partition, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let next = after(&progress, 1);
    let (opened, opening, held) = (log.clone(), cluster.clone(), next.clone());
    let open = move || begin_commit(&opening, &opened, 0, (&held, has_position), Duration::from_secs(60));
    let producer = tokio::task::spawn_blocking(open).await.unwrap();
    let taking = async {
        let mut receiver = cluster.subscribe(&log).await;
        let restored = assigned(&mut receiver, 2).await.swap_remove(0).restored;
        (restored, receiver)
    };
    let mut taking = std::pin::pin!(taking);
    let early = tokio::time::timeout(SILENCE, &mut taking).await;
    assert!(early.is_err(), "partition 0 was handed over while its newest commit was open");
    let ended = tokio::task::spawn_blocking(move || match end {
        End::Committed => producer.commit_transaction(REQUEST_TIMEOUT),
        End::Aborted => producer.abort_transaction(REQUEST_TIMEOUT),
    });
    ended.await.unwrap().unwrap();
    let (restored, _receiver) = taking.await;
    let expected = if has_position && end == End::Committed { next } else { progress };
    assert_eq!(restored.progress, expected, "{end:?}");
    let known = [1, 2].map(|key| restored.keys.contains(KeyHash(key), began()));
    assert_eq!(known, [true, end == End::Committed], "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_waits_for_keys_whose_commit_is_held_back() {
    check_held_back(false, End::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_waits_for_a_position_whose_commit_is_held_back() {
    check_held_back(true, End::Committed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_held_back_commit_would_have_been_is_not_there_once_it_is_aborted() {
    check_held_back(true, End::Aborted).await;
}

/// A killed instance's transaction ends when the broker has waited long enough, which takes longer than one answer may.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_ends_is_waited_out() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    drop(assigned(&mut receiver, 2).await);
    drop(receiver);
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let (opened, opening) = (cluster.open().await, cluster.clone());
    let left = after(&Progress::default(), 1);
    let leave = move || begin_commit(&opening, &opened, 0, (&left, true), Duration::from_secs(11));
    let producer = tokio::task::spawn_blocking(leave).await.unwrap();
    let mut receiver = cluster.subscribe(&log).await;
    let units = assigned(&mut receiver, 2).await;
    assert!(units.iter().all(|unit| unit.restored.progress == Progress::default() && unit.restored.keys.is_empty()));
    drop(producer);
}

/// An instance that owned the other partition, and takes over one whose last commit has no end.
struct HeldBack {
    log: KafkaLog,
    receiver: mpsc::Receiver<Assignment<KafkaPartition>>,
    kept: KafkaPartition,
    /// The number of the one that is taken over.
    number: u32,
    producer: BaseProducer<Deliveries>,
}

impl HeldBack {
    /// None with the other group protocol: there the broker takes no position for a group with members from anybody else, so that
    /// the instance that was killed cannot be imitated.
    async fn begin(cluster: &Cluster) -> Option<Self> {
        if protocol().is_some_and(|protocol| protocol == "consumer") {
            return None;
        }
        let log = cluster.orders().await;
        let mut receiver = cluster.subscribe(&log).await;
        let mut units = assigned(&mut receiver, 2).await;
        let other = cluster.open().await;
        let mut theirs = cluster.subscribe(&other).await;
        let taken = assigned(&mut theirs, 1).await.swap_remove(0);
        let number = taken.partition.unit().partition;
        units.retain(|unit| unit.partition.unit().partition != number);
        let (opened, opening) = (log.clone(), cluster.clone());
        let left = after(&Progress::default(), 1);
        let leave = move || begin_commit(&opening, &opened, number, (&left, true), Duration::from_secs(60));
        let producer = tokio::task::spawn_blocking(leave).await.unwrap();
        drop((taken, theirs));
        other.close(Duration::from_secs(10)).await;
        Some(Self { log, receiver, kept: units.remove(0).partition, number, producer })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_held_back_holds_up_neither_other_units_nor_figures() {
    let Some(cluster) = Cluster::find() else { return };
    let Some(held_back) = HeldBack::begin(&cluster).await else { return };
    let HeldBack { log, mut receiver, mut kept, number, producer } = held_back;
    let (began, name, mut progress) = (Instant::now(), function(), Progress::default());
    // Within this time the partition is assigned, and its position is asked for.
    while log.group(&function()).assigned < 3 || began.elapsed() < 3 * SILENCE {
        progress = after(&progress, 0);
        let committing = commits_in_the_end(&mut kept, commit(&progress));
        tokio::time::timeout(PROMPT, committing).await.expect("other units are committed meanwhile");
        let told = tokio::time::timeout(PROMPT, log.units(&name)).await;
        let units = told.expect("figures are told meanwhile").unwrap();
        assert_eq!(units[number as usize].progress, Progress::default());
    }
    assert!(receiver.try_recv().is_err(), "it was handed over while its newest commit was open");
    tokio::task::spawn_blocking(move || producer.abort_transaction(REQUEST_TIMEOUT).unwrap()).await.unwrap();
    let taken = assigned(&mut receiver, 1).await.swap_remove(0);
    assert_eq!((taken.partition.unit().partition, taken.restored.progress), (number, Progress::default()));
    commits_in_the_end(&mut kept, commit(&after(&progress, 0))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_leaves_at_once_while_a_position_is_held_back() {
    let Some(cluster) = Cluster::find() else { return };
    let Some(held_back) = HeldBack::begin(&cluster).await else { return };
    let HeldBack { log, receiver, mut kept, number, producer } = held_back;
    while log.group(&function()).assigned < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    commits_in_the_end(&mut kept, commit(&after(&Progress::default(), 0))).await;
    let began = Instant::now();
    drop((kept, receiver));
    log.close(Duration::from_secs(10)).await;
    assert!(began.elapsed() < PROMPT, "it took {:?}", began.elapsed());
    tokio::task::spawn_blocking(move || producer.commit_transaction(REQUEST_TIMEOUT).unwrap()).await.unwrap();
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    let progress = assigned(&mut receiver, 2).await.swap_remove(number as usize).restored.progress;
    assert_eq!(progress, after(&Progress::default(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_out_of_retention_is_told_and_the_rest_can_be_read() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    for value in ["a", "b", "c", "d", "e"] {
        cluster.publish(&log, "orders", 0, &[value]).await;
    }
    let mut receiver = cluster.subscribe(&log).await;
    drop(assigned(&mut receiver, 2).await);
    drop(receiver);
    // Each record is followed by the mark of its transaction.
    cluster.remove_before(&log, "orders", 4).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    for _ in 0..2 {
        let gone = within(partition.fetch(wanted(0))).await.unwrap_err();
        let is_told = matches!(gone, FetchError::Gone { stream: Stream::Source, wanted: 0, earliest: 4 });
        assert!(is_told, "{gone}");
    }
    assert_eq!(fetch(&mut partition, 4, 3).await, ["c", "d", "e"]);
    // While it runs, too: nothing that was removed is waited for.
    cluster.publish(&log, "orders", 0, &["f"]).await;
    cluster.remove_before(&log, "orders", 10).await;
    let gone = within(partition.fetch(wanted(0))).await.unwrap_err();
    assert!(matches!(gone, FetchError::Gone { earliest: 10, .. }), "{gone}");
    assert_eq!(fetch(&mut partition, 10, 1).await, ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_its_topic_stops_nothing_but_itself() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.make_topic(&log, "small", 1, &[("max.message.bytes", "2000")]).await;
    cluster.publish(&log, "orders", 0, &["a"]).await;
    cluster.publish(&log, "orders", 1, &["a"]).await;
    let large = "x".repeat(5000);
    let batch = vec![cluster.outgoing("small", 0, "a"), cluster.outgoing("small", 0, &large)];
    let error = within(log.publish(batch)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { index: 1, max_bytes: 2000, .. }), "{error:?}");
    // Many small ones are together more than the topic takes of one.
    let many: Vec<String> = (0..50).map(|n| format!("{n:0>500}")).collect();
    cluster.publish(&log, "small", 0, &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let progress = after(&Progress::default(), 1);
    let mut refused = commit(&progress);
    refused.outputs = vec![cluster.outgoing("small", 0, "b"), cluster.outgoing("small", 0, &large)];
    let mut good = commit(&progress);
    good.outputs = many.iter().map(|value| cluster.outgoing("small", 0, value)).collect();
    let (first, second) = units.split_at_mut(1);
    let (refused, good) = tokio::join!(first[0].partition.commit(refused), second[0].partition.commit(good));
    assert!(matches!(&refused, Ok(CommitOutcome::Refused { reason }) if reason.contains("small")), "{refused:?}");
    assert_eq!(good.unwrap(), CommitOutcome::Committed);
    commits(&mut first[0].partition, commit(&progress)).await;
    assert_eq!(cluster.all(&log, "small", 0).await, [many.clone(), many].concat());
}

/// Somebody has made the dead letters' topic take less than it was made to take.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_too_large_for_its_topic_is_refused_until_the_topic_takes_it() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let letters = log.clients().names.dead_letters(&function()).unwrap();
    let set = async |bytes: &str| {
        let altered = AlterConfig::new(ResourceSpecifier::Topic(letters.as_str())).set("max.message.bytes", bytes);
        let altered = log.admin().alter_configs([&altered], &admin_options()).await.unwrap();
        altered.into_iter().for_each(|altered| drop(altered.unwrap()));
    };
    set("2000").await;
    let progress = after(&Progress::default(), 1);
    let mut large = commit(&progress);
    large.letters = vec![cluster.letter(0, &"x".repeat(5000))];
    let (first, second) = units.split_at_mut(1);
    let good = second[0].partition.commit(commit(&progress));
    let (refused, good) = tokio::join!(first[0].partition.commit(large.clone()), good);
    let is_named = |reason: &str| reason.contains(letters.as_str());
    assert!(matches!(&refused, Ok(CommitOutcome::Refused { reason }) if is_named(reason)), "{refused:?}");
    assert_eq!(good.unwrap(), CommitOutcome::Committed);
    assert_eq!(within(log.open_letters(&function())).await.unwrap(), 0);
    set("10000").await;
    commits(&mut first[0].partition, large).await;
    assert_eq!(within(log.open_letters(&function())).await.unwrap(), 1);
}

/// Whoever publishes to a source by way of Kafka itself can publish what is larger than the runtime's own events.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_can_be_as_large_as_its_source_allows() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open().await;
    cluster.make_topic(&log, "orders", 1, &[]).await;
    drop(cluster.subscribe(&log).await);
    // The source takes more only after the topics of its dead letters were made.
    let orders = cluster.topic("orders");
    let altered = AlterConfig::new(ResourceSpecifier::Topic(orders.as_str())).set("max.message.bytes", "3000000");
    log.admin().alter_configs([&altered], &admin_options()).await.unwrap().remove(0).unwrap();
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 1).await.swap_remove(0).partition;
    let progress = after(&Progress::default(), 1);
    let large = "x".repeat(2_900_000);
    let letter = cluster.letter(0, &large);
    let id = letter.id.clone();
    commits(&mut partition, Commit { letters: vec![letter], ..commit(&progress) }).await;
    within(log.act_on_letters(&function(), &[id], LetterAction::Redrive, Force::No)).await.unwrap();
    let wanted = Wanted { source: None, redrive: Some(0), max_records: 1, max_bytes: 1 << 20 };
    let fetched = within(partition.fetch(wanted)).await.unwrap();
    assert_eq!(texts(&fetched), [large]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_deleted_is_named_and_others_go_on() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open_attentive().await;
    for name in ["orders", "gone"] {
        cluster.make_topic(&log, name, 1, &[]).await;
    }
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 1).await.swap_remove(0).partition;
    let progress = after(&Progress::default(), 1);
    let mut first = commit(&progress);
    first.outputs = vec![cluster.outgoing("gone", 0, "a")];
    commits(&mut partition, first).await;
    cluster.delete_topic(&log, "gone").await;
    let next = after(&progress, 1);
    let mut second = commit(&next);
    second.outputs = vec![cluster.outgoing("gone", 0, "b"), cluster.outgoing("orders", 0, "c")];
    let mut outcome = within(partition.commit(second.clone())).await;
    // First the broker is waited for, since it could be that it does not know of the topic yet.
    if let Err(error) = &outcome {
        assert!(error.is_transient(), "{error}");
        outcome = within(partition.commit(second)).await;
    }
    let is_named = |reason: &str| reason.contains(cluster.topic("gone").as_str());
    assert!(matches!(&outcome, Ok(CommitOutcome::Refused { reason }) if is_named(reason)), "{outcome:?}");
    let error = within(log.publish(vec![cluster.outgoing("gone", 0, "b")])).await.unwrap_err();
    assert!(matches!(error, PublishError::UnknownTopic { .. }), "{error}");
    commits(&mut partition, commit(&next)).await;
    assert_eq!(cluster.all(&log, "orders", 0).await, ["a", "b"]);
}

/// Two processes with one `kafka.instance` do this to each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_identity_somebody_else_takes_knows_it() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let placed = Placed { topic: cluster.topic("orders"), partition: 0, record: record("a") };
    let taking = move || {
        let id = log.clients().names.transactional_id(&function());
        let [mut first, mut second] = [0, 1].map(|_| Writer::new(Arc::clone(log.clients()), id.clone()));
        first.renew().unwrap();
        assert!(matches!(first.write(&[&placed], None), Ended::Committed(_)) && !first.has_twin());
        second.renew().unwrap();
        let ended = first.write(&[&placed], None);
        assert!(matches!(&ended, Ended::Aborted(_)) && first.has_twin(), "{ended:?}");
        first.renew().unwrap();
        assert!(matches!(first.write(&[&placed], None), Ended::Committed(_)) && !first.has_twin());
    };
    tokio::task::spawn_blocking(taking).await.unwrap();
}

/// Its record waits for the topic until its time is up, as it does for one whose brokers are away.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_nothing_holds_up_only_units_that_write_to_it() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let letters = log.clients().names.dead_letters(&function()).unwrap();
    delete(&log, &letters).await;
    let (first, second) = units.split_at_mut(1);
    let (stuck, good) = (&mut first[0].partition, &mut second[0].partition);
    let progress = after(&Progress::default(), 0);
    // What comes right after it is one transaction.
    commits(good, commit(&progress)).await;
    let writes_to_it = Commit { letters: vec![cluster.letter(0, "a")], ..commit(&progress) };
    let next = commit(&after(&progress, 0));
    let mut tries = 1;
    loop {
        let both = async { tokio::join!(stuck.commit(writes_to_it.clone()), good.commit(next.clone())) };
        let (failed, outcome) = within(both).await;
        assert!(matches!(&failed, Err(error) if error.is_transient()), "{failed:?}");
        match outcome {
            Ok(outcome) => break assert_eq!(outcome, CommitOutcome::Committed),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        // At first they are tried together, and then either can be the one that is tried before the other.
        assert!(tries < 3, "the one holds up the other");
        tries += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_deleted_is_left_and_read_again_once_it_is_back() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open_attentive().await;
    for name in ["orders", "returns"] {
        cluster.make_topic(&log, name, 1, &[]).await;
        cluster.publish(&log, name, 0, &["a"]).await;
    }
    let mut receiver = within(log.subscribe(cluster.subscription(&["orders", "returns"]))).await.unwrap();
    let mut units: Vec<_> = assigned(&mut receiver, 2).await;
    units.sort_by_key(|unit| unit.partition.unit().topic.clone());
    let mut returns = units.pop().unwrap();
    let mut orders = units.pop().unwrap();
    let progress = after(&Progress::default(), 1);
    commits(&mut returns.partition, Commit { keys: vec![KeyHash(7)], ..commit(&progress) }).await;
    cluster.delete_topic(&log, "returns").await;
    within(returns.revoked.wait_for(|revoked| *revoked)).await.unwrap();
    commits_in_the_end(&mut orders.partition, commit(&progress)).await;
    cluster.make_topic(&log, "returns", 1, &[]).await;
    cluster.publish(&log, "returns", 0, &["b"]).await;
    let mut returns = next_of(&mut receiver, "returns", &cluster).await;
    assert_eq!(returns.restored.progress, Progress::default());
    assert_eq!(fetch(&mut returns.partition, 0, 1).await, ["b"]);
    assert!(!*orders.revoked.borrow());
    commits_in_the_end(&mut orders.partition, commit(&after(&progress, 1))).await;
    // An event of the new topic can have the id of one of the old, now and whenever it is restored.
    assert!(returns.restored.keys.is_empty());
    commits_in_the_end(&mut returns.partition, Commit { keys: vec![KeyHash(8)], ..commit(&progress) }).await;
    drop((orders, returns, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = within(log.subscribe(cluster.subscription(&["orders", "returns"]))).await.unwrap();
    let keys = next_of(&mut receiver, "returns", &cluster).await.restored.keys;
    assert_eq!([7, 8].map(|key| keys.contains(KeyHash(key), began())), [false, true]);
}

/// It is deleted and made anew so soon that its function has not noticed when it ends.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_of_a_source_that_was_deleted_does_not_come_back() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut units = assigned(&mut receiver, 2).await;
    let progress = after(&Progress::default(), 1);
    for unit in &mut units {
        commits(&mut unit.partition, Commit { keys: vec![KeyHash(7)], ..commit(&progress) }).await;
    }
    cluster.delete_topic(&log, "orders").await;
    cluster.make_topic(&log, "orders", 2, &[]).await;
    drop((units, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    let restored = assigned(&mut receiver, 2).await.swap_remove(0).restored;
    assert_eq!((restored.progress, restored.keys.len()), (Progress::default(), 0));
}

/// A change of the group aborts what is under way, and that is done again.
async fn commits_in_the_end(partition: &mut KafkaPartition, commit: Commit) {
    while within(partition.commit(commit.clone())).await.unwrap() != CommitOutcome::Committed {}
}

/// The next assignment of a topic.
async fn next_of(
    receiver: &mut mpsc::Receiver<Assignment<KafkaPartition>>,
    topic: &str,
    cluster: &Cluster,
) -> Assignment<KafkaPartition> {
    loop {
        let next = within(receiver.recv()).await.expect("the function is assigned its partitions");
        if next.partition.unit().topic == cluster.topic(topic) {
            return next;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_read_from_their_beginning() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open_attentive().await;
    cluster.make_topic(&log, "orders", 1, &[]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let first = assigned(&mut receiver, 1).await.swap_remove(0);
    let progress = after(&Progress::default(), 0);
    let mut units = BTreeMap::from([(0, first.partition)]);
    commits(units.get_mut(&0).unwrap(), commit(&progress)).await;
    cluster.raise_partitions(&log, "orders", 3).await;
    // Of a unit that is assigned once more, only the newest assignment counts.
    while units.len() < 3 {
        let next = assigned(&mut receiver, 1).await.swap_remove(0).partition;
        units.insert(next.unit().partition, next);
    }
    cluster.publish(&log, "orders", 2, &["a"]).await;
    let added = units.get_mut(&2).unwrap();
    let fetched = loop {
        match within(added.fetch(wanted(0))).await {
            Ok(fetched) => break fetched,
            // The client hears of a new partition later than its group does.
            Err(FetchError::Broker(error)) if error.is_transient() => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(texts(&fetched), ["a"]);
    let mut next = commit(&after(&Progress::default(), 1));
    next.keys = vec![KeyHash(7)];
    commits_in_the_end(added, next.clone()).await;
    commits_in_the_end(units.get_mut(&0).unwrap(), commit(&after(&progress, 0))).await;
    drop((units, receiver));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    let restored = assigned(&mut receiver, 3).await.pop().unwrap().restored;
    assert_eq!((restored.progress, restored.keys.len()), (next.progress, 1));
}

/// A key that moves to another partition would leave its state behind.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_stop_a_function_that_has_state_and_no_other() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open_attentive().await;
    cluster.make_topic(&log, "orders", 1, &[]).await;
    let counting = Subscription { function: "shop.count".parse().unwrap(), ..cluster.subscription(&["orders"]) };
    let mut receiver = cluster.subscribe(&log).await;
    let Assignment { partition: mut first, mut revoked, .. } = assigned(&mut receiver, 1).await.swap_remove(0);
    let mut written = commit(&after(&Progress::default(), 0));
    written.state = vec![StateWrite { key: "key".into(), value: Some("1".into()) }];
    commits(&mut first, written).await;
    let mut other = within(log.subscribe(counting.clone())).await.unwrap();
    let mut counted = assigned(&mut other, 1).await.swap_remove(0).partition;
    cluster.raise_partitions(&log, "orders", 2).await;
    let reason = stopped(&log).await;
    assert!(reason.contains("state") && reason.contains(cluster.topic("orders").as_str()), "{reason}");
    within(revoked.wait_for(|revoked| *revoked)).await.unwrap();
    assert!(within(receiver.recv()).await.is_none());
    // The log and other functions go on.
    assert!(log.run().now_or_never().is_none() && log.stopped(&counting.function).is_none());
    let added = assigned(&mut other, 1).await.swap_remove(0).partition;
    assert_eq!(added.unit().partition, 1);
    commits_in_the_end(&mut counted, commit(&after(&Progress::default(), 0))).await;
    drop((first, receiver, counted, added, other));
    log.close(Duration::from_secs(10)).await;
    let log = cluster.open().await;
    let mut receiver = cluster.subscribe(&log).await;
    assert_eq!(stopped(&log).await, reason);
    assert!(within(receiver.recv()).await.is_none());
    drop(assigned(&mut within(log.subscribe(counting)).await.unwrap(), 2).await);
    assert_eq!(within(log.units(&function())).await.unwrap().len(), 1);
}

/// Why the function has stopped, once it has.
async fn stopped(log: &KafkaLog) -> String {
    within(async {
        loop {
            match log.stopped(&function()) {
                Some(reason) => break reason,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

/// Progress with keys that wait for their next attempt at every second offset.
fn with_heads(before: &Progress, heads: u64) -> Progress {
    let mut progress = after(before, 0);
    let offsets = (0..heads).map(|n| progress.source.resume + 2 * n);
    progress.parked = offsets
        .map(|offset| ParkedHead {
            position: Position { stream: Stream::Source, offset },
            attempts: 3,
            first_failed_at: began() + Duration::from_millis(offset * 7919),
            due_at: began() + Duration::from_millis(offset * 7919) + Duration::from_secs(3600),
            category: Category::Transient,
        })
        .collect();
    progress
}

/// Waits until so many keys are told to be parked: what a commit changed is told soon after it.
async fn parks(log: &KafkaLog, count: usize) {
    within(async {
        while log.units(&function()).await.unwrap().remove(0).progress.parked.len() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_that_a_position_has_no_room_for_is_restored() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let few = with_heads(&Progress::default(), 3);
    commits(&mut partition, commit(&few)).await;
    let many = with_heads(&few, 5000);
    let mut changed = commit(&many);
    changed.state = (0..50).map(|n| StateWrite { key: format!("k{n}").into(), value: Some("v".into()) }).collect();
    commits(&mut partition, changed).await;
    parks(&log, 5000).await;
    assert_eq!(fetch(&mut partition, 0, 2).await, ["a", "b"]);
    drop((partition, receiver));
    log.close(Duration::from_secs(10)).await;

    let log = cluster.open().await;
    // Nobody runs it.
    parks(&log, 5000).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut restored = assigned(&mut receiver, 2).await.swap_remove(0);
    assert!(restored.restored.progress == many, "all of it");
    assert_eq!(restored.partition.state().keys(None, 100).await.unwrap().len(), 50, "the state's keys, and no other");
    // What is no longer needed is there still, and not looked at.
    let few = with_heads(&many, 2);
    commits(&mut restored.partition, commit(&few)).await;
    parks(&log, 2).await;
}
