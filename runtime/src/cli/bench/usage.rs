//! What this process has used so far, as Linux counts it (proc(5)); elsewhere nothing is known.

use std::time::Duration;

/// Clock ticks a second in `/proc`: a constant of Linux's interface to user space.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time used so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    cpu: Option<Duration>,
}

impl Usage {
    pub(super) fn now() -> Self {
        Self { cpu: std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu(&stat)) }
    }

    /// CPU time used since an earlier moment.
    pub(super) fn cpu_since(&self, earlier: &Self) -> Option<Duration> {
        Some(self.cpu?.saturating_sub(earlier.cpu?))
    }
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
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tx\n"), None);
    }
}
