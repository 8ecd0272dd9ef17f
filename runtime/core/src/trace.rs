//! What ties events together: W3C trace context (<https://www.w3.org/TR/trace-context/>), correlation and causation.

use std::fmt;
use std::str::FromStr;

/// The extension that names trace and parent.
pub const TRACE_PARENT: &str = "traceparent";
/// The extension with vendors' values; it means nothing without [`TRACE_PARENT`].
pub const TRACE_STATE: &str = "tracestate";
/// The extension that all events share which go back to the same first one.
pub const CORRELATION_ID: &str = "correlationid";
/// The extension that names the event whose handling emitted this one.
pub const CAUSATION_ID: &str = "causationid";

/// A trace: not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// An operation in a trace: not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

/// One operation of one trace, and whether someone records the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The operation.
    pub span: SpanId,
    /// Whether the trace is recorded.
    pub is_sampled: bool,
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// As version 00 writes it.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, is_sampled } = self;
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(*is_sampled))
    }
}

/// A text that names no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a traceparent is written 00-<32 digits>-<16 digits>-<2 digits>, in lower-case hexadecimal")
    }
}

impl std::error::Error for Malformed {}

impl FromStr for TraceParent {
    type Err = Malformed;

    /// Version, trace, parent and flags in hexadecimal; versions after 00 can have more behind.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut parts = text.splitn(5, '-');
        let mut digits = |length: usize| {
            let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            parts.next().filter(|part| part.len() == length && part.bytes().all(is_digit)).ok_or(Malformed)
        };
        let version = digits(2)?;
        let trace = u128::from_str_radix(digits(32)?, 16).map_err(|_| Malformed)?;
        let span = u64::from_str_radix(digits(16)?, 16).map_err(|_| Malformed)?;
        let flags = u8::from_str_radix(digits(2)?, 16).map_err(|_| Malformed)?;
        let ends_well = version != "00" || parts.next().is_none();
        if version == "ff" || trace == 0 || span == 0 || !ends_well {
            return Err(Malformed);
        }
        Ok(Self { trace: TraceId(trace), span: SpanId(span), is_sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn parents_follow_the_specification() {
        let long = format!("{PARENT}-more");
        let later = format!("cc{}-more", &PARENT[2..]);
        for (text, sampled) in [
            (PARENT, Some(true)),
            (&later, Some(true)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", Some(false)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe", Some(false)),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", Some(true)),
            (&long, None),
            ("", None),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
        ] {
            let parsed = text.parse::<TraceParent>();
            assert_eq!(parsed.ok().map(|parent| parent.is_sampled), sampled, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let parent: TraceParent = PARENT.parse().unwrap();
        assert_eq!(parent.to_string(), PARENT);
        let small = TraceParent { trace: TraceId(1), span: SpanId(2), is_sampled: false };
        assert_eq!(small.to_string(), "00-00000000000000000000000000000001-0000000000000002-00");
        assert_eq!(small.to_string().parse(), Ok(small));
    }
}
