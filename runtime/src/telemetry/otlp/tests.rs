//! The form of spans. That they arrive is tested with a collector, in `tests/`.

use std::sync::Arc;

use millrace_core::name::Unit;
use millrace_core::trace::TraceId;

use super::*;
use crate::telemetry::spans::{Links, Parent, SpanError};

fn parent(span: u64) -> TraceParent {
    TraceParent { trace: TraceId(0xabc), span: SpanId(span), is_sampled: true }
}

fn span(about: About) -> Span {
    let unit = Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition: 2 };
    let mut links = Links::default();
    links.push(parent(7));
    Span {
        context: parent(8),
        parent: Some(Parent { span: SpanId(7), is_remote: true }),
        state: Some("a=1".into()),
        began: Timestamp::from_millis(1_000),
        ended: Timestamp::from_millis(1_500),
        links,
        unit: Arc::new(unit),
        about,
        error: None,
    }
}

fn shown(span: &Span) -> String {
    let (name, kind, attributes) = described(span);
    let attributes: Vec<String> = attributes.iter().map(|a| format!("{}={}", a.key, a.value)).collect();
    format!("{name} {kind:?} {}", attributes.join(" "))
}

#[test]
fn names_kinds_and_attributes_follow_the_conventions() {
    let everywhere = "messaging.system=millrace messaging.consumer.group.name=shop.pay millrace.function=shop.pay";
    let process = |outcome| About::Process {
        event: "e1".into(),
        correlation: "e0".into(),
        offset: 9,
        attempt: 3,
        revision: 7,
        outcome,
    };
    let failed = Span {
        error: Some(SpanError { kind: "rejected", message: "no such customer".into() }),
        ..span(process("failed"))
    };
    let of_event = "messaging.operation.name=process messaging.operation.type=process \
                    messaging.destination.name=orders messaging.destination.partition.id=2 messaging.message.id=e1 \
                    messaging.message.conversation_id=e0 millrace.offset=9 millrace.attempt=3 faas.version=7";
    for (span, expected) in [
        (
            span(process("completed")),
            format!("process orders Consumer {everywhere} {of_event} millrace.outcome=completed"),
        ),
        (
            failed,
            format!("process orders Consumer {everywhere} error.type=rejected {of_event} millrace.outcome=failed"),
        ),
        (
            span(About::Send { topic: "payments".parse().unwrap(), events: 5 }),
            format!(
                "send payments Client {everywhere} messaging.operation.name=send messaging.operation.type=send \
                 messaging.destination.name=payments messaging.batch.message_count=5"
            ),
        ),
        (
            span(About::Commit { settled: 250, outcome: "committed" }),
            format!(
                "commit Client {everywhere} messaging.operation.name=commit messaging.operation.type=settle \
                 messaging.destination.name=orders messaging.destination.partition.id=2 \
                 messaging.batch.message_count=250 millrace.outcome=committed"
            ),
        ),
    ] {
        assert_eq!(shown(&span), expected);
    }
}

#[test]
fn a_span_keeps_its_times_parent_links_state_and_error() {
    let scope = InstrumentationScope::builder("test").build();
    let given = Span {
        error: Some(SpanError { kind: "aborted", message: "why".into() }),
        ..span(About::Commit { settled: 1, outcome: "aborted" })
    };
    let data = data(given, &scope);
    assert_eq!(data.span_context.trace_id().to_string(), parent(8).trace.to_string());
    assert_eq!(data.span_context.span_id().to_string(), parent(8).span.to_string());
    assert_eq!(data.span_context.trace_state().header(), "a=1");
    assert!(data.span_context.is_sampled() && data.parent_span_is_remote);
    assert_eq!(data.parent_span_id.to_string(), parent(7).span.to_string());
    assert_eq!(data.links.len(), 1);
    assert_eq!(data.links[0].span_context.span_id().to_string(), parent(7).span.to_string());
    assert_eq!(data.end_time.duration_since(data.start_time).unwrap(), Duration::from_millis(500));
    assert_eq!(data.status, Status::error("why"));
}
