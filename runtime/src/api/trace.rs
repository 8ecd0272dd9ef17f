//! Trace context in the headers of a request (<https://www.w3.org/TR/trace-context/>).

use axum::http::HeaderMap;
use bytestring::ByteString;
use millrace_core::event::Event;

/// The longest list of vendors' values that is passed on, in bytes; a longer one is dropped, as the specification allows.
const STATE_MAX_BYTES: usize = 512;

/// The trace that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    parent: ByteString,
    state: Option<ByteString>,
}

impl Trace {
    /// Reads the headers. What is malformed is ignored, as the specification asks.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all("traceparent").iter();
        let parent = parents.next()?.to_str().ok().filter(|parent| is_parent(parent))?;
        if parents.next().is_some() {
            return None;
        }
        let states: Option<Vec<&str>> =
            headers.get_all("tracestate").iter().map(|value| value.to_str().ok().map(str::trim)).collect();
        let state = states.map(|states| states.join(",")).filter(|s| !s.is_empty() && s.len() <= STATE_MAX_BYTES);
        Some(Self { parent: parent.into(), state: state.map(ByteString::from) })
    }

    /// Puts an event into the trace, unless it already is in one.
    pub(super) fn join(&self, event: &mut Event) {
        if event.extension("traceparent").is_some() || event.extension("tracestate").is_some() {
            return;
        }
        let context = [("traceparent", Some(&self.parent)), ("tracestate", self.state.as_ref())];
        for (name, value) in context.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let at = event.extensions.partition_point(|(other, _)| **other < *name);
            event.extensions.insert(at, (ByteString::from_static(name), value.clone()));
        }
    }
}

/// Version, trace, parent and flags in hexadecimal; versions after 00 can have more behind.
fn is_parent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut hex = |length: usize| {
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        parts.next().filter(|part| part.len() == length && part.bytes().all(is_hex))
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
    version != "ff" && !is_zero(trace) && !is_zero(parent) && (version != "00" || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn event(extensions: &[(&'static str, &'static str)]) -> Event {
        Event {
            id: "1".into(),
            source: "/s".into(),
            ty: "t".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: extensions.iter().map(|&(n, v)| (n.into(), v.into())).collect(),
            data: None,
        }
    }

    #[test]
    fn parents_follow_the_specification() {
        let long = format!("{PARENT}-more");
        let later = format!("cc{}-more", &PARENT[2..]);
        for (text, expected) in [
            (PARENT, true),
            (&later, true),
            (&long, false),
            ("", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
        ] {
            assert_eq!(is_parent(text), expected, "{text}");
        }
    }

    #[test]
    fn an_event_joins_the_trace_of_its_request_unless_it_has_one() {
        let trace =
            Trace::of(&headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")])).unwrap();
        let mut joined = event(&[("a", "1"), ("traceroute", "2"), ("z", "3")]);
        trace.join(&mut joined);
        let names: Vec<&str> = joined.extensions.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["a", "traceparent", "traceroute", "tracestate", "z"]);
        assert_eq!(joined.extension("tracestate").map(|s| &**s), Some("a=1,b=2"));
        let own = event(&[("traceparent", "own")]);
        let mut kept = own.clone();
        trace.join(&mut kept);
        assert_eq!(kept, own);
    }

    #[test]
    fn malformed_context_is_ignored() {
        assert_eq!(Trace::of(&headers(&[("tracestate", "a=1")])), None);
        assert_eq!(Trace::of(&headers(&[("traceparent", "00-1-2-3")])), None);
        assert_eq!(Trace::of(&headers(&[("traceparent", PARENT), ("traceparent", PARENT)])), None);
        let long = "x".repeat(STATE_MAX_BYTES + 1);
        let trace = Trace::of(&headers(&[("traceparent", PARENT), ("tracestate", &long)]));
        assert_eq!(trace, Some(Trace { parent: PARENT.into(), state: None }));
    }
}
