//! Going on from another place, as a person said.

use super::{Dispatcher, Isolation, Log, Payload};
use crate::progress::{Reset, StreamProgress};
use crate::revision::Target;

impl<T: Payload> Dispatcher<T> {
    /// Goes on from another place of the source, with an account that begins anew, as [`Dispatcher::abort`] does from the last
    /// commit. The next commit must be made before anything else happens: from then on it holds. Attempts of what is delivered
    /// again are remembered, and nothing of the redrive log changes.
    ///
    /// # Panics
    /// If a commit is under way, or settlements wait for one.
    pub fn reset(&mut self, target: &Target) {
        assert!(self.sealed.is_none() && !self.group.dirty, "what was settled is committed before the position is set");
        self.abort();
        let Target { number, offset, forgets, .. } = *target;
        let place = StreamProgress { start: offset, resume: offset, ..StreamProgress::default() };
        self.source = Log::restore(&place);
        let forget = forgets > self.committed.reset.number;
        let forgot_in = if forget { self.committed.commits + 1 } else { self.committed.reset.forgot_in };
        self.reset = Reset { number, forgot_in };
        self.isolation = Isolation::default();
        self.group.dirty = true;
    }
}
