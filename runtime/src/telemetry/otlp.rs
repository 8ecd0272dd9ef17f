//! Spans on their way to a collector: OTLP over HTTP, as protobuf. The only file that knows OpenTelemetry's types.
//!
//! One task takes what waits, turns it into OpenTelemetry's form and posts it. A collector that is slow or gone costs
//! spans and nothing else.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use millrace_core::time::Timestamp;
use millrace_core::trace::{SpanId, TraceParent};
use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _, SpanLinks};
use tokio::sync::oneshot;

use super::names::{SYSTEM, attribute, operation};
use super::spans::{About, Outlet, Span};

/// Spans of one request, about: what is handed over together stays together.
const REQUEST_SPANS: usize = 512;
/// How long spans wait for others to go with them.
const GATHER: Duration = Duration::from_millis(500);
/// How long a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Longest answer that is read, in bytes; nobody needs to know what it says.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// An exporter that posts to this address.
///
/// # Errors
/// If the address is none.
pub(super) fn exporter(url: &str, service_name: &str) -> Result<opentelemetry_otlp::SpanExporter, String> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Poster::new())
        .with_endpoint(url)
        // Whatever the environment says to others: this is what is built in.
        .with_protocol(Protocol::HttpBinary)
        // What fails is dropped: the next spans are as good, and waiting would cost them.
        .with_retry_policy(RetryPolicy::default().with_max_retries(0))
        .build()
        .map_err(|e| e.to_string())?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    exporter
        .set_resource(&Resource::builder().with_service_name(service_name.to_owned()).with_attribute(version).build());
    Ok(exporter)
}

/// Sends what comes out of the outlet until it is told to stop; then what still waits.
pub(super) async fn run(
    exporter: opentelemetry_otlp::SpanExporter,
    url: String,
    mut outlet: Outlet,
    mut stop: oneshot::Receiver<()>,
) {
    let scope = InstrumentationScope::builder(SYSTEM).with_version(env!("CARGO_PKG_VERSION")).build();
    let mut is_stopping = false;
    let mut reached = Reached { url, fails: false };
    loop {
        let first = tokio::select! {
            biased;
            _ = &mut stop, if !is_stopping => {
                outlet.close();
                is_stopping = true;
                continue;
            }
            first = outlet.next() => first,
        };
        let Some(mut spans) = first else { return };
        tokio::select! {
            () = gather(&mut outlet, &mut spans) => {}
            () = tokio::time::sleep(GATHER) => {}
            _ = &mut stop, if !is_stopping => {
                outlet.close();
                is_stopping = true;
            }
        }
        let count = spans.len();
        let batch = spans.into_iter().map(|span| data(span, &scope)).collect();
        let result = match tokio::time::timeout(REQUEST_MAX, exporter.export(batch)).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {REQUEST_MAX:?}")),
        };
        if result.is_err() {
            outlet.lose(count);
        }
        reached.tell(&result);
    }
}

async fn gather(outlet: &mut Outlet, spans: &mut Vec<Span>) {
    while spans.len() < REQUEST_SPANS {
        match outlet.next().await {
            Some(more) => spans.extend(more),
            None => return,
        }
    }
}

/// Whether the collector was reached the last time, so that a collector that is down is told of once.
struct Reached {
    url: String,
    fails: bool,
}

impl Reached {
    fn tell(&mut self, result: &Result<(), String>) {
        let url = &self.url;
        match result {
            Err(error) if !self.fails => {
                tracing::warn!(
                    url,
                    error,
                    "Spans could not be sent and are dropped, as are all until the collector answers."
                );
            }
            Ok(()) if self.fails => tracing::info!(url, "Spans are sent again."),
            Ok(()) | Err(_) => {}
        }
        self.fails = result.is_err();
    }
}

/// A span in OpenTelemetry's form.
fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let state = span.state.as_ref().and_then(|state| state.parse().ok()).unwrap_or_default();
    let mut links = SpanLinks::default();
    links.links =
        span.links.kept.iter().map(|link| Link::with_context(context(*link, true, TraceState::NONE))).collect();
    links.dropped_count = span.links.dropped;
    let (name, span_kind, attributes) = described(&span);
    SpanData {
        span_context: context(span.context, false, state),
        parent_span_id: span.parent.map_or(opentelemetry::trace::SpanId::INVALID, |parent| span_id(parent.span)),
        parent_span_is_remote: span.parent.is_some_and(|parent| parent.is_remote),
        span_kind,
        name: name.into(),
        start_time: system_time(span.began),
        end_time: system_time(span.ended),
        attributes,
        dropped_attributes_count: 0,
        events: opentelemetry_sdk::trace::SpanEvents::default(),
        links,
        status: span.error.map_or(Status::Unset, |error| Status::error(error.message.to_string())),
        instrumentation_scope: scope.clone(),
    }
}

fn context(of: TraceParent, is_remote: bool, state: TraceState) -> SpanContext {
    let flags = if of.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    SpanContext::new(opentelemetry::trace::TraceId::from(of.trace.0), span_id(of.span), flags, is_remote, state)
}

fn span_id(id: SpanId) -> opentelemetry::trace::SpanId {
    opentelemetry::trace::SpanId::from(id.0)
}

fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(at.as_nanos())
}

/// Name, kind and attributes, by the conventions for messaging. Events carry the context of the operation that processed
/// their cause, not of the sending: so sending is of the kind of a client.
fn described(span: &Span) -> (String, SpanKind, Vec<KeyValue>) {
    let unit = &span.unit;
    let function = unit.function.as_str().to_owned();
    let (source, partition) = (unit.topic.as_str().to_owned(), unit.partition.to_string());
    let mut attributes = vec![
        KeyValue::new(attribute::SYSTEM, SYSTEM),
        KeyValue::new(attribute::GROUP, function.clone()),
        KeyValue::new(attribute::FUNCTION, function),
    ];
    attributes.extend(span.error.as_ref().map(|error| KeyValue::new(attribute::ERROR_TYPE, error.kind)));
    let mut set = |operation: &'static str, of_type: &'static str, more: Vec<KeyValue>| {
        attributes.push(KeyValue::new(attribute::OPERATION, operation));
        attributes.push(KeyValue::new(attribute::OPERATION_TYPE, of_type));
        attributes.extend(more);
    };
    let (name, kind) = match &span.about {
        About::Process { event, correlation, offset, attempt, revision, outcome } => {
            let name = format!("{} {source}", operation::PROCESS);
            let more = vec![
                KeyValue::new(attribute::TOPIC, source),
                KeyValue::new(attribute::PARTITION, partition),
                KeyValue::new(attribute::MESSAGE_ID, event.to_string()),
                KeyValue::new(attribute::CONVERSATION_ID, correlation.to_string()),
                KeyValue::new(attribute::OFFSET, integer(*offset)),
                KeyValue::new(attribute::ATTEMPT, i64::from(*attempt)),
                KeyValue::new(attribute::REVISION, revision.to_string()),
                KeyValue::new(attribute::OUTCOME, *outcome),
            ];
            set(operation::PROCESS, operation::PROCESS, more);
            (name, SpanKind::Consumer)
        }
        About::Send { topic, events } => {
            let more = vec![
                KeyValue::new(attribute::TOPIC, topic.as_str().to_owned()),
                KeyValue::new(attribute::BATCH_COUNT, integer(*events)),
            ];
            set(operation::SEND, operation::SEND, more);
            (format!("{} {topic}", operation::SEND), SpanKind::Client)
        }
        About::Commit { settled, outcome } => {
            let more = vec![
                KeyValue::new(attribute::TOPIC, source),
                KeyValue::new(attribute::PARTITION, partition),
                KeyValue::new(attribute::BATCH_COUNT, integer(*settled as u64)),
                KeyValue::new(attribute::OUTCOME, *outcome),
            ];
            set(operation::COMMIT, operation::SETTLE, more);
            (operation::COMMIT.to_owned(), SpanKind::Client)
        }
    };
    (name, kind, attributes)
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Posts without encryption.
struct Poster(Client<HttpConnector, Full<Bytes>>);

impl Poster {
    fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poster")
    }
}

// The trait is made with `async-trait`, which we do without: this is what it writes.
impl HttpClient for Poster {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let answer = self.0.request(request.map(Full::from)).await.inspect_err(|error| {
                // What becomes of the error says only that there was one.
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::debug!(%error, cause, "The collector cannot be reached.");
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        })
    }
}

#[cfg(test)]
mod tests;
