//! Reading the JSON format of CloudEvents (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>).

use std::fmt;

use serde_json::{Map, Value};

use crate::{Data, Event};

pub(super) const CORE_ATTRIBUTES: [&str; 10] =
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64"];

/// A text that is not a CloudEvent in JSON; the message names the attribute.
///
/// ```
/// use millrace_sdk::testing;
///
/// let err = testing::cloud_event(r#"{"specversion": "1.0", "id": 7}"#).unwrap_err();
/// assert_eq!(err.to_string(), "not a CloudEvent: `id` must be a text that is not empty");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCloudEvent(String);

impl fmt::Display for InvalidCloudEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a CloudEvent: {}", self.0)
    }
}

impl std::error::Error for InvalidCloudEvent {}

fn refused<T>(reason: impl Into<String>) -> Result<T, InvalidCloudEvent> {
    Err(InvalidCloudEvent(reason.into()))
}

pub(super) fn parse(json: &str) -> Result<Event, InvalidCloudEvent> {
    let mut attributes: Map<String, Value> =
        serde_json::from_str(json).map_err(|err| InvalidCloudEvent(err.to_string()))?;
    if attributes.remove("specversion") != Some(Value::from("1.0")) {
        return refused("`specversion` must be \"1.0\"");
    }
    let id = required(&mut attributes, "id")?;
    let source = required(&mut attributes, "source")?;
    let ty = required(&mut attributes, "type")?;
    let subject = optional(&mut attributes, "subject")?;
    let time = match optional(&mut attributes, "time")? {
        Some(text) => Some(text.parse().or_else(|err| refused(format!("`time`: {err}")))?),
        None => None,
    };
    let datacontenttype = optional(&mut attributes, "datacontenttype")?;
    let dataschema = optional(&mut attributes, "dataschema")?;
    let data = data(&mut attributes, datacontenttype.as_deref())?;
    let mut extensions = attributes
        .into_iter()
        .filter_map(|(name, value)| extension(name, value).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    extensions.sort();
    Ok(Event { id, source, ty, subject, time, datacontenttype, dataschema, extensions, data })
}

fn required(attributes: &mut Map<String, Value>, name: &str) -> Result<String, InvalidCloudEvent> {
    optional(attributes, name)?.map_or_else(|| refused(format!("`{name}` must be a text that is not empty")), Ok)
}

/// In this format `null` is the same as absent.
fn optional(attributes: &mut Map<String, Value>, name: &str) -> Result<Option<String>, InvalidCloudEvent> {
    match attributes.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => refused(format!("`{name}` must be a text that is not empty")),
    }
}

fn extension(name: String, value: Value) -> Result<Option<(String, String)>, InvalidCloudEvent> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some((name, text))),
        Value::Bool(_) | Value::Number(_) => Ok(Some((name, value.to_string()))),
        Value::Array(_) | Value::Object(_) => refused(format!("`{name}` must be a text, a number or a boolean")),
    }
}

/// Section 3.1: JSON data stands as it is; other text as a string; bytes in base64.
fn data(attributes: &mut Map<String, Value>, media_type: Option<&str>) -> Result<Data, InvalidCloudEvent> {
    let is_json = media_type.is_none_or(|media_type| {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        essence.ends_with("/json") || essence.ends_with("+json")
    });
    match (attributes.remove("data"), attributes.remove("data_base64")) {
        (None, None) => Ok(Data::ABSENT),
        (Some(_), Some(_)) => refused("`data` and `data_base64` exclude one another"),
        (None, Some(Value::String(text))) => match base64(&text) {
            Some(bytes) => Ok(Data::from(bytes)),
            None => refused("`data_base64` must be base64 with padding"),
        },
        (None, Some(_)) => refused("`data_base64` must be a text"),
        (Some(Value::String(text)), None) if !is_json => Ok(Data::from(text.into_bytes())),
        (Some(json), None) => Ok(Data::from(json.to_string().into_bytes())),
    }
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    let digits = text.as_bytes().split_at(text.len() - padding).0;
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[track_caller]
    fn check(attributes: &str, expected: Result<Option<&[u8]>, &str>) {
        let json = format!(r#"{{"specversion": "1.0", "id": "1", "source": "/s", "type": "t"{attributes}}}"#);
        let parsed = parse(&json).map_err(|err| err.to_string());
        let data = parsed.as_ref().map(|event| event.data.bytes());
        assert_eq!(data, expected.map_err(|reason| format!("not a CloudEvent: {reason}")).as_ref().copied(), "{json}");
    }

    #[test]
    fn data_is_read_by_its_media_type() {
        check("", Ok(None));
        check(r#", "data": {"a": 1}"#, Ok(Some(br#"{"a":1}"#)));
        check(r#", "data": "text""#, Ok(Some(br#""text""#)));
        check(r#", "data": "text", "datacontenttype": "text/plain""#, Ok(Some(b"text")));
        check(r#", "data": "a", "datacontenttype": "application/x+json; charset=utf-8""#, Ok(Some(br#""a""#)));
        check(r#", "data_base64": """#, Ok(Some(b"")));
        check(r#", "data_base64": "AP8=""#, Ok(Some(&[0, 255])));
        check(r#", "data_base64": "TQ==""#, Ok(Some(b"M")));
        check(r#", "data_base64": "TWFu""#, Ok(Some(b"Man")));
    }

    #[test]
    fn what_is_no_event_is_refused_by_name() {
        check(r#", "data_base64": "TQ=""#, Err("`data_base64` must be base64 with padding"));
        check(r#", "data_base64": "T?==""#, Err("`data_base64` must be base64 with padding"));
        check(r#", "data_base64": "====""#, Err("`data_base64` must be base64 with padding"));
        check(r#", "data_base64": 7"#, Err("`data_base64` must be a text"));
        check(r#", "data": 1, "data_base64": """#, Err("`data` and `data_base64` exclude one another"));
        check(r#", "subject": """#, Err("`subject` must be a text that is not empty"));
        check(r#", "tenant": {}"#, Err("`tenant` must be a text, a number or a boolean"));
    }

    #[test]
    fn extensions_take_their_canonical_form() {
        let json =
            r#"{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "z": true, "b": 7, "a": "x", "n": null}"#;
        let extensions = parse(json).expect("a CloudEvent").extensions;
        let expected = [("a", "x"), ("b", "7"), ("z", "true")];
        assert_eq!(extensions, expected.map(|(name, value)| (name.into(), value.into())));
    }
}
