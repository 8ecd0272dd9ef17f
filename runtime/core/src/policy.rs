//! What a function's manifest decides about its events, with the defaults for everything it leaves out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::outcome::Category;

/// Where a function starts; applied once per function and topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartAt {
    /// At the oldest record there is.
    #[default]
    Earliest,
    /// At the next record published.
    Latest,
}

/// In which order a function's events are handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ordering {
    /// Events with the same ordering key one after the other, in the order of the partition. Events without a key have
    /// no order among one another.
    #[default]
    Key,
    /// All events of a partition one after the other: a failing one holds up all that follow it.
    Partition,
    /// No order: a failing event holds up nothing.
    None,
}

/// When a failed event is tried again, and when it is given up. Both bounds hold, and both survive a restart.
///
/// The delay before attempt `n + 1` lies between zero and `initial * 2^(n - 1)`, at most `max` (full jitter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one included; at least 1.
    pub attempts: u32,
    /// The largest delay before the second attempt; doubles with each further attempt.
    pub initial: Duration,
    /// The largest delay before any attempt.
    pub max: Duration,
    /// No attempt is made when this much time has passed since the first one failed.
    pub max_age: Duration,
}

impl RetryPolicy {
    /// The longest time from the first attempt to the last. A handler may ask for a longer delay than the policy's own,
    /// so only the age bounds it.
    #[must_use]
    pub const fn longest(&self) -> Duration {
        if self.attempts <= 1 { Duration::ZERO } else { self.max_age }
    }
}

impl Default for RetryPolicy {
    /// Survives an outage of a minute without a dead letter.
    fn default() -> Self {
        Self {
            attempts: 10,
            initial: Duration::from_millis(200),
            max: Duration::from_secs(60),
            max_age: Duration::from_secs(3600),
        }
    }
}

/// When failures are taken for an outage, so that the source pauses instead of burning attempts.
///
/// Counts each event at its first attempt, transient and unknown failures only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Whether there is a breaker at all.
    pub enabled: bool,
    /// The time over which events are counted.
    pub window: Duration,
    /// Opens at this many failed in a row.
    pub failures_in_row: u32,
    /// The ratio is looked at from this many events in the window on.
    pub minimum: u32,
    /// Opens when this share of the window's events failed; above 0, at most 1.
    pub ratio: f64,
    /// Opens only when the failed events have at least this many distinct ordering keys.
    pub keys: u32,
    /// How long it stays open the first time; doubles each time the trial event fails.
    pub open: Duration,
    /// How long it stays open at most.
    pub open_max: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(10),
            failures_in_row: 10,
            minimum: 20,
            ratio: 0.5,
            keys: 3,
            open: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
        }
    }
}

/// How much one unit of ownership may hold back behind failing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedPolicy {
    /// Records held back, the failing ones included; at least 1.
    pub limit: usize,
    /// What happens at the limit.
    pub overflow: Overflow,
}

impl Default for ParkedPolicy {
    fn default() -> Self {
        Self { limit: limits::PARKED_DEFAULT_RECORDS, overflow: Overflow::default() }
    }
}

/// What happens when the limit of parked records is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The head of the lane that has been parked longest becomes a dead letter, and its lane goes on.
    #[default]
    DeadLetter,
    /// The source waits until a parked lane goes on.
    Pause,
}

/// How repetitions of an event are recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyPolicy {
    /// An expression over the event that gives its idempotency key; without one it is the event's source and id.
    pub key: Option<String>,
    /// How long a completed event is recognised; at least twice [`RetryPolicy::longest`].
    pub window: Duration,
    /// Keys kept for the function, the same share for each partition of its sources; when there are more, the oldest go first.
    pub max_keys: usize,
}

impl IdempotencyPolicy {
    /// The shortest window that is safe with this retry policy.
    #[must_use]
    pub const fn shortest_window(retry: &RetryPolicy) -> Duration {
        retry.longest().saturating_mul(2)
    }
}

impl Default for IdempotencyPolicy {
    fn default() -> Self {
        Self { key: None, window: limits::IDEMPOTENCY_DEFAULT_WINDOW, max_keys: limits::IDEMPOTENCY_DEFAULT_KEYS }
    }
}

/// What one invocation may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvocationLimits {
    /// Time from call to return; then the guest is ended.
    pub time: Duration,
    /// Linear memory of the instance, all memories together.
    pub memory_bytes: usize,
    /// Events emitted.
    pub emitted_events: usize,
    /// Bytes of the events emitted, as records.
    pub emitted_bytes: usize,
    /// Bytes of messages logged; what follows is cut.
    pub log_bytes: usize,
}

impl Default for InvocationLimits {
    fn default() -> Self {
        Self {
            time: limits::INVOCATION_DEFAULT_TIME,
            memory_bytes: limits::MEMORY_DEFAULT_BYTES,
            emitted_events: limits::EMITTED_DEFAULT_EVENTS,
            emitted_bytes: limits::EMITTED_DEFAULT_BYTES,
            log_bytes: limits::LOG_BYTES_DEFAULT,
        }
    }
}

/// How instances of a function's component are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstancePolicy {
    /// Events that one instance handles before it is replaced; 1 gives each event its own.
    pub reuse_events: u32,
}

impl Default for InstancePolicy {
    fn default() -> Self {
        Self { reuse_events: limits::INSTANCE_REUSE_DEFAULT_EVENTS }
    }
}

/// By when a person should have looked at a dead letter, by category of its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For [`Category::Transient`].
    pub transient: Duration,
    /// For [`Category::Invalid`].
    pub invalid: Duration,
    /// For [`Category::Rejected`].
    pub rejected: Duration,
    /// For [`Category::Unknown`].
    pub unknown: Duration,
}

impl Deadlines {
    /// The deadline for a category.
    #[must_use]
    pub const fn of(&self, category: Category) -> Duration {
        match category {
            Category::Transient => self.transient,
            Category::Invalid => self.invalid,
            Category::Rejected => self.rejected,
            Category::Unknown => self.unknown,
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            transient: Category::Transient.default_deadline(),
            invalid: Category::Invalid.default_deadline(),
            rejected: Category::Rejected.default_deadline(),
            unknown: Category::Unknown.default_deadline(),
        }
    }
}
