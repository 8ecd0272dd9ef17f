//! `GET /metrics`: figures of the requests served here, and of functions and topics as the log has them at that moment.
//!
//! Names and labels are those of OpenTelemetry's semantic conventions (HTTP, messaging, FaaS), written as Prometheus
//! writes them, where there is one; our own begin with `millrace_`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use millrace_core::name::Topic;
use millrace_core::progress::Totals;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::functions::{Observed, breaker_name, is_balanced, lag_records, lag_seconds};
use super::problem::{Kind, Refusal};
use super::{Shared, State as Phase};
use crate::broker::{Broker, Catalog, TopicInfo};
use crate::worker::{Revision, UnitStatus};

/// What the text is, as OpenMetrics says it and Prometheus reads it.
const TEXT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds in seconds: those that the conventions advise, and finer ones below.
const DURATIONS: [f64; 17] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];
/// The states of a breaker.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half-open"];

type FloatGauge = Gauge<f64, AtomicU64>;

/// What is counted while requests are served.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
    active: Gauge,
    sent: Family<TopicLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    http_route: &'static str,
    http_response_status_code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabels {
    messaging_destination_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FunctionLabels {
    faas_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    faas_name: String,
    messaging_destination_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    faas_name: String,
    messaging_destination_name: String,
    log: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakerLabels {
    faas_name: String,
    state: &'static str,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let durations: fn() -> Histogram = || Histogram::new(DURATIONS);
        Self { durations: Family::new_with_constructor(durations), active: Gauge::default(), sent: Family::default() }
    }

    /// One more request is being served.
    pub(super) fn begun(&self) {
        self.active.inc();
    }

    /// A request that was being served ended, whether it was answered or its client gave up.
    pub(super) fn ended(&self) {
        self.active.dec();
    }

    /// A request was answered. `route` is a template, so that there are few of them.
    pub(super) fn answered(&self, method: &Method, route: &'static str, status: StatusCode, after: Duration) {
        let labels = RequestLabels {
            http_request_method: method_name(method),
            http_route: route,
            http_response_status_code: status.as_u16(),
        };
        self.durations.get_or_create(&labels).observe(after.as_secs_f64());
    }

    /// Events were published to a topic, which exists: so there are no more of these than of topics.
    pub(super) fn sent(&self, topic: &Topic, events: u64) {
        if events > 0 {
            let labels = TopicLabels { messaging_destination_name: topic.to_string() };
            self.sent.get_or_create(&labels).inc_by(events);
        }
    }

    fn register(&self, registry: &mut Registry) {
        let of_requests = "Duration of requests in seconds.";
        registry.register("http_server_request_duration_seconds", of_requests, self.durations.clone());
        registry.register("http_server_active_requests", "Requests being served.", self.active.clone());
        registry.register("messaging_client_sent_messages", "Events published through this API.", self.sent.clone());
    }
}

/// Methods that the conventions know; others could be any number.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

/// `GET /metrics`
pub(super) async fn show<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
) -> Result<impl IntoResponse, Refusal> {
    let mut registry = Registry::default();
    api.metrics.register(&mut registry);
    let functions = api.observe().await?;
    register_settlements(&mut registry, &functions);
    register_lags(&mut registry, &functions);
    register_attempts(&mut registry, &functions);
    register_functions(&mut registry, &functions);
    register_topics(&mut registry, &api.broker.topics().await?);
    let ready: Gauge = Gauge::default();
    ready.set(i64::from(api.state() == Phase::Ready));
    registry.register("millrace_ready", "1 if all functions are active and the log works.", ready);
    let mut body = String::new();
    text::encode(&mut body, &registry).map_err(|e| Refusal::new(Kind::Internal, e))?;
    Ok(([(CONTENT_TYPE, TEXT_TYPE)], body))
}

fn register_settlements(registry: &mut Registry, functions: &[Observed]) {
    let settled = Family::<OutcomeLabels, Counter>::default();
    let commits = Family::<SourceLabels, Counter>::default();
    for (observed, unit) in units(functions) {
        let labels = source_labels(observed, &unit.unit.topic);
        commits.get_or_create(&labels).inc_by(unit.progress.commits);
        for (log, totals) in [("source", unit.progress.source.totals), ("redrive", unit.progress.redrive.totals)] {
            for (outcome, count) in outcomes(totals) {
                let SourceLabels { faas_name, messaging_destination_name } = labels.clone();
                let labels = OutcomeLabels { faas_name, messaging_destination_name, log, outcome };
                settled.get_or_create(&labels).inc_by(count);
            }
        }
    }
    registry.register("millrace_settled_records", "Records settled, as committed, by log and outcome.", settled);
    registry.register("millrace_commits", "Commits of the function's partitions.", commits);
}

fn outcomes(totals: Totals) -> [(&'static str, u64); 6] {
    let Totals { completed, filtered, duplicate, dead_lettered, skipped, not_a_record } = totals;
    [
        ("completed", completed),
        ("filtered", filtered),
        ("duplicate", duplicate),
        ("dead-lettered", dead_lettered),
        ("skipped", skipped),
        ("not-a-record", not_a_record),
    ]
}

fn register_lags(registry: &mut Registry, functions: &[Observed]) {
    let records = Family::<SourceLabels, Gauge>::default();
    let seconds = Family::<SourceLabels, FloatGauge>::default();
    let parked = Family::<SourceLabels, Gauge>::default();
    let stopped = Family::<SourceLabels, Gauge>::default();
    for (observed, unit) in units(functions) {
        let labels = source_labels(observed, &unit.unit.topic);
        let live = observed.live(&unit.unit).map(UnitStatus::figures);
        let held_back = live.as_ref().map_or(unit.progress.parked.len(), |figures| figures.parked);
        let waits = live.is_some_and(|figures| figures.stopped.is_some());
        records.get_or_create(&labels).inc_by(gauge(lag_records(unit)));
        parked.get_or_create(&labels).inc_by(gauge(held_back as u64));
        stopped.get_or_create(&labels).inc_by(i64::from(waits));
        let oldest = seconds.get_or_create_owned(&labels);
        oldest.set(oldest.get().max(lag_seconds(unit, observed.at)));
    }
    registry.register("millrace_lag_records", "Records published and not settled.", records);
    registry.register("millrace_lag_seconds", "Age of the oldest record that is not settled.", seconds);
    registry.register("millrace_parked_records", "Records held back behind failing keys.", parked);
    registry.register("millrace_stopped_partitions", "Partitions that wait for an operator.", stopped);
}

fn register_attempts(registry: &mut Registry, functions: &[Observed]) {
    let attempts = Family::<SourceLabels, Counter>::default();
    let failed = Family::<SourceLabels, Counter>::default();
    let keys = Family::<SourceLabels, Gauge>::default();
    for (observed, unit) in units(functions) {
        let Some(figures) = observed.live(&unit.unit).map(UnitStatus::figures) else { continue };
        let labels = source_labels(observed, &unit.unit.topic);
        attempts.get_or_create(&labels).inc_by(figures.attempts);
        failed.get_or_create(&labels).inc_by(figures.failed_attempts);
        keys.get_or_create(&labels).inc_by(gauge(figures.keys as u64));
    }
    registry.register("millrace_attempts", "Attempts at events, since the function was activated here.", attempts);
    registry.register("millrace_failed_attempts", "Those that failed.", failed);
    registry.register("millrace_idempotency_keys", "Idempotency keys that are remembered.", keys);
}

fn register_functions(registry: &mut Registry, functions: &[Observed]) {
    let breaker = Family::<BreakerLabels, Gauge>::default();
    let letters = Family::<FunctionLabels, Gauge>::default();
    let memory = Family::<FunctionLabels, Gauge>::default();
    let balanced = Family::<FunctionLabels, Gauge>::default();
    for observed in functions {
        let labels = FunctionLabels { faas_name: observed.function.settings.name.to_string() };
        for state in BREAKER_STATES {
            let is_now = breaker_name(observed.function.breaker) == state;
            let labels = BreakerLabels { faas_name: labels.faas_name.clone(), state };
            breaker.get_or_create(&labels).set(i64::from(is_now));
        }
        let largest = observed.function.units.iter().map(|unit| unit.figures().guest_memory_bytes).max();
        letters.get_or_create(&labels).set(gauge(observed.open_letters));
        memory.get_or_create(&labels).set(gauge(largest.unwrap_or(0)));
        balanced.get_or_create(&labels).set(i64::from(observed.units.iter().all(is_balanced)));
    }
    registry.register("millrace_breaker_state", "1 for the state that the function's breaker is in.", breaker);
    registry.register("millrace_open_dead_letters", "Dead letters that wait for a person.", letters);
    registry.register("millrace_guest_memory_bytes", "The most memory that a guest had.", memory);
    registry.register("millrace_accounts_balanced", "1 if settlements are as many as positions say.", balanced);
}

fn register_topics(registry: &mut Registry, topics: &[TopicInfo]) {
    let bytes = Family::<TopicLabels, Gauge>::default();
    let records = Family::<TopicLabels, Gauge>::default();
    for topic in topics {
        let labels = TopicLabels { messaging_destination_name: topic.name.clone() };
        for partition in &topic.partitions {
            bytes.get_or_create(&labels).inc_by(gauge(partition.size_bytes));
            records.get_or_create(&labels).inc_by(gauge(partition.next.saturating_sub(partition.earliest)));
        }
    }
    registry.register("millrace_log_bytes", "Bytes kept of a topic.", bytes);
    registry.register("millrace_log_records", "Records kept of a topic.", records);
}

fn units(functions: &[Observed]) -> impl Iterator<Item = (&Observed, &crate::broker::UnitInfo)> {
    functions.iter().flat_map(|observed| observed.units.iter().map(move |unit| (observed, unit)))
}

fn source_labels(observed: &Observed, topic: &Topic) -> SourceLabels {
    SourceLabels {
        faas_name: observed.function.settings.name.to_string(),
        messaging_destination_name: topic.to_string(),
    }
}

fn gauge(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}
