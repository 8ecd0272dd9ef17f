//! What a worker counts for itself: shown to others once per commit, so that no event costs a lock.

use std::collections::BTreeMap;

use millrace_core::dispatcher::{Settled, Settlement, Ticket};
use millrace_core::intake::Delivered;
use millrace_core::outcome::Outcome;
use millrace_core::time::Timestamp;

use crate::sandbox::Completion;
use crate::telemetry::Histogram;

/// Revisions that are counted one by one: the ones that made attempts last.
const REVISIONS_MAX: usize = 8;

/// What the attempts of one revision came to.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// Its number.
    pub revision: u64,
    /// Those that failed.
    pub failed: u64,
    /// How long each took, from call to return of the handler.
    pub invoke: Histogram,
}

impl Attempts {
    /// Adds what another one counted of the same revision.
    pub fn merge(&mut self, other: &Self) {
        self.failed += other.failed;
        self.invoke.merge(&other.invoke);
    }

    /// What several have counted, added up by revision.
    pub fn by_revision(all: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut revisions = BTreeMap::<u64, Self>::new();
        for one in all {
            let counted = Self { revision: one.revision, ..Self::default() };
            revisions.entry(one.revision).or_insert(counted).merge(&one);
        }
        revisions.into_values().collect()
    }

    /// Of what is sorted by revision, what is compared: what runs, and the newest of the others.
    pub fn compared(mut all: Vec<Self>, runs: impl Fn(u64) -> bool) -> Vec<Self> {
        let other = all.iter().map(|one| one.revision).rfind(|revision| !runs(*revision));
        all.retain(|one| runs(one.revision) || Some(one.revision) == other);
        all
    }
}

/// Counts and durations, since the worker started or since they were merged.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Records fetched.
    pub received: u64,
    /// Attempts.
    pub attempts: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Commits that became durable.
    pub commits: u64,
    /// The largest memory that a guest had, in bytes.
    pub guest_memory_bytes: u64,
    /// From publication to the first attempt.
    pub queue: Histogram,
    /// From call to return of the handler.
    pub invoke: Histogram,
    /// From the beginning of a commit until it was durable.
    pub commit: Histogram,
    /// From publication until the settlement of an event that was attempted or refused was durable.
    pub end_to_end: Histogram,
    /// By revision, the one that made an attempt last at the end: a bounded number of them.
    pub revisions: Vec<Attempts>,
}

impl Counts {
    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            received,
            attempts,
            failed_attempts,
            commits,
            guest_memory_bytes,
            queue,
            invoke,
            commit,
            end_to_end,
            revisions,
        } = other;
        self.received += received;
        self.attempts += attempts;
        self.failed_attempts += failed_attempts;
        self.commits += commits;
        self.guest_memory_bytes = self.guest_memory_bytes.max(*guest_memory_bytes);
        for (mine, theirs) in [
            (&mut self.queue, queue),
            (&mut self.invoke, invoke),
            (&mut self.commit, commit),
            (&mut self.end_to_end, end_to_end),
        ] {
            mine.merge(theirs);
        }
        for theirs in revisions {
            self.attempts_of(theirs.revision).merge(theirs);
        }
    }

    /// What is counted of a revision, which makes it the last one. Where there are too many, the first one is forgotten.
    fn attempts_of(&mut self, revision: u64) -> &mut Attempts {
        match self.revisions.iter().position(|one| one.revision == revision) {
            Some(at) => {
                let last = self.revisions.len() - 1;
                self.revisions[at..=last].rotate_left(1);
            }
            None => {
                if self.revisions.len() == REVISIONS_MAX {
                    self.revisions.remove(0);
                }
                self.revisions.push(Attempts { revision, ..Attempts::default() });
            }
        }
        let last = self.revisions.len() - 1;
        &mut self.revisions[last]
    }
}

/// What is not merged yet, with what is needed to go on counting.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: Counts,
    /// When the events that are settled and not sealed were published.
    settled: Vec<Timestamp>,
    /// When those of the commit under way were.
    sealed: Vec<Timestamp>,
    commit_began: Timestamp,
}

impl Tally {
    pub(super) fn received(&mut self, records: usize) {
        self.counts.received += records as u64;
    }

    pub(super) fn attempted(
        &mut self,
        now: Timestamp,
        revision: u64,
        ticket: &Ticket<Box<Delivered>>,
        completion: &Completion,
    ) {
        let Completion { outcome, usage, .. } = completion;
        let counts = &mut self.counts;
        let failed = u64::from(*outcome != Outcome::Completed);
        counts.attempts += 1;
        counts.failed_attempts += failed;
        let of_revision = counts.attempts_of(revision);
        of_revision.failed += failed;
        of_revision.invoke.observe(usage.elapsed);
        counts.guest_memory_bytes = counts.guest_memory_bytes.max(usage.memory_bytes);
        counts.invoke.observe(usage.elapsed);
        if ticket.attempt() == 1 {
            let since = now.since(ticket.payload().record.timestamp);
            counts.queue.observe(since.saturating_sub(usage.elapsed));
        }
    }

    pub(super) fn settled(&mut self, settled: &Settled<Box<Delivered>>) {
        if let (Settlement::Completed | Settlement::DeadLettered(_), Some(delivered)) =
            (&settled.settlement, &settled.payload)
        {
            self.settled.push(delivered.record.timestamp);
        }
    }

    pub(super) fn commit_began(&mut self, now: Timestamp) {
        std::mem::swap(&mut self.settled, &mut self.sealed);
        self.settled.clear();
        self.commit_began = now;
    }

    pub(super) fn committed(&mut self, now: Timestamp) {
        self.counts.commits += 1;
        self.counts.commit.observe(now.since(self.commit_began));
        for published in self.sealed.drain(..) {
            self.counts.end_to_end.observe(now.since(published));
        }
    }

    /// Everything since the last commit is settled again.
    pub(super) fn start_again(&mut self) {
        self.settled.clear();
        self.sealed.clear();
    }

    /// What was counted, and starts anew.
    pub(super) fn take(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_core::dispatcher::Content;
    use millrace_core::intake::{Intake, Origin};
    use millrace_core::policy::Ordering;
    use millrace_core::progress::{Position, Stream};
    use millrace_core::record::Record;

    use super::*;

    fn settled(offset: u64, published: u64, settlement: Settlement) -> Settled<Box<Delivered>> {
        let record = Record { timestamp: at(published), key: None, value: None, headers: Default::default() };
        let origin = Origin { topic: "t".parse().unwrap(), partition: 0, offset };
        let intake = Intake { ordering: Ordering::None, filter: None, key: None };
        let payload = match intake.take(Stream::Source, origin, record) {
            Content::Event { payload, .. } | Content::Refused { payload, .. } => Some(payload),
            Content::Filtered { payload } => payload,
        };
        Settled { position: Position { stream: Stream::Source, offset }, payload, settlement }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn an_event_is_counted_when_its_own_commit_is_durable() {
        let mut tally = Tally::default();
        tally.settled(&settled(0, 1_000, Settlement::Completed));
        tally.commit_began(at(1_100));
        // This one belongs to the next commit, and a duplicate was handled by another event.
        tally.settled(&settled(1, 1_000, Settlement::Completed));
        tally.settled(&settled(2, 1_000, Settlement::Duplicate));
        tally.committed(at(1_150));
        let first = tally.take();
        assert_eq!((first.commits, first.commit.sum()), (1, Duration::from_millis(50)));
        assert_eq!((first.end_to_end.count(), first.end_to_end.sum()), (1, Duration::from_millis(150)));
        tally.commit_began(at(1_200));
        tally.committed(at(3_000));
        let second = tally.take();
        assert_eq!((second.end_to_end.count(), second.end_to_end.sum()), (1, Duration::from_secs(2)));
    }

    #[test]
    fn revisions_are_counted_one_by_one_and_the_ones_before_forgotten() {
        let mut counts = Counts::default();
        let of = |revision, failed| Counts {
            revisions: vec![Attempts { revision, failed, ..Attempts::default() }],
            ..Counts::default()
        };
        let shown = |counts: &Counts| counts.revisions.iter().map(|one| (one.revision, one.failed)).collect::<Vec<_>>();
        for (revision, failed) in [(1, 1), (2, 0), (1, 2), (3, 1)] {
            counts.merge(&of(revision, failed));
        }
        assert_eq!(shown(&counts), [(2, 0), (1, 3), (3, 1)]);
        // The oldest number goes on as long as it makes attempts.
        for revision in 4..12 {
            counts.merge(&of(revision, 0));
            counts.merge(&of(1, 1));
        }
        let expected: Vec<(u64, u64)> = (5..12).map(|revision| (revision, 0)).chain([(1, 11)]).collect();
        assert_eq!(shown(&counts), expected);
    }

    #[test]
    fn what_is_done_again_is_counted_once() {
        let mut tally = Tally::default();
        tally.settled(&settled(0, 1_000, Settlement::Completed));
        tally.commit_began(at(1_100));
        tally.settled(&settled(1, 1_000, Settlement::Completed));
        tally.start_again();
        tally.settled(&settled(0, 1_000, Settlement::Completed));
        tally.commit_began(at(1_300));
        tally.committed(at(1_400));
        let counts = tally.take();
        assert_eq!((counts.commits, counts.end_to_end.count()), (1, 1));
    }
}
