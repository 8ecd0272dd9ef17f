use std::time::Duration;

use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

use super::super::{EmbeddedLog, Options, Retention};
use super::support::*;
use crate::broker::{Broker, Catalog, Error, Force, LetterAction, Partition, PublishError};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

async fn extent(log: &EmbeddedLog, name: &str, partition: usize) -> (u64, u64) {
    let topics = log.topics().await.unwrap();
    let found = topics.iter().find(|t| t.name == name).unwrap().partitions[partition];
    (found.earliest, found.next)
}

/// The sizes add up to what the log says that it keeps.
async fn check_sizes(log: &EmbeddedLog) {
    let topics = log.topics().await.unwrap();
    let sum: u64 = topics.iter().flat_map(|t| &t.partitions).map(|p| p.size_bytes).sum();
    assert_eq!(log.kept_bytes(), sum);
}

#[tokio::test]
async fn old_records_go_except_the_last_batch() {
    let (dir, log) = orders().await;
    for value in ["a", "b", "c"] {
        publish(&log, "orders", 0, &[value, value]).await;
    }
    log.tick(NOW + WEEK).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (0, 6));
    log.tick(NOW + WEEK + HOUR).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (4, 6));
    check_sizes(&log).await;
    let kept = log.kept_bytes();
    let log = reopen(&dir, log);
    assert_eq!(extent(&log, "orders", 0).await, (4, 6));
    assert_eq!(log.kept_bytes(), kept);
    assert_eq!(all(&log, "orders", 0).await, numbered(4, &["c", "c"]));
    publish(&log, "orders", 0, &["d"]).await;
    assert_eq!(all(&log, "orders", 0).await, numbered(4, &["c", "c", "d"]));
}

#[tokio::test]
async fn what_an_active_function_has_not_settled_stays() {
    let (dir, log) = orders().await;
    for value in ["a", "b", "c", "d"] {
        publish(&log, "orders", 0, &[value, value]).await;
    }
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let late = NOW + WEEK + HOUR;
    log.tick(late).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (0, 8));
    // Half of the second batch is settled.
    let progress = after(&assignment.restored.progress, 3);
    commits(&mut partition, commit(&progress)).await;
    log.tick(late).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (2, 8));
    // A function that is not subscribed yet after a restart is active all the same.
    drop(partition);
    let log = reopen(&dir, log);
    log.tick(late).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (2, 8));
    log.retire(function("shop.pay")).await.unwrap();
    log.tick(late).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (6, 8));
    // It comes back to where it was.
    assert_eq!(assigned(&log, "shop.pay").await.restored.progress, progress);
}

#[tokio::test]
async fn the_slowest_active_function_decides() {
    let (_dir, log) = orders().await;
    for value in ["a", "b", "c", "d"] {
        publish(&log, "orders", 0, &[value]).await;
    }
    for (name, settled) in [("shop.quick", 3), ("shop.slow", 1)] {
        let mut assignment = assigned(&log, name).await;
        let progress = after(&assignment.restored.progress, settled);
        commits(&mut assignment.partition, commit(&progress)).await;
    }
    log.tick(NOW + WEEK + HOUR).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (1, 4));
}

#[tokio::test]
async fn a_topic_is_kept_below_its_own_bound() {
    let (dir, log) = orders().await;
    let value = "x".repeat(1000);
    for n in 0..20 {
        publish(&log, "orders", n % 2, &[&value]).await;
    }
    let retention = Retention { max_age: None, max_bytes: Some(5_000) };
    log.set_retention(topic("orders"), Some(retention)).await.unwrap();
    assert!(log.set_retention(topic("nowhere"), None).await.is_err());
    let log = reopen(&dir, log);
    log.tick(NOW + 10 * WEEK).await.unwrap();
    assert!((3_000..=5_000).contains(&log.kept_bytes()), "{} bytes are kept", log.kept_bytes());
    check_sizes(&log).await;
}

#[tokio::test]
async fn many_batches_are_removed_in_several_passes() {
    let (_dir, log) = orders().await;
    let publishes = (0..1_500).map(|_| publish(&log, "orders", 0, &["a"]));
    for publish in publishes {
        publish.await;
    }
    log.tick(NOW + WEEK + HOUR).await.unwrap();
    assert_eq!(extent(&log, "orders", 0).await, (1_499, 1_500));
    check_sizes(&log).await;
}

#[tokio::test]
async fn at_its_bound_the_log_removes_what_is_settled_and_else_refuses() {
    let dir = empty();
    let log = EmbeddedLog::open(Options { size_max_bytes: 100_000, ..options(dir.path()) }).unwrap();
    log.create_topic(topic("orders"), 1).await.unwrap();
    log.create_topic(topic("payments"), 1).await.unwrap();
    let value = "x".repeat(1_000);
    // Nobody reads it, so all but the last batch can go.
    for _ in 0..300 {
        // At its bound the log looks for room only now and then.
        while let Err(e) = log.publish(vec![outgoing("orders", 0, &value)]).await {
            assert!(matches!(e, PublishError::Full(_)), "{e}");
            tokio::task::yield_now().await;
        }
    }
    assert!(log.kept_bytes() <= 100_000);
    let mut assignment = assigned(&log, "shop.pay").await;
    let error = loop {
        match log.publish(vec![outgoing("orders", 0, &value)]).await {
            Ok(_) => assert!(log.kept_bytes() <= 100_000),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().starts_with("the log is full: it keeps "), "{error}");
    // Commits go on for a while, even if they settle nothing.
    let mut progress = assignment.restored.progress.clone();
    let refused = loop {
        let mut next = commit(&after(&progress, 0));
        next.outputs = vec![outgoing("payments", 0, &value)];
        match assignment.partition.commit(next).await {
            Ok(_) => progress = after(&progress, 0),
            Err(error) => break error,
        }
        assert!(log.kept_bytes() <= 125_000);
    };
    assert!(matches!(refused, Error::Transient(_)), "{refused}");
    assert!(progress.commits > 10);
    commits(&mut assignment.partition, commit(&after(&progress, 40))).await;
    log.tick(NOW).await.unwrap();
    log.publish(vec![outgoing("orders", 0, &value)]).await.unwrap();
    check_sizes(&log).await;
}

#[tokio::test]
async fn redriven_records_go_once_settled_and_dead_letters_never() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = assignment.restored.progress;
    for offset in 0..3 {
        progress.source.resume += 1;
        progress.source.totals.dead_lettered += 1;
        progress.commits += 1;
        let mut next = commit(&progress);
        next.letters = vec![letter(offset, "dead")];
        commits(&mut partition, next).await;
        log.act_on_letters(&function("shop.pay"), &[letter_id(offset)], LetterAction::Redrive, Force::No)
            .await
            .unwrap();
    }
    log.tick(NOW + 10 * WEEK).await.unwrap();
    assert_eq!(extent(&log, "millrace.shop.pay.redrive.orders", 0).await, (0, 3));
    progress = after_redrive(&progress);
    commits(&mut partition, commit(&progress)).await;
    log.retire(function("shop.pay")).await.unwrap();
    log.tick(NOW + 10 * WEEK).await.unwrap();
    assert_eq!(extent(&log, "millrace.shop.pay.redrive.orders", 0).await, (1, 3));
    assert_eq!(extent(&log, "millrace.shop.pay.dead-letter", 0).await, (0, 3));
}

#[tokio::test]
async fn idempotency_keys_go_with_their_window() {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let since = |log: &EmbeddedLog, window: Duration| {
        let mut subscription = subscription("shop.pay", &["orders"]);
        subscription.keys_since = Timestamp::from_nanos(NOW.as_nanos()) - window;
        let log = log.clone();
        async move { assignments(&log, subscription).await.swap_remove(0) }
    };
    let mut assignment = since(&log, 24 * HOUR).await;
    let mut progress = assignment.restored.progress.clone();
    for n in 0..3u32 {
        progress = after(&progress, 1);
        let mut next = commit(&progress);
        next.at = NOW + n * HOUR;
        next.keys = vec![KeyHash(n.into())];
        commits(&mut assignment.partition, next).await;
    }
    log.tick(NOW + 25 * HOUR).await.unwrap();
    drop(assignment);
    let log = reopen(&dir, log);
    let restored = since(&log, 1_000 * HOUR).await.restored;
    assert_eq!(restored.keys.iter().map(|b| b.keys[0].0).collect::<Vec<_>>(), [1, 2]);
}
