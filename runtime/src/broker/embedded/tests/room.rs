use std::time::Duration;

use millrace_core::progress::KeyHash;

use super::super::{EmbeddedLog, Options};
use super::support::*;
use crate::broker::Retention;
use crate::broker::{Broker, Catalog, Error, Force, LetterAction, Log as _, Partition, PublishError};

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
async fn a_topic_of_the_runtimes_own_has_its_own_retention_and_no_flood_of_events_washes_it_away() {
    let dir = empty();
    let log = EmbeddedLog::open(Options { size_max_bytes: 100_000, ..options(dir.path()) }).unwrap();
    log.create_topic(topic("orders"), 1).await.unwrap();
    assert!(log.create_topic(topic("millrace.audit"), 1).await.is_err(), "people make none");
    let retention = Retention { max_age: Some(2 * WEEK), max_bytes: None };
    for _ in 0..2 {
        log.make_internal(topic("millrace.audit"), retention).await.unwrap();
    }
    let topics = log.topics().await.unwrap();
    assert_eq!(topics.iter().map(|topic| topic.internal).collect::<Vec<_>>(), [true, false]);
    for value in ["a", "b", "c"] {
        publish(&log, "millrace.audit", 0, &[value]).await;
    }
    let value = "x".repeat(1_000);
    for _ in 0..300 {
        if log.publish(vec![outgoing("orders", 0, &value)]).await.is_err() {
            log.tick(NOW).await.unwrap();
        }
    }
    assert!(extent(&log, "orders", 0).await.0 > 0);
    let log = reopen(&dir, log);
    assert_eq!(all(&log, "millrace.audit", 0).await, numbered(0, &["a", "b", "c"]));
    for (now, earliest) in [(NOW + WEEK + HOUR, 0), (NOW + WEEK + WEEK + HOUR, 2)] {
        log.tick(now).await.unwrap();
        assert_eq!(extent(&log, "millrace.audit", 0).await, (earliest, 3));
    }
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
        // At its bound the log looks for room only now and then, and else when it is told to.
        if let Err(e) = log.publish(vec![outgoing("orders", 0, &value)]).await {
            assert!(matches!(e, PublishError::Full(_)), "{e}");
            log.tick(NOW).await.unwrap();
            log.publish(vec![outgoing("orders", 0, &value)]).await.unwrap();
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
    let text = error.to_string();
    assert!(text.starts_with("the log is full: it keeps 9") && text.contains("KiB and may keep 97.7 KiB; "), "{text}");
    assert!(
        text.contains("of that are records of `orders` that `shop.pay` has not settled: see `millrace status"),
        "{text}"
    );
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
async fn redriven_records_go_once_settled_and_their_dead_letters_stay() {
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
    let since = |log: &EmbeddedLog, span: Duration| {
        let mut subscription = subscription("shop.pay", &["orders"]);
        subscription.window.span = span;
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
    let keys = since(&log, 1_000 * HOUR).await.restored.keys;
    assert_eq!((0..3).map(|key| keys.contains(KeyHash(key), NOW)).collect::<Vec<_>>(), [false, true, true]);
}

/// A log with a bound, and `count` dead letters of 1,000 bytes, each in a batch of its own.
async fn letters(count: u64, size_max_bytes: u64) -> (tempfile::TempDir, EmbeddedLog) {
    let dir = empty();
    let log = EmbeddedLog::open(Options { size_max_bytes, ..options(dir.path()) }).unwrap();
    log.create_topic(topic("orders"), 1).await.unwrap();
    let values: Vec<_> = (0..count).map(|n| n.to_string()).collect();
    publish(&log, "orders", 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut assignment = assigned(&log, "shop.pay").await;
    let mut progress = assignment.restored.progress.clone();
    for offset in 0..count {
        progress.source.resume += 1;
        progress.source.totals.dead_lettered += 1;
        progress.commits += 1;
        let mut next = commit(&progress);
        next.letters = vec![letter(offset, &"x".repeat(1_000))];
        commits(&mut assignment.partition, next).await;
    }
    (dir, log)
}

async fn close(log: &EmbeddedLog, offsets: impl IntoIterator<Item = u64>) {
    let ids: Vec<_> = offsets.into_iter().map(letter_id).collect();
    log.act_on_letters(&function("shop.pay"), &ids, LetterAction::Resolve(None), Force::No).await.unwrap();
}

async fn listed(log: &EmbeddedLog) -> Vec<u64> {
    let letters = log.letters(&function("shop.pay"), None, 1000).await.unwrap();
    letters.into_iter().map(|letter| letter.id.offset).collect()
}

const DEAD: &str = "millrace.shop.pay.dead-letter";

#[tokio::test]
async fn closed_letters_go_after_their_retention_and_open_ones_stay() {
    let (dir, log) = letters(10, 1 << 30).await;
    close(&log, [0, 1, 4, 5, 9]).await;
    let before = log.kept_bytes();
    log.tick(NOW + 30 * 24 * HOUR).await.unwrap();
    assert_eq!(listed(&log).await, (0..10).collect::<Vec<_>>());
    log.tick(NOW + 30 * 24 * HOUR + HOUR).await.unwrap();
    let left = [2, 3, 6, 7, 8];
    assert_eq!(listed(&log).await, left);
    assert_eq!(extent(&log, DEAD, 0).await, (2, 10));
    assert!(log.kept_bytes() < before - 4_000, "{} of {before} bytes are kept", log.kept_bytes());
    check_sizes(&log).await;
    // The same after a restart, when nothing is read from memory; the last batch says where the partition ends.
    let kept = log.kept_bytes();
    let log = reopen(&dir, log);
    assert_eq!((listed(&log).await, log.kept_bytes()), (left.to_vec(), kept));
    assert_eq!(extent(&log, DEAD, 0).await, (2, 10));
    let read: Vec<_> = all(&log, DEAD, 0).await.into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(read, [2, 3, 6, 7, 8, 9]);
    assert_eq!(log.open_letters(&function("shop.pay")).await.unwrap(), 5);
    let error = log.letter(&function("shop.pay"), &letter_id(4)).await.unwrap_err();
    assert!(error.to_string().contains("has no dead letter"), "{error}");
    close(&log, left).await;
    log.tick(NOW + 90 * 24 * HOUR).await.unwrap();
    assert!(listed(&log).await.is_empty());
    assert_eq!(extent(&log, DEAD, 0).await, (9, 10));
    check_sizes(&log).await;
}

#[tokio::test]
async fn many_closed_letters_go_in_several_steps() {
    let (_dir, log) = letters(600, 1 << 30).await;
    close(&log, 0..600).await;
    log.tick(NOW + 90 * 24 * HOUR).await.unwrap();
    assert_eq!((listed(&log).await, extent(&log, DEAD, 0).await), (Vec::new(), (599, 600)));
}

#[tokio::test]
async fn a_letter_that_changes_while_room_is_made_stays() {
    let (_dir, log) = letters(3, 1 << 30).await;
    close(&log, [0, 1]).await;
    let pay = function("shop.pay");
    let mut survey = super::super::clear::survey(log.state(), &pay).unwrap().unwrap();
    log.act_on_letters(&pay, &[letter_id(0)], LetterAction::Redrive, Force::Yes).await.unwrap();
    let late = NOW + 90 * 24 * HOUR;
    log.alone(move |committer| committer.clear(&mut survey, late)).await.unwrap().unwrap();
    assert_eq!(listed(&log).await, [0, 2]);
    assert_eq!(log.letter(&pay, &letter_id(0)).await.unwrap().record.value.unwrap().len(), 1_000);
    assert_eq!(extent(&log, DEAD, 0).await, (0, 3));
}

#[tokio::test]
async fn at_its_bound_the_log_gives_up_closed_letters_and_names_open_ones() {
    let (_dir, log) = letters(80, 100_000).await;
    let value = "x".repeat(1_000);
    let fill = async || {
        loop {
            if let Err(error) = log.publish(vec![outgoing("orders", 0, &value)]).await {
                break error.to_string();
            }
        }
    };
    let text = fill().await;
    assert!(
        text.contains(" KiB of that are dead letters of `shop.pay`, 80 of them open: see `millrace dead-letters"),
        "{text}"
    );
    close(&log, 20..80).await;
    log.tick(NOW).await.unwrap();
    log.publish(vec![outgoing("orders", 0, &value)]).await.unwrap();
    // No more went than was needed; those closed first, the oldest first.
    let left = listed(&log).await;
    assert!(left.len() > 20 && left.len() < 80 && left.starts_with(&(0..20).collect::<Vec<_>>()), "{left:?}");
    check_sizes(&log).await;
}
