//! What a handler finds of the machine that it runs on: the time and randomness, and nothing else. `tests/fixtures/wasi.wat` looks around for it.

use std::time::UNIX_EPOCH;

use millrace::sandbox::{Completion, EngineOptions, Function, Guest, Sandbox};
use millrace_core::event::Event;
use millrace_core::outcome::{Category, Outcome};
use millrace_core::time::Timestamp;

use super::harness::{attempt, engine, event, failed, options};

/// The most random bytes that a handler gets at once.
const RANDOM_MAX_BYTES: u64 = 1 << 20;
/// Places among the cases of `error-code` in `wasi:sockets/network`, from 1.
const ACCESS_DENIED: u64 = 2;
/// See [`ACCESS_DENIED`].
const PERMANENT_RESOLVER_FAILURE: u64 = 21;

async fn guest() -> Guest {
    let engine = engine(EngineOptions::default());
    let bytes = wat::parse_str(include_str!("../../../tests/fixtures/wasi.wat")).unwrap();
    let component = engine.load(bytes.into()).await.unwrap();
    Function::new(&engine, &component, options()).unwrap().guest()
}

/// Lets it look at what this letter says, with this number as the event's time.
async fn look(guest: &mut Guest, letter: &'static str, number: u64) -> Completion {
    let event = Event { time: Some(Timestamp::from_nanos(number)), ..event(letter) };
    guest.invoke(attempt(&event)).await.unwrap()
}

/// The number that it finds.
async fn found(guest: &mut Guest, letter: &'static str, number: u64) -> u64 {
    let Outcome::Failed(failure) = look(guest, letter, number).await.outcome else {
        panic!("{letter}: it tells by failing")
    };
    assert_eq!(failure.category, Category::Transient, "{letter}: {failure:?}");
    u64::try_from(failure.retry_after.unwrap().as_nanos()).unwrap()
}

#[tokio::test]
async fn a_handler_has_no_environment_no_arguments_and_no_files() {
    let mut guest = guest().await;
    assert!(std::env::vars_os().count() > 0 && std::env::args_os().count() > 0, "this process has some");
    for letter in ["e", "a", "w", "d"] {
        assert_eq!(found(&mut guest, letter, 0).await, 0, "{letter}");
    }
}

#[tokio::test]
async fn a_handler_has_no_network() {
    let mut guest = guest().await;
    for (letter, error) in [("t", ACCESS_DENIED), ("u", ACCESS_DENIED), ("n", PERMANENT_RESOLVER_FAILURE)] {
        assert_eq!(found(&mut guest, letter, 0).await, error, "{letter}");
    }
}

#[tokio::test]
async fn a_handler_has_the_time() {
    let told = found(&mut guest().await, "c", 0).await;
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(told.abs_diff(now) < 60, "{told} and {now}");
}

#[tokio::test]
async fn a_handler_has_randomness_up_to_a_bound() {
    let mut guest = guest().await;
    for (letter, number) in [("r", 0), ("B", 8)] {
        let (one, other) = (found(&mut guest, letter, number).await, found(&mut guest, letter, number).await);
        assert_ne!(one, other, "{letter}");
    }
    assert_eq!(found(&mut guest, "b", RANDOM_MAX_BYTES).await, RANDOM_MAX_BYTES);
    let completion = look(&mut guest, "b", RANDOM_MAX_BYTES + 1).await;
    let (category, reason) = failed(&completion);
    assert!(category == Category::Unknown && reason.contains("exceeds limit 1048576"), "{reason}");
}
