//! Durations counted by their length: gathered by one owner, merged once for many.

use std::time::Duration;

/// Upper bounds of the buckets; one more bucket takes what is longer.
pub(super) const BOUNDS: [Duration; 22] = [
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(30),
];

/// Nobody counts more in one bucket. What all tell can be added up.
const TOLD_MAX: u64 = 1 << 40;

/// How many durations lie in which bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one duration; one that is as long as a bound belongs below it.
    pub fn observe(&mut self, duration: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < duration);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// What another process counted: upper bounds of buckets in nanoseconds, each with its count, and the sum of all durations.
    #[must_use]
    pub fn told(buckets: &[(u64, u64)], sum: Duration) -> Self {
        let mut all = Self { sum, ..Self::default() };
        for (bound, count) in buckets {
            let bucket = BOUNDS.partition_point(|own| *own < Duration::from_nanos(*bound));
            all.counts[bucket] = all.counts[bucket].saturating_add(*count).min(TOLD_MAX);
        }
        all
    }

    /// The upper bounds of the buckets that are not empty, in nanoseconds, each with its count; the largest number for what is longer than the
    /// last bound.
    #[must_use]
    pub fn to_tell(&self) -> Vec<(u64, u64)> {
        let nanos = |bound: &Duration| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let bounds = BOUNDS.iter().map(nanos).chain([u64::MAX]);
        bounds.zip(self.counts).filter(|(_, count)| *count > 0).collect()
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// What this part of all durations, 0 to 1, does not exceed: an estimate, as if those of a bucket were spread evenly between its
    /// bounds. Zero if none was counted; the last bound for what is longer.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let wanted = self.count() as f64 * part;
        let (mut below, mut lower) = (0.0, Duration::ZERO);
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                return lower + (*bound - lower).mul_f64(((wanted - below) / count).clamp(0.0, 1.0));
            }
            (below, lower) = (below + count, *bound);
        }
        if self.count() == 0 { Duration::ZERO } else { lower }
    }

    /// Each bucket's upper bound in seconds with its count, not with those of shorter ones; the last bound is infinite.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_in_the_first_bucket_that_is_long_enough() {
        for (nanos, expected) in [
            (0, 0),
            (25_000, 0),
            (25_001, 1),
            (50_000, 1),
            (1_000_000, 5),
            (1_000_001, 6),
            (1_800_000_000_000, 21),
            (1_800_000_000_001, 22),
        ] {
            let mut histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(nanos));
            let filled = histogram.buckets().iter().position(|(_, count)| *count == 1);
            assert_eq!(filled, Some(expected), "{nanos} ns");
        }
    }

    #[test]
    fn what_is_told_is_what_was_counted() {
        let mut histogram = Histogram::default();
        for nanos in [1, 25_000, 1_000_001, 1_800_000_000_001] {
            histogram.observe(Duration::from_nanos(nanos));
        }
        let told = histogram.to_tell();
        assert_eq!(told, [(25_000, 2), (2_500_000, 1), (u64::MAX, 1)]);
        assert_eq!(Histogram::told(&told, histogram.sum()), histogram);
        // By other bounds, and more than anybody counts.
        let foreign = Histogram::told(&[(0, 1), (26_000, u64::MAX), (50_000, u64::MAX)], Duration::MAX);
        let mut all = foreign.clone();
        all.merge(&foreign);
        assert_eq!((all.to_tell(), all.sum()), (vec![(25_000, 2), (50_000, 2 * TOLD_MAX)], Duration::MAX));
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        for (micros, part, expected) in [
            (vec![], 0.5, 0),
            // Four between 500 and 1,000 microseconds.
            (vec![600; 4], 0.5, 750),
            (vec![600; 4], 1.0, 1_000),
            (vec![600, 600, 600, 4_000], 0.5, 833),
            (vec![600, 600, 600, 4_000], 0.75, 1_000),
            (vec![600, 600, 600, 4_000], 1.0, 5_000),
            // Longer than any bound.
            (vec![1_900_000_000], 0.5, 1_800_000_000),
        ] {
            let mut histogram = Histogram::default();
            micros.iter().for_each(|micros| histogram.observe(Duration::from_micros(*micros)));
            assert_eq!(histogram.quantile(part).as_micros(), expected, "{part} of {micros:?}");
        }
    }

    #[test]
    fn bounds_ascend() {
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn merging_is_counting_all() {
        let (mut all, mut parts) = (Histogram::default(), Histogram::default());
        for millis in [0, 1, 7, 7, 300, 2_000_000] {
            let mut part = Histogram::default();
            part.observe(Duration::from_millis(millis));
            all.observe(Duration::from_millis(millis));
            parts.merge(&part);
        }
        assert_eq!(parts, all);
        assert_eq!((all.count(), all.sum()), (6, Duration::from_millis(2_000_315)));
    }
}
