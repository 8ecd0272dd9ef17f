//! Deployments, as several instances see them.

use std::time::Duration;

use bytes::Bytes;
use millrace_core::name::Topic;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::producer::{BaseProducer, Producer};

use super::super::clients::{Deliveries, REQUEST_TIMEOUT};
use super::super::member::commit::plain;
use super::super::record::Placed;
use super::super::{KafkaLog, native};
use super::support::*;
use crate::broker::{DeployError, Deployed, Deployments};

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

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

async fn delete(log: &KafkaLog, topic: &Topic) {
    let deleted = log.admin().delete_topics(&[topic.as_str()], &admin_options()).await.unwrap();
    deleted.into_iter().for_each(|deleted| drop(deleted.unwrap()));
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
    // Whoever gives up waiting does no harm.
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
async fn a_registry_that_is_made_anew_is_read_from_its_beginning() {
    let Some(cluster) = Cluster::find() else { return };
    let (first, second) = (cluster.open().await, cluster.open().await);
    deploy(&first, 0, "old").await.unwrap();
    let old = deployed(&second, None).await;
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
    assert_eq!(contents(&within(following).await.unwrap()), [(1, &b"new"[..])]);
}

/// Two uploads of one component are interleaved, and another one is removed, in a topic that is compacted at once.
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
