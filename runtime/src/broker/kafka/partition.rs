//! An owned partition: fetching from librdkafka's queue of its own, and handing commits to the thread of its function.

use std::future::Future;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_core::name::{Topic, Unit};
use millrace_core::progress::Stream;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use tokio::sync::{Notify, oneshot};

use super::clients::{self, MemberContext, Quiet, Shared, add, at, lock, remove, signed};
use super::member::{Pending, Request};
use super::native;
use super::native::TopicId;
use super::redrive::Loan;
use super::values::KafkaState;
use crate::broker::{Commit, CommitOutcome, Error, FetchError, Fetched, Partition, Wanted};

/// A seek is done by librdkafka's own thread, without asking the broker.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);
/// Most records that are taken at once, without a look at how large they are.
const TAKEN_AT_ONCE: usize = 32;

/// One log of a unit, as long as it is owned.
pub(super) struct Log {
    place: (Topic, u32),
    records: native::Records,
    /// Tells when records have arrived.
    queue: PartitionQueue<MemberContext>,
    arrived: Arc<Notify>,
    consumer: Shared<MemberContext>,
    /// Where it reads from since it was restarted, until the worker has seen that.
    restarted: Option<u64>,
    /// If the consumer is not the function's own. Dropped after the queue.
    pub(super) loan: Option<Loan>,
}

impl Log {
    /// Gives a partition's records a queue of their own; to be called before the partition is assigned.
    pub(super) fn new(
        consumer: &Shared<MemberContext>,
        place: (Topic, u32),
        arrived: &Arc<Notify>,
    ) -> Result<Self, Error> {
        let (records, queue) = split(consumer, &place)?;
        let arrived = Arc::clone(arrived);
        let mut log =
            Self { place, records, queue, arrived, consumer: Arc::clone(consumer), restarted: None, loan: None };
        log.tell();
        Ok(log)
    }

    /// Has it told when records arrive.
    fn tell(&mut self) {
        let arrived = Arc::clone(&self.arrived);
        self.queue.set_nonempty_callback(move || arrived.notify_one());
    }

    fn seek(&self, to: u64) -> KafkaResult<()> {
        let (topic, partition) = &self.place;
        self.consumer.seek(topic.as_str(), signed(*partition), at(to), SEEK_TIMEOUT)
    }

    /// Reads from an offset on, as if the partition had just been assigned. Records that were fetched before are outdated once librdkafka
    /// has given the partition back; an error of before is not, and is looked into once more.
    fn restart(&mut self, from: u64) -> Result<(), Error> {
        let (topic, partition) = self.place.clone();
        remove(&self.consumer, std::slice::from_ref(&self.place))?;
        // That of a topic that was deleted meanwhile is gone. Else it is the same, and dropping its earlier share makes it mute.
        (self.records, self.queue) = split(&self.consumer, &self.place)?;
        self.tell();
        add(&self.consumer, &[(topic, partition, from)])?;
        self.restarted = Some(from);
        self.arrived.notify_one();
        Ok(())
    }
}

/// A queue of its own for a partition that is about to be assigned.
fn split(
    consumer: &Shared<MemberContext>,
    (topic, partition): &(Topic, u32),
) -> Result<(native::Records, PartitionQueue<MemberContext>), Error> {
    let queue = consumer.split_partition_queue(topic.as_str(), signed(*partition));
    let queue = queue.ok_or_else(|| Error::Fatal(format!("{topic}/{partition} cannot have a queue of its own")))?;
    Ok((native::Records::of(consumer, topic.as_str(), *partition), queue))
}

/// Where a unit's records arrive. The thread of the function empties it when the unit is lost, so that no worker is the last
/// to hold a consumer.
pub(super) struct Inbox {
    source: Mutex<Option<Log>>,
    redrive: Mutex<Option<Log>>,
    /// Told of each record that comes where none was.
    arrived: Arc<Notify>,
}

impl Inbox {
    pub(super) fn new([source, redrive]: [Log; 2], arrived: Arc<Notify>) -> Self {
        Self { source: Mutex::new(Some(source)), redrive: Mutex::new(Some(redrive)), arrived }
    }

    /// Reads one log from an offset on, after librdkafka has given it up.
    pub(super) fn restart(&self, stream: Stream, from: u64) -> Result<(), Error> {
        lock(self.log(stream)).as_mut().map_or(Ok(()), |log| log.restart(from))
    }

    /// Lets go of the consumers.
    pub(super) fn close(&self) {
        drop(lock(&self.source).take());
        drop(lock(&self.redrive).take());
    }

    fn log(&self, stream: Stream) -> &Mutex<Option<Log>> {
        match stream {
            Stream::Source => &self.source,
            Stream::Redrive => &self.redrive,
        }
    }
}

/// One partition of a source topic and its partition of the redrive topic, owned on behalf of one function.
pub struct KafkaPartition {
    pub(super) unit: Unit,
    /// Which of the unit's assignments to this process it is.
    pub(super) epoch: u64,
    /// What its source is called by, once its keys are restored.
    pub(super) source_id: Option<TopicId>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) requests: SyncSender<Request>,
    pub(super) observer: Shared<Quiet>,
    /// What librdkafka gives next of each log.
    pub(super) expected: [Expected; 2],
    /// Which log was read last: when both have records they take turns.
    pub(super) last: Stream,
    pub(super) state: KafkaState,
}

impl std::fmt::Debug for KafkaPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPartition").field("unit", &self.unit).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What librdkafka gives next of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The record with this offset, or the first one after it.
    Next(u64),
    /// It must be told where to read.
    Unknown,
    /// The function's thread has been asked to restart the log.
    Restarting,
}

/// What to do before something is taken from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    /// Nothing: it gives what is wanted.
    Take,
    /// Nothing may be taken until the log was restarted.
    Wait,
    /// The log is to be restarted.
    Restart,
}

impl Expected {
    /// Sees to it that a queue gives what comes from an offset on.
    ///
    /// Without that nothing may be taken: the queue can hold what was fetched for another place, and what lies between that and the
    /// offset would be taken for a hole in the log. A seek is refused as outdated if librdkafka pauses or resumes the partition at the
    /// same time, as it does in a change of the group: there is a second one for that. None succeeds in a partition that was given
    /// up because its position was out of range.
    fn go_to<E: std::fmt::Display>(
        &mut self,
        wanted: u64,
        restarted: Option<u64>,
        seek: impl Fn(u64) -> Result<(), E>,
    ) -> Ready {
        match (*self, restarted) {
            (Self::Restarting, None) => return Ready::Wait,
            (Self::Restarting, Some(at)) => *self = Self::Next(at),
            (Self::Next(_) | Self::Unknown, _) => {}
        }
        if *self != Self::Next(wanted) {
            *self = Self::Unknown;
            if let Err(error) = seek(wanted).or_else(|_| seek(wanted)) {
                tracing::info!(%error, offset = wanted, "A position cannot be gone to and is taken up anew.");
                return Ready::Restart;
            }
            *self = Self::Next(wanted);
        }
        Ready::Take
    }
}

/// What a look into a queue found.
enum Taken {
    Nothing,
    Some(Fetched),
    /// The broker no longer has the offset.
    Gone(Topic),
}

impl KafkaPartition {
    fn take(&mut self, stream: Stream, wanted: u64, bounds: &Wanted) -> Result<Taken, Error> {
        let mut log = lock(self.inbox.log(stream));
        // Without a queue the unit is lost, which the worker learns otherwise.
        let Some(log) = &mut *log else { return Ok(Taken::Nothing) };
        let expected = &mut self.expected[stream as usize];
        match expected.go_to(wanted, log.restarted.take(), |to| log.seek(to)) {
            Ready::Take => {}
            Ready::Wait => return Ok(Taken::Nothing),
            Ready::Restart => {
                let unit = (self.unit.topic.clone(), self.unit.partition);
                let asked = self.requests.try_send(Request::Restart { unit, epoch: self.epoch, stream, at: wanted });
                asked.map_err(|_| Error::Transient("too many requests wait".to_owned()))?;
                *expected = Expected::Restarting;
                return Ok(Taken::Nothing);
            }
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        while records.len() < bounds.max_records && bytes <= bounds.max_bytes {
            // As many as fit if they are like those before: what was taken cannot be given back.
            let like_those =
                bytes.checked_div(records.len()).map_or(0, |each| (bounds.max_bytes - bytes) / each.max(1));
            let most = (like_those + 1).min(bounds.max_records - records.len()).min(TAKEN_AT_ONCE);
            let taken = log.records.take(most, |offset, record| {
                if offset >= wanted {
                    bytes += record.size_bytes();
                    records.push((offset, record));
                }
            });
            match taken {
                Ok(0) => break,
                Ok(_) => {}
                Err(code) => {
                    // Whatever it is, going to the offset once more shows whether it lasts.
                    *expected = Expected::Unknown;
                    if records.is_empty() {
                        return self.failed(&log.place.0, code);
                    }
                    break;
                }
            }
        }
        if records.is_empty() {
            return Ok(Taken::Nothing);
        }
        let fetched = Fetched::new(stream, wanted, records);
        if *expected != Expected::Unknown {
            *expected = Expected::Next(fetched.next);
        }
        Ok(Taken::Some(fetched))
    }

    fn failed(&self, topic: &Topic, code: RDKafkaErrorCode) -> Result<Taken, Error> {
        use RDKafkaErrorCode as Code;
        match code {
            Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::NoOffset => Ok(Taken::Gone(topic.clone())),
            _ => Err(Error::Transient(format!("{} cannot be read: {code}", self.unit))),
        }
    }

    /// Where a log begins now.
    async fn earliest(&self, topic: Topic) -> Result<u64, Error> {
        let (observer, partition) = (Arc::clone(&self.observer), self.unit.partition);
        let asking = tokio::task::spawn_blocking(move || clients::bounds(&observer, topic.as_str(), partition));
        let (earliest, _) = asking.await.map_err(|e| Error::Transient(e.to_string()))??;
        Ok(earliest)
    }
}

impl Partition for KafkaPartition {
    type State = KafkaState;

    fn state(&self) -> KafkaState {
        self.state.clone()
    }

    fn unit(&self) -> &Unit {
        &self.unit
    }

    async fn fetch(&mut self, wanted: Wanted) -> Result<Fetched, FetchError> {
        loop {
            let streams = [(Stream::Source, wanted.source), (Stream::Redrive, wanted.redrive)];
            let order = if self.last == Stream::Source { [streams[1], streams[0]] } else { streams };
            for (stream, offset) in order {
                let Some(offset) = offset else { continue };
                match self.take(stream, offset, &wanted)? {
                    Taken::Nothing => {}
                    Taken::Some(fetched) => {
                        self.last = stream;
                        return Ok(fetched);
                    }
                    Taken::Gone(topic) => {
                        let earliest = self.earliest(topic).await?;
                        if earliest > offset {
                            return Err(FetchError::Gone { stream, wanted: offset, earliest });
                        }
                        let reason = format!("{}: the broker does not know offset {offset}", self.unit);
                        return Err(Error::Transient(reason).into());
                    }
                }
            }
            self.inbox.arrived.notified().await;
        }
    }

    fn commit(&mut self, commit: Commit) -> impl Future<Output = Result<CommitOutcome, Error>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let unit = (self.unit.topic.clone(), self.unit.partition);
        let pending = Pending { unit, epoch: self.epoch, source_id: self.source_id, commit, reply };
        let decided = match self.requests.try_send(Request::Commit(Box::new(pending))) {
            Ok(()) => None,
            Err(TrySendError::Full(_)) => Some(Err(Error::Transient("too many commits wait".to_owned()))),
            Err(TrySendError::Disconnected(_)) => Some(Ok(CommitOutcome::Aborted)),
        };
        async move {
            match decided {
                Some(decided) => decided,
                // The thread has ended, and with it the ownership.
                None => answer.await.unwrap_or(Ok(CommitOutcome::Aborted)),
            }
        }
    }
}

/// A consumer that is closed within a bound, whatever the broker does.
pub(super) fn close(
    consumer: Shared<MemberContext>,
    within: Duration,
    mut serve: impl FnMut(&BaseConsumer<MemberContext>),
) {
    let deadline = std::time::Instant::now() + within;
    if let Err(error) = consumer.close_queue() {
        tracing::debug!(%error, "A consumer cannot be closed in order.");
        // After a fatal error it can only be destroyed. Until then it tells its group that it is alive, and keeps its
        // partitions from others.
        let destroying = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(consumer));
        return drop(destroying);
    }
    while !consumer.closed() && std::time::Instant::now() < deadline {
        drop(consumer.poll(Duration::from_millis(10)));
        serve(&consumer);
    }
    if !consumer.closed() {
        tracing::warn!("A consumer did not leave its group in time; the broker takes its partitions away by itself.");
        // Destroying it would wait for as long as it likes.
        std::mem::forget(consumer);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn nothing_is_taken_that_was_fetched_for_another_place() {
        use Expected::{Next, Restarting, Unknown};
        for (before, restarted, fails, (ready, after, seeks)) in [
            (Next(100), None, 0, (Ready::Take, Next(100), vec![])),
            (Next(150), None, 0, (Ready::Take, Next(100), vec![100])),
            (Unknown, None, 0, (Ready::Take, Next(100), vec![100])),
            (Next(150), None, 1, (Ready::Take, Next(100), vec![100, 100])),
            (Next(150), None, 2, (Ready::Restart, Unknown, vec![100, 100])),
            (Restarting, None, 0, (Ready::Wait, Restarting, vec![])),
            (Restarting, Some(100), 0, (Ready::Take, Next(100), vec![])),
            (Restarting, Some(90), 0, (Ready::Take, Next(100), vec![100])),
            (Restarting, Some(90), 2, (Ready::Restart, Unknown, vec![100, 100])),
        ] {
            let sought = RefCell::new(Vec::new());
            let seek = |to| {
                sought.borrow_mut().push(to);
                if sought.borrow().len() > fails { Ok(()) } else { Err("outdated") }
            };
            let mut expected = before;
            let found = expected.go_to(100, restarted, seek);
            assert_eq!(
                (found, expected, sought.into_inner()),
                (ready, after, seeks),
                "{before:?} {restarted:?} {fails}"
            );
        }
    }
}
