//! The one place that reads the wall clock.

use millrace_core::time::Timestamp;
use tokio::time::Instant;

/// Wall time that never jumps: read once when the process starts, then moved on by the monotonic clock. Under tokio's
/// paused time it is the simulation's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Timestamp,
    started: Instant,
}

impl Clock {
    /// Reads the system's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads it")]
    pub fn system() -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(Timestamp::EPOCH + since_epoch)
    }

    /// A clock that reads `origin` now.
    #[must_use]
    pub fn starting_at(origin: Timestamp) -> Self {
        Self { origin, started: Instant::now() }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.origin + self.started.elapsed()
    }

    /// The instant to sleep until so that [`Clock::now`] has reached `at`.
    #[must_use]
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.started + at.since(self.origin)
    }
}
