//! The rules that attributes of an event follow, whatever format carries them.

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;

use crate::event::Event;
use crate::outcome::{Category, Failure};
use crate::time::Timestamp;

/// Longest name of an extension attribute. CloudEvents recommends at most 20 characters and sets no bound.
pub const EXTENSION_NAME_MAX_CHARS: usize = 255;

/// Names that extensions cannot have, because attributes of the specification or members of its formats have them.
const RESERVED: [&str; 9] =
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"];

/// Texts that nearly every event has cost nothing to own: sharing memory costs two atomic operations a text.
const KNOWN_EXTENSIONS: [&str; 5] = ["causationid", "correlationid", "partitionkey", "traceparent", "tracestate"];
const KNOWN_CONTENT_TYPES: [&str; 1] = ["application/json"];

fn known(texts: &[&'static str], text: &str) -> Option<ByteString> {
    texts.iter().find(|known| **known == text).map(|known| ByteString::from_static(known))
}

/// The name of an extension that nearly every event has, without memory of its own.
fn known_extension(name: &str) -> Option<ByteString> {
    known(&KNOWN_EXTENSIONS, name)
}

/// A content type that nearly every event has, without memory of its own.
fn known_content_type(text: &str) -> Option<ByteString> {
    known(&KNOWN_CONTENT_TYPES, text)
}

/// What is wrong with an event: names the attribute and the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw(pub(super) String);

impl From<Flaw> for Failure {
    fn from(flaw: Flaw) -> Self {
        Self::new(Category::Invalid, flaw.0)
    }
}

fn flaw(name: &str, rule: impl std::fmt::Display) -> Flaw {
    let mut short: String = name.chars().take(64).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    Flaw(format!("attribute `{short}` {rule}"))
}

/// An event of which not all attributes are known yet.
#[derive(Default)]
pub(super) struct Draft {
    has_specversion: bool,
    id: Option<ByteString>,
    source: Option<ByteString>,
    ty: Option<ByteString>,
    subject: Option<ByteString>,
    time: Option<Timestamp>,
    pub(super) datacontenttype: Option<ByteString>,
    dataschema: Option<ByteString>,
    extensions: Vec<(ByteString, ByteString)>,
}

impl Draft {
    /// Takes one attribute. `own` makes texts that outlive the input, without a copy where it can.
    pub(super) fn set(
        &mut self,
        name: Cow<'_, str>,
        value: Cow<'_, str>,
        own: impl Fn(Cow<'_, str>) -> ByteString,
    ) -> Result<(), Flaw> {
        check_text(&name, &value)?;
        let (name, slot) = match &*name {
            "id" => ("id", &mut self.id),
            "source" => ("source", &mut self.source),
            "type" => ("type", &mut self.ty),
            "subject" => ("subject", &mut self.subject),
            "datacontenttype" => ("datacontenttype", &mut self.datacontenttype),
            "dataschema" => ("dataschema", &mut self.dataschema),
            "specversion" => return self.set_specversion(&value),
            "time" => return self.set_time(&value),
            _ => {
                check_extension_name(&name)?;
                let name = known_extension(&name).unwrap_or_else(|| own(name));
                self.extensions.push((name, own(value)));
                return Ok(());
            }
        };
        check_not_empty(name, &value)?;
        if slot.is_some() {
            return Err(twice(name));
        }
        *slot = Some(known_content_type(&value).unwrap_or_else(|| own(value)));
        Ok(())
    }

    fn set_specversion(&mut self, value: &str) -> Result<(), Flaw> {
        if value != "1.0" {
            return Err(flaw("specversion", format_args!("is `{}`, and only 1.0 is understood", shortened(value))));
        }
        if std::mem::replace(&mut self.has_specversion, true) {
            return Err(twice("specversion"));
        }
        Ok(())
    }

    fn set_time(&mut self, value: &str) -> Result<(), Flaw> {
        let time = Timestamp::parse_rfc3339(value)
            .map_err(|rule| flaw("time", format_args!("{rule}, and is `{}`", shortened(value))))?;
        if self.time.replace(time).is_some() {
            return Err(twice("time"));
        }
        Ok(())
    }

    /// The event, if nothing is missing.
    pub(super) fn finish(mut self, data: Option<Bytes>) -> Result<Event, Flaw> {
        if !self.has_specversion {
            return Err(missing("specversion"));
        }
        if !self.extensions.is_sorted_by(|(a, _), (b, _)| **a < **b) {
            self.extensions.sort_unstable();
            check_unique(&self.extensions)?;
        }
        Ok(Event {
            id: self.id.ok_or_else(|| missing("id"))?,
            source: self.source.ok_or_else(|| missing("source"))?,
            ty: self.ty.ok_or_else(|| missing("type"))?,
            subject: self.subject,
            time: self.time,
            datacontenttype: self.datacontenttype,
            dataschema: self.dataschema,
            extensions: self.extensions,
            data,
        })
    }
}

/// Checks an event that was not decoded: one that a handler emits or a person typed. Extensions must be sorted by name.
///
/// # Errors
/// If it is no valid CloudEvent. The reason names the attribute and the rule.
pub fn check(event: &Event) -> Result<(), Failure> {
    check_event(event).map_err(Failure::from)
}

fn check_event(event: &Event) -> Result<(), Flaw> {
    let required = [("id", Some(&event.id)), ("source", Some(&event.source)), ("type", Some(&event.ty))];
    let optional = [
        ("subject", event.subject.as_ref()),
        ("datacontenttype", event.datacontenttype.as_ref()),
        ("dataschema", event.dataschema.as_ref()),
    ];
    for (name, value) in required.into_iter().chain(optional) {
        let Some(value) = value else { continue };
        check_not_empty(name, value)?;
        check_text(name, value)?;
    }
    for (name, value) in &event.extensions {
        check_extension_name(name)?;
        check_text(name, value)?;
    }
    if !event.extensions.is_sorted_by(|(a, _), (b, _)| **a <= **b) {
        return Err(Flaw("extension attributes must be sorted by name".to_owned()));
    }
    check_unique(&event.extensions)
}

fn check_unique(sorted: &[(ByteString, ByteString)]) -> Result<(), Flaw> {
    match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(twice(&pair[0].0)),
        None => Ok(()),
    }
}

fn check_not_empty(name: &str, value: &str) -> Result<(), Flaw> {
    if value.is_empty() {
        return Err(flaw(name, "is empty: give it a value or leave it out"));
    }
    Ok(())
}

/// Strings of CloudEvents hold no control characters and no code points that Unicode sets apart as non-characters.
fn check_text(name: &str, value: &str) -> Result<(), Flaw> {
    if is_printable_ascii(value.as_bytes()) {
        return Ok(());
    }
    match value.chars().find(|&c| c.is_control() || is_noncharacter(c)) {
        Some(c) => Err(flaw(name, format_args!("holds the character U+{:04X}, which texts cannot", u32::from(c)))),
        None => Ok(()),
    }
}

/// Whether all bytes lie between space and tilde. Looks at eight at a time, because every text of every event comes by.
fn is_printable_ascii(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES * 0x80;
    // The high bit of a byte is set below when it was set before, when the byte is delete, or when it is below space;
    // a borrow from a neighbour can only come where that neighbour is refused itself.
    let is_refused = |eight: u64| (eight | eight.wrapping_add(ONES) | eight.wrapping_sub(ONES * 0x20)) & HIGH != 0;
    let Some(last) = bytes.last_chunk::<8>() else { return bytes.iter().all(|b| matches!(b, b' '..=b'~')) };
    let (chunks, _) = bytes.as_chunks::<8>();
    !chunks.iter().chain([last]).any(|&eight| is_refused(u64::from_le_bytes(eight)))
}

const fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fdd0}'..='\u{fdef}') || (c as u32) & 0xfffe == 0xfffe
}

/// Whether the specification gives this name a meaning, so that no extension can have it.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

fn check_extension_name(name: &str) -> Result<(), Flaw> {
    let is_legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if name.is_empty() || name.len() > EXTENSION_NAME_MAX_CHARS || !name.bytes().all(is_legal) {
        return Err(flaw(
            name,
            format_args!("must have a name of 1 to {EXTENSION_NAME_MAX_CHARS} lower-case letters and digits"),
        ));
    }
    if is_reserved(name) {
        return Err(flaw(name, "is not an extension: choose another name"));
    }
    Ok(())
}

fn twice(name: &str) -> Flaw {
    flaw(name, "is given twice")
}

fn missing(name: &str) -> Flaw {
    flaw(name, "is missing")
}

/// The attribute's value is not text.
pub(super) fn not_utf8(name: &str) -> Flaw {
    flaw(name, "is not UTF-8")
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_bytes_are_told_from_others_at_every_place() {
        for byte in 0..=u8::MAX {
            for (len, at) in [(1, 0), (8, 0), (8, 7), (9, 8), (23, 12)] {
                for neighbour in [b' ', b'~'] {
                    let mut text = vec![neighbour; len];
                    text[at] = byte;
                    assert_eq!(is_printable_ascii(&text), matches!(byte, b' '..=b'~'), "{byte} at {at} of {len}");
                }
            }
        }
        assert!(is_printable_ascii(b""));
    }
}
