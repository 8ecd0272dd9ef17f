//! From what a guest hands to `emit` to a complete event: checked, bounded, and with identity, causation and trace.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::codec::{self, Attributes};
use millrace_core::event::Event;
use millrace_core::identity;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::partition;
use millrace_core::time::Timestamp;

use super::bindings::millrace::function::emitter::EmitError;
use super::limits::{ATTRIBUTE_MAX_BYTES, EXTENSION_NAME_MAX_BYTES, EXTENSIONS_MAX, GuestLimits, KEY_MAX_BYTES};
use super::{Delivery, Emission, TraceContext};

/// Names of attributes that are not extensions.
const RESERVED: [&str; 9] =
    ["id", "source", "type", "specversion", "subject", "time", "datacontenttype", "dataschema", "data"];

/// The most extensions that the runtime fills in.
const FILLED_IN: usize = 4;

/// Answers whether a topic exists. Asked seldom: for each topic until the answer is yes, and for topics not granted.
pub type KnownTopics = Arc<dyn Fn(&Topic) -> bool + Send + Sync>;

/// Where a function may publish, and under which name. Each worker has its own copy, because topics are cloned for every
/// event, and two threads that count references to the same text slow each other down.
pub(super) struct Outbox {
    function: FunctionName,
    source: ByteString,
    grants: Vec<Grant>,
    known: KnownTopics,
    limits: GuestLimits,
}

struct Grant {
    topic: Topic,
    exists: AtomicBool,
}

impl Outbox {
    pub(super) fn new(
        function: &FunctionName,
        publish: &[Topic],
        known_topics: &KnownTopics,
        limits: GuestLimits,
    ) -> Self {
        let grants = publish.iter().map(|topic| Grant { topic: copy(topic), exists: AtomicBool::new(false) }).collect();
        let source = identity::emitted_source(function);
        Self { function: function.clone(), source, grants, known: Arc::clone(known_topics), limits }
    }

    /// The topic of this name, if the function may publish to it.
    fn route(&self, name: &str) -> Result<Topic, EmitError> {
        if let Some(grant) = self.grants.iter().find(|grant| grant.topic.as_str() == name) {
            // A topic that exists once goes on existing, so that only the first emission asks.
            let exists = grant.exists.load(Ordering::Relaxed) || (self.known)(&grant.topic);
            grant.exists.store(exists, Ordering::Relaxed);
            return if exists { Ok(grant.topic.clone()) } else { Err(EmitError::UnknownTopic(name.to_owned())) };
        }
        match Topic::new(name.to_owned()) {
            Ok(topic) if (self.known)(&topic) => Err(EmitError::NotGranted(name.to_owned())),
            Ok(_) => Err(EmitError::UnknownTopic(name.to_owned())),
            Err(_) => Err(EmitError::UnknownTopic(shortened(name))),
        }
    }
}

/// A topic that shares no memory with the given one.
fn copy(topic: &Topic) -> Topic {
    Topic::new(topic.as_str().to_owned()).unwrap_or_else(|_| topic.clone())
}

fn shortened(name: &str) -> String {
    name[..name.floor_char_boundary(80)].to_owned()
}

/// What the event being handled lends to the events emitted while handling it.
pub(super) struct Cause {
    pub(super) delivery: Delivery,
    identity: identity::Cause,
}

impl Cause {
    pub(super) fn new(event: &Event, delivery: Delivery, trace: Option<TraceContext>) -> Self {
        let trace = trace.map(|TraceContext { parent, state }| (parent, state));
        Self { delivery, identity: identity::Cause::of(event, trace) }
    }
}

/// What a guest hands to `emit`, still in the guest's memory.
pub(super) struct Draft<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) ty: Cow<'a, str>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) time: Option<u64>,
    pub(super) datacontenttype: Option<Cow<'a, str>>,
    pub(super) dataschema: Option<Cow<'a, str>>,
    pub(super) extensions: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) data: Option<&'a [u8]>,
    pub(super) key: Option<&'a [u8]>,
}

/// The events emitted so far in one invocation.
#[derive(Default)]
pub(super) struct Emitted {
    events: Vec<Emission>,
    bytes: usize,
}

/// An event that may be added, and what it counts for.
pub(super) struct Admitted {
    emission: Emission,
    id: String,
    size_bytes: usize,
}

impl Emitted {
    /// Makes an event of a draft, or says why it cannot be one.
    pub(super) fn admit(
        &self,
        topic: &str,
        draft: &Draft<'_>,
        outbox: &Outbox,
        cause: &Cause,
    ) -> Result<Admitted, EmitError> {
        let limits = &outbox.limits;
        if self.events.len() >= limits.emitted_events {
            return Err(EmitError::TooMany(limits.emitted_events as u64));
        }
        let topic = outbox.route(topic)?;
        let too_large = EmitError::TooLarge(limits.event_bytes as u64);
        let size_bytes = draft.size_bytes();
        if size_bytes > limits.event_bytes {
            return Err(too_large);
        }
        draft.check().map_err(EmitError::Invalid)?;
        if size_bytes > limits.emitted_bytes - self.bytes {
            return Err(EmitError::TooMany(limits.emitted_bytes as u64));
        }
        let index = u32::try_from(self.events.len()).map_err(|_| EmitError::TooMany(u64::from(u32::MAX)))?;
        let id = draft.id.as_deref().map(str::to_owned).unwrap_or_else(|| {
            let delivery = &cause.delivery;
            identity::emitted_id(&outbox.function, &delivery.topic, &delivery.idempotency_key, index)
        });
        let emission = draft.complete(topic, &id, outbox, cause);
        // A log counts the names of all headers and what is filled in, too, and would refuse the whole commit.
        if emission.record.size_bytes() > limits.event_bytes {
            return Err(too_large);
        }
        Ok(Admitted { emission, id, size_bytes })
    }

    /// Adds an event, and answers with its id.
    pub(super) fn push(&mut self, admitted: Admitted) -> String {
        self.bytes += admitted.size_bytes;
        self.events.push(admitted.emission);
        admitted.id
    }

    /// All events, in order.
    pub(super) fn into_events(self) -> Vec<Emission> {
        self.events
    }
}

impl Draft<'_> {
    fn attributes(&self) -> [(&'static str, Option<&str>); 6] {
        [
            ("id", self.id.as_deref()),
            ("source", self.source.as_deref()),
            ("type", Some(&self.ty)),
            ("subject", self.subject.as_deref()),
            ("datacontenttype", self.datacontenttype.as_deref()),
            ("dataschema", self.dataschema.as_deref()),
        ]
    }

    fn size_bytes(&self) -> usize {
        let attributes: usize = self.attributes().iter().filter_map(|(_, text)| text.map(str::len)).sum();
        let extensions: usize = self.extensions.iter().map(|(name, value)| name.len() + value.len()).sum();
        attributes + extensions + self.data.map_or(0, <[u8]>::len) + self.key.map_or(0, <[u8]>::len)
    }

    /// Checks it against CloudEvents 1.0. The message begins with the attribute.
    fn check(&self) -> Result<(), String> {
        for (name, text) in self.attributes() {
            let Some(text) = text else { continue };
            if text.is_empty() {
                return Err(format!("{name}: must not be empty"));
            }
            check_text(text).map_err(|why| format!("{name}: {why}"))?;
        }
        if self.extensions.len() > EXTENSIONS_MAX {
            return Err(format!("extensions: at most {EXTENSIONS_MAX}"));
        }
        for (at, (name, value)) in self.extensions.iter().enumerate() {
            check_extension_name(name)?;
            check_text(value).map_err(|why| format!("{name}: {why}"))?;
            if self.extensions[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(format!("{name}: appears twice"));
            }
        }
        match self.key {
            Some(key) if key.len() > KEY_MAX_BYTES => Err(format!("key: at most {KEY_MAX_BYTES} bytes")),
            _ => Ok(()),
        }
    }

    fn complete(&self, topic: Topic, id: &str, outbox: &Outbox, cause: &Cause) -> Emission {
        let key = self.key.map(Bytes::copy_from_slice).or_else(|| cause.delivery.key.clone());
        let event = Attributes {
            id,
            source: self.source.as_deref().unwrap_or(&outbox.source),
            ty: &self.ty,
            subject: self.subject.as_deref(),
            time: self.time.map(Timestamp::from_nanos),
            datacontenttype: self.datacontenttype.as_deref(),
            dataschema: self.dataschema.as_deref(),
            data: self.data.map(Bytes::copy_from_slice),
        };
        let hash = partition::hash(key.as_deref(), event.source, id);
        let mut extensions = Vec::with_capacity(self.extensions.len() + FILLED_IN);
        extensions.extend(self.extensions.iter().map(|(name, value)| (&**name, &**value)));
        cause.identity.fill_in(&mut extensions);
        let record = codec::encode_attributes(event, extensions.into_iter(), key, Timestamp::EPOCH);
        Emission { topic, hash, record }
    }
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if text.len() > ATTRIBUTE_MAX_BYTES {
        return Err("is too long: at most 16384 bytes");
    }
    let control =
        if text.is_ascii() { text.bytes().any(|b| b.is_ascii_control()) } else { text.chars().any(char::is_control) };
    if control { Err("must not contain control characters") } else { Ok(()) }
}

fn check_extension_name(name: &str) -> Result<(), String> {
    let legal = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.is_empty() || name.len() > EXTENSION_NAME_MAX_BYTES || !legal {
        let name = shortened(name);
        return Err(format!(
            "{name}: the name of an extension has 1 to {EXTENSION_NAME_MAX_BYTES} lower-case letters and digits"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name}: is not an extension; set the attribute itself"));
    }
    Ok(())
}
