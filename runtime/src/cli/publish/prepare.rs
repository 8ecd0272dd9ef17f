//! From a line, or from flags, to an event.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use millrace_core::codec::{self, PLAIN_TYPE};
use millrace_core::event::Event;
use millrace_core::time::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// The extension that carries the ordering key (CloudEvents, partitioning extension).
const KEY_EXTENSION: &str = "partitionkey";
const JSON: &str = "application/json";
const OCTETS: &str = "application/octet-stream";

/// Random ids of 128 bits.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: [RandomState; 2],
    next: u64,
}

impl Ids {
    /// Ids that nobody else makes.
    pub(crate) fn new() -> Self {
        Self { seed: [RandomState::new(), RandomState::new()], next: 0 }
    }

    /// Another one, in hex.
    pub(crate) fn next(&mut self) -> String {
        self.next += 1;
        let [high, low] = [0, 1].map(|half: usize| self.seed[half].hash_one((half, self.next)));
        format!("{high:016x}{low:016x}")
    }
}

/// The attributes of what is not an event yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wrapping {
    /// Attribute `type`. Lines of JSON need one.
    pub(crate) ty: Option<String>,
    /// Attribute `source`.
    pub(crate) source: String,
    /// Attribute `subject`.
    pub(crate) subject: Option<String>,
    /// The ordering key.
    pub(crate) key: Option<String>,
    /// Where the ordering key is in the data, as a JSON pointer.
    pub(crate) key_field: Option<String>,
    /// Extension attributes.
    pub(crate) extensions: Vec<(String, String)>,
    /// The data's media type; JSON without it, or bytes where they are not looked at.
    pub(crate) content_type: Option<String>,
    /// Whether lines are bytes that are not looked at.
    pub(crate) raw: bool,
}

/// An event in the JSON format of CloudEvents, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// One JSON object.
    pub(super) json: Vec<u8>,
    /// Whether it has an ordering key.
    pub(super) is_keyed: bool,
}

/// Why a line or the flags make no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(super) cause: String,
    pub(super) fix: &'static str,
}

impl Wrapping {
    /// The event of one line, without its line break.
    pub(super) fn line(&self, line: &[u8], ids: &mut Ids, at: Timestamp) -> Result<Prepared, Refused> {
        if self.raw {
            let key = self.key_in(line, serde_json::from_slice(line).ok().as_ref());
            return self.wrap(Some(line), ids.next(), key, at);
        }
        let line = line.trim_ascii();
        let probe = Probe::of(line)?;
        match probe.specversion {
            Some(_) => Ok(Prepared { json: line.to_vec(), is_keyed: probe.partitionkey.is_some() }),
            None if self.ty.is_none() => Err(Refused {
                cause: "it is JSON without `specversion`, and so no CloudEvent".to_owned(),
                fix: "give --type, so that such lines are wrapped into events, or --raw",
            }),
            None => {
                let value = self.key_field.as_ref().and_then(|_| serde_json::from_slice(line).ok());
                let key = self.key_in(line, value.as_ref());
                self.wrap(Some(line), ids.next(), key, at)
            }
        }
    }

    /// The event that the flags describe.
    pub(super) fn event(&self, data: Option<&[u8]>, id: String, at: Timestamp) -> Result<Prepared, Refused> {
        let is_json = self.content_type.as_deref().is_none_or(codec::is_json);
        if let Some(data) = data.filter(|_| is_json) {
            let parsed: Result<IgnoredAny, _> = serde_json::from_slice(data);
            parsed.map_err(|e| Refused {
                cause: format!("the data is not JSON: {e}"),
                fix: "mend it (a JSON string needs quotes of its own: '\"text\"'), or say what it is with --content-type",
            })?;
        }
        self.wrap(data, id, self.key.clone(), at)
    }

    /// The key of a row: the one for all, or the one at its place in this row.
    fn key_in(&self, line: &[u8], row: Option<&Value>) -> Option<String> {
        let Some(pointer) = &self.key_field else { return self.key.clone() };
        debug_assert!(!line.is_empty(), "empty lines are left out");
        match row?.pointer(pointer)? {
            Value::String(key) if !key.is_empty() => Some(key.clone()),
            Value::Number(key) => Some(key.to_string()),
            Value::Bool(key) => Some(key.to_string()),
            Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn wrap(&self, data: Option<&[u8]>, id: String, key: Option<String>, at: Timestamp) -> Result<Prepared, Refused> {
        let mut extensions = self.extensions.clone();
        if let Some(key) = key {
            if extensions.iter().any(|(name, _)| name == KEY_EXTENSION) {
                return Err(Refused {
                    cause: format!("both a key and the extension `{KEY_EXTENSION}` are given, which are the same"),
                    fix: "leave one of them out",
                });
            }
            extensions.push((KEY_EXTENSION.to_owned(), key));
        }
        extensions.sort();
        if let Some(pair) = extensions.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Refused { cause: format!("extension `{}` is given twice", pair[0].0), fix: "give it once" });
        }
        let default_type = if self.raw { OCTETS } else { JSON };
        let content_type = self.content_type.as_deref().unwrap_or(default_type);
        let event = Event {
            id: id.into(),
            source: self.source.clone().into(),
            ty: self.ty.clone().unwrap_or_else(|| PLAIN_TYPE.to_owned()).into(),
            subject: self.subject.clone().map(Into::into),
            time: Some(at),
            datacontenttype: data.is_some().then(|| content_type.into()),
            dataschema: None,
            extensions: extensions.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            data: data.map(Bytes::copy_from_slice),
        };
        let checked = codec::check(&event);
        checked.map_err(|failure| Refused { cause: failure.reason.to_string(), fix: "change that flag" })?;
        let is_keyed = event.extension(KEY_EXTENSION).is_some();
        Ok(Prepared { json: codec::json::write_event(&event), is_keyed })
    }
}

/// What must be known of a line: that it is JSON, and whether it is an event.
#[derive(Default, Deserialize)]
struct Probe<'a> {
    #[serde(borrow, default)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partitionkey: Option<&'a RawValue>,
}

impl<'a> Probe<'a> {
    fn of(line: &'a [u8]) -> Result<Self, Refused> {
        let refused = |e: serde_json::Error| Refused {
            cause: format!("it is not JSON: {e}"),
            fix: "each line is one event: mend the line, or publish lines as they are with --raw",
        };
        if line.first() == Some(&b'{') {
            return serde_json::from_slice(line).map_err(refused);
        }
        serde_json::from_slice::<IgnoredAny>(line).map_err(refused).map(|_| Self::default())
    }
}
