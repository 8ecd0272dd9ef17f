//! What runs, as several instances see it: deployments, components, and what each instance says of itself.

use std::time::Duration;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::name::Topic;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use rdkafka::admin::{AlterConfig, ResourceSpecifier};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::super::clients::{Deliveries, REQUEST_TIMEOUT, at};
use super::super::member::commit::plain;
use super::super::record::Placed;
use super::super::topics::Needed;
use super::super::{KafkaLog, native};
use super::support::*;
use crate::broker::{Catalog, DeployError, Deployed, Deployments, Entry, EntryError, EntryName, Error};

/// Short for what must not come, and longer than it takes if it does.
const A_WHILE: Duration = Duration::from_millis(1500);

fn content(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn deploy(log: &KafkaLog, previous: u64, text: &str) -> Result<u64, DeployError> {
    within(log.append_deployment(function(), previous, content(text))).await
}

async fn deployed(log: &KafkaLog, seen: Option<u64>) -> Deployed {
    within(log.deployments(seen)).await.unwrap()
}

fn contents(deployed: &Deployed) -> Vec<(u64, &[u8])> {
    deployed.deployments.iter().map(|one| (one.number, &one.content[..])).collect()
}

/// Bytes of a component that has so many, no two chunks of which are the same.
fn component(bytes: usize) -> Bytes {
    (0..bytes).map(|n| (n ^ n >> 8 ^ n >> 16).to_le_bytes()[0]).collect::<Vec<_>>().into()
}

async fn put(log: &KafkaLog, content: &Bytes) -> Digest {
    let digest = Digest::of(content);
    within(log.put_component(digest, content.clone())).await.unwrap();
    digest
}

async fn get(log: &KafkaLog, digest: Digest) -> Result<Option<Bytes>, Error> {
    within(log.component(digest)).await
}

/// Whether a component can be read that has this content.
async fn reads(log: &KafkaLog, content: &Bytes) -> bool {
    get(log, Digest::of(content)).await.unwrap().is_some_and(|found| found == content)
}

/// Why a component cannot be read.
async fn unreadable(log: &KafkaLog, digest: Digest) -> String {
    get(log, digest).await.map(|found| found.map(|found| found.len())).unwrap_err().to_string()
}

/// Whether a component is there, in whichever way that is asked.
async fn is_there(log: &KafkaLog, digest: Digest) -> bool {
    let has = within(log.has_component(digest)).await.unwrap();
    assert_eq!(within(log.components()).await.unwrap().contains(&digest), has);
    has
}

/// Records of a topic of the runtime's, with their offsets.
async fn records(log: &KafkaLog, topic: &Topic) -> Vec<(u64, Record)> {
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let page = within(log.read(topic, 0, next, 1000)).await.unwrap();
        if page.records.is_empty() {
            return found;
        }
        next = page.next;
        found.extend(page.records);
    }
}

async fn set(log: &KafkaLog, topic: &Topic, settings: &[(&str, &str)]) {
    let altered = AlterConfig::new(ResourceSpecifier::Topic(topic.as_str()));
    let altered = settings.iter().fold(altered, |altered, (name, value)| altered.set(name, value));
    let altered = log.admin().alter_configs([&altered], &admin_options()).await.unwrap();
    altered.into_iter().for_each(|altered| drop(altered.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_deployments_wakes_when_another_instance_deploys() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let none = deployed(&second, None).await;
    assert_eq!(contents(&none), []);
    let waiting = second.clone();
    let following = tokio::spawn(async move { deployed(&waiting, Some(none.seen)).await });
    assert_eq!(deploy(&first, 0, "one").await.unwrap(), 1);
    let one = within(following).await.unwrap();
    assert_eq!(contents(&one), [(1, &b"one"[..])]);
    // A component is none of them, and whoever gives up waiting does no harm.
    put(&first, &component(1)).await;
    let early = tokio::time::timeout(A_WHILE, second.deployments(Some(one.seen))).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(deploy(&second, 1, "two").await.unwrap(), 2);
    for log in [&first, &second] {
        assert_eq!(contents(&deployed(log, None).await), [(1, &b"one"[..]), (2, b"two")]);
    }
    let two = deployed(&second, Some(one.seen)).await;
    assert_eq!(contents(&two).len(), 2);
    // Another instance that begins reads the same.
    let third = cluster.open().await;
    assert_eq!(deployed(&third, None).await.deployments, two.deployments);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_wakes_within_a_second_when_an_entry_changes_elsewhere() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let name: EntryName = "token.07".parse().unwrap();
    let mut seen = deployed(&second, None).await.seen;
    // The first one makes the topic, which takes as long as it takes.
    for (turn, text) in [Some("one"), Some("two"), None].into_iter().enumerate() {
        let waiting = second.clone();
        let following = tokio::spawn(async move { deployed(&waiting, Some(seen)).await });
        let at = deployed(&first, None).await.entries_at;
        within(first.put_entry(name.clone(), text.map(content), at)).await.unwrap();
        let written = std::time::Instant::now();
        let expected: Vec<_> =
            text.map(|text| Entry { name: name.clone(), content: content(text) }).into_iter().collect();
        // Whoever wrote it sees it at once.
        assert_eq!(deployed(&first, None).await.entries, expected);
        let told = within(following).await.unwrap();
        assert_eq!((&told.entries, told.deployments.len()), (&expected, 0));
        assert!(turn == 0 || written.elapsed() < Duration::from_secs(2), "{:?}", written.elapsed());
        seen = told.seen;
    }
    let third = cluster.open().await;
    assert_eq!(deployed(&third, None).await.entries, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_deploy_on_the_same_one_wins_and_both_see_the_same() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    for previous in 0..5 {
        let (a, b) = tokio::join!(deploy(&first, previous, "a"), deploy(&second, previous, "b"));
        let won = [&a, &b].map(|decided| decided.as_ref().ok().copied());
        assert!(won == [Some(previous + 1), None] || won == [None, Some(previous + 1)], "{a:?} {b:?}");
        let lost = a.err().or(b.err()).unwrap();
        let is_told = |error: &DeployError| matches!(error, DeployError::Conflict { expected, latest, .. } if (*expected, *latest) == (previous, previous + 1));
        assert!(is_told(&lost), "{lost}");
        let winner = if won[0].is_some() { b"a" } else { b"b" };
        let (seen, again) = (deployed(&first, None).await.deployments, deployed(&second, None).await.deployments);
        assert_eq!(seen, again);
        assert_eq!((seen.len() as u64, &seen.last().unwrap().content[..]), (previous + 1, &winner[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_change_entries_at_once_one_wins_and_both_see_the_same() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    for turn in 0..5 {
        let at = deployed(&first, None).await.entries_at;
        assert_eq!(deployed(&second, None).await.entries_at, at);
        let put = |log: &KafkaLog, name: String| {
            let log = log.clone();
            async move { within(log.put_entry(name.parse().unwrap(), Some(content("x")), at)).await }
        };
        let (a, b) = tokio::join!(put(&first, format!("a.{turn}")), put(&second, format!("b.{turn}")));
        let (won, lost) = if a.is_ok() { ("a", b) } else { ("b", a) };
        assert!(matches!(lost, Err(EntryError::Conflict)), "{lost:?}");
        let (seen, again) = (deployed(&first, None).await.entries, deployed(&second, None).await.entries);
        assert_eq!(seen, again);
        assert_eq!(seen.iter().filter(|entry| entry.name.as_str().ends_with(&turn.to_string())).count(), 1);
        assert!(seen.iter().any(|entry| entry.name.as_str() == format!("{won}.{turn}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_made_anew_is_read_from_its_beginning() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    deploy(&first, 0, "old").await.unwrap();
    within(first.put_entry("token.07".parse().unwrap(), Some(content("one")), 0)).await.unwrap();
    let old = deployed(&second, None).await;
    assert_eq!((old.entries.len(), old.entries_lost), (1, false));
    let registry = first.registry_topic().unwrap();
    delete(&first, &registry).await;
    let waiting = second.clone();
    let following = tokio::spawn(async move { deployed(&waiting, Some(old.seen)).await });
    // Until it is there again nobody can say what runs, and whoever asks is told.
    within(async {
        while second.deployments(None).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let gone = second.deployments(None).await.unwrap_err().to_string();
    assert!(gone.contains(&format!("topic `{registry}` was there, and is not any more")), "{gone}");
    assert!(!following.is_finished());
    let number = within(async {
        loop {
            // Until all of the old one is removed, the broker can refuse another one.
            match first.append_deployment(function(), 0, content("new")).await {
                Ok(number) => return number,
                Err(error) => assert!(matches!(&error, DeployError::Broker(error) if error.is_transient()), "{error}"),
            }
        }
    });
    assert_eq!(number.await, 1);
    // It can have been read anew before there was anything in it.
    within(following).await.unwrap();
    let new = deployed(&second, None).await;
    assert_eq!((contents(&new), new.entries.len(), new.entries_lost), (vec![(1, &b"new"[..])], 0, true));
    // Whoever begins now cannot know.
    let third = cluster.open().await;
    assert!(!deployed(&third, None).await.entries_lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_its_oldest_records_says_that_entries_are_lost() {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.open().await;
    let name = |text: &str| text.parse::<EntryName>().unwrap();
    within(first.put_entry(name("token.1"), Some(content("one")), 0)).await.unwrap();
    let next = at(deployed(&first, None).await.entries_at);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(first.registry_topic().unwrap().as_str(), 0, next).unwrap();
    let removed = first.admin().delete_records(&list, &admin_options()).await.unwrap();
    removed.elements().iter().for_each(|element| element.error().unwrap());
    // Whoever has read them knows all that there was.
    let known = deployed(&first, None).await;
    assert_eq!((known.entries.len(), known.entries_lost, known.deployments_lost), (1, false, false));
    let second = cluster.open().await;
    let begun = deployed(&second, None).await;
    assert_eq!((begun.entries.len(), begun.entries_lost, begun.deployments_lost), (0, true, true));
    // Both agree on what is changed from then on.
    within(second.put_entry(name("token.2"), Some(content("two")), begun.entries_at)).await.unwrap();
    let names = async |log: &KafkaLog| {
        deployed(log, None).await.entries.iter().map(|entry| entry.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&first).await, names(&second).await),
        (vec!["token.1".to_owned(), "token.2".to_owned()], vec!["token.2".to_owned()])
    );
    let third = cluster.open().await;
    assert!(deployed(&third, None).await.entries_lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn components_of_every_size_are_read_by_another_instance() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    assert!(!is_there(&second, Digest::of(b"")).await);
    assert_eq!(get(&second, Digest::of(b"")).await.unwrap(), None);
    let chunk = 512 * limits::KIB;
    for bytes in [0, 1, chunk, 3 * chunk + 12_345, limits::COMPONENT_MAX_BYTES] {
        let content = component(bytes);
        let digest = put(&first, &content).await;
        assert!(is_there(&second, digest).await);
        assert!(reads(&second, &content).await, "{bytes} bytes");
    }
    let topic = first.components_topic().unwrap();
    let written =
        |log: KafkaLog, topic: Topic| tokio::task::spawn_blocking(move || log.end(topic.as_str(), 0).unwrap());
    let before = written(first.clone(), topic.clone()).await.unwrap();
    put(&second, &component(1)).await;
    assert_eq!(written(first.clone(), topic).await.unwrap(), before, "nothing is written that is there");
    let large = Bytes::from(vec![0; limits::COMPONENT_MAX_BYTES + 1]);
    let refused = within(first.put_component(Digest::of(&large), large)).await.unwrap_err();
    assert!(refused.to_string().contains("is too large"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_that_upload_the_same_leave_one_whole() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let content = component(9 * limits::MIB + 7);
    let (digest, _) = tokio::join!(put(&first, &content), put(&second, &content));
    for log in [&first, &second] {
        assert!(reads(log, &content).await);
    }
    // What remains after compaction: the newest of each key, and nothing of those that are empty.
    let topic = first.components_topic().unwrap();
    let mut newest = std::collections::BTreeMap::new();
    for (_, record) in records(&first, &topic).await {
        newest.insert(record.key.unwrap(), record.value.is_some());
    }
    let remaining = newest.values().filter(|is_chunk| **is_chunk).count();
    assert_eq!(remaining, 19, "one upload of 18 full chunks and one more is left");
    within(second.remove_component(digest)).await.unwrap();
    assert!(!is_there(&first, digest).await);
}

/// An instance under another prefix, whose topic of components has what that of another one has, changed. So few chunks are at
/// the same offsets.
async fn with_chunks_of(log: &KafkaLog, change: impl Fn(usize, &mut Record)) -> KafkaLog {
    let other = Cluster::find().unwrap().open().await;
    let topic = other.components_topic().unwrap();
    other.make_own(Needed::components(topic.clone())).await.unwrap();
    let mut chunks = Vec::new();
    for (index, (_, mut record)) in records(log, &log.components_topic().unwrap()).await.into_iter().enumerate() {
        change(index, &mut record);
        chunks.push(Placed { topic: topic.clone(), partition: 0, record });
    }
    within(other.write_own("chunks", chunks)).await.unwrap();
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_upload_is_not_there_and_a_new_one_completes_it() {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.open().await;
    let content = component(2 * limits::MIB + 1);
    let digest = put(&first, &content).await;
    // All of its chunks, but not that they are there: so an instance leaves it that is killed.
    let half = with_chunks_of(&first, |_, _| ()).await;
    assert!(!is_there(&half, digest).await);
    assert_eq!(get(&half, digest).await.unwrap(), None);
    put(&half, &content).await;
    assert!(reads(&half, &content).await);
    assert_eq!(records(&half, &half.components_topic().unwrap()).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_not_what_was_written_is_told_and_put_anew() {
    let Some(cluster) = Cluster::find() else { return };
    let first = cluster.open().await;
    let content = component(2 * limits::MIB + 1);
    let digest = put(&first, &content).await;
    let damage = |index, record: &mut Record| {
        if index == 3 {
            let mut value = record.value.clone().unwrap().to_vec();
            value[1000] ^= 1;
            record.value = Some(value.into());
        }
    };
    let damaged = with_chunks_of(&first, damage).await;
    let registry = damaged.registry_topic().unwrap();
    damaged.make_own(Needed::registry(registry.clone())).await.unwrap();
    let told = records(&first, &first.registry_topic().unwrap()).await.into_iter();
    let told = told.map(|(_, record)| Placed { topic: registry.clone(), partition: 0, record });
    within(damaged.write_own("that it is there", told.collect())).await.unwrap();
    assert!(is_there(&damaged, digest).await);
    let told = unreadable(&damaged, digest).await;
    let expected = "chunk 4 of 5: a chunk of a component is damaged (its checksum does not match); upload it again";
    assert!(told.contains(expected), "{told}");
    put(&damaged, &content).await;
    assert!(reads(&damaged, &content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_removed_is_gone_and_can_be_put_again() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let content = component(limits::MIB + 3);
    let other = put(&first, &component(5)).await;
    let digest = Digest::of(&content);
    within(first.remove_component(digest)).await.unwrap();
    for _ in 0..2 {
        put(&first, &content).await;
        assert!(is_there(&second, digest).await);
        within(second.remove_component(digest)).await.unwrap();
        for log in [&first, &second] {
            assert!(!is_there(log, digest).await && is_there(log, other).await);
            assert_eq!(get(log, digest).await.unwrap(), None);
        }
    }
    put(&second, &content).await;
    assert!(reads(&first, &content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_with_a_chunk_missing_is_told_and_put_anew() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let content = component(6 * limits::MIB);
    let digest = put(&first, &content).await;
    let topic = first.components_topic().unwrap();
    // Somebody has given the topic a retention, and the first five records are gone.
    set(&first, &topic, &[("cleanup.policy", "compact,delete")]).await;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic.as_str(), 0, at(5)).unwrap();
    within(async {
        loop {
            let removed = first.admin().delete_records(&list, &admin_options()).await.unwrap();
            let violates = Err(KafkaError::OffsetFetch(RDKafkaErrorCode::PolicyViolation));
            // The leader learns of the setting a little later.
            if removed.elements().iter().all(|element| element.error() != violates) {
                return removed.elements().iter().for_each(|element| element.error().unwrap());
            }
        }
    })
    .await;
    let expected =
        format!("component {digest} cannot be read from topic `{topic}`: chunk 1 of 12 is not there; upload it again");
    assert_eq!(unreadable(&second, digest).await, expected);
    let refused = within(second.put_component(digest, content.clone())).await.unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("cleanup.policy=compact"), "{refused}");
    set(&first, &topic, &[("cleanup.policy", "compact")]).await;
    put(&second, &content).await;
    assert!(reads(&first, &content).await);
    // Nor when all of them are.
    delete(&first, &topic).await;
    within(async {
        while get(&second, digest).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let told = unreadable(&second, digest).await;
    assert!(told.contains("chunk 12 of 12 is not there; upload it again"), "{told}");
    within(async {
        // Until all of the old one is removed, the broker can refuse another one.
        while let Err(error) = first.put_component(digest, content.clone()).await {
            assert!(error.is_transient(), "{error}");
        }
    })
    .await;
    assert!(reads(&second, &content).await);
    // What is gone with its topic can be removed.
    delete(&first, &topic).await;
    within(async {
        while get(&second, digest).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(second.remove_component(digest)).await.unwrap();
    assert!(!is_there(&first, digest).await);
}

/// Two uploads of one component are interleaved, and another one is removed, in a topic that is compacted at once.
#[tokio::test(flavor = "multi_thread")]
async fn compaction_takes_what_was_removed_and_nothing_that_is_there() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    let topic = first.components_topic().unwrap();
    first.make_own(Needed::components(topic.clone())).await.unwrap();
    let hurried = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0"),
        ("max.compaction.lag.ms", "1"),
        ("delete.retention.ms", "0"),
        ("segment.bytes", "1048576"),
        ("segment.ms", "1000"),
        ("max.message.bytes", "1179648"),
    ];
    set(&first, &topic, &hurried).await;
    let [content, removed, more] = [9, 3, 2].map(|mebibytes| component(mebibytes * limits::MIB + 7));
    tokio::join!(put(&first, &content), put(&second, &content));
    let gone = put(&first, &removed).await;
    within(second.remove_component(gone)).await.unwrap();
    put(&second, &more).await;
    let began_with = format!("{gone}/");
    within(async {
        // A segment is compacted once there is another one.
        while records(&first, &topic).await.iter().any(|(_, record)| {
            record.value.is_some() && record.key.as_ref().is_some_and(|key| key.starts_with(began_with.as_bytes()))
        }) {
            tokio::time::sleep(A_WHILE).await;
        }
    })
    .await;
    let third = cluster.open().await;
    assert!(reads(&third, &content).await && reads(&third, &more).await);
    assert!(!is_there(&third, gone).await);
}

/// An instance is killed while it writes: what it leaves holds back nobody for longer than the broker takes to end it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_in_the_registry_is_waited_for() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.open().await;
    deploy(&log, 0, "one").await.unwrap();
    let topic = log.registry_topic().unwrap();
    let (bootstrap, id) = (cluster.bootstrap.clone(), format!("{}.other", cluster.prefix));
    let record = plain(began(), Some("no function".into()), "nothing".into());
    let left = move || {
        let producer: BaseProducer<Deliveries> = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("transactional.id", id)
            .set("transaction.timeout.ms", "3000")
            .create_with_context(Deliveries::default())
            .unwrap();
        producer.init_transactions(REQUEST_TIMEOUT).unwrap();
        producer.begin_transaction().unwrap();
        native::send(producer.client(), &Placed { topic, partition: 0, record }, 0).unwrap();
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer
    };
    let _left = tokio::task::spawn_blocking(left).await.unwrap();
    assert_eq!(deploy(&log, 1, "two").await.unwrap(), 2);
    assert_eq!(contents(&deployed(&log, None).await).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_instance_says_something_of_itself_and_hears_the_others() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    assert_eq!(within(first.reports()).await.unwrap(), []);
    let before = began();
    let names = [&first, &second].map(|log| log.clients().names.instance().to_owned());
    for (log, text) in [(&first, "one"), (&second, "two"), (&first, "three")] {
        within(log.report(content(text))).await.unwrap();
    }
    let mut expected = [(&names[0], &b"three"[..]), (&names[1], b"two")];
    expected.sort();
    for log in [&first, &second] {
        let reports = within(log.reports()).await.unwrap();
        let heard: Vec<_> = reports.iter().map(|one| (&one.instance, &one.content[..])).collect();
        assert_eq!(heard, expected);
        assert!(reports.iter().all(|one| one.at >= before));
    }
    // One that was silent for two days is forgotten by whichever speaks next.
    let past = Timestamp::from_nanos(began().as_nanos() - 2 * 24 * 3600 * 1_000_000_000);
    let mut options = first.0.options.clone();
    (options.clock, options.instance) = (crate::clock::Clock::starting_at(past), Some("silent".to_owned()));
    let silent = tokio::task::spawn_blocking(move || KafkaLog::open(options)).await.unwrap().unwrap();
    within(silent.report(content("zero"))).await.unwrap();
    assert_eq!(within(second.reports()).await.unwrap().len(), 3);
    within(second.report(content("four"))).await.unwrap();
    let heard = within(first.reports()).await.unwrap();
    assert_eq!(heard.into_iter().map(|one| one.instance).collect::<Vec<_>>(), expected.map(|(name, _)| name.clone()));
}
