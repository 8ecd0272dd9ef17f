//! More guests than there is room for: those without work give up their instances, those with work take turns.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace::sandbox::{Engine, EngineOptions, Error, Function, FunctionOptions, Guest, Sandbox};
use tokio::task::JoinSet;

use super::harness::{attempt, event, guest_bytes, options};

async fn function(instances: u32, component: Bytes) -> Function {
    let engine = Engine::new(EngineOptions { max_instances: instances, ..EngineOptions::default() }).unwrap();
    let component = engine.load(component).await.unwrap();
    // A guest gives its place up by itself after so many events.
    Function::new(&engine, &component, FunctionOptions { reuse: NonZeroU32::MAX, ..options() }).unwrap()
}

/// The fixture with as many memories more.
fn with_memories(more: usize) -> Bytes {
    let text = include_str!("../../../tests/fixtures/guest.wat");
    let end = text.rfind(')').unwrap();
    let memory = "(core instance (instantiate $more))";
    let more = format!("(core module $more (memory 1)) {}", memory.repeat(more));
    wat::parse_str(format!("{}{more})", &text[..end])).unwrap().into()
}

/// How many events the guest's instance has handled, this one included.
async fn age(guest: &mut Guest) -> Result<String, Error> {
    Ok(guest.invoke(attempt(&event("s"))).await?.logs[0].message.clone())
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_finds_no_room_is_an_error_of_the_host() {
    let function = function(1, guest_bytes()).await;
    let (mut one, mut two) = (function.guest(), function.guest());
    assert_eq!(age(&mut one).await.unwrap(), "1");
    let error = age(&mut two).await.unwrap_err().to_string();
    assert!(error.starts_with("no instance is free: all 1 were busy for 10s"), "{error}");
    drop(one);
    assert_eq!(age(&mut two).await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn guests_without_work_leave_room_for_those_with_work() {
    let function = function(2, guest_bytes()).await;
    let mut guests: Vec<Guest> = (0..5).map(|_| function.guest()).collect();
    for _ in 0..3 {
        for guest in &mut guests {
            age(guest).await.unwrap();
            guest.idle();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_work_keeps_its_instance_while_there_is_room_to_spare() {
    let function = function(32, guest_bytes()).await;
    let mut guests: Vec<Guest> = (0..32).map(|_| function.guest()).collect();
    let mut kept = 0;
    for age_now in ["1", "2"] {
        kept = 0;
        for guest in &mut guests {
            let age = age(guest).await.unwrap();
            assert!(age == "1" || age == age_now, "{age}");
            kept += usize::from(age == age_now);
            guest.idle();
        }
    }
    assert_eq!(kept, 24, "a quarter of the pool is for others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_guests_take_turns() {
    const GUESTS: u32 = 5;
    const INVOCATIONS: u32 = 100;
    let function = function(2, guest_bytes()).await;
    let done = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..GUESTS {
        let (mut guest, done) = (function.guest(), Arc::clone(&done));
        tasks.spawn(async move {
            let mut invocations = 0;
            // Nobody stops before all have had their turn.
            while done.load(Ordering::Relaxed) < GUESTS {
                guest.invoke(attempt(&event("E"))).await.unwrap();
                invocations += 1;
                if invocations == INVOCATIONS {
                    done.fetch_add(1, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn an_instance_with_several_memories_waits_for_room_for_all_of_them() {
    let function = function(8, with_memories(3)).await;
    let (mut one, mut two, mut three) = (function.guest(), function.guest(), function.guest());
    age(&mut one).await.unwrap();
    age(&mut two).await.unwrap();
    let waiting = tokio::spawn(async move { age(&mut three).await });
    tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await.unwrap_err();
    assert!(!waiting.is_finished(), "it waits, and is not refused");
    drop(one);
    assert_eq!(waiting.await.unwrap().unwrap(), "1");
}
