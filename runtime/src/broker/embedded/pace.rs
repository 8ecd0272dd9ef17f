//! How long a commit group waits for more: not at all, unless so much is written that syncs cost more than the wait.
//!
//! A sync takes about the same processor time for one record as for a hundred. Without a pause the committer syncs again as soon as
//! it can, and where events come as fast as they can be handled, it does so for the first few that come. A pause of a millisecond then
//! leaves a fifth of the syncs, and a tenth to a fifth more events a second. At a low rate it would only make events late, so there is
//! none.

use std::time::{Duration, Instant};

/// The pause, of which nobody notices much at such a rate: events wait for their turn for longer.
const PAUSE: Duration = Duration::from_millis(1);
/// From this rate on there is a pause: some 40,000 events of 256 bytes a second, each with one that it leads to. At half of that, two
/// cores are half idle.
const BYTES_PER_MILLISECOND: u128 = 40_000;
/// How long the rate is looked at before it is known.
const WINDOW: Duration = Duration::from_millis(20);

/// How much is written at the moment.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
    is_high: bool,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, is_high: false }
    }

    /// How long the next group should wait for more.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.is_high.then_some(PAUSE)
    }

    /// A group of so many bytes was written.
    pub(super) fn wrote(&mut self, bytes: u64, now: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.is_high = u128::from(self.bytes) >= BYTES_PER_MILLISECOND * elapsed.as_millis();
            (self.since, self.bytes) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is a pause after groups of so many bytes, each so long after the one before.
    fn pauses(bytes: u64, every: Duration) -> Vec<bool> {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let groups = (0..200).map(|_| {
            now += every;
            pace.wrote(bytes, now);
            pace.pause().is_some()
        });
        groups.collect()
    }

    #[test]
    fn there_is_a_pause_only_where_much_is_written() {
        let every = Duration::from_micros(500);
        let high = pauses(21_000, every);
        let first = high.iter().position(|pauses| *pauses).expect("it is noticed");
        assert_eq!(
            (first, high[first..].iter().all(|pauses| *pauses)),
            (39, true),
            "after the first window, and for good"
        );
        assert!(!pauses(19_000, every).contains(&true));
        assert!(!pauses(1_000_000, Duration::from_millis(100)).contains(&true), "large groups that come seldom");
        assert!(!pauses(0, Duration::ZERO).contains(&true), "no time has passed");
    }

    #[test]
    fn the_pause_ends_with_the_rate() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        now += WINDOW;
        pace.wrote(u64::MAX, now);
        assert_eq!(pace.pause(), Some(PAUSE));
        now += WINDOW;
        pace.wrote(100, now);
        assert_eq!(pace.pause(), None);
    }
}
