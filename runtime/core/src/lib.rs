//! The decisions of Millrace: pure, without IO, clock, randomness, async or locks.
//!
//! Time is an argument, randomness is a seed, and what must happen is returned as a value for someone else to do.

pub mod access;
pub mod audit;
pub mod breaker;
pub mod canary;
pub mod codec;
pub mod digest;
pub mod dispatcher;
pub mod event;
pub mod expression;
pub mod idempotency;
pub mod identity;
pub mod intake;
pub mod lanes;
pub mod letter;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod offsets;
pub mod outcome;
pub mod partition;
pub mod policy;
pub mod progress;
pub mod record;
pub mod retry;
pub mod revision;
pub mod settings;
pub mod signature;
pub mod spot;
pub mod state;
pub mod time;
pub mod trace;
pub mod units;
