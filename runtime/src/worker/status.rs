//! What others may know of a worker while it runs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::dispatcher::{Dispatcher, Payload, Settled, Settlement, Ticket};
use millrace_core::idempotency::Window;
use millrace_core::intake::Delivered;
use millrace_core::name::Unit;
use millrace_core::outcome::Outcome;
use millrace_core::time::Timestamp;
use millrace_core::trace::{CAUSATION_ID, CORRELATION_ID, SpanId, TRACE_PARENT, TraceId, TraceParent};
use tokio::sync::{mpsc, oneshot};
use tracing::field::{DisplayValue, display};

use super::Counts;
use super::gone::{Gone, Skip};
use crate::sandbox::{self, Completion, LogLine};

/// Why a partition waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its position no longer exists.
    Gone(Gone),
    /// The log refused even a dead letter.
    Refused(String),
}

/// A unit's live figures, as of its last commit. Committed progress is in the log.
#[derive(Clone, Debug, Default)]
pub struct UnitFigures {
    /// Records held back behind failing keys.
    pub parked: usize,
    /// Idempotency keys in the window.
    pub keys: usize,
    /// For how long they are known: as long as the function asks for, unless there are too many of them.
    pub window: Duration,
    /// What was counted since the worker started.
    pub counts: Counts,
    /// Why it waits for an operator, if it does.
    pub stopped: Option<Stopped>,
}

/// A unit's live figures, shared.
#[derive(Debug)]
pub struct UnitStatus {
    unit: Unit,
    figures: Mutex<UnitFigures>,
    skips: mpsc::Sender<Skip>,
}

/// Operators that may ask at once for the same.
const SKIPS: usize = 16;

impl UnitStatus {
    /// With where the worker hears that it may skip what is gone.
    pub(super) fn new(unit: Unit, window: &Window, now: Timestamp) -> (Self, mpsc::Receiver<Skip>) {
        let figures = UnitFigures { keys: window.len(), window: window.effective_span(now), ..UnitFigures::default() };
        let (skips, heard) = mpsc::channel(SKIPS);
        (Self { unit, figures: Mutex::new(figures), skips }, heard)
    }

    /// The unit.
    #[must_use]
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> UnitFigures {
        self.lock().clone()
    }

    /// The records that are gone, if it waits for that.
    #[must_use]
    pub fn gone(&self) -> Option<Gone> {
        match &self.lock().stopped {
            Some(Stopped::Gone(gone)) => Some(gone.clone()),
            Some(Stopped::Refused(_)) | None => None,
        }
    }

    /// Lets it skip what is gone, and answers with that once it is committed; none if it does not wait for this, or not
    /// any more.
    pub async fn skip(&self) -> Option<Gone> {
        let (reply, answer) = oneshot::channel();
        {
            // Nobody is asked who does not wait: the word would be taken for one about something else later.
            let figures = self.lock();
            if !matches!(figures.stopped, Some(Stopped::Gone(_))) || self.skips.try_send(reply).is_err() {
                return None;
            }
        }
        answer.await.ok()
    }

    pub(super) fn stop(&self, why: Stopped) {
        self.lock().stopped = Some(why);
    }

    pub(super) fn go_on(&self) {
        self.lock().stopped = None;
    }

    /// Logs what a handler said in an attempt.
    pub(super) fn said(&self, ticket: &Ticket<Box<Delivered>>, completion: &Completion, context: Option<TraceParent>) {
        let function = &self.unit.function;
        if !completion.logs.is_empty() {
            let About { event, trace_id, span_id, correlation_id, causation_id } = About::of(ticket.payload(), context);
            for LogLine { level, context, message } in &completion.logs {
                tracing::info!(
                    target: "millrace::guest",
                    %function, event, trace_id, span_id, correlation_id, causation_id, %level, context, "{message}"
                );
            }
        }
    }

    /// Logs an attempt that failed.
    pub(super) fn failed(
        &self,
        ticket: &Ticket<Box<Delivered>>,
        completion: &Completion,
        context: Option<TraceParent>,
    ) {
        if let Outcome::Failed(failure) = &completion.outcome {
            let function = &self.unit.function;
            let About { event, trace_id, span_id, correlation_id, causation_id } = About::of(ticket.payload(), context);
            let (attempt, category, reason) = (ticket.attempt(), failure.category, &failure.reason);
            tracing::debug!(
                target: "millrace::attempt",
                %function, event, trace_id, span_id, correlation_id, causation_id, attempt, %category, %reason,
                "An attempt failed."
            );
        }
    }

    /// Logs that the host could not make an attempt.
    pub(super) fn not_run(
        &self,
        ticket: &Ticket<Box<Delivered>>,
        error: &sandbox::Error,
        context: Option<TraceParent>,
    ) {
        let About { event, trace_id, span_id, correlation_id, causation_id } = About::of(ticket.payload(), context);
        tracing::warn!(
            unit = %self.unit, event, trace_id, span_id, correlation_id, causation_id, %error,
            "A guest could not be run; it is tried again."
        );
    }

    /// Logs a dead letter.
    pub(super) fn settled(&self, settled: &Settled<Box<Delivered>>, context: Option<TraceParent>) {
        let Settlement::DeadLettered(dead) = &settled.settlement else { return };
        let function = &self.unit.function;
        let Some(delivered) = &settled.payload else { return };
        let origin = &delivered.origin;
        let About { event, trace_id, span_id, correlation_id, causation_id } = About::of(delivered, context);
        let (category, reason, attempts) = (dead.failure.category, &dead.failure.reason, dead.attempts);
        let letter = format_args!("{}/{}/{}", origin.topic, origin.partition, origin.offset);
        tracing::warn!(
            target: "millrace::letter",
            %function, %letter, event, trace_id, span_id, correlation_id, causation_id, attempts, %category, %reason,
            "An event is dead-lettered."
        );
    }

    /// Takes in what was counted up to a commit.
    pub(super) fn committed<T: Payload>(&self, now: Timestamp, dispatcher: &Dispatcher<T>, counts: &Counts) {
        let mut figures = self.lock();
        figures.parked = dispatcher.parked();
        figures.keys = dispatcher.window().len();
        figures.window = dispatcher.window().effective_span(now);
        figures.counts.merge(counts);
    }

    fn lock(&self) -> MutexGuard<'_, UnitFigures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What ties a log line to an event, to its trace and to the events it goes back to.
struct About<'a> {
    event: &'a str,
    trace_id: Option<DisplayValue<TraceId>>,
    span_id: Option<DisplayValue<SpanId>>,
    correlation_id: Option<&'a str>,
    causation_id: Option<&'a str>,
}

impl<'a> About<'a> {
    /// `context` is that of the attempt; without one, nobody records it, and the event's own context is told.
    fn of(delivered: &'a Delivered, context: Option<TraceParent>) -> Self {
        let event = delivered.event.as_ref();
        let extension = |name: &str| event.and_then(|event| event.extension(name)).map(|value| &**value);
        let context = context.or_else(|| extension(TRACE_PARENT)?.parse().ok());
        let id = event.map(|event| &*event.id);
        Self {
            event: id.unwrap_or_default(),
            trace_id: context.map(|context| display(context.trace)),
            span_id: context.map(|context| display(context.span)),
            correlation_id: extension(CORRELATION_ID).or(id),
            causation_id: extension(CAUSATION_ID),
        }
    }
}
