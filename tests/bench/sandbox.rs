//! One invocation, beside wasmtime alone doing the same.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use millrace::sandbox::{
    Completion, Component, Delivery, Engine, EngineOptions, Function, FunctionOptions, Guest, GuestLimits, Invocation,
    Sandbox as _,
};
use millrace_core::event::Event;
use millrace_core::identity;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::outcome::Outcome;
use tokio::runtime::Runtime;

use super::bare::Bare;
use super::clock::nanos_by_event;
use super::events;
use super::figure::{Figure, Goal};

/// How much more than wasmtime alone an invocation may cost.
const GOAL: Goal = Goal::RatioAtMost(1.25);
/// Instances whose memory is weighed together.
const IDLE: u32 = 40;

pub(crate) fn measure(component: &[u8]) -> Vec<Figure> {
    let bench = Bench::new(component);
    let bare = Bare::new(component);
    let events: Vec<Handed> = (0..1000).map(events::event).map(handed).collect();
    let each = |number: u32| &events[number as usize % events.len()];

    let (mut instance, mut guest) = (bare.instance(), bench.guest(1000));
    let [limit, reused] = nanos_by_event(
        20_000,
        [
            &mut |count| {
                for number in 0..count {
                    instance.handle(&each(number).0);
                    assert_eq!(instance.take().len(), 1, "it emits one event");
                }
            },
            &mut |count| bench.invoke(&mut guest, (0..count).map(each)),
        ],
    );
    let mut guest = bench.guest(1);
    let [fresh_limit, fresh] = nanos_by_event(
        2_000,
        [
            &mut |count| {
                for number in 0..count {
                    let mut instance = bare.instance();
                    instance.handle(&each(number).0);
                    assert_eq!(instance.take().len(), 1, "it emits one event");
                }
            },
            &mut |count| bench.invoke(&mut guest, (0..count).map(each)),
        ],
    );
    vec![
        Figure::new("sandbox.reused", reused, "ns CPU", limit, GOAL),
        Figure::new("sandbox.fresh", fresh, "ns CPU", fresh_limit, GOAL),
    ]
}

/// CPU time of one invocation, in nanoseconds.
pub(crate) fn nanos(component: &[u8], reuse: u32) -> f64 {
    let bench = Bench::new(component);
    let events: Vec<Handed> = (0..1000).map(events::event).map(handed).collect();
    let mut guest = bench.guest(reuse);
    let [nanos] =
        nanos_by_event(2_000, [&mut |count| bench.invoke(&mut guest, events.iter().cycle().take(count as usize))]);
    nanos
}

/// Resident memory of an instance that has handled 1,000 events and waits.
pub(crate) fn idle(component: &[u8]) -> Vec<Figure> {
    let bench = Bench::new(component);
    // Whatever is made once is made before.
    let mut first = bench.guest(u32::MAX);
    bench.invoke(&mut first, [&handed(events::event(0))]);
    let events: Vec<Handed> = (0..1000).map(events::event).map(handed).collect();
    let before = resident_kib();
    let guests: Vec<Guest> = (0..IDLE)
        .map(|_| {
            let mut guest = bench.guest(u32::MAX);
            bench.invoke(&mut guest, &events);
            guest
        })
        .collect();
    let each = (resident_kib() - before) / f64::from(IDLE);
    drop(guests);
    vec![Figure::new("memory.idle_function", each, "KiB", 300.0, Goal::RatioAtMost(1.0))]
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells resident memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory is there");
    line.trim().trim_end_matches("kB").trim().parse().expect("it is a number")
}

/// An event with its delivery.
type Handed = (Event, Delivery);

/// Our sandbox, and what is needed to call it.
struct Bench {
    runtime: Runtime,
    engine: Engine,
    component: Component,
}

impl Bench {
    fn new(component: &[u8]) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let engine = Engine::new(EngineOptions { max_instances: 64, ..EngineOptions::default() }).expect("an engine");
        let loaded = runtime.block_on(engine.load(Bytes::copy_from_slice(component)));
        Self { runtime, engine, component: loaded.expect("the component is sound") }
    }

    fn guest(&self, reuse: u32) -> Guest {
        let options = FunctionOptions {
            name: FunctionName::new("bench", "handler").expect("a name"),
            config: Vec::new(),
            publish: vec![topic("out")],
            state: false,
            known_topics: Arc::new(|topic| topic.as_str() == "out"),
            limits: GuestLimits::default(),
            reuse: NonZeroU32::new(reuse).expect("at least one event"),
        };
        Function::new(&self.engine, &self.component, options).expect("the limits are wide enough").guest()
    }

    /// Hands events over, one after the other, as a worker's task does.
    fn invoke<'a>(&self, guest: &mut Guest, events: impl IntoIterator<Item = &'a Handed>) {
        self.runtime.block_on(async {
            for (event, delivery) in events {
                let invocation = Invocation { event, delivery: delivery.clone(), trace: None, state: None };
                let completion = guest.invoke(invocation).await.expect("an instance is free");
                let Completion { outcome, emitted, .. } = completion;
                assert!(outcome == Outcome::Completed && emitted.len() == 1, "it emits one event: {outcome:?}");
            }
        });
    }
}

/// What the intake, which is measured by itself, makes of an event.
fn handed(event: Event) -> Handed {
    let delivery = Delivery {
        topic: topic("in"),
        partition: 3,
        offset: 41,
        key: event.extension("partitionkey").map(|key| key.clone().into_bytes()),
        attempt: 1,
        idempotency_key: identity::default_idempotency_key(&event),
    };
    (event, delivery)
}

fn topic(name: &str) -> Topic {
    Topic::new(name.to_owned()).expect("a name")
}
