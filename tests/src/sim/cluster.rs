//! A simulated broker by itself, on which nothing goes wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use millrace::clock::Clock;

use super::broker::SimBroker;
use super::group::{Group, Told};
use super::life::Life;
use super::world::{Faults, World};

/// A simulated broker without topics. Needs tokio's paused time.
#[derive(Debug)]
pub struct SimCluster {
    group: Arc<Group>,
    instances: AtomicU32,
}

impl SimCluster {
    /// The seed decides how records are cut into fetches, how long what takes, and who is assigned what.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let world = World::new(seed, Faults::default());
        let clock = Clock::starting_at(world.now);
        Self { group: Group::new(&Arc::new(Mutex::new(world)), clock), instances: AtomicU32::new(0) }
    }

    /// One more instance.
    #[must_use]
    pub fn open(&self) -> SimBroker {
        let id = self.instances.fetch_add(1, Ordering::Relaxed);
        SimBroker { group: Arc::clone(&self.group), id, life: Life::default() }
    }

    /// The time.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.group.clock
    }
}

impl SimBroker {
    /// The instance ends in an orderly way.
    pub fn leave(self) {
        self.group.leave(self.id, Told::AtOnce);
    }
}
