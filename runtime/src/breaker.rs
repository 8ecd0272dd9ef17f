//! One function's breaker, shared by its workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_core::breaker::{Breaker, Phase};
use millrace_core::policy::BreakerPolicy;
use millrace_core::time::Timestamp;
use tokio::sync::watch;

/// A handle to a function's breaker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedBreaker {
    shared: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    breaker: Breaker,
    /// One for each worker, so that they are told in a fixed order.
    watchers: Vec<watch::Sender<u64>>,
}

impl SharedBreaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { shared: Arc::new(Mutex::new(Inner { breaker: Breaker::new(policy), watchers: Vec::new() })) }
    }

    /// Wakes whenever the phase may have changed, except by the passing of time.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut inner = self.lock();
        inner.watchers.retain(|watcher| watcher.receiver_count() > 0);
        let watcher = watch::Sender::new(0);
        let changes = watcher.subscribe();
        inner.watchers.push(watcher);
        changes
    }

    /// What it lets through now.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        self.lock().breaker.phase(now)
    }

    /// Counts events that did not fail at their first attempt.
    pub fn succeeded(&self, now: Timestamp, events: u64) {
        if events > 0 {
            self.lock().breaker.succeeded(now, events);
        }
    }

    /// Counts an event that failed at its first attempt; `key` tells keys apart.
    pub fn failed(&self, now: Timestamp, key: u64) {
        self.change(now, |breaker| breaker.failed(now, key));
    }

    /// Takes the one trial of a half-open breaker.
    #[must_use]
    pub fn try_one(&self, now: Timestamp) -> bool {
        self.lock().breaker.try_one(now)
    }

    /// Gives an unused trial back.
    pub fn release(&self) {
        let mut inner = self.lock();
        inner.breaker.release();
        inner.announce();
    }

    /// The trial's result.
    pub fn tried(&self, now: Timestamp, failed: bool) {
        self.change(now, |breaker| breaker.tried(now, failed));
    }

    fn change(&self, now: Timestamp, change: impl FnOnce(&mut Breaker)) {
        let mut inner = self.lock();
        let before = inner.breaker.phase(now);
        change(&mut inner.breaker);
        if before != inner.breaker.phase(now) {
            inner.announce();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A worker that panicked left the counts as they were, which is good enough to go on.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn announce(&self) {
        for watcher in &self.watchers {
            watcher.send_modify(|changes| *changes += 1);
        }
    }
}
