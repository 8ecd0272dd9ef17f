//! A broker whose disk is the world, and which fails as often as the world wants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace::broker::{
    Assignment, Broker, Commit, CommitOutcome, Error, FetchError, Fetched, Outgoing, Partition, Placement, Placing,
    PublishError, StateReader, Subscription, Wanted,
};
use millrace::clock::Clock;
use millrace_core::name::Unit;
use millrace_core::progress::Stream;
use millrace_core::record::Record;
use tokio::sync::{Notify, mpsc, watch};

use super::world::{Pending, Shared, lock};

/// What a record must carry so that the broker refuses it.
pub(super) const REFUSED_HEADER: &str = "ce_refused";

/// One connection of one life of the process.
#[derive(Debug)]
pub(super) struct SimBroker {
    pub(super) world: Shared,
    pub(super) clock: Clock,
    /// Told when something was appended.
    pub(super) appended: Arc<Notify>,
    /// Who owns what, and how to take it away.
    pub(super) owners: Mutex<Vec<Owner>>,
}

#[derive(Debug)]
pub(super) struct Owner {
    unit: Unit,
    siblings: usize,
    revoked: watch::Sender<bool>,
    assignments: mpsc::Sender<Assignment<SimPartition>>,
}

#[derive(Debug)]
pub(super) struct SimPartition {
    unit: Unit,
    world: Shared,
    clock: Clock,
    /// Wakes waiters in their order. A watch channel would wake them in a random one.
    appended: Arc<Notify>,
    revoked: watch::Receiver<bool>,
}

impl Broker for SimBroker {
    type Partition = SimPartition;

    async fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        let mut world = lock(&self.world);
        world.now = self.clock.now();
        let placements = records
            .into_iter()
            .map(|Outgoing { topic, placing, record }| {
                let Placing::Hash(hash) = placing else { panic!("the simulation publishes by hash") };
                let (partition, offset) = world.append(&topic, hash, record);
                Placement { partition, offset }
            })
            .collect();
        self.appended.notify_waiters();
        Ok(placements)
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<mpsc::Receiver<Assignment<SimPartition>>, Error> {
        let (sender, receiver) = mpsc::channel(64);
        let partitions = lock(&self.world).partitions;
        let siblings = subscription.topics.len() * partitions as usize;
        for topic in subscription.topics {
            for partition in 0..partitions {
                let unit = Unit { function: subscription.function.clone(), topic: topic.clone(), partition };
                self.assign(unit, siblings, &sender);
            }
        }
        Ok(receiver)
    }
}

impl SimBroker {
    fn assign(&self, unit: Unit, siblings: usize, assignments: &mpsc::Sender<Assignment<SimPartition>>) {
        let revoked = watch::Sender::new(false);
        let assignment = Assignment {
            restored: lock(&self.world).restored(&unit),
            siblings,
            revoked: revoked.subscribe(),
            partition: SimPartition {
                unit: unit.clone(),
                world: Arc::clone(&self.world),
                clock: self.clock,
                appended: Arc::clone(&self.appended),
                revoked: revoked.subscribe(),
            },
        };
        // A supervisor that is gone takes no more assignments.
        if assignments.try_send(assignment).is_ok() {
            let owner = Owner { unit, siblings, revoked, assignments: assignments.clone() };
            self.owners.lock().expect("nothing panics meanwhile").push(owner);
        }
    }

    /// Takes a partition away from its owner, in the middle of whatever it does, and assigns it anew.
    pub(super) fn rebalance(&self) {
        let owner = {
            let mut owners = self.owners.lock().expect("nothing panics meanwhile");
            if owners.is_empty() {
                return;
            }
            let at = lock(&self.world).rng.below(owners.len() as u64);
            owners.remove(usize::try_from(at).expect("an index"))
        };
        let mut world = lock(&self.world);
        world.now = self.clock.now();
        world.revoke(&owner.unit);
        drop(world);
        owner.revoked.send_replace(true);
        self.assign(owner.unit, owner.siblings, &owner.assignments);
    }
}

impl SimPartition {
    fn available(&self, wanted: &Wanted) -> Option<Fetched> {
        let mut world = lock(&self.world);
        world.now = self.clock.now();
        let max = usize::try_from(world.rng.between(1, 12)).expect("small").min(wanted.max_records);
        let partition = usize::try_from(self.unit.partition).expect("few partitions");
        let source_first = world.rng.percent(50);
        let redrive_key = (self.unit.topic.clone(), self.unit.partition);
        let source = wanted.source.map(|from| (Stream::Source, from));
        let redrive = wanted.redrive.map(|from| (Stream::Redrive, from));
        let order = if source_first { [source, redrive] } else { [redrive, source] };
        for (stream, from) in order.into_iter().flatten() {
            let none = Vec::new();
            let records: &Vec<Record> = match stream {
                Stream::Source => &world.log(&self.unit.topic)[partition],
                Stream::Redrive => world.redrive.get(&redrive_key).unwrap_or(&none),
            };
            let start = usize::try_from(from).expect("an index");
            if start < records.len() {
                let taken: Vec<_> = (from..).zip(records[start..].iter().cloned()).take(max).collect();
                let next = from + taken.len() as u64;
                return Some(Fetched { stream, records: taken, next });
            }
        }
        None
    }
}

/// Reads the disk as it is when the answer comes, sometimes late and sometimes not at all.
#[derive(Clone, Debug)]
pub(super) struct SimState {
    unit: Unit,
    world: Shared,
    clock: Clock,
}

impl SimState {
    async fn read<T>(self, read: impl FnOnce(&BTreeMap<ByteString, Bytes>) -> T) -> Result<T, Error> {
        let (failed, delay) = {
            let mut world = lock(&self.world);
            world.now = self.clock.now();
            let (failed_percent, slow_percent) = (world.faults.fetch_failed, world.faults.slow);
            let failed = world.rng.percent(failed_percent);
            (failed, if world.rng.percent(slow_percent) { world.rng.between(5, 50) } else { world.rng.below(2) })
        };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        if failed {
            return Err(Error::Transient("the simulated state cannot be read".into()));
        }
        let nothing = BTreeMap::new();
        Ok(read(lock(&self.world).units.get(&self.unit).map_or(&nothing, |stored| &stored.state)))
    }
}

impl StateReader for SimState {
    fn get(&self, keys: Vec<ByteString>) -> impl Future<Output = Result<Vec<Option<Bytes>>, Error>> + Send + 'static {
        self.clone().read(move |state| keys.iter().map(|key| state.get(key).cloned()).collect())
    }

    fn keys(
        &self,
        after: Option<ByteString>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ByteString>, Error>> + Send + 'static {
        let follows = move |key: &&ByteString| after.as_ref().is_none_or(|after| *key > after);
        self.clone().read(move |state| state.keys().filter(follows).take(max).cloned().collect())
    }
}

impl Partition for SimPartition {
    type State = SimState;

    fn unit(&self) -> &Unit {
        &self.unit
    }

    fn state(&self) -> SimState {
        SimState { unit: self.unit.clone(), world: Arc::clone(&self.world), clock: self.clock }
    }

    async fn fetch(&mut self, wanted: Wanted) -> Result<Fetched, FetchError> {
        loop {
            let appended = Arc::clone(&self.appended);
            let mut appended = std::pin::pin!(appended.notified());
            appended.as_mut().enable();
            let (failed, delay) = {
                let mut world = lock(&self.world);
                let percent = world.faults.fetch_failed;
                (world.rng.percent(percent), world.rng.below(3))
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            if failed {
                return Err(Error::Transient("the simulated network is down".into()).into());
            }
            if let Some(fetched) = self.available(&wanted) {
                return Ok(fetched);
            }
            appended.await;
        }
    }

    fn commit(&mut self, commit: Commit) -> impl Future<Output = Result<CommitOutcome, Error>> + Send + 'static {
        let (world, clock, appended) = (Arc::clone(&self.world), self.clock, Arc::clone(&self.appended));
        let refused = commit.outputs.iter().any(|output| output.record.headers.last(REFUSED_HEADER).is_some());
        let (ticket, aborted, delay) = {
            let mut world = lock(&world);
            world.now = clock.now();
            let ticket = world.next_pending;
            world.next_pending += 1;
            let (abort_percent, slow_percent) = (world.faults.commit_aborted, world.faults.slow);
            // A zombie commits nothing.
            let aborted = world.rng.percent(abort_percent) || *self.revoked.borrow();
            let slow = world.rng.percent(slow_percent);
            let delay = if slow { world.rng.between(20, 300) } else { world.rng.between(0, 3) };
            if !aborted && !refused {
                world.pending.insert(ticket, Pending { unit: self.unit.clone(), commit });
            }
            (ticket, aborted, delay)
        };
        async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let mut world = lock(&world);
            world.now = clock.now();
            if aborted {
                world.note(format_args!("abort"));
                return Ok(CommitOutcome::Aborted);
            }
            if refused {
                world.note(format_args!("refuse"));
                return Ok(CommitOutcome::Refused { reason: "the simulated log does not take it".into() });
            }
            let Some(pending) = world.pending.remove(&ticket) else {
                // The partition was taken away meanwhile.
                return Ok(CommitOutcome::Aborted);
            };
            world.apply(pending);
            appended.notify_waiters();
            Ok(CommitOutcome::Committed)
        }
    }
}
