//! Who an event is: the ids of emitted events, idempotency keys, and how events follow from one another.

use bytestring::ByteString;
use sha2::{Digest, Sha256};

use crate::event::Event;
use crate::name::{FunctionName, Topic};
use crate::progress::KeyHash;
use crate::trace::{CAUSATION_ID, CORRELATION_ID, TRACE_PARENT, TRACE_STATE};

/// The id of an event that a handler emitted without one: 128 bits of SHA-256 in 32 hexadecimal digits, the same again
/// whenever the same event is handled anew. `topic` is the source topic, `idempotency_key` the text of the event
/// handled, `index` the place of the emission among those of the invocation, from 0.
#[must_use]
pub fn emitted_id(function: &FunctionName, topic: &Topic, idempotency_key: &str, index: u32) -> String {
    let mut hash = Sha256::new();
    for part in [function.as_str(), topic.as_str(), idempotency_key] {
        // With lengths in front, no two lists of parts give the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(index.to_le_bytes());
    hexadecimal(first_128_bits(hash.finalize()))
}

/// 32 lower-case digits.
fn hexadecimal(bits: u128) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digits = bits.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let text: Vec<u8> = digits.map(|digit| DIGITS[usize::from(digit)]).collect();
    String::from_utf8(text).expect("digits are ASCII")
}

/// The `source` of an event that a handler emitted without one: `/millrace/<application>/<function>`.
#[must_use]
pub fn emitted_source(function: &FunctionName) -> ByteString {
    format!("/millrace/{}/{}", function.application(), function.function()).into()
}

impl KeyHash {
    /// The hash of an idempotency key: the first 128 bits of its SHA-256.
    #[must_use]
    pub fn of(idempotency_key: &str) -> Self {
        Self(first_128_bits(Sha256::digest(idempotency_key)))
    }
}

fn first_128_bits(digest: impl Into<[u8; 32]>) -> u128 {
    u128::from_be_bytes(*digest.into().first_chunk().expect("32 bytes begin with 16"))
}

/// The idempotency key of an event when the manifest gives no expression: its source, a space, its id. Spaces and
/// backslashes of the source, which no URI has, get a backslash in front, so that no two identities share a key.
#[must_use]
pub fn default_idempotency_key(event: &Event) -> ByteString {
    let mut key = String::with_capacity(event.source.len() + 1 + event.id.len());
    if event.source.contains([' ', '\\']) {
        for c in event.source.chars() {
            if matches!(c, ' ' | '\\') {
                key.push('\\');
            }
            key.push(c);
        }
    } else {
        key.push_str(&event.source);
    }
    key.push(' ');
    key.push_str(&event.id);
    key.into()
}

/// What an emitted event follows from.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The id of the event being handled.
    pub id: ByteString,
    /// Its `correlationid`, or its id if it is the first event.
    pub correlation: ByteString,
    /// The W3C trace context for what it leads to: `traceparent`, and `tracestate` if there is one.
    pub trace: Option<(ByteString, Option<ByteString>)>,
}

impl Cause {
    /// That of what is emitted while this event is handled.
    #[must_use]
    pub fn of(handled: &Event, trace: Option<(ByteString, Option<ByteString>)>) -> Self {
        let correlation = handled.extension(CORRELATION_ID).unwrap_or(&handled.id).clone();
        Self { id: handled.id.clone(), correlation, trace }
    }

    /// Fills in what the handler left out among the extensions of an event that it emits: `causationid`, `correlationid`,
    /// `traceparent` and `tracestate`. A handler that gave one of the latter two speaks of a trace of its own, and neither
    /// is touched. Leaves the extensions sorted by name, whatever order they had.
    pub fn fill_in<'a>(&'a self, extensions: &mut Vec<(&'a str, &'a str)>) {
        if !extensions.is_sorted_by_key(|(name, _)| *name) {
            // Stable, so that what is given twice is refused later and not shuffled.
            extensions.sort_by_key(|(name, _)| *name);
        }
        let has = |name: &str| extensions.binary_search_by_key(&name, |(n, _)| n).is_ok();
        let trace = self.trace.as_ref().filter(|_| !has(TRACE_PARENT) && !has(TRACE_STATE));
        insert(extensions, CAUSATION_ID, &self.id);
        insert(extensions, CORRELATION_ID, &self.correlation);
        if let Some((parent, state)) = trace {
            insert(extensions, TRACE_PARENT, parent);
            if let Some(state) = state {
                insert(extensions, TRACE_STATE, state);
            }
        }
    }
}

/// Adds an extension where its name belongs, unless it is there.
fn insert<'a>(extensions: &mut Vec<(&'a str, &'a str)>, name: &'static str, value: &'a str) {
    if let Err(at) = extensions.binary_search_by_key(&name, |(n, _)| n) {
        extensions.insert(at, (name, value));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(source: &str, id: &str, extensions: &[(&str, &str)]) -> Event {
        Event {
            id: id.into(),
            source: source.into(),
            ty: "order.placed".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: extensions.iter().map(|&(name, value)| (name.into(), value.into())).collect(),
            data: None,
        }
    }

    #[test]
    fn an_emitted_id_depends_on_every_part_and_nothing_else() {
        let id = |application: &str, function: &str, topic: &str, key: &str, index| {
            let function = FunctionName::new(application, function).unwrap();
            emitted_id(&function, &Topic::new(topic.to_owned()).unwrap(), key, index)
        };
        let first = id("shop", "reserve", "orders", "/shop 1", 0);
        assert_eq!(first, id("shop", "reserve", "orders", "/shop 1", 0));
        // A stored format: ids of events already emitted must come out the same for ever.
        assert_eq!(first, "0944e56bb21741f11a27f5b727d8aaa9");
        for other in [
            id("shop", "charge", "orders", "/shop 1", 0),
            id("shop2", "reserve", "orders", "/shop 1", 0),
            id("shop", "reserve", "orders2", "/shop 1", 0),
            id("shop", "reserve", "orders", "/shop 2", 0),
            id("shop", "reserve", "orders", "/shop 1", 1),
            id("shop", "reserve", "order", "s/shop 1", 0),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(emitted_source(&FunctionName::new("shop", "reserve").unwrap()), "/millrace/shop/reserve");
    }

    #[test]
    fn a_key_hash_is_the_start_of_sha_256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(KeyHash::of("abc"), KeyHash(0xba78_16bf_8f01_cfea_4141_40de_5dae_2223));
    }

    #[test]
    fn the_default_key_reads_as_source_and_id() {
        for (source, id, expected) in [
            ("/shop", "1", "/shop 1"),
            ("/shop", "a b", "/shop a b"),
            ("/my shop", "1", "/my\\ shop 1"),
            ("\\", " ", "\\\\  "),
        ] {
            assert_eq!(default_idempotency_key(&event(source, id, &[])), expected);
        }
    }

    #[test]
    fn an_emitted_event_names_what_it_follows_from() {
        let (parent, state) = (ByteString::from("00-aa-bb-01"), ByteString::from("x=1"));
        let traced = Some((parent.clone(), Some(state)));
        for (handled, given, trace, expected) in [
            (vec![], vec![], None, "causationid=7 correlationid=7"),
            (vec![("correlationid", "1")], vec![], None, "causationid=7 correlationid=1"),
            (vec![], vec![("causationid", "x"), ("correlationid", "y")], None, "causationid=x correlationid=y"),
            (
                vec![],
                vec![("z", "1"), ("a", "2")],
                traced.clone(),
                "a=2 causationid=7 correlationid=7 traceparent=00-aa-bb-01 tracestate=x=1 z=1",
            ),
            (vec![], vec![], Some((parent, None)), "causationid=7 correlationid=7 traceparent=00-aa-bb-01"),
            (vec![], vec![("traceparent", "own")], traced, "causationid=7 correlationid=7 traceparent=own"),
        ] {
            let handled = event("/shop", "7", &handled);
            let mut extensions = given;
            let cause = Cause::of(&handled, trace);
            cause.fill_in(&mut extensions);
            let listed: Vec<_> = extensions.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(listed.join(" "), expected);
        }
    }

    proptest! {
        #[test]
        fn no_two_identities_share_a_default_key(
            a in ("[a \\\\]{0,4}", "[a \\\\]{0,4}"),
            b in ("[a \\\\]{0,4}", "[a \\\\]{0,4}"),
        ) {
            let same_key = default_idempotency_key(&event(&a.0, &a.1, &[])) == default_idempotency_key(&event(&b.0, &b.1, &[]));
            prop_assert_eq!(same_key, a == b);
        }
    }
}
