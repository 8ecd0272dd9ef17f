//! Publishing over HTTP.
//!
//! What a body is, its content type says (<https://github.com/cloudevents/spec>, HTTP binding and JSON format): one
//! event, a batch, or data, which is an event if there are `ce-` headers. Any other data is plain and is wrapped.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::access::Caller;
use millrace_core::codec::{self, Mode};
use millrace_core::event::Event;
use millrace_core::name::{Topic, is_reserved};
use millrace_core::outcome::Failure;
use millrace_core::time::Timestamp;
use millrace_core::{limits, partition};
use serde::de::IgnoredAny;

use super::Shared;
use super::problem::{Kind, Refusal};
use super::request::{no_query, topic_of};
use super::trace::Trace;
use super::types::{IDEMPOTENCY_KEY_HEADER, KEY_HEADER, Place, Published};
use crate::broker::{Broker, Catalog, Outgoing, Placing, PublishError};
use crate::worker::Revision;

/// The `source` of events that are published as plain data.
pub const PLAIN_SOURCE: &str = "/millrace/http";
/// What plain data without a content type is (RFC 9110, section 8.3).
const OCTETS: &str = "application/octet-stream";

/// `POST /v1/topics/{topic}/events`
pub(super) async fn publish<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    topic: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let topic = topic_of(topic)?;
    if is_reserved(&api.prefix, topic.as_str()) {
        let detail = format_args!("only the runtime publishes to topics that begin with `{}.`", api.prefix);
        return Err(Refusal::new(Kind::ReservedTopic, detail));
    }
    let (parts, body) = request.into_parts();
    no_query(&parts.uri, "the ordering key goes into the header `Millrace-Key`")?;
    let form = Form::of(&parts.headers)?;
    let given = Given::read(&parts.headers, form)?;
    let body = api.bodies.read(&parts.headers, body).await?;
    let now = api.clock.now();
    let events = given.events(&parts.headers, &body.bytes, || plain_defaults(&api.ids.next(), now))?;
    let records = given.records(&topic, events, now)?;
    let count = records.len() as u64;
    let placements = match records.len() {
        0 => Vec::new(),
        _ => match given.name(api.broker.publish(records).await) {
            Ok(placements) => placements,
            Err(refusal) => return Err(api.with_topics(refusal, &caller).await),
        },
    };
    api.metrics.sent(&topic, count);
    let placements = placements.iter().map(|at| Place { partition: at.partition, offset: at.offset }).collect();
    Ok((StatusCode::ACCEPTED, Json(Published { topic: topic.to_string(), placements })).into_response())
}

/// How a request carries events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Structured,
    Batch,
    Binary,
    Plain,
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let content_type = match headers.get(CONTENT_TYPE).map(|value| value.to_str()) {
            None => "",
            Some(Ok(content_type)) => content_type,
            Some(Err(_)) => return Err(Refusal::malformed("the header `Content-Type` is not text")),
        };
        match Mode::of(content_type) {
            Mode::Structured => Ok(Self::Structured),
            Mode::Batch => Ok(Self::Batch),
            Mode::OtherFormat => Err(Refusal::new(
                Kind::UnsupportedMediaType,
                format_args!("of the formats of CloudEvents JSON is understood, not `{content_type}`"),
            )),
            // A single attribute is enough, so that one who forgets `ce-specversion` is told.
            Mode::Binary if headers.keys().any(|name| name.as_str().starts_with("ce-")) => Ok(Self::Binary),
            Mode::Binary => Ok(Self::Plain),
        }
    }
}

/// What the headers of a request say about all of its events.
#[derive(Debug)]
struct Given {
    form: Form,
    key: Option<Bytes>,
    idempotency_key: Option<ByteString>,
    trace: Option<Trace>,
}

impl Given {
    fn read(headers: &HeaderMap, form: Form) -> Result<Self, Refusal> {
        let idempotency_key = idempotency_key(headers)?;
        if form == Form::Batch && idempotency_key.is_some() {
            return Err(Refusal::malformed(
                "`Idempotency-Key` names one event, and a batch has several; each of them is known by its own id",
            ));
        }
        Ok(Self { form, key: ordering_key(headers)?, idempotency_key, trace: Trace::of(headers) })
    }

    /// The events of a body, complete.
    fn events(&self, headers: &HeaderMap, body: &Bytes, plain: impl FnOnce() -> Event) -> Result<Vec<Event>, Refusal> {
        let mut events = match self.form {
            Form::Structured => vec![codec::json::parse_shared(body).map_err(invalid)?],
            Form::Batch => codec::json::parse_batch_shared(body).map_err(|e| invalid(e.failure).at(e.index))?,
            Form::Binary => vec![binary(headers, body)?],
            Form::Plain => vec![self.plain(headers, body, plain())?],
        };
        if events.len() > limits::BATCH_MAX_EVENTS {
            let (count, max) = (events.len(), limits::BATCH_MAX_EVENTS);
            let detail = format_args!("the batch has {count} events and can have {max}; send several smaller ones");
            return Err(Refusal::new(Kind::TooLarge, detail));
        }
        if let (Form::Structured | Form::Binary, Some(key), [event]) = (self.form, &self.idempotency_key, &events[..])
            && *key != event.id
        {
            return Err(Refusal::malformed(
                "`Idempotency-Key` is not the event's `id`, by which a repetition is known; leave the header out",
            ));
        }
        if let Some(trace) = &self.trace {
            events.iter_mut().for_each(|event| trace.join(event));
        }
        Ok(events)
    }

    fn plain(&self, headers: &HeaderMap, body: &Bytes, defaults: Event) -> Result<Event, Refusal> {
        let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = given.or_else(|| (!body.is_empty()).then_some(OCTETS)).map(ByteString::from);
        check_json(content_type.as_deref(), body)?;
        let event = Event {
            id: self.idempotency_key.clone().unwrap_or(defaults.id),
            data: content_type.is_some().then(|| body.clone()),
            datacontenttype: content_type,
            ..defaults
        };
        codec::check(&event).map_err(invalid)?;
        Ok(event)
    }

    /// The records that carry these events, each within its bounds.
    fn records(&self, topic: &Topic, events: Vec<Event>, now: Timestamp) -> Result<Vec<Outgoing>, Refusal> {
        let mut bytes = 0;
        let mut records = Vec::with_capacity(events.len());
        for (index, event) in events.into_iter().enumerate() {
            let named = |refusal: Refusal| if self.form == Form::Batch { refusal.at(index) } else { refusal };
            check_bounds(&event).map_err(named)?;
            let key = self.key.clone().or_else(|| partition_key(&event));
            check_key(key.as_deref(), "extension `partitionkey`").map_err(named)?;
            let hash = partition::hash(key.as_deref(), &event.source, &event.id);
            let record = codec::encode(&event, key, now);
            bytes += record.size_bytes();
            records.push(Outgoing { topic: topic.clone(), placing: Placing::Hash(hash), record });
        }
        if bytes > limits::BATCH_MAX_BYTES {
            let max = limits::BATCH_MAX_BYTES;
            let detail = format_args!("the batch takes {bytes} bytes in the log and can take {max}; send smaller ones");
            return Err(Refusal::new(Kind::TooLarge, detail));
        }
        Ok(records)
    }

    /// What the log said, with an index only where there is more than one event.
    fn name<T>(&self, published: Result<T, PublishError>) -> Result<T, Refusal> {
        published.map_err(|error| {
            let refusal = Refusal::from(error);
            if self.form == Form::Batch { refusal } else { refusal.single() }
        })
    }
}

fn invalid(failure: Failure) -> Refusal {
    Refusal::new(Kind::InvalidEvent, failure.reason)
}

fn binary(headers: &HeaderMap, body: &Bytes) -> Result<Event, Refusal> {
    let given = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let event = codec::http::read_binary(given, body.clone()).map_err(invalid)?;
    if event.data.is_some() {
        check_json(event.datacontenttype.as_deref(), body)?;
    }
    Ok(event)
}

/// An event of ours without data.
fn plain_defaults(id: &str, now: Timestamp) -> Event {
    Event {
        id: id.into(),
        source: ByteString::from_static(PLAIN_SOURCE),
        ty: ByteString::from_static(codec::PLAIN_TYPE),
        subject: None,
        time: Some(now),
        datacontenttype: None,
        dataschema: None,
        extensions: Vec::new(),
        data: None,
    }
}

/// Data that says it is JSON must be JSON: better refused here than dead-lettered by each function.
fn check_json(content_type: Option<&str>, data: &[u8]) -> Result<(), Refusal> {
    if !content_type.is_some_and(codec::is_json) {
        return Ok(());
    }
    let text = std::str::from_utf8(data);
    let text = text.map_err(|e| Refusal::new(Kind::InvalidEvent, format_args!("the JSON is not UTF-8: {e}")))?;
    let checked: Result<IgnoredAny, _> = serde_json::from_str(text);
    checked.map(|_| ()).map_err(|e| Refusal::new(Kind::InvalidEvent, format_args!("the body is not JSON: {e}")))
}

fn check_bounds(event: &Event) -> Result<(), Refusal> {
    let max = limits::EXTENSIONS_MAX;
    if event.extensions.len() > max {
        let count = event.extensions.len();
        let detail = format_args!("{count} extension attributes are too many; keep to {max}");
        return Err(Refusal::new(Kind::InvalidEvent, detail));
    }
    let own = [
        ("id", Some(&event.id)),
        ("source", Some(&event.source)),
        ("type", Some(&event.ty)),
        ("subject", event.subject.as_ref()),
        ("datacontenttype", event.datacontenttype.as_ref()),
        ("dataschema", event.dataschema.as_ref()),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
    for (name, value) in own.chain(event.extensions.iter().map(|(name, value)| (&**name, value))) {
        if name.len() > limits::EXTENSION_NAME_MAX_BYTES {
            let max = limits::EXTENSION_NAME_MAX_BYTES;
            let detail = format_args!("the name of extension `{name:.max$}…` is longer than {max} characters");
            return Err(Refusal::new(Kind::InvalidEvent, detail));
        }
        if value.len() > limits::ATTRIBUTE_MAX_BYTES {
            let (bytes, max) = (value.len(), limits::ATTRIBUTE_MAX_BYTES);
            let detail = format_args!("attribute `{name}` has {bytes} bytes and can have {max}");
            return Err(Refusal::new(Kind::TooLarge, detail));
        }
    }
    Ok(())
}

fn partition_key(event: &Event) -> Option<Bytes> {
    event.extension("partitionkey").filter(|key| !key.is_empty()).map(|key| key.as_bytes().clone())
}

fn ordering_key(headers: &HeaderMap) -> Result<Option<Bytes>, Refusal> {
    let Some(key) = single(headers, KEY_HEADER)? else { return Ok(None) };
    if key.is_empty() {
        return Err(Refusal::malformed("the header `Millrace-Key` is empty; leave it out"));
    }
    check_key(Some(key), "header `Millrace-Key`")?;
    Ok(Some(Bytes::copy_from_slice(key)))
}

fn check_key(key: Option<&[u8]>, what: &str) -> Result<(), Refusal> {
    match key.map_or(0, <[u8]>::len) {
        bytes if bytes > limits::KEY_MAX_BYTES => {
            let max = limits::KEY_MAX_BYTES;
            Err(Refusal::new(
                Kind::TooLarge,
                format_args!("the {what} has {bytes} bytes; an ordering key can have {max}"),
            ))
        }
        _ => Ok(()),
    }
}

/// The key with or without the quotes of a structured field (RFC 8941, section 3.3.3), which mean the same.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<ByteString>, Refusal> {
    let Some(value) = single(headers, IDEMPOTENCY_KEY_HEADER)? else { return Ok(None) };
    let text = std::str::from_utf8(value);
    let text = text.map_err(|_| Refusal::malformed("the header `Idempotency-Key` is not UTF-8"))?.trim_ascii();
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let key = quoted.map_or_else(|| text.to_owned(), unescaped);
    let max = limits::IDEMPOTENCY_KEY_MAX_BYTES;
    match key.len() {
        0 => Err(Refusal::malformed("the header `Idempotency-Key` is empty; leave it out")),
        bytes if bytes > max => {
            Err(Refusal::malformed(format_args!("the header `Idempotency-Key` has {bytes} bytes and can have {max}")))
        }
        _ => Ok(Some(key.into())),
    }
}

/// The text that stands between quotes, where a backslash keeps the meaning of the next character.
fn unescaped(quoted: &str) -> String {
    let mut chars = quoted.chars();
    std::iter::from_fn(|| chars.next().map(|c| if c == '\\' { chars.next().unwrap_or(c) } else { c })).collect()
}

/// The value of a header that makes sense once.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Refusal::malformed(format_args!("the header `{name}` is given twice"))),
        (value, None) => Ok(value.map(|value| value.as_bytes())),
    }
}
