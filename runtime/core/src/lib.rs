//! The decisions of Millrace: pure, without IO, clock, randomness, async or locks.
//!
//! Time is an argument, randomness is a seed, and what must happen is returned as a value for someone else to do.

pub mod codec;
pub mod event;
pub mod expression;
pub mod idempotency;
pub mod identity;
pub mod name;
pub mod outcome;
pub mod partition;
pub mod progress;
pub mod record;
pub mod time;
