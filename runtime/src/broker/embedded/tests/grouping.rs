//! What joins one write, and what is seen before it is done.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::join_all;

use super::super::batch::{self, BATCH_BYTES, PartitionId};
use super::super::index::IndexEntry;
use super::super::storage::{Storage, Table};
use super::support::*;
use crate::broker::{Broker, Catalog, CommitOutcome, Error, Partition, PublishError};

/// A log with the topic `orders`, whose writes are held up from now on, and one of them waiting.
async fn held_up() -> (tempfile::TempDir, super::super::EmbeddedLog, Gate) {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b"]).await;
    publish(&log, "orders", 1, &["a", "b"]).await;
    drop(log);
    let (log, gate) = Gate::open_on(dir.path());
    (dir, log, gate)
}

/// Starts a write that waits at the gate, so that what comes after it joins one group.
async fn block(log: &super::super::EmbeddedLog, gate: &Gate) -> impl Future<Output = ()> + use<> {
    gate.set_open(false);
    let before = gate.writes.load(Ordering::SeqCst);
    let log = log.clone();
    let blocked = tokio::spawn(async move { publish(&log, "orders", 0, &["blocked"]).await });
    while gate.writes.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    blocked.map(Result::unwrap)
}

#[tokio::test]
async fn what_waits_is_written_as_one_and_seen_when_it_is_durable() {
    let (_dir, log, gate) = held_up().await;
    let mut assignment = assigned(&log, "shop.pay").await;
    let blocked = block(&log, &gate).await;
    let before = gate.writes.load(Ordering::SeqCst);
    let mut next = commit(&after(&assignment.restored.progress, 1));
    next.outputs = vec![outgoing("orders", 1, "out")];
    let commit = assignment.partition.commit(next);
    let mut waiting = Box::pin(join_all((0..10).map(|_| log.publish(vec![outgoing("orders", 0, "c")]))));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "b"]));
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["a", "b"]));
    assert!(assignment.partition.fetch(wanted(2)).now_or_never().is_none());
    gate.set_open(true);
    blocked.await;
    assert_eq!(commit.await.unwrap(), CommitOutcome::Committed);
    let offsets: Vec<_> = waiting.await.into_iter().map(|p| p.unwrap()[0].offset).collect();
    assert_eq!(offsets, (3..13).collect::<Vec<_>>());
    assert_eq!(gate.writes.load(Ordering::SeqCst), before + 1);
    assert_eq!(all(&log, "orders", 0).await.len(), 13);
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["a", "b", "out"]));
}

#[tokio::test]
async fn a_commit_behind_the_loss_of_its_partition_is_aborted() {
    let (_dir, log, gate) = held_up().await;
    let mut old = assigned(&log, "shop.pay").await;
    let blocked = block(&log, &gate).await;
    let mut taking = Box::pin(assigned(&log, "shop.pay"));
    assert!(taking.as_mut().now_or_never().is_none());
    let mut next = commit(&after(&old.restored.progress, 1));
    next.outputs = vec![outgoing("orders", 1, "never")];
    let late = old.partition.commit(next);
    gate.set_open(true);
    blocked.await;
    assert_eq!(taking.await.restored.progress, old.restored.progress);
    assert_eq!(late.await.unwrap(), CommitOutcome::Aborted);
    assert_eq!(all(&log, "orders", 1).await, numbered(0, &["a", "b"]));
}

#[tokio::test]
async fn letters_of_several_units_in_one_group_are_all_counted() {
    let (_dir, log, gate) = held_up().await;
    let mut assigned = assignments(&log, subscription("shop.pay", &["orders"])).await;
    let blocked = block(&log, &gate).await;
    let commits: Vec<_> = (0..)
        .zip(&mut assigned)
        .map(|(partition, assignment)| {
            let mut progress = after(&assignment.restored.progress, 0);
            progress.source.resume = 2;
            progress.source.totals.dead_lettered = 2;
            let mut next = commit(&progress);
            next.letters = (0..2).map(|offset| letter(offset, "dead")).collect();
            next.letters.iter_mut().for_each(|letter| letter.id.partition = partition);
            assignment.partition.commit(next)
        })
        .collect();
    gate.set_open(true);
    blocked.await;
    for commit in commits {
        assert_eq!(commit.await.unwrap(), CommitOutcome::Committed);
    }
    assert_eq!(log.open_letters(&function("shop.pay")).await.unwrap(), 4);
    let letters = log.letters(&function("shop.pay"), None, 9).await.unwrap();
    assert_eq!(
        letters.iter().map(|l| (l.id.partition, l.id.offset)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    );
}

#[tokio::test]
async fn small_appends_are_joined_up_to_the_bound_of_a_batch() {
    let (_dir, log, gate) = held_up().await;
    let blocked = block(&log, &gate).await;
    let value = "x".repeat(60_000);
    let mut waiting = Box::pin(join_all((0..20).map(|_| log.publish(vec![outgoing("orders", 1, &value)]))));
    assert!(waiting.as_mut().now_or_never().is_none());
    gate.set_open(true);
    blocked.await;
    assert!(waiting.await.iter().all(Result::is_ok));
    let mut batches = Vec::new();
    let second = PartitionId { topic: 1, partition: 1 };
    let range = batch::key(second, 2).to_vec()..batch::key(second, u64::MAX).to_vec();
    let scanned = gate.scan(Table::Index, range, &mut |key, value| {
        let entry = IndexEntry::decode(key, &value).unwrap();
        assert!(entry.bytes as usize <= BATCH_BYTES);
        batches.push(entry.count);
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    assert_eq!(batches, [4; 5]);
}

#[tokio::test]
async fn a_full_queue_refuses_publishers_and_keeps_commits() {
    let (_dir, log, gate) = held_up().await;
    let mut assignment = assigned(&log, "shop.pay").await;
    let blocked = block(&log, &gate).await;
    let mut waiting = Vec::new();
    loop {
        let mut publish = Box::pin(log.publish(vec![outgoing("orders", 0, "c")]));
        match publish.as_mut().now_or_never() {
            None => waiting.push(publish),
            Some(Err(PublishError::Busy)) => break,
            Some(other) => panic!("{other:?}"),
        }
    }
    let mut commit = Box::pin(assignment.partition.commit(commit(&after(&assignment.restored.progress, 1))));
    assert!(commit.as_mut().now_or_never().is_none());
    gate.set_open(true);
    blocked.await;
    assert_eq!(commit.await.unwrap(), CommitOutcome::Committed);
    assert!(waiting.len() >= 1000);
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn refused_requests_do_not_hurt_their_neighbours() {
    let dir = empty();
    let log = super::super::EmbeddedLog::open(super::super::Options { size_max_bytes: 1_000, ..options(dir.path()) })
        .unwrap();
    log.create_topic(topic("orders"), 1).await.unwrap();
    let _keeps = assigned(&log, "shop.pay").await;
    let large = "x".repeat(600);
    let values = ["small", &large, &large, "small"];
    let all = join_all(values.map(|value| log.publish(vec![outgoing("orders", 0, value)]))).await;
    let taken: Vec<_> = all.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, true, false, true]);
    assert!(matches!(all[2], Err(PublishError::Full(_))));
    assert!(!matches!(all[2], Err(PublishError::Broker(Error::Fatal(_)))));
}

#[tokio::test]
async fn too_many_waiting_bytes_are_refused() {
    let (_dir, log, gate) = held_up().await;
    let blocked = block(&log, &gate).await;
    let value = "x".repeat(1 << 19);
    let batch = || (0..60).map(|_| outgoing("orders", 0, &value)).collect::<Vec<_>>();
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(log.publish(batch()))).collect();
    let mut answers: Vec<_> = waiting.iter_mut().map(|publish| publish.as_mut().now_or_never()).collect();
    let refused = answers.pop().unwrap();
    let waits = answers.iter().all(Option::is_none);
    gate.set_open(true);
    blocked.await;
    assert!(waits && matches!(refused, Some(Err(PublishError::Busy))), "two wait, of 30 MiB each, and {refused:?}");
    waiting.pop();
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
    assert_eq!(log.topics().await.unwrap()[0].partitions[0].next, 123);
    log.publish(batch()).await.unwrap();
}
