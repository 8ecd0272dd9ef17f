//! Units that were assigned are handed over once they remember what is committed, while the function's thread goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use millrace_core::idempotency::{Bounds, Window};
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{Progress, StreamProgress};
use millrace_core::record::Record;
use rdkafka::admin::AdminClient;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::{Joining, Member, PAUSE, Request};
use crate::broker::kafka::KafkaPartition;
use crate::broker::kafka::clients::{Clients, Quiet, Shared, lock};
use crate::broker::kafka::growth::Growth;
use crate::broker::kafka::native::TopicId;
use crate::broker::kafka::overflow;
use crate::broker::kafka::recent::Recent;
use crate::broker::kafka::restore::{Past, Stored};
use crate::broker::kafka::values::Values;
use crate::broker::{Assignment, Error, GroupFigures, Restored};
use crate::clock::Clock;

/// A unit whose worker cannot start yet.
pub(super) struct Restoring {
    pub(super) partition: KafkaPartition,
    pub(super) progress: Progress,
    /// Whether the position of the redrive log is known.
    pub(super) is_whole: bool,
    /// Whether the rest of its progress is to be looked for.
    pub(super) is_short: bool,
    /// Idempotency keys that are with its position alone.
    pub(super) recent: Recent,
    pub(super) revoked: watch::Receiver<bool>,
}

/// What is read of some units of one source topic before they are handed over.
struct Remembering {
    clients: Arc<Clients>,
    observer: Shared<Quiet>,
    admin: Arc<AdminClient<Quiet>>,
    runtime: Handle,
    clock: Clock,
    figures: Arc<Mutex<GroupFigures>>,
    function: FunctionName,
    topic: Topic,
    window: Bounds,
    siblings: usize,
    assignments: mpsc::Sender<Assignment<KafkaPartition>>,
    /// By partition: whether it was lost meanwhile.
    revoked: BTreeMap<u32, watch::Receiver<bool>>,
    /// Those of which the position in the redrive log is lost.
    adrift: Vec<u32>,
    /// Those of which not all progress is with the position, with the number of the commit that has it.
    short: BTreeMap<u32, u64>,
    /// Idempotency keys that are with positions alone.
    recent: BTreeMap<u32, Recent>,
}

/// What was found, by partition.
#[derive(Default)]
struct Remembered {
    source_id: Option<TopicId>,
    windows: BTreeMap<u32, Window>,
    values: BTreeMap<u32, Values>,
    redrives: BTreeMap<u32, StreamProgress>,
    progress: BTreeMap<u32, Progress>,
}

impl Member {
    /// Reads what units remember, while this thread goes on, and hands them over.
    pub(super) fn restore(&self, topic: Topic, units: Vec<Restoring>) {
        let Joining { clients, observer, admin, runtime, clock, figures, subscription, siblings, assignments, .. } =
            &self.joining;
        let reading = Remembering {
            clients: Arc::clone(clients),
            observer: Arc::clone(observer),
            admin: Arc::clone(admin),
            runtime: runtime.clone(),
            clock: *clock,
            figures: Arc::clone(figures),
            function: self.function().clone(),
            topic,
            window: subscription.window,
            siblings: *siblings,
            assignments: assignments.clone(),
            revoked: units.iter().map(|one| (one.partition.unit.partition, one.revoked.clone())).collect(),
            adrift: units.iter().filter(|one| !one.is_whole).map(|one| one.partition.unit.partition).collect(),
            short: units
                .iter()
                .filter(|one| one.is_short)
                .map(|one| (one.partition.unit.partition, one.progress.commits))
                .collect(),
            recent: units.iter().map(|one| (one.partition.unit.partition, one.recent.clone())).collect(),
        };
        let requests = self.sender.clone();
        let waiting = units.len() as u64;
        self.figures().restoring += waiting;
        runtime.spawn_blocking(move || {
            let remembered = reading.remembered();
            lock(&reading.figures).restoring -= waiting;
            match remembered {
                Ok(remembered) => reading.hand_over(units, remembered),
                // A thread that has ended restores nothing.
                Err(error) => drop(requests.send(Request::Fail(error))),
            }
        });
    }
}

impl Remembering {
    /// Tries until it has read all that anybody waits for. Blocks.
    fn remembered(&self) -> Result<Remembered, Error> {
        let Self { function, topic, .. } = self;
        let began = Instant::now();
        while self.revoked.keys().any(|partition| self.is_wanted(*partition)) {
            match self.read() {
                Ok((found, records)) => {
                    let keys: usize = found.windows.values().map(Window::len).sum();
                    let (partitions, took) = (found.windows.len(), began.elapsed());
                    lock(&self.figures).last_restore = took;
                    tracing::info!(%function, %topic, partitions, keys, records, ?took, "Restored.");
                    return Ok(found);
                }
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    tracing::warn!(%function, %topic, %error, "Idempotency keys and state could not be read; it is tried again.");
                }
            }
            std::thread::park_timeout(PAUSE);
        }
        tracing::debug!(%function, %topic, "What was to be restored is lost.");
        Ok(Remembered::default())
    }

    /// And how many records it was read from.
    fn read(&self) -> Result<(Remembered, u64), Error> {
        let Self { clients, observer, admin, runtime, function, topic, window, siblings, .. } = self;
        Growth { clients, admin, observer, runtime }.follow(function, topic)?;
        let is_wanted = |partition| self.is_wanted(partition);
        let count = |records| lock(&self.figures).restored_records += records;
        let past = Past { clients, function, source: topic, is_wanted: &is_wanted, count: &count };
        let wanted: Vec<u32> = self.revoked.keys().copied().filter(|partition| is_wanted(*partition)).collect();
        let mut windows = wanted.iter().map(|partition| (*partition, window.window(*siblings))).collect();
        let (source_id, oldest) = (past.source_id()?, window.oldest(self.clock.now()));
        let blocks = past.keys(source_id, oldest, &mut windows)?;
        for (partition, window) in &mut windows {
            let recent = self.recent.get(partition).into_iter().flat_map(|recent| recent.commits_of(source_id));
            recent.filter(|(at, _)| *at >= oldest).for_each(|(at, keys)| window.insert(at, keys));
        }
        let Stored { values, overflow, records } = past.stored(&wanted)?;
        let progress = self.in_full(&wanted, &overflow)?;
        let redrives = if self.adrift.is_empty() { BTreeMap::new() } else { past.redrives(&self.adrift)? };
        Ok((Remembered { source_id: Some(source_id), windows, values, redrives, progress }, blocks + records))
    }

    /// All progress of those whose position has only a part of it. Without the rest, what is settled would be done again.
    fn in_full(&self, wanted: &[u32], overflow: &BTreeMap<u32, Record>) -> Result<BTreeMap<u32, Progress>, Error> {
        let mut all = BTreeMap::new();
        for (partition, commits) in self.short.iter().filter(|(partition, _)| wanted.contains(partition)) {
            let unit = Unit { function: self.function.clone(), topic: self.topic.clone(), partition: *partition };
            let found = overflow.get(partition).and_then(|record| overflow::take(&unit, record, *commits));
            let missing = || format!("the progress of {unit} in its commit {commits} is not in the topic of its state");
            all.insert(*partition, found.ok_or_else(|| Error::Transient(missing()))?);
        }
        Ok(all)
    }

    fn is_wanted(&self, partition: u32) -> bool {
        !self.assignments.is_closed() && self.revoked.get(&partition).is_some_and(|revoked| !*revoked.borrow())
    }

    /// Those that are still owned; of the others not all was read.
    fn hand_over(&self, units: Vec<Restoring>, mut found: Remembered) {
        for Restoring { mut partition, mut progress, revoked, .. } in units {
            let number = partition.unit.partition;
            let Some(keys) = found.windows.remove(&number).filter(|_| self.is_wanted(number)) else { continue };
            partition.source_id = found.source_id;
            partition.state.restore(found.values.remove(&number).unwrap_or_default());
            progress = found.progress.remove(&number).unwrap_or(progress);
            if let Some(redrive) = found.redrives.remove(&number) {
                tracing::info!(unit = %partition.unit, resume = redrive.resume, "Its position in the redrive log is worked out anew.");
                progress.redrive = redrive;
            }
            let restored = Restored { progress, keys };
            let assignment = Assignment { partition, restored, siblings: self.siblings, revoked };
            // Whoever no longer takes assignments needs none.
            drop(self.assignments.blocking_send(assignment));
        }
    }
}
