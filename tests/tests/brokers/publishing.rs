//! Topics and what is published into them.

use bytes::Bytes;
use millrace::broker::{Broker, Catalog, CatalogError, Outgoing, Placement, Placing, PublishError};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::steps::{all, orders, outgoing, publish, within};
use super::subjects::Subject;

pub(crate) async fn what_is_published_is_read_back_as_it_was<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    let given = Record {
        timestamp: subject.now() + std::time::Duration::from_nanos(890_123),
        key: None,
        value: Some(Bytes::new()),
        headers: [("a", Some(&b"1"[..])), ("a", None), ("raw", Some(&[0xff][..]))].into_iter().collect(),
    };
    // Logs keep whole milliseconds.
    let whole = Record { timestamp: Timestamp::from_millis(given.timestamp.as_millis()), ..given.clone() };
    let hash = |hash, record| Outgoing { topic: subject.topic("orders"), placing: Placing::Hash(hash), record };
    let other = outgoing(&subject, "orders", 0, "b").record;
    let batch = vec![hash(0, other.clone()), hash(1, given), hash(0x8000_0001, other.clone()), hash(2, other)];
    let place = |partition, offset| Placement { partition, offset };
    let placed = within(log.publish(batch)).await.expect("the records are taken");
    assert_eq!(placed, [place(0, 0), place(1, 0), place(1, 1), place(0, 1)]);
    assert_eq!(within(log.publish(Vec::new())).await.expect("nothing is taken"), []);
    let read = within(log.read(&subject.topic("orders"), 1, 0, 1)).await.expect("the topic can be read");
    assert_eq!(read.records, [(0, whole)]);
    publish(&subject, &log, &["c"]).await;
    assert_eq!(all(&subject, &log, "orders", 0).await, ["b", "b", "c"]);
    subject.close(log).await;
    let log = subject.open().await;
    assert_eq!(all(&subject, &log, "orders", 0).await, ["b", "b", "c"]);
    publish(&subject, &log, &["d"]).await;
    assert_eq!(all(&subject, &log, "orders", 0).await, ["b", "b", "c", "d"]);
}

pub(crate) async fn a_refused_batch_names_the_record_and_leaves_nothing<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    let good = || outgoing(&subject, "orders", 0, "good");
    let large = "x".repeat(1 << 20);
    for (name, partition, value) in [("nowhere", 0, "a"), ("orders", 2, "a"), ("orders", 0, &large)] {
        let batch = vec![good(), outgoing(&subject, name, partition, value)];
        let error = within(log.publish(batch)).await.expect_err("it is refused");
        let too_large = value.len() > 1;
        match &error {
            PublishError::UnknownTopic { index: 1, topic } if !too_large => {
                assert_eq!(*topic, subject.topic(name));
                assert_eq!(error.to_string(), format!("there is no topic `{topic}`"));
            }
            PublishError::TooLarge { index: 1, size_bytes, max_bytes, .. } if too_large => {
                assert!(size_bytes > max_bytes && size_bytes > &value.len(), "{error}");
            }
            _ => panic!("{name}/{partition}: {error} is another refusal"),
        }
    }
    assert_eq!(all(&subject, &log, "orders", 0).await, [""; 0]);
}

pub(crate) async fn topics_are_made_once_and_listed<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b"]).await;
    let orders = subject.topic("orders");
    within(log.create_topic(orders.clone(), 2)).await.expect("it is there as asked for");
    let error = within(log.create_topic(orders.clone(), 3)).await.expect_err("it is there with other partitions");
    assert!(matches!(error, CatalogError::PartitionCount { existing: 2, wanted: 3, .. }), "{error}");
    for (name, partitions) in [("none", 0), ("many", 1025)] {
        let refused = within(log.create_topic(subject.topic(name), partitions)).await;
        assert!(matches!(refused, Err(CatalogError::Broker(_))), "{name}");
    }
    let topics = within(log.topics()).await.expect("topics can be listed");
    let found = topics.iter().find(|topic| topic.name == orders.as_str()).expect("it is listed");
    let ends: Vec<_> = found.partitions.iter().map(|partition| partition.next > 0).collect();
    assert_eq!((found.internal, ends), (false, vec![true, false]));
    for name in ["none", "many"] {
        assert!(topics.iter().all(|topic| topic.name != subject.topic(name).as_str()), "{name} was not made");
    }
}

pub(crate) async fn reading_what_is_not_there_is_refused_or_empty<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let (orders, nowhere) = (subject.topic("orders"), subject.topic("nowhere"));
    let error = within(log.read(&nowhere, 0, 0, 1)).await.expect_err("there is no such topic");
    assert!(matches!(&error, CatalogError::UnknownTopic(topic) if *topic == nowhere), "{error}");
    let error = within(log.read(&orders, 2, 0, 1)).await.expect_err("there is no such partition");
    assert!(matches!(&error, CatalogError::UnknownPartition(topic, 2) if *topic == orders), "{error}");
    let read = within(log.read(&orders, 0, 1, 1)).await.expect("the topic can be read");
    assert!(read.records.is_empty() && read.next >= 1, "{read:?}");
    let read = within(log.read(&orders, 0, 0, 0)).await.expect("the topic can be read");
    assert!(read.records.is_empty(), "{read:?}");
}
