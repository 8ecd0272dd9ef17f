//! What survives a crash: the broker's disk, the time, and the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use bytestring::ByteString;
use millrace::broker::{
    Commit, LetterAction, LetterId, LetterStatus, Outgoing, Placement, Placing, PublishError, Restored, StartAt,
    StoredLetter,
};
use millrace_core::idempotency::Bounds;
use millrace_core::letter;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::partition;
use millrace_core::progress::{KeyHash, Progress, Stream};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::broker::write;
use super::rng::Rng;
use super::stands::Stands;

/// The largest record that a topic takes, and what a dead letter may have more.
const RECORD_MAX_BYTES: usize = 1 << 20;
const LETTER_EXTRA_BYTES: usize = 64 << 10;

/// How often things go wrong, out of a hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) commit_aborted: u64,
    pub(super) fetch_failed: u64,
    pub(super) guest_not_run: u64,
    pub(super) slow: u64,
}

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) progress: Progress,
    /// With the time of their commit.
    pub(super) keys: Vec<(Timestamp, Vec<KeyHash>)>,
    /// What the handler stored.
    pub(super) state: BTreeMap<ByteString, Bytes>,
    /// How many events completed before an operator set the position last.
    completed_before: u64,
}

#[derive(Debug)]
pub(super) struct Letter {
    pub(super) status: LetterStatus,
    status_at: Timestamp,
    note: Option<String>,
    /// How often it was redriven since its record was written.
    redriven: u32,
    pub(super) record: Record,
}

impl Letter {
    fn change(&mut self, at: Timestamp, status: LetterStatus, note: Option<String>) {
        (self.status, self.status_at, self.note) = (status, at, note);
    }

    pub(super) fn stored(&self, function: &FunctionName, id: &LetterId) -> StoredLetter {
        StoredLetter {
            function: function.clone(),
            id: id.clone(),
            status: self.status,
            status_at: self.status_at,
            note: self.note.clone(),
            record: self.record.clone(),
        }
    }
}

/// How often the situations came about that the simulation is there for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Commits of an instance that had lost the partition without knowing.
    pub fenced: u64,
    /// Partitions that were taken away while a commit was under way.
    pub revoked_in_commit: u64,
    /// Of these, commits that reached the disk all the same.
    pub committed_after_revocation: u64,
    /// Partitions that were taken away from an instance.
    pub taken_over: u64,
    /// Events that a canary was called for.
    pub run_by_canaries: u64,
    /// Events that one revision was called for after another one.
    pub run_by_several: u64,
    /// Worlds in which an event whose key never fails was settled soon behind one that was attempted again.
    pub healthy_behind_failing: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.fenced += other.fenced;
        self.revoked_in_commit += other.revoked_in_commit;
        self.committed_after_revocation += other.committed_after_revocation;
        self.taken_over += other.taken_over;
        self.run_by_canaries += other.run_by_canaries;
        self.run_by_several += other.run_by_several;
        self.healthy_behind_failing += other.healthy_behind_failing;
    }
}

/// A commit on its way to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) unit: Unit,
    pub(super) commit: Commit,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) now: Timestamp,
    pub(super) topics: BTreeMap<Topic, Vec<Vec<Record>>>,
    pub(super) redrive: BTreeMap<Unit, Vec<Record>>,
    pub(super) units: BTreeMap<Unit, Stored>,
    pub(super) letters: BTreeMap<(FunctionName, LetterId), Letter>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next_pending: u64,
    /// How often each unit was taken away from an owner, or a life ended.
    epochs: BTreeMap<Unit, u64>,
    /// Since when the owner of each unit can be expected to get on.
    owned_since: BTreeMap<Unit, Timestamp>,
    pub(super) counts: Counts,
    /// How often the handler was called for each event.
    pub(super) calls: BTreeMap<String, u32>,
    /// What somebody decided last, and what was told to each instance of it.
    pub(super) stands: Stands,
    pub(super) told: BTreeMap<u32, Stands>,
    /// The revisions whose handlers were called for each event.
    pub(super) ran: BTreeMap<String, BTreeSet<u64>>,
    /// When each record was settled for the first time, and since when its owner could do so, by partition and offset.
    pub(super) settled_at: BTreeMap<(u32, u64), (Timestamp, Timestamp)>,
    /// Whether the handler is that of a scenario, which counts what it completes.
    pub(super) handler_counts: bool,
    /// The cause of all failures is gone.
    pub(super) mended: bool,
    pub(super) trace: String,
}

/// The world, shared with everything that runs in it.
pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("nothing panics while it holds the world")
}

/// A parked head is in each commit until it is settled: else a restart would forget its attempts.
fn assert_heads_survive(before: &Progress, next: &Progress) {
    for head in &before.parked {
        let stream = match head.position.stream {
            Stream::Source => &next.source,
            Stream::Redrive => &next.redrive,
        };
        let offset = head.position.offset;
        let settled = offset < stream.resume || stream.settled_above.iter().any(|range| range.contains(&offset));
        let found = next.parked.iter().find(|found| found.position == head.position);
        let kept =
            found.is_some_and(|found| found.attempts >= head.attempts && found.first_failed_at == head.first_failed_at);
        assert!(settled || kept, "the {} attempts at {:?} are forgotten: {found:?}", head.attempts, head.position);
    }
}

/// Each handler counts the events that it completes. On the disk the count is that of the settlements, at any time.
fn assert_state_counts_what_completed(stored: &Stored) {
    let counted = stored.state.get("total").map_or("0".into(), |total| String::from_utf8_lossy(total));
    let completed =
        stored.completed_before + stored.progress.source.totals.completed + stored.progress.redrive.totals.completed;
    assert_eq!(counted, completed.to_string(), "the state counts what completed: {:?}", stored.state);
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            rng: Rng::new(seed),
            faults,
            now: Timestamp::from_millis(1_700_000_000_000),
            topics: BTreeMap::new(),
            redrive: BTreeMap::new(),
            units: BTreeMap::new(),
            letters: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_pending: 0,
            epochs: BTreeMap::new(),
            owned_since: BTreeMap::new(),
            counts: Counts::default(),
            calls: BTreeMap::new(),
            stands: Stands::default(),
            told: BTreeMap::new(),
            ran: BTreeMap::new(),
            settled_at: BTreeMap::new(),
            handler_counts: false,
            mended: false,
            trace: String::new(),
        }
    }

    pub(super) fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let at = self.now.as_millis();
        writeln!(self.trace, "{at} {line}").expect("a string takes everything");
    }

    pub(super) fn create(&mut self, topic: Topic, partitions: u32) {
        self.topics.insert(topic, (0..partitions).map(|_| Vec::new()).collect());
    }

    pub(super) fn log(&self, topic: &Topic, partition: u32) -> &Vec<Record> {
        &self.topics[topic][partition as usize]
    }

    /// Where each record goes, or why they are refused.
    pub(super) fn place(&self, records: &[Outgoing]) -> Result<Vec<u32>, PublishError> {
        let place = |(index, Outgoing { topic, placing, record }): (usize, &Outgoing)| {
            let unknown = || PublishError::UnknownTopic { index, topic: topic.clone() };
            let count = u32::try_from(self.topics.get(topic).ok_or_else(unknown)?.len()).expect("few partitions");
            let partition = match *placing {
                Placing::Hash(hash) => partition::partition_of(hash, count),
                Placing::Partition(partition) => partition,
            };
            if partition >= count {
                return Err(unknown());
            }
            let (size_bytes, max_bytes) = (record.size_bytes(), RECORD_MAX_BYTES);
            if size_bytes > max_bytes {
                return Err(PublishError::TooLarge { index, topic: topic.clone(), size_bytes, max_bytes });
            }
            Ok(partition)
        };
        records.iter().enumerate().map(place).collect()
    }

    /// Appends records, all or nothing.
    pub(super) fn append(&mut self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        let places = self.place(&records)?;
        let append = |(Outgoing { topic, mut record, .. }, partition): (Outgoing, u32)| {
            record.timestamp = Timestamp::from_millis(record.timestamp.as_millis());
            let logs = self.topics.get_mut(&topic).expect("the topic was looked up");
            let log = &mut logs[partition as usize];
            log.push(record);
            Placement { partition, offset: log.len() as u64 - 1 }
        };
        Ok(records.into_iter().zip(places).map(append).collect())
    }

    /// Why a commit is refused for its content, if it is.
    pub(super) fn refusal(&self, commit: &Commit) -> Option<String> {
        if let Err(error) = self.place(&commit.outputs) {
            return Some(error.to_string());
        }
        let mut sizes = commit.letters.iter().map(|letter| letter.record.size_bytes());
        sizes.any(|size| size > RECORD_MAX_BYTES + LETTER_EXTRA_BYTES).then(|| "a dead letter is too large".into())
    }

    /// A unit that was never subscribed to begins here.
    pub(super) fn begin(&mut self, unit: &Unit, from: StartAt) {
        let end = self.log(&unit.topic, unit.partition).len() as u64;
        let stored = self.units.entry(unit.clone());
        stored.or_insert_with(|| {
            let mut progress = Progress::default();
            if from == StartAt::Latest {
                (progress.source.start, progress.source.resume) = (end, end);
            }
            Stored { progress, keys: Vec::new(), state: BTreeMap::new(), completed_before: 0 }
        });
    }

    pub(super) fn restored(&self, unit: &Unit, bounds: Bounds, siblings: usize) -> Restored {
        let mut keys = bounds.window(siblings);
        let stored = self.units.get(unit);
        let blocks = stored.into_iter().flat_map(|stored| &stored.keys);
        for (at, block) in blocks.filter(|(at, _)| *at >= bounds.oldest(self.now)) {
            keys.insert(*at, block.iter().copied());
        }
        Restored { progress: stored.map(|stored| stored.progress.clone()).unwrap_or_default(), keys }
    }

    /// Writes a commit as one, checking what every broker checks.
    pub(super) fn apply(&mut self, Pending { unit, commit }: Pending) {
        let before = self.units.get(&unit).map(|stored| stored.progress.clone()).unwrap_or_default();
        assert_eq!(commit.progress.commits, before.commits + 1, "commits of a unit follow one another");
        let is_reset = commit.progress.reset.number > before.reset.number;
        assert!(
            is_reset || commit.progress.source.resume >= before.source.resume,
            "the resume point never goes back by itself"
        );
        assert_heads_survive(&before, &commit.progress);
        self.note(format_args!(
            "commit {unit}: resume {} {:?} outputs {} letters {} keys {} state {}",
            commit.progress.source.resume,
            commit.progress.source.settled_above,
            commit.outputs.len(),
            commit.letters.len(),
            commit.keys.len(),
            commit.state.len()
        ));
        self.note_settled(&unit, &commit.progress);
        self.append(commit.outputs).expect("a commit was looked at before it was taken");
        for letter in commit.letters {
            let (status, status_at) = (LetterStatus::Open, self.now);
            let stored = Letter { status, status_at, note: None, redriven: 0, record: letter.record };
            self.letters.insert((unit.function.clone(), letter.id), stored);
        }
        for id in commit.resolved {
            let letter = self.letters.get_mut(&(unit.function.clone(), id));
            let letter = letter.expect("only a letter that exists is resolved");
            // What a person decided meanwhile stays.
            if letter.status == LetterStatus::Redriven {
                letter.change(self.now, LetterStatus::Resolved, None);
            }
        }
        let stored = self.units.get_mut(&unit).expect("only units that began are committed");
        if is_reset {
            stored.completed_before += before.source.totals.completed;
        }
        if commit.progress.reset.forgot_in == commit.progress.commits {
            stored.keys.clear();
        }
        stored.progress = commit.progress;
        write(&mut stored.state, commit.state);
        if self.handler_counts {
            assert_state_counts_what_completed(stored);
        }
        if !commit.keys.is_empty() {
            stored.keys.push((commit.at, commit.keys));
        }
    }

    fn note_settled(&mut self, unit: &Unit, progress: &Progress) {
        let when = (self.now, self.owned_since.get(unit).copied().unwrap_or(self.now));
        let source = &progress.source;
        let above = source.settled_above.iter().flat_map(Clone::clone);
        for offset in (source.start..source.resume).chain(above) {
            self.settled_at.entry((unit.partition, offset)).or_insert(when);
        }
    }

    /// The handler of a revision is called on an instance.
    pub(super) fn runs(&mut self, instance: u32, number: u64, key: Option<&[u8]>, id: &str) {
        let stands = self.told[&instance];
        let wanted = stands.handles(key, id);
        assert_eq!(number, wanted, "revision {number} handles {id} of {key:?} on instance {instance} under {stands:?}");
        let by = self.ran.entry(id.to_owned()).or_default();
        let is_other = by.insert(number) && by.len() > 1;
        self.counts.run_by_canaries += u64::from(stands.canary.is_some_and(|(canary, _)| canary == number));
        self.counts.run_by_several += u64::from(is_other);
    }

    /// All processes die: each commit on its way is on the disk, or is not.
    pub(super) fn crash(&mut self) {
        self.note(format_args!("crash"));
        for (_, pending) in std::mem::take(&mut self.pending) {
            if self.rng.percent(50) {
                self.apply(pending);
            }
        }
    }

    /// Takes a commit on its way, and answers with its number.
    pub(super) fn admit(&mut self, pending: Pending) -> u64 {
        let ticket = self.next_pending;
        self.next_pending += 1;
        self.pending.insert(ticket, pending);
        ticket
    }

    /// Whether a commit of a unit is under way.
    pub(super) fn is_committing(&self, unit: &Unit) -> bool {
        self.pending.values().any(|pending| pending.unit == *unit)
    }

    /// Loses the commit of a unit that is under way, this often out of a hundred.
    pub(super) fn drop_pending(&mut self, unit: &Unit, percent: u64) {
        let ticket = self.pending.iter().find(|(_, pending)| pending.unit == *unit).map(|(ticket, _)| *ticket);
        if let Some(ticket) = ticket
            && self.rng.percent(percent)
        {
            self.note(format_args!("lost {unit}"));
            self.pending.remove(&ticket);
        }
    }

    /// A partition is taken away from whoever owns it: its commit on the way will get to the disk, or never. Answers with the
    /// epoch of the next owner.
    pub(super) fn revoke(&mut self, unit: &Unit) -> u64 {
        self.counts.revoked_in_commit += u64::from(self.is_committing(unit));
        self.drop_pending(unit, 50);
        self.counts.committed_after_revocation += u64::from(self.is_committing(unit));
        let epoch = self.epochs.entry(unit.clone()).or_default();
        *epoch += 1;
        let epoch = *epoch;
        self.note(format_args!("revoke {unit} before {epoch}"));
        epoch
    }

    /// Which owner of a unit may commit.
    pub(super) fn epoch(&self, unit: &Unit) -> u64 {
        self.epochs.get(unit).copied().unwrap_or(0)
    }

    /// The owner of a unit begins with it, or goes on after a halt.
    pub(super) fn owner_is_fresh(&mut self, unit: &Unit) {
        self.note(format_args!("fresh {unit}"));
        self.owned_since.insert(unit.clone(), self.now);
    }

    /// What a unit's handler stored.
    pub(super) fn state_of(&self, unit: &Unit) -> BTreeMap<ByteString, Bytes> {
        self.units.get(unit).map(|stored| stored.state.clone()).unwrap_or_default()
    }

    /// A person does something with a letter that there is.
    pub(super) fn act(&mut self, function: &FunctionName, id: &LetterId, action: &LetterAction) {
        let now = self.now;
        let letter = self.letters.get_mut(&(function.clone(), id.clone())).expect("the letter was looked up");
        match action {
            LetterAction::Redrive => {
                letter.change(now, LetterStatus::Redriven, None);
                letter.redriven += 1;
                let record = Record { timestamp: now, ..letter::redriven(&letter.record, letter.redriven) };
                let unit = Unit { function: function.clone(), topic: id.topic.clone(), partition: id.partition };
                self.redrive.entry(unit).or_default().push(record);
            }
            LetterAction::Resolve(note) => letter.change(now, LetterStatus::Resolved, note.clone()),
            LetterAction::Discard(reason) => letter.change(now, LetterStatus::Discarded, Some(reason.clone())),
        }
    }

    /// A person sends all open letters to their function once more.
    pub(super) fn redrive_open(&mut self) -> usize {
        let open = self.letters.iter().filter(|(_, letter)| letter.status == LetterStatus::Open);
        let open: Vec<_> = open.map(|(id, _)| id.clone()).collect();
        for (function, id) in &open {
            self.act(function, id, &LetterAction::Redrive);
        }
        self.note(format_args!("redrive {}", open.len()));
        open.len()
    }
}
