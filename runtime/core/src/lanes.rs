//! Lanes: queues of events that must be handled one after the other. A failing head holds up only its own lane.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::outcome::Failure;
use crate::policy::Ordering;
use crate::progress::{KeyHash, ParkedHead, Position};
use crate::retry::Attempts;
use crate::time::Timestamp;

/// Identifies a lane within its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(u64);

/// Lanes of single events are numbered with this bit set, so that they never meet a hashed key.
const SINGLE: u64 = 1 << 63;

impl LaneId {
    /// The lane of an ordering key, or none if the event needs one of its own. Two keys whose 63-bit hashes collide share
    /// a lane, which costs speed and never order.
    #[must_use]
    pub fn of(ordering: Ordering, key: Option<&[u8]>) -> Option<Self> {
        match (ordering, key) {
            (Ordering::Partition, _) => Some(Self(0)),
            (Ordering::Key, Some(key)) => {
                // SipHash with fixed keys: the same lane on every run.
                #[expect(deprecated, reason = "the hasher with keys fixed for ever; the default one may change")]
                let mut hasher = std::hash::SipHasher::new();
                hasher.write(key);
                Some(Self(hasher.finish() & !SINGLE))
            }
            (Ordering::Key, None) | (Ordering::None, _) => None,
        }
    }

    /// A number that is the same for events of one lane; distinguishes keys for the breaker.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Lane ids are hashes or counters already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoHash(u64);

impl Hasher for NoHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        // Spreads counters over the table; hashes do not suffer from it.
        self.0 = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u128(&mut self, value: u128) {
        let [low, high] = [value & u128::from(u64::MAX), value >> 64];
        self.write_u64(u64::try_from(low ^ high).unwrap_or_default());
    }
}

pub(crate) type BuildNoHash = BuildHasherDefault<NoHash>;

/// What is carried along with each event.
pub trait Payload {
    /// Bytes of memory that it needs of its own; always the same.
    fn size_bytes(&self) -> usize;

    /// It may stay for long: from now on it keeps little memory alive beyond its own.
    fn detach(&mut self);
}

/// One event that waits in a lane.
#[derive(Clone, Debug)]
pub(crate) struct Slot<T> {
    pub(crate) position: Position,
    pub(crate) key: KeyHash,
    pub(crate) payload: T,
    /// Boxed, because few have one and all are moved around.
    pub(crate) history: Option<Box<History>>,
}

/// What is known of an event that failed.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) attempts: Attempts,
    pub(crate) last: Failure,
    pub(crate) due_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a queue of those that are ready.
    Ready,
    /// Its head is being handled.
    Busy,
    /// Its head waits for another attempt.
    Parked,
    /// Its head waits for another event with the same idempotency key.
    Blocked,
}

#[derive(Debug)]
struct Lane<T> {
    /// Absent while the lane is busy.
    head: Option<Slot<T>>,
    rest: VecDeque<Slot<T>>,
    /// Of all its events.
    bytes: usize,
    state: State,
    /// The head failed before, or waits for another that did: the lane counts as held back.
    held: bool,
}

impl<T: Payload> Lane<T> {
    fn len(&self) -> usize {
        1 + self.rest.len()
    }

    /// Nothing in it is handled soon.
    fn detach(&mut self) {
        self.head.iter_mut().chain(&mut self.rest).for_each(|slot| slot.payload.detach());
    }
}

const NO_LANE: &str = "a lane exists as long as an event is in it";

/// All lanes of a unit. A lane exists as long as an event is in it.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: HashMap<LaneId, Lane<T>, BuildNoHash>,
    /// Lanes whose head was not attempted yet.
    ready: VecDeque<LaneId>,
    /// Lanes whose head is due for another attempt.
    again: VecDeque<LaneId>,
    /// The last head that was taken was one of those.
    took_again: bool,
    due: BTreeSet<(Timestamp, LaneId)>,
    /// Parked lanes by age of their head's first failure.
    oldest: BTreeMap<(Timestamp, Position), LaneId>,
    /// Every head that failed and is not settled, whatever its lane waits for.
    failed: BTreeMap<Position, ParkedHead>,
    singles: u64,
    queued: Load,
    held: Load,
}

/// Events with their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Load {
    fn add(&mut self, events: usize, bytes: usize) {
        self.events += events;
        self.bytes += bytes;
    }

    fn remove(&mut self, events: usize, bytes: usize) {
        self.events -= events;
        self.bytes -= bytes;
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            lanes: HashMap::default(),
            ready: VecDeque::new(),
            again: VecDeque::new(),
            took_again: false,
            due: BTreeSet::new(),
            oldest: BTreeMap::new(),
            failed: BTreeMap::new(),
            singles: 0,
            queued: Load::default(),
            held: Load::default(),
        }
    }
}

impl<T> Lanes<T> {
    /// Events in lanes whose head failed, or waits for one that did.
    pub(crate) fn held(&self) -> Load {
        self.held
    }

    /// Events in the other lanes, those being handled included.
    pub(crate) fn moving(&self) -> Load {
        Load { events: self.queued.events - self.held.events, bytes: self.queued.bytes - self.held.bytes }
    }
}

impl<T: Payload> Lanes<T> {
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.again.is_empty()
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// All failed heads by position: what a commit must remember.
    pub(crate) fn failed_heads(&self) -> Vec<ParkedHead> {
        self.failed.values().cloned().collect()
    }

    /// Puts an event at the end of its lane, and says whether it is the head there.
    pub(crate) fn push(&mut self, lane: Option<LaneId>, mut slot: Slot<T>) -> bool {
        let bytes = slot.payload.size_bytes();
        self.queued.add(1, bytes);
        let id = lane.unwrap_or_else(|| {
            self.singles += 1;
            LaneId(SINGLE | self.singles)
        });
        let lane = match self.lanes.entry(id) {
            Entry::Vacant(entry) => {
                let lane = Lane { head: None, rest: VecDeque::new(), bytes, state: State::Ready, held: false };
                if slot.history.is_none() {
                    entry.insert(Lane { head: Some(slot), ..lane });
                    self.ready.push_back(id);
                } else {
                    entry.insert(lane);
                    self.set_head(id, slot);
                }
                return true;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        lane.bytes += bytes;
        if lane.held {
            self.held.add(1, bytes);
            slot.payload.detach();
        }
        if let Some(history) = &slot.history {
            // Only what was a head when it was committed has a history, and after a restart it comes back first; a
            // collision of lanes can put it behind another, where it keeps its attempts all the same.
            self.failed.insert(slot.position, parked_head(slot.position, history));
        }
        lane.rest.push_back(slot);
        false
    }

    /// Takes the head of the lane that has been ready longest; new ones and those that failed before in turns, so that many
    /// failing keys, each attempt of which may take long, do not keep the others waiting.
    pub(crate) fn take_ready(&mut self) -> Option<(LaneId, Slot<T>)> {
        self.took_again = !self.again.is_empty() && (self.ready.is_empty() || !self.took_again);
        let id = if self.took_again { self.again.pop_front() } else { self.ready.pop_front() }?;
        let lane = self.lane(id);
        assert_eq!(lane.state, State::Ready, "a lane in the ready queue is ready");
        lane.state = State::Busy;
        let slot = lane.head.take().expect("a lane that is not busy has a head");
        Some((id, slot))
    }

    /// Gives a taken head back untouched, to be taken again before all others of its kind.
    pub(crate) fn put_back(&mut self, id: LaneId, slot: Slot<T>) {
        let failed_before = slot.history.is_some();
        let lane = self.busy_lane(id);
        lane.head = Some(slot);
        lane.state = State::Ready;
        if failed_before { self.again.push_front(id) } else { self.ready.push_front(id) }
    }

    /// Gives a taken head back until [`Lanes::unblock`]. It may wait as long as one that failed, so it counts as held back:
    /// what waits behind one failing event must not use up the room for all others.
    pub(crate) fn block(&mut self, id: LaneId, slot: Slot<T>) {
        let lane = self.busy_lane(id);
        lane.head = Some(slot);
        lane.state = State::Blocked;
        self.hold(id);
    }

    /// Makes a blocked lane ready.
    pub(crate) fn unblock(&mut self, id: LaneId) {
        let lane = self.lane(id);
        assert_eq!(lane.state, State::Blocked, "only a blocked lane is unblocked");
        lane.state = State::Ready;
        if lane.head.as_ref().is_some_and(|head| head.history.is_none()) {
            lane.held = false;
            let (events, bytes) = (lane.len(), lane.bytes);
            self.held.remove(events, bytes);
            self.ready.push_back(id);
        } else {
            self.again.push_back(id);
        }
    }

    /// Gives a taken head that failed back until it is due.
    pub(crate) fn park(&mut self, id: LaneId, mut slot: Slot<T>, history: History) {
        self.busy_lane(id);
        slot.history = Some(Box::new(history));
        self.set_head(id, slot);
    }

    /// Ends a taken head; its lane goes on with the next event.
    pub(crate) fn finish(&mut self, id: LaneId, slot: &Slot<T>) {
        self.settle_head(id, slot, State::Busy);
    }

    /// Makes lanes ready whose time has come.
    pub(crate) fn unpark_due(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.unpark(id);
            let lane = self.lane(id);
            lane.state = State::Ready;
            self.again.push_back(id);
        }
    }

    /// Takes the head that has been parked longest, for good; its lane goes on.
    pub(crate) fn give_up_oldest(&mut self) -> Option<Slot<T>> {
        let id = *self.oldest.first_key_value()?.1;
        self.unpark(id);
        let slot = self.lane(id).head.take().expect("a parked lane has a head");
        self.settle_head(id, &slot, State::Parked);
        Some(slot)
    }

    /// Installs a head, parked if it failed before and ready otherwise.
    fn set_head(&mut self, id: LaneId, slot: Slot<T>) {
        let parked = slot.history.as_ref().map(|history| {
            self.failed.insert(slot.position, parked_head(slot.position, history));
            (history.due_at, (history.attempts.first_failed_at, slot.position))
        });
        let lane = self.lane(id);
        lane.head = Some(slot);
        lane.state = if parked.is_some() { State::Parked } else { State::Ready };
        match parked {
            Some((due_at, age)) => {
                self.hold(id);
                self.due.insert((due_at, id));
                self.oldest.insert(age, id);
            }
            None => self.ready.push_back(id),
        }
    }

    /// Counts a lane as held back: nothing in it is handled soon.
    fn hold(&mut self, id: LaneId) {
        let lane = self.lane(id);
        if lane.held {
            return;
        }
        lane.held = true;
        lane.detach();
        let (events, bytes) = (lane.len(), lane.bytes);
        self.held.add(events, bytes);
    }

    /// Accounts for a head that was taken for good, and installs the next one or removes the lane, which was in this state.
    fn settle_head(&mut self, id: LaneId, head: &Slot<T>, state: State) {
        let bytes = head.payload.size_bytes();
        self.queued.remove(1, bytes);
        if head.history.is_some() {
            self.failed.remove(&head.position);
        }
        let Entry::Occupied(mut entry) = self.lanes.entry(id) else { panic!("{NO_LANE}") };
        let lane = entry.get_mut();
        assert_eq!(lane.state, state, "a head is taken from its lane before it is settled");
        if lane.held {
            self.held.remove(lane.len(), lane.bytes);
        }
        match lane.rest.pop_front() {
            None => drop(entry.remove()),
            Some(next) => {
                lane.held = false;
                lane.bytes -= bytes;
                self.set_head(id, next);
            }
        }
    }

    /// Takes a parked lane out of the timers.
    fn unpark(&mut self, id: LaneId) {
        let lane = self.lane(id);
        assert_eq!(lane.state, State::Parked, "only a parked lane is in the timers");
        let slot = lane.head.as_ref().expect("a parked lane has a head");
        let history = slot.history.as_ref().expect("a parked head has a history");
        let (due_at, age) = (history.due_at, (history.attempts.first_failed_at, slot.position));
        assert!(self.due.remove(&(due_at, id)), "a parked lane is among those due");
        assert_eq!(self.oldest.remove(&age), Some(id), "a parked lane has an age");
    }

    fn lane(&mut self, id: LaneId) -> &mut Lane<T> {
        self.lanes.get_mut(&id).expect(NO_LANE)
    }

    fn busy_lane(&mut self, id: LaneId) -> &mut Lane<T> {
        let lane = self.lane(id);
        assert_eq!(lane.state, State::Busy, "only a taken head is given back");
        lane
    }
}

fn parked_head(position: Position, history: &History) -> ParkedHead {
    ParkedHead {
        position,
        attempts: history.attempts.failed,
        first_failed_at: history.attempts.first_failed_at,
        due_at: history.due_at,
        category: history.last.category,
    }
}
