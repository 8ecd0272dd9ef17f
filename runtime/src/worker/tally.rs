//! What a worker counts for itself: shown to others once per commit, so that no event costs a lock.

use millrace_core::dispatcher::{Settled, Settlement, Ticket};
use millrace_core::intake::Delivered;
use millrace_core::outcome::Outcome;
use millrace_core::time::Timestamp;

use crate::sandbox::Completion;
use crate::telemetry::Histogram;

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

    pub(super) fn attempted(&mut self, now: Timestamp, ticket: &Ticket<Box<Delivered>>, completion: &Completion) {
        let Completion { outcome, usage, .. } = completion;
        let counts = &mut self.counts;
        counts.attempts += 1;
        counts.failed_attempts += u64::from(*outcome != Outcome::Completed);
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
