//! Which revisions run: an active one, and at times a canary beside it, as somebody decided.

use millrace_core::canary::Share;

use super::rng::Rng;

/// What somebody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stands {
    pub(super) active: u64,
    pub(super) canary: Option<(u64, Share)>,
    /// The newest revision that there was.
    latest: u64,
}

impl Default for Stands {
    fn default() -> Self {
        Self { active: 1, canary: None, latest: 1 }
    }
}

impl Stands {
    /// Somebody begins a canary, gives it another share, promotes it, or gives it up.
    pub(super) fn change(&mut self, rng: &mut Rng) {
        let share = Share::try_from(u16::try_from(rng.between(1, 9999)).expect("a share")).expect("a share");
        let what = rng.below(4);
        self.canary = match (self.canary, what) {
            (Some((canary, _)), 0) => Some((canary, share)),
            (Some((canary, _)), 1) => {
                self.active = canary;
                None
            }
            (Some(_), 2) => None,
            (Some(_) | None, _) => {
                self.latest += 1;
                Some((self.latest, share))
            }
        };
    }

    /// The revision that handles an event.
    pub(super) fn handles(&self, key: Option<&[u8]>, id: &str) -> u64 {
        match self.canary {
            Some((canary, share)) if share.takes(canary, key.unwrap_or(id.as_bytes())) => canary,
            Some(_) | None => self.active,
        }
    }
}
