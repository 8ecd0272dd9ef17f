//! Spans as a worker makes them: plain values, handed over many at a time. What becomes of them is the exporter's matter.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytestring::ByteString;
use millrace_core::name::{Topic, Unit};
use millrace_core::time::Timestamp;
use millrace_core::trace::{SpanId, TraceId, TraceParent};
use tokio::sync::mpsc;

/// Spans that wait to be sent; more are dropped, since nothing waits for a collector.
pub const WAITING_MAX_SPANS: usize = 8192;
/// Links of one span; more are only counted.
pub const LINKS_MAX: usize = 128;

/// One operation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its identity.
    pub context: TraceParent,
    /// The operation in the same trace that it belongs to.
    pub parent: Option<Parent>,
    /// Vendors' values that go with the trace.
    pub state: Option<ByteString>,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Operations of other traces, or of this one, that it goes back to.
    pub links: Links,
    /// Whose worker it was.
    pub unit: Arc<Unit>,
    /// What was done.
    pub about: About,
    /// Why it failed, if it did.
    pub error: Option<SpanError>,
}

/// The parent of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its identity in the trace.
    pub span: SpanId,
    /// Whether it came with an event, from anywhere.
    pub is_remote: bool,
}

/// What an operation was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// One attempt at one event.
    Process {
        /// The event's id.
        event: ByteString,
        /// Its correlation id.
        correlation: ByteString,
        /// Its offset in the source partition.
        offset: u64,
        /// 1 for the first one.
        attempt: u32,
        /// The number of the revision that made it.
        revision: u64,
        /// How it ended.
        outcome: &'static str,
    },
    /// The emitted events of one commit that go to one topic.
    Send {
        /// The topic.
        topic: Topic,
        /// How many.
        events: u64,
    },
    /// One commit.
    Commit {
        /// Settlements in it.
        settled: usize,
        /// How it ended.
        outcome: &'static str,
    },
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanError {
    /// One of few words.
    pub kind: &'static str,
    /// For a person.
    pub message: ByteString,
}

/// A bounded number of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// At most [`LINKS_MAX`].
    pub kept: Vec<TraceParent>,
    /// Those beyond.
    pub dropped: u32,
    last: Option<TraceParent>,
}

impl Links {
    /// Adds one, unless it is the one added last.
    pub fn push(&mut self, link: TraceParent) {
        if self.last.replace(link) == Some(link) {
            return;
        }
        if self.kept.len() < LINKS_MAX { self.kept.push(link) } else { self.dropped += 1 }
    }
}

/// Where spans go, if anywhere. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracing(Option<Arc<Queue>>);

/// What waits for the exporter.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<Vec<Span>>,
    waiting: AtomicUsize,
    lost: AtomicU64,
    sampling: Sampling,
    /// Two events that are the same give the same trace under these, whichever function handles them.
    keys: [RandomState; 2],
}

/// The exporter's end of the queue.
#[derive(Debug)]
pub(crate) struct Outlet {
    receiver: mpsc::Receiver<Vec<Span>>,
    queue: Arc<Queue>,
}

/// Which of the traces that begin here are recorded. A trace that began elsewhere says so itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Out of 2^63.
    below: u64,
}

impl Sampling {
    /// This part of all traces, from 0 to 1.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the ratio lies between 0 and 1")]
    pub fn of(ratio: f64) -> Self {
        Self { below: (ratio.clamp(0.0, 1.0) * (1u64 << 63) as f64) as u64 }
    }

    /// Whether a trace is among them: by its lower half, as OpenTelemetry's own sampler decides.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    pub const fn takes(self, trace: TraceId) -> bool {
        (trace.0 as u64) >> 1 < self.below
    }
}

impl Tracing {
    /// A queue and its outlet.
    #[cfg_attr(
        all(not(feature = "otel"), not(test)),
        expect(dead_code, reason = "nothing is sent without the feature")
    )]
    pub(crate) fn new(sampling: Sampling) -> (Self, Outlet) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX_SPANS);
        let queue = Arc::new(Queue {
            sender,
            waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            sampling,
            keys: [RandomState::new(), RandomState::new()],
        });
        (Self(Some(Arc::clone(&queue))), Outlet { receiver, queue })
    }

    /// Whether spans go anywhere.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Spans that did not reach the collector.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.lost.load(Ordering::Relaxed))
    }

    /// Hands spans over. Never waits: what finds no room is counted as lost.
    pub fn send(&self, spans: Vec<Span>) {
        let Some(queue) = self.0.as_ref().filter(|_| !spans.is_empty()) else { return };
        let count = spans.len();
        let waited = queue.waiting.fetch_add(count, Ordering::Relaxed);
        if waited + count > WAITING_MAX_SPANS || queue.sender.try_send(spans).is_err() {
            queue.waiting.fetch_sub(count, Ordering::Relaxed);
            queue.lose(count);
        }
    }

    /// The trace of a record whose event is in none, and whether it is recorded. The same record, attempted again or read
    /// by another function, gives the same one.
    #[must_use]
    pub fn root(&self, topic: &Topic, partition: u32, offset: u64) -> Option<(TraceId, bool)> {
        let queue = self.0.as_ref()?;
        let [high, low] =
            [&queue.keys[0], &queue.keys[1]].map(|keys| keys.hash_one((topic.as_str(), partition, offset)));
        let trace = TraceId((u128::from(high) << 64 | u128::from(low)).max(1));
        Some((trace, queue.sampling.takes(trace)))
    }
}

impl Queue {
    fn lose(&self, spans: usize) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "nothing is sent without the feature"))]
impl Outlet {
    /// Waits for spans; none once the outlet is closed and empty. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<Span>> {
        let spans = self.receiver.recv().await?;
        self.queue.waiting.fetch_sub(spans.len(), Ordering::Relaxed);
        Some(spans)
    }

    /// Takes no more from now on; what waits is still there.
    pub(crate) fn close(&mut self) {
        self.receiver.close();
    }

    /// Counts spans that were taken and not sent.
    pub(super) fn lose(&self, spans: usize) {
        self.queue.lose(spans);
    }
}

/// Makes identities of spans: 64 bits of SipHash of a counter, under keys that the system chose at random.
#[derive(Debug, Default)]
pub struct SpanIds {
    keys: RandomState,
    counter: u64,
}

impl SpanIds {
    /// One that was not there before.
    pub fn span(&mut self) -> SpanId {
        self.counter += 1;
        SpanId(self.keys.hash_one(self.counter).max(1))
    }

    /// A trace that was not there before.
    pub fn trace(&mut self) -> TraceId {
        TraceId(u128::from(self.span().0) << 64 | u128::from(self.span().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(span: u64) -> TraceParent {
        TraceParent { trace: TraceId(1), span: SpanId(span), is_sampled: true }
    }

    fn span(number: u64) -> Span {
        let unit = Unit { function: "a.b".parse().unwrap(), topic: "t".parse().unwrap(), partition: 0 };
        Span {
            context: parent(number),
            parent: None,
            state: None,
            began: Timestamp::EPOCH,
            ended: Timestamp::EPOCH,
            links: Links::default(),
            unit: Arc::new(unit),
            about: About::Commit { settled: 1, outcome: "committed" },
            error: None,
        }
    }

    fn spans(count: usize) -> Vec<Span> {
        (1..=count as u64).map(span).collect()
    }

    #[test]
    fn links_are_bounded_and_counted() {
        let mut links = Links::default();
        for number in 1..=LINKS_MAX as u64 + 3 {
            links.push(parent(number));
            links.push(parent(number));
        }
        assert_eq!((links.kept.len(), links.dropped), (LINKS_MAX, 3));
        assert_eq!(links.kept.first(), Some(&parent(1)));
    }

    #[test]
    fn a_ratio_takes_its_part_of_the_traces() {
        let takes =
            |ratio: f64, low: u64| Sampling::of(ratio).takes(TraceId(u128::from(u64::MAX) << 64 | u128::from(low)));
        for (ratio, low, expected) in [
            (0.0, 0, false),
            (0.0, u64::MAX, false),
            (1.0, 0, true),
            (1.0, u64::MAX, true),
            (0.5, (1 << 63) - 1, true),
            (0.5, 1 << 63, false),
            (0.25, 1 << 62, false),
            (2.0, u64::MAX, true),
            (-1.0, 0, false),
        ] {
            assert_eq!(takes(ratio, low), expected, "{ratio} of {low}");
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_lost_and_counted() {
        let (tracing, mut outlet) = Tracing::new(Sampling::of(1.0));
        tracing.send(spans(WAITING_MAX_SPANS - 1));
        tracing.send(spans(2));
        assert_eq!(tracing.lost(), 2);
        tracing.send(spans(1));
        assert_eq!(outlet.next().await.map(|spans| spans.len()), Some(WAITING_MAX_SPANS - 1));
        tracing.send(spans(WAITING_MAX_SPANS - 1));
        assert_eq!(tracing.lost(), 2);
        outlet.close();
        tracing.send(spans(1));
        assert_eq!(tracing.lost(), 3);
        assert_eq!(outlet.next().await.map(|spans| spans.len()), Some(1));
        assert_eq!(outlet.next().await.map(|spans| spans.len()), Some(WAITING_MAX_SPANS - 1));
        assert_eq!(outlet.next().await, None);
    }

    #[test]
    fn nothing_goes_anywhere_when_it_is_off() {
        let off = Tracing::default();
        off.send(spans(3));
        assert_eq!((off.is_on(), off.lost(), off.root(&"t".parse().unwrap(), 0, 0)), (false, 0, None));
    }

    #[test]
    fn the_same_record_is_in_the_same_trace() {
        let (tracing, _outlet) = Tracing::new(Sampling::of(1.0));
        let (t, u): (Topic, Topic) = ("t".parse().unwrap(), "u".parse().unwrap());
        assert_eq!(tracing.root(&t, 0, 7), tracing.root(&t, 0, 7));
        let others = [tracing.root(&u, 0, 7), tracing.root(&t, 1, 7), tracing.root(&t, 0, 8)];
        assert!(others.iter().all(|other| *other != tracing.root(&t, 0, 7)));
    }

    #[test]
    fn identities_differ() {
        let (mut ids, mut others) = (SpanIds::default(), SpanIds::default());
        let made: std::collections::BTreeSet<u64> = (0..1000).flat_map(|_| [ids.span().0, others.span().0]).collect();
        assert_eq!(made.len(), 2000);
    }
}
