//! The one thread that writes. It takes all requests that wait, joins them into one commit group, writes and syncs that as
//! one, and only then lets anybody see it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use millrace_core::time::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::group::{Appended, CommitReply, Group, PublishReply};
use super::log::PartitionLog;
use super::pace::Pace;
use super::prepare::{PreparedCommit, Slot};
use super::state::State;
use super::storage::{Op, Table};
use super::volume::Volume;
use super::{meta, values};
use crate::broker::{CommitOutcome, Error, PublishError};

/// The newest batches of all partitions that stay in memory.
const MEMORY_MAX_BYTES: usize = 64 * 1024 * 1024;
/// What a batch in memory costs beside its bytes.
const MEMORY_OVERHEAD_BYTES: usize = 200;

/// What the committer is asked for.
pub(super) enum Request {
    /// Append records.
    Publish(Publish),
    /// Write what a unit's events did.
    Commit(Box<PreparedCommit>, CommitReply),
    /// Anything else; it runs between two groups, so that it sees all that came before as committed.
    Alone(Box<dyn FnOnce(&mut Committer) + Send>),
}

/// Records to append.
pub(super) struct Publish {
    pub(super) slots: Vec<Slot>,
    pub(super) bytes: u64,
    pub(super) reply: PublishReply,
    /// Its share of the bytes that may wait, given back once it is in a group.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The thread's own state.
pub(super) struct Committer {
    pub(super) state: Arc<State>,
    /// Batches in memory, oldest first, with what they cost.
    in_memory: VecDeque<(Arc<PartitionLog>, u64, usize)>,
    in_memory_bytes: usize,
    pace: Pace,
    /// When room was last looked for.
    pub(super) room_sought_at: Option<Timestamp>,
    /// Why there was none then, for a person.
    pub(super) full_because: String,
}

/// Tells everybody if the thread ends by a panic.
struct Watchdog(Arc<State>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.fail("the committer found a bug, see the message above"));
        }
    }
}

impl Committer {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            in_memory: VecDeque::new(),
            in_memory_bytes: 0,
            pace: Pace::new(Instant::now()),
            room_sought_at: None,
            full_because: String::new(),
        }
    }

    /// Serves requests until nobody can send one any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let _watchdog = Watchdog(self.state.clone());
        let mut held = None;
        while let Some(request) = held.take().or_else(|| requests.blocking_recv()) {
            match request {
                Request::Alone(action) => action(&mut self),
                request => held = self.serve_group(request, &mut requests),
            }
        }
        self.close();
    }

    /// Serves this request and all that wait, up to one that must run alone, which is handed back.
    fn serve_group(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> Option<Request> {
        let mut group = Group::default();
        let mut held = self.admit(first, &mut group).or_else(|| self.admit_waiting(&mut group, requests));
        if held.is_none()
            && !group.is_full()
            && let Some(pause) = self.pace.pause(Instant::now())
        {
            // It may end early, which does no harm.
            std::thread::park_timeout(pause);
            held = self.admit_waiting(&mut group, requests);
        }
        let (bytes, publishes) = (group.bytes(), group.publishes());
        // Everybody in the group is answered, whatever came of it.
        drop(self.write_group(group));
        self.pace.wrote(bytes, publishes, Instant::now());
        held
    }

    /// Takes what waits into the group as long as it is not full, up to a request that must run alone, which is handed back.
    fn admit_waiting(&mut self, group: &mut Group, requests: &mut mpsc::Receiver<Request>) -> Option<Request> {
        while !group.is_full()
            && let Ok(request) = requests.try_recv()
        {
            let held = self.admit(request, group);
            if held.is_some() {
                return held;
            }
        }
        None
    }

    /// Takes a request into the group, or hands it back if it must run alone.
    fn admit(&mut self, request: Request, group: &mut Group) -> Option<Request> {
        match request {
            Request::Publish(publish) => self.admit_publish(publish, group),
            Request::Commit(commit, reply) => self.admit_commit(*commit, reply, group),
            alone @ Request::Alone(_) => return Some(alone),
        }
        None
    }

    fn admit_publish(&mut self, publish: Publish, group: &mut Group) {
        let Publish { slots, bytes, reply, .. } = publish;
        if let Err(e) = self.state.check() {
            drop(reply.send(Err(e.into())));
            return;
        }
        let max = self.state.options.size_max_bytes;
        if !self.has_room(group.bytes() + bytes, max) {
            drop(reply.send(Err(PublishError::Full(self.full_because.clone()))));
            return;
        }
        let bases = slots.into_iter().map(|slot| group.append(slot)).collect();
        group.answer_published(bases, reply);
    }

    fn admit_commit(&mut self, commit: PreparedCommit, reply: CommitReply, group: &mut Group) {
        if let Err(e) = self.state.check() {
            drop(reply.send(Err(e)));
            return;
        }
        if commit.unit.generation() != commit.generation {
            drop(reply.send(Ok(CommitOutcome::Aborted)));
            return;
        }
        let volume = match self.volume_after(&commit) {
            Ok(volume) => volume,
            Err(e) => {
                drop(reply.send(Err(e)));
                return;
            }
        };
        if let Err(e) = self.check_headroom(&commit, volume, group) {
            drop(reply.send(Err(e)));
            return;
        }
        let PreparedCommit { unit, at, progress, unit_value, keys, outputs, letters, resolved, values, .. } = commit;
        let changes = match self.letter_changes(&unit.unit.function, letters, &resolved) {
            Ok(changes) => changes,
            Err(e) => {
                drop(reply.send(Err(e)));
                return;
            }
        };
        for slot in outputs {
            group.append(slot);
        }
        self.stage_letters(&unit.unit.function, at, changes, group);
        if let Some((key, value)) = keys {
            group.put(Table::Keys, key, value);
        }
        if !values.is_empty() {
            group.put_values(&unit, values, volume);
        }
        group.put(Table::State, super::unit::key(unit.id).to_vec(), unit_value);
        group.answer_committed(unit, progress, reply);
    }

    /// How large the unit's state is after a commit.
    fn volume_after(&self, commit: &PreparedCommit) -> Result<Volume, Error> {
        let volume = values::volume_after(&self.state, &commit.unit, &commit.values);
        volume.map_err(|e| Error::Transient(format!("cannot read keyspace `values` of the log: {e}")))
    }

    /// Commits go on above the log's bound, for they free space, but not for ever.
    fn check_headroom(&mut self, commit: &PreparedCommit, volume: Volume, group: &Group) -> Result<(), Error> {
        let letters = commit.letters.as_ref().map_or(0, |letters| letters.slot.bytes());
        let state = volume.bytes.saturating_sub(commit.unit.volume().bytes);
        let bytes = commit.outputs.iter().map(Slot::bytes).sum::<u64>() + letters + state;
        let max = self.state.options.size_max_bytes;
        let max = max.saturating_add(max / 4);
        if bytes == 0 || self.has_room(group.bytes() + bytes, max) {
            return Ok(());
        }
        Err(Error::Transient(format!("the log is full: {}", self.full_because)))
    }

    /// Writes a group, then lets everybody see it.
    pub(super) fn write_group(&mut self, group: Group) -> Result<(), Error> {
        if group.is_empty() {
            return Ok(());
        }
        let sealed = group.seal();
        if let Err(e) = self.write(sealed.ops) {
            sealed.replies.fail(&e);
            return Err(e);
        }
        for (function, open) in sealed.open_letters {
            self.state.set_open_letters(function, open);
        }
        for (unit, volume) in sealed.volumes {
            self.state.set_volume(&unit, volume);
        }
        for Appended { log, end, batches } in sealed.appended {
            self.remember(&log, &batches);
            log.append(batches);
            log.publish(end);
        }
        self.forget_oldest();
        sealed.replies.succeed();
        Ok(())
    }

    /// Writes and syncs. After a failure nothing is ever written again.
    pub(super) fn write(&self, ops: Vec<Op>) -> Result<(), Error> {
        self.state.check()?;
        self.state.storage.write(ops).map_err(|e| self.state.fail(&e.to_string()))
    }

    fn remember(&mut self, log: &Arc<PartitionLog>, batches: &[super::log::StoredBatch]) {
        for batch in batches {
            let bytes = batch.bytes.len();
            self.state.add_kept_bytes(bytes as u64);
            self.in_memory_bytes += bytes + MEMORY_OVERHEAD_BYTES;
            self.in_memory.push_back((log.clone(), batch.base, bytes + MEMORY_OVERHEAD_BYTES));
        }
    }

    fn forget_oldest(&mut self) {
        while self.in_memory_bytes > MEMORY_MAX_BYTES
            && let Some((log, base, bytes)) = self.in_memory.pop_front()
        {
            log.forget(base);
            self.in_memory_bytes -= bytes;
        }
    }

    /// Marks a proper end.
    fn close(&self) {
        let key = Bytes::from_static(meta::CLOSED_KEY);
        if let Err(e) = self.write(vec![Op::Put(Table::State, key, meta::encode_closed())]) {
            tracing::warn!(error = %e, "The log closed without its mark.");
        }
    }
}
