use std::sync::{Arc, Weak};
use std::time::Duration;

use super::*;
use crate::dispatcher::{Dispatcher, Effect, Input, Policy, Ticket};
use crate::idempotency::Window;
use crate::outcome::Outcome;
use crate::policy::{Overflow, ParkedPolicy, RetryPolicy};
use crate::progress::Progress;
use crate::record::Headers;
use crate::time::Timestamp;

/// The memory of a batch, which tells when nobody needs it any more.
struct Memory(Arc<Vec<u8>>);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Events with these keys and ids, in one batch of 256 KiB.
fn batch(events: &[(&str, &str)]) -> (Vec<Record>, Weak<Vec<u8>>) {
    let mut bytes = vec![0; 256 * 1024];
    let mut spans = Vec::new();
    let mut at = 0;
    for (key, id) in events {
        let attributes = [("ce_specversion", "1.0"), ("ce_id", id), ("ce_source", "/s"), ("ce_type", "t")];
        let headers: Headers = attributes.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
        let parts = [key.as_bytes(), b"value", headers.as_block()];
        spans.push(parts.map(|part| {
            let span = at..at + part.len();
            bytes[span.clone()].copy_from_slice(part);
            at = span.end;
            span
        }));
    }
    let memory = Arc::new(bytes);
    let alive = Arc::downgrade(&memory);
    let batch = Bytes::from_owner(Memory(memory));
    let record = |[key, value, headers]: [std::ops::Range<usize>; 3]| Record {
        timestamp: Timestamp::EPOCH,
        key: Some(batch.slice(key)),
        value: Some(batch.slice(value)),
        headers: Headers::from_block(batch.slice(headers)).unwrap(),
    };
    (spans.into_iter().map(record).collect(), alive)
}

fn intake() -> Intake {
    let key = KeyExpression::compile("event.id").unwrap();
    Intake { ordering: Ordering::Key, filter: Some(Filter::compile("event.id != 'no'").unwrap()), key: Some(key) }
}

fn arrivals(from: u64, records: Vec<Record>) -> Vec<Arrival<Box<Delivered>>> {
    let place = |offset| Origin { topic: "orders".parse().unwrap(), partition: 0, offset };
    let take = |(offset, record)| Arrival { offset, content: intake().take(Stream::Source, place(offset), record) };
    (from..).zip(records).map(take).collect()
}

fn policy(limit: usize, overflow: Overflow) -> Policy {
    let second = Duration::from_secs(1);
    let retry = RetryPolicy { attempts: 9, initial: second, max: second, max_age: Duration::from_secs(3600) };
    Policy { retry, parked: ParkedPolicy { limit, overflow }, concurrency: 1 }
}

struct Machine {
    dispatcher: Dispatcher<Box<Delivered>>,
    tickets: Vec<Ticket<Box<Delivered>>>,
    letters: Vec<String>,
    next: u64,
}

impl Machine {
    fn new(policy: Policy) -> Self {
        let window = Window::new(Duration::from_secs(3600), 1000);
        let dispatcher = Dispatcher::new(policy, Progress::default(), window, 1);
        Self { dispatcher, tickets: Vec::new(), letters: Vec::new(), next: 0 }
    }

    fn input(&mut self, input: Input<Box<Delivered>>) {
        let mut effects = Vec::new();
        self.dispatcher.handle(Timestamp::from_millis(1000), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Invoke(ticket) => self.tickets.push(ticket),
                Effect::Settle(settled) => match settled.settlement {
                    crate::dispatcher::Settlement::DeadLettered(dead) => {
                        self.letters.push(dead.failure.reason.to_string());
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
    }

    fn deliver(&mut self, records: Vec<Record>) {
        let arrivals = arrivals(self.next, records);
        self.next += arrivals.len() as u64;
        self.input(Input::Delivered { stream: Stream::Source, arrivals, next: self.next });
    }

    fn fail(&mut self) {
        let ticket = self.tickets.remove(0);
        self.input(Input::Finished(ticket, Outcome::Failed(Failure::new(Category::Transient, "no"))));
    }
}

#[test]
fn what_is_detached_is_the_same_in_memory_of_its_own() {
    let (records, alive) = batch(&[("k", "1")]);
    let mut arrivals = arrivals(0, records);
    let Content::Event { payload, .. } = &mut arrivals[0].content else { panic!() };
    let before = format!("{:?} {:?} {:?}", payload.record, payload.event, payload.idempotency_key);
    payload.detach();
    let after = format!("{:?} {:?} {:?}", payload.record, payload.event, payload.idempotency_key);
    assert_eq!((after, payload.key.as_deref()), (before, Some(&b"k"[..])));
    assert!(alive.upgrade().is_none());
}

#[test]
fn parked_records_do_not_keep_their_batches_alive() {
    let mut machine = Machine::new(policy(1000, Overflow::DeadLetter));
    let (records, alive) = batch(&[("a", "1"), ("a", "2")]);
    machine.deliver(records);
    assert!(alive.upgrade().is_some());
    machine.fail();
    assert!(alive.upgrade().is_none(), "the failed head and the one behind it have memory of their own");
    let (records, alive) = batch(&[("a", "3")]);
    machine.deliver(records);
    assert!(alive.upgrade().is_none(), "so has what comes to wait behind them");
    assert_eq!(machine.dispatcher.parked(), 3);
}

#[test]
fn records_that_wait_for_one_with_the_same_idempotency_key_do_not_either() {
    let mut machine = Machine::new(policy(1000, Overflow::DeadLetter));
    machine.deliver(batch(&[("a", "1")]).0);
    machine.fail();
    let (records, alive) = batch(&[("b", "1"), ("b", "2")]);
    machine.deliver(records);
    assert!(machine.tickets.is_empty() && alive.upgrade().is_none());
}

#[test]
fn the_few_that_a_filter_leaves_do_not_keep_their_batches_alive() {
    let mut events = vec![("a", "no"); 100];
    events.push(("b", "1"));
    let (records, alive) = batch(&events);
    let bytes = records.iter().map(Record::size_bytes).sum();
    let mut few = arrivals(0, records);
    detach_few(&mut few, bytes);
    assert!(alive.upgrade().is_none());
    // Where most are kept, they share their batch.
    let (records, alive) = batch(&[("b", "1"); 100]);
    let bytes = records.iter().map(Record::size_bytes).sum();
    let mut most = arrivals(0, records);
    detach_few(&mut most, bytes);
    assert!(alive.upgrade().is_some());
}

fn large(key: &str, id: u64) -> Record {
    let value = Bytes::from(vec![b'x'; limits::MIB]);
    let id = id.to_string();
    let attributes = [("ce_specversion", "1.0"), ("ce_id", &id), ("ce_source", "/s"), ("ce_type", "t")];
    let headers = attributes.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
    Record { timestamp: Timestamp::EPOCH, key: Some(Bytes::from(key.to_owned())), value: Some(value), headers }
}

#[test]
fn fetching_pauses_while_too_many_bytes_wait() {
    let mut machine = Machine::new(policy(1000, Overflow::DeadLetter));
    for id in 0..63 {
        machine.deliver(vec![large(&id.to_string(), id)]);
    }
    assert!(machine.dispatcher.wants().is_some());
    machine.deliver(vec![large("last", 63)]);
    assert_eq!(machine.dispatcher.wants(), None);
    // What is parked is counted apart.
    machine.fail();
    assert!(machine.dispatcher.wants().is_some());
}

#[test]
fn bytes_held_back_are_bounded_as_records_are() {
    for overflow in [Overflow::DeadLetter, Overflow::Pause] {
        let mut machine = Machine::new(policy(1000, overflow));
        for id in 0..66 {
            machine.deliver(vec![large(&format!("{id}"), id)]);
            machine.fail();
        }
        match overflow {
            Overflow::DeadLetter => {
                assert_eq!(machine.dispatcher.parked(), 63);
                assert!(machine.letters[0].starts_with("parked-limit: more than 64MiB waited behind failing keys"));
            }
            Overflow::Pause => assert_eq!((machine.dispatcher.parked(), machine.dispatcher.wants()), (66, None)),
        }
    }
}
