//! Spans of a unit whose attempts and commits end as the tests say.

use std::collections::VecDeque;
use std::time::Duration;

use millrace_core::dispatcher::{Arrival, Dispatcher, Effect, Input, Policy};
use millrace_core::event::Event;
use millrace_core::idempotency::Window;
use millrace_core::intake::{Intake, Origin};
use millrace_core::outcome::{Category, Failure};
use millrace_core::policy::{Ordering, ParkedPolicy, RetryPolicy};
use millrace_core::progress::{Progress, Stream};
use millrace_core::record::Record;
use millrace_core::state::Writes;

use super::*;
use crate::sandbox::Usage;
use crate::telemetry::{Outlet, Sampling};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// A unit without a sandbox and a log.
struct Machine {
    spans: Spans,
    tracing: Tracing,
    outlet: Outlet,
    dispatcher: Dispatcher<Box<Delivered>>,
    tickets: VecDeque<Ticket<Box<Delivered>>>,
    now: Timestamp,
}

impl Machine {
    /// With one event for each context.
    fn new(ratio: f64, contexts: &[Option<&str>]) -> Self {
        let (tracing, outlet) = Tracing::new(Sampling::of(ratio));
        let unit = Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition: 0 };
        let policy = Policy { retry: RetryPolicy::default(), parked: ParkedPolicy::default(), concurrency: 1 };
        let window = Window::new(Duration::from_secs(3600), 100);
        let mut machine = Self {
            spans: Spans::new(&tracing, Clock::starting_at(NOW), &unit),
            tracing,
            outlet,
            dispatcher: Dispatcher::new(policy, Progress::default(), window, 1),
            tickets: VecDeque::new(),
            now: NOW,
        };
        let arrivals =
            (0..).zip(contexts).map(|(offset, context)| Arrival { offset, content: taken(offset, *context) });
        let arrivals = arrivals.collect();
        machine.handle(Input::Delivered { stream: Stream::Source, arrivals, next: contexts.len() as u64 });
        machine
    }

    fn handle(&mut self, input: Input<Box<Delivered>>) {
        let mut effects = Vec::new();
        self.dispatcher.handle(self.now, input, &mut effects);
        let invoked = effects.into_iter().filter_map(|effect| match effect {
            Effect::Invoke(ticket) => Some(ticket),
            Effect::Settle(_) => None,
        });
        self.tickets.extend(invoked);
    }

    /// Begins the next attempt; answers with the context that it gives to what it emits.
    fn begin(&mut self) -> (Ticket<Box<Delivered>>, Option<String>) {
        let ticket = self.tickets.pop_front().expect("something to attempt");
        let event = ticket.payload().event.as_ref().unwrap();
        let parent = event.extension(TRACE_PARENT).cloned();
        let mut trace = parent.map(|parent| TraceContext { parent, state: Some("a=1".into()) });
        self.spans.begin(&ticket, 7, &mut trace);
        (ticket, trace.map(|trace| trace.parent.to_string()))
    }

    /// Makes one attempt, which emits to each of these topics.
    fn attempt(&mut self, outcome: Outcome, topics: &[&str]) -> Option<String> {
        let (ticket, context) = self.begin();
        let event = ticket.payload().event.clone().unwrap();
        let emission = |topic: &&str| Emission::new(topic.parse().unwrap(), None, &event);
        let emitted = topics.iter().map(emission).collect();
        let completion = Completion {
            outcome: outcome.clone(),
            emitted,
            state: Writes::default(),
            logs: Vec::new(),
            usage: Usage::default(),
        };
        self.spans.finished(self.now, &ticket, &completion);
        self.handle(Input::Finished(ticket, outcome));
        context
    }

    fn commit(&mut self, failed: Option<(&'static str, &str)>) {
        self.spans.commit_began(self.now, 1);
        self.spans.commit_ended(self.now, failed);
    }

    /// All spans so far, in a line each: what was done, how it ended, and how many links there are.
    async fn shown(mut self) -> Vec<String> {
        self.outlet.close();
        let mut shown = Vec::new();
        while let Some(spans) = self.outlet.next().await {
            shown.extend(spans.iter().map(show));
        }
        assert_eq!(self.tracing.lost(), 0);
        shown
    }
}

fn taken(offset: u64, context: Option<&str>) -> millrace_core::dispatcher::Content<Box<Delivered>> {
    let extensions = context.map(|context| (TRACE_PARENT.into(), context.into())).into_iter().collect();
    let event = Event {
        id: format!("e{offset}").into(),
        source: "/s".into(),
        ty: "t".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions,
        data: None,
    };
    let intake = Intake { ordering: Ordering::Key, filter: None, key: None };
    let place = Origin { topic: "orders".parse().unwrap(), partition: 0, offset };
    let record: Record = millrace_core::codec::encode(&event, None, NOW);
    intake.take(Stream::Source, place, record)
}

fn show(span: &Span) -> String {
    let about = match &span.about {
        About::Process { event, attempt, revision: 7, outcome, .. } => format!("process {event}#{attempt} {outcome}"),
        About::Process { revision, .. } => format!("of revision {revision}"),
        About::Send { topic, events } => format!("send {topic} {events}"),
        About::Commit { settled, outcome } => format!("commit {settled} {outcome}"),
    };
    let error = span.error.as_ref().map_or(String::new(), |error| format!(" ({}: {})", error.kind, error.message));
    format!("{about}{error} links {}", span.links.kept.len())
}

fn failed() -> Outcome {
    Outcome::Failed(Failure::new(Category::Transient, "busy"))
}

#[tokio::test]
async fn a_commit_links_to_its_attempts_and_sends_by_topic() {
    let mut machine = Machine::new(1.0, &[Some(SAMPLED), None, Some(UNSAMPLED)]);
    machine.attempt(Outcome::Completed, &["a", "b", "a"]);
    machine.attempt(Outcome::Completed, &["b"]);
    assert_eq!(machine.attempt(Outcome::Completed, &["b", "c"]).as_deref(), Some(UNSAMPLED));
    machine.commit(None);
    assert_eq!(
        machine.shown().await,
        [
            "process e0#1 completed links 1",
            "process e1#1 completed links 0",
            "send a 2 links 1",
            "send b 3 links 2",
            "send c 1 links 0",
            "commit 1 committed links 2",
        ]
    );
}

#[tokio::test]
async fn attempts_of_one_event_are_in_one_trace() {
    let mut machine = Machine::new(1.0, &[None]);
    let first = machine.attempt(failed(), &[]).unwrap();
    machine.now = NOW + Duration::from_secs(600);
    machine.handle(Input::Tick);
    let second = machine.attempt(Outcome::Completed, &[]).unwrap();
    let parse = |context: &str| context.parse::<TraceParent>().unwrap();
    assert_eq!(parse(&first).trace, parse(&second).trace);
    assert_ne!(parse(&first).span, parse(&second).span);
    machine.commit(None);
    let expected = [
        "process e0#1 failed (transient: busy) links 0",
        "process e0#2 completed links 0",
        "commit 1 committed links 2",
    ];
    assert_eq!(machine.shown().await, expected);
}

#[tokio::test]
async fn what_is_not_sampled_is_passed_on_and_not_recorded() {
    let mut machine = Machine::new(0.0, &[None, Some(UNSAMPLED), Some("nonsense")]);
    for expected in ["-00", "-00", "-00"] {
        let context = machine.attempt(Outcome::Completed, &["a"]).unwrap();
        assert!(context.ends_with(expected) && context.parse::<TraceParent>().is_ok(), "{context}");
    }
    machine.commit(None);
    assert_eq!(machine.shown().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_attempt_that_was_not_made_is_no_part_of_a_commit() {
    let mut machine = Machine::new(1.0, &[Some(SAMPLED)]);
    let (ticket, _) = machine.begin();
    machine.spans.not_run(&ticket, &sandbox::Error("no instance is free".to_owned()));
    machine.handle(Input::Released(ticket));
    machine.commit(None);
    assert_eq!(machine.shown().await, ["process e0#1 not-run (host: no instance is free) links 1"]);
}

#[tokio::test]
async fn what_an_aborted_commit_would_have_sent_is_an_error() {
    let mut machine = Machine::new(1.0, &[Some(SAMPLED), Some(SAMPLED), Some(SAMPLED)]);
    machine.attempt(Outcome::Completed, &["a"]);
    machine.spans.commit_began(NOW, 1);
    machine.attempt(Outcome::Completed, &["b"]);
    machine.spans.commit_ended(NOW, Some(("aborted", "lost")));
    machine.spans.start_again();
    machine.attempt(Outcome::Completed, &["c"]);
    machine.commit(None);
    assert_eq!(
        machine.shown().await,
        [
            "process e0#1 completed links 1",
            "send a 1 (aborted: lost) links 1",
            "commit 1 aborted (aborted: lost) links 1",
            "process e1#1 completed links 1",
            "process e2#1 completed links 1",
            "send c 1 links 1",
            "commit 1 committed links 1",
        ]
    );
}

#[test]
fn the_log_knows_the_latest_attempt_and_its_event() {
    let mut machine = Machine::new(1.0, &[Some(SAMPLED), Some(SAMPLED)]);
    let (ticket, context) = machine.begin();
    let (here, elsewhere) = (ticket.position(), Position { offset: 1, ..ticket.position() });
    let shown = |machine: &Machine, at| machine.spans.context(at).map(|context| context.to_string());
    assert_eq!((shown(&machine, here), shown(&machine, elsewhere)), (context.clone(), None));
    machine.spans.not_run(&ticket, &sandbox::Error(String::new()));
    assert_eq!((shown(&machine, here), shown(&machine, elsewhere)), (context, None));
    machine.handle(Input::Released(ticket));
}

#[test]
fn without_a_collector_there_is_nothing() {
    let unit = Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition: 0 };
    let spans = Spans::new(&Tracing::default(), Clock::starting_at(NOW), &unit);
    assert!(spans.0.is_none());
}
