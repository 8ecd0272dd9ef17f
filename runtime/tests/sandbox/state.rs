//! What a handler reads and writes of its state, and within which bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use futures::future::BoxFuture;
use millrace::sandbox::{
    CommittedState, Completion, EngineOptions, Error, Function, FunctionOptions, Guest, Invocation, NoState, Refusal,
    Sandbox, StateView,
};
use millrace_core::event::Event;
use millrace_core::limits;
use millrace_core::outcome::{Category, Outcome};
use millrace_core::state::{Overlay, StateWrite, Writes};

use super::harness::{attempt, engine, event, failed, options};

/// What is committed, or why it cannot be read.
struct Stored(Result<BTreeMap<ByteString, Bytes>, Error>);

impl Stored {
    fn of(pairs: &[(&'static str, &'static str)]) -> Arc<dyn CommittedState> {
        let pairs = pairs.iter().map(|(key, value)| ((*key).into(), Bytes::from_static(value.as_bytes())));
        Arc::new(Self(Ok(pairs.collect())))
    }
}

impl CommittedState for Stored {
    fn get(&self, keys: Vec<ByteString>) -> BoxFuture<'static, Result<Vec<Option<Bytes>>, Error>> {
        let found = self.0.clone().map(|all| keys.iter().map(|key| all.get(key).cloned()).collect());
        Box::pin(async {
            // A real one waits, too.
            tokio::task::yield_now().await;
            found
        })
    }

    fn keys(&self, after: Option<ByteString>, max: usize) -> BoxFuture<'static, Result<Vec<ByteString>, Error>> {
        let follows = |key: &ByteString| after.as_ref().is_none_or(|after| key > after);
        let found = self.0.clone().map(|all| all.into_keys().filter(follows).take(max).collect());
        Box::pin(std::future::ready(found))
    }
}

fn fixture() -> Bytes {
    wat::parse_str(include_str!("../../../tests/fixtures/state.wat")).unwrap().into()
}

async fn guest() -> Guest {
    let engine = engine(EngineOptions::default());
    let component = engine.load(fixture()).await.unwrap();
    Function::new(&engine, &component, FunctionOptions { state: true, ..options() }).unwrap().guest()
}

fn write(key: &str, value: Option<&'static str>) -> StateWrite {
    StateWrite { key: key.into(), value: value.map(|value| Bytes::from_static(value.as_bytes())) }
}

/// What a guest sees: the committed `a=1 b=2 c=3`, above it an overlay that changes `b`, deletes `c` and adds `d`.
fn view() -> StateView {
    let mut overlay = Overlay::default();
    overlay.stage(Writes::from_iter([write("b", Some("20")), write("c", None)]));
    overlay.seal();
    overlay.stage(Writes::from_iter([write("d", Some("40"))]));
    StateView::new(Stored::of(&[("a", "1"), ("b", "2"), ("c", "3")]), Arc::new(overlay))
}

fn about(ty: &'static str, key: impl Into<ByteString>, data: impl Into<Bytes>) -> Event {
    Event { subject: Some(key.into()), data: Some(data.into()), ..event(ty) }
}

async fn invoke(guest: &mut Guest, event: &Event, state: StateView) -> Result<Completion, Error> {
    guest.invoke(Invocation { state: Some(state), ..attempt(event) }).await
}

/// Runs an event that says what it learnt.
async fn said(event: Event) -> String {
    let completion = invoke(&mut guest().await, &event, view()).await.unwrap();
    let (category, reason) = failed(&completion);
    assert_eq!(category, Category::Rejected, "{reason}");
    assert!(completion.state.is_empty(), "a failed attempt leaves no trace");
    reason.to_owned()
}

#[tokio::test]
async fn a_guest_sees_what_is_committed_and_what_is_not_yet() {
    for (key, expected) in [("a", "1"), ("b", "20"), ("c", "none"), ("d", "40"), ("e", "none")] {
        assert_eq!(said(about("g", key, "")).await, expected, "{key}");
        let exists = if expected == "none" { "none" } else { "later" };
        assert_eq!(said(about("x", key, "")).await, exists, "{key}");
    }
    assert_eq!(said(about("l", "", "")).await, "a");
}

#[tokio::test]
async fn what_a_guest_writes_leaves_with_its_completion() {
    let mut guest = guest().await;
    for (event, expected) in [
        (about("s", "a", "9"), vec![write("a", Some("9"))]),
        (about("S", "new", "9"), vec![write("new", Some("9"))]),
        (about("d", "a", ""), vec![write("a", None)]),
        (about("s", "empty", ""), vec![write("empty", Some(""))]),
    ] {
        let completion = invoke(&mut guest, &event, view()).await.unwrap();
        assert_eq!(completion.outcome, Outcome::Completed);
        // The instance is the same, and knows nothing of what the one before wrote.
        assert_eq!(completion.state.iter().collect::<Vec<_>>(), expected);
    }
    let trapped = invoke(&mut guest, &about("b", "a", "9"), view()).await.unwrap();
    assert_eq!(failed(&trapped).0, Category::Unknown);
    assert!(trapped.state.is_empty());
}

#[tokio::test]
async fn bounds_are_errors_that_say_what_they_are() {
    let long = "k".repeat(limits::STATE_KEY_MAX_BYTES + 1);
    let large = vec![0; limits::STATE_VALUE_MAX_BYTES + 1];
    for ty in ["s", "g", "d"] {
        assert_eq!(said(about(ty, long.clone(), "")).await, "the key has 1025 bytes, more than 1024", "{ty}");
        assert_eq!(said(about(ty, "", "")).await, "the key is empty", "{ty}");
    }
    assert_eq!(said(about("s", "a", large)).await, "the value has 262145 bytes, more than 262144");
    assert_eq!(said(about("n", "", "")).await, "the invocation has written 1000 keys, and may not write more");
    assert_eq!(said(about("L", "", "")).await, "this invocation was not given the cursor 7");
}

#[tokio::test]
async fn there_is_one_store() {
    let mut guest = guest().await;
    for name in ["default", ""] {
        let completion = invoke(&mut guest, &about("o", name, ""), view()).await.unwrap();
        assert_eq!(completion.outcome, Outcome::Completed, "{name}");
    }
    let completion = invoke(&mut guest, &about("o", "sessions", ""), view()).await.unwrap();
    assert_eq!(failed(&completion), (Category::Rejected, "none"));
    assert_eq!(completion.logs[0].message, "there is no store `sessions`: open `default`, the only one there is");
}

#[tokio::test]
async fn state_that_cannot_be_read_is_not_the_guests_fault() {
    let broken: Arc<dyn CommittedState> = Arc::new(Stored(Err(Error("the disk is gone".to_owned()))));
    let view = StateView::new(broken, Arc::default());
    let mut guest = guest().await;
    for ty in ["g", "x", "l"] {
        let error = invoke(&mut guest, &about(ty, "a", ""), view.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), "the disk is gone", "{ty}");
    }
    // It goes on once the state can be read.
    let nothing = StateView::new(Arc::new(NoState), Arc::default());
    let completion = invoke(&mut guest, &about("g", "a", ""), nothing).await.unwrap();
    assert_eq!(failed(&completion), (Category::Rejected, "none"));
}

#[tokio::test]
async fn a_component_that_keeps_state_must_be_granted_it() {
    let engine = engine(EngineOptions::default());
    let component = engine.load(fixture()).await.unwrap();
    let refusal = Function::new(&engine, &component, options()).unwrap_err();
    assert!(matches!(refusal, Refusal::NotGranted { .. }));
    assert_eq!(
        refusal.to_string(),
        "the component imports `wasi:keyvalue/store@0.2.0-draft`, and its function has no such grant: \
         write `grants = { state = true }` into its table of the manifest, or take out what needs it"
    );
}
