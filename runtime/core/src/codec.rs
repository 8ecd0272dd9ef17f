//! Events as records and back: the Kafka protocol binding of CloudEvents
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>).

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;

use crate::event::Event;
use crate::name::Topic;
use crate::outcome::Failure;
use crate::record::{Headers, HeadersBuilder, Record};
use crate::time::Timestamp;

mod attributes;
pub mod base64;
pub mod http;
pub mod json;
mod media;
#[cfg(test)]
mod tests;

pub use attributes::{EXTENSION_NAME_MAX_CHARS, check};
pub use media::{Mode, is_json};

use attributes::{Draft, Flaw, not_utf8};

/// The `type` of a record that is no CloudEvent.
pub const PLAIN_TYPE: &str = "millrace.record";

const PREFIX: &str = "ce_";
const CONTENT_TYPE: &str = "content-type";
const STRUCTURED: &str = "application/cloudevents+json";

/// Where a record was read from. For a redriven record, where it was read from first.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The topic.
    pub topic: &'a Topic,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// The event that a record carries. Its texts and data share the record's memory.
///
/// A content type of `application/cloudevents+json` means structured mode, else a header `ce_specversion` means binary
/// mode. Any other record is plain and is wrapped, never refused: its id is `<topic>/<partition>/<offset>`, its source
/// `kafka:<topic>`, its type [`PLAIN_TYPE`], its time the record's timestamp.
///
/// # Errors
/// If the record says that it is a CloudEvent and breaks the specification. The category is
/// [`Category::Invalid`](crate::outcome::Category::Invalid), the reason names the attribute and the rule.
pub fn decode(record: &Record, place: Place<'_>) -> Result<Event, Failure> {
    let block = Block::new(&record.headers);
    let mut draft = Draft::default();
    let (mut content_type, mut is_event, mut flaw) = (None, false, None);
    for (name, value) in record.headers.spans() {
        // Headers hold only names that are UTF-8.
        let name = block.text(name).unwrap_or_default();
        let attribute = name.strip_prefix(PREFIX);
        is_event |= attribute == Some("specversion");
        let is_content_type = attribute.is_none() && name.eq_ignore_ascii_case(CONTENT_TYPE);
        if attribute.is_none() && !is_content_type {
            continue;
        }
        let attribute = attribute.unwrap_or("datacontenttype");
        // A header without a value is an attribute without a value: absent.
        let Some(value) = value else { continue };
        let value = block.text(value);
        if is_content_type {
            content_type = value;
        }
        // Whether a flaw matters is known only when all headers have been seen.
        let set = |value| draft.set(attribute.into(), Cow::Borrowed(value), |text| block.own(&text));
        flaw = flaw.or(value.ok_or_else(|| not_utf8(attribute)).and_then(set).err());
    }
    match content_type.map_or(Mode::Binary, Mode::of) {
        Mode::Binary if is_event => match flaw {
            None => Ok(draft.finish(record.value.clone())?),
            Some(flaw) => Err(flaw.into()),
        },
        Mode::Binary => Ok(wrap(record, place, content_type.map(|text| block.own(text)))),
        Mode::Structured => match &record.value {
            Some(value) => json::parse_shared(value),
            None => Err(Flaw(format!("a record of type {STRUCTURED} has no value")).into()),
        },
        Mode::Batch | Mode::OtherFormat => {
            let given = content_type.unwrap_or_default();
            Err(Flaw(format!(
                "header `content-type` is `{given}`: one event in a record, as {STRUCTURED}, is understood"
            ))
            .into())
        }
    }
}

/// A block of headers, from which texts are taken.
struct Block<'a> {
    bytes: &'a Bytes,
    /// The block as one text, if it is one. It nearly always is, since lengths below 128 are ASCII; texts within it need
    /// no second look.
    whole: Option<ByteString>,
}

impl<'a> Block<'a> {
    fn new(headers: &'a Headers) -> Self {
        let bytes = headers.as_block();
        Self { bytes, whole: ByteString::try_from(bytes.clone()).ok() }
    }

    /// The text that lies there, if it is UTF-8.
    fn text(&self, span: Range<usize>) -> Option<&str> {
        match &self.whole {
            Some(whole) => whole.get(span),
            None => std::str::from_utf8(self.bytes.get(span)?).ok(),
        }
    }

    /// A text within the block, sharing its memory.
    fn own(&self, text: &str) -> ByteString {
        match &self.whole {
            Some(whole) => whole.slice_ref(text),
            None => ByteString::try_from(self.bytes.slice_ref(text.as_bytes())).unwrap_or_default(),
        }
    }
}

fn wrap(record: &Record, place: Place<'_>, content_type: Option<ByteString>) -> Event {
    let Place { topic, partition, offset } = place;
    let is_usable = |text: &ByteString| !text.is_empty() && !text.chars().any(char::is_control);
    Event {
        id: format!("{topic}/{partition}/{offset}").into(),
        source: format!("kafka:{topic}").into(),
        ty: ByteString::from_static(PLAIN_TYPE),
        subject: None,
        time: Some(record.timestamp),
        datacontenttype: content_type.filter(is_usable),
        dataschema: None,
        extensions: Vec::new(),
        data: record.value.clone(),
    }
}

/// A valid event whose texts lie wherever they do, but for its extensions; see [`Event`] and [`check`].
#[expect(missing_docs, reason = "as in an event")]
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub id: &'a str,
    pub source: &'a str,
    pub ty: &'a str,
    pub subject: Option<&'a str>,
    pub time: Option<Timestamp>,
    pub datacontenttype: Option<&'a str>,
    pub dataschema: Option<&'a str>,
    pub data: Option<Bytes>,
}

/// The record that carries a valid event, in binary mode; see [`check`]. Its value shares the event's memory.
///
/// Data that is itself a CloudEvent (its content type begins with `application/cloudevents`) would be taken for the
/// event, so that such an event goes in structured mode.
#[must_use]
pub fn encode(event: &Event, key: Option<Bytes>, at: Timestamp) -> Record {
    let attributes = Attributes {
        id: &event.id,
        source: &event.source,
        ty: &event.ty,
        subject: event.subject.as_deref(),
        time: event.time,
        datacontenttype: event.datacontenttype.as_deref(),
        dataschema: event.dataschema.as_deref(),
        data: event.data.clone(),
    };
    let extensions = event.extensions.iter().map(|(name, value)| (&**name, &**value));
    encode_attributes(attributes, extensions, key, at)
}

/// As [`encode`], for an event that was not put together. Extensions are sorted by name.
#[must_use]
pub fn encode_attributes<'a>(
    event: Attributes<'a>,
    extensions: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    key: Option<Bytes>,
    at: Timestamp,
) -> Record {
    if event.datacontenttype.is_some_and(|t| Mode::of(t) != Mode::Binary) {
        let headers = Headers::from_iter([(CONTENT_TYPE, Some(STRUCTURED.as_bytes()))]);
        let value = json::write_event(&event.with(extensions));
        return Record { timestamp: at, key, value: Some(value.into()), headers };
    }
    let time = event.time.map(Timestamp::rfc3339);
    let attributes = [
        ("ce_specversion", Some("1.0")),
        ("ce_id", Some(event.id)),
        ("ce_source", Some(event.source)),
        ("ce_type", Some(event.ty)),
        ("ce_subject", event.subject),
        ("ce_time", time.as_ref().map(|t| t.as_str())),
        ("ce_dataschema", event.dataschema),
        (CONTENT_TYPE, event.datacontenttype),
    ];
    let given = attributes.iter().filter_map(|&(name, value)| Some((name, value?)));
    let size = |(name, value): (&str, &str)| HeadersBuilder::OVERHEAD_BYTES + name.len() + value.len();
    let size_bytes: usize =
        given.clone().map(size).sum::<usize>() + extensions.clone().map(|e| size(e) + PREFIX.len()).sum::<usize>();
    let mut headers = HeadersBuilder::with_capacity(size_bytes);
    for (name, value) in given {
        headers.push_str(name, value);
    }
    for (name, value) in extensions {
        headers.push_prefixed(PREFIX, name, value);
    }
    Record { timestamp: at, key, value: event.data, headers: headers.build() }
}

impl<'a> Attributes<'a> {
    fn with(self, extensions: impl Iterator<Item = (&'a str, &'a str)>) -> Event {
        Event {
            id: self.id.into(),
            source: self.source.into(),
            ty: self.ty.into(),
            subject: self.subject.map(Into::into),
            time: self.time,
            datacontenttype: self.datacontenttype.map(Into::into),
            dataschema: self.dataschema.map(Into::into),
            extensions: extensions.map(|(name, value)| (name.into(), value.into())).collect(),
            data: self.data,
        }
    }
}

/// The ordering key: the record's key, else the `partitionkey` extension, else none. An empty extension is none.
#[must_use]
pub fn ordering_key(record: &Record, event: &Event) -> Option<Bytes> {
    let extension = || event.extension("partitionkey").filter(|k| !k.is_empty()).map(|k| k.as_bytes().clone());
    record.key.clone().or_else(extension)
}
