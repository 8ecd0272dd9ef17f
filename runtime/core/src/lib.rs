//! The decisions of Millrace: pure, without IO, clock, randomness, async or locks.
//!
//! Time is an argument, randomness is a seed, and what must happen is returned as a value for someone else to do.

pub mod event;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod outcome;
pub mod policy;
pub mod progress;
pub mod record;
pub mod settings;
pub mod time;
pub mod units;
