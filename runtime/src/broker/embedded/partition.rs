//! An owned partition: fetching and committing.

use std::future::Future;
use std::sync::Arc;

use millrace_core::name::Unit;
use millrace_core::progress::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use super::EmbeddedLog;
use super::committer::Request;
use super::log::{PartitionLog, StoredBatch};
use super::prepare;
use super::read::{self, Limits, Read, ReadError};
use super::state::UnitState;
use super::subscribe::Owned;
use super::values::EmbeddedState;
use crate::broker::{Commit, CommitOutcome, Error, FetchError, Fetched, Partition, Wanted};

/// One partition of a source topic and its partition of the redrive topic, owned on behalf of one function.
#[derive(Debug)]
pub struct EmbeddedPartition {
    log: EmbeddedLog,
    unit: Arc<UnitState>,
    generation: u64,
    source_end: watch::Receiver<u64>,
    redrive_end: watch::Receiver<u64>,
    fatal: watch::Receiver<Option<Error>>,
    /// Which log was read last: when both have records they take turns.
    last: Stream,
    /// Batches that the last fetch took from disk, for what it left of them.
    ahead: Vec<StoredBatch>,
    ahead_of: Stream,
}

impl EmbeddedPartition {
    pub(super) fn new(log: EmbeddedLog, owned: &Owned) -> Self {
        let unit = owned.unit.clone();
        Self {
            source_end: unit.source.watch_end(),
            redrive_end: unit.redrive.watch_end(),
            fatal: log.state().watch_fatal(),
            generation: owned.generation,
            last: Stream::Source,
            ahead: Vec::new(),
            ahead_of: Stream::Source,
            log,
            unit,
        }
    }

    fn stream(&self, stream: Stream) -> &Arc<PartitionLog> {
        match stream {
            Stream::Source => &self.unit.source,
            Stream::Redrive => &self.unit.redrive,
        }
    }

    /// What can be read now.
    fn ready(&mut self, wanted: &Wanted) -> Result<Option<(Stream, u64)>, FetchError> {
        self.fatal.borrow_and_update().clone().map_or(Ok(()), Err)?;
        let ends = [*self.source_end.borrow_and_update(), *self.redrive_end.borrow_and_update()];
        let source = (Stream::Source, wanted.source, ends[0]);
        let redrive = (Stream::Redrive, wanted.redrive, ends[1]);
        let order = if self.last == Stream::Source { [redrive, source] } else { [source, redrive] };
        for (stream, wanted, end) in order {
            let Some(wanted) = wanted else { continue };
            let earliest = self.stream(stream).start().earliest;
            if wanted < earliest {
                return Err(FetchError::Gone { stream, wanted, earliest });
            }
            if wanted < end {
                return Ok(Some((stream, wanted)));
            }
        }
        Ok(None)
    }

    /// Reads on, from what the last fetch left, from memory or from disk.
    async fn read(&mut self, stream: Stream, offset: u64, limits: Limits) -> Result<Read, ReadError> {
        let log = self.stream(stream);
        let is_ahead = |batch: &StoredBatch| batch.base <= offset && offset < batch.end();
        if self.ahead_of != stream || !self.ahead.iter().any(is_ahead) {
            self.ahead = match log.tail_from(offset, limits.max_bytes) {
                Some(batches) => {
                    self.ahead.clear();
                    return read::decode(&batches, offset, limits);
                }
                None => read::stored_async(&self.log.state().storage, log, offset, limits.max_bytes).await?,
            };
            self.ahead_of = stream;
        }
        read::decode(&self.ahead, offset, limits)
    }

    /// Waits until something may have changed.
    async fn changed(&mut self, wanted: &Wanted) {
        // The senders live as long as the unit and the log, which this holds.
        tokio::select! {
            _ = self.source_end.changed(), if wanted.source.is_some() => {}
            _ = self.redrive_end.changed(), if wanted.redrive.is_some() => {}
            _ = self.fatal.changed() => {}
        }
    }

    /// Hands a commit to the committer at once, if there is room in its queue.
    fn submit(&self, commit: Commit) -> Submission {
        if self.unit.generation() != self.generation {
            return Submission::Decided(CommitOutcome::Aborted);
        }
        let prepared = match prepare::commit(self.log.state(), &self.unit, self.generation, commit) {
            Ok(prepared) => Box::new(prepared),
            Err(reason) => return Submission::Decided(CommitOutcome::Refused { reason }),
        };
        let (reply, answer) = oneshot::channel();
        match self.log.requests().try_send(Request::Commit(prepared, reply)) {
            Ok(()) => Submission::Sent(answer),
            Err(mpsc::error::TrySendError::Full(request)) => Submission::Waits(request, answer),
            Err(mpsc::error::TrySendError::Closed(_)) => Submission::Closed,
        }
    }
}

/// How far a commit came without waiting.
enum Submission {
    Decided(CommitOutcome),
    Sent(oneshot::Receiver<Result<CommitOutcome, Error>>),
    Waits(Request, oneshot::Receiver<Result<CommitOutcome, Error>>),
    Closed,
}

impl Partition for EmbeddedPartition {
    type State = EmbeddedState;

    fn unit(&self) -> &Unit {
        &self.unit.unit
    }

    fn state(&self) -> EmbeddedState {
        EmbeddedState::new(self.log.clone(), self.unit.clone())
    }

    async fn fetch(&mut self, wanted: Wanted) -> Result<Fetched, FetchError> {
        let limits = Limits { max_records: wanted.max_records, max_bytes: wanted.max_bytes };
        loop {
            let Some((stream, offset)) = self.ready(&wanted)? else {
                self.changed(&wanted).await;
                continue;
            };
            let read = self.read(stream, offset, limits).await;
            let log = self.stream(stream);
            match read {
                Ok(records) => {
                    self.last = stream;
                    return Ok(Fetched::new(stream, offset, records));
                }
                // Retention was quicker; the next turn says so.
                Err(ReadError::Missing(_)) if log.start().earliest > offset => {}
                Err(e) => return Err(e.at(log, offset).into()),
            }
        }
    }

    fn commit(&mut self, commit: Commit) -> impl Future<Output = Result<CommitOutcome, Error>> + Send + 'static {
        let submission = self.submit(commit);
        let log = self.log.clone();
        async move {
            let answer = match submission {
                Submission::Decided(outcome) => return Ok(outcome),
                Submission::Closed => return Err(log.stopped()),
                Submission::Sent(answer) => answer,
                Submission::Waits(request, answer) => {
                    log.requests().send(request).await.map_err(|_| log.stopped())?;
                    answer
                }
            };
            answer.await.unwrap_or_else(|_| Err(log.stopped()))
        }
    }
}
