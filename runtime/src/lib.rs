//! Millrace, a serverless runtime for event functions.

mod allocator;
pub mod api;
pub mod breaker;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod registry;
pub mod sandbox;
pub mod server;
pub mod telemetry;
pub mod tls;
pub mod worker;
