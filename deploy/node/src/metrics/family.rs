//! A metric with all its series, made of values that are known already.

use caisson_node::counters::{Histogram, BOUNDS};
use prometheus::proto::{
    self, Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType,
};

/// A metric.
pub struct Family(MetricFamily);

impl Family {
    /// Begins a gauge without series.
    pub fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    /// Begins a counter without series.
    pub fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    /// Begins a histogram without series.
    pub fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    /// Adds a series of a gauge or a counter.
    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Self {
        let mut metric = labelled(labels);
        match self.0.get_field_type() {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.0.mut_metric().push(metric);
        self
    }

    /// Adds a series of a histogram.
    pub fn with_times(mut self, labels: &[(&str, &str)], times: &Histogram) -> Self {
        let bucket = |(bound, count): (f64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let buckets = BOUNDS.into_iter().zip(times.cumulative());
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.map(bucket).collect());
        histogram.set_sample_count(times.count());
        histogram.set_sample_sum(times.sum);
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.0.mut_metric().push(metric);
        self
    }

    /// Returns the metric, if it has a series.
    pub fn filled(self) -> Option<MetricFamily> {
        (!self.0.get_metric().is_empty()).then_some(self.0)
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
