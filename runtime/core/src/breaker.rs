//! A circuit breaker in Nygard's sense (*Release It!*, 2007): closed admits, open refuses, half-open tries one.
//!
//! One per function and instance, beside the dispatchers. It counts each event at its first attempt, and failures that
//! may come from an outage only. While it is open the source waits: no attempts are burnt and no dead letters made.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::BreakerPolicy;
use crate::time::Timestamp;

/// What the breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything.
    Closed,
    /// Nothing until this instant.
    Open {
        /// When the breaker becomes half-open.
        until: Timestamp,
    },
    /// One trial event of the function.
    HalfOpen,
}

/// A closed, open or half-open breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Closed(Counts),
    /// Half-open is not stored: it is an open breaker whose time has passed.
    Open {
        until: Timestamp,
        wait: Duration,
        trial: bool,
    },
}

/// The window is counted in this many slices; the oldest falls out as a whole.
const SLICES: u32 = 10;

#[derive(Clone, Debug, Default)]
struct Counts {
    slices: VecDeque<Slice>,
    row: u32,
    /// Distinct keys of the failures in a row, no more than the policy asks for.
    row_keys: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Slice {
    started_at: Timestamp,
    events: u64,
    failed: u64,
    keys: Vec<u64>,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, state: State::Closed(Counts::default()) }
    }

    /// What it lets through now.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        match self.state {
            State::Closed(_) => Phase::Closed,
            State::Open { until, .. } if now < until => Phase::Open { until },
            State::Open { .. } => Phase::HalfOpen,
        }
    }

    /// Counts events that did not fail at their first attempt, or failed for a reason of their own.
    pub fn succeeded(&mut self, now: Timestamp, events: u64) {
        if events == 0 {
            return;
        }
        if let State::Closed(counts) = &mut self.state {
            counts.row = 0;
            counts.row_keys.clear();
            counts.slice(now, &self.policy).events += events;
        }
    }

    /// Counts one event that failed at its first attempt, and opens if that is too much. `key` is a hash of its ordering
    /// key, or of its identity when it has none.
    pub fn failed(&mut self, now: Timestamp, key: u64) {
        let State::Closed(counts) = &mut self.state else { return };
        counts.row += 1;
        let wanted = usize::try_from(self.policy.keys).unwrap_or(usize::MAX);
        note_key(&mut counts.row_keys, key, wanted);
        let slice = counts.slice(now, &self.policy);
        slice.events += 1;
        slice.failed += 1;
        note_key(&mut slice.keys, key, wanted);
        if self.policy.enabled && counts.tell_an_outage(&self.policy) {
            let wait = self.policy.open;
            self.state = State::Open { until: now + wait, wait, trial: false };
        }
    }

    /// Takes the one trial of a half-open breaker. Whoever gets it answers with [`Breaker::tried`] or
    /// [`Breaker::release`].
    pub fn try_one(&mut self, now: Timestamp) -> bool {
        match &mut self.state {
            State::Open { until, trial, .. } if now >= *until && !*trial => {
                *trial = true;
                true
            }
            State::Open { .. } | State::Closed(_) => false,
        }
    }

    /// Gives an unused trial back.
    pub fn release(&mut self) {
        if let State::Open { trial, .. } = &mut self.state {
            *trial = false;
        }
    }

    /// The trial's result: closes, or opens again for twice as long.
    pub fn tried(&mut self, now: Timestamp, failed: bool) {
        let State::Open { wait, .. } = self.state else { return };
        self.state = if failed {
            let wait = wait.saturating_mul(2).min(self.policy.open_max);
            State::Open { until: now + wait, wait, trial: false }
        } else {
            State::Closed(Counts::default())
        };
    }
}

impl Counts {
    /// The slice that `now` falls into; those older than the window are dropped.
    fn slice(&mut self, now: Timestamp, policy: &BreakerPolicy) -> &mut Slice {
        let length = policy.window / SLICES;
        while self.slices.front().is_some_and(|s| now.since(s.started_at) >= policy.window) {
            self.slices.pop_front();
        }
        if self.slices.back().is_none_or(|s| now.since(s.started_at) >= length) {
            self.slices.push_back(Slice { started_at: now, events: 0, failed: 0, keys: Vec::new() });
        }
        let newest = self.slices.len() - 1;
        &mut self.slices[newest]
    }

    fn tell_an_outage(&self, policy: &BreakerPolicy) -> bool {
        let wanted = usize::try_from(policy.keys).unwrap_or(usize::MAX);
        if self.row >= policy.failures_in_row && self.row_keys.len() >= wanted {
            return true;
        }
        let events: u64 = self.slices.iter().map(|s| s.events).sum();
        let failed: u64 = self.slices.iter().map(|s| s.failed).sum();
        if events < u64::from(policy.minimum) || !reaches(failed, events, policy.ratio) {
            return false;
        }
        let mut keys = Vec::new();
        for key in self.slices.iter().flat_map(|s| &s.keys) {
            note_key(&mut keys, *key, wanted);
        }
        keys.len() >= wanted
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one window are far below 2^52")]
fn reaches(failed: u64, events: u64, ratio: f64) -> bool {
    failed as f64 >= ratio * events as f64
}

/// Keeps distinct keys, no more than are asked for.
fn note_key(keys: &mut Vec<u64>, key: u64, wanted: usize) {
    if keys.len() < wanted && !keys.contains(&key) {
        keys.push(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One character per step: `.` an event that succeeds, `-` one that fails with a new key, `=` one that fails with
    /// always the same key, `s` a second that passes, `t` taking the trial, `r` giving it back, `+` and `x` the trial's
    /// good and bad end.
    fn check(script: &str, expected: &str) {
        let mut now = Timestamp::from_millis(1_000_000);
        let mut breaker = Breaker::new(BreakerPolicy::default());
        for (key, step) in script.chars().enumerate() {
            match step {
                '.' => breaker.succeeded(now, 1),
                '-' => breaker.failed(now, key as u64 + 1),
                '=' => breaker.failed(now, 0),
                's' => now = now + Duration::from_secs(1),
                't' => assert!(breaker.try_one(now), "the trial is free"),
                'T' => assert!(!breaker.try_one(now), "the trial is not free"),
                'r' => breaker.release(),
                '+' => breaker.tried(now, false),
                'x' => breaker.tried(now, true),
                _ => unreachable!("unknown step {step}"),
            }
        }
        let phase = match breaker.phase(now) {
            Phase::Closed => "closed".to_owned(),
            Phase::Open { until } => format!("open {}s", until.since(now).as_secs()),
            Phase::HalfOpen => "half-open".to_owned(),
        };
        assert_eq!(phase, expected, "after {script}");
    }

    #[test]
    fn it_opens_at_ten_failed_in_a_row_from_three_keys() {
        check("---------", "closed");
        check("----------", "open 5s");
        check("-----.-----", "closed");
        check("==========", "closed");
        check("--========", "open 5s");
        check("-=========", "closed");
    }

    #[test]
    fn it_opens_at_half_failed_of_twenty() {
        check(".-.-.-.-.-.-.-.-.-.", "closed");
        check(".-.-.-.-.-.-.-.-.-.-", "open 5s");
        check(".=.=.=.=.=.=.=.=.=.=", "closed");
        check("..-..-..-..-..-..-..-..-..-..-..-", "closed");
    }

    #[test]
    fn old_events_do_not_count() {
        check(".-.-.-.-.-.-.-.-.-.ssssssssss-", "closed");
        check(".-.-.-.-.-.-.-.-.-.sssssssss-", "open 5s");
    }

    #[test]
    fn one_trial_decides() {
        check("----------sssss", "half-open");
        check("----------ssssT", "open 1s");
        check("----------ssssstT", "half-open");
        check("----------ssssstrt", "half-open");
        check("----------ssssst+", "closed");
        check("----------ssssstx", "open 10s");
        check("----------ssssstxsssssssssstx", "open 20s");
        check("----------ssssst+---------", "closed");
    }
}
