//! The broker as one instance sees it: its disk is the world, and it fails as often as the world wants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace::broker::{
    Assignment, Broker, Commit, CommitOutcome, Error, FetchError, Fetched, Outgoing, Partition, Placement,
    PublishError, StateReader, StateWrite, Subscription, Wanted,
};
use millrace_core::name::Unit;
use millrace_core::progress::Stream;
use tokio::sync::{mpsc, watch};

use super::catalog::page;
use super::group::{Group, Member};
use super::life::Life;
use super::world::{Pending, World};

/// What a record must carry so that the broker does not take it for now.
const FORBIDDEN_HEADER: &str = "ce_forbidden";

/// One instance's connection.
#[derive(Debug)]
pub struct SimBroker {
    pub(super) group: Arc<Group>,
    /// The instance's number in the group.
    pub(super) id: u32,
    pub(super) life: Life,
}

/// What a handler stored.
type State = BTreeMap<ByteString, Bytes>;

/// A partition that an instance owns, or did.
#[derive(Clone, Debug)]
pub struct SimPartition {
    unit: Unit,
    group: Arc<Group>,
    life: Life,
    /// Of the assignment: a commit of an earlier one is refused.
    epoch: u64,
    revoked: watch::Receiver<bool>,
    /// Restored on assignment, then what this owner committed.
    state: Arc<Mutex<State>>,
}

impl Broker for SimBroker {
    type Partition = SimPartition;

    async fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        self.group.publish(records)
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<mpsc::Receiver<Assignment<SimPartition>>, Error> {
        let (assignments, receiver) = mpsc::channel(64);
        let Subscription { function, topics, from, window, told: _ } = subscription;
        let mut units = Vec::new();
        for topic in topics {
            let Some(count) = self.group.world().topics.get(&topic).map(Vec::len) else {
                return Err(Error::Transient(format!("there is no topic `{topic}`: create it before")));
            };
            let partitions = 0..u32::try_from(count).expect("few partitions");
            units.extend(partitions.map(|p| Unit { function: function.clone(), topic: topic.clone(), partition: p }));
        }
        for unit in &units {
            self.group.world().begin(unit, from);
        }
        self.group.join(self.id, Member { life: self.life.clone(), assignments, window }, units);
        Ok(receiver)
    }
}

/// What becomes of a commit that was sent.
enum Admitted {
    /// It is on its way, under this number.
    Pending(u64),
    /// It is not written.
    Not(Result<CommitOutcome, Error>),
}

impl SimPartition {
    pub(super) fn new(
        group: &Arc<Group>,
        (unit, epoch): (&Unit, u64),
        life: &Life,
        revoked: watch::Receiver<bool>,
        state: State,
    ) -> Self {
        let state = Arc::new(Mutex::new(state));
        Self { unit: unit.clone(), group: Arc::clone(group), life: life.clone(), epoch, revoked, state }
    }

    fn available(&self, wanted: &Wanted) -> Option<Fetched> {
        let mut world = self.group.world();
        let max = usize::try_from(world.rng.between(1, 12)).expect("small").min(wanted.max_records);
        let source_first = world.rng.percent(50);
        let source = wanted.source.map(|from| (Stream::Source, from));
        let redrive = wanted.redrive.map(|from| (Stream::Redrive, from));
        let order = if source_first { [source, redrive] } else { [redrive, source] };
        let nothing = Vec::new();
        let pages = order.into_iter().flatten().map(|(stream, from)| {
            let log = match stream {
                Stream::Source => world.log(&self.unit.topic, self.unit.partition),
                Stream::Redrive => world.redrive.get(&self.unit).unwrap_or(&nothing),
            };
            page(stream, log, from, max)
        });
        let mut fetched = pages.into_iter().find(|page| !page.records.is_empty())?;
        within(&mut fetched, wanted.max_bytes);
        Some(fetched)
    }

    /// Takes a commit to its end, whoever waits for it: a process that is halted or killed afterwards has sent it.
    async fn carry(self, commit: Commit) -> Result<CommitOutcome, Error> {
        self.life.pass().await;
        let writes = commit.state.clone();
        let (admitted, delay) = self.admit(commit);
        tokio::time::sleep(delay).await;
        let outcome = match admitted {
            Admitted::Not(outcome) => outcome,
            Admitted::Pending(ticket) => Ok(self.conclude(ticket)),
        };
        self.group.world().note(format_args!("{} {}: {outcome:?}", self.unit, self.epoch));
        self.life.pass().await;
        if matches!(outcome, Ok(CommitOutcome::Committed)) {
            let mut state = self.state.lock().expect("nothing panics while it holds the state");
            write(&mut state, writes);
        }
        outcome
    }

    fn admit(&self, commit: Commit) -> (Admitted, Duration) {
        let mut world = self.group.world();
        let (aborted, slow) = (world.faults.commit_aborted, world.faults.slow);
        let aborted = world.rng.percent(aborted);
        let slow = world.rng.percent(slow);
        let delay = Duration::from_millis(if slow { world.rng.between(20, 300) } else { world.rng.between(0, 3) });
        let admitted = if world.epoch(&self.unit) != self.epoch {
            // A zombie commits nothing.
            world.counts.fenced += 1;
            Admitted::Not(Ok(CommitOutcome::Aborted))
        } else if aborted && world.rng.percent(30) {
            Admitted::Not(Err(Error::Transient("the simulated network is down".into())))
        } else if aborted {
            Admitted::Not(Ok(CommitOutcome::Aborted))
        } else if let Some(reason) = world.refusal(&commit) {
            Admitted::Not(Ok(CommitOutcome::Refused { reason }))
        } else if commit.outputs.iter().any(|output| output.record.headers.last(FORBIDDEN_HEADER).is_some()) {
            Admitted::Not(Ok(CommitOutcome::Forbidden { reason: "the simulated log does not take it now".into() }))
        } else {
            Admitted::Pending(world.admit(Pending { unit: self.unit.clone(), commit }))
        };
        (admitted, delay)
    }

    fn conclude(&self, ticket: u64) -> CommitOutcome {
        let mut world = self.group.world();
        // It was lost, or the partition was taken away meanwhile.
        let Some(pending) = world.pending.remove(&ticket) else { return CommitOutcome::Aborted };
        world.apply(pending);
        drop(world);
        self.group.ended.notify_waiters();
        self.group.appended.notify_waiters();
        CommitOutcome::Committed
    }
}

/// Leaves out what is more than this, except the first record.
fn within(fetched: &mut Fetched, max_bytes: usize) {
    let mut bytes = 0;
    let fits = fetched.records.iter().take_while(|(_, record)| {
        bytes += record.size_bytes();
        bytes <= max_bytes
    });
    let fits = fits.count().max(1);
    fetched.records.truncate(fits);
    fetched.next = fetched.records.last().map_or(fetched.next, |(offset, _)| offset + 1);
}

/// Changes what is stored.
pub(super) fn write(state: &mut State, writes: Vec<StateWrite>) {
    for StateWrite { key, value } in writes {
        match value {
            Some(value) => drop(state.insert(key, value)),
            None => drop(state.remove(&key)),
        }
    }
}

/// Reads what was restored and committed since, sometimes late and sometimes not at all.
#[derive(Clone, Debug)]
pub struct SimState(SimPartition);

impl SimState {
    async fn read<T>(self, read: impl FnOnce(&State) -> T) -> Result<T, Error> {
        let (failed, delay) = {
            let mut world = self.0.group.world();
            let (failed_percent, slow_percent) = (world.faults.fetch_failed, world.faults.slow);
            let failed = world.rng.percent(failed_percent);
            (failed, if world.rng.percent(slow_percent) { world.rng.between(5, 50) } else { world.rng.below(2) })
        };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        self.0.life.pass().await;
        if failed {
            return Err(Error::Transient("the simulated state cannot be read".into()));
        }
        Ok(read(&self.0.state.lock().expect("nothing panics while it holds the state")))
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
        SimState(self.clone())
    }

    async fn fetch(&mut self, wanted: Wanted) -> Result<Fetched, FetchError> {
        assert!(!*self.revoked.borrow(), "whoever knows that a partition is lost reads no more of it");
        loop {
            let mut appended = std::pin::pin!(self.group.appended.notified());
            appended.as_mut().enable();
            let (failed, delay) = {
                let world: &mut World = &mut self.group.world();
                let percent = world.faults.fetch_failed;
                (world.rng.percent(percent), world.rng.below(3))
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            self.life.pass().await;
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
        let carried = tokio::spawn(self.clone().carry(commit));
        async move { carried.await.expect("the world takes every commit that follows the one before") }
    }
}
