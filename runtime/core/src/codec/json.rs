//! The JSON format of CloudEvents
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>).

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Serialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::attributes::{Draft, is_reserved};
use super::{base64, is_json};
use crate::event::Event;
use crate::outcome::{Category, Failure};
use crate::time::Timestamp;

const JSON: &str = "application/json";

/// Why a batch was refused: the first event in it that is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchError {
    /// The event's place in the batch, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub failure: Failure,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.index, self.failure.reason)
    }
}

impl std::error::Error for BatchError {}

/// Reads one event, as [`parse_shared`], from bytes that it copies once.
///
/// # Errors
/// As [`parse_shared`].
pub fn parse_event(json: &[u8]) -> Result<Event, Failure> {
    parse_shared(&Bytes::copy_from_slice(json))
}

/// Reads one event. Its texts and data share the memory of `json`.
///
/// Data of a JSON content type, which is what an absent one means, is kept as the bytes it has in `json`; a string under
/// any other content type becomes its text. Extensions that are booleans or integers become their canonical strings,
/// and `null` is the same as absent.
///
/// # Errors
/// If it is no CloudEvent; the reason names the attribute, the rule and the place in the text.
pub fn parse_shared(json: &Bytes) -> Result<Event, Failure> {
    let text = text_of(json)?;
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let event = EventSeed { text: &text }.deserialize(&mut deserializer).map_err(|e| invalid(&e))?;
    deserializer.end().map_err(|e| invalid(&e))?;
    Ok(event)
}

/// Reads a batch of events, as [`parse_batch_shared`], from bytes that it copies once.
///
/// # Errors
/// As [`parse_batch_shared`].
pub fn parse_batch(json: &[u8]) -> Result<Vec<Event>, BatchError> {
    parse_batch_shared(&Bytes::copy_from_slice(json))
}

/// Reads a batch: a list of events, possibly empty. All of them share the memory of `json`, and keep all of it.
///
/// # Errors
/// Names the first event that is not one.
pub fn parse_batch_shared(json: &Bytes) -> Result<Vec<Event>, BatchError> {
    let text = text_of(json).map_err(|failure| BatchError { index: 0, failure })?;
    let index = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let batch = BatchSeed { text: &text, index: &index }.deserialize(&mut deserializer);
    batch
        .and_then(|events| deserializer.end().map(|()| events))
        .map_err(|e| BatchError { index: index.get(), failure: invalid(&e) })
}

/// The event as one JSON object.
#[must_use]
pub fn write_event(event: &Event) -> Vec<u8> {
    let document = Document { event, payload: Payload::of(event) };
    serde_json::to_vec(&document).expect("texts and raw JSON can always be written to memory")
}

/// The event as a JSON value, for people to read and change. Data that is JSON too deep for such a value is shown in
/// base 64.
#[must_use]
pub fn to_json(event: &Event) -> serde_json::Value {
    let document = Document { event, payload: Payload::of(event) };
    serde_json::to_value(&document).unwrap_or_else(|_| {
        let payload = event.data.as_ref().map_or(Payload::Absent, |data| Payload::Base64(data));
        serde_json::to_value(Document { event, payload }).expect("texts are JSON values")
    })
}

fn text_of(json: &Bytes) -> Result<ByteString, Failure> {
    let not_text = |_| Failure::new(Category::Invalid, "not a CloudEvent in JSON: the bytes are not UTF-8");
    ByteString::try_from(json.clone()).map_err(not_text)
}

fn invalid(error: &serde_json::Error) -> Failure {
    Failure::new(Category::Invalid, format!("not a CloudEvent in JSON: {error}"))
}

struct BatchSeed<'a> {
    text: &'a ByteString,
    index: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for BatchSeed<'_> {
    type Value = Vec<Event>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for BatchSeed<'_> {
    type Value = Vec<Event>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        while let Some(event) = list.next_element_seed(EventSeed { text: self.text })? {
            events.push(event);
            self.index.set(events.len());
        }
        Ok(events)
    }
}

/// Reads one object. `text` is the whole text, so that what is borrowed from it can share its memory.
struct EventSeed<'a> {
    text: &'a ByteString,
}

impl<'de> DeserializeSeed<'de> for EventSeed<'_> {
    type Value = Event;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Event, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventSeed<'_> {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event, which is an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Event, A::Error> {
        let mut parts = Parts { text: self.text, draft: Draft::default(), data: None, data_base64: None };
        let name = TextSeed { name: "name", wanted: Wanted::Text };
        while let Some(name) = members.next_key_seed(name)? {
            parts.take(name.unwrap_or_default(), &mut members)?;
        }
        parts.finish()
    }
}

/// What is known of an event while its members are read.
struct Parts<'a, 'de> {
    text: &'a ByteString,
    draft: Draft,
    data: Option<&'de RawValue>,
    data_base64: Option<Bytes>,
}

impl<'de> Parts<'_, 'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: Cow<'de, str>, members: &mut A) -> Result<(), A::Error> {
        if name == "data" {
            return refuse_second(&name, self.data.replace(members.next_value()?).is_some());
        }
        let seed = TextSeed { name: &name, wanted: Wanted::of(&name) };
        let Some(value) = members.next_value_seed(seed)? else { return Ok(()) };
        if name == "data_base64" {
            let bytes = base64::decode(value.as_bytes())
                .ok_or_else(|| de::Error::custom("member `data_base64` is not base 64 with padding"))?;
            return refuse_second(&name, self.data_base64.replace(bytes.into()).is_some());
        }
        self.draft.set(name, value, |text| shared(self.text, text)).map_err(|flaw| de::Error::custom(flaw.0))
    }

    fn finish<E: de::Error>(mut self) -> Result<Event, E> {
        let data = match (self.data.filter(|raw| raw.get() != "null"), self.data_base64.take()) {
            (Some(_), Some(_)) => return Err(E::custom("members `data` and `data_base64` exclude one another")),
            (Some(raw), None) => Some(self.read_data(raw).map_err(E::custom)?),
            (None, bytes) => bytes,
        };
        self.draft.finish(data).map_err(|flaw| E::custom(flaw.0))
    }

    /// The bytes of a `data` member, which depend on the content type.
    fn read_data(&mut self, raw: &RawValue) -> Result<Bytes, String> {
        let content_type = self.draft.datacontenttype.get_or_insert_with(|| ByteString::from_static(JSON));
        if is_json(content_type) || !raw.get().starts_with('"') {
            return Ok(self.text.slice_ref(raw.get()).into_bytes());
        }
        let mut deserializer = serde_json::Deserializer::from_str(raw.get());
        let seed = TextSeed { name: "data", wanted: Wanted::Text };
        match seed.deserialize(&mut deserializer) {
            Ok(text) => Ok(shared(self.text, text.unwrap_or_default()).into_bytes()),
            Err(_) => Err("member `data` holds an escape that stands for no character".to_owned()),
        }
    }
}

fn refuse_second<E: de::Error>(name: &str, is_second: bool) -> Result<(), E> {
    if is_second {
        return Err(E::custom(format_args!("member `{name}` is given twice")));
    }
    Ok(())
}

/// Which values an attribute can have besides `null`.
#[derive(Clone, Copy)]
enum Wanted {
    /// Strings.
    Text,
    /// Strings, booleans and integers.
    Scalar,
}

impl Wanted {
    fn of(name: &str) -> Self {
        if is_reserved(name) || name == "data_base64" { Self::Text } else { Self::Scalar }
    }
}

/// A text that lies in `whole` shares its memory; one that had escapes is its own.
fn shared(whole: &ByteString, text: Cow<'_, str>) -> ByteString {
    match text {
        Cow::Borrowed(text) => whole.slice_ref(text),
        Cow::Owned(text) => text.into(),
    }
}

/// Reads a value as canonical text: none for `null`.
#[derive(Clone, Copy)]
struct TextSeed<'a> {
    name: &'a str,
    wanted: Wanted,
}

impl<'de> DeserializeSeed<'de> for TextSeed<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl TextSeed<'_> {
    fn scalar<'de, E: de::Error>(
        self,
        value: &impl ToString,
        unexpected: de::Unexpected<'_>,
    ) -> Result<Option<Cow<'de, str>>, E> {
        match self.wanted {
            Wanted::Text => Err(E::invalid_type(unexpected, &self)),
            Wanted::Scalar => Ok(Some(Cow::Owned(value.to_string()))),
        }
    }
}

impl<'de> Visitor<'de> for TextSeed<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.wanted {
            Wanted::Text => "a string",
            Wanted::Scalar => "a string, boolean or integer",
        })?;
        write!(f, " for `{}`", self.name)
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        self.scalar(&value, de::Unexpected::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        self.scalar(&value, de::Unexpected::Signed(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        self.scalar(&value, de::Unexpected::Unsigned(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// How data is shown in JSON.
enum Payload<'a> {
    Absent,
    /// JSON, as it is.
    Raw(&'a RawValue),
    /// A text of another content type.
    Text(&'a str),
    Base64(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn of(event: &'a Event) -> Self {
        let Some(data) = event.data.as_deref() else { return Self::Absent };
        if event.datacontenttype.as_deref().is_none_or(is_json) {
            // What would not be read back as the same bytes goes as base 64: spaces around a value, and `null`, which
            // means absent.
            return match serde_json::from_slice::<&RawValue>(data) {
                Ok(raw) if raw.get().len() == data.len() && raw.get() != "null" => Self::Raw(raw),
                _ => Self::Base64(data),
            };
        }
        std::str::from_utf8(data).map_or(Self::Base64(data), Self::Text)
    }
}

struct Document<'a> {
    event: &'a Event,
    payload: Payload<'a>,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Event { id, source, ty, subject, time, datacontenttype, dataschema, extensions, data: _ } = self.event;
        let time = time.map(Timestamp::rfc3339);
        let mut map = serializer.serialize_map(None)?;
        let attributes = [
            ("specversion", Some("1.0")),
            ("id", Some(&**id)),
            ("source", Some(&**source)),
            ("type", Some(&**ty)),
            ("subject", subject.as_deref()),
            ("time", time.as_ref().map(|t| t.as_str())),
            ("datacontenttype", datacontenttype.as_deref()),
            ("dataschema", dataschema.as_deref()),
        ];
        let extensions = extensions.iter().map(|(name, value)| (&**name, Some(&**value)));
        for (name, value) in attributes.into_iter().chain(extensions) {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        match self.payload {
            Payload::Absent => {}
            Payload::Raw(raw) => map.serialize_entry("data", raw)?,
            Payload::Text(text) => map.serialize_entry("data", text)?,
            Payload::Base64(bytes) => map.serialize_entry("data_base64", &base64::encode(bytes))?,
        }
        map.end()
    }
}
