//! Which offsets of one log are settled: everything below the resume point, and some above it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::progress::{StreamProgress, Totals};

/// Settled offsets of one log, with the account of how they were settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    start: u64,
    resume: u64,
    /// Start to end of each settled range above the resume point; disjoint, and no two touch.
    above: BTreeMap<u64, u64>,
    above_count: u64,
    totals: Totals,
}

impl Offsets {
    /// Goes on from what was committed.
    ///
    /// # Panics
    /// If the progress breaks its invariant, which a checksum should have found earlier.
    #[must_use]
    pub fn restore(progress: &StreamProgress) -> Self {
        let above: BTreeMap<u64, u64> = progress.settled_above.iter().map(|r| (r.start, r.end)).collect();
        let offsets = Self {
            start: progress.start,
            resume: progress.resume,
            above_count: above.iter().map(|(start, end)| end - start).sum(),
            above,
            totals: progress.totals,
        };
        offsets.assert_balanced();
        offsets
    }

    /// The resume point: one past the last contiguous settled offset.
    #[must_use]
    pub fn resume(&self) -> u64 {
        self.resume
    }

    /// Settlements by outcome; the caller counts in them what it settles.
    pub fn totals_mut(&mut self) -> &mut Totals {
        &mut self.totals
    }

    /// Whether this offset is settled.
    #[must_use]
    pub fn is_settled(&self, offset: u64) -> bool {
        offset < self.resume || self.range_before(offset).is_some_and(|(_, end)| offset < end)
    }

    /// The first offset at or after `from` that is not settled.
    #[must_use]
    pub fn next_unsettled(&self, from: u64) -> u64 {
        let from = from.max(self.resume);
        match self.range_before(from) {
            Some((_, end)) if from < end => end,
            _ => from,
        }
    }

    /// Settles one offset.
    ///
    /// # Panics
    /// If it is settled already: an event must be settled exactly once.
    pub fn settle(&mut self, offset: u64) {
        if offset == self.resume && self.above.is_empty() {
            self.resume += 1;
            return;
        }
        assert!(!self.is_settled(offset), "offset {offset} must be settled once only");
        self.insert(offset..offset + 1);
    }

    /// Settles what is not yet settled in a range, and answers with how many offsets that were.
    pub fn settle_rest(&mut self, range: Range<u64>) -> u64 {
        let mut settled = 0;
        let mut at = self.next_unsettled(range.start);
        while at < range.end {
            let end = self.above.range(at..).next().map_or(range.end, |(start, _)| (*start).min(range.end));
            settled += end - at;
            self.insert(at..end);
            at = self.next_unsettled(end);
        }
        settled
    }

    /// What a commit writes.
    ///
    /// # Panics
    /// If the account does not balance.
    #[must_use]
    pub fn progress(&self) -> StreamProgress {
        self.assert_balanced();
        StreamProgress {
            start: self.start,
            resume: self.resume,
            settled_above: self.above.iter().map(|(start, end)| *start..*end).collect(),
            totals: self.totals,
        }
    }

    /// Adds a range of which nothing is settled, joining its neighbours.
    fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        self.above_count += end - start;
        if let Some((before, touching)) = self.range_before(start)
            && touching == start
        {
            start = before;
        }
        if let Some(after) = self.above.remove(&end) {
            end = after;
        }
        if start == self.resume {
            // The joined range is contiguous with everything settled, so it needs no entry of its own.
            self.above.remove(&start);
            self.above_count -= end - start;
            self.resume = end;
        } else {
            self.above.insert(start, end);
        }
    }

    /// The last range that starts at or before `offset`.
    fn range_before(&self, offset: u64) -> Option<(u64, u64)> {
        self.above.range(..=offset).next_back().map(|(start, end)| (*start, *end))
    }

    fn assert_balanced(&self) {
        assert!(self.start <= self.resume, "the resume point {} lies before the start {}", self.resume, self.start);
        assert_eq!(
            self.resume - self.start + self.above_count,
            self.totals.sum(),
            "settled offsets and accounts must balance: {self:?}"
        );
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(settle: &[u64], resume: u64, above: &[Range<u64>]) {
        let mut offsets = Offsets::default();
        for offset in settle {
            offsets.settle(*offset);
            offsets.totals_mut().completed += 1;
        }
        let progress = offsets.progress();
        assert_eq!((progress.resume, &*progress.settled_above), (resume, above), "after settling {settle:?}");
        assert_eq!(Offsets::restore(&progress), offsets);
    }

    #[test]
    fn the_resume_point_moves_only_over_contiguous_offsets() {
        check(&[], 0, &[]);
        check(&[0, 1, 2], 3, &[]);
        check(&[1], 0, &[1..2]);
        check(&[1, 0], 2, &[]);
        check(&[1, 3], 0, &[1..2, 3..4]);
        check(&[1, 3, 2], 0, &[1..4]);
        check(&[3, 1, 2, 0], 4, &[]);
        check(&[5, 4, 0], 1, &[4..6]);
    }

    #[test]
    #[should_panic(expected = "once only")]
    fn settling_twice_is_a_bug() {
        check(&[0, 2, 2], 0, &[]);
    }

    #[test]
    #[should_panic(expected = "once only")]
    fn settling_below_the_resume_point_is_a_bug() {
        check(&[0, 1, 0], 0, &[]);
    }

    proptest! {
        #[test]
        fn offsets_agree_with_a_set(script in prop::collection::vec((0u64..40, 1u64..5), 0..40)) {
            let mut offsets = Offsets::default();
            let mut model = BTreeSet::new();
            for (start, len) in script {
                let new = (start..start + len).filter(|o| model.insert(*o)).count() as u64;
                let settled = offsets.settle_rest(start..start + len);
                offsets.totals_mut().not_a_record += settled;
                prop_assert_eq!(settled, new);
            }
            for offset in 0..50 {
                prop_assert_eq!(offsets.is_settled(offset), model.contains(&offset));
                let next = (offset..).find(|o| !model.contains(o)).unwrap_or(u64::MAX);
                prop_assert_eq!(offsets.next_unsettled(offset), next);
            }
            let progress = offsets.progress();
            prop_assert_eq!(progress.resume, (0..).find(|o| !model.contains(o)).unwrap_or(u64::MAX));
            prop_assert!(progress.settled_above.windows(2).all(|w| matches!(w, [a, b] if a.end < b.start)));
            prop_assert_eq!(Offsets::restore(&progress), offsets);
        }
    }
}
