//! The thread of one function: a member of its group, its producer, and the units that it owns.
//!
//! One thread polls, serves changes of the group, and commits. So what a commit's positions are checked against is read
//! after all changes that are known here, and no change comes between.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{Progress, Stream, StreamProgress};
use rdkafka::Offset;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::clients::{
    Change, Clients, MemberContext, Quiet, REQUEST_TIMEOUT, Shared, lock, partitions, remove, serve,
    unreachable_broker, unsigned,
};
use super::metadata::Decoded;
use super::partition::{self, Inbox, KafkaPartition};
use super::recent::Recent;
use super::redrive::Redrives;
use super::values::KafkaState;
use super::writer::Writer;
use super::{metadata, native};
use crate::broker::frame::Corrupt;
use crate::broker::{Assignment, Commit, CommitOutcome, Error, GroupFigures, Subscription};
use crate::clock::Clock;

use commit::Twin;
use taking::Located;

pub(super) mod commit;
mod remember;
mod taking;

/// How often the group's events are looked for when nothing else happens.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Before something that the broker refused is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long leaving the group may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Commits and wake-ups that may wait: one commit of each unit, and some more.
const QUEUE_REQUESTS: usize = 2 * limits::PARTITIONS_MAX as usize;

/// What the thread is asked for.
pub(super) enum Request {
    /// A queue is no longer empty.
    Wake,
    /// A commit of one unit.
    Commit(Box<Pending>),
    /// One log of a unit is to be read from here on, after librdkafka has given it up.
    Restart { unit: (Topic, u32), epoch: u64, stream: Stream, at: u64 },
    /// Where partitions go on that were assigned.
    TakeUp(Located),
    /// What was assigned cannot be restored.
    Fail(Error),
}

/// A commit on its way.
pub(super) struct Pending {
    pub(super) unit: (Topic, u32),
    pub(super) epoch: u64,
    pub(super) source_id: Option<native::TopicId>,
    pub(super) commit: Commit,
    pub(super) reply: oneshot::Sender<Result<CommitOutcome, Error>>,
}

/// A committed position.
pub(super) struct Committed {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    /// None if nothing is committed.
    pub(super) progress: Option<Progress>,
    /// Whether it was committed by us, with all that belongs to it.
    pub(super) is_whole: bool,
    /// Whether the progress is only the positions and sums of what was committed; the rest is to be looked for.
    pub(super) is_short: bool,
    /// Idempotency keys that are with the position alone.
    pub(super) recent: Recent,
}

/// What a member is made of.
pub(super) struct Joining {
    pub(super) clients: Arc<Clients>,
    pub(super) observer: Shared<Quiet>,
    pub(super) admin: Arc<AdminClient<Quiet>>,
    pub(super) redrives: Arc<Redrives>,
    pub(super) subscription: Subscription,
    pub(super) assignments: mpsc::Sender<Assignment<KafkaPartition>>,
    /// Units of the function in all.
    pub(super) siblings: usize,
    pub(super) runtime: Handle,
    pub(super) clock: Clock,
    pub(super) figures: Arc<Mutex<GroupFigures>>,
    /// Why the function has stopped while others go on.
    pub(super) stopped: Arc<OnceLock<String>>,
    pub(super) twin: Twin,
    /// What the process must stop for.
    pub(super) failure: watch::Sender<Option<Error>>,
    /// Dropped when the thread has ended.
    pub(super) _ending: mpsc::Sender<()>,
}

/// A unit that is owned now.
struct Owned {
    epoch: u64,
    revoked: watch::Sender<bool>,
    inbox: Arc<Inbox>,
    /// Commits so far: the next one has one more.
    commits: u64,
    /// Idempotency keys that are with its position alone.
    recent: Recent,
    /// Its position as it is committed: an offset and metadata.
    position: (u64, String),
    state: KafkaState,
    /// Something is wrong with its commits, or with those that they were made together with: how often they failed alone since.
    suspect: Option<u32>,
}

struct Member {
    joining: Joining,
    consumer: Shared<MemberContext>,
    writer: Writer,
    owned: BTreeMap<(Topic, u32), Owned>,
    /// Units that the group assigned, and of which it is not known yet where they go on: each with its epoch.
    awaited: BTreeMap<(Topic, u32), u64>,
    /// Partitions of topics that records go to, and when they were asked for.
    counts: (BTreeMap<String, u32>, Instant),
    /// Commits of several units are one transaction up to here.
    transaction_bytes: usize,
    epoch: u64,
    requests: Receiver<Request>,
    sender: SyncSender<Request>,
}

/// Starts the thread.
pub(super) fn start(joining: Joining) -> Result<(), Error> {
    let (sender, requests) = sync_channel(QUEUE_REQUESTS);
    let consumer = consumer(&joining, &sender)?;
    let id = joining.clients.names.transactional_id(&joining.subscription.function);
    let writer = Writer::new(Arc::clone(&joining.clients), id);
    let name = format!("kafka-{}", joining.subscription.function.function());
    let counts = (BTreeMap::new(), Instant::now());
    let (owned, awaited) = (BTreeMap::new(), BTreeMap::new());
    let transaction_bytes = commit::TRANSACTION_MAX_BYTES;
    let member =
        Member { joining, consumer, writer, owned, awaited, counts, transaction_bytes, epoch: 0, requests, sender };
    let bug = Bug(member.joining.failure.clone());
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        member.run();
        drop(bug);
    });
    thread.map(drop).map_err(|e| Error::Fatal(format!("no thread can be started: {e}")))
}

/// A bug in the thread stops the process, as one in a worker does.
struct Bug(watch::Sender<Option<Error>>);

impl Drop for Bug {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send_replace(Some(Error::Fatal("a thread of Kafka's ended abruptly".to_owned())));
        }
    }
}

fn consumer(joining: &Joining, requests: &SyncSender<Request>) -> Result<Shared<MemberContext>, Error> {
    let Joining { clients, subscription, .. } = joining;
    let mut consumer = clients.member(&clients.names.group(&subscription.function), joining.siblings)?;
    let wake = requests.clone();
    // Whoever cannot be woken has enough to do already.
    consumer.set_nonempty_callback(move || drop(wake.try_send(Request::Wake)));
    Ok(Arc::new(consumer))
}

impl Member {
    fn run(mut self) {
        let name = self.function().clone();
        let mut joined = false;
        while !self.joining.assignments.is_closed() {
            let turn = if joined { self.turn() } else { self.join().map(|()| joined = true) };
            if let Err(error) = turn {
                match error {
                    Error::Transient(_) => {}
                    Error::Fatal(_) => {
                        self.joining.failure.send_replace(Some(error));
                        break;
                    }
                    Error::Stopped(reason) => {
                        tell_stopped(&name, &self.joining.stopped, reason);
                        break;
                    }
                }
                tracing::warn!(function = %name, %error, "Its clients of Kafka are replaced.");
                self.lose_all();
                match consumer(&self.joining, &self.sender) {
                    Ok(consumer) => close(std::mem::replace(&mut self.consumer, consumer)),
                    Err(error) => tracing::error!(function = %name, %error, "Its clients of Kafka cannot be made."),
                }
                joined = false;
                std::thread::park_timeout(PAUSE);
            }
        }
        if self.joining.assignments.is_closed() {
            self.put_keys_away();
        }
        self.lose_all();
        while let Ok(request) = self.requests.try_recv() {
            // Dropping a commit answers that its unit is lost.
            drop(request);
        }
        let Self { consumer, writer, joining, .. } = self;
        close(consumer);
        drop((writer, joining));
        tracing::debug!(function = %name, "It has left its group.");
    }

    fn function(&self) -> &FunctionName {
        &self.joining.subscription.function
    }

    fn figures(&self) -> MutexGuard<'_, GroupFigures> {
        lock(&self.joining.figures)
    }

    /// Fences whoever has the same identity, then joins the group.
    fn join(&mut self) -> Result<(), Error> {
        if !self.writer.is_ready() {
            self.writer.renew()?;
        }
        let topics: Vec<&str> = self.joining.subscription.topics.iter().map(Topic::as_str).collect();
        self.consumer.subscribe(&topics).map_err(|e| unreachable_broker("subscribe", &e))
    }

    /// Serves what happened in the group, waits for requests, and does what they ask.
    fn turn(&mut self) -> Result<(), Error> {
        self.poll()?;
        let mut commits = Vec::new();
        let mut next = self.requests.recv_timeout(POLL_INTERVAL).ok();
        while let Some(request) = next {
            match request {
                Request::Wake => {}
                Request::Commit(pending) => {
                    if commits.is_empty() {
                        self.writer.wait_for_markers();
                    }
                    commits.push(*pending);
                }
                Request::Restart { unit, epoch, stream, at } => {
                    // librdkafka would take that for the answer to a change of the group which was not served yet.
                    self.poll()?;
                    self.restart(&unit, epoch, (stream, at))?;
                }
                Request::TakeUp(located) => self.located(located)?,
                Request::Fail(error) => return Err(error),
            }
            next = self.requests.try_recv().ok();
        }
        if !commits.is_empty() {
            self.poll()?;
            self.commit(commits)?;
        }
        Ok(())
    }

    /// Serves all events of its consumer, and of the one for redrives.
    fn poll(&mut self) -> Result<(), Error> {
        let consumer = Arc::clone(&self.consumer);
        loop {
            let idle = serve(&consumer)?;
            match consumer.context().next_change() {
                Some(Change::Assigned(units)) => self.assigned(units)?,
                Some(Change::Revoked(units)) => self.revoked(units)?,
                None if idle => break,
                None => {}
            }
        }
        self.joining.redrives.poll()
    }

    /// Reads one log of a unit from an offset on, as if it had just been assigned.
    fn restart(&mut self, unit: &(Topic, u32), epoch: u64, (stream, at): (Stream, u64)) -> Result<(), Error> {
        let owned = self.owned.get(unit).filter(|owned| owned.epoch == epoch);
        owned.map_or(Ok(()), |owned| owned.inbox.restart(stream, at))
    }

    fn lose(&mut self, unit: &(Topic, u32)) {
        if let Some(owned) = self.owned.remove(unit) {
            owned.lose();
            self.figures().revoked += 1;
        }
    }

    fn lose_all(&mut self) {
        let awaited = std::mem::take(&mut self.awaited);
        self.figures().revoked += (self.owned.len() + awaited.len()) as u64;
        std::mem::take(&mut self.owned).into_values().for_each(Owned::lose);
    }

    /// What is committed and stable. What somebody else committed, such as an operator's tool, is a position without
    /// progress.
    fn committed(&self, wanted: &[(Topic, u32)]) -> Result<Vec<Committed>, Error> {
        committed(&self.consumer, self.function(), wanted)
    }
}

impl Owned {
    /// Nothing of it can be committed from now on.
    fn lose(self) {
        self.revoked.send_replace(true);
        self.inbox.close();
    }
}

/// Progress of a unit that never ran.
pub(super) fn progress_from(offset: u64) -> Progress {
    let source = StreamProgress { start: offset, resume: offset, ..StreamProgress::default() };
    Progress { source, ..Progress::default() }
}

/// What a group committed.
pub(super) fn committed<C: rdkafka::consumer::ConsumerContext>(
    consumer: &BaseConsumer<C>,
    function: &FunctionName,
    wanted: &[(Topic, u32)],
) -> Result<Vec<Committed>, Error> {
    let list = partitions(wanted.iter().map(|(topic, partition)| (topic.as_str(), *partition, Offset::Invalid)));
    let found = consumer.committed_offsets(list, REQUEST_TIMEOUT);
    let found = found.map_err(|e| unreachable_broker("tell what is committed", &e))?;
    let mut all = Vec::with_capacity(wanted.len());
    for element in found.elements() {
        element.error().map_err(|e| unreachable_broker("tell what is committed", &e))?;
        let topic = Topic::new(element.topic().to_owned()).map_err(|e| Error::Fatal(e.to_string()))?;
        let unit = Unit { function: function.clone(), topic, partition: unsigned(element.partition()) };
        let offset = match element.offset() {
            Offset::Offset(offset) => u64::try_from(offset).ok(),
            _ => None,
        };
        all.push(Committed::read(&unit, offset.map(|offset| (offset, element.metadata())))?);
    }
    Ok(all)
}

impl Committed {
    /// What was committed for a unit: an offset and its metadata.
    ///
    /// # Errors
    /// If a newer version committed it: to go on from the offset alone would forget what it remembers.
    pub(super) fn read(unit: &Unit, position: Option<(u64, &str)>) -> Result<Self, Error> {
        let mut found = Self {
            topic: unit.topic.clone(),
            partition: unit.partition,
            progress: None,
            is_whole: false,
            is_short: false,
            recent: Recent::default(),
        };
        let Some((offset, metadata)) = position else { return Ok(found) };
        match metadata::decode(unit, metadata) {
            Ok(Decoded { progress, is_short, recent }) if progress.source.resume == offset => {
                return Ok(Self { progress: Some(progress), is_whole: true, is_short, recent, ..found });
            }
            Ok(_) => {}
            Err(error @ Corrupt::Newer { .. }) => {
                return Err(Error::Transient(format!("the position of {unit}: {error}; update this instance")));
            }
            Err(error) => {
                tracing::warn!(%unit, offset, %error, "The position was set by somebody else; accounts begin there.");
            }
        }
        found.progress = Some(progress_from(offset));
        Ok(found)
    }
}

/// A function ends on its own, and says why.
pub(super) fn tell_stopped(function: &FunctionName, stopped: &OnceLock<String>, reason: String) {
    tracing::error!(%function, reason, "It stops, and others go on.");
    // Whatever came first is the reason.
    drop(stopped.set(reason));
}

/// Leaves the group, within a bound.
fn close(consumer: Shared<MemberContext>) {
    partition::close(consumer, CLOSE_TIMEOUT, |consumer| {
        while let Some(change) = consumer.context().next_change() {
            let (Change::Assigned(units) | Change::Revoked(units)) = change;
            let units = units.into_iter().filter_map(|(topic, partition)| Some((Topic::new(topic).ok()?, partition)));
            if let Err(error) = remove(consumer, &units.collect::<Vec<_>>()) {
                tracing::debug!(%error, "librdkafka");
            }
        }
    });
}

/// Whether what was read of a member can be sent.
fn is_member(consumer: &BaseConsumer<MemberContext>) -> bool {
    !consumer.assignment_lost() && native::is_member(consumer)
}
