//! The loop of one unit of ownership: wake, decide, perform, commit.
//!
//! A worker is one task that owns everything of its unit. It runs its invocations itself, one after the other, while the
//! last group of settlements is being committed.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_core::breaker::Phase;
use millrace_core::dispatcher::{Admission, Arrival, Dispatcher, Effect, Input, Policy, Ticket, Wants};
use millrace_core::idempotency;
use millrace_core::intake::{self, Delivered, Intake, Origin};
use millrace_core::limits;
use millrace_core::outcome::{Category, Failure, Outcome};
use millrace_core::progress::Position;
use millrace_core::revision::Resets;
use millrace_core::time::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::breaker::SharedBreaker;
use crate::broker::{self, Assignment, CommitOutcome, FetchError, Fetched, Partition, Restored, Wanted};
use crate::clock::Clock;
use crate::sandbox::{self, CommittedState, Completion, Sandbox, StateView};
use crate::telemetry::Tracing;

mod effects;
pub mod feed;
mod gone;
mod invocation;
mod reset;
mod running;
mod spans;
mod state;
mod status;
mod tally;

use effects::Effects;
use feed::{Feed, Notes};
pub use gone::Gone;
use gone::Skip;
use invocation::invocation;
pub use running::{Canary, Running};
use running::{Chosen, Sandboxes};
use spans::Spans;
pub use status::{Stopped, UnitFigures, UnitStatus};
use tally::Tally;
pub use tally::{Attempts, Counts};

/// One revision of a function, ready to run.
pub trait Revision: Send + Sync + 'static {
    /// Runs its handler.
    type Sandbox: Sandbox;

    /// Numbered per function, from 1.
    fn number(&self) -> u64;

    /// How it takes records in.
    fn intake(&self) -> &Intake;

    /// Whether its handler was granted state.
    fn keeps_state(&self) -> bool;

    /// A sandbox for one worker.
    fn sandbox(&self) -> Self::Sandbox;
}

/// What a function's workers share.
#[derive(Debug)]
pub struct Shared<R> {
    /// When and how often to try.
    pub policy: Policy,
    /// How long idempotency keys are remembered, and how many of them.
    pub window: idempotency::Bounds,
    /// Whether someone was told that they are remembered for less long than that.
    pub window_is_cut: Arc<AtomicBool>,
    /// Where spans go.
    pub tracing: Tracing,
    /// Where single events are told of.
    pub feed: Feed,
    /// The function's breaker.
    pub breaker: SharedBreaker,
    /// What runs. Workers change over between two invocations.
    pub running: watch::Receiver<Running<R>>,
    /// What an operator wants.
    pub command: watch::Receiver<Command>,
    /// Where an operator has told units to go on.
    pub resets: watch::Receiver<Arc<Resets>>,
    /// The time.
    pub clock: Clock,
}

impl<R> Clone for Shared<R> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy,
            window: self.window,
            window_is_cut: Arc::clone(&self.window_is_cut),
            tracing: self.tracing.clone(),
            feed: self.feed.clone(),
            breaker: self.breaker.clone(),
            running: self.running.clone(),
            command: self.command.clone(),
            resets: self.resets.clone(),
            clock: self.clock,
        }
    }
}

/// What an operator wants of a function's workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Command {
    /// Handle events.
    #[default]
    Run,
    /// Handle no events until told to run.
    Pause,
    /// Finish and commit what is being handled, then end.
    Drain,
    /// End at once. What is not committed is handled again by the next owner.
    Abandon,
}

impl Command {
    /// Whether workers are to end.
    #[must_use]
    pub const fn ends(self) -> bool {
        matches!(self, Self::Drain | Self::Abandon)
    }
}

/// Why a worker ended.
#[derive(Debug)]
pub enum Exit {
    /// It was told to.
    Drained,
    /// The partition was lost.
    Revoked,
    /// The log cannot go on: the process must stop.
    Failed(broker::Error),
}

/// Where many keys fail there is always another attempt to make. After so long it is seen whether there are new records, which
/// must not wait for the last of them...
const LOOK_AROUND_AFTER: Duration = Duration::from_millis(20);
/// ...for so long, in which a log reads from its disk.
const LOOK_AROUND_FOR: Duration = Duration::from_millis(10);
/// The longest pause after the host could not act.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

type CommitFuture = Pin<Box<dyn Future<Output = Result<CommitOutcome, broker::Error>> + Send>>;

/// The worker of one unit.
pub struct Worker<P: Partition, R: Revision> {
    sandboxes: Sandboxes<R>,
    unit: Owned<P, R>,
}

/// What a worker owns beside its sandboxes: usable while one of them is busy.
struct Owned<P: Partition, R: Revision> {
    partition: P,
    revoked: watch::Receiver<bool>,
    shared: Shared<R>,
    running: Running<R>,
    /// Where the latest attempt was made, and the number of the revision that made it.
    attempted: Option<(Position, u64)>,
    /// What is committed of the unit's state, if a revision was granted state.
    state: Option<Arc<dyn CommittedState>>,
    dispatcher: Dispatcher<Box<Delivered>>,
    /// What the dispatcher wants done; empty except while it is asked. Kept, so that its memory is.
    todo: Vec<Effect<Box<Delivered>>>,
    /// Attempts to make; at most one, for they are made one after the other.
    tickets: VecDeque<Ticket<Box<Delivered>>>,
    /// Effects of settlements that are not sealed.
    effects: Effects,
    /// When the oldest of those settlements was made.
    group_began: Option<Timestamp>,
    commit: Option<CommitFuture>,
    breaker_changes: watch::Receiver<u64>,
    /// First attempts that succeeded and were not told to the breaker yet.
    successes: u64,
    failures_in_row: u32,
    /// A commit was not possible: pause before going on.
    pause_due: bool,
    status: Arc<UnitStatus>,
    /// What `status` does not show yet.
    tally: Tally,
    notes: Notes,
    spans: Spans,
    /// An operator's word that what is gone is to be skipped.
    skips: mpsc::Receiver<Skip>,
}

/// Everything that can wake a worker.
enum Wake {
    Fetched(Result<Fetched, FetchError>),
    CommitEnded(Result<CommitOutcome, broker::Error>),
    Due,
    /// The breaker, the operator or the revision: whoever looks next sees it.
    Changed,
    Revoked,
}

/// What can happen while a guest runs.
enum Meanwhile {
    Invoked(Result<Completion, sandbox::Error>),
    CommitEnded(Result<CommitOutcome, broker::Error>),
    /// What was settled before must not wait for this event.
    CommitDue,
    Revoked,
}

/// What happened to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concluded {
    /// It is durable.
    Committed,
    /// Everything since the last commit was dropped and is done again.
    StartedAgain,
}

impl<P: Partition, R: Revision> Worker<P, R> {
    /// Takes up an assignment. `seed` is for the jitter of retries.
    #[must_use]
    pub fn new(assignment: Assignment<P>, mut shared: Shared<R>, seed: u64) -> Self {
        let Assignment { partition, restored: Restored { progress, keys }, revoked, .. } = assignment;
        let running = shared.running.borrow_and_update().clone();
        let (status, skips) = UnitStatus::new(partition.unit().clone(), &keys, shared.clock.now());
        Self {
            sandboxes: Sandboxes::new(&running),
            unit: Owned {
                status: Arc::new(status),
                skips,
                tally: Tally::default(),
                notes: Notes::new(&shared.feed),
                spans: Spans::new(&shared.tracing, shared.clock, partition.unit()),
                dispatcher: Dispatcher::new(shared.policy, progress, keys, seed),
                todo: Vec::new(),
                state: state::committed(&running, &partition),
                running,
                attempted: None,
                breaker_changes: shared.breaker.changes(),
                partition,
                revoked,
                shared,
                tickets: VecDeque::new(),
                effects: Effects::default(),
                group_began: None,
                commit: None,
                successes: 0,
                failures_in_row: 0,
                pause_due: false,
            },
        }
    }

    /// What others may know of the worker while it runs.
    #[must_use]
    pub fn status(&self) -> Arc<UnitStatus> {
        Arc::clone(&self.unit.status)
    }

    /// Runs until told to end, or until the partition is lost or the log fails. Dropping the future is as safe as a crash:
    /// what is not committed is done again by the next owner.
    pub async fn run(mut self) -> Exit {
        loop {
            if let Err(exit) = self.turn().await {
                return exit;
            }
        }
    }

    /// Makes all attempts that can be made, commits, and waits for something to happen.
    async fn turn(&mut self) -> Result<(), Exit> {
        if std::mem::take(&mut self.unit.pause_due) {
            self.unit.back_off().await;
        }
        self.change_over();
        if self.unit.heed_reset().await? == Concluded::StartedAgain {
            return Ok(());
        }
        self.unit.admit();
        let (began, mut tried_again) = (self.unit.shared.clock.now(), false);
        while !self.unit.draining()
            && !self.unit.paused()
            && !self.unit.group_is_full()
            && !self.unit.shared.resets.has_changed().unwrap_or(false)
            && let Some(ticket) = self.unit.tickets.pop_front()
        {
            tried_again |= ticket.attempt() > 1;
            self.attempt(ticket).await?;
            self.unit.look_at_commit()?;
            self.unit.commit_if_due();
            self.change_over();
            self.unit.heed_breaker();
            if tried_again && self.unit.shared.clock.now().since(began) >= LOOK_AROUND_AFTER {
                self.unit.look_around().await?;
                break;
            }
        }
        if self.unit.draining() {
            self.unit.release_tickets();
            self.unit.begin_commit();
            if self.unit.commit.is_none() {
                return Err(Exit::Drained);
            }
        } else if self.unit.tickets.is_empty() {
            self.unit.begin_commit();
        }
        if !self.unit.tickets.is_empty() && !self.unit.draining() && !self.unit.group_is_full() {
            return Ok(());
        }
        self.sandboxes.idle();
        let wake = self.unit.wait().await;
        self.unit.apply(wake).await
    }

    /// Changes to what is to run now, if that is something else.
    fn change_over(&mut self) {
        if self.unit.shared.running.has_changed().unwrap_or(false) {
            let running = self.unit.shared.running.borrow_and_update().clone();
            self.sandboxes.change_over(&self.unit.running, &running);
            self.unit.state = state::committed(&running, &self.unit.partition);
            self.unit.running = running;
        }
    }

    /// Makes one attempt. Committing goes on meanwhile.
    async fn attempt(&mut self, ticket: Ticket<Box<Delivered>>) -> Result<(), Exit> {
        let Self { sandboxes, unit } = self;
        let result = {
            let Chosen { sandbox, number, keeps_state } = sandboxes.choose(&unit.running, ticket.payload());
            unit.attempted = Some((ticket.position(), number));
            let mut invocation = invocation(&ticket, unit.state_view(keeps_state));
            unit.spans.begin(&ticket, number, &mut invocation.trace);
            let mut invoked = std::pin::pin!(sandbox.invoke(invocation));
            loop {
                let commit_due = unit.commit_due();
                let happened = tokio::select! {
                    biased;
                    result = &mut invoked => Meanwhile::Invoked(result),
                    ended = ended(&mut unit.commit) => Meanwhile::CommitEnded(ended),
                    _ = unit.revoked.wait_for(|revoked| *revoked) => Meanwhile::Revoked,
                    () = due(commit_due) => Meanwhile::CommitDue,
                };
                match happened {
                    Meanwhile::Invoked(result) => break result,
                    Meanwhile::CommitEnded(ended) => {
                        unit.commit = None;
                        if unit.conclude(ended)? == Concluded::StartedAgain {
                            // The event is delivered again; this attempt never happened.
                            unit.give_up(&ticket);
                            return Ok(());
                        }
                        unit.begin_commit();
                    }
                    Meanwhile::CommitDue => unit.begin_commit(),
                    Meanwhile::Revoked => {
                        unit.give_up(&ticket);
                        return Err(Exit::Revoked);
                    }
                }
            }
        };
        match result {
            Ok(completion) => unit.finish(ticket, completion),
            Err(error) => unit.release(ticket, &error).await,
        }
        Ok(())
    }
}

/// Waits for a commit that is under way.
async fn ended(commit: &mut Option<CommitFuture>) -> Result<CommitOutcome, broker::Error> {
    match commit {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}

impl<P: Partition, R: Revision> Owned<P, R> {
    fn draining(&self) -> bool {
        self.shared.command.borrow().ends()
    }

    fn paused(&self) -> bool {
        *self.shared.command.borrow() == Command::Pause
    }

    /// Waits for the next thing that happens.
    async fn wait(&mut self) -> Wake {
        let draining = self.draining();
        let wants = if draining || self.group_is_full() { None } else { self.dispatcher.wants() };
        let deadline = if draining { None } else { self.next_deadline() };
        let deadline = deadline.map(|at| self.shared.clock.instant(at));
        tokio::select! {
            biased;
            _ = self.revoked.wait_for(|revoked| *revoked) => Wake::Revoked,
            ended = ended(&mut self.commit) => Wake::CommitEnded(ended),
            Ok(()) = self.shared.command.changed(), if !draining => Wake::Changed,
            Ok(()) = self.shared.resets.changed(), if !draining => Wake::Changed,
            Ok(()) = self.shared.running.changed() => {
                // Whoever changes over looks for a change itself.
                self.shared.running.mark_changed();
                Wake::Changed
            }
            Ok(()) = self.breaker_changes.changed() => Wake::Changed,
            () = due(deadline) => Wake::Due,
            fetched = fetch(&mut self.partition, wants) => Wake::Fetched(fetched),
        }
    }

    /// Takes in what is new although there are attempts to make.
    async fn look_around(&mut self) -> Result<(), Exit> {
        if *self.revoked.borrow() {
            return Err(Exit::Revoked);
        }
        let wants = self.dispatcher.wants().filter(|_| !self.group_is_full() && !self.draining());
        if wants.is_none() {
            return Ok(());
        }
        let fetching = tokio::time::timeout(LOOK_AROUND_FOR, fetch(&mut self.partition, wants));
        match fetching.await {
            Ok(fetched) => self.apply(Wake::Fetched(fetched)).await,
            Err(_nothing) => Ok(()),
        }
    }

    /// Acts on what happened.
    async fn apply(&mut self, wake: Wake) -> Result<(), Exit> {
        match wake {
            Wake::Fetched(Ok(fetched)) => self.take_in(fetched),
            Wake::Fetched(Err(error)) => self.fetch_failed(error).await?,
            Wake::CommitEnded(ended) => {
                self.commit = None;
                self.conclude(ended)?;
            }
            Wake::Due => self.handle(Input::Tick),
            Wake::Changed => {}
            Wake::Revoked => return Err(Exit::Revoked),
        }
        Ok(())
    }

    fn take_in(&mut self, fetched: Fetched) {
        let Fetched { stream, records, next } = fetched;
        self.tally.received(records.len());
        let unit = self.partition.unit();
        let taking = self.running.active.intake();
        let fetched_bytes = records.iter().map(|(_, record)| record.size_bytes()).sum();
        let mut arrivals: Vec<_> = records
            .into_iter()
            .map(|(offset, record)| {
                let place = Origin { topic: unit.topic.clone(), partition: unit.partition, offset };
                Arrival { offset, content: taking.take(stream, place, record) }
            })
            .collect();
        intake::detach_few(&mut arrivals, fetched_bytes);
        self.handle(Input::Delivered { stream, arrivals, next });
    }

    async fn fetch_failed(&mut self, error: FetchError) -> Result<(), Exit> {
        let unit = self.partition.unit();
        match error {
            FetchError::Broker(error) if error.is_transient() => {
                tracing::warn!(%unit, %error, "Records could not be read; it is tried again.");
                self.back_off().await;
                Ok(())
            }
            FetchError::Broker(error) => Err(Exit::Failed(error)),
            FetchError::Gone { stream, wanted, earliest } => self.gone(stream, wanted, earliest).await,
        }
    }

    fn finish(&mut self, ticket: Ticket<Box<Delivered>>, completion: Completion) {
        let now = self.shared.clock.now();
        self.tell_breaker(now, &ticket, &completion.outcome);
        let revision = self.revision_of(ticket.position(), Some(ticket.payload()));
        self.tally.attempted(now, revision, &ticket, &completion);
        self.log_attempt(&ticket, &completion);
        self.notes.attempted(now, &ticket, &completion);
        self.spans.finished(now, &ticket, &completion);
        let Completion { outcome, emitted, state, .. } = completion;
        self.effects.stage(ticket.position(), emitted, state);
        self.handle_at(now, Input::Finished(ticket, outcome));
        self.notes.tried();
    }

    /// Logs what an attempt said, unless somebody looks on and is told of it, and that it failed.
    fn log_attempt(&self, ticket: &Ticket<Box<Delivered>>, completion: &Completion) {
        let context = self.spans.context(ticket.position());
        if !self.notes.are_read() {
            self.status.said(ticket, completion, context);
        }
        self.status.failed(ticket, completion, context);
    }

    /// What the handler of the next event sees of its state.
    fn state_view(&self, keeps_state: bool) -> Option<StateView> {
        self.state
            .as_ref()
            .filter(|_| keeps_state)
            .map(|committed| StateView::new(Arc::clone(committed), self.effects.overlay()))
    }

    /// The host could not run the guest: the attempt does not count.
    async fn release(&mut self, ticket: Ticket<Box<Delivered>>, error: &sandbox::Error) {
        self.status.not_run(&ticket, error, self.spans.context(ticket.position()));
        self.spans.not_run(&ticket, error);
        self.give_up(&ticket);
        self.handle(Input::Released(ticket));
        self.back_off().await;
    }

    /// An attempt has no result: the breaker must not wait for one.
    fn give_up(&self, ticket: &Ticket<Box<Delivered>>) {
        if ticket.is_trial() {
            self.shared.breaker.release();
        }
    }

    async fn back_off(&mut self) {
        self.failures_in_row += 1;
        let pause = Duration::from_millis(10).saturating_mul(1 << self.failures_in_row.min(16)).min(BACKOFF_MAX);
        tokio::time::sleep(pause).await;
    }

    fn tell_breaker(&mut self, now: Timestamp, ticket: &Ticket<Box<Delivered>>, outcome: &Outcome) {
        let outage = matches!(outcome, Outcome::Failed(Failure { category, .. }) if category.is_retried());
        let breaker = &self.shared.breaker;
        if ticket.is_trial() {
            breaker.tried(now, outage);
        } else if ticket.attempt() == 1 && outage {
            breaker.succeeded(now, std::mem::take(&mut self.successes));
            breaker.failed(now, ticket.lane().as_u64());
        } else if ticket.attempt() == 1 {
            self.successes += 1;
        }
    }

    fn handle(&mut self, input: Input<Box<Delivered>>) {
        self.handle_at(self.shared.clock.now(), input);
    }

    fn handle_at(&mut self, now: Timestamp, input: Input<Box<Delivered>>) {
        let mut todo = std::mem::take(&mut self.todo);
        self.dispatcher.handle(now, input, &mut todo);
        for effect in todo.drain(..) {
            match effect {
                Effect::Invoke(ticket) => self.tickets.push_back(ticket),
                Effect::Settle(settled) => {
                    self.tally.settled(&settled);
                    self.notes.settled(now, self.partition.unit(), &settled);
                    if !self.notes.are_read() {
                        self.status.settled(&settled, self.spans.context(settled.position));
                    }
                    let revision = self.revision_of(settled.position, settled.payload.as_deref());
                    self.effects.settle(now, self.partition.unit(), revision, settled);
                }
            }
        }
        self.todo = todo;
        if self.dispatcher.is_dirty() && self.group_began.is_none() {
            self.group_began = Some(now);
        }
    }

    /// The number of the revision that handled an event: the one that made the latest attempt, if that was at this event.
    fn revision_of(&self, position: Position, delivered: Option<&Delivered>) -> u64 {
        match (self.attempted, delivered) {
            (Some((at, number)), _) if at == position => number,
            (_, Some(delivered)) => self.running.number_for(delivered),
            (_, None) => self.running.active.number(),
        }
    }

    /// No more may be settled before the commit under way has ended.
    fn group_is_full(&self) -> bool {
        self.commit.is_some() && self.is_large()
    }

    /// What is settled is enough for one commit.
    fn is_large(&self) -> bool {
        self.dispatcher.settlements() >= limits::GROUP_MAX_EVENTS
            || self.effects.size_bytes() >= limits::GROUP_MAX_BYTES
    }

    /// Commits what was settled, unless more can join it soon.
    fn commit_if_due(&mut self) {
        let Some(began) = self.group_began else { return };
        if self.tickets.is_empty()
            || self.is_large()
            || self.shared.clock.now().since(began) >= limits::GROUP_MAX_HANDLER_TIME
        {
            self.begin_commit();
        }
    }

    /// When what was settled is committed at the latest, although a handler runs. While a commit is under way, its end is
    /// waited for.
    fn commit_due(&self) -> Option<tokio::time::Instant> {
        let began = self.group_began.filter(|_| self.commit.is_none())?;
        Some(self.shared.clock.instant(began + limits::GROUP_MAX_HANDLER_TIME))
    }

    /// Commits what was settled, unless there is nothing or a commit is under way.
    fn begin_commit(&mut self) {
        if self.commit.is_some() || !self.dispatcher.is_dirty() {
            return;
        }
        let now = self.shared.clock.now();
        self.shared.breaker.succeeded(now, std::mem::take(&mut self.successes));
        self.tally.commit_began(now);
        self.notes.commit_began();
        self.spans.commit_began(now, self.dispatcher.settlements());
        let sealed = self.dispatcher.seal(now);
        self.group_began = None;
        self.commit = Some(Box::pin(self.partition.commit(self.effects.commit(now, sealed))));
    }

    /// Concludes the commit under way if it has ended.
    fn look_at_commit(&mut self) -> Result<(), Exit> {
        let Some(ended) = self.commit.as_mut().and_then(futures::FutureExt::now_or_never) else { return Ok(()) };
        self.commit = None;
        self.conclude(ended).map(|_| ())
    }

    fn conclude(&mut self, ended: Result<CommitOutcome, broker::Error>) -> Result<Concluded, Exit> {
        let now = self.shared.clock.now();
        match ended {
            Ok(CommitOutcome::Committed) => {
                self.failures_in_row = 0;
                self.effects.committed();
                self.handle_at(now, Input::Committed);
                self.tally.committed(now);
                self.spans.commit_ended(now, None);
                self.status.committed(now, &self.dispatcher, &self.tally.take());
                self.notes.committed(&self.partition.unit().function);
                self.report_if_window_is_cut(now);
                return Ok(Concluded::Committed);
            }
            Ok(CommitOutcome::Aborted) if *self.revoked.borrow() => return Err(Exit::Revoked),
            Ok(CommitOutcome::Aborted) => {
                tracing::info!(unit = %self.partition.unit(), "A commit was aborted; its events are handled again.");
                self.spans.commit_ended(now, Some(("aborted", "")));
                self.dispatcher.abort();
            }
            Ok(CommitOutcome::Refused { reason }) => {
                tracing::warn!(unit = %self.partition.unit(), reason, "The log refused a commit for its content.");
                self.spans.commit_ended(now, Some(("refused", &reason)));
                self.dispatcher.refuse(Category::Unknown, &reason);
                self.report_if_stuck();
            }
            Ok(CommitOutcome::Forbidden { reason }) => {
                tracing::warn!(unit = %self.partition.unit(), reason, "The log does not allow a commit; it is tried again.");
                self.spans.commit_ended(now, Some(("forbidden", &reason)));
                self.dispatcher.refuse(Category::Transient, &reason);
                self.report_if_stuck();
            }
            Err(error) if error.is_transient() => {
                // Nothing was written: the same is done again after a pause.
                tracing::warn!(unit = %self.partition.unit(), %error, "A commit was not possible; it is tried again.");
                self.spans.commit_ended(now, Some(("not-possible", &error.to_string())));
                self.dispatcher.postpone();
                self.pause_due = true;
            }
            Err(error) => return Err(Exit::Failed(error)),
        }
        self.start_again();
        Ok(Concluded::StartedAgain)
    }

    /// Tells of it once per function: who has sized the window too small has done so for all partitions.
    fn report_if_window_is_cut(&self, now: Timestamp) {
        let idempotency::Bounds { span, max_keys } = self.shared.window;
        let effective = self.dispatcher.window().effective_span(now);
        if effective < span && !self.shared.window_is_cut.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                unit = %self.partition.unit(), ?effective, window = ?span, max_keys,
                "Idempotency keys are forgotten early; raise idempotency.max-keys, or shorten idempotency.window."
            );
        }
    }

    fn report_if_stuck(&self) {
        if let Some((position, failure)) = self.dispatcher.stuck() {
            let (unit, reason) = (self.partition.unit(), &failure.reason);
            tracing::error!(%unit, ?position, %reason, "Not even a dead letter was taken; the partition waits.");
            self.status.stop(Stopped::Refused(reason.to_string()));
        }
    }

    /// Drops what belongs to settlements that the dispatcher has forgotten.
    fn start_again(&mut self) {
        for ticket in std::mem::take(&mut self.tickets) {
            self.give_up(&ticket);
        }
        self.effects = Effects::default();
        self.tally.start_again();
        self.notes.start_again();
        self.spans.start_again();
        self.group_began = None;
        self.successes = 0;
    }

    /// Gives back what was about to be attempted; nothing new starts.
    fn release_tickets(&mut self) {
        self.handle(Input::Admit(Admission::Nothing));
        while let Some(ticket) = self.tickets.pop_front() {
            self.give_up(&ticket);
            self.handle(Input::Released(ticket));
        }
    }

    /// Looks at the breaker again if it may have changed.
    fn heed_breaker(&mut self) {
        if self.breaker_changes.has_changed().unwrap_or(false) {
            self.breaker_changes.mark_unchanged();
            self.admit();
        }
    }

    /// Lets through what the operator and the breaker let through.
    fn admit(&mut self) {
        if self.paused() {
            return self.release_tickets();
        }
        let now = self.shared.clock.now();
        let phase = self.shared.breaker.phase(now);
        if phase != Phase::Closed && !self.tickets.iter().any(Ticket::is_trial) {
            // What was let through before must wait, too.
            self.release_tickets();
        }
        let admission = match phase {
            Phase::Closed => Admission::All,
            Phase::Open { .. } => Admission::Nothing,
            Phase::HalfOpen if self.tickets.is_empty() && self.dispatcher.has_ready() => {
                if self.shared.breaker.try_one(now) { Admission::One } else { Admission::Nothing }
            }
            Phase::HalfOpen => Admission::Nothing,
        };
        self.handle_at(now, Input::Admit(admission));
        if admission == Admission::One && !self.tickets.iter().any(Ticket::is_trial) {
            // What was ready needed no attempt, such as a duplicate: another worker may try.
            self.handle_at(now, Input::Admit(Admission::Nothing));
            self.shared.breaker.release();
        }
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let breaker = match self.shared.breaker.phase(self.shared.clock.now()) {
            Phase::Open { until } => Some(until),
            Phase::Closed | Phase::HalfOpen => None,
        };
        [self.dispatcher.next_deadline(), breaker].into_iter().flatten().min()
    }
}

async fn due(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn fetch<P: Partition>(partition: &mut P, wants: Option<Wants>) -> Result<Fetched, FetchError> {
    let Some(wants) = wants else { return std::future::pending().await };
    let wanted = Wanted {
        source: Some(wants.source),
        redrive: Some(wants.redrive),
        max_records: wants.max_records,
        max_bytes: limits::FETCH_MAX_BYTES,
    };
    partition.fetch(wanted).await
}
