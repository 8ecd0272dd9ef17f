//! What happens to single events, for whoever looks on: some are told in full, all others are counted.
//!
//! Without a reader a feed is an empty `Option`. With one, an event costs a counter and a look at how much room the reader
//! has; what was noted goes to the reader once per commit, so that it tells only of what is durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::dispatcher::{Settled, Settlement, Ticket};
use millrace_core::intake::Delivered;
use millrace_core::name::{FunctionName, Unit};
use millrace_core::outcome::{Category, Outcome};
use millrace_core::progress::{Position, Stream, Totals};
use millrace_core::time::Timestamp;
use tokio::sync::Notify;

use crate::sandbox::{Completion, LogLevel, LogLine};

/// How much of a key is told.
const KEY_MAX_BYTES: usize = 64;
/// How much of a reason or a message is told.
const TEXT_MAX_BYTES: usize = 512;

/// Where workers tell of events. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Feed(Option<Arc<Shared>>);

/// Whoever looks on.
#[derive(Debug)]
pub struct Reader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What may still be told in full, by kind.
    room: [AtomicU32; 3],
    told: Mutex<BTreeMap<FunctionName, Told>>,
    news: Notify,
    logs: Logs,
}

/// Whether a reader wants to know what handlers log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// It does.
    Told,
    /// It does not.
    Dropped,
}

/// What can be told in full, each with room of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Settled,
    Trouble,
    Logged,
}

/// How much may be told in full from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Events that completed, were filtered, or were duplicates.
    pub settled: u32,
    /// Failed attempts and dead letters.
    pub trouble: u32,
    /// Lines that handlers log.
    pub logged: u32,
}

/// What is told of one function.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// In full; of each unit in order.
    pub entries: Vec<Entry>,
    /// Settlements that are not among the entries.
    pub settled: Totals,
    /// Attempts that failed and are not among the entries; the last ones of dead letters are not counted.
    pub failed_attempts: u64,
    /// Lines that were logged and are not among the entries.
    pub log_lines: u64,
    /// All attempts.
    pub attempts: u64,
    /// What these took.
    pub took: Duration,
}

/// One thing that happened to an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// Where the event was first read from: topic, partition and offset.
    pub place: String,
    /// The beginning of its ordering key; empty if it has none, or was filtered.
    pub key: String,
    /// What.
    pub what: What,
}

/// What happened to an event.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Its handler succeeded.
    Completed {
        /// What the attempt took.
        took: Duration,
    },
    /// The filter said no.
    Filtered,
    /// Its idempotency key was known.
    Duplicate,
    /// An attempt failed, and there will be another one.
    Failed {
        /// 1 for the first.
        attempt: u32,
        /// Why.
        category: Category,
        /// The beginning of the reason.
        reason: String,
    },
    /// It became a dead letter.
    DeadLettered {
        /// Failed attempts.
        attempts: u32,
        /// Why.
        category: Category,
        /// The beginning of the reason.
        reason: String,
    },
    /// Its handler logged something.
    Logged {
        /// How important it is.
        level: LogLevel,
        /// What groups messages.
        context: String,
        /// The beginning of the text.
        message: String,
    },
}

impl Feed {
    /// A feed with its reader; nothing is told in full before [`Reader::allow`].
    #[must_use]
    pub fn new(logs: Logs) -> (Self, Reader) {
        let shared = Arc::new(Shared { room: Default::default(), told: Mutex::default(), news: Notify::new(), logs });
        (Self(Some(Arc::clone(&shared))), Reader(shared))
    }
}

impl Reader {
    /// Waits until something was told since this last returned. Cancel safe.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// What was told since the last call.
    #[must_use]
    pub fn take(&self) -> BTreeMap<FunctionName, Told> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Says how much may be told in full until the next call.
    pub fn allow(&self, room: Room) {
        for (kind, room) in [(Kind::Settled, room.settled), (Kind::Trouble, room.trouble), (Kind::Logged, room.logged)]
        {
            self.0.room[kind as usize].store(room, Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// Takes room for one more, if there is any.
    fn has_room(&self, kind: Kind) -> bool {
        let room = &self.room[kind as usize];
        let take = || room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        // Most of the time there is none, and looking costs nothing.
        room.load(Ordering::Relaxed) > 0 && take()
    }

    fn tell(&self, function: &FunctionName, told: Told) {
        let mut all = self.lock();
        match all.get_mut(function) {
            Some(there) => there.merge(told),
            None => drop(all.insert(function.clone(), told)),
        }
        drop(all);
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FunctionName, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Adds what was told later.
    pub fn merge(&mut self, later: Self) {
        let Self { entries, settled, failed_attempts, log_lines, attempts, took } = later;
        self.entries.extend(entries);
        self.settled.completed += settled.completed;
        self.settled.filtered += settled.filtered;
        self.settled.duplicate += settled.duplicate;
        self.settled.dead_lettered += settled.dead_lettered;
        self.failed_attempts += failed_attempts;
        self.log_lines += log_lines;
        self.attempts += attempts;
        self.took += took;
    }

    fn count(&mut self, settlement: &Settlement) {
        match settlement {
            Settlement::Completed => self.settled.completed += 1,
            Settlement::Filtered => self.settled.filtered += 1,
            Settlement::Duplicate => self.settled.duplicate += 1,
            Settlement::DeadLettered(_) => self.settled.dead_lettered += 1,
        }
    }
}

/// What a worker notes for the reader until it is durable.
#[derive(Debug, Default)]
pub(super) struct Notes {
    feed: Feed,
    /// What the attempt that ended last took.
    took: Duration,
    /// That it failed, unless its event turns out to be settled by that.
    failed: Option<Entry>,
    open: Told,
    sealed: Told,
}

impl Notes {
    pub(super) fn new(feed: &Feed) -> Self {
        Self { feed: feed.clone(), ..Self::default() }
    }

    /// Whether somebody looks on.
    pub(super) const fn are_read(&self) -> bool {
        self.feed.0.is_some()
    }

    /// An attempt ended; what becomes of its event is told by [`Notes::settled`] or [`Notes::tried`].
    pub(super) fn attempted(&mut self, now: Timestamp, ticket: &Ticket<Box<Delivered>>, completion: &Completion) {
        let Some(shared) = &self.feed.0 else { return };
        self.open.attempts += 1;
        self.open.took += completion.usage.elapsed;
        self.took = completion.usage.elapsed;
        if shared.logs == Logs::Told {
            for line in &completion.logs {
                if shared.has_room(Kind::Logged) {
                    self.open.entries.push(entry(now, ticket.payload(), logged(line)));
                } else {
                    self.open.log_lines += 1;
                }
            }
        }
        if let Outcome::Failed(failure) = &completion.outcome {
            let (attempt, category, reason) =
                (ticket.attempt(), failure.category, cut(&failure.reason, TEXT_MAX_BYTES));
            self.failed = Some(entry(now, ticket.payload(), What::Failed { attempt, category, reason }));
        }
    }

    /// The attempt that ended last has had its consequences.
    pub(super) fn tried(&mut self) {
        if let (Some(shared), Some(failed)) = (&self.feed.0, self.failed.take()) {
            if shared.has_room(Kind::Trouble) {
                self.open.entries.push(failed);
            } else {
                self.open.failed_attempts += 1;
            }
        }
    }

    /// An event is settled.
    pub(super) fn settled(&mut self, now: Timestamp, unit: &Unit, settled: &Settled<Box<Delivered>>) {
        let Some(shared) = &self.feed.0 else { return };
        let Settled { position, payload, settlement } = settled;
        let (kind, what) = match settlement {
            Settlement::Completed => (Kind::Settled, What::Completed { took: self.took }),
            Settlement::Filtered => (Kind::Settled, What::Filtered),
            Settlement::Duplicate => (Kind::Settled, What::Duplicate),
            Settlement::DeadLettered(dead) => {
                // Its last attempt is told of with it.
                let place = payload.as_ref().map(|delivered| place_of(delivered));
                self.failed.take_if(|failed| Some(&failed.place) == place.as_ref());
                let (category, reason) = (dead.failure.category, cut(&dead.failure.reason, TEXT_MAX_BYTES));
                (Kind::Trouble, What::DeadLettered { attempts: dead.attempts, category, reason })
            }
        };
        if !shared.has_room(kind) {
            return self.open.count(settlement);
        }
        self.open.entries.push(match payload {
            Some(delivered) => entry(now, delivered, what),
            None => Entry { at: now, place: place_read(unit, *position), key: String::new(), what },
        });
    }

    pub(super) fn commit_began(&mut self) {
        self.sealed = std::mem::take(&mut self.open);
    }

    pub(super) fn committed(&mut self, function: &FunctionName) {
        if let Some(shared) = &self.feed.0 {
            shared.tell(function, std::mem::take(&mut self.sealed));
        }
    }

    /// Everything since the last commit happens again.
    pub(super) fn start_again(&mut self) {
        *self = Self::new(&self.feed);
    }
}

fn entry(at: Timestamp, delivered: &Delivered, what: What) -> Entry {
    let key = delivered.key.as_deref().unwrap_or_default();
    let key = String::from_utf8_lossy(&key[..key.len().min(KEY_MAX_BYTES)]).into_owned();
    Entry { at, place: place_of(delivered), key, what }
}

fn place_of(delivered: &Delivered) -> String {
    let origin = &delivered.origin;
    format!("{}/{}/{}", origin.topic, origin.partition, origin.offset)
}

/// Where a record was read from whose content nobody kept.
fn place_read(unit: &Unit, position: Position) -> String {
    let Unit { topic, partition, .. } = unit;
    let redriven = match position.stream {
        Stream::Source => "",
        Stream::Redrive => "redrive of ",
    };
    format!("{redriven}{topic}/{partition}/{}", position.offset)
}

fn logged(line: &LogLine) -> What {
    let LogLine { level, context, message } = line;
    What::Logged { level: *level, context: cut(context, KEY_MAX_BYTES), message: cut(message, TEXT_MAX_BYTES) }
}

fn cut(text: &str, max_bytes: usize) -> String {
    text[..text.floor_char_boundary(max_bytes)].to_owned()
}

#[cfg(test)]
mod tests;
