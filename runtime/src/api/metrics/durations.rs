//! Histograms that workers have gathered, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::telemetry::Histogram;

/// One metric: a histogram for each set of labels.
#[derive(Debug)]
pub(super) struct Durations<L> {
    name: &'static str,
    help: &'static str,
    by_labels: BTreeMap<L, Histogram>,
}

impl<L: Ord> Durations<L> {
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, by_labels: BTreeMap::new() }
    }

    /// Adds what one worker counted.
    pub(super) fn add(&mut self, labels: L, counted: &Histogram) {
        self.by_labels.entry(labels).or_default().merge(counted);
    }
}

impl<L: EncodeLabelSet + fmt::Debug + Send + Sync + 'static> Collector for Durations<L> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Histogram)?;
        for (labels, histogram) in &self.by_labels {
            let (sum, count, buckets) = (histogram.sum().as_secs_f64(), histogram.count(), histogram.buckets());
            metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_histogram_is_shown_with_the_sums_of_its_buckets() {
        let mut durations = Durations::new("wait_seconds", "How long.");
        for (place, millis) in [("a", 1), ("a", 2), ("b", 3_600_000), ("a", 3_600_000)] {
            let mut histogram = Histogram::default();
            histogram.observe(Duration::from_millis(millis));
            durations.add(vec![("place", place)], &histogram);
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(durations));
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            "# TYPE wait_seconds histogram",
            "wait_seconds_sum{place=\"a\"} 3600.003",
            "wait_seconds_count{place=\"a\"} 3",
            "wait_seconds_count{place=\"b\"} 1",
            "wait_seconds_bucket{le=\"0.0005\",place=\"a\"} 0",
            "wait_seconds_bucket{le=\"0.001\",place=\"a\"} 1",
            "wait_seconds_bucket{le=\"0.0025\",place=\"a\"} 2",
            "wait_seconds_bucket{le=\"1800.0\",place=\"a\"} 2",
            "wait_seconds_bucket{le=\"+Inf\",place=\"a\"} 3",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "no line `{line}` in:\n{shown}");
        }
    }
}
