//! What a unit of ownership has done, as it is written in each commit.

use std::ops::Range;

use crate::outcome::Category;
use crate::time::Timestamp;

/// Which of a unit's two logs a position lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// The partition of the source topic.
    Source,
    /// The partition of the function's redrive topic for that source topic.
    Redrive,
}

/// The place of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The log.
    pub stream: Stream,
    /// The record's offset in it.
    pub offset: u64,
}

/// Settlements counted by outcome. Each consumed record is counted exactly once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The handler succeeded, and its effects were committed.
    pub completed: u64,
    /// The filter said no.
    pub filtered: u64,
    /// Its idempotency key was known.
    pub duplicate: u64,
    /// It became a dead letter.
    pub dead_lettered: u64,
    /// An operator skipped it, or it was gone before it could be read.
    pub skipped: u64,
    /// An offset without a record, such as a transaction marker.
    pub not_a_record: u64,
}

impl Totals {
    /// All settlements.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.completed + self.filtered + self.duplicate + self.dead_lettered + self.skipped + self.not_a_record
    }
}

/// How far one log of a unit is settled.
///
/// Invariant, for each log: `resume - start + settled above = totals.sum()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamProgress {
    /// The offset at which the function began.
    pub start: u64,
    /// The resume point: one past the last contiguous settled offset.
    pub resume: u64,
    /// Settled offsets above the resume point: disjoint, ascending, not touching one another.
    pub settled_above: Vec<Range<u64>>,
    /// Settlements by outcome.
    pub totals: Totals,
}

impl StreamProgress {
    /// Settled offsets above the resume point.
    #[must_use]
    pub fn settled_above_count(&self) -> u64 {
        self.settled_above.iter().map(|range| range.end.saturating_sub(range.start)).sum()
    }

    /// Offsets below `end` that are not settled; 0 if `end` lies before the resume point.
    #[must_use]
    pub fn unsettled_below(&self, end: u64) -> u64 {
        let below = |range: &Range<u64>| range.end.min(end).saturating_sub(range.start);
        end.saturating_sub(self.resume).saturating_sub(self.settled_above.iter().map(below).sum())
    }

    /// Whether the record at this offset is settled.
    #[must_use]
    pub fn is_settled(&self, offset: u64) -> bool {
        offset < self.resume || self.settled_above.iter().any(|range| range.contains(&offset))
    }
}

/// The head of a lane that waits for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedHead {
    /// Where the event is.
    pub position: Position,
    /// Failed attempts so far; at least 1.
    pub attempts: u32,
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// Not to be attempted before.
    pub due_at: Timestamp,
    /// The last failure's category.
    pub category: Category,
}

/// A 128-bit hash of an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u128);

/// The last time that a person set a unit's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reset {
    /// The number of the function's deployment that asked for it; 0 if none ever did.
    pub number: u64,
    /// The unit's commit with which its idempotency keys were forgotten last: those of commits before it are not known any more. 0
    /// if they never were.
    pub forgot_in: u64,
}

/// All that a unit must know to go on after a restart, except its idempotency keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The source topic's partition.
    pub source: StreamProgress,
    /// The redrive topic's partition.
    pub redrive: StreamProgress,
    /// Heads of parked lanes, by position.
    pub parked: Vec<ParkedHead>,
    /// Commits of this unit so far.
    pub commits: u64,
    /// When its position was last set by a person.
    pub reset: Reset,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_settled_is_counted_below_an_end() {
        let stream = StreamProgress { resume: 5, settled_above: vec![6..7, 8..10], ..StreamProgress::default() };
        for (end, expected) in [(0, 0), (5, 0), (6, 1), (7, 1), (8, 2), (9, 2), (10, 2), (12, 4)] {
            assert_eq!(stream.unsettled_below(end), expected, "{end}");
        }
        let unsettled: Vec<u64> = (0..12).filter(|offset| !stream.is_settled(*offset)).collect();
        assert_eq!(unsettled, [5, 7, 10, 11]);
    }
}
