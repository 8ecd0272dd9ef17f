//! Room for instances: how much of it is set aside, and who may have some.
//!
//! There can be more guests than there is room for. So one that waits for events keeps its instance only while there is room to
//! spare, and one that is busy lets others have their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{Enabled, PoolingAllocationConfig};

use super::Error;
use super::artifact::Component;
use super::engine::EngineOptions;
use super::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_MAX_ELEMENTS, TABLES_MAX};

/// How long a busy guest keeps its instance although others wait: so many events that making another one costs little.
const TURN: Duration = Duration::from_millis(10);
/// How long a guest waits for its turn before that is told.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Tables that there are for each place; components made by the usual tools have two.
const TABLES_EACH: u32 = 4;
/// The most places that one instance takes.
const WEIGHT_MAX: u32 = 8;

const _: () = assert!(MEMORIES_MAX <= WEIGHT_MAX as usize && TABLES_MAX <= (WEIGHT_MAX * TABLES_EACH) as usize);

/// The places for instances of one engine.
#[derive(Debug)]
pub(super) struct Pool {
    free: Arc<Semaphore>,
    all: u32,
    /// Places that guests without work leave to those with work.
    spare: usize,
    waiting: AtomicUsize,
}

/// What one instance takes of the pool, until it is dropped: after the instance.
#[derive(Debug)]
pub(super) struct Place {
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(all: u32) -> Self {
        let spare = (all / 4).max(WEIGHT_MAX).min(all);
        Self { free: Arc::new(Semaphore::new(all as usize)), all, spare: spare as usize, waiting: AtomicUsize::new(0) }
    }

    /// A place of this weight. Those that wait get theirs in the order in which they came.
    ///
    /// # Errors
    /// If it takes too long. Trying again may help.
    pub(super) async fn place(&self, weight: u32) -> Result<Place, Error> {
        let weight = weight.min(self.all);
        let permit = match Arc::clone(&self.free).try_acquire_many_owned(weight) {
            Ok(permit) => permit,
            Err(_) => self.wait(weight).await?,
        };
        Ok(Place { since: Instant::now(), _permit: permit })
    }

    async fn wait(&self, weight: u32) -> Result<OwnedSemaphorePermit, Error> {
        let _waiting = Waiting::begin(&self.waiting);
        match tokio::time::timeout(WAIT_MAX, Arc::clone(&self.free).acquire_many_owned(weight)).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(Error(format!(
                "no instance is free: all {} were busy for {WAIT_MAX:?}; it is tried again, and goes faster where handlers wait for less long",
                self.all
            ))),
        }
    }

    /// Whether a guest without work should give up its instance.
    pub(super) fn is_short(&self) -> bool {
        self.free.available_permits() < self.spare
    }

    /// Whether a busy guest should let others have its place.
    pub(super) fn wants_back(&self, place: &Place, now: Instant) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && now.saturating_duration_since(place.since) >= TURN
    }
}

/// Somebody who waits for a place, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many places an instance of this component takes: one, unless it has several memories or many tables.
pub(super) fn weight(component: &Component) -> u32 {
    let required = component.0.pre.instance_pre().component().resources_required();
    required.map_or(1, |required| required.num_memories.max(required.num_tables.div_ceil(TABLES_EACH)).max(1))
}

/// What is set aside for the instances of an engine.
pub(super) fn config(options: &EngineOptions) -> PoolingAllocationConfig {
    let instances = options.max_instances;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_stacks(instances)
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_EACH))
        // They are only counted, so that there are as many as all places could need.
        .total_core_instances(instances.saturating_mul(small(CORE_INSTANCES_MAX)))
        .max_core_instances_per_component(small(CORE_INSTANCES_MAX))
        .max_memories_per_component(small(MEMORIES_MAX))
        .max_tables_per_component(small(TABLES_MAX))
        .table_elements(TABLE_MAX_ELEMENTS)
        .max_memory_size(options.max_memory_bytes);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes).linear_memory_keep_resident(options.memory_keep_resident_bytes);
        pool.table_keep_resident(64 << 10);
    } else {
        // Without the scan, keeping pages means clearing all of them, written or not.
        tracing::info!("the kernel cannot scan page maps; fresh instances are slower than they could be");
    }
    pool
}

/// A bound of ours as wasmtime takes it.
fn small(bound: usize) -> u32 {
    u32::try_from(bound).unwrap_or(u32::MAX)
}
