//! An operator has told a partition where to go on.

use millrace_core::name::Unit;
use millrace_core::progress::Progress;
use millrace_core::revision::{Resets, Target};

use super::{Concluded, Exit, Owned, Revision};
use crate::broker::Partition;

impl<P: Partition, R: Revision> Owned<P, R> {
    /// Where it was told to go on, if it has not yet.
    pub(super) fn told(&self) -> Option<Target> {
        let target = self.shared.resets.borrow().of(self.partition.unit())?;
        (target.number > self.dispatcher.last_committed().reset.number).then_some(target)
    }

    /// Goes on from where it was told to. What is settled is committed before, and the position alone after: whatever happens
    /// between, it is told again.
    pub(super) async fn heed_reset(&mut self) -> Result<Concluded, Exit> {
        if self.draining() {
            return Ok(Concluded::Committed);
        }
        let Some(target) = self.told() else { return Ok(Concluded::Committed) };
        if self.commit_all().await? == Concluded::StartedAgain {
            return Ok(Concluded::StartedAgain);
        }
        self.start_again();
        self.dispatcher.reset(&target);
        if self.commit_all().await? == Concluded::StartedAgain {
            // Whatever the log refuses, it is not asked all the time.
            self.pause_due = true;
            return Ok(Concluded::StartedAgain);
        }
        let Target { number, offset, forget } = target;
        let unit = self.partition.unit();
        tracing::warn!(%unit, deployment = number, offset, forget, "An operator has set the position.");
        self.status.go_on();
        Ok(Concluded::Committed)
    }
}

/// What a unit was told until now is done with.
pub(super) fn take_for_done(progress: &mut Progress, resets: &Resets, unit: &Unit) {
    if let Some(target) = resets.of(unit) {
        progress.reset.number = progress.reset.number.max(target.number);
    }
}
