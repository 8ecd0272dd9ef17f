//! Which idempotency keys are known: a window in time, bounded in size.

use std::collections::VecDeque;
use std::time::Duration;

use crate::progress::KeyHash;
use crate::time::Timestamp;

/// The window is made of about this many buckets; what expires goes a bucket at a time.
const BUCKETS: u32 = 8;
/// A bucket's table starts with this many slots.
const SLOTS_MIN: usize = 64;

/// Keys of completed events with the time of their commit, in time buckets: expiry drops a bucket as a whole, so that no key
/// costs anything when it goes. A key takes 16 bytes and, with the slack of its table, 22 to 43.
#[derive(Debug)]
pub struct Window {
    span: Duration,
    max_keys: usize,
    /// Oldest first.
    buckets: VecDeque<Bucket>,
    len: usize,
    /// Commits up to this time were forgotten before their time, because the window was full.
    forgotten_until: Option<Timestamp>,
}

#[derive(Debug)]
struct Bucket {
    first_at: Timestamp,
    last_at: Timestamp,
    table: Table,
}

impl Window {
    /// A window that knows a key for `span` after its commit, and at most `max_keys` keys, at least 1.
    #[must_use]
    pub fn new(span: Duration, max_keys: usize) -> Self {
        Self { span, max_keys: max_keys.max(1), buckets: VecDeque::new(), len: 0, forgotten_until: None }
    }

    /// Adds the keys of one commit. Commits come in the order of their time; one that seems older counts as new as the
    /// newest. A window that is full forgets its oldest bucket.
    pub fn insert(&mut self, at: Timestamp, keys: impl Iterator<Item = KeyHash>) {
        let at = self.buckets.back().map_or(at, |newest| at.max(newest.last_at));
        for key in keys {
            let bucket = self.bucket_for(at);
            bucket.last_at = at;
            if bucket.table.insert(key) {
                self.len += 1;
            }
            if self.len > self.max_keys {
                self.forget_oldest();
            }
        }
    }

    /// Whether a key's commit lies within the window.
    #[must_use]
    pub fn contains(&self, key: KeyHash, now: Timestamp) -> bool {
        // What was committed last is repeated most often.
        self.buckets.iter().rev().any(|bucket| now.since(bucket.last_at) < self.span && bucket.table.contains(key))
    }

    /// Drops buckets that lie outside the window as a whole. A key can be known a bucket's length longer than the span, and
    /// never shorter, unless the window was full.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some(oldest) = self.buckets.front()
            && now.since(oldest.last_at) >= self.span
        {
            self.len -= oldest.table.len;
            self.buckets.pop_front();
        }
    }

    /// Keys that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How far back keys are known: the configured span, or less after the window was full.
    #[must_use]
    pub fn effective_span(&self, now: Timestamp) -> Duration {
        self.forgotten_until.map_or(self.span, |until| now.since(until).min(self.span))
    }

    fn bucket_for(&mut self, at: Timestamp) -> &mut Bucket {
        let length = self.span / BUCKETS;
        // A bucket is full at its share of the keys, so that forgetting one forgets only that share.
        let share = (self.max_keys / BUCKETS as usize).max(1);
        let fits = |bucket: &Bucket| at.since(bucket.first_at) < length && bucket.table.len < share;
        if !self.buckets.back().is_some_and(fits) {
            self.buckets.push_back(Bucket { first_at: at, last_at: at, table: Table::default() });
        }
        let newest = self.buckets.len() - 1;
        &mut self.buckets[newest]
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.buckets.pop_front() {
            self.len -= oldest.table.len;
            self.forgotten_until = Some(oldest.last_at);
        }
    }
}

/// A set of hashes with linear probing. They are hashes already, so that their low bits are their place.
#[derive(Debug, Default)]
struct Table {
    /// Zero is an empty slot; the key zero is kept apart.
    slots: Box<[u128]>,
    len: usize,
    has_zero: bool,
}

impl Table {
    /// Whether the key is new.
    fn insert(&mut self, KeyHash(key): KeyHash) -> bool {
        if key == 0 {
            let new = !self.has_zero;
            self.has_zero = true;
            self.len += usize::from(new);
            return new;
        }
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let at = self.place_of(key);
        let Some(slot) = self.slots.get_mut(at) else { unreachable!("a table that grew has room") };
        let new = *slot == 0;
        *slot = key;
        self.len += usize::from(new);
        new
    }

    fn contains(&self, KeyHash(key): KeyHash) -> bool {
        if key == 0 {
            return self.has_zero;
        }
        !self.slots.is_empty() && self.slots.get(self.place_of(key)) == Some(&key)
    }

    /// The slot that holds the key, or the empty one where it would go.
    fn place_of(&self, key: u128) -> usize {
        let mask = self.slots.len() - 1;
        let start = usize::try_from(key & u128::from(u64::MAX)).unwrap_or_default();
        let mut at = start & mask;
        while self.slots.get(at).is_some_and(|slot| *slot != 0 && *slot != key) {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let larger = (self.slots.len() * 2).max(SLOTS_MIN);
        let smaller = std::mem::replace(&mut self.slots, vec![0; larger].into());
        for key in smaller.into_iter().filter(|key| *key != 0) {
            let at = self.place_of(key);
            if let Some(slot) = self.slots.get_mut(at) {
                *slot = key;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn a_key_is_known_for_the_span_and_at_most_a_bucket_longer() {
        let mut window = Window::new(Duration::from_secs(80), 1000);
        window.insert(at(100), [KeyHash(1)].into_iter());
        window.insert(at(105), [KeyHash(2)].into_iter());
        assert!(window.contains(KeyHash(1), at(179)));
        assert!(window.contains(KeyHash(2), at(184)));
        assert!(!window.contains(KeyHash(1), at(190)));
        window.expire(at(190));
        assert!(window.is_empty());
        assert_eq!(window.effective_span(at(190)), Duration::from_secs(80));
    }

    #[test]
    fn a_full_window_forgets_the_oldest_keys_and_says_so() {
        let mut window = Window::new(Duration::from_secs(800), 80);
        for second in 0..100u64 {
            window.insert(at(1000 + second), [KeyHash(u128::from(second))].into_iter());
        }
        assert!(window.len() <= 80);
        assert!(!window.contains(KeyHash(0), at(1100)));
        assert!((30..100).all(|key| window.contains(KeyHash(key), at(1100))));
        assert_eq!(window.effective_span(at(1100)), Duration::from_secs(1100 - 1019));
    }

    #[test]
    fn a_key_takes_no_more_memory_than_promised() {
        let mut window = Window::new(Duration::from_secs(800), 1 << 20);
        let mut key = 1u128;
        for second in 0..400u64 {
            let keys = std::iter::repeat_with(|| {
                key = key.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
                KeyHash(key ^ (key >> 64))
            });
            window.insert(at(second), keys.take(1000));
        }
        let bytes: usize = window.buckets.iter().map(|bucket| bucket.table.slots.len() * 16).sum();
        assert!(bytes / window.len() <= 43, "{} bytes a key", bytes / window.len());
    }

    proptest! {
        #[test]
        fn a_window_agrees_with_a_list(commits in prop::collection::vec((0u64..30, prop::collection::vec(0u128..50, 0..20)), 0..40)) {
            let span = Duration::from_secs(160);
            let mut window = Window::new(span, 10_000);
            let mut list: Vec<(Timestamp, u128)> = Vec::new();
            let mut now = at(1000);
            for (pause, keys) in commits {
                now = now + Duration::from_secs(pause);
                window.expire(now);
                window.insert(now, keys.iter().copied().map(KeyHash));
                list.extend(keys.into_iter().map(|key| (now, key)));
                for key in 0..50 {
                    let newest = list.iter().filter(|(_, k)| *k == key).map(|(at, _)| *at).max();
                    let known = window.contains(KeyHash(key), now);
                    // Never forgotten too early, and at most a bucket's length too late.
                    prop_assert!(known || newest.is_none_or(|at| now.since(at) >= span));
                    prop_assert!(!known || newest.is_some_and(|at| now.since(at) < span + span / BUCKETS));
                }
            }
        }
    }
}
