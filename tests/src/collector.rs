//! A collector of spans, as small as one can be: it takes OTLP over HTTP and keeps what it gets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How long spans may take that have to come in the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// The name of the service that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: v1::span::SpanKind,
    /// Its trace, in hex.
    pub trace: String,
    /// Itself, in hex.
    pub id: String,
    /// Its parent, in hex; empty without one.
    pub parent: String,
    /// The vendors' values of its trace.
    pub state: String,
    /// Trace and span of each link, in hex.
    pub links: Vec<(String, String)>,
    /// Attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// The message of its status, if that is an error.
    pub error: Option<String>,
    /// From beginning to end; negative if it ended before it began.
    pub nanos: i128,
}

impl Span {
    /// An attribute; empty if it is not there.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// What a link to it says.
    #[must_use]
    pub fn as_link(&self) -> (String, String) {
        (self.trace.clone(), self.id.clone())
    }
}

/// A collector that listens on this machine.
#[derive(Debug)]
pub struct Collector {
    /// Its address, as an endpoint is given.
    pub endpoint: String,
    spans: watch::Receiver<Vec<Span>>,
}

impl Collector {
    /// Starts one. It ends with the runtime.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("an address");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, spans) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let answer = service_fn(move |request| take(sender.clone(), request));
                tokio::spawn(async move {
                    let serving =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    serving.await.ok();
                });
            }
        });
        Self { endpoint, spans }
    }

    /// Waits until what came fulfils a condition, and answers with all of it.
    ///
    /// # Panics
    /// If that does not come.
    pub async fn spans_until(&mut self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let waiting = self.spans.wait_for(|spans| enough(spans));
        if let Ok(spans) = tokio::time::timeout(PATIENCE, waiting).await {
            return spans.expect("the collector runs").clone();
        }
        panic!("the spans do not come; there are {:#?}", *self.spans.borrow());
    }
}

async fn take(
    sender: watch::Sender<Vec<Span>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = |status, body: Vec<u8>| {
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        Ok(response)
    };
    let is_meant = request.method() == Method::POST
        && request.uri().path() == "/v1/traces"
        && request.headers().get("content-type").is_some_and(|of| of == "application/x-protobuf");
    let Ok(body) = request.into_body().collect().await else { return answer(StatusCode::BAD_REQUEST, Vec::new()) };
    let Ok(request) = ExportTraceServiceRequest::decode(body.to_bytes()) else {
        return answer(StatusCode::BAD_REQUEST, Vec::new());
    };
    if !is_meant {
        return answer(StatusCode::NOT_FOUND, Vec::new());
    }
    sender.send_modify(|spans| spans.extend(read(request)));
    answer(StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
}

fn read(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut read = Vec::new();
    for resource in request.resource_spans {
        let attributes = texts(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = attributes.get("service.name").cloned().unwrap_or_default();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        read.extend(spans.map(|span| span_of(service.clone(), span)));
    }
    read
}

fn span_of(service: String, span: v1::Span) -> Span {
    let kind = span.kind();
    let error =
        span.status.filter(|status| status.code() == v1::status::StatusCode::Error).map(|status| status.message);
    Span {
        service,
        name: span.name,
        kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        state: span.trace_state,
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        attributes: texts(span.attributes),
        error,
        nanos: i128::from(span.end_time_unix_nano) - i128::from(span.start_time_unix_nano),
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|attribute| (attribute.key, attribute.value.map(text).unwrap_or_default())).collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
