use bytes::Bytes;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::support::*;
use crate::broker::{Broker, Catalog, CatalogError, Outgoing, Placement, Placing, PublishError};

#[tokio::test]
async fn records_are_read_back_in_order_before_and_after_a_restart() {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    publish(&log, "orders", 1, &["c"]).await;
    publish(&log, "orders", 0, &["d"]).await;
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "b", "d"]));
    let log = reopen(&dir, log);
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "b", "d"]));
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["c"]));
    publish(&log, "orders", 0, &["e"]).await;
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "b", "d", "e"]));
}

#[tokio::test]
async fn a_record_keeps_all_its_parts() {
    let (_dir, log) = orders().await;
    let record = Record {
        timestamp: Timestamp::from_nanos(1_234_567_890_123),
        key: None,
        value: Some(Bytes::new()),
        headers: [("a", Some(&b"1"[..])), ("a", None), ("", Some(b""))].into_iter().collect(),
    };
    let topic = topic("orders");
    let outgoing = Outgoing { topic: topic.clone(), placing: Placing::Partition(1), record: record.clone() };
    log.publish(vec![outgoing]).await.unwrap();
    let read = log.read(&topic, 1, 0, 1).await.unwrap();
    let timestamp = Timestamp::from_millis(record.timestamp.as_millis());
    assert_eq!(read.records, [(0, Record { timestamp, ..record })]);
}

#[tokio::test]
async fn a_batch_over_several_partitions_says_where_each_record_landed() {
    let (_dir, log) = orders().await;
    let hash = |hash, value| Outgoing { placing: Placing::Hash(hash), ..outgoing("orders", 0, value) };
    let batch = vec![hash(0, "a"), hash(1, "b"), hash(2, "c"), hash(0x8000_0001, "d"), hash(u32::MAX, "e")];
    let place = |partition, offset| Placement { partition, offset };
    let expected = [place(0, 0), place(1, 0), place(0, 1), place(1, 1), place(1, 2)];
    assert_eq!(log.publish(batch).await.unwrap(), expected);
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "c"]));
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["b", "d", "e"]));
    assert_eq!(log.publish(Vec::new()).await.unwrap(), []);
}

#[tokio::test]
async fn a_refused_batch_names_the_record_and_leaves_nothing() {
    let (_dir, log) = orders().await;
    let good = || outgoing("orders", 0, "good");
    let large = "x".repeat(1 << 20);
    let cases = [
        (outgoing("nowhere", 0, "a"), "there is no topic `nowhere`"),
        (outgoing("orders", 2, "a"), "there is no topic `orders`"),
        (outgoing("orders", 0, &large), "the record has 1048579 bytes, more than the 1048576 that `orders` takes"),
    ];
    for (bad, message) in cases {
        let error = log.publish(vec![good(), bad]).await.unwrap_err();
        assert_eq!(error.to_string(), message);
        let (PublishError::UnknownTopic { index, .. } | PublishError::TooLarge { index, .. }) = error else {
            panic!("{error} is another refusal")
        };
        assert_eq!(index, 1);
    }
    assert_eq!(all(&log, "orders", 0).await, []);
}

#[tokio::test]
async fn large_batches_are_split_and_the_largest_record_is_taken() {
    let (dir, log) = orders().await;
    let value = "x".repeat(100_000);
    let largest = "y".repeat((1 << 20) - 3);
    let mut values = vec![&value[..]; 9];
    values.push(&largest);
    publish(&log, "orders", 0, &values).await;
    let kept = log.kept_bytes();
    assert!(kept > 1_900_000);
    let log = reopen(&dir, log);
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &values));
    assert_eq!(log.kept_bytes(), kept);
}

#[tokio::test]
async fn topics_are_made_once_and_listed() {
    let (dir, log) = orders().await;
    log.create_topic(topic("orders"), 2).await.unwrap();
    let error = log.create_topic(topic("orders"), 3).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(
            "topic `orders` has 2 partitions, and a count cannot be changed later: write `partitions = 2`"
        ),
        "{text}"
    );
    for (name, partitions) in [("none", 0), ("many", 1025), ("millrace.shop.pay.dead-letter", 1)] {
        assert!(matches!(log.create_topic(topic(name), partitions).await, Err(CatalogError::Broker(_))), "{name}");
    }
    publish(&log, "orders", 1, &["a", "b"]).await;
    let log = reopen(&dir, log);
    let topics = log.topics().await.unwrap();
    assert_eq!(topics.len(), 1);
    assert_eq!((topics[0].name.as_str(), topics[0].internal), ("orders", false));
    assert_eq!(topics[0].partitions.iter().map(|p| p.next).collect::<Vec<_>>(), [0, 2]);
    assert!(topics[0].partitions[1].size_bytes > 0);
    assert_eq!(log.kept_bytes(), topics[0].partitions[1].size_bytes);
}

#[tokio::test]
async fn reading_what_is_not_there_is_refused_or_empty() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let error = log.read(&topic("nowhere"), 0, 0, 1).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no topic `nowhere`");
    let error = log.read(&topic("orders"), 2, 0, 1).await.unwrap_err();
    assert_eq!(error.to_string(), "topic `orders` has no partition 2");
    let read = log.read(&topic("orders"), 0, 1, 1).await.unwrap();
    assert_eq!((read.records.len(), read.next), (0, 1));
    assert!(log.read(&topic("orders"), 0, 0, 0).await.unwrap().records.is_empty());
}
