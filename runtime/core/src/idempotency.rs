//! The window of idempotency keys that are known: which events have completed already.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits;
use crate::progress::KeyHash;
use crate::time::Timestamp;

mod table;
#[cfg(test)]
mod tests;

use table::{Search, Table};

/// A bucket is closed when it has lasted for this part of the span, or holds this part of the keys.
const BUCKETS: u32 = 4;

/// For how long the keys of a function are remembered, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Each for this long, unless there are too many.
    pub span: Duration,
    /// At most this many, of all units of the function together.
    pub max_keys: usize,
}

impl Default for Bounds {
    /// What a manifest gets that says nothing.
    fn default() -> Self {
        Self { span: limits::IDEMPOTENCY_DEFAULT_WINDOW, max_keys: limits::IDEMPOTENCY_DEFAULT_KEYS }
    }
}

impl Bounds {
    /// The empty window of one of the function's units, which share the keys evenly. `units` is taken for at least 1.
    #[must_use]
    pub fn window(self, units: usize) -> Window {
        Window::new(self.span, self.max_keys.div_ceil(units.max(1)))
    }

    /// The oldest time whose keys are still known at `now`: a window is restored from here on.
    #[must_use]
    pub fn oldest(self, now: Timestamp) -> Timestamp {
        now - self.span
    }
}

/// The keys of the last `span`, and some older ones, bounded in number.
///
/// Keys lie in buckets by time, and a whole bucket goes at once: when its newest key is older than the span, or, the
/// oldest bucket first, when there are too many keys. So a key is known for at least the span and at most a quarter of
/// it longer, unless the window is full. What is known depends on the calls alone, not on chance.
///
/// A key takes 18 to 25 bytes once there are thousands of them. An insertion copies at most some thousands of keys,
/// which takes tens of microseconds, and that once in hundreds of insertions.
#[derive(Debug)]
pub struct Window {
    span: Duration,
    max_keys: usize,
    /// By time, oldest first. Only the last one grows, and none is empty.
    buckets: VecDeque<Bucket>,
    /// Keys in all buckets; one that came again in a later bucket counts again.
    len: usize,
    /// All keys up to here are forgotten, because the window was full.
    dropped_until: Option<Timestamp>,
}

#[derive(Debug)]
struct Bucket {
    oldest: Timestamp,
    newest: Timestamp,
    keys: Table,
}

impl Window {
    /// An empty window that keeps keys for `span`, and at most `max_keys` of them, at least one. Takes no memory for keys
    /// that are not there.
    #[must_use]
    pub fn new(span: Duration, max_keys: usize) -> Self {
        Self { span, max_keys: max_keys.max(1), buckets: VecDeque::new(), len: 0, dropped_until: None }
    }

    /// Takes keys whose events completed `at` this time. Times must not go backwards; one that does counts as the newest
    /// time so far. Restores a window when it is given what was inserted once, in the order of time.
    pub fn insert(&mut self, at: Timestamp, keys: impl IntoIterator<Item = KeyHash>) {
        let at = self.buckets.back().map_or(at, |bucket| bucket.newest.max(at));
        // What has expired makes room, whether or not someone said so: a restored window comes out the same.
        self.expire(at);
        for key in keys {
            while self.len >= self.max_keys {
                self.drop_oldest();
            }
            self.len += usize::from(self.open_bucket(at).keys.insert(key.0));
        }
    }

    /// Whether the key is known now.
    #[must_use]
    pub fn contains(&self, key: KeyHash, now: Timestamp) -> bool {
        // Each bucket costs a read from memory that no cache holds: they are begun together.
        const TOGETHER: usize = 8;
        let mut live = self.buckets.iter().rev().take_while(|bucket| !self.is_expired(bucket, now)).peekable();
        while live.peek().is_some() {
            let mut searches = [Search::default(); TOGETHER];
            for (search, bucket) in searches.iter_mut().zip(live.by_ref()) {
                *search = bucket.keys.search(key.0);
            }
            if searches.iter().any(|search| search.finish(key.0)) {
                return true;
            }
        }
        false
    }

    /// Forgets the buckets whose keys are all older than the span. Only memory depends on when it is called.
    pub fn expire(&mut self, now: Timestamp) {
        while self.buckets.front().is_some_and(|bucket| self.is_expired(bucket, now)) {
            if let Some(bucket) = self.buckets.pop_front() {
                self.len -= bucket.keys.len();
            }
        }
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        *self = Self::new(self.span, self.max_keys);
    }

    /// Keys held; one that came again in a later bucket counts again.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For how long keys are really known at this time: the span, or less if the window was full within it.
    #[must_use]
    pub fn effective_span(&self, now: Timestamp) -> Duration {
        self.dropped_until.map_or(self.span, |until| now.since(until).min(self.span))
    }

    /// Bytes allocated for keys.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.keys.allocated_bytes()).sum()
    }

    fn is_expired(&self, bucket: &Bucket, now: Timestamp) -> bool {
        now.since(bucket.newest) > self.span
    }

    fn drop_oldest(&mut self) {
        let Some(bucket) = self.buckets.pop_front() else { return };
        self.len -= bucket.keys.len();
        self.dropped_until = self.dropped_until.max(Some(bucket.newest));
    }

    /// The bucket that takes keys at this time.
    fn open_bucket(&mut self, at: Timestamp) -> &mut Bucket {
        let max_keys = self.max_keys.div_ceil(BUCKETS as usize);
        let max_age = self.span / BUCKETS;
        let is_open = |bucket: &Bucket| bucket.keys.len() < max_keys && at.since(bucket.oldest) <= max_age;
        if !self.buckets.back().is_some_and(is_open) {
            self.buckets.push_back(Bucket { oldest: at, newest: at, keys: Table::default() });
        }
        let last = self.buckets.len() - 1;
        let bucket = &mut self.buckets[last];
        bucket.newest = at;
        bucket
    }
}
