use std::collections::VecDeque;

use millrace_core::dispatcher::{Arrival, Dispatcher, Effect, Input, Policy};
use millrace_core::idempotency::Window;
use millrace_core::intake::{Intake, Origin};
use millrace_core::outcome::Failure;
use millrace_core::policy::{ParkedPolicy, RetryPolicy};
use millrace_core::progress::Progress;
use millrace_core::record::Record;

use super::*;
use crate::sandbox::Usage;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const ALL: Room = Room { settled: 100, trouble: 100, logged: 100 };

/// A unit without a sandbox and a log.
struct Machine {
    notes: Notes,
    reader: Reader,
    dispatcher: Dispatcher<Box<Delivered>>,
    tickets: VecDeque<Ticket<Box<Delivered>>>,
    unit: Unit,
    now: Timestamp,
}

impl Machine {
    fn new(logs: Logs, room: Room, events: u64) -> Self {
        let (feed, reader) = Feed::new(logs);
        reader.allow(room);
        let unit = Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition: 3 };
        let retry = RetryPolicy { attempts: 2, ..RetryPolicy::default() };
        let policy = Policy { retry, parked: ParkedPolicy::default(), concurrency: 1 };
        let window = Window::new(Duration::from_secs(3600), 100);
        let dispatcher = Dispatcher::new(policy, Progress::default(), window, 1);
        let mut machine =
            Self { notes: Notes::new(&feed), reader, dispatcher, tickets: VecDeque::new(), unit, now: NOW };
        let arrivals = (0..events).map(|offset| Arrival { offset, content: taken(offset) }).collect();
        machine.handle(NOW, Input::Delivered { stream: Stream::Source, arrivals, next: events });
        machine
    }

    fn handle(&mut self, now: Timestamp, input: Input<Box<Delivered>>) {
        let mut effects = Vec::new();
        self.dispatcher.handle(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Invoke(ticket) => self.tickets.push_back(ticket),
                Effect::Settle(settled) => self.notes.settled(now, &self.unit, &settled),
            }
        }
    }

    /// Makes one attempt, so late that every attempt is due.
    fn attempt(&mut self, outcome: Outcome) {
        self.now = self.now + Duration::from_secs(60);
        let now = self.now;
        if self.tickets.is_empty() {
            self.handle(now, Input::Tick);
        }
        let ticket = self.tickets.pop_front().expect("something to attempt");
        let usage = Usage { elapsed: Duration::from_millis(2), memory_bytes: 0 };
        let logs = vec![LogLine { level: LogLevel::Info, context: "pay".to_owned(), message: "paying".to_owned() }];
        let completion =
            Completion { outcome: outcome.clone(), emitted: Vec::new(), state: Default::default(), logs, usage };
        self.notes.attempted(now, &ticket, &completion);
        self.handle(now, Input::Finished(ticket, outcome));
        self.notes.tried();
    }

    fn commit(&mut self) {
        self.notes.commit_began();
        self.notes.committed(&self.unit.function);
    }

    fn told(&self) -> Told {
        self.reader.take().remove(&self.unit.function).unwrap_or_default()
    }
}

fn taken(offset: u64) -> millrace_core::dispatcher::Content<Box<Delivered>> {
    let key = Some(bytes::Bytes::from(format!("key-{offset}-{}", "x".repeat(100))));
    let record = Record { timestamp: NOW, key, value: Some("1".into()), headers: Default::default() };
    let origin = Origin { topic: "orders".parse().unwrap(), partition: 3, offset };
    let intake = Intake { ordering: millrace_core::policy::Ordering::None, filter: None, key: None };
    intake.take(Stream::Source, origin, record)
}

fn failed(category: Category) -> Outcome {
    Outcome::Failed(Failure::new(category, "no"))
}

/// What was told in full, in a word each.
fn words(told: &Told) -> Vec<&'static str> {
    let word = |entry: &Entry| match entry.what {
        What::Completed { .. } => "completed",
        What::Filtered => "filtered",
        What::Duplicate => "duplicate",
        What::Failed { .. } => "failed",
        What::DeadLettered { .. } => "dead-lettered",
        What::Logged { .. } => "logged",
    };
    told.entries.iter().map(word).collect()
}

#[test]
fn the_way_of_each_event_is_told_in_order() {
    let mut machine = Machine::new(Logs::Told, ALL, 3);
    machine.attempt(Outcome::Completed);
    machine.attempt(failed(Category::Rejected));
    machine.attempt(failed(Category::Transient));
    machine.attempt(failed(Category::Transient));
    machine.commit();
    let told = machine.told();
    let expected = ["logged", "completed", "logged", "dead-lettered", "logged", "failed", "logged", "dead-lettered"];
    assert_eq!(words(&told), expected, "{told:#?}");
    let Entry { place, key, what, .. } = &told.entries[1];
    assert_eq!((&**place, what), ("orders/3/0", &What::Completed { took: Duration::from_millis(2) }));
    assert_eq!((key.len(), key.starts_with("key-0-x")), (KEY_MAX_BYTES, true));
    assert_eq!((told.attempts, told.took, told.settled), (4, Duration::from_millis(8), Totals::default()));
}

#[test]
fn what_finds_no_room_is_counted() {
    let room = Room { settled: 1, trouble: 1, logged: 0 };
    let mut machine = Machine::new(Logs::Told, room, 4);
    machine.attempt(Outcome::Completed);
    machine.attempt(Outcome::Completed);
    machine.attempt(failed(Category::Invalid));
    machine.attempt(failed(Category::Transient));
    machine.attempt(failed(Category::Transient));
    machine.commit();
    let told = machine.told();
    assert_eq!(words(&told), ["completed", "dead-lettered"]);
    assert_eq!(told.settled, Totals { completed: 1, dead_lettered: 1, ..Totals::default() });
    assert_eq!((told.failed_attempts, told.log_lines, told.attempts), (1, 5, 5));
}

#[test]
fn only_what_is_durable_is_told_and_only_once() {
    let mut machine = Machine::new(Logs::Dropped, ALL, 2);
    machine.attempt(Outcome::Completed);
    assert_eq!(machine.told(), Told::default(), "nothing is committed");
    machine.notes.commit_began();
    machine.attempt(Outcome::Completed);
    machine.notes.committed(&machine.unit.function);
    assert_eq!(words(&machine.told()), ["completed"], "the other one belongs to the next commit");
    // Aborted: it all happens again.
    machine.notes.commit_began();
    machine.notes.start_again();
    machine.commit();
    assert_eq!(words(&machine.told()), [""; 0]);
}

#[test]
fn where_nobody_looks_on_nothing_is_noted() {
    let (feed, reader) = (Feed::default(), Feed::new(Logs::Told).1);
    let mut machine = Machine { notes: Notes::new(&feed), reader, ..Machine::new(Logs::Told, ALL, 1) };
    assert!(!machine.notes.are_read());
    machine.attempt(failed(Category::Transient));
    assert_eq!((&machine.notes.open, &machine.notes.failed), (&Told::default(), &None));
}
