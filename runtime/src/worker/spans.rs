//! The spans of one unit: an attempt, what a commit sends, the commit. Nothing at all unless there is a collector.
//!
//! An attempt is a child of the operation that its event names as its parent, so that the whole way of an event is one
//! trace, and is linked to it, as the conventions ask. A commit is about many traces: it begins one of its own, with links
//! to the attempts since the last commit, and is there only if one of them is recorded.

use std::sync::Arc;

use bytestring::ByteString;
use millrace_core::dispatcher::Ticket;
use millrace_core::intake::Delivered;
use millrace_core::name::{Topic, Unit};
use millrace_core::outcome::Outcome;
use millrace_core::progress::Position;
use millrace_core::time::Timestamp;
use millrace_core::trace::{CORRELATION_ID, TRACE_PARENT, TraceParent};

use crate::clock::Clock;
use crate::sandbox::{self, Completion, Emission, TraceContext};
use crate::telemetry::{About, Links, Parent, Span, SpanError, SpanIds, Tracing};

#[cfg(test)]
mod tests;

/// Spans that are held until the next commit.
const HELD_MAX: usize = 512;

/// Makes the spans of one unit, if anybody wants them.
#[derive(Debug)]
pub(super) struct Spans(Option<Box<Recorder>>);

#[derive(Debug)]
struct Recorder {
    tracing: Tracing,
    clock: Clock,
    unit: Arc<Unit>,
    ids: SpanIds,
    /// The one under way.
    attempt: Option<Attempt>,
    /// Where the event of the latest attempt is, for the log.
    latest: Option<(Position, TraceParent)>,
    /// What ended since the last commit began.
    ended: Vec<Span>,
    group: Group,
    committing: Option<Committing>,
}

#[derive(Debug)]
struct Attempt {
    context: TraceParent,
    parent: Option<TraceParent>,
    state: Option<ByteString>,
    began: Timestamp,
    revision: u64,
}

/// What belongs to the next commit.
#[derive(Debug, Default)]
struct Group {
    attempts: Links,
    sends: Vec<Send>,
}

/// Events of one commit that go to one topic.
#[derive(Debug)]
struct Send {
    topic: Topic,
    events: u64,
    attempts: Links,
}

/// The commit under way.
#[derive(Debug)]
struct Committing {
    began: Timestamp,
    settled: usize,
    group: Group,
}

impl Spans {
    pub(super) fn new(tracing: &Tracing, clock: Clock, unit: &Unit) -> Self {
        let recorder = || Recorder {
            tracing: tracing.clone(),
            clock,
            unit: Arc::new(unit.clone()),
            ids: SpanIds::default(),
            attempt: None,
            latest: None,
            ended: Vec::new(),
            group: Group::default(),
            committing: None,
        };
        Self(tracing.is_on().then(|| Box::new(recorder())))
    }

    /// An attempt begins. What it emits belongs to it, unless its trace is not recorded: then it belongs to the event's.
    pub(super) fn begin(&mut self, ticket: &Ticket<Box<Delivered>>, revision: u64, trace: &mut Option<TraceContext>) {
        let Some(recorder) = &mut self.0 else { return };
        recorder.attempt = recorder.begun(ticket.payload(), revision, trace.as_ref());
        recorder.latest = recorder.attempt.as_ref().map(|attempt| (ticket.position(), attempt.context));
        if let Some(Attempt { context, state, .. }) = &recorder.attempt {
            *trace = Some(TraceContext { parent: context.to_string().into(), state: state.clone() });
        }
    }

    /// The latest attempt, if it was at the event at this position.
    pub(super) fn context(&self, position: Position) -> Option<TraceParent> {
        let latest = self.0.as_ref()?.latest.filter(|(at, _)| *at == position);
        latest.map(|(_, context)| context)
    }

    /// The attempt has ended.
    pub(super) fn finished(&mut self, now: Timestamp, ticket: &Ticket<Box<Delivered>>, completion: &Completion) {
        let Some(recorder) = &mut self.0 else { return };
        let (outcome, error) = match &completion.outcome {
            Outcome::Completed => ("completed", None),
            Outcome::Failed(failure) => {
                let error = SpanError { kind: failure.category.as_str(), message: failure.reason.clone() };
                ("failed", Some(error))
            }
        };
        let attempt = recorder.end_attempt(now, ticket, outcome, error);
        if let Some(attempt) = attempt {
            recorder.group.attempts.push(attempt);
        }
        recorder.group.send(&completion.emitted, attempt);
    }

    /// The host could not make the attempt.
    pub(super) fn not_run(&mut self, ticket: &Ticket<Box<Delivered>>, error: &sandbox::Error) {
        let Some(recorder) = &mut self.0 else { return };
        let error = SpanError { kind: "host", message: error.0.as_str().into() };
        recorder.end_attempt(recorder.clock.now(), ticket, "not-run", Some(error));
    }

    /// A commit of so many settlements begins.
    pub(super) fn commit_began(&mut self, now: Timestamp, settled: usize) {
        let Some(recorder) = &mut self.0 else { return };
        let group = std::mem::take(&mut recorder.group);
        let is_recorded = !group.attempts.kept.is_empty();
        recorder.committing = is_recorded.then_some(Committing { began: now, settled, group });
        recorder.tracing.send(std::mem::take(&mut recorder.ended));
    }

    /// The commit has ended; with the word for how and a reason, if it was not durable.
    pub(super) fn commit_ended(&mut self, now: Timestamp, failed: Option<(&'static str, &str)>) {
        let Some(recorder) = &mut self.0 else { return };
        let Some(committing) = recorder.committing.take() else { return };
        let spans = recorder.commit(now, committing, failed);
        recorder.tracing.send(spans);
    }

    /// Everything since the last commit is done again: what was emitted is never sent.
    pub(super) fn start_again(&mut self) {
        if let Some(recorder) = &mut self.0 {
            recorder.attempt = None;
            recorder.group = Group::default();
        }
    }
}

impl Recorder {
    /// None if the event belongs to a trace that is not recorded.
    fn begun(&mut self, delivered: &Delivered, revision: u64, trace: Option<&TraceContext>) -> Option<Attempt> {
        let event = delivered.event.as_ref()?;
        let parent: Option<TraceParent> = event.extension(TRACE_PARENT).and_then(|parent| parent.parse().ok());
        let origin = &delivered.origin;
        let (of, is_sampled) = match parent {
            Some(parent) if !parent.is_sampled => return None,
            Some(parent) => (parent.trace, true),
            None => self.tracing.root(&origin.topic, origin.partition, origin.offset)?,
        };
        let context = TraceParent { trace: of, span: self.ids.span(), is_sampled };
        // A state belongs to its parent.
        let state = trace.filter(|_| parent.is_some()).and_then(|trace| trace.state.clone());
        Some(Attempt { context, parent, state, began: self.clock.now(), revision })
    }

    /// Ends the attempt under way; answers with its context if it is recorded.
    fn end_attempt(
        &mut self,
        now: Timestamp,
        ticket: &Ticket<Box<Delivered>>,
        outcome: &'static str,
        error: Option<SpanError>,
    ) -> Option<TraceParent> {
        let Attempt { context, parent, state, began, revision } = self.attempt.take()?;
        let delivered = ticket.payload();
        let event = delivered.event.as_ref().filter(|_| context.is_sampled)?;
        let mut links = Links::default();
        parent.into_iter().for_each(|parent| links.push(parent));
        self.ended.push(Span {
            context,
            parent: parent.map(|parent| Parent { span: parent.span, is_remote: true }),
            state,
            began,
            ended: now,
            links,
            unit: Arc::clone(&self.unit),
            about: About::Process {
                event: event.id.clone(),
                correlation: event.extension(CORRELATION_ID).unwrap_or(&event.id).clone(),
                offset: delivered.origin.offset,
                attempt: ticket.attempt(),
                revision,
                outcome,
            },
            error,
        });
        if self.ended.len() >= HELD_MAX {
            self.tracing.send(std::mem::take(&mut self.ended));
        }
        Some(context)
    }

    /// A commit and what it sent, as one trace.
    fn commit(&mut self, now: Timestamp, committing: Committing, failed: Option<(&'static str, &str)>) -> Vec<Span> {
        let Committing { began, settled, group } = committing;
        let trace = self.ids.trace();
        let error = failed.map(|(kind, message)| SpanError { kind, message: message.into() });
        let outcome = failed.map_or("committed", |(kind, _)| kind);
        let mut span = |parent: Option<Parent>, links: Links, about: About| Span {
            context: TraceParent { trace, span: self.ids.span(), is_sampled: true },
            parent,
            state: None,
            began,
            ended: now,
            links,
            unit: Arc::clone(&self.unit),
            about,
            error: error.clone(),
        };
        let commit = span(None, group.attempts, About::Commit { settled, outcome });
        let parent = Parent { span: commit.context.span, is_remote: false };
        let sends = group
            .sends
            .into_iter()
            .map(|Send { topic, events, attempts }| span(Some(parent), attempts, About::Send { topic, events }));
        let mut spans: Vec<Span> = sends.collect();
        spans.push(commit);
        spans
    }
}

impl Group {
    /// Counts what an attempt emitted, by topic.
    fn send(&mut self, emitted: &[Emission], attempt: Option<TraceParent>) {
        for Emission { topic, .. } in emitted {
            let at = self.sends.iter().position(|send| send.topic == *topic).unwrap_or_else(|| {
                self.sends.push(Send { topic: topic.clone(), events: 0, attempts: Links::default() });
                self.sends.len() - 1
            });
            let send = &mut self.sends[at];
            send.events += 1;
            attempt.into_iter().for_each(|attempt| send.attempts.push(attempt));
        }
    }
}
