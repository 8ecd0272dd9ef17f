//! How much is committed at once after the log did not take a commit, and what it refused.

use std::collections::HashMap;

use crate::outcome::{Category, Failure};
use crate::progress::Position;

/// After the log did not take a commit, half as many settlements are committed at once, until the culprit is alone or the log
/// is quick enough; with each commit that is taken twice as many again.
#[derive(Debug, Default)]
pub(super) struct Isolation {
    /// Settlements still to be committed so.
    remaining: usize,
    /// How many at once.
    at_once: usize,
    /// Events whose own commit was refused, with the log's reason: they fail without being attempted; once only if the log may
    /// take them later.
    pub(super) blamed: HashMap<Position, Failure>,
    /// Not even its dead letter was taken: the partition waits for an operator.
    pub(super) stuck: Option<(Position, Failure)>,
}

impl Isolation {
    /// How many settlements may be committed at once, while that is bounded.
    pub(super) fn bound(&self) -> Option<usize> {
        (self.remaining > 0).then_some(self.at_once)
    }

    /// A commit of so many settlements was not taken, and with it others are done again.
    pub(super) fn halve(&mut self, sealed: usize, others: usize) {
        self.remaining = self.remaining.max(sealed + others);
        self.at_once = (sealed / 2).max(1);
    }

    /// A commit of so many settlements was taken.
    pub(super) fn committed(&mut self, settlements: usize) {
        self.remaining = self.remaining.saturating_sub(settlements);
        self.at_once = self.at_once.saturating_mul(2);
    }

    /// Why the event there fails without being attempted, if the log refused it.
    pub(super) fn blame(&mut self, position: Position) -> Option<Failure> {
        let failure = self.blamed.get(&position)?.clone();
        if failure.category == Category::Transient {
            self.blamed.remove(&position);
        }
        Some(failure)
    }
}
