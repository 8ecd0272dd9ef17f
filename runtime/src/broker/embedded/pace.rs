//! How long a commit group waits for more: not at all, unless so much is written that syncs cost more than the wait.
//!
//! A sync takes about the same processor time for one record as for a hundred. Without a pause the committer syncs again as soon as
//! it can, and where many publish at once, it does so for the first few that come: with 16 senders on two cores, a pause of a
//! millisecond leaves a quarter of the syncs. Nobody would come in a pause where few publish, each waiting for its answer; and at a low
//! rate it would only make events late. At a low rate there is none, and where few publish, it is only tried now and then.

use std::time::{Duration, Instant};

/// The pause, of which nobody notices much at such a rate: events wait for their turn for longer.
const PAUSE: Duration = Duration::from_millis(1);
/// From this rate on there is a pause: some 40,000 events of 256 bytes a second, each with one that it leads to. At half of that, two
/// cores are half idle.
const BYTES_PER_MICROSECOND: u128 = 40;
/// So many publishes in so many groups must be joined by pauses that are worth it. With 2, 4, 8, 16 and 32 senders, groups with pauses
/// held 1.8, 2.5, 2.8, 3.4 and 4.3, and throughput was 0.97, 1.00, 1.08, 1.03 to 1.2 and 1.2 times that without.
const JOINED_MIN: (u64, u64) = (5, 2);
/// How long the rate is looked at before it is known; what was known is forgotten after as long again.
const WINDOW: Duration = Duration::from_millis(50);
/// After pauses that were not worth it there is none for this long.
const NEXT_TRIAL: Duration = Duration::from_secs(5);

/// How much is written at the moment.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
    groups: u64,
    publishes: u64,
    is_on: bool,
    /// Before this, there is no pause.
    off_until: Instant,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, groups: 0, publishes: 0, is_on: false, off_until: now }
    }

    /// How long the next group should wait for more.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        (self.is_on && now.saturating_duration_since(self.since) < 2 * WINDOW).then_some(PAUSE)
    }

    /// A group of so many bytes was written, with so many publishes in it.
    pub(super) fn wrote(&mut self, bytes: u64, publishes: usize, now: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.groups += 1;
        self.publishes += publishes as u64;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < WINDOW {
            return;
        }
        // Where nobody publishes, functions catch up, whose commits do not wait for one another.
        let is_worth_it = self.publishes == 0 || self.publishes * JOINED_MIN.1 >= self.groups * JOINED_MIN.0;
        if self.is_on && !is_worth_it {
            self.off_until = now + NEXT_TRIAL;
        }
        let is_high = u128::from(self.bytes) >= BYTES_PER_MICROSECOND * elapsed.as_micros();
        let is_on = is_high && now >= self.off_until;
        *self = Self { is_on, off_until: self.off_until, ..Self::new(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_micros(500);

    /// Whether there is a pause after groups of so many bytes and publishes, each so long after the one before.
    fn pauses(bytes: u64, publishes: usize, every: Duration) -> Vec<bool> {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let groups = (0..12_000).map(|_| {
            now += every;
            pace.wrote(bytes, publishes, now);
            pace.pause(now).is_some()
        });
        groups.collect()
    }

    #[test]
    fn there_is_a_pause_only_where_much_is_written() {
        for publishes in [0, 3] {
            let high = pauses(21_000, publishes, EVERY);
            let first = high.iter().position(|pauses| *pauses).expect("it is noticed");
            assert_eq!((first, high[first..].contains(&false)), (99, false), "after the first window, and for good");
        }
        assert!(!pauses(19_000, 3, EVERY).contains(&true));
        assert!(!pauses(3_000_000, 3, Duration::from_millis(100)).contains(&true), "large groups that come seldom");
        assert!(!pauses(0, 0, Duration::ZERO).contains(&true), "no time has passed");
    }

    #[test]
    fn few_who_publish_are_held_up_for_a_window_each_five_seconds() {
        for publishes in [1, 2] {
            let few = pauses(100_000, publishes, EVERY);
            assert_eq!(few.iter().filter(|pauses| **pauses).count(), 2 * 100, "in six seconds");
        }
    }

    #[test]
    fn the_pause_ends_with_the_rate() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        now += WINDOW;
        pace.wrote(u64::MAX, 2, now);
        assert_eq!(pace.pause(now), Some(PAUSE));
        assert_eq!(pace.pause(now + 2 * WINDOW), None, "nothing was written for long");
        now += WINDOW;
        pace.wrote(100, 2, now);
        assert_eq!(pace.pause(now), None);
    }
}
