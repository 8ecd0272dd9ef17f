//! How long an event takes from its publisher to a reader of what is committed, at a moderate rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use millrace_core::codec;
use millrace_core::time::Timestamp;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, Producer};

use super::super::events;
use super::super::figure::{Figure, Goal};
use super::cluster::{client, reader, send};
use super::contestant::Contestant;
use super::{Bench, INTERVALS_MS};

const LOAD: Load = Load { rate: 2_000, warm_up: Duration::from_secs(15), measured: Duration::from_secs(20) };
/// Room for the time of sending in an event's data.
const DIGITS: usize = 20;
/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Events that are published at an even rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Events a second.
    pub(super) rate: u32,
    /// Before the clock starts, and how long it runs.
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
}

impl Load {
    /// All its events.
    pub(super) const fn total(&self) -> u64 {
        (self.warm_up.as_secs() + self.measured.as_secs()) * self.rate as u64
    }
}

/// 50 and 99 of a hundred events take at most so long, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

pub(super) fn measure(bench: &Bench<'_>) -> Vec<Figure> {
    let ours = run(bench, |from| bench.ours(1000, from));
    let streams = INTERVALS_MS.map(|interval| run(bench, |from| bench.streams(interval, 1, from)));
    let best = streams.into_iter().min_by(|a, b| a.p99.total_cmp(&b.p99)).expect("there was a run");
    vec![
        Figure::new("kafka.streams.p99_ratio", ours.p99, "ms", best.p99, Goal::RatioAtMost(0.75)),
        Figure::shown("  p50 of ours", ours.p50, "ms"),
        Figure::shown("  p50 of Kafka Streams", best.p50, "ms"),
    ]
}

#[expect(clippy::print_stdout, reason = "long work shows how far it is")]
fn run(bench: &Bench<'_>, contestant: impl FnOnce(&str) -> Contestant) -> Latency {
    let from = bench.name("live");
    bench.cluster.create(&from);
    bench.cluster.create("out");
    let mut contestant = contestant(&from);
    let mut running = contestant.start();
    let latency = of_events(&LOAD, bench.cluster.bootstrap(), (&from, "out"), 0);
    running.usage();
    drop(running);
    bench.cluster.delete("out");
    bench.cluster.delete(&from);
    println!("    {:<34} p50 {:.1} ms, p99 {:.1} ms", contestant.name, latency.p50, latency.p99);
    latency
}

/// Publishes events to a topic, numbered from `first` on, and takes the time until what comes of them is in another.
pub(super) fn of_events(load: &Load, bootstrap: &str, (from, out): (&str, &str), first: u64) -> Latency {
    let (began, done) = (Instant::now(), AtomicBool::new(false));
    let consumer = reader(bootstrap, out);
    let histogram = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish(load, bootstrap, (from, out), first, began));
        let reading = scope.spawn(|| read(load, &consumer, began, &done));
        publishing.join().expect("all is published");
        done.store(true, Ordering::Relaxed);
        reading.join().expect("all is answered")
    });
    let millis = |quantile: f64| Duration::from_nanos(histogram.value_at_quantile(quantile)).as_secs_f64() * 1e3;
    Latency { p50: millis(0.5), p99: millis(0.99) }
}

/// Publishes at an even rate, with the time in the data.
fn publish(load: &Load, bootstrap: &str, (topic, out): (&str, &str), first: u64, began: Instant) {
    let mut config = client(bootstrap);
    let producer: BaseProducer = config.set("linger.ms", "0").create().expect("a client");
    let template = events::order();
    for number in 0..load.total() {
        let due = Duration::from_secs(1) * u32::try_from(number).expect("few") / load.rate;
        while began.elapsed() < due {
            producer.poll(Duration::ZERO);
            std::thread::park_timeout((due.saturating_sub(began.elapsed())).min(Duration::from_millis(1)));
        }
        let mut event = events::event(first + number);
        event.subject = Some(out.into());
        let sent = format!("{:0DIGITS$}", began.elapsed().as_nanos());
        event.data = Some(Bytes::from(template.clone().replacen(&".".repeat(DIGITS), &sent, 1)));
        let key = event.extension("partitionkey").map(|key| Bytes::copy_from_slice(key.as_bytes()));
        send(&producer, topic, &codec::encode(&event, key, Timestamp::EPOCH));
    }
    producer.flush(PATIENCE).expect("the broker takes them");
}

/// Reads until each event has its answer.
fn read(load: &Load, consumer: &BaseConsumer, began: Instant, published: &AtomicBool) -> Histogram<u64> {
    let most = u64::try_from(PATIENCE.as_nanos()).expect("a minute");
    let mut histogram = Histogram::new_with_bounds(1, most, 3).expect("three digits");
    let (mut seen, mut last) = (0, Instant::now());
    while seen < load.total() {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            let given_up = published.load(Ordering::Relaxed) && last.elapsed() > PATIENCE;
            assert!(!given_up, "{seen} of {} events are answered", load.total());
            continue;
        };
        // The end of a partition is no message.
        let Ok(message) = message else { continue };
        let now = began.elapsed();
        (seen, last) = (seen + 1, Instant::now());
        let data = message.payload().expect("an event has data");
        let at = data.windows(5).rposition(|window| window == b"note\"").expect("a note") + 7;
        let sent = std::str::from_utf8(&data[at..at + DIGITS]).ok().and_then(|digits| digits.parse().ok());
        let sent = Duration::from_nanos(sent.expect("a time"));
        if sent >= load.warm_up {
            histogram.saturating_record(u64::try_from(now.saturating_sub(sent).as_nanos()).unwrap_or(most));
        }
    }
    histogram
}
