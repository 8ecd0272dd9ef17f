//! What runs of a function: the active revision, and a canary beside it. Which of the two handles an event follows from its key.

use std::sync::Arc;

use millrace_core::canary::Share;
use millrace_core::intake::Delivered;

use super::Revision;
use crate::sandbox::Sandbox as _;

/// What workers run from now on.
#[derive(Debug)]
pub struct Running<R> {
    /// It takes events in, and handles those that the canary does not.
    pub active: Arc<R>,
    /// It handles a share of the keys. All that concerns the function as a whole is the same as of the active revision.
    pub canary: Option<Canary<R>>,
}

/// A revision that handles a share of the keys.
#[derive(Debug)]
pub struct Canary<R> {
    /// The revision.
    pub revision: Arc<R>,
    /// Its share of the keys.
    pub share: Share,
}

impl<R> Clone for Running<R> {
    fn clone(&self) -> Self {
        Self { active: Arc::clone(&self.active), canary: self.canary.clone() }
    }
}

impl<R> Clone for Canary<R> {
    fn clone(&self) -> Self {
        Self { revision: Arc::clone(&self.revision), share: self.share }
    }
}

impl<R: Revision> Running<R> {
    /// The canary, if it is to handle this event: it is chosen by the ordering key, or else by the event's id.
    fn canary_for(&self, delivered: &Delivered) -> Option<&Arc<R>> {
        let Canary { revision, share } = self.canary.as_ref()?;
        // What cannot be decoded is handled by none: it was the active one that took it in.
        let event = delivered.event.as_ref()?;
        let key = delivered.key.as_deref().unwrap_or(event.id.as_bytes());
        share.takes(revision.number(), key).then_some(revision)
    }

    /// The number of the revision that handles this event.
    pub(super) fn number_for(&self, delivered: &Delivered) -> u64 {
        self.canary_for(delivered).unwrap_or(&self.active).number()
    }

    /// Whether a handler was granted state.
    pub(super) fn keeps_state(&self) -> bool {
        self.active.keeps_state() || self.canary.as_ref().is_some_and(|canary| canary.revision.keeps_state())
    }
}

/// The sandboxes of one worker.
pub(super) struct Sandboxes<R: Revision> {
    active: R::Sandbox,
    canary: Option<R::Sandbox>,
}

/// Which sandbox makes an attempt, for which revision.
pub(super) struct Chosen<'a, R: Revision> {
    pub(super) sandbox: &'a mut R::Sandbox,
    pub(super) number: u64,
    pub(super) keeps_state: bool,
}

impl<R: Revision> Sandboxes<R> {
    pub(super) fn new(running: &Running<R>) -> Self {
        let canary = running.canary.as_ref().map(|canary| canary.revision.sandbox());
        Self { active: running.active.sandbox(), canary }
    }

    /// Goes on with what stays the same.
    pub(super) fn change_over(&mut self, before: &Running<R>, now: &Running<R>) {
        let canary_before = before.canary.as_ref().map(|canary| &canary.revision);
        let of_canary = self.canary.take();
        if !Arc::ptr_eq(&before.active, &now.active) {
            self.active = now.active.sandbox();
        }
        self.canary = now.canary.as_ref().map(|canary| match of_canary {
            Some(sandbox) if canary_before.is_some_and(|before| Arc::ptr_eq(before, &canary.revision)) => sandbox,
            _ => canary.revision.sandbox(),
        });
    }

    /// The one for this event. The other one has nothing to run meanwhile, and may have to leave its place to others.
    pub(super) fn choose<'a>(&'a mut self, running: &Running<R>, delivered: &Delivered) -> Chosen<'a, R> {
        let (sandbox, revision) = match (&mut self.canary, running.canary_for(delivered)) {
            (Some(canary), Some(revision)) => {
                self.active.idle();
                (canary, revision)
            }
            (Some(canary), None) => {
                canary.idle();
                (&mut self.active, &running.active)
            }
            (None, _) => (&mut self.active, &running.active),
        };
        Chosen { sandbox, number: revision.number(), keeps_state: revision.keeps_state() }
    }

    /// There is nothing to run.
    pub(super) fn idle(&mut self) {
        self.active.idle();
        if let Some(canary) = &mut self.canary {
            canary.idle();
        }
    }
}
