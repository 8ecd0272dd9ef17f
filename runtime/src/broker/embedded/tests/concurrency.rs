use std::collections::BTreeMap;

use super::super::EmbeddedLog;
use super::support::*;
use crate::broker::{Broker, Catalog, Outgoing, Partition, Placement, Placing, PublishError};

const PUBLISHERS: u32 = 16;
const BATCHES: u32 = 40;

/// Publishes batches to both partitions; answers with what was acknowledged.
async fn publisher(log: EmbeddedLog, number: u32) -> Vec<(Placement, String)> {
    let mut acknowledged = Vec::new();
    for batch in 0..BATCHES {
        let values: Vec<_> = (0..5).map(|i| format!("{number}/{batch}/{i}")).collect();
        let record = |(i, value): (u32, &String)| Outgoing {
            placing: Placing::Hash(number + i),
            ..outgoing("orders", 0, value)
        };
        let placements = loop {
            match log.publish((0..).zip(&values).map(record).collect()).await {
                Ok(placements) => break placements,
                Err(PublishError::Busy) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        };
        acknowledged.extend(placements.into_iter().zip(values));
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn offsets_are_dense_and_everybody_reads_the_same() {
    let (dir, log) = orders().await;
    let assigned = assignments(&log, subscription("shop.pay", &["orders"])).await;
    let total = u64::from(PUBLISHERS * BATCHES * 5);
    let readers = assigned.into_iter().map(|mut assignment| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut read = Vec::new();
            let number = assignment.partition.unit().partition;
            while (read.len() as u64) < total / 2 {
                let fetched = assignment.partition.fetch(wanted(read.len() as u64)).await.unwrap();
                let end = log.topics().await.unwrap().into_iter().find(|t| t.name == "orders").unwrap();
                assert!(fetched.next <= end.partitions[number as usize].next, "only durable records are fetched");
                read.extend(texts(&fetched));
            }
            (number, read)
        })
    });
    let readers: Vec<_> = readers.collect();
    let publishers: Vec<_> = (0..PUBLISHERS).map(|n| tokio::spawn(publisher(log.clone(), n))).collect();
    let mut acknowledged = BTreeMap::new();
    for publisher in publishers {
        for (placement, value) in publisher.await.unwrap() {
            let previous = acknowledged.insert((placement.partition, placement.offset), value);
            assert_eq!(previous, None, "each offset is given once");
        }
    }
    let mut fetched = BTreeMap::new();
    for reader in readers {
        let (partition, read) = reader.await.unwrap();
        assert!(read.iter().map(|(offset, _)| *offset).eq(0..total / 2), "offsets are dense");
        fetched.extend(read.into_iter().map(|(offset, value)| ((partition, offset), value)));
    }
    assert_eq!(fetched, acknowledged);
    let log = reopen(&dir, log);
    for partition in 0..2 {
        for (offset, value) in all(&log, "orders", partition).await {
            assert_eq!(acknowledged.remove(&(partition, offset)), Some(value));
        }
    }
    assert!(acknowledged.is_empty(), "all that was acknowledged is there after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn units_commit_side_by_side() {
    let (_dir, log) = orders().await;
    log.create_topic(topic("out"), 1).await.unwrap();
    for _ in 0..50 {
        publish(&log, "orders", 0, &["a", "b"]).await;
    }
    let workers = (0..8).map(|n| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut assignment = assigned(&log, &format!("shop.f{n}")).await;
            let mut progress = assignment.restored.progress.clone();
            while progress.source.resume < 100 {
                let wanted = crate::broker::Wanted { max_records: 3, ..wanted(progress.source.resume) };
                let fetched = assignment.partition.fetch(wanted).await.unwrap();
                progress = after(&progress, fetched.records.len() as u64);
                let mut next = commit(&progress);
                next.outputs =
                    texts(&fetched).iter().map(|(o, t)| outgoing("out", 0, &format!("{n}/{o}/{t}"))).collect();
                commits(&mut assignment.partition, next).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut outputs: Vec<_> = all(&log, "out", 0).await.into_iter().map(|(_, text)| text).collect();
    outputs.sort();
    let text = |o| if o % 2 == 0 { "a" } else { "b" };
    let mut expected: Vec<_> = (0..8).flat_map(|n| (0..100).map(move |o| format!("{n}/{o}/{}", text(o)))).collect();
    expected.sort();
    assert_eq!(outputs, expected);
}
