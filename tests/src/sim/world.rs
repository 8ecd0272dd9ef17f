//! What survives a crash: the broker's disk, the time, and the trace.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use bytestring::ByteString;
use millrace::broker::{Commit, KeyBlock, LetterId, LetterStatus, Restored};
use millrace_core::letter;
use millrace_core::name::{Topic, Unit};
use millrace_core::partition;
use millrace_core::progress::{Progress, Stream};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::broker::write;
use super::rng::Rng;

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
    pub(super) keys: Vec<KeyBlock>,
    /// What the handler stored.
    pub(super) state: BTreeMap<ByteString, Bytes>,
}

#[derive(Debug)]
pub(super) struct StoredLetter {
    pub(super) status: LetterStatus,
    pub(super) record: Record,
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
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.fenced += other.fenced;
        self.revoked_in_commit += other.revoked_in_commit;
        self.committed_after_revocation += other.committed_after_revocation;
        self.taken_over += other.taken_over;
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
    pub(super) partitions: u32,
    pub(super) topics: BTreeMap<Topic, Vec<Vec<Record>>>,
    pub(super) redrive: BTreeMap<(Topic, u32), Vec<Record>>,
    pub(super) units: BTreeMap<Unit, Stored>,
    pub(super) letters: BTreeMap<LetterId, StoredLetter>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next_pending: u64,
    /// How often each unit was taken away from an owner, or a life ended.
    epochs: BTreeMap<Unit, u64>,
    /// Since when the owner of each unit can be expected to get on.
    owned_since: BTreeMap<Unit, Timestamp>,
    pub(super) counts: Counts,
    /// How often the handler was called for each event.
    pub(super) calls: BTreeMap<String, u32>,
    /// When each record was settled for the first time, and since when its owner could do so, by partition and offset.
    pub(super) settled_at: BTreeMap<(u32, u64), (Timestamp, Timestamp)>,
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
    let completed = stored.progress.source.totals.completed + stored.progress.redrive.totals.completed;
    assert_eq!(counted, completed.to_string(), "the state counts what completed: {:?}", stored.state);
}

impl World {
    pub(super) fn new(seed: u64, partitions: u32, faults: Faults) -> Self {
        Self {
            rng: Rng::new(seed),
            faults,
            now: Timestamp::from_millis(1_700_000_000_000),
            partitions,
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
            settled_at: BTreeMap::new(),
            mended: false,
            trace: String::new(),
        }
    }

    pub(super) fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let at = self.now.as_millis();
        writeln!(self.trace, "{at} {line}").expect("a string takes everything");
    }

    pub(super) fn log(&mut self, topic: &Topic) -> &mut Vec<Vec<Record>> {
        let partitions = usize::try_from(self.partitions).expect("few partitions");
        self.topics.entry(topic.clone()).or_insert_with(|| vec![Vec::new(); partitions])
    }

    pub(super) fn append(&mut self, topic: &Topic, hash: u32, record: Record) -> (u32, u64) {
        let partition = partition::partition_of(hash, self.partitions);
        let records = &mut self.log(topic)[usize::try_from(partition).expect("few partitions")];
        records.push(record);
        (partition, records.len() as u64 - 1)
    }

    pub(super) fn restored(&self, unit: &Unit) -> Restored {
        self.units.get(unit).map_or_else(Restored::default, |stored| Restored {
            progress: stored.progress.clone(),
            keys: stored.keys.clone(),
        })
    }

    /// Writes a commit as one, checking what every broker checks.
    pub(super) fn apply(&mut self, Pending { unit, commit }: Pending) {
        let before = self.units.get(&unit).map(|stored| stored.progress.clone()).unwrap_or_default();
        assert_eq!(commit.progress.commits, before.commits + 1, "commits of a unit follow one another");
        assert!(commit.progress.source.resume >= before.source.resume, "the resume point never goes back");
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
        for output in commit.outputs {
            let millrace::broker::Placing::Hash(hash) = output.placing else {
                panic!("an output is placed by its hash");
            };
            self.append(&output.topic, hash, output.record);
        }
        for letter in commit.letters {
            self.letters.insert(letter.id, StoredLetter { status: LetterStatus::Open, record: letter.record });
        }
        for id in commit.resolved {
            let letter = self.letters.get_mut(&id).expect("only a letter that exists is resolved");
            assert_eq!(letter.status, LetterStatus::Redriven, "only a redriven letter is resolved by its function");
            letter.status = LetterStatus::Resolved;
        }
        let stored = self.units.entry(unit).or_insert_with(|| Stored {
            progress: Progress::default(),
            keys: Vec::new(),
            state: BTreeMap::new(),
        });
        stored.progress = commit.progress;
        write(&mut stored.state, commit.state);
        assert_state_counts_what_completed(stored);
        if !commit.keys.is_empty() {
            stored.keys.push(KeyBlock { committed_at: commit.at, keys: commit.keys });
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

    /// A person sends all open letters to their function once more.
    pub(super) fn redrive_open(&mut self) -> usize {
        let mut redriven = 0;
        for (id, letter) in &mut self.letters {
            if letter.status == LetterStatus::Open {
                letter.status = LetterStatus::Redriven;
                let record = letter::redriven(&letter.record);
                self.redrive.entry((id.topic.clone(), id.partition)).or_default().push(record);
                redriven += 1;
            }
        }
        self.note(format_args!("redrive {redriven}"));
        redriven
    }
}
