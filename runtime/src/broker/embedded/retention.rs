//! Decides which batches go. Pure: what there is comes in, up to where each partition is removed goes out.

use std::collections::VecDeque;

use millrace_core::time::Timestamp;

/// A batch that may be removed: every active function has settled it, and it is not the partition's last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removable {
    /// One past its last offset.
    pub(super) end: u64,
    pub(super) bytes: u64,
    pub(super) newest: Timestamp,
}

/// A partition with its removable batches, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Which topic it belongs to; partitions of a topic share its bound.
    pub(super) topic: u32,
    pub(super) rule: Rule,
    pub(super) batches: VecDeque<Removable>,
}

/// What its topic's retention says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Whatever is removable goes.
    Settled,
    /// What is older than this goes, then the oldest while the topic is above its bound.
    Bounded {
        /// None keeps batches whatever their age.
        expired_before: Option<Timestamp>,
        /// Bytes that the topic has too many.
        excess_bytes: u64,
    },
}

/// What goes from a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Removal {
    /// The new start; zero if nothing goes.
    pub(super) end: u64,
    pub(super) bytes: u64,
}

/// Decides for each candidate, in order. `excess_bytes` is what the whole log has too many.
pub(super) fn decide(candidates: Vec<Candidate>, excess_bytes: u64) -> Vec<Removal> {
    let removals = vec![Removal::default(); candidates.len()];
    let mut plan = Plan { candidates, excess_bytes, removals };
    plan.take_expired();
    while let Some(i) = plan.oldest(|c| matches!(c.rule, Rule::Bounded { excess_bytes: 1.., .. })) {
        plan.take(i);
    }
    while plan.excess_bytes > 0
        && let Some(i) = plan.oldest(|_| true)
    {
        plan.take(i);
    }
    plan.removals
}

struct Plan {
    candidates: Vec<Candidate>,
    excess_bytes: u64,
    removals: Vec<Removal>,
}

impl Plan {
    fn take_expired(&mut self) {
        for i in 0..self.candidates.len() {
            let expired = |c: &Candidate| match (c.rule, c.batches.front()) {
                (_, None) => false,
                (Rule::Settled, Some(_)) => true,
                (Rule::Bounded { expired_before, .. }, Some(batch)) => expired_before.is_some_and(|b| batch.newest < b),
            };
            while expired(&self.candidates[i]) {
                self.take(i);
            }
        }
    }

    /// The candidate among those wanted whose first batch is the oldest.
    fn oldest(&self, wanted: impl Fn(&Candidate) -> bool) -> Option<usize> {
        let wanted = self.candidates.iter().enumerate().filter(|(_, c)| wanted(c));
        wanted.filter_map(|(i, c)| Some((c.batches.front()?.newest, i))).min().map(|(_, i)| i)
    }

    /// Removes the first batch of a candidate.
    fn take(&mut self, i: usize) {
        let candidate = &mut self.candidates[i];
        let Some(batch) = candidate.batches.pop_front() else { return };
        let topic = candidate.topic;
        self.removals[i].end = batch.end;
        self.removals[i].bytes += batch.bytes;
        self.excess_bytes = self.excess_bytes.saturating_sub(batch.bytes);
        for other in self.candidates.iter_mut().filter(|c| c.topic == topic) {
            if let Rule::Bounded { excess_bytes, .. } = &mut other.rule {
                *excess_bytes = excess_bytes.saturating_sub(batch.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each candidate: topic, rule, ages of its batches of 10 bytes and 5 records, oldest first. The result: batches removed.
    fn check(candidates: &[(u32, Rule, &[u64])], excess_bytes: u64, expected: &[u64]) {
        let candidates = candidates.iter().map(|(topic, rule, times)| Candidate {
            topic: *topic,
            rule: *rule,
            batches: times
                .iter()
                .zip(1..)
                .map(|(t, n)| Removable { end: n * 5, bytes: 10, newest: Timestamp::from_millis(*t) })
                .collect(),
        });
        let removals = decide(candidates.collect(), excess_bytes);
        assert_eq!(removals.iter().map(|r| r.end / 5).collect::<Vec<_>>(), expected);
        assert_eq!(removals.iter().map(|r| r.bytes / 10).collect::<Vec<_>>(), expected);
    }

    const KEEP: Rule = Rule::Bounded { expired_before: None, excess_bytes: 0 };

    fn age(before: u64) -> Rule {
        Rule::Bounded { expired_before: Some(Timestamp::from_millis(before)), excess_bytes: 0 }
    }

    fn size(excess_bytes: u64) -> Rule {
        Rule::Bounded { expired_before: None, excess_bytes }
    }

    #[test]
    fn what_is_expired_or_too_much_goes_oldest_first() {
        check(&[], 100, &[]);
        check(&[(1, KEEP, &[1, 2, 3])], 0, &[0]);
        check(&[(1, Rule::Settled, &[1, 2, 3])], 0, &[3]);
        check(&[(1, age(3), &[1, 2, 3])], 0, &[2]);
        check(&[(1, age(9), &[])], 0, &[0]);
        // A young batch holds back older ones behind it, for the log has no holes.
        check(&[(1, age(3), &[5, 1, 2])], 0, &[0]);
        check(&[(1, size(1), &[1, 2, 3])], 0, &[1]);
        check(&[(1, size(15), &[1, 2, 3])], 0, &[2]);
        check(&[(1, size(1_000), &[1, 2, 3])], 0, &[3]);
        // Partitions share their topic's bound, and the oldest batch of all goes first.
        check(&[(1, size(20), &[4, 5]), (1, size(20), &[2, 3]), (2, KEEP, &[1])], 0, &[0, 2, 0]);
        // Above the bound of the whole log, the oldest go whatever their topic.
        check(&[(1, KEEP, &[4, 5]), (2, KEEP, &[1, 6])], 25, &[2, 1]);
        // What age took counts against the excess.
        check(&[(1, age(3), &[1, 2, 9]), (2, KEEP, &[1])], 20, &[2, 0]);
    }
}
