//! Events in the headers of an HTTP request: the binary mode of the HTTP protocol binding of CloudEvents
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>).

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;

use super::attributes::{Draft, Flaw, not_utf8};
use crate::event::Event;
use crate::outcome::Failure;

/// The header whose presence says that a request is in binary mode.
pub const SPECVERSION: &str = "ce-specversion";

/// Reads an event in binary mode from a request's headers, of which all are given, and its body. Values are
/// percent-decoded, after quotes of older versions of the specification are removed. An empty body without a content
/// type is absent data. The data shares the body's memory.
///
/// # Errors
/// If it is no CloudEvent; the reason names the attribute and the rule.
pub fn read_binary<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>, body: Bytes) -> Result<Event, Failure> {
    read(headers, body).map_err(Failure::from)
}

fn read<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>, body: Bytes) -> Result<Event, Flaw> {
    let mut draft = Draft::default();
    for (header, value) in headers {
        if header.eq_ignore_ascii_case("content-type") {
            draft.set("datacontenttype".into(), text_of("datacontenttype", value)?.into(), own)?;
            continue;
        }
        let Some(("ce-" | "CE-" | "Ce-" | "cE-", name)) = header.split_at_checked(3) else { continue };
        let name = name.to_ascii_lowercase();
        let value = percent_decoded(&unquoted(text_of(&name, value)?));
        let value = String::from_utf8(value).map_err(|_| not_utf8(&name))?;
        draft.set(name.into(), value.into(), own)?;
    }
    let is_absent = body.is_empty() && draft.datacontenttype.is_none();
    draft.finish((!is_absent).then_some(body))
}

fn own(text: Cow<'_, str>) -> ByteString {
    text.into_owned().into()
}

fn text_of<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, Flaw> {
    std::str::from_utf8(value).map_err(|_| not_utf8(name))
}

/// The text without the quotes around it and the backslashes that escape characters in it, if it has them.
fn unquoted(value: &str) -> Cow<'_, str> {
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let Some(quoted) = quoted else { return Cow::Borrowed(value) };
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    Cow::Owned(text)
}

/// The bytes that a text stands for. A percent sign without two hexadecimal digits stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octet = match rest {
            [b'%', high, low, ..] => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        if let Some((high, low)) = octet {
            bytes.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

const fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
