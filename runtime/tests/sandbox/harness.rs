//! One engine and one compiled fixture for all tests, and short ways to write an event and run it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace::sandbox::{
    Completion, Component, Delivery, Engine, EngineOptions, Function, FunctionOptions, Guest, GuestLimits, Invocation,
    Sandbox, TraceContext,
};
use millrace_core::event::Event;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::outcome::{Category, Outcome};
use tokio::sync::OnceCell;

/// The fixture as a component.
pub(crate) fn guest_bytes() -> Bytes {
    wat::parse_str(include_str!("../../../tests/fixtures/guest.wat")).unwrap().into()
}

/// An engine with a pool small enough for many of them.
pub(crate) fn engine(options: EngineOptions) -> Engine {
    Engine::new(EngineOptions { max_instances: 64, ..options }).unwrap()
}

async fn shared() -> &'static (Engine, Component) {
    static SHARED: OnceCell<(Engine, Component)> = OnceCell::const_new();
    let make = async || {
        let engine = engine(EngineOptions::default());
        let component = engine.load(guest_bytes()).await.unwrap();
        (engine, component)
    };
    SHARED.get_or_init(make).await
}

/// Options of a function `shop.orders` that may publish to `out` and to `gone`, which does not exist. `closed` exists and is
/// not granted.
pub(crate) fn options() -> FunctionOptions {
    FunctionOptions {
        name: FunctionName::new("shop", "orders").unwrap(),
        config: vec![("b".into(), "old".into()), ("a".into(), "1".into()), ("b".into(), "2".into())],
        publish: vec![topic("out"), topic("gone")],
        state: false,
        known_topics: Arc::new(|topic| matches!(topic.as_str(), "in" | "out" | "closed")),
        limits: GuestLimits { time: Duration::from_secs(10), memory_bytes: 16 << 20, ..GuestLimits::default() },
        reuse: NonZeroU32::new(1000).unwrap(),
    }
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name.to_owned()).unwrap()
}

/// A guest with other options.
pub(crate) async fn guest_with(change: impl FnOnce(&mut FunctionOptions)) -> Guest {
    let (engine, component) = shared().await;
    let mut options = options();
    change(&mut options);
    Function::new(engine, component, options).unwrap().guest()
}

/// A guest with the usual options.
pub(crate) async fn guest() -> Guest {
    guest_with(|_| ()).await
}

/// An event of this type.
pub(crate) fn event(ty: &'static str) -> Event {
    Event {
        id: "e-1".into(),
        source: "/shop".into(),
        ty: ty.into(),
        subject: Some("out".into()),
        time: None,
        datacontenttype: Some("application/json".into()),
        dataschema: None,
        extensions: Vec::new(),
        data: Some(Bytes::from_static(b"{}")),
    }
}

/// A first attempt at an event.
pub(crate) fn attempt(event: &Event) -> Invocation<'_> {
    let delivery = Delivery {
        topic: topic("in"),
        partition: 3,
        offset: 41,
        key: Some(Bytes::from_static(b"customer-7")),
        attempt: 1,
        idempotency_key: "/shop e-1".into(),
    };
    let trace = TraceContext { parent: "00-1-2-01".into(), state: Some("vendor=1".into()) };
    Invocation { event, delivery, trace: Some(trace), state: None }
}

/// Runs an event of this type in a new guest with the usual options.
pub(crate) async fn run(ty: &'static str) -> Completion {
    guest().await.invoke(attempt(&event(ty))).await.unwrap()
}

/// The category and the reason of a failed attempt.
pub(crate) fn failed(completion: &Completion) -> (Category, &str) {
    assert!(completion.emitted.is_empty(), "a failed attempt has no effects");
    match &completion.outcome {
        Outcome::Failed(failure) => (failure.category, &failure.reason),
        Outcome::Completed => panic!("it completed: {completion:?}"),
    }
}

/// Extension attributes from pairs.
pub(crate) fn extensions(pairs: &[(&'static str, &'static str)]) -> Vec<(ByteString, ByteString)> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}
