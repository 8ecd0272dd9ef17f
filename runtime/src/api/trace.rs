//! Trace context in the headers of a request (<https://www.w3.org/TR/trace-context/>).

use axum::http::HeaderMap;
use bytestring::ByteString;
use millrace_core::event::Event;
use millrace_core::trace::{TRACE_PARENT, TRACE_STATE, TraceParent};

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
        let mut parents = headers.get_all(TRACE_PARENT).iter();
        let parent = parents.next()?.to_str().ok().filter(|parent| parent.parse::<TraceParent>().is_ok())?;
        if parents.next().is_some() {
            return None;
        }
        let states: Option<Vec<&str>> =
            headers.get_all(TRACE_STATE).iter().map(|value| value.to_str().ok().map(str::trim)).collect();
        let state = states.map(|states| states.join(",")).filter(|s| !s.is_empty() && s.len() <= STATE_MAX_BYTES);
        Some(Self { parent: parent.into(), state: state.map(ByteString::from) })
    }

    /// Puts an event into the trace, unless it already is in one.
    pub(super) fn join(&self, event: &mut Event) {
        if event.extension(TRACE_PARENT).is_some() || event.extension(TRACE_STATE).is_some() {
            return;
        }
        let context = [(TRACE_PARENT, Some(&self.parent)), (TRACE_STATE, self.state.as_ref())];
        for (name, value) in context.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let at = event.extensions.partition_point(|(other, _)| **other < *name);
            event.extensions.insert(at, (ByteString::from_static(name), value.clone()));
        }
    }
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
