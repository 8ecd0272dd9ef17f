//! Millrace, a serverless runtime for event functions.

pub mod broker;
pub mod clock;
pub mod config;
pub mod sandbox;
