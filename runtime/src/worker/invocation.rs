//! What a sandbox is told of an attempt.

use millrace_core::dispatcher::Ticket;
use millrace_core::event::Event;
use millrace_core::intake::Delivered;

use crate::sandbox::{Delivery, Invocation, StateView, TraceContext};

/// One attempt, for the sandbox.
pub(super) fn invocation(ticket: &Ticket<Box<Delivered>>, state: Option<StateView>) -> Invocation<'_> {
    let delivered = ticket.payload();
    let event = delivered.event.as_ref().expect("only decoded events are invoked");
    Invocation {
        event,
        delivery: Delivery {
            topic: delivered.origin.topic.clone(),
            partition: delivered.origin.partition,
            offset: delivered.origin.offset,
            key: delivered.key.clone(),
            attempt: ticket.attempt(),
            idempotency_key: delivered.idempotency_key.clone().unwrap_or_default(),
        },
        trace: trace(event),
        state,
    }
}

/// The trace that an event belongs to goes on in what its handler emits.
fn trace(event: &Event) -> Option<TraceContext> {
    let parent = event.extension("traceparent")?.clone();
    Some(TraceContext { parent, state: event.extension("tracestate").cloned() })
}
