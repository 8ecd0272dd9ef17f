//! The core alone: what an event costs between a record of the log and a record for the log, without the guest.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::codec::{self, Place};
use millrace_core::dispatcher::{Arrival, Dispatcher, Effect, Input, Policy};
use millrace_core::event::Event;
use millrace_core::expression::Filter;
use millrace_core::idempotency::Window;
use millrace_core::identity;
use millrace_core::intake::{Delivered, Intake, Origin};
use millrace_core::name::Topic;
use millrace_core::outcome::Outcome;
use millrace_core::policy::{Ordering, ParkedPolicy, RetryPolicy};
use millrace_core::progress::{KeyHash, Progress, Stream};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::clock::nanos_by_event;
use super::events;
use super::figure::{Figure, Goal};

const BATCH: u32 = 100;
const ON_TYPE: &str = r#"event.type == "E.order.placed""#;
const ON_DATA: &str = "event.data.zone == 3";

pub(crate) fn measure() -> Vec<Figure> {
    let topic: Topic = "in".parse().expect("a name");
    let records = batch();
    let event = events::event(7);
    let (on_type, on_data) = (filter(ON_TYPE), filter(ON_DATA));
    let place = Place { topic: &topic, partition: 0, offset: 0 };
    let (mut machine, mut by_data) = (Machine::new(&topic, ON_TYPE), Machine::new(&topic, ON_DATA));
    let [whole, whole_by_data, decoded, encoded, filtered, filtered_by_data, keyed] = nanos_by_event(
        20_000,
        [
            &mut |count| (0..count / BATCH).for_each(|_| machine.pass(&records)),
            &mut |count| (0..count / BATCH).for_each(|_| by_data.pass(&records)),
            &mut |count| {
                for record in records.iter().cycle().take(count as usize) {
                    black_box(codec::decode(record, place)).expect("it is an event");
                }
            },
            &mut |count| encode(&event, count),
            &mut |count| (0..count).for_each(|_| assert!(matches(&on_type, &event), "the filter says yes")),
            &mut |count| (0..count).for_each(|_| assert!(matches(&on_data, &event), "the filter says yes")),
            &mut |count| {
                for _ in 0..count {
                    black_box(KeyHash::of(&identity::default_idempotency_key(black_box(&event))));
                }
            },
        ],
    );
    vec![
        Figure::new("core.dispatch", whole, "ns CPU", 1000.0, Goal::RatioAtMost(1.0)),
        Figure::shown("core.dispatch.filter_on_data", whole_by_data, "ns CPU"),
        Figure::shown("core.decode", decoded, "ns CPU"),
        Figure::shown("core.encode", encoded, "ns CPU"),
        Figure::shown("core.filter_on_type", filtered, "ns CPU"),
        Figure::shown("core.filter_on_data", filtered_by_data, "ns CPU"),
        Figure::shown("core.idempotency_key", keyed, "ns CPU"),
        Figure::shown("core.order", whole - decoded - encoded - filtered - keyed, "ns CPU"),
    ]
}

fn filter(source: &str) -> Filter {
    Filter::compile(source).expect("an expression")
}

fn matches(filter: &Filter, event: &Event) -> bool {
    filter.matches(event, None).expect("it can be evaluated")
}

/// A batch as it lies in a log.
fn batch() -> Vec<Record> {
    (0..u64::from(BATCH)).map(|number| record(&events::event(number))).collect()
}

fn encode(event: &Event, count: u32) {
    (0..count).for_each(|_| drop(black_box(record(black_box(event)))));
}

fn record(event: &Event) -> Record {
    codec::encode(event, event.extension("partitionkey").map(|key| key.clone().into_bytes()), Timestamp::EPOCH)
}

/// A unit whose handler emits the event that it is given.
struct Machine {
    topic: Topic,
    intake: Intake,
    dispatcher: Dispatcher<Box<Delivered>>,
    offset: u64,
    now: Timestamp,
}

impl Machine {
    fn new(topic: &Topic, expression: &str) -> Self {
        let policy = Policy { retry: RetryPolicy::default(), parked: ParkedPolicy::default(), concurrency: 1 };
        // Always the same events come: a window that has expired knows none of them.
        let window = Window::new(Duration::from_millis(1), 1_000_000);
        Self {
            topic: topic.clone(),
            intake: Intake { ordering: Ordering::Key, filter: Some(filter(expression)), key: None },
            dispatcher: Dispatcher::new(policy, Progress::default(), window, 0),
            offset: 0,
            now: Timestamp::EPOCH,
        }
    }

    fn pass(&mut self, records: &[Record]) {
        let first = self.offset;
        self.offset += records.len() as u64;
        self.now = self.now + Duration::from_secs(1);
        let arrivals = (first..).zip(records).map(|(offset, record)| {
            let origin = Origin { topic: self.topic.clone(), partition: 0, offset };
            Arrival { offset, content: self.intake.take(Stream::Source, origin, record.clone()) }
        });
        let input = Input::Delivered { stream: Stream::Source, arrivals: arrivals.collect(), next: self.offset };
        let mut todo = Vec::new();
        self.dispatcher.handle(self.now, input, &mut todo);
        let mut outputs: Vec<Record> = Vec::new();
        while let Some(effect) = todo.pop() {
            match effect {
                Effect::Invoke(ticket) => {
                    self.dispatcher.handle(self.now, Input::Finished(ticket, Outcome::Completed), &mut todo);
                }
                Effect::Settle(settled) => {
                    let event = settled.payload.and_then(|delivered| delivered.event).expect("it was handled");
                    outputs.push(record(&event));
                }
            }
        }
        let sealed = self.dispatcher.seal(self.now);
        assert_eq!((sealed.settlements, sealed.keys.len()), (records.len(), outputs.len()), "each is handled once");
        self.dispatcher.handle(self.now, Input::Committed, &mut todo);
        black_box(outputs);
    }
}

/// What the API does with an event of a batch: from JSON to a record; in nanoseconds.
pub(crate) fn accepted() -> f64 {
    let body: Bytes =
        format!("[{}]", events::lines().lines().take(BATCH as usize).collect::<Vec<_>>().join(",")).into();
    let [accepted] = nanos_by_event(
        20_000,
        [&mut |count| {
            for _ in 0..count / BATCH {
                let events = codec::json::parse_batch_shared(&body).expect("a batch");
                assert_eq!(events.len(), BATCH as usize, "all are events");
                for event in events {
                    black_box(record(&event));
                }
            }
        }],
    );
    accepted
}

/// What a worker does with an event beside the sandbox, which makes the record of what is emitted itself; in nanoseconds.
pub(crate) fn handled() -> f64 {
    let topic: Topic = "in".parse().expect("a name");
    let records = batch();
    let event = events::event(7);
    let mut machine = Machine::new(&topic, ON_TYPE);
    let [whole, encoded] = nanos_by_event(
        20_000,
        [&mut |count| (0..count / BATCH).for_each(|_| machine.pass(&records)), &mut |count| encode(&event, count)],
    );
    whole - encoded
}
