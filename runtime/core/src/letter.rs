//! Dead letters on the wire: the original record with `millrace-` headers.

use std::fmt::Write as _;

use bytes::Bytes;
use bytestring::ByteString;

use crate::limits;
use crate::name::{FunctionName, Topic};
use crate::outcome::Category;
use crate::record::{Headers, HeadersBuilder, Record};
use crate::time::Timestamp;

/// All headers of ours begin with this.
pub const HEADER_PREFIX: &str = "millrace-";

/// What a dead letter tells beside its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterHeaders {
    /// Whose letter it is.
    pub function: FunctionName,
    /// The revision that handled it last.
    pub revision: u64,
    /// The last failure's category.
    pub category: Category,
    /// The last failure's reason.
    pub reason: ByteString,
    /// Failed attempts since it was last delivered.
    pub attempts: u32,
    /// When the first of them failed.
    pub first_failed_at: Timestamp,
    /// When the last of them failed.
    pub last_failed_at: Timestamp,
    /// The topic it was first read from.
    pub topic: Topic,
    /// The partition it was first read from.
    pub partition: u32,
    /// The offset it was first read from.
    pub offset: u64,
    /// Its idempotency key, if one could be computed.
    pub idempotency_key: Option<ByteString>,
    /// How often it was redriven.
    pub redrives: u32,
}

impl LetterHeaders {
    /// The record with these headers, in place of any of ours that it had. Key, value and other headers are untouched.
    #[must_use]
    pub fn seal(&self, record: &Record) -> Record {
        let mut headers = without_ours(&record.headers);
        let mut push = |name: &str, value: &str| {
            let mut full = String::with_capacity(HEADER_PREFIX.len() + name.len());
            let _infallible = write!(full, "{HEADER_PREFIX}{name}");
            headers.push_str(&full, value);
        };
        push("function", self.function.as_str());
        push("revision", &self.revision.to_string());
        push("category", self.category.as_str());
        push("reason", &self.reason);
        push("attempts", &self.attempts.to_string());
        push("first-failed-at", &self.first_failed_at.to_rfc3339());
        push("last-failed-at", &self.last_failed_at.to_rfc3339());
        push("topic", self.topic.as_str());
        push("partition", &self.partition.to_string());
        push("offset", &self.offset.to_string());
        // A longer one is in the event, and twice it might be too much for the log.
        if let Some(key) = self.idempotency_key.as_ref().filter(|key| key.len() <= limits::IDEMPOTENCY_KEY_MAX_BYTES) {
            push("idempotency-key", key);
        }
        push("redrives", &self.redrives.to_string());
        Record { headers: headers.build(), ..record.clone() }
    }

    /// Reads the headers back.
    ///
    /// # Errors
    /// Names the header that is missing or malformed.
    pub fn read(record: &Record) -> Result<Self, MalformedLetter> {
        Ok(Self {
            function: required(record, "function")?,
            revision: required(record, "revision")?,
            category: required(record, "category")?,
            reason: text(record, "reason").ok_or(MalformedLetter("reason"))?,
            attempts: required(record, "attempts")?,
            first_failed_at: instant(record, "first-failed-at")?,
            last_failed_at: instant(record, "last-failed-at")?,
            topic: required(record, "topic")?,
            partition: required(record, "partition")?,
            offset: required(record, "offset")?,
            idempotency_key: text(record, "idempotency-key"),
            redrives: required(record, "redrives")?,
        })
    }
}

/// The record as it was before it became a dead letter.
#[must_use]
pub fn original(record: &Record) -> Record {
    Record { headers: without_ours(&record.headers).build(), ..record.clone() }
}

/// The same letter, redriven this often since its record was written.
#[must_use]
pub fn redriven(record: &Record, times: u32) -> Record {
    match LetterHeaders::read(record) {
        Ok(headers) => LetterHeaders { redrives: headers.redrives.saturating_add(times), ..headers }.seal(record),
        Err(_) => record.clone(),
    }
}

/// A record that is not a dead letter: this header is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedLetter(pub &'static str);

impl std::fmt::Display for MalformedLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a dead letter needs a well-formed header `{HEADER_PREFIX}{}`", self.0)
    }
}

impl std::error::Error for MalformedLetter {}

fn without_ours(headers: &Headers) -> HeadersBuilder {
    let mut kept = HeadersBuilder::default();
    for (name, value) in headers.iter().filter(|(name, _)| !name.starts_with(HEADER_PREFIX)) {
        kept.push(name, value.as_deref());
    }
    kept
}

fn text(record: &Record, name: &str) -> Option<ByteString> {
    let value: Bytes = record
        .headers
        .iter()
        .filter(|(full, _)| full.strip_prefix(HEADER_PREFIX) == Some(name))
        .last()
        .and_then(|(_, value)| value)?;
    ByteString::try_from(value).ok()
}

fn required<T: std::str::FromStr>(record: &Record, name: &'static str) -> Result<T, MalformedLetter> {
    text(record, name).and_then(|value| value.parse().ok()).ok_or(MalformedLetter(name))
}

fn instant(record: &Record, name: &'static str) -> Result<Timestamp, MalformedLetter> {
    text(record, name).and_then(|value| Timestamp::parse_rfc3339(&value).ok()).ok_or(MalformedLetter(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> LetterHeaders {
        LetterHeaders {
            function: "shop.pay".parse().expect("a name"),
            revision: 3,
            category: Category::Unknown,
            reason: "it trapped, ünd how".into(),
            attempts: 4,
            first_failed_at: Timestamp::from_millis(1_000),
            last_failed_at: Timestamp::from_nanos(2_000_000_123),
            topic: "orders".parse().expect("a name"),
            partition: 2,
            offset: 77,
            idempotency_key: Some("k".into()),
            redrives: 1,
        }
    }

    fn record() -> Record {
        Record {
            timestamp: Timestamp::from_millis(5),
            key: Some(Bytes::from_static(b"key")),
            value: None,
            headers: [("a", Some(&b"1"[..])), ("b", None), ("a", Some(&[0xff][..]))].into_iter().collect(),
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        let sealed = letter().seal(&record());
        assert_eq!(LetterHeaders::read(&sealed), Ok(letter()));
        let without = LetterHeaders { idempotency_key: None, ..letter() };
        assert_eq!(LetterHeaders::read(&without.seal(&sealed)), Ok(without));
    }

    #[test]
    fn a_key_that_is_too_long_is_left_out() {
        let with = |bytes| LetterHeaders { idempotency_key: Some("k".repeat(bytes).into()), ..letter() };
        let key = |bytes| LetterHeaders::read(&with(bytes).seal(&record())).unwrap().idempotency_key;
        assert_eq!((key(4096).map(|key| key.len()), key(4097)), (Some(4096), None));
    }

    #[test]
    fn the_original_record_is_untouched() {
        assert_eq!(original(&letter().seal(&record())), record());
        assert_eq!(original(&letter().seal(&letter().seal(&record()))), record());
    }

    #[test]
    fn a_redrive_is_counted() {
        let redriven = redriven(&letter().seal(&record()), 1);
        assert_eq!(LetterHeaders::read(&redriven).map(|h| h.redrives), Ok(2));
        assert_eq!(original(&redriven), record());
    }

    #[test]
    fn a_record_that_is_no_letter_is_told_by_name() {
        assert_eq!(LetterHeaders::read(&record()), Err(MalformedLetter("function")));
    }
}
