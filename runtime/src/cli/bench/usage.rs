//! What this process has used so far. That of its threads, and its memory, is known only where it is as in Linux (proc(5)).

use std::future::poll_fn;
use std::ops::Add;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Clock ticks a second in `/proc`: a constant of Linux's interface to user space.
const TICKS_PER_SECOND: u64 = 100;

/// Threads of the embedded log: the one that writes and syncs, and those of its storage engine.
const LOG_THREADS: [&str; 2] = ["log-committer", "fjall:worker"];

/// CPU time used so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    process: Duration,
    log: Option<Duration>,
}

impl Usage {
    pub(super) fn now() -> Self {
        Self { process: used(ClockId::ProcessCPUTime), log: log_cpu() }
    }

    /// CPU time of this process since an earlier moment.
    pub(super) fn cpu_since(&self, earlier: &Self) -> Duration {
        self.process.saturating_sub(earlier.process)
    }

    /// That of the log's own threads.
    pub(super) fn log_cpu_since(&self, earlier: &Self) -> Option<Duration> {
        Some(self.log?.saturating_sub(earlier.log?))
    }
}

/// None if one of them is not found: then it has another name, and is counted elsewhere.
fn log_cpu() -> Option<Duration> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    // A thread can end while it is looked at.
    let stats = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    let stats: Vec<String> = stats.collect();
    let of = |name: &str| stats.iter().filter(|stat| is_of(name, stat)).filter_map(|stat| cpu(stat)).reduce(Add::add);
    LOG_THREADS.iter().map(|name| of(name)).sum()
}

/// Whether this is the line of a thread of this name.
fn is_of(name: &str, stat: &str) -> bool {
    stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).is_some_and(|(found, _)| found == name)
}

/// The output of a future; the CPU time that it takes is added up.
pub(super) async fn metered<F: Future>(future: F, nanos: &AtomicU64) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let before = used(ClockId::ThreadCPUTime);
        let polled = future.as_mut().poll(context);
        let took = used(ClockId::ThreadCPUTime).saturating_sub(before);
        nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        polled
    })
    .await
}

/// CPU time of this process, or of the thread that asks.
fn used(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// User and system time. The second field, the program's name, may hold anything but ends with the last parenthesis.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Memory of this process that is in use now.
pub(super) fn resident_bytes() -> Option<u64> {
    resident(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let stat = "7 (mill) race) S 1 7 7 0 -1 4194560 9 0 0 0 150 25 0 0 20 0 5 0 100 1 2";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1750)));
        assert_eq!(cpu("7 (x) S"), None);
        assert!(is_of("mill) race", stat) && !is_of("mill", stat) && !is_of("x", "nonsense"));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[tokio::test]
    async fn what_a_future_computes_is_counted_and_what_others_do_meanwhile_is_not() {
        const WORK: Duration = Duration::from_millis(20);
        let work = || {
            let began = used(ClockId::ThreadCPUTime);
            while used(ClockId::ThreadCPUTime) - began < WORK {}
        };
        let (idle, busy) = (AtomicU64::new(0), AtomicU64::new(0));
        let waits = metered(tokio::task::yield_now(), &idle);
        tokio::join!(waits, metered(async { work() }, &busy), async { work() });
        let nanos = |used: &AtomicU64| Duration::from_nanos(used.load(Ordering::Relaxed));
        assert!(nanos(&busy) >= WORK && nanos(&idle) < WORK, "{idle:?} {busy:?}");
    }
}
