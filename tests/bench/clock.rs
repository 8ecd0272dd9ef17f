//! CPU time of the thread that asks, as Linux counts it.

/// Nanoseconds of CPU time that this thread has used so far (`/proc/thread-self/schedstat`, the first figure).
fn cpu_nanos() -> u64 {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells CPU time");
    figures.split(' ').next().and_then(|first| first.parse().ok()).expect("the first figure is nanoseconds")
}

/// Rounds of each work.
const ROUNDS: usize = 9;

/// Nanoseconds of CPU time by event of several works, each of which is given how many events to handle. They take turns, so
/// that a machine that is shared disturbs all of them alike, and the best round counts: noise only ever adds.
pub(crate) fn nanos_by_event<const N: usize>(events: u32, mut works: [&mut dyn FnMut(u32); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..ROUNDS {
        for (work, best) in works.iter_mut().zip(&mut best) {
            let began = cpu_nanos();
            work(events);
            #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
            let nanos = (cpu_nanos() - began) as f64 / f64::from(events);
            *best = best.min(nanos);
        }
    }
    best
}
