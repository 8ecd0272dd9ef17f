//! What others may know of a worker while it runs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_core::dispatcher::{Dispatcher, Payload, Settled, Settlement, Ticket};
use millrace_core::intake::Delivered;
use millrace_core::name::Unit;
use millrace_core::outcome::Outcome;
use tokio::sync::{mpsc, oneshot};

use super::gone::{Gone, Skip};
use crate::sandbox::Completion;

/// Why a partition waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its position no longer exists.
    Gone(Gone),
    /// The log refused even a dead letter.
    Refused(String),
}

/// A unit's live figures. Committed progress is in the log.
#[derive(Clone, Debug, Default)]
pub struct UnitFigures {
    /// Records held back behind failing keys.
    pub parked: usize,
    /// Idempotency keys in the window.
    pub keys: usize,
    /// Attempts since the worker started.
    pub attempts: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Commits since the worker started.
    pub commits: u64,
    /// The largest memory that a guest had, in bytes.
    pub guest_memory_bytes: u64,
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
    pub(super) fn new(unit: Unit) -> (Self, mpsc::Receiver<Skip>) {
        let (skips, heard) = mpsc::channel(SKIPS);
        (Self { unit, figures: Mutex::default(), skips }, heard)
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

    pub(super) fn attempted(&self, ticket: &Ticket<Box<Delivered>>, completion: &Completion) {
        let mut figures = self.lock();
        figures.attempts += 1;
        figures.failed_attempts += u64::from(completion.outcome != Outcome::Completed);
        figures.guest_memory_bytes = figures.guest_memory_bytes.max(completion.usage.memory_bytes);
        drop(figures);
        let event = ticket.payload().event.as_ref();
        let id = event.map_or("", |event| &event.id);
        let function = &self.unit.function;
        for line in &completion.logs {
            let (level, context, message) = (line.level, &line.context, &line.message);
            tracing::info!(target: "millrace::guest", %function, event = id, %level, context, "{message}");
        }
        if let Outcome::Failed(failure) = &completion.outcome {
            let (attempt, category, reason) = (ticket.attempt(), failure.category, &failure.reason);
            tracing::debug!(target: "millrace::attempt", %function, event = id, attempt, %category, %reason, "An attempt failed.");
        }
    }

    pub(super) fn settled(&self, settled: &Settled<Box<Delivered>>) {
        let Settlement::DeadLettered(dead) = &settled.settlement else { return };
        let function = &self.unit.function;
        let Some(delivered) = &settled.payload else { return };
        let origin = &delivered.origin;
        let (category, reason, attempts) = (dead.failure.category, &dead.failure.reason, dead.attempts);
        let letter = format_args!("{}/{}/{}", origin.topic, origin.partition, origin.offset);
        tracing::warn!(target: "millrace::letter", %function, %letter, attempts, %category, %reason, "An event is dead-lettered.");
    }

    pub(super) fn committed<T: Payload>(&self, dispatcher: &Dispatcher<T>) {
        let mut figures = self.lock();
        figures.parked = dispatcher.parked();
        figures.keys = dispatcher.window().len();
        figures.commits += 1;
    }

    fn lock(&self) -> MutexGuard<'_, UnitFigures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
