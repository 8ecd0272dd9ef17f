use futures::FutureExt;
use millrace_core::outcome::Category;
use millrace_core::progress::{KeyHash, ParkedHead, Position, Progress, Stream};
use millrace_core::time::Timestamp;

use super::support::*;
use crate::broker::{Broker, Catalog, CommitOutcome, FetchError, KeyBlock, Partition, StartAt, StateReader, Wanted};

#[tokio::test]
async fn a_subscription_assigns_each_partition_and_makes_the_topics_it_needs() {
    let (_dir, log) = orders().await;
    log.create_topic(topic("returns"), 3).await.unwrap();
    let assigned = assignments(&log, subscription("shop.pay", &["orders", "returns"])).await;
    let units: Vec<_> = assigned.iter().map(|a| a.partition.unit().to_string()).collect();
    let expected = ["orders/0", "orders/1", "returns/0", "returns/1", "returns/2"].map(|u| format!("shop.pay on {u}"));
    assert_eq!(units, expected);
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
async fn subscribing_to_a_missing_topic_names_it() {
    let (_dir, log) = orders().await;
    let error = log.subscribe(subscription("shop.pay", &["orders", "nowhere"])).await.unwrap_err();
    assert!(error.to_string().starts_with("there is no topic `nowhere`: create it"), "{error}");
    assert!(error.is_transient());
    assert_eq!(log.topics().await.unwrap().len(), 1, "nothing of it is left");
}

#[tokio::test]
async fn a_subscription_waits_for_more_assignments() {
    let (_dir, log) = orders().await;
    let mut receiver = log.subscribe(subscription("shop.pay", &["orders"])).await.unwrap();
    assert!(receiver.recv().await.is_some() && receiver.recv().await.is_some());
    assert!(receiver.recv().now_or_never().is_none());
}

#[tokio::test]
async fn where_a_function_starts_is_decided_once() {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    let latest = || crate::broker::Subscription { from: StartAt::Latest, ..subscription("shop.late", &["orders"]) };
    for _ in 0..2 {
        let starts: Vec<_> =
            assignments(&log, latest()).await.iter().map(|a| a.restored.progress.source.clone()).collect();
        assert_eq!(starts.iter().map(|s| (s.start, s.resume)).collect::<Vec<_>>(), [(2, 2), (0, 0)]);
        publish(&log, "orders", 0, &["c"]).await;
    }
    let log = reopen(&dir, log);
    assert_eq!(assignments(&log, latest()).await[0].restored.progress.source.resume, 2);
    assert_eq!(assigned(&log, "shop.early").await.restored.progress, Progress::default());
}

#[tokio::test]
async fn fetch_gives_what_there_is_up_to_its_bounds() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    publish(&log, "orders", 0, &["c", "d", "e"]).await;
    let mut partition = assigned(&log, "shop.pay").await.partition;
    let mut check = async |source, max_records, max_bytes, expected: &[&str]| {
        let wanted = Wanted { source: Some(source), redrive: Some(0), max_records, max_bytes };
        let fetched = partition.fetch(wanted).await.unwrap();
        assert_eq!(texts(&fetched), numbered(source, expected));
        assert_eq!((fetched.stream, fetched.next), (Stream::Source, source + expected.len() as u64));
    };
    check(0, 100, 1 << 20, &["a", "b", "c", "d", "e"]).await;
    check(0, 3, 1 << 20, &["a", "b", "c"]).await;
    check(3, 1, 1 << 20, &["d"]).await;
    check(1, 100, 0, &["b"]).await;
    check(2, 100, 8, &["c", "d"]).await;
    check(4, 100, 1 << 20, &["e"]).await;
}

#[tokio::test]
async fn fetch_waits_for_what_is_published() {
    let (_dir, log) = orders().await;
    let mut partition = assigned(&log, "shop.pay").await.partition;
    assert!(partition.fetch(wanted(0)).now_or_never().is_none());
    let (fetched, ()) = tokio::join!(partition.fetch(wanted(0)), publish(&log, "orders", 0, &["a"]));
    assert_eq!(texts(&fetched.unwrap()), numbered(0, &["a"]));
    // What another partition gets does not wake it.
    publish(&log, "orders", 1, &["b"]).await;
    assert!(partition.fetch(wanted(1)).now_or_never().is_none());
}

#[tokio::test]
async fn a_commit_is_restored_as_it_was_written() {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b", "c", "d"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = after(&assignment.restored.progress, 1);
    progress.source.settled_above = std::iter::once(2..4).collect();
    progress.source.totals.filtered = 2;
    progress.parked = vec![ParkedHead {
        position: Position { stream: Stream::Source, offset: 1 },
        attempts: 3,
        first_failed_at: NOW,
        due_at: NOW + HOUR,
        category: Category::Transient,
    }];
    let mut first = commit(&progress);
    first.keys = vec![KeyHash(1), KeyHash(u128::MAX)];
    commits(&mut partition, first).await;
    let mut next = progress.clone();
    next.commits += 1;
    let mut second = commit(&next);
    second.at = NOW + HOUR;
    second.keys = vec![KeyHash(2)];
    commits(&mut partition, second).await;
    drop(partition);
    let log = reopen(&dir, log);
    let restored = assigned(&log, "shop.pay").await.restored;
    assert_eq!(restored.progress, next);
    let blocks = [
        KeyBlock { committed_at: NOW, keys: vec![KeyHash(1), KeyHash(u128::MAX)] },
        KeyBlock { committed_at: NOW + HOUR, keys: vec![KeyHash(2)] },
    ];
    assert_eq!(restored.keys, blocks);
    let mut recent = subscription("shop.pay", &["orders"]);
    recent.keys_since = Timestamp::from_nanos(NOW.as_nanos() + 1);
    let recent = assignments(&log, recent).await.swap_remove(0);
    assert_eq!(recent.restored.keys, blocks[1..]);
    let units = log.units(&function("shop.pay")).await.unwrap();
    assert_eq!(units.iter().map(|u| u.unit.partition).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((units[0].source_next, units[0].oldest_unsettled_at), (4, Some(NOW)));
    assert_eq!((units[1].source_next, units[1].oldest_unsettled_at), (0, None));
    assert_eq!(units[0].progress, next);
}

#[tokio::test]
async fn outputs_become_visible_with_the_commit() {
    let (_dir, log) = orders().await;
    log.create_topic(topic("payments"), 1).await.unwrap();
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut first = commit(&after(&assignment.restored.progress, 1));
    first.outputs = vec![outgoing("payments", 0, "paid"), outgoing("orders", 1, "again"), outgoing("payments", 0, "2")];
    commits(&mut partition, first).await;
    assert_eq!(all(&log, "payments", 0).await, numbered(0, &["paid", "2"]));
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["again"]));
}

#[tokio::test]
async fn content_that_the_log_refuses_leaves_nothing() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let progress = after(&assignment.restored.progress, 1);
    let large = "x".repeat(1 << 20);
    let cases = [
        (outgoing("nowhere", 0, "a"), "there is no topic `nowhere`"),
        (outgoing("orders", 1, &large), "the record has 1048579 bytes, more than the 1048576 that `orders` takes"),
    ];
    for (output, reason) in cases {
        let mut refused = commit(&progress);
        refused.outputs = vec![outgoing("orders", 1, "good"), output];
        let reason = reason.to_owned();
        assert_eq!(partition.commit(refused).await.unwrap(), CommitOutcome::Refused { reason });
    }
    let mut refused = commit(&progress);
    refused.letters = vec![letter(0, &"x".repeat((1 << 20) + (64 << 10)))];
    assert!(matches!(partition.commit(refused).await.unwrap(), CommitOutcome::Refused { .. }));
    assert_eq!(all(&log, "orders", 1).await, []);
    commits(&mut partition, commit(&progress)).await;
}

#[tokio::test]
async fn a_new_subscription_takes_the_partitions_away() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    let mut old = assigned(&log, "shop.pay").await;
    let progress = after(&old.restored.progress, 1);
    commits(&mut old.partition, commit(&progress)).await;
    assert!(!*old.revoked.borrow());
    let mut new = assigned(&log, "shop.pay").await;
    assert!(*old.revoked.borrow() && !*new.revoked.borrow());
    assert_eq!(new.restored.progress, progress);
    let next = after(&progress, 1);
    assert_eq!(old.partition.commit(commit(&next)).await.unwrap(), CommitOutcome::Aborted);
    commits(&mut new.partition, commit(&next)).await;
    log.retire(function("shop.pay")).await.unwrap();
    assert!(*new.revoked.borrow());
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
async fn state_is_committed_with_all_else_or_not_at_all() {
    let (dir, log) = orders().await;
    let mut assignment = assigned(&log, "shop.pay").await;
    let (unit, reader) = (assignment.partition.unit().clone(), assignment.partition.state());
    let progress = after(&assignment.restored.progress, 0);
    let mut next = commit(&progress);
    next.state = vec![state_write("a", Some("1")), state_write("b", Some("2"))];
    commits(&mut assignment.partition, next).await;
    let values = |keys: [&str; 3]| reader.get(keys.map(Into::into).to_vec());
    let shown =
        |values: Vec<Option<bytes::Bytes>>| values.into_iter().map(|v| v.map_or(0, |v| v[0])).collect::<Vec<_>>();
    assert_eq!(shown(values(["b", "none", "a"]).await.unwrap()), [b'2', 0, b'1']);

    // What is refused, or comes from one who has lost the partition, changes nothing.
    let progress = after(&progress, 0);
    let mut refused = commit(&progress);
    refused.state = vec![state_write("a", Some(&"x".repeat(256 * 1024 + 1)))];
    let outcome = assignment.partition.commit(refused).await.unwrap();
    let reason = "state `a`: the value has 262145 bytes, more than 262144".to_owned();
    assert_eq!(outcome, CommitOutcome::Refused { reason });
    let mut newer = assigned(&log, "shop.pay").await;
    let mut late = commit(&progress);
    late.state = vec![state_write("a", None)];
    assert_eq!(assignment.partition.commit(late.clone()).await.unwrap(), CommitOutcome::Aborted);
    assert_eq!(stored(&log, &unit).await.len(), 2);

    commits(&mut newer.partition, late).await;
    let other = assigned(&log, "shop.other").await.partition.unit().clone();
    drop((reader, assignment, newer));
    let log = reopen(&dir, log);
    assert_eq!(stored(&log, &unit).await.into_keys().collect::<Vec<_>>(), ["b"]);
    assert!(stored(&log, &other).await.is_empty(), "nobody shares state");
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
