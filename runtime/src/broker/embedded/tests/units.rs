use millrace_core::progress::{Progress, Stream};

use super::support::*;
use crate::broker::{Broker, Catalog, CommitOutcome, FetchError, Partition, StateReader, Wanted};

#[tokio::test]
async fn a_subscription_makes_the_topics_it_needs() {
    let (_dir, log) = orders().await;
    log.create_topic(topic("returns"), 3).await.unwrap();
    log.subscribe(subscription("shop.pay", &["orders", "nowhere"])).await.unwrap_err();
    assert_eq!(log.topics().await.unwrap().len(), 2, "nothing is left of what was refused");
    drop(assignments(&log, subscription("shop.pay", &["orders", "returns"])).await);
    let topics: Vec<_> = log.topics().await.unwrap().into_iter().filter(|t| t.internal).collect();
    let topics: Vec<_> = topics.iter().map(|t| (t.name.as_str(), t.partitions.len())).collect();
    let expected = [
        ("millrace.shop.pay.dead-letter", 1),
        ("millrace.shop.pay.redrive.orders", 2),
        ("millrace.shop.pay.redrive.returns", 3),
    ];
    assert_eq!(topics, expected);
}

#[tokio::test]
async fn fetch_takes_records_of_several_batches_up_to_a_number_of_bytes() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    publish(&log, "orders", 0, &["c", "d", "e"]).await;
    let mut partition = assigned(&log, "shop.pay").await.partition;
    for (source, max_bytes, expected) in [(1, 1 << 20, &["b", "c", "d", "e"][..]), (2, 8, &["c", "d"]), (1, 0, &["b"])]
    {
        let fetched = partition.fetch(Wanted { max_bytes, ..wanted(source) }).await.unwrap();
        assert_eq!(texts(&fetched), numbered(source, expected));
    }
}

#[tokio::test]
async fn a_letter_may_have_64_kib_more_than_a_record() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = after(&assignment.restored.progress, 0);
    let largest = (1 << 20) + (64 << 10) - "key".len();
    progress.source.resume = 1;
    progress.source.totals.dead_lettered = 1;
    let mut with_letter = commit(&progress);
    with_letter.letters = vec![letter(0, &"x".repeat(largest + 1))];
    assert!(matches!(partition.commit(with_letter.clone()).await.unwrap(), CommitOutcome::Refused { .. }));
    with_letter.letters = vec![letter(0, &"x".repeat(largest))];
    commits(&mut partition, with_letter).await;
}

#[tokio::test]
async fn who_is_retired_loses_its_partitions() {
    let (_dir, log) = orders().await;
    let mut assigned = assigned(&log, "shop.pay").await;
    log.retire(function("shop.pay")).await.unwrap();
    assert!(*assigned.revoked.borrow());
    let late = commit(&after(&assigned.restored.progress, 0));
    assert_eq!(assigned.partition.commit(late).await.unwrap(), CommitOutcome::Aborted);
}

#[tokio::test]
async fn a_commit_sent_before_the_partition_is_lost_is_restored() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let mut old = assigned(&log, "shop.pay").await;
    let progress = after(&old.restored.progress, 1);
    // It is on its way as soon as it is asked for, and is not undone by dropping the future.
    drop(old.partition.commit(commit(&progress)));
    assert_eq!(assigned(&log, "shop.pay").await.restored.progress, progress);
}

#[tokio::test]
async fn a_topic_that_is_no_longer_subscribed_is_revoked() {
    let (_dir, log) = orders().await;
    log.create_topic(topic("returns"), 1).await.unwrap();
    let both = assignments(&log, subscription("shop.pay", &["orders", "returns"])).await;
    let one = assignments(&log, subscription("shop.pay", &["returns"])).await;
    assert_eq!(one.len(), 1);
    assert!(both.iter().all(|a| *a.revoked.borrow()));
}

#[tokio::test]
async fn progress_that_does_not_follow_is_a_bug_that_never_reaches_the_disk() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b", "c"]).await;
    let before = assigned(&log, "shop.pay").await.restored.progress;
    let change = |f: &dyn Fn(&mut Progress)| {
        let mut progress = after(&before, 2);
        f(&mut progress);
        progress
    };
    let cases = [
        ("commit counter", change(&|p| p.commits = 3)),
        ("accounts", change(&|p| p.source.totals.skipped = 1)),
        ("accounts", change(&|p| p.source.resume -= 1)),
        ("pass the end", change(&|p| p.source.resume = 4)),
        ("start", change(&|p| p.source.start = 1)),
        ("disjoint", change(&|p| p.source.settled_above = std::iter::once(2..3).collect())),
        ("past the end", change(&|p| p.source.settled_above = std::iter::once(3..5).collect())),
        ("accounts", change(&|p| p.redrive.totals.completed = 1)),
    ];
    for (message, progress) in cases {
        let mut partition = assigned(&log, "shop.pay").await.partition;
        let panic = tokio::spawn(async move { partition.commit(commit(&progress)).await }).await.unwrap_err();
        let text = *panic.into_panic().downcast::<String>().unwrap();
        assert!(text.contains(message), "`{text}` does not speak of `{message}`");
    }
    assert_eq!(assigned(&log, "shop.pay").await.restored.progress, before);
}

#[tokio::test]
async fn a_removed_offset_is_gone() {
    let (_dir, log) = orders().await;
    for value in ["a", "b", "c"] {
        publish(&log, "orders", 0, &[value]).await;
    }
    let mut partition = assigned(&log, "shop.pay").await.partition;
    log.retire(function("shop.pay")).await.unwrap();
    log.tick(NOW + 24 * 7 * HOUR + HOUR).await.unwrap();
    let error = partition.fetch(wanted(0)).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone { stream: Stream::Source, wanted: 0, earliest: 2 }), "{error}");
    assert_eq!(texts(&partition.fetch(wanted(2)).await.unwrap()), numbered(2, &["c"]));
}

#[tokio::test]
async fn a_value_that_is_too_large_is_refused_and_named() {
    let (_dir, log) = orders().await;
    let mut assignment = assigned(&log, "shop.pay").await;
    let mut refused = commit(&after(&assignment.restored.progress, 0));
    refused.state = vec![state_write("a", Some(&"x".repeat(256 * 1024 + 1)))];
    let reason = "state `a`: the value has 262145 bytes, more than 262144".to_owned();
    assert_eq!(assignment.partition.commit(refused).await.unwrap(), CommitOutcome::Refused { reason });
    assert!(stored(&log, assignment.partition.unit()).await.is_empty());
    assert_eq!(log.kept_bytes(), size(&log).await);
}

#[tokio::test]
async fn state_is_not_read_before_it_is_durable() {
    let (dir, log) = orders().await;
    drop(log);
    let (log, gate) = Gate::open_on(dir.path());
    let mut assignment = assigned(&log, "shop.pay").await;
    let unit = assignment.partition.unit().clone();
    let mut next = commit(&after(&assignment.restored.progress, 0));
    next.state = vec![state_write("a", Some("1"))];
    gate.set_open(false);
    let committing = tokio::spawn(assignment.partition.commit(next));
    let reader = assignment.partition.state();
    assert_eq!(reader.get(vec!["a".into()]).await.unwrap(), [None]);
    assert!(stored(&log, &unit).await.is_empty());
    gate.set_open(true);
    assert_eq!(committing.await.unwrap().unwrap(), CommitOutcome::Committed);
    assert_eq!(reader.get(vec!["a".into()]).await.unwrap(), [Some("1".into())]);
}
