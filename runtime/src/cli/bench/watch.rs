//! A reader of outputs that times the way of each event.

use std::sync::Arc;

use hdrhistogram::Histogram;
use millrace_core::codec::{self, Place};
use millrace_core::idempotency::Bounds;
use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::policy::StartAt;
use millrace_core::record::Record;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::load::Load;
use crate::broker::{Broker as _, Partition, Subscription, Told, Wanted};
use crate::cli::error::Error;
use crate::server::Server;

/// Readers of all partitions of all outputs.
pub(super) struct Watching {
    stop: watch::Sender<bool>,
    readers: JoinSet<Histogram<u64>>,
}

/// Begins to read outputs. It reads as a function would, so that it hears of a commit when any other reader does.
pub(super) async fn start(server: &Server, outputs: Vec<Topic>, load: &Arc<Load>) -> Result<Watching, Error> {
    let (stop, stopped) = watch::channel(false);
    let mut readers = JoinSet::new();
    if outputs.is_empty() {
        return Ok(Watching { stop, readers });
    }
    let function = FunctionName::new("millrace", "bench").map_err(|e| Error::failed(e, ""))?;
    let subscription = Subscription {
        function,
        topics: outputs,
        from: StartAt::Earliest,
        window: Bounds::default(),
        told: Told::default(),
    };
    let assignments = server.log().subscribe(subscription).await;
    let mut assignments = assignments.map_err(|e| Error::failed(e, ""))?;
    let (load, stopped) = (Arc::clone(load), stopped);
    readers.spawn(async move {
        let mut partitions = JoinSet::new();
        let mut stopping = stopped.clone();
        loop {
            tokio::select! {
                assigned = assignments.recv() => {
                    let Some(assignment) = assigned else { break };
                    partitions.spawn(read(assignment.partition, Arc::clone(&load), stopped.clone()));
                }
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        partitions.join_all().await.iter().fold(empty(), |mut all, one| {
            all += one;
            all
        })
    });
    Ok(Watching { stop, readers })
}

impl Watching {
    /// Ends reading; none if nothing was seen.
    pub(super) async fn finish(self) -> Option<Histogram<u64>> {
        self.stop.send(true).ok();
        let mut all = empty();
        for one in self.readers.join_all().await {
            all += one;
        }
        (!all.is_empty()).then_some(all)
    }
}

/// Nanoseconds in three digits, growing as far as it must.
fn empty() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, u64::from(u32::MAX), 3).expect("the bounds are sound");
    histogram.auto(true);
    histogram
}

async fn read<P: Partition>(mut partition: P, load: Arc<Load>, mut stop: watch::Receiver<bool>) -> Histogram<u64> {
    let mut seen = empty();
    let topic = partition.unit().topic.clone();
    let mut wanted = Wanted { source: Some(0), redrive: None, max_records: 1000, max_bytes: limits::FETCH_MAX_BYTES };
    loop {
        let fetched = tokio::select! {
            fetched = partition.fetch(wanted) => fetched,
            _ = stop.wait_for(|stop| *stop) => return seen,
        };
        let Ok(fetched) = fetched else { return seen };
        for (offset, record) in &fetched.records {
            let place = Place { topic: &topic, partition: partition.unit().partition, offset: *offset };
            let age = number(record, place).and_then(|number| load.age(number));
            let nanos = age.map(|age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
            nanos.into_iter().for_each(|nanos| seen.saturating_record(nanos));
        }
        wanted.source = Some(fetched.next);
    }
}

/// The number of the event that caused this one: the last part of its id.
fn number(record: &Record, place: Place<'_>) -> Option<u64> {
    let event = codec::decode(record, place).ok()?;
    event.extension("causationid")?.rsplit('-').next()?.parse().ok()
}
