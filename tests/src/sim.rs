//! The whole runtime on a simulated clock, broker and sandbox.
//!
//! A seed is a scenario: what is published, how handlers behave, how many instances there are and what happens to them, which
//! commits fail. Worker, registry, breaker and dispatcher are the real ones. At the end the promise is checked by code that
//! shares nothing with them. The same seed gives the same trace.

mod broker;
mod catalog;
mod check;
mod cluster;
mod crashes;
mod fleet;
mod group;
mod guest;
mod life;
mod resets;
pub(crate) mod rng;
mod scenario;
mod stands;
mod world;

pub use broker::{SimBroker, SimPartition, SimState};
pub use cluster::SimCluster;
pub use crashes::{run_ageing, run_crashes};
pub use resets::run_resets;
pub use scenario::{Report, run};
pub use world::Counts;
