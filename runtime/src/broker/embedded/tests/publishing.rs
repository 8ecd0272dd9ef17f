use super::support::*;
use crate::broker::{Catalog, CatalogError};

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
async fn what_a_topic_is_called_and_holds_is_told() {
    let (dir, log) = orders().await;
    let error = log.create_topic(topic("orders"), 3).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(
            "topic `orders` has 2 partitions, and a count cannot be changed later: write `partitions = 2`"
        ),
        "{text}"
    );
    let reserved = log.create_topic(topic("millrace.shop.pay.dead-letter"), 1).await;
    assert!(matches!(reserved, Err(CatalogError::Broker(_))), "{reserved:?}");
    publish(&log, "orders", 1, &["a", "b"]).await;
    let log = reopen(&dir, log);
    let topics = log.topics().await.unwrap();
    assert_eq!(topics.len(), 1);
    assert_eq!((topics[0].name.as_str(), topics[0].internal), ("orders", false));
    assert_eq!(topics[0].partitions.iter().map(|p| p.next).collect::<Vec<_>>(), [0, 2]);
    assert!(topics[0].partitions[1].size_bytes > 0);
    assert_eq!(log.kept_bytes(), topics[0].partitions[1].size_bytes);
}
