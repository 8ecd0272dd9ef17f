//! What each step of the core costs per event, on one thread. Run with `--release`; an argument selects the steps whose
//! names contain it.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::codec::{self, Place, json};
use millrace_core::event::Event;
use millrace_core::expression::{Filter, KeyExpression};
use millrace_core::idempotency::Window;
use millrace_core::identity;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

fn main() {
    yardstick();
    codecs();
    expressions();
    window();
}

/// What the machine itself takes, to compare with.
fn yardstick() {
    let shared = Bytes::from(vec![0; 64]).slice(1..);
    measure("share and drop memory once", 1, || drop(black_box(shared.clone())));
    measure("allocate and free 64 bytes", 1, || drop(black_box(Box::new([0_u64; 8]))));
}

/// Prints the median of several runs, in nanoseconds of CPU time a call.
fn measure(what: &str, per_call: u32, mut call: impl FnMut()) {
    const CALLS: u32 = 300_000;
    if std::env::args().nth(1).is_some_and(|wanted| !what.contains(&wanted)) {
        return;
    }
    let mut runs: Vec<f64> = (0..7)
        .map(|_| {
            let start = cpu_ns();
            for _ in 0..CALLS / per_call {
                call();
            }
            (cpu_ns() - start) / f64::from(CALLS / per_call * per_call)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!("{what:<55} {:>7.0} ns", runs[runs.len() / 2]);
}

/// CPU time of this thread, as Linux counts it: a busy machine does not change it much.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells a thread's CPU time");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("the first number is the CPU time")
}

/// 256 bytes of data and three extensions.
fn event() -> Event {
    let data = format!(r#"{{"order":4711,"amount":12.5,"note":"{}"}}"#, "x".repeat(217));
    Event {
        id: "9f2c4f0e-6c1b-4e0e-8a5e-0d4f6c2b7a11".into(),
        source: "/shop/checkout".into(),
        ty: "order.placed".into(),
        subject: Some("order-4711".into()),
        time: Some(Timestamp::from_millis(1_522_949_460_123)),
        datacontenttype: Some("application/json".into()),
        dataschema: None,
        extensions: [("correlationid", "8d7a"), ("tenant", "acme"), ("traceparent", TRACE)]
            .map(|(name, value)| (ByteString::from_static(name), ByteString::from_static(value)))
            .to_vec(),
        data: Some(data.into()),
    }
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn codecs() {
    let event = event();
    let topic = Topic::new("shop.orders").expect("a legal name");
    let place = Place { topic: &topic, partition: 3, offset: 4711 };
    let record = codec::encode(&event, Some(Bytes::from_static(b"key")), Timestamp::EPOCH);
    println!("an event of {} bytes as a record, {} as JSON", record.size_bytes(), json::write_event(&event).len());

    measure("decode, binary mode", 1, || {
        black_box(codec::decode(black_box(&record), place)).expect("valid");
    });
    measure("encode, binary mode", 1, || {
        black_box(codec::encode(black_box(&event), record.key.clone(), Timestamp::EPOCH));
    });
    let one = json::write_event(&event);
    measure("parse one event of JSON", 1, || {
        black_box(json::parse_event(black_box(&one))).expect("valid");
    });
    measure("write one event of JSON", 1, || {
        black_box(json::write_event(black_box(&event)));
    });
    let batch = [b"[".to_vec(), vec![one; 100].join(&b","[..]), b"]".to_vec()].concat();
    measure("parse a batch of 100 events of JSON, per event", 100, || {
        black_box(json::parse_batch(black_box(&batch))).expect("valid");
    });
}

fn expressions() {
    let event = event();
    let key = Bytes::from_static(b"key");
    for source in [
        "event.type == 'order.placed'",
        "event.type in ['order.paid', 'order.placed'] && has(event.subject)",
        "event.time > timestamp('2018-04-05T17:31:00Z')",
        "event.data.amount > 100",
    ] {
        let filter = Filter::compile(source).expect("valid");
        measure(source, 1, || {
            black_box(filter.matches(black_box(&event), Some(&key))).expect("valid");
        });
    }
    let expression = KeyExpression::compile("event.subject + event.tenant").expect("valid");
    measure("event.subject + event.tenant", 1, || {
        black_box(expression.evaluate(black_box(&event), Some(&key))).expect("valid");
    });
    measure("default idempotency key and its hash", 1, || {
        black_box(KeyHash::of(&identity::default_idempotency_key(black_box(&event))));
    });
    let function = FunctionName::new("shop", "reserve").expect("legal names");
    let topic = Topic::new("shop.orders").expect("a legal name");
    measure("id of an emitted event", 1, || {
        black_box(identity::emitted_id(&function, &topic, black_box("/shop/checkout 4711"), 0));
    });
}

/// Ten million keys, which takes a while and 200 MB.
fn window() {
    const MAX_KEYS: usize = 10_000_000;
    const BATCH: u64 = 100;
    if std::env::args().nth(1).is_some_and(|wanted| !"window".contains(&wanted)) {
        return;
    }
    let mut window = Window::new(Duration::from_secs(86_400), MAX_KEYS);
    let (mut worst_ns, mut batches) = (0.0_f64, 0);
    let mut fill = |window: &mut Window, keys: u64| {
        let start = cpu_ns();
        for _ in 0..keys / BATCH {
            // The processor's own noise is too large for the smallest steps, so that whole batches are timed.
            let batch = Instant::now();
            batches += 1;
            let at = Timestamp::from_millis(batches);
            let keys =
                (0..BATCH).map(|n| KeyHash(u128::from(mix(batches * BATCH + n)) << 64 | u128::from(mix(n ^ batches))));
            for key in keys.clone() {
                assert!(!black_box(window.contains(key, at)));
            }
            window.insert(at, keys);
            worst_ns = worst_ns.max(batch.elapsed().as_secs_f64() * 1e9);
        }
        (cpu_ns() - start) / keys as f64
    };
    for (what, keys) in
        [("first million", 1_000_000), ("up to ten million", 9_000_000), ("up to thirty million", 20_000_000)]
    {
        let ns = fill(&mut window, keys);
        let bytes_a_key = window.allocated_bytes() as f64 / window.len() as f64;
        println!(
            "window, contains and insert, {what:<27} {ns:>7.0} ns, {bytes_a_key:.1} bytes a key, {} MB resident",
            resident_mb()
        );
    }
    println!("longest batch of {BATCH} keys, with whatever else ran {:>12.2} ms", worst_ns / 1e6);
}

fn resident_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux tells a process's memory");
    let pages: u64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("the second number is resident pages");
    pages * 4096 / 1_000_000
}

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let n = (n ^ n >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ n >> 33
}
