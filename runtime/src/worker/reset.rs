//! An operator has told a partition where to go on.

use millrace_core::revision::Target;

use super::{Concluded, Exit, Owned, Revision};
use crate::broker::Partition;

impl<P: Partition, R: Revision> Owned<P, R> {
    /// Where it was told to go on, if it has not yet.
    pub(super) fn told(&mut self) -> Option<Target> {
        let target = self.shared.resets.borrow_and_update().of(self.partition.unit())?;
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
        if self.go_to(&target).await? == Concluded::StartedAgain {
            // Whatever the log refuses, it is not asked all the time.
            self.pause_due = true;
            return Ok(Concluded::StartedAgain);
        }
        self.go_on();
        Ok(Concluded::Committed)
    }

    /// Commits the position alone. Nothing else waits for a commit.
    async fn go_to(&mut self, target: &Target) -> Result<Concluded, Exit> {
        self.start_again();
        self.dispatcher.reset(target);
        let concluded = self.commit_all().await?;
        if concluded == Concluded::Committed {
            let Target { number, offset, .. } = target;
            let unit = self.partition.unit();
            tracing::warn!(%unit, deployment = number, offset, "An operator has set the position.");
        }
        Ok(concluded)
    }

    /// It was told to go on from the oldest record, has not settled any since, and that one is gone by now: it goes on from the
    /// one that is the oldest now. Says whether that was so.
    pub(super) async fn follow_oldest(&mut self, earliest: u64) -> Result<bool, Exit> {
        let told = self.shared.resets.borrow().of(self.partition.unit());
        let progress = self.dispatcher.last_committed();
        let is_fresh = progress.source.resume == progress.source.start && progress.source.settled_above.is_empty();
        let target = told.filter(|target| target.oldest && target.number == progress.reset.number && is_fresh);
        let Some(target) = target else { return Ok(false) };
        self.go_to(&Target { offset: earliest, ..target }).await?;
        Ok(true)
    }
}
