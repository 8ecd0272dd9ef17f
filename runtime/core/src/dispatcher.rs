//! What happens next to the events of one unit of ownership: a pure state machine.
//!
//! It never acts. [`Dispatcher::handle`] takes what happened and answers with what must be done; the worker does it. A
//! commit is a pair: [`Dispatcher::seal`] says what it must contain, and [`Input::Committed`] that it is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use crate::idempotency::Window;
pub use crate::lanes::Payload;
use crate::lanes::{BuildNoHash, History, LaneId, Lanes, Load, Slot};
use crate::limits;
use crate::offsets::Offsets;
use crate::outcome::{Category, Failure, Outcome};
use crate::policy::{Overflow, ParkedPolicy, RetryPolicy};
use crate::progress::{KeyHash, ParkedHead, Position, Progress, Reset, Stream, Totals};
use crate::retry::{Attempts, Jitter, next_attempt};
use crate::time::Timestamp;
use crate::units::Size;
use isolation::Isolation;

mod isolation;
mod reset;

/// What a function's manifest decides about dispatching.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// When a failed event is attempted again.
    pub retry: RetryPolicy,
    /// How much is held back behind failing keys.
    pub parked: ParkedPolicy,
    /// Invocations of the unit at the same time, at least 1.
    pub concurrency: usize,
}

/// Something happened.
#[derive(Debug)]
pub enum Input<T> {
    /// Records came. `next` is the offset to go on from; an offset from the wanted one up to it that is not among the
    /// arrivals is not a record.
    Delivered {
        /// The log they came from.
        stream: Stream,
        /// In ascending order.
        arrivals: Vec<Arrival<T>>,
        /// One past the last offset looked at.
        next: u64,
    },
    /// An operator skips what was removed before it could be read.
    Gone {
        /// The log.
        stream: Stream,
        /// The oldest offset there is.
        earliest: u64,
    },
    /// An attempt ended.
    Finished(Ticket<T>, Outcome),
    /// The host could not make the attempt; it does not count.
    Released(Ticket<T>),
    /// The sealed commit is durable.
    Committed,
    /// Nothing happened but time.
    Tick,
    /// The breaker or an operator decided what may be invoked.
    Admit(Admission),
}

/// A record on its way in.
#[derive(Clone, Debug)]
pub struct Arrival<T> {
    /// Its offset.
    pub offset: u64,
    /// What it is.
    pub content: Content<T>,
}

/// What a record turned out to be.
#[derive(Clone, Debug)]
pub enum Content<T> {
    /// An event to handle.
    Event {
        /// Carried along and given back.
        payload: T,
        /// Its lane, or none for one of its own.
        lane: Option<LaneId>,
        /// Its idempotency key.
        key: KeyHash,
    },
    /// The filter says no.
    Filtered {
        /// Given back, if there is one: whoever redrove a dead letter is to hear what became of it.
        payload: Option<T>,
    },
    /// It cannot be decoded, or an expression over it failed.
    Refused {
        /// Carried along and given back.
        payload: T,
        /// Why.
        failure: Failure,
    },
}

/// What may be invoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Everything.
    All,
    /// One event, as a trial.
    One,
    /// Nothing: the source waits.
    Nothing,
}

/// The right and the duty to make one attempt: it is given back exactly once.
#[derive(Debug)]
pub struct Ticket<T> {
    slot: Slot<T>,
    lane: LaneId,
    trial: bool,
}

impl<T> Ticket<T> {
    /// What was delivered.
    pub fn payload(&self) -> &T {
        &self.slot.payload
    }

    /// Where it was delivered from.
    #[must_use]
    pub fn position(&self) -> Position {
        self.slot.position
    }

    /// 1 for the first attempt.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        1 + self.slot.history.as_ref().map_or(0, |h| h.attempts.failed)
    }

    /// Whether a half-open breaker waits for the result.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.trial
    }

    /// The same number for events of one lane.
    #[must_use]
    pub fn lane(&self) -> LaneId {
        self.lane
    }
}

/// Something must be done.
#[derive(Debug)]
pub enum Effect<T> {
    /// Make one attempt, and answer with [`Input::Finished`] or [`Input::Released`].
    Invoke(Ticket<T>),
    /// This settlement joins the next commit.
    Settle(Settled<T>),
}

/// A record that is done with.
#[derive(Debug)]
pub struct Settled<T> {
    /// Where it was delivered from.
    pub position: Position,
    /// What was delivered; none if it was filtered, unless it was redriven.
    pub payload: Option<T>,
    /// How it was settled.
    pub settlement: Settlement,
}

/// How a record was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Its effects join the commit.
    Completed,
    /// The filter said no.
    Filtered,
    /// Its key was known.
    Duplicate,
    /// It becomes a dead letter.
    DeadLettered(DeadLetter),
}

/// Why and when an event became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The last failure.
    pub failure: Failure,
    /// Failed attempts; zero if it was never attempted.
    pub attempts: u32,
    /// When the first attempt failed, or it was refused.
    pub first_failed_at: Timestamp,
    /// When the last attempt failed, or it was refused.
    pub last_failed_at: Timestamp,
}

/// What the next commit must contain, beside the effects of the settlements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Progress after the commit.
    pub progress: Progress,
    /// Keys of the events that completed since the last seal.
    pub keys: Vec<KeyHash>,
    /// Settlements since the last seal.
    pub settlements: usize,
}

/// Which records are wanted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// From this offset of the source on.
    pub source: u64,
    /// From this offset of the redrive log on.
    pub redrive: u64,
    /// At most this many, at least 1.
    pub max_records: usize,
}

/// The state machine of one unit. `T` is whatever the worker wants to have back with each event.
pub struct Dispatcher<T> {
    policy: Policy,
    jitter: Jitter,
    window: Window,
    admission: Admission,
    committed: Progress,
    /// The last reset, whether or not it is committed.
    reset: Reset,
    source: Log,
    redrive: Log,
    lanes: Lanes<T>,
    in_flight: usize,
    /// Keys that the window does not know yet, and what is known of them here.
    claims: HashMap<KeyHash, Claim, BuildNoHash>,
    /// Lanes whose head waits for the event that holds the same key.
    blocked: HashMap<KeyHash, Vec<LaneId>, BuildNoHash>,
    group: Group,
    sealed: Option<(Timestamp, Sealed, Option<Last>)>,
    isolation: Isolation,
}

/// What is known of an idempotency key before a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The event there was attempted and is not settled: it goes ahead of others with the key.
    Held(Position),
    /// An event completed; its commit is not durable.
    Completed,
}

/// One of the unit's two logs.
#[derive(Debug)]
struct Log {
    offsets: Offsets,
    /// The next offset that has not been delivered.
    cursor: u64,
}

/// What has happened since the last seal.
#[derive(Debug, Default)]
struct Group {
    keys: Vec<KeyHash>,
    settlements: usize,
    last: Option<Last>,
    /// Something happened that a restart must not forget.
    dirty: bool,
}

/// What was settled last.
#[derive(Clone, Copy, Debug)]
struct Last {
    position: Position,
    /// As a dead letter: there is nothing left to make of it.
    is_letter: bool,
}

impl<T: Payload> Dispatcher<T> {
    /// Goes on from what was committed. `seed` is for jitter only.
    ///
    /// # Panics
    /// If the progress breaks its invariants.
    #[must_use]
    pub fn new(policy: Policy, committed: Progress, window: Window, seed: u64) -> Self {
        assert!(policy.concurrency >= 1, "a unit must be able to run one invocation");
        Self {
            policy,
            jitter: Jitter::seeded(seed),
            window,
            admission: Admission::All,
            source: Log::restore(&committed.source),
            redrive: Log::restore(&committed.redrive),
            reset: committed.reset,
            committed,
            lanes: Lanes::default(),
            in_flight: 0,
            claims: HashMap::default(),
            blocked: HashMap::default(),
            group: Group::default(),
            sealed: None,
            isolation: Isolation::default(),
        }
    }

    /// Takes what happened, and appends what must be done.
    ///
    /// # Panics
    /// If an input cannot be true, such as a commit that was not sealed: that is a bug of the caller.
    pub fn handle(&mut self, now: Timestamp, input: Input<T>, effects: &mut Vec<Effect<T>>) {
        match input {
            Input::Delivered { stream, arrivals, next } => self.delivered(now, stream, arrivals, next, effects),
            Input::Gone { stream, earliest } => {
                self.pass_to(stream, earliest, |totals, passed| totals.skipped += passed);
            }
            Input::Finished(ticket, outcome) => self.finished(now, ticket, outcome, effects),
            Input::Released(ticket) => self.released(ticket),
            Input::Committed => self.committed(now),
            Input::Tick => {}
            Input::Admit(admission) => self.admission = admission,
        }
        self.lanes.unpark_due(now);
        self.enforce_parked_limit(now, effects);
        self.start(now, effects);
    }

    /// The earliest instant at which a [`Input::Tick`] changes anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.lanes.next_due()
    }

    /// Which records to fetch, or none while enough wait.
    #[must_use]
    pub fn wants(&self) -> Option<Wants> {
        let parked = &self.policy.parked;
        let held = self.lanes.held();
        let waits_for_lanes = parked.overflow == Overflow::Pause
            && (held.events >= parked.limit || held.bytes >= limits::PARKED_MAX_BYTES);
        let Load { events: moving, bytes: moving_bytes } = self.lanes.moving();
        let full = moving >= limits::QUEUED_MAX_RECORDS || moving_bytes >= limits::QUEUED_MAX_BYTES;
        if self.isolation.stuck.is_some() || waits_for_lanes || full {
            return None;
        }
        if let Some(bound) = self.isolation.bound() {
            let room = bound.saturating_sub(moving + self.group.settlements);
            return (room > 0 && self.sealed.is_none()).then(|| self.wants_up_to(room.min(limits::FETCH_MAX_RECORDS)));
        }
        Some(self.wants_up_to((limits::QUEUED_MAX_RECORDS - moving).min(limits::FETCH_MAX_RECORDS)))
    }

    /// Whether a commit has something to say.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.group.dirty
    }

    /// Settlements since the last seal.
    #[must_use]
    pub fn settlements(&self) -> usize {
        self.group.settlements
    }

    /// Whether an event waits only to be admitted.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.lanes.has_ready() && self.is_free()
    }

    /// Attempts being made.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Records held back behind failing keys, the failing ones included.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.lanes.held().events
    }

    /// How many records that are not settled lie between those delivered and the oldest offset that there is.
    #[must_use]
    pub fn missing(&self, stream: Stream, earliest: u64) -> u64 {
        let log = match stream {
            Stream::Source => &self.source,
            Stream::Redrive => &self.redrive,
        };
        log.offsets.clone().settle_rest(log.cursor..earliest)
    }

    /// Why the partition waits for an operator, if it does: the log refused even the dead letter.
    #[must_use]
    pub fn stuck(&self) -> Option<(Position, &Failure)> {
        self.isolation.stuck.as_ref().map(|(position, failure)| (*position, failure))
    }

    /// The idempotency keys that are known.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Progress as it was last committed.
    #[must_use]
    pub fn last_committed(&self) -> &Progress {
        &self.committed
    }

    /// Closes the group of settlements: what the commit that is now begun must contain.
    ///
    /// # Panics
    /// If another commit is under way.
    pub fn seal(&mut self, now: Timestamp) -> Sealed {
        assert!(self.sealed.is_none(), "one commit at a time");
        let group = std::mem::take(&mut self.group);
        let sealed = Sealed {
            progress: Progress {
                source: self.source.offsets.progress(),
                redrive: self.redrive.offsets.progress(),
                parked: self.parked_heads(),
                commits: self.committed.commits + 1,
                reset: self.reset,
            },
            keys: group.keys,
            settlements: group.settlements,
        };
        self.sealed = Some((now, sealed.clone(), group.last));
        sealed
    }

    /// Drops everything that is not committed and goes on from the last commit, as after a restart. Tickets that are out
    /// must be dropped.
    pub fn abort(&mut self) {
        self.source = Log::restore(&self.committed.source);
        self.redrive = Log::restore(&self.committed.redrive);
        self.reset = self.committed.reset;
        self.lanes = Lanes::default();
        self.in_flight = 0;
        self.claims.clear();
        self.blocked.clear();
        self.group = Group::default();
        self.sealed = None;
    }

    /// The log refused the sealed commit for its content. As [`Dispatcher::abort`], and half as many settlements are then
    /// committed at once; one that is refused alone fails with this category and the log's reason. If that is transient, the log
    /// may take it later: its next attempt is a real one.
    ///
    /// # Panics
    /// If no commit is under way.
    pub fn refuse(&mut self, category: Category, reason: &str) {
        let (_, sealed, last) = self.sealed.take().expect("only a sealed commit is refused");
        if let Some(Last { position, is_letter }) = last
            && sealed.settlements == 1
        {
            let failure = Failure::new(category, format!("the log refused it: {reason}"));
            if is_letter {
                self.isolation.stuck = Some((position, failure));
            } else {
                self.isolation.blamed.insert(position, failure);
            }
        }
        self.halve(sealed.settlements);
    }

    /// The log could not take the sealed commit now, whatever is in it: it cannot be asked, or was too slow for so much. As
    /// [`Dispatcher::abort`], and half as many settlements are then committed at once.
    ///
    /// # Panics
    /// If no commit is under way.
    pub fn postpone(&mut self) {
        let (_, sealed, _) = self.sealed.take().expect("only a sealed commit is postponed");
        self.halve(sealed.settlements);
    }

    /// Commits half as much at once until what was done is done again.
    fn halve(&mut self, settlements: usize) {
        // Whatever was settled but not sealed is done again too.
        self.isolation.halve(settlements, self.group.settlements);
        self.abort();
    }

    fn delivered(
        &mut self,
        now: Timestamp,
        stream: Stream,
        arrivals: Vec<Arrival<T>>,
        next: u64,
        effects: &mut Vec<Effect<T>>,
    ) {
        for Arrival { offset, content } in arrivals {
            if self.advance(stream, offset) {
                self.arrived(now, Position { stream, offset }, content, effects);
            }
        }
        self.skip_to(stream, next);
    }

    /// Moves the cursor past a record; whether it has to be handled.
    fn advance(&mut self, stream: Stream, offset: u64) -> bool {
        let log = self.log(stream);
        if offset < log.cursor {
            return false;
        }
        self.skip_to(stream, offset);
        let log = self.log(stream);
        log.cursor = offset + 1;
        !log.offsets.is_settled(offset)
    }

    /// Moves the cursor to an offset: what lies between was not a record, or is settled.
    fn skip_to(&mut self, stream: Stream, offset: u64) {
        self.pass_to(stream, offset, |totals, passed| totals.not_a_record += passed);
    }

    /// Moves the cursor to an offset, and counts what lies between and is not settled.
    fn pass_to(&mut self, stream: Stream, offset: u64, count: impl FnOnce(&mut Totals, u64)) {
        let log = self.log(stream);
        if offset <= log.cursor {
            return;
        }
        let passed = log.offsets.settle_rest(log.cursor..offset);
        count(log.offsets.totals_mut(), passed);
        log.cursor = offset;
        self.group.dirty |= passed > 0;
    }

    fn arrived(&mut self, now: Timestamp, position: Position, content: Content<T>, effects: &mut Vec<Effect<T>>) {
        match content {
            Content::Event { payload, lane, key } => {
                let history = self.remembered(position);
                let failed_before = history.is_some();
                let is_head = self.lanes.push(lane, Slot { position, key, payload, history });
                // One that is behind another in its lane must not go ahead of it: both would wait for ever.
                if failed_before && is_head {
                    self.claims.entry(key).or_insert(Claim::Held(position));
                }
            }
            Content::Filtered { payload } => self.settle(position, payload, Settlement::Filtered, effects),
            Content::Refused { payload, failure } => {
                let letter = DeadLetter { failure, attempts: 0, first_failed_at: now, last_failed_at: now };
                self.settle(position, Some(payload), Settlement::DeadLettered(letter), effects);
            }
        }
    }

    /// What a commit told of the event at this position.
    fn remembered(&self, position: Position) -> Option<Box<History>> {
        let at = self.committed.parked.binary_search_by_key(&position, |head| head.position).ok()?;
        let head = self.committed.parked.get(at)?;
        Some(Box::new(History {
            attempts: Attempts { failed: head.attempts, first_failed_at: head.first_failed_at },
            last: Failure::new(head.category, "it failed before a restart"),
            due_at: head.due_at,
        }))
    }

    fn finished(&mut self, now: Timestamp, ticket: Ticket<T>, outcome: Outcome, effects: &mut Vec<Effect<T>>) {
        self.in_flight -= 1;
        let Ticket { slot, lane, .. } = ticket;
        match outcome {
            Outcome::Completed => {
                let claim = self.claims.insert(slot.key, Claim::Completed);
                assert_eq!(claim, Some(Claim::Held(slot.position)), "whoever is attempted holds its key");
                self.group.keys.push(slot.key);
                self.lanes.finish(lane, &slot);
                self.wake(slot.key);
                self.settle(slot.position, Some(slot.payload), Settlement::Completed, effects);
            }
            Outcome::Failed(failure) => self.failed(now, lane, slot, failure, effects),
        }
    }

    fn failed(&mut self, now: Timestamp, lane: LaneId, slot: Slot<T>, failure: Failure, effects: &mut Vec<Effect<T>>) {
        let attempts = match slot.history.as_deref() {
            Some(History { attempts, .. }) => Attempts { failed: attempts.failed + 1, ..*attempts },
            None => Attempts { failed: 1, first_failed_at: now },
        };
        match next_attempt(&self.policy.retry, attempts, &failure, now, &mut self.jitter) {
            Some(due_at) => {
                self.lanes.park(lane, slot, History { attempts, last: failure, due_at });
                self.group.dirty = true;
            }
            None => {
                let letter = DeadLetter {
                    failure,
                    attempts: attempts.failed,
                    first_failed_at: attempts.first_failed_at,
                    last_failed_at: now,
                };
                self.lanes.finish(lane, &slot);
                self.unblock(slot.key, slot.position);
                self.settle(slot.position, Some(slot.payload), Settlement::DeadLettered(letter), effects);
            }
        }
    }

    fn released(&mut self, ticket: Ticket<T>) {
        self.in_flight -= 1;
        if ticket.slot.history.is_none() {
            self.unblock(ticket.slot.key, ticket.slot.position);
        }
        self.lanes.put_back(ticket.lane, ticket.slot);
    }

    fn committed(&mut self, now: Timestamp) {
        let (at, sealed, _) = self.sealed.take().expect("only a sealed commit is committed");
        for key in &sealed.keys {
            self.claims.remove(key);
        }
        self.isolation.committed(sealed.settlements);
        if sealed.progress.reset.forgot_in == sealed.progress.commits {
            self.window.clear();
        }
        self.window.insert(at, sealed.keys);
        self.window.expire(now);
        self.committed = sealed.progress;
        if !self.isolation.blamed.is_empty() {
            let (source, redrive) = (&self.source.offsets, &self.redrive.offsets);
            self.isolation.blamed.retain(|position, _| match position.stream {
                Stream::Source => !source.is_settled(position.offset),
                Stream::Redrive => !redrive.is_settled(position.offset),
            });
        }
    }

    /// The oldest parked heads make room until the bound holds.
    fn enforce_parked_limit(&mut self, now: Timestamp, effects: &mut Vec<Effect<T>>) {
        let ParkedPolicy { limit, overflow } = self.policy.parked;
        if overflow == Overflow::Pause {
            return;
        }
        loop {
            let held = self.lanes.held();
            let bound = if held.events > limit {
                format!("more than {limit} records")
            } else if held.bytes > limits::PARKED_MAX_BYTES {
                format!("more than {}", Size(limits::PARKED_MAX_BYTES as u64))
            } else {
                return;
            };
            let Some(slot) = self.lanes.give_up_oldest() else { return };
            let history = slot.history.expect("a parked head has a history");
            let failure = Failure::new(
                history.last.category,
                format!("parked-limit: {bound} waited behind failing keys; {}", history.last.reason),
            );
            let letter = DeadLetter {
                failure,
                attempts: history.attempts.failed,
                first_failed_at: history.attempts.first_failed_at,
                last_failed_at: now,
            };
            self.unblock(slot.key, slot.position);
            self.settle(slot.position, Some(slot.payload), Settlement::DeadLettered(letter), effects);
        }
    }

    /// Starts what may be started.
    fn start(&mut self, now: Timestamp, effects: &mut Vec<Effect<T>>) {
        while self.may_start() {
            let Some((lane, slot)) = self.lanes.take_ready() else { return };
            let claim = self.claim(slot.key, slot.position, now);
            if claim == Claim::Completed {
                self.lanes.finish(lane, &slot);
                self.unblock(slot.key, slot.position);
                self.settle(slot.position, Some(slot.payload), Settlement::Duplicate, effects);
            } else if claim != Claim::Held(slot.position) {
                self.blocked.entry(slot.key).or_default().push(lane);
                self.lanes.block(lane, slot);
            } else if let Some(failure) = self.isolation.blame(slot.position) {
                self.failed(now, lane, slot, failure, effects);
            } else {
                let trial = self.admission == Admission::One;
                if trial {
                    self.admission = Admission::Nothing;
                }
                self.in_flight += 1;
                effects.push(Effect::Invoke(Ticket { slot, lane, trial }));
            }
        }
    }

    /// What is known of the key of the event there, which holds the key from now on if nothing is.
    fn claim(&mut self, key: KeyHash, position: Position, now: Timestamp) -> Claim {
        let entry = self.claims.entry(key);
        match entry {
            Entry::Occupied(entry) if *entry.get() != Claim::Held(position) => *entry.get(),
            _ if self.window.contains(key, now) => Claim::Completed,
            entry => *entry.or_insert(Claim::Held(position)),
        }
    }

    fn may_start(&self) -> bool {
        self.admission != Admission::Nothing && self.is_free()
    }

    /// One more event could be attempted, if it is admitted.
    fn is_free(&self) -> bool {
        self.isolation.stuck.is_none()
            && self.in_flight < self.policy.concurrency
            && self
                .isolation
                .bound()
                .is_none_or(|bound| self.sealed.is_none() && self.in_flight + self.group.settlements < bound)
    }

    fn settle(&mut self, position: Position, payload: Option<T>, settlement: Settlement, effects: &mut Vec<Effect<T>>) {
        let log = self.log(position.stream);
        log.offsets.settle(position.offset);
        let is_letter = matches!(settlement, Settlement::DeadLettered(_));
        let totals = log.offsets.totals_mut();
        match settlement {
            Settlement::Completed => totals.completed += 1,
            Settlement::Filtered => totals.filtered += 1,
            Settlement::Duplicate => totals.duplicate += 1,
            Settlement::DeadLettered(_) => totals.dead_lettered += 1,
        }
        self.group.settlements += 1;
        self.group.last = Some(Last { position, is_letter });
        self.group.dirty = true;
        effects.push(Effect::Settle(Settled { position, payload, settlement }));
    }

    /// The event that went ahead with this key is done: those that wait for it look again.
    fn unblock(&mut self, key: KeyHash, position: Position) {
        if self.claims.get(&key) != Some(&Claim::Held(position)) {
            return;
        }
        self.claims.remove(&key);
        self.wake(key);
    }

    /// Those that wait for an event with this key look again.
    fn wake(&mut self, key: KeyHash) {
        if self.blocked.is_empty() {
            return;
        }
        for lane in self.blocked.remove(&key).unwrap_or_default() {
            self.lanes.unblock(lane);
        }
    }

    /// Failed heads in the lanes, and those of the last commit that have not been delivered again yet.
    fn parked_heads(&self) -> Vec<ParkedHead> {
        let undelivered = self.committed.parked.iter().filter(|head| {
            let log = match head.position.stream {
                Stream::Source => &self.source,
                Stream::Redrive => &self.redrive,
            };
            head.position.offset >= log.cursor && !log.offsets.is_settled(head.position.offset)
        });
        let mut heads = self.lanes.failed_heads();
        heads.extend(undelivered.cloned());
        heads.sort_unstable_by_key(|head| head.position);
        heads
    }

    fn wants_up_to(&self, max_records: usize) -> Wants {
        Wants { source: self.source.wanted(), redrive: self.redrive.wanted(), max_records }
    }

    fn log(&mut self, stream: Stream) -> &mut Log {
        match stream {
            Stream::Source => &mut self.source,
            Stream::Redrive => &mut self.redrive,
        }
    }
}

impl Log {
    fn restore(progress: &crate::progress::StreamProgress) -> Self {
        Self { offsets: Offsets::restore(progress), cursor: progress.resume }
    }

    fn wanted(&self) -> u64 {
        self.offsets.next_unsettled(self.cursor)
    }
}

impl<T> fmt::Debug for Dispatcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("source", &self.source)
            .field("redrive", &self.redrive)
            .field("moving", &self.lanes.moving())
            .field("held", &self.lanes.held())
            .field("in_flight", &self.in_flight)
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
