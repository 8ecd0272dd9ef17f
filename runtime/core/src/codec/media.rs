//! What a media type says about data (<https://www.rfc-editor.org/rfc/rfc6838>).

/// Whether data of this type is JSON: the subtype is `json` or ends in `+json`. Parameters do not matter.
#[must_use]
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim_ascii();
    let Some((_, subtype)) = essence.split_once('/') else { return false };
    let suffix = subtype.rsplit_once('+').map_or(subtype, |(_, suffix)| suffix);
    suffix.eq_ignore_ascii_case("json")
}

/// How an event is carried, as a content type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The body is an event in JSON.
    Structured,
    /// The body is a list of events in JSON.
    Batch,
    /// The body is a whole event or several, in a format that is not understood.
    OtherFormat,
    /// The body is data, and attributes are elsewhere.
    Binary,
}

impl Mode {
    /// Reads a content type.
    #[must_use]
    pub fn of(content_type: &str) -> Self {
        const PREFIX: &str = "application/cloudevents";
        let essence = content_type.split(';').next().unwrap_or_default().trim_ascii();
        let Some((prefix, format)) = essence.split_at_checked(PREFIX.len()) else { return Self::Binary };
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            return Self::Binary;
        }
        match format.to_ascii_lowercase().as_str() {
            "+json" => Self::Structured,
            "-batch+json" => Self::Batch,
            _ => Self::OtherFormat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_recognised_by_its_subtype() {
        for (content_type, expected) in [
            ("application/json", true),
            ("APPLICATION/JSON", true),
            ("application/json; charset=utf-8", true),
            ("application/vnd.shop.order+json", true),
            ("text/json", true),
            ("text/plain", false),
            ("application/jsonlines", false),
            ("json", false),
            ("", false),
            ("application/xml; note=a/json", false),
        ] {
            assert_eq!(is_json(content_type), expected, "{content_type}");
        }
    }

    #[test]
    fn the_mode_is_read_from_the_content_type() {
        for (content_type, expected) in [
            ("application/cloudevents+json", Mode::Structured),
            ("application/CloudEvents+JSON; charset=UTF-8", Mode::Structured),
            ("application/cloudevents-batch+json", Mode::Batch),
            ("application/cloudevents+avro", Mode::OtherFormat),
            ("application/cloudevents", Mode::OtherFormat),
            ("application/json", Mode::Binary),
            ("", Mode::Binary),
            ("application/cloudevent\u{e9}", Mode::Binary),
        ] {
            assert_eq!(Mode::of(content_type), expected, "{content_type}");
        }
    }
}
