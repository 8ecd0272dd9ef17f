//! The runtime's workers on each log, from what is published to what people do with what failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use millrace::broker::{Broker, Catalog, Force, LetterAction, LetterStatus, Outgoing, Placing, StateRange, UnitInfo};
use millrace::registry::{Deployment, Registry};
use millrace_core::breaker::Phase;
use millrace_core::codec::{self, Place};
use millrace_core::event::Event;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::partition;

use super::handler::{BROKEN, FAILING, HELD, Handler};
use super::steps::{function, orders, records, until, within};
use super::subjects::Subject;

const KEYS: usize = 5;

/// What was published: the ids of each key, in order.
type Ids = BTreeMap<String, Vec<String>>;

fn settings<S: Subject>(subject: &S, more: &str) -> Function {
    let topic = subject.topic("orders");
    let manifest = format!(
        "application = \"shop\"\n[functions.pay]\ncomponent = \"c.wasm\"\ntopics = [\"{topic}\"]\ngrants = {{ state = true }}\n{more}"
    );
    let (manifest, _) = Manifest::parse(&manifest).expect("the manifest is good");
    manifest.functions.into_iter().next().expect("there is one function")
}

/// One instance that runs the function.
async fn start<S: Subject>(subject: &S, log: S::Log, handler: &Handler) -> (Arc<S::Log>, Registry<S::Log, Handler>) {
    start_with(subject, log, handler, "").await
}

/// One instance that runs the function, with more in its manifest.
async fn start_with<S: Subject>(
    subject: &S,
    log: S::Log,
    handler: &Handler,
    more: &str,
) -> (Arc<S::Log>, Registry<S::Log, Handler>) {
    let log = Arc::new(log);
    let registry = Registry::new(Arc::clone(&log), subject.clock());
    let deployment = Deployment {
        settings: settings(subject, more),
        digest: String::new(),
        revision: handler.clone(),
        canary: None,
        paused: false,
    };
    within(registry.activate(deployment)).await.expect("the topics are there");
    (log, registry)
}

async fn stop<S: Subject>(subject: &S, (log, registry): (Arc<S::Log>, Registry<S::Log, Handler>)) {
    within(registry.drain(Duration::from_secs(25))).await;
    assert!(registry.failure().borrow().is_none(), "{:?}", *registry.failure().borrow());
    drop(registry);
    subject.close(Arc::into_inner(log).expect("nobody else has it")).await;
}

/// Publishes events of all keys, each twice as a careless producer does; every tenth one fails.
async fn publish<S: Subject>(subject: &S, log: &S::Log, numbers: std::ops::Range<usize>, ids: &mut Ids) {
    let mut batch = Vec::new();
    for number in numbers {
        let (id, key) = (format!("e{number}"), format!("k{}", number % KEYS));
        let ty = if number % 10 == 3 { FAILING } else { "test.event" };
        let placing = Placing::Hash(partition::hash(Some(&Bytes::from(key.clone())), "/test", &id));
        let outgoing = Outgoing { placing, ..event(subject, &id, ty, &key) };
        batch.extend([outgoing.clone(), outgoing]);
        ids.entry(key).or_default().push(id);
    }
    within(log.publish(batch)).await.expect("the records are taken");
}

/// An event for the first partition of `orders`.
fn event<S: Subject>(subject: &S, id: &str, ty: &'static str, key: &str) -> Outgoing {
    let event = Event {
        id: id.into(),
        source: "/test".into(),
        ty: ty.into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: Vec::new(),
        data: None,
    };
    let record = codec::encode(&event, Some(Bytes::copy_from_slice(key.as_bytes())), subject.now());
    Outgoing { topic: subject.topic("orders"), placing: Placing::Partition(0), record }
}

async fn units<S: Subject>(log: &S::Log) -> Vec<UnitInfo> {
    within(log.units(&function())).await.expect("units can be listed")
}

fn is_settled(unit: &UnitInfo) -> bool {
    unit.progress.source.resume >= unit.source_next && unit.progress.redrive.resume >= unit.redrive_next
}

/// The ids of each key's events in the order of the outputs.
async fn outputs<S: Subject>(subject: &S, log: &S::Log) -> Ids {
    let topic = subject.topic("payments");
    let mut found = Ids::new();
    for record in records(subject, log, "payments", 0).await {
        let event =
            codec::decode(&record, Place { topic: &topic, partition: 0, offset: 0 }).expect("outputs are events");
        let key = String::from_utf8_lossy(&record.key.unwrap_or_default()).into_owned();
        found.entry(key).or_default().push(event.subject.expect("it names its origin").to_string());
    }
    found
}

/// The lists that the handler stored, of all units.
async fn stored<S: Subject>(log: &S::Log) -> Ids {
    let mut found = Ids::new();
    for unit in units::<S>(log).await {
        let range = StateRange { max: 100, max_bytes: 1 << 20, ..StateRange::default() };
        for entry in within(Catalog::state(log, &unit.unit, range)).await.expect("state can be listed") {
            let list = String::from_utf8_lossy(&entry.value).split_whitespace().map(str::to_owned).collect();
            found.insert(entry.key.to_string(), list);
        }
    }
    found
}

pub(crate) async fn effects_happen_once_in_order_and_failures_wait_for_a_person<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    within(log.create_topic(subject.topic("payments"), 1)).await.expect("the topic can be made");
    let handler = Handler::new(subject.topic("payments"));
    let mut ids = Ids::new();
    publish(&subject, &log, 0..100, &mut ids).await;
    let first = start(&subject, log, &handler).await;
    until(async || units::<S>(&first.0).await.iter().any(|unit| unit.progress.commits > 0)).await;
    // A second one joins in the middle, and the first one leaves.
    let second = start(&subject, subject.open().await, &handler).await;
    publish(&subject, &second.0, 100..200, &mut ids).await;
    until(async || !outputs(&subject, &second.0).await.is_empty()).await;
    stop(&subject, first).await;
    until(async || units::<S>(&second.0).await.iter().all(is_settled)).await;

    let failing = |id: &String| id.ends_with('3');
    let mut healthy = ids.clone();
    healthy.values_mut().for_each(|ids| ids.retain(|id| !failing(id)));
    assert_eq!(outputs(&subject, &second.0).await, healthy);
    assert_eq!(stored::<S>(&second.0).await, healthy);
    let totals = units::<S>(&second.0).await.into_iter().map(|unit| unit.progress.source.totals);
    let (completed, failed, duplicate) =
        totals.fold((0, 0, 0), |(c, f, d), t| (c + t.completed, f + t.dead_lettered, d + t.duplicate));
    // A repetition of what completed is a duplicate; what failed, fails again.
    assert_eq!((completed, failed, duplicate), (180, 40, 180));
    assert_eq!(within(second.0.open_letters(&function())).await.expect("letters can be counted"), 40);

    handler.mended.store(true, Ordering::SeqCst);
    let letters = within(second.0.letters(&function(), None, 100)).await.expect("letters can be listed");
    let letters: Vec<_> = letters.into_iter().map(|letter| letter.id).collect();
    let function = function();
    let redrive = second.0.act_on_letters(&function, &letters, LetterAction::Redrive, Force::No);
    within(redrive).await.expect("they are open");
    until(async || units::<S>(&second.0).await.iter().all(is_settled)).await;
    let letters = within(second.0.letters(&function, None, 100)).await.expect("letters can be listed");
    assert!(letters.iter().all(|letter| letter.status == LetterStatus::Resolved), "{letters:?}");
    // Each effect is there once, those of the redrive after those that did not fail.
    let expected = ids.into_iter().map(|(key, mut ids)| {
        ids.sort_by_key(failing);
        (key, ids)
    });
    let expected: Ids = expected.collect();
    assert_eq!(outputs(&subject, &second.0).await, expected);
    assert_eq!(stored::<S>(&second.0).await, expected);
    stop(&subject, second).await;
}

pub(crate) async fn what_is_settled_is_committed_while_the_next_event_is_handled<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    within(log.create_topic(subject.topic("payments"), 1)).await.expect("the topic can be made");
    let handler = Handler::new(subject.topic("payments"));
    let batch = vec![event(&subject, "quick", "test.event", "a"), event(&subject, "slow", HELD, "b")];
    within(log.publish(batch)).await.expect("the records are taken");
    let running = start(&subject, log, &handler).await;
    let expected = |outputs: &[(&str, &str)]| -> Ids {
        outputs.iter().map(|(key, id)| ((*key).to_owned(), vec![(*id).to_owned()])).collect()
    };
    // The other key's handler does not end, and nothing but a commit makes an output visible.
    until(async || outputs(&subject, &running.0).await == expected(&[("a", "quick")])).await;
    handler.let_go.add_permits(1);
    until(async || units::<S>(&running.0).await.iter().all(is_settled)).await;
    assert_eq!(outputs(&subject, &running.0).await, expected(&[("a", "quick"), ("b", "slow")]));
    stop(&subject, running).await;
}

/// Whether the one function's breaker is open.
fn is_open<S: Subject>(registry: &Registry<S::Log, Handler>) -> bool {
    registry.functions().iter().any(|info| matches!(info.breaker, Phase::Open { .. }))
}

async fn publish_broken<S: Subject>(subject: &S, log: &S::Log, numbers: std::ops::Range<usize>) {
    let broken = |number| event(subject, &format!("b{number}"), BROKEN, &format!("broken{number}"));
    within(log.publish(numbers.map(broken).collect())).await.expect("the records are taken");
}

pub(crate) async fn an_outage_burns_few_attempts<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    let handler = Handler::new(subject.topic("payments"));
    publish_broken(&subject, &log, 0..300).await;
    let more = "retry = { initial = \"10ms\", max = \"10ms\" }\nbreaker = { open = \"60s\" }\n";
    let running = start_with(&subject, log, &handler, more).await;
    until(async || is_open::<S>(&running.1)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outages = handler.outages.load(Ordering::SeqCst);
    assert!((10..30).contains(&outages), "{outages} attempts");
    stop(&subject, running).await;
}

pub(crate) async fn failing_keys_leave_room_for_new_ones<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    within(log.create_topic(subject.topic("payments"), 1)).await.expect("the topic can be made");
    let handler = Handler::new(subject.topic("payments"));
    publish_broken(&subject, &log, 0..100).await;
    // Each is due again before all others were tried.
    let more = "retry = { attempts = 1000, initial = \"1ms\", max = \"1ms\" }\nbreaker = { enabled = false }\n";
    let running = start_with(&subject, log, &handler, more).await;
    until(async || handler.outages.load(Ordering::SeqCst) > 100).await;
    let batch = (0..20).map(|number| event(&subject, &format!("e{number}"), "test.event", &format!("k{number}")));
    within(running.0.publish(batch.collect())).await.expect("the records are taken");
    until(async || outputs(&subject, &running.0).await.len() == 20).await;
    let outages = handler.outages.load(Ordering::SeqCst);
    assert!(outages < 50_000, "they waited for {outages} other attempts");
    stop(&subject, running).await;
}

pub(crate) async fn hundreds_of_failing_keys_are_remembered<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    within(log.create_topic(subject.topic("payments"), 1)).await.expect("the topic can be made");
    let handler = Handler::new(subject.topic("payments"));
    let more = "retry = { initial = \"1h\", max = \"1h\" }\nbreaker = { enabled = false }\n";
    let first = start_with(&subject, log, &handler, more).await;
    let event = |id: &str| event(&subject, id, "test.event", id);
    for round in 0..3 {
        // What is settled lies between what is not.
        within(first.0.publish(vec![event(&format!("e{round}"))])).await.expect("the records are taken");
        publish_broken(&subject, &first.0, round * 300..(round + 1) * 300).await;
    }
    let parked =
        async |log: &S::Log| -> usize { units::<S>(log).await.iter().map(|unit| unit.progress.parked.len()).sum() };
    until(async || parked(&first.0).await == 900).await;
    stop(&subject, first).await;
    let second = start_with(&subject, subject.open().await, &handler, more).await;
    within(second.0.publish(vec![event("late")])).await.expect("the record is taken");
    until(async || outputs(&subject, &second.0).await.len() == 4).await;
    assert_eq!(parked(&second.0).await, 900);
    // Their next attempts are due within an hour, each at a time of its own.
    let outages = handler.outages.load(Ordering::SeqCst);
    assert!(outages < 1800, "{outages} attempts");
    stop(&subject, second).await;
}
