//! The promise, over many seeds.
//!
//! `SEEDS=100000 cargo test -p millrace-tests --test sim` runs more of them, `SEED=42` just one with its trace.

#![expect(clippy::print_stderr, reason = "a single seed shows its trace")]

use millrace_tests::sim;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        return seed..seed + 1;
    }
    let from = number("FIRST_SEED").unwrap_or(0);
    from..from + number("SEEDS").unwrap_or(5000)
}

/// The first of them, one in so many.
fn one_in(many: u64) -> std::ops::Range<u64> {
    let range = seeds();
    range.start..range.end.min(range.start + (range.end - range.start).div_ceil(many))
}

/// Runs a scenario with each seed, and stops at the first that is broken. Answers with what came about in all of them.
fn check(range: &std::ops::Range<u64>, run: impl Fn(u64) -> sim::Report + Sync) -> sim::Counts {
    let verbose = range.end - range.start == 1;
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let run = &run;
    let all = std::sync::Mutex::new(sim::Counts::default());
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let all = &all;
            scope.spawn(move || {
                let mut counts = sim::Counts::default();
                for seed in range.clone().filter(|seed| seed % workers == worker) {
                    let report = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
                    let broken = match report {
                        Ok(report) => {
                            if verbose {
                                eprintln!("{}", report.trace);
                            }
                            counts += report.counts;
                            report.broken
                        }
                        Err(_) => Some("it panics".to_owned()),
                    };
                    if let Some(broken) = broken {
                        panic!("{broken}\nrun it alone: SEED={seed} cargo test -p millrace-tests --test sim");
                    }
                }
                *all.lock().expect("no seed is broken") += counts;
            });
        }
    });
    all.into_inner().expect("no seed is broken")
}

#[test]
fn the_promise_holds_over_all_seeds() {
    let range = seeds();
    let counts = check(&range, sim::run);
    let verbose = range.end - range.start == 1;
    eprintln!("{counts:?}");
    // A simulation in which none of this happens shows nothing.
    let sim::Counts {
        fenced,
        revoked_in_commit,
        committed_after_revocation,
        taken_over,
        run_by_canaries,
        run_by_several,
        healthy_behind_failing,
    } = counts;
    let all = [
        fenced,
        revoked_in_commit,
        committed_after_revocation,
        taken_over,
        run_by_canaries,
        run_by_several,
        healthy_behind_failing,
    ];
    let seldom = all.into_iter().min();
    assert!(verbose || seldom > Some((range.end - range.start) / 100), "{counts:?}");
}

/// Each of these has forty crashes, so there are fewer of them.
#[test]
fn attempts_survive_crash_after_crash() {
    check(&one_in(10), sim::run_crashes);
}

/// Each of these has some twenty crashes.
#[test]
fn attempts_end_with_age_crash_after_crash() {
    check(&one_in(10), sim::run_ageing);
}

#[test]
fn effects_happen_once_wherever_an_operator_lets_a_function_go_on() {
    check(&one_in(5), sim::run_resets);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in seeds().take(50) {
        assert_eq!(sim::run(seed).trace, sim::run(seed).trace, "seed {seed}");
    }
}
