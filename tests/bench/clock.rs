//! CPU time of the thread that asks.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time that this thread has used so far.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("time that was used is not negative")
}

/// Rounds of each work.
const ROUNDS: usize = 9;

/// Nanoseconds of CPU time by event of several works, each of which is given how many events to handle. They take turns, so
/// that a machine that is shared disturbs all of them alike, and the best round counts: noise only ever adds.
pub(crate) fn nanos_by_event<const N: usize>(events: u32, mut works: [&mut dyn FnMut(u32); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..ROUNDS {
        for (work, best) in works.iter_mut().zip(&mut best) {
            let began = cpu_time();
            work(events);
            let nanos = (cpu_time() - began).as_secs_f64() * 1e9 / f64::from(events);
            *best = best.min(nanos);
        }
    }
    best
}
