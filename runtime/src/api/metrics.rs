//! `GET /metrics`: figures of the requests served here, and of functions and topics as the log has them at that moment.
//!
//! The names of metrics are in `telemetry/names.rs`, those of labels here.

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

use super::functions::{Observed, breaker_name, is_balanced, lag_records, lag_seconds, processable_lag};
use super::problem::{Kind, Refusal};
use super::{Shared, State as Phase};
use crate::broker::{Broker, Catalog, TopicInfo};
use crate::telemetry::names::{SYSTEM, metric, operation};
use crate::worker::{Revision, UnitFigures, UnitStatus};
use durations::Durations;

mod durations;

/// What the text is, as OpenMetrics says it and Prometheus reads it.
const TEXT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds in seconds: those that the conventions advise, and finer ones below.
const DURATIONS: [f64; 17] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];
/// The states of a breaker.
const BREAKER_STATES: [&str; 3] = ["closed", "open", "half-open"];

/// Whoever asks gives up after ten seconds, as a rule; until then the log must have told its figures.
const LOG_ANSWERS_WITHIN: Duration = Duration::from_secs(8);

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
struct TokenLabels {
    token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FunctionLabels {
    faas_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct SourceLabels {
    faas_name: String,
    messaging_destination_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct RevisionLabels {
    faas_name: String,
    faas_version: String,
}

/// What the conventions ask of metrics of messaging, with the function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct OperationLabels {
    faas_name: String,
    messaging_destination_name: String,
    messaging_operation_name: &'static str,
    messaging_system: &'static str,
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
        registry.register(metric::REQUEST_DURATION, of_requests, self.durations.clone());
        registry.register(metric::ACTIVE_REQUESTS, "Requests being served.", self.active.clone());
        registry.register(metric::SENT, "Events published through this API.", self.sent.clone());
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

/// `GET /metrics`. What the log does not tell is left out, as it is when the broker cannot be reached: the others are wanted
/// most then.
pub(super) async fn show<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
) -> Result<impl IntoResponse, Refusal> {
    let mut registry = Registry::default();
    api.metrics.register(&mut registry);
    let asked = async { Ok::<_, Refusal>((api.observe(|_| true).await?, api.broker.kept().await?)) };
    let told = tokio::time::timeout(LOG_ANSWERS_WITHIN, asked).await.ok().and_then(Result::ok);
    let answers: Gauge = Gauge::default();
    answers.set(i64::from(told.is_some()));
    registry.register(metric::LOG_ANSWERS, "1 if the figures of functions and the log are among these.", answers);
    let (functions, topics) = told.unwrap_or_default();
    register_settlements(&mut registry, &functions);
    register_lags(&mut registry, &functions);
    register_attempts(&mut registry, &functions);
    register_durations(&mut registry, &functions);
    register_revisions(&mut registry, &functions);
    register_functions(&mut registry, &functions);
    register_groups(&mut registry, &functions);
    register_topics(&mut registry, &topics);
    let lost: Counter = Counter::default();
    lost.inc_by(api.registry.tracing().lost());
    registry.register(metric::LOST_SPANS, "Spans that did not reach the collector.", lost);
    let unwritten: Counter = Counter::default();
    unwritten.inc_by(api.journal.as_ref().map_or(0, |journal| journal.lost()));
    registry.register(metric::LOST_AUDIT, "Records of who did what that could not be written.", unwritten);
    let limited = Family::<TokenLabels, Counter>::default();
    for (token, refused) in api.access.rate_limited() {
        limited.get_or_create(&TokenLabels { token: token.to_string() }).inc_by(refused);
    }
    registry.register(metric::RATE_LIMITED, "Requests refused because their token sends too many.", limited);
    if let Some(tls) = &api.tls {
        let expiry: Gauge = Gauge::default();
        expiry.set(gauge(tls.expires()));
        let help = "When the certificate of the API expires, in seconds since 1970.";
        registry.register(metric::CERTIFICATE_EXPIRY, help, expiry);
    }
    let ready: Gauge = Gauge::default();
    ready.set(i64::from(api.state() == Phase::Ready));
    registry.register(metric::READY, "1 if all functions are active and the log works.", ready);
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
    registry.register(metric::SETTLED, "Records settled, as committed, by log and outcome.", settled);
    registry.register(metric::COMMITS, "Commits of the function's partitions.", commits);
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
    let processable = Family::<SourceLabels, Gauge>::default();
    let parked = Family::<SourceLabels, Gauge>::default();
    let stopped = Family::<SourceLabels, Gauge>::default();
    for (observed, unit) in units(functions) {
        let labels = source_labels(observed, &unit.unit.topic);
        let live = observed.live(&unit.unit).map(UnitStatus::figures);
        let held_back = live.as_ref().map_or(unit.progress.parked.len(), |figures| figures.parked);
        let waits = observed.stopped.is_some() || live.is_some_and(|figures| figures.stopped.is_some());
        records.get_or_create(&labels).inc_by(gauge(lag_records(unit)));
        processable.get_or_create(&labels).inc_by(gauge(processable_lag(unit, held_back)));
        parked.get_or_create(&labels).inc_by(gauge(held_back as u64));
        stopped.get_or_create(&labels).inc_by(i64::from(waits));
        let oldest = seconds.get_or_create_owned(&labels);
        oldest.set(oldest.get().max(lag_seconds(unit, observed.at)));
    }
    registry.register(metric::LAG_RECORDS, "Records published and not settled.", records);
    registry.register(metric::LAG_SECONDS, "Age of the oldest record that is not settled.", seconds);
    registry.register(metric::PROCESSABLE_LAG, "Those that a handler can have now.", processable);
    registry.register(metric::PARKED, "Records held back behind failing keys.", parked);
    registry.register(metric::STOPPED, "Partitions that wait for an operator.", stopped);
}

fn register_attempts(registry: &mut Registry, functions: &[Observed]) {
    let received = Family::<OperationLabels, Counter>::default();
    let attempts = Family::<SourceLabels, Counter>::default();
    let failed = Family::<SourceLabels, Counter>::default();
    let keys = Family::<SourceLabels, Gauge>::default();
    let window = Family::<SourceLabels, FloatGauge>::default();
    for (labels, figures) in live(functions) {
        received.get_or_create(&during(&labels, operation::PROCESS)).inc_by(figures.counts.received);
        attempts.get_or_create(&labels).inc_by(figures.counts.attempts);
        failed.get_or_create(&labels).inc_by(figures.counts.failed_attempts);
        keys.get_or_create(&labels).inc_by(gauge(figures.keys as u64));
        let span = figures.window.as_secs_f64();
        // The partition that forgets first is the one to know of; a new gauge is zero, and no window is that short.
        let shortest = window.get_or_create_owned(&labels);
        let is_new = shortest.get() == 0.0;
        shortest.set(if is_new { span } else { shortest.get().min(span) });
    }
    registry.register(metric::RECEIVED, "Records that workers fetched, since they started.", received);
    registry.register(metric::ATTEMPTS, "Attempts at events, since the function was activated here.", attempts);
    registry.register(metric::FAILED_ATTEMPTS, "Those that failed.", failed);
    registry.register(metric::KEYS, "Idempotency keys that are remembered.", keys);
    registry.register(metric::WINDOW, "For how long they are, where it is shortest.", window);
}

fn register_durations(registry: &mut Registry, functions: &[Observed]) {
    let mut queue = Durations::new(metric::QUEUE_DURATION, "From publication to the first attempt.");
    let mut invoke = Durations::new(metric::INVOKE_DURATION, "From call to return of the handler.");
    let mut commit = Durations::new(metric::COMMIT_DURATION, "From the beginning of a commit until it was durable.");
    let mut whole = Durations::new(metric::END_TO_END_DURATION, "From publication until the settlement was durable.");
    for (labels, UnitFigures { counts, .. }) in live(functions) {
        invoke.add(during(&labels, operation::PROCESS), &counts.invoke);
        commit.add(during(&labels, operation::COMMIT), &counts.commit);
        queue.add(labels.clone(), &counts.queue);
        whole.add(labels, &counts.end_to_end);
    }
    registry.register_collector(Box::new(queue));
    registry.register_collector(Box::new(invoke));
    registry.register_collector(Box::new(commit));
    registry.register_collector(Box::new(whole));
}

/// One beside the other, so that a canary can be compared with the active revision.
fn register_revisions(registry: &mut Registry, functions: &[Observed]) {
    let attempts = Family::<RevisionLabels, Counter>::default();
    let failed = Family::<RevisionLabels, Counter>::default();
    let mut invoke = Durations::new(metric::REVISION_DURATION, "From call to return of the handler, by revision.");
    for observed in functions {
        for counted in observed.function.attempts() {
            let labels = RevisionLabels {
                faas_name: observed.function.settings.name.to_string(),
                faas_version: counted.revision.to_string(),
            };
            attempts.get_or_create(&labels).inc_by(counted.invoke.count());
            failed.get_or_create(&labels).inc_by(counted.failed);
            invoke.add(labels, &counted.invoke);
        }
    }
    registry.register(metric::REVISION_ATTEMPTS, "Attempts at events, by revision.", attempts);
    registry.register(metric::REVISION_FAILED_ATTEMPTS, "Those that failed, by revision.", failed);
    registry.register_collector(Box::new(invoke));
}

/// The figures of all workers that run here.
fn live(functions: &[Observed]) -> impl Iterator<Item = (SourceLabels, UnitFigures)> {
    let figures = |(observed, unit): (&Observed, &crate::broker::UnitInfo)| {
        Some((source_labels(observed, &unit.unit.topic), observed.live(&unit.unit)?.figures()))
    };
    units(functions).filter_map(figures)
}

fn during(labels: &SourceLabels, operation: &'static str) -> OperationLabels {
    let SourceLabels { faas_name, messaging_destination_name } = labels.clone();
    OperationLabels {
        faas_name,
        messaging_destination_name,
        messaging_operation_name: operation,
        messaging_system: SYSTEM,
    }
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
        let largest = observed.function.units.iter().map(|unit| unit.figures().counts.guest_memory_bytes).max();
        letters.get_or_create(&labels).set(gauge(observed.open_letters));
        memory.get_or_create(&labels).set(gauge(largest.unwrap_or(0)));
        balanced.get_or_create(&labels).set(i64::from(observed.units.iter().all(is_balanced)));
    }
    registry.register(metric::BREAKER, "1 for the state that the function's breaker is in.", breaker);
    registry.register(metric::LETTERS, "Dead letters that wait for a person.", letters);
    registry.register(metric::GUEST_MEMORY, "The most memory that a guest had.", memory);
    registry.register(metric::BALANCED, "1 if settlements are as many as positions say.", balanced);
}

fn register_groups(registry: &mut Registry, functions: &[Observed]) {
    let counters: [Family<FunctionLabels, Counter>; 4] = Default::default();
    let [assigned, revoked, fenced, restored] = &counters;
    let restoring = Family::<FunctionLabels, Gauge>::default();
    let last = Family::<FunctionLabels, FloatGauge>::default();
    for Observed { function, group, .. } in functions {
        let labels = FunctionLabels { faas_name: function.settings.name.to_string() };
        for (counter, count) in [
            (assigned, group.assigned),
            (revoked, group.revoked),
            (fenced, group.fenced),
            (restored, group.restored_records),
        ] {
            counter.get_or_create(&labels).inc_by(count);
        }
        restoring.get_or_create(&labels).set(gauge(group.restoring));
        last.get_or_create(&labels).set(group.last_restore.as_secs_f64());
    }
    let [assigned, revoked, fenced, restored] = counters;
    registry.register(metric::ASSIGNED, "Partitions that the group assigned to this instance.", assigned);
    registry.register(metric::REVOKED, "Partitions that this instance lost again.", revoked);
    registry.register(metric::FENCED, "Commits not made, since their partition was lost or may have been.", fenced);
    registry.register(metric::RESTORING, "Partitions that wait until what they remember is read.", restoring);
    registry.register(metric::RESTORED, "Records that were read for that.", restored);
    registry.register(metric::LAST_RESTORE, "How long it took the last time.", last);
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
    registry.register(metric::LOG_BYTES, "Bytes kept of a topic.", bytes);
    registry.register(metric::LOG_RECORDS, "Records kept of a topic.", records);
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
