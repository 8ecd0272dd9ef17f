//! One function's breaker, shared by its workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_core::breaker::{Breaker, Phase};
use millrace_core::policy::BreakerPolicy;
use millrace_core::time::Timestamp;
use tokio::sync::watch;

/// A handle to a function's breaker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedBreaker {
    breaker: Arc<Mutex<Breaker>>,
    changes: watch::Sender<u64>,
}

impl SharedBreaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { breaker: Arc::new(Mutex::new(Breaker::new(policy))), changes: watch::Sender::new(0) }
    }

    /// Wakes whenever the phase may have changed, except by the passing of time.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What it lets through now.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        self.lock().phase(now)
    }

    /// Counts events that did not fail at their first attempt.
    pub fn succeeded(&self, now: Timestamp, events: u64) {
        if events > 0 {
            self.lock().succeeded(now, events);
        }
    }

    /// Counts an event that failed at its first attempt; `key` tells keys apart.
    pub fn failed(&self, now: Timestamp, key: u64) {
        self.change(now, |breaker| breaker.failed(now, key));
    }

    /// Takes the one trial of a half-open breaker.
    #[must_use]
    pub fn try_one(&self, now: Timestamp) -> bool {
        self.lock().try_one(now)
    }

    /// Gives an unused trial back.
    pub fn release(&self) {
        self.lock().release();
        self.announce();
    }

    /// The trial's result.
    pub fn tried(&self, now: Timestamp, failed: bool) {
        self.change(now, |breaker| breaker.tried(now, failed));
    }

    fn change(&self, now: Timestamp, change: impl FnOnce(&mut Breaker)) {
        let mut breaker = self.lock();
        let before = breaker.phase(now);
        change(&mut breaker);
        let after = breaker.phase(now);
        drop(breaker);
        if before != after {
            self.announce();
        }
    }

    fn announce(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // A worker that panicked left the counts as they were, which is good enough to go on.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
