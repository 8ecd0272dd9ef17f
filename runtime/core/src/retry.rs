//! When a failed event is attempted again.

use std::time::Duration;

use crate::outcome::Failure;
use crate::policy::RetryPolicy;
use crate::time::Timestamp;

/// A small deterministic generator (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>), so that jitter needs no
/// randomness from outside but a seed.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// The same seed gives the same sequence.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from zero up to and including `max`.
    fn up_to(&mut self, max: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        match max.checked_add(1) {
            Some(bound) => z % bound,
            None => z,
        }
    }
}

/// The history of an event that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// Failed attempts, at least 1.
    pub failed: u32,
    /// When the first one failed.
    pub first_failed_at: Timestamp,
}

/// When to attempt an event again after this failure, or none if it is to be dead-lettered.
///
/// Exponential with full jitter: a random time up to `initial * 2^(failed - 1)`, itself at most `max`
/// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>), but not before the handler's own delay.
/// Attempts and age are both bounded; the answer always lies after `now`.
pub fn next_attempt(
    policy: &RetryPolicy,
    attempts: Attempts,
    failure: &Failure,
    now: Timestamp,
    jitter: &mut Jitter,
) -> Option<Timestamp> {
    if !failure.category.is_retried() || attempts.failed >= policy.attempts {
        return None;
    }
    let doubled = policy.initial.saturating_mul(2u32.saturating_pow(attempts.failed - 1));
    let ceiling = u64::try_from(doubled.min(policy.max).as_nanos()).unwrap_or(u64::MAX);
    let delay = Duration::from_nanos(jitter.up_to(ceiling)).max(Duration::from_millis(1));
    let due = now + delay.max(failure.retry_after.unwrap_or_default());
    (due.since(attempts.first_failed_at) <= policy.max_age).then_some(due)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Category;

    const POLICY: RetryPolicy = RetryPolicy {
        attempts: 4,
        initial: Duration::from_millis(100),
        max: Duration::from_millis(250),
        max_age: Duration::from_secs(1),
    };

    /// The longest delay in milliseconds over many seeds, or none if there is no next attempt.
    fn longest(category: Category, failed: u32, age_ms: u64, retry_after_ms: Option<u64>) -> Option<u64> {
        let now = Timestamp::from_millis(1_000_000);
        let attempts = Attempts { failed, first_failed_at: now - Duration::from_millis(age_ms) };
        let mut failure = Failure::new(category, "no");
        failure.retry_after = retry_after_ms.map(Duration::from_millis);
        (0..500)
            .filter_map(|seed| next_attempt(&POLICY, attempts, &failure, now, &mut Jitter::seeded(seed)))
            .map(|due| {
                assert!(due > now, "a deadline lies in the future");
                u64::try_from(due.since(now).as_millis()).expect("a short time")
            })
            .max()
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        assert_eq!(longest(Category::Transient, 1, 0, None), Some(99));
        assert_eq!(longest(Category::Unknown, 2, 0, None), Some(199));
        assert_eq!(longest(Category::Transient, 3, 0, None), Some(249));
    }

    #[test]
    fn attempts_and_age_are_bounded() {
        assert_eq!(longest(Category::Transient, 4, 0, None), None);
        assert_eq!(longest(Category::Transient, 1, 1001, None), None);
        assert_eq!(longest(Category::Transient, 1, 0, Some(1001)), None);
    }

    #[test]
    fn invalid_and_rejected_events_are_not_attempted_again() {
        assert_eq!(longest(Category::Invalid, 1, 0, None), None);
        assert_eq!(longest(Category::Rejected, 1, 0, None), None);
    }

    #[test]
    fn the_handlers_own_delay_is_kept() {
        assert_eq!(longest(Category::Transient, 1, 0, Some(700)), Some(700));
    }

    #[test]
    fn many_attempts_do_not_overflow() {
        let policy =
            RetryPolicy { attempts: u32::MAX, initial: Duration::MAX, max: Duration::MAX, max_age: Duration::MAX };
        let attempts = Attempts { failed: u32::MAX - 1, first_failed_at: Timestamp::EPOCH };
        let failure = Failure::new(Category::Transient, "no");
        let due = next_attempt(&policy, attempts, &failure, Timestamp::EPOCH, &mut Jitter::seeded(1));
        assert!(due > Some(Timestamp::EPOCH));
    }
}
