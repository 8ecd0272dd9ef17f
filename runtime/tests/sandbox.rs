//! Guests in the real sandbox. What a guest does is in `tests/fixtures/guest.wat`, `state.wat` and `wasi.wat`, chosen by the first letter of
//! an event's type.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "sandbox/harness.rs"]
mod harness;
#[path = "sandbox/host.rs"]
mod host;
#[path = "sandbox/loading.rs"]
mod loading;
#[path = "sandbox/running.rs"]
mod running;
#[path = "sandbox/sharing.rs"]
mod sharing;
#[path = "sandbox/state.rs"]
mod state;
