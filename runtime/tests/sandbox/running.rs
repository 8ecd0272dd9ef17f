//! What an attempt gives: outcome, effects, logs, usage, and an instance that lives or dies.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace::sandbox::{Completion, Delivery, Guest, Invocation, LogLevel, LogLine, Sandbox};
use millrace_core::event::Event;
use millrace_core::outcome::{Category, Outcome, REASON_MAX_BYTES};
use millrace_core::time::Timestamp;

use super::harness::{attempt, event, extensions, failed, guest, guest_with, run};

fn with_data(ty: &'static str, data: &'static [u8]) -> Event {
    Event { data: Some(Bytes::from_static(data)), ..event(ty) }
}

async fn invoke(guest: &mut Guest, event: Event) -> Completion {
    guest.invoke(attempt(&event)).await.unwrap()
}

fn messages(completion: &Completion) -> Vec<&str> {
    completion.logs.iter().map(|line| line.message.as_str()).collect()
}

#[tokio::test]
async fn a_handler_that_does_nothing_completes() {
    let completion = run("o").await;
    assert_eq!(completion.outcome, Outcome::Completed);
    assert!(completion.emitted.is_empty() && completion.logs.is_empty());
    assert_eq!(completion.usage.memory_bytes, 2 << 20);
    assert!(completion.usage.elapsed > Duration::ZERO);
}

#[tokio::test]
async fn a_failure_keeps_its_category_and_reason() {
    for (ty, category, reason, retry_after) in [
        ("x", Category::Transient, "later", Some(Duration::from_millis(1500))),
        ("X", Category::Transient, "later", None),
        ("i", Category::Invalid, "malformed", None),
        ("j", Category::Rejected, "not allowed", None),
    ] {
        let completion = run(ty).await;
        assert_eq!(failed(&completion), (category, reason), "{ty}");
        let Outcome::Failed(failure) = completion.outcome else { unreachable!() };
        assert_eq!(failure.retry_after, retry_after, "{ty}");
    }
}

/// Runs an event that must end as unknown, with all parts in its reason, in this order.
async fn check_unknown(mut guest: Guest, event: Event, expected: &[&str]) {
    let completion = invoke(&mut guest, event).await;
    let (category, reason) = failed(&completion);
    assert_eq!(category, Category::Unknown, "{reason}");
    let mut rest = reason;
    for part in expected {
        let at = rest.find(part).unwrap_or_else(|| panic!("`{part}` is missing or too early in: {reason}"));
        rest = &rest[at + part.len()..];
    }
    assert!(reason.len() <= REASON_MAX_BYTES && !reason.contains('\n'), "{reason}");
    assert_eq!(invoke(&mut guest, self::event("o")).await.outcome, Outcome::Completed, "the guest can be used again");
}

#[tokio::test]
async fn a_trap_is_told_with_the_functions_that_ran() {
    check_unknown(guest().await, event("t"), &["trap: ", "unreachable", "in explode < act < handle"]).await;
    check_unknown(guest().await, event("r"), &["trap: ", "stack", "in recurse (", " times)"]).await;
    check_unknown(guest().await, event("k"), &["borrow"]).await;
}

#[tokio::test]
async fn last_words_come_first() {
    let panic =
        b"ignored\nthread 'main' panicked at src/lib.rs:7:5:\nno stock table\nnote: run with `RUST_BACKTRACE=1`\n";
    let said = "panicked at src/lib.rs:7:5: no stock table; trap: ";
    check_unknown(guest().await, with_data("p", panic), &[said, "in explode"]).await;
    check_unknown(guest().await, with_data("p", b"1\n2\n3\n4"), &["2 3 4; trap: "]).await;
    let quiet = guest_with(|options| options.limits.log_bytes = 0).await;
    check_unknown(quiet, with_data("p", panic), &[said]).await;
}

#[tokio::test]
async fn a_handler_that_ends_itself_is_told_with_its_status() {
    check_unknown(guest().await, event("q"), &["exited with status 1"]).await;
}

#[tokio::test]
async fn time_is_bounded_whether_a_guest_computes_or_waits() {
    for (ty, expected) in
        [("l", &["timed out after 50ms", "in spin < act < handle"][..]), ("w", &["timed out after 50ms"])]
    {
        let guest = guest_with(|options| options.limits.time = Duration::from_millis(50)).await;
        let started = Instant::now();
        check_unknown(guest, event(ty), expected).await;
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_busy_guest_does_not_hold_its_thread() {
    let mut busy = guest_with(|options| options.limits.time = Duration::from_millis(500)).await;
    let mut other = guest().await;
    invoke(&mut other, event("o")).await;
    // The runtime of this test has one thread, and the busy guest gets it first.
    let (timed_out, completed) = tokio::join!(invoke(&mut busy, event("l")), async {
        let completion = invoke(&mut other, event("o")).await;
        (completion, Instant::now())
    });
    assert_eq!(completed.0.outcome, Outcome::Completed);
    assert_eq!(failed(&timed_out).0, Category::Unknown);
    assert!(completed.1.elapsed() > Duration::from_millis(200), "the short call ended long before the busy one");
}

#[tokio::test]
async fn memory_and_tables_are_bounded_and_the_bound_is_named() {
    check_unknown(guest().await, event("g"), &["out of memory: it may use 16 MiB", "trap: ", "in explode"]).await;
    check_unknown(guest().await, event("T"), &["out of table space", "100000 elements"]).await;
    let completion = run("G").await;
    assert_eq!(completion.outcome, Outcome::Completed, "a guest may live with a refusal");
    assert_eq!(completion.usage.memory_bytes, 16 << 20);
}

#[tokio::test]
async fn host_resources_are_bounded() {
    check_unknown(guest().await, event("R"), &["resource table"]).await;
}

#[tokio::test]
async fn what_a_guest_hands_over_is_checked() {
    check_unknown(guest().await, event("U"), &["utf-8"]).await;
    check_unknown(guest().await, event("O"), &["out of bounds"]).await;
}

/// All of a guest's memory may come at once, and is told to be too much as any other emission is. Only what overlaps can be more.
#[tokio::test]
async fn what_one_host_call_takes_is_bounded() {
    const MEMORY_BYTES: usize = 2 << 20;
    let whole = |ty: &'static str| Event { time: Some(Timestamp::from_nanos(MEMORY_BYTES as u64)), ..event(ty) };
    let too_large = (Category::Rejected, "too large");
    let mut small = guest_with(|options| options.limits.memory_bytes = MEMORY_BYTES).await;
    assert_eq!(failed(&invoke(&mut small, whole("h")).await), too_large);
    assert_eq!(failed(&invoke(&mut guest().await, whole("H")).await), too_large, "the bound grows with the memory");

    assert_eq!(messages(&invoke(&mut small, event("s")).await), ["1"]);
    let completion = invoke(&mut small, whole("H")).await;
    let (category, reason) = failed(&completion);
    assert!(category == Category::Unknown && reason.contains("too much data"), "{reason}");
    assert_eq!(messages(&invoke(&mut small, event("s")).await), ["1"], "the instance is a fresh one");
}

#[tokio::test]
async fn an_emitted_event_is_complete() {
    let completion = invoke(&mut guest().await, event("E")).await;
    let [emission] = completion.emitted.as_slice() else { panic!("one event: {completion:?}") };
    assert_eq!(emission.topic.as_str(), "out");
    assert_eq!(emission.record.key.as_deref(), Some(&b"customer-7"[..]));
    let expected = Event {
        id: emission.event().unwrap().id,
        source: "/millrace/shop/orders".into(),
        ty: "emitted".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: extensions(&[
            ("causationid", "e-1"),
            ("correlationid", "e-1"),
            ("traceparent", "00-1-2-01"),
            ("tracestate", "vendor=1"),
        ]),
        data: Some(Bytes::from_static(b"{}")),
    };
    assert_eq!(emission.event().unwrap(), expected);
    assert_eq!(emission.event().unwrap().id.len(), 32);
}

#[tokio::test]
async fn ids_repeat_on_redelivery_and_differ_otherwise() {
    let mut ids = Vec::new();
    let (many, one) = (event("n"), event("E"));
    let change = |change: fn(&mut Delivery)| {
        let mut invocation = attempt(&many);
        change(&mut invocation.delivery);
        invocation
    };
    for invocation in [
        change(|_| ()),
        change(|delivery| delivery.attempt = 2),
        change(|delivery| (delivery.offset, delivery.partition) = (9, 9)),
        change(|delivery| delivery.idempotency_key = "other".into()),
        change(|delivery| delivery.topic = super::harness::topic("closed")),
    ] {
        let mut guest = guest_with(|options| options.limits.emitted_events = 2).await;
        // It ends as rejected, so that its events are gone: look at those of a single one.
        assert_eq!(failed(&guest.invoke(invocation.clone()).await.unwrap()), (Category::Rejected, "too many"));
        let single = Invocation { event: &one, ..invocation };
        ids.push(guest.invoke(single).await.unwrap().emitted[0].event().unwrap().id.clone());
    }
    assert!(ids[0] == ids[1] && ids[0] == ids[2]);
    assert!(ids[0] != ids[3] && ids[0] != ids[4] && ids[3] != ids[4]);
}

#[tokio::test]
async fn extensions_that_a_guest_sets_are_kept() {
    let set = extensions(&[("correlationid", "c-9"), ("traceparent", "00-7-7-00"), ("zone", "a")]);
    let sent = Event { extensions: set, ..event("e") };
    let completion = invoke(&mut guest().await, sent.clone()).await;
    let expected =
        extensions(&[("causationid", "e-1"), ("correlationid", "c-9"), ("traceparent", "00-7-7-00"), ("zone", "a")]);
    assert_eq!(
        completion.emitted[0].event().unwrap().extensions,
        expected,
        "a parent of one's own has no state of another"
    );

    let inherited = invoke(&mut guest().await, Event { ty: "E".into(), ..sent }).await;
    assert_eq!(inherited.emitted[0].event().unwrap().extension("correlationid").unwrap(), "c-9", "inherited");
}

#[tokio::test]
async fn a_refused_emission_is_a_typed_error() {
    let to = |topic: &'static str| Event { subject: Some(topic.into()), ..event("E") };
    let ty = |ty: &'static str| Event { dataschema: Some(ty.into()), ..event("E") };
    let with = |name: &'static str| Event { extensions: extensions(&[(name, "1")]), ..event("e") };
    let of_size = |bytes: u64| Event { time: Some(Timestamp::from_nanos(bytes)), ..event("h") };
    for (event, expected) in [
        (to("nowhere"), "nowhere"),
        (to("gone"), "gone"),
        (to("closed"), "closed"),
        (to("no topic at all"), "no topic at all"),
        (to(""), ""),
        (ty(""), "type: must not be empty"),
        (ty("a\u{7}"), "type: must not contain control characters"),
        (with("Zone"), "Zone: the name of an extension has 1 to 64 lower-case letters and digits"),
        (with("a-b"), "a-b: the name of an extension has 1 to 64 lower-case letters and digits"),
        (with(""), ": the name of an extension has 1 to 64 lower-case letters and digits"),
        (with("source"), "source: is not an extension; set the attribute itself"),
        (with("data"), "data: is not an extension; set the attribute itself"),
        (of_size(1 << 20), "too large"),
        (of_size(2 << 20), "too large"),
    ] {
        let completion = invoke(&mut guest().await, event.clone()).await;
        assert_eq!(failed(&completion), (Category::Rejected, expected), "{event:?}");
    }
}

/// What the handler is told fits, the log takes: it counts whole records.
#[tokio::test]
async fn an_emitted_event_is_measured_as_the_record_that_it_becomes() {
    const MAX_BYTES: usize = 1 << 20;
    let of_size = |bytes: usize| Event { time: Some(Timestamp::from_nanos(bytes as u64)), ..event("h") };
    let record = async |bytes: usize| {
        let completion = invoke(&mut guest().await, of_size(bytes)).await;
        if completion.emitted.is_empty() {
            assert_eq!(failed(&completion), (Category::Rejected, "too large"), "{bytes}");
            return None;
        }
        Some(completion.emitted[0].record.clone())
    };
    let around_bytes = record(1).await.unwrap().size_bytes() - 1;
    assert!(around_bytes > 100, "identity, causation and trace count: {around_bytes}");
    let largest = record(MAX_BYTES - around_bytes).await.unwrap();
    assert_eq!((largest.size_bytes(), largest.value.unwrap().len()), (MAX_BYTES, MAX_BYTES - around_bytes));
    assert!(record(MAX_BYTES - around_bytes + 1).await.is_none(), "one byte more is too large");
}

#[tokio::test]
async fn emitted_bytes_are_bounded() {
    let mut guest = guest_with(|options| options.limits.emitted_bytes = 8).await;
    assert_eq!(failed(&invoke(&mut guest, event("E")).await).1, "too many", "two bytes of data and seven of type");
    let mut guest = guest_with(|options| options.limits.emitted_bytes = 9).await;
    assert_eq!(invoke(&mut guest, event("E")).await.emitted.len(), 1);
    assert_eq!(invoke(&mut guest, event("E")).await.emitted.len(), 1, "each invocation has the whole bound");
}

#[tokio::test]
async fn what_was_emitted_before_a_trap_is_gone() {
    let completion = run("b").await;
    assert_eq!(failed(&completion).0, Category::Unknown);
}

#[tokio::test]
async fn a_handler_learns_how_its_event_came() {
    let event = event("d");
    let mut invocation = attempt(&event);
    invocation.delivery.attempt = 7;
    let completion = guest().await.invoke(invocation).await.unwrap();
    let emission = &completion.emitted[0];
    assert_eq!(emission.event().unwrap().subject.as_deref(), Some("in"));
    assert_eq!(emission.event().unwrap().datacontenttype.as_deref(), Some("/shop e-1"));
    assert_eq!(emission.event().unwrap().time, Some(Timestamp::from_nanos(41)));
    assert_eq!(emission.record.key.as_deref(), Some(&b"customer-7"[..]));
    let data = emission.event().unwrap().data.unwrap();
    let number = |from: usize| u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
    assert_eq!((number(0), number(4)), (3, 7));
    let remaining = Duration::from_nanos(u64::from_le_bytes(data[8..].try_into().unwrap()));
    assert!(remaining <= Duration::from_secs(10) && remaining > Duration::from_secs(5), "{remaining:?}");
}

#[tokio::test]
async fn configuration_is_what_the_manifest_says() {
    for (name, value) in [(&b"a"[..], "1"), (b"b", "2")] {
        let completion = invoke(&mut guest().await, with_data("c", name)).await;
        assert_eq!(completion.emitted[0].event().unwrap().data.as_deref(), Some(value.as_bytes()));
    }
    assert_eq!(failed(&invoke(&mut guest().await, with_data("c", b"z")).await), (Category::Rejected, "none"));
}

#[tokio::test]
async fn logs_come_with_every_outcome() {
    let completion = invoke(&mut guest().await, with_data("m", b"hello")).await;
    let line = LogLine { level: LogLevel::Info, context: "ctx".into(), message: "hello".into() };
    assert_eq!(completion.logs, [line]);
    let completion = invoke(&mut guest().await, with_data("p", b"one\ntwo")).await;
    assert_eq!(messages(&completion), ["one", "two"]);
    assert_eq!(completion.logs[0].context, "stderr");
}

#[tokio::test]
async fn logs_are_bounded_and_the_cut_is_told() {
    for (ty, data) in [("L", &b""[..]), ("a", b"x\n"), ("a", b"no line end")] {
        let guest = guest_with(|options| {
            options.limits.log_bytes = 200;
            options.limits.time = Duration::from_millis(100);
        });
        let completion = invoke(&mut guest.await, with_data(ty, data)).await;
        let bytes: usize = completion.logs.iter().map(|line| line.message.len() + line.context.len()).sum();
        assert!(bytes <= 200 + "millracelog truncated".len(), "{ty}: {:?}", completion.logs);
        assert_eq!(messages(&completion).last(), Some(&"log truncated"), "{ty}");
    }
}

/// How many events the instance had handled, this one included, for each event of a script of types.
async fn lives(mut guest: Guest, script: &[(&'static str, u32)]) -> String {
    let mut handled = String::new();
    for (ty, attempt_number) in script {
        let event = event(ty);
        let mut invocation = attempt(&event);
        invocation.delivery.attempt = *attempt_number;
        let completion = guest.invoke(invocation).await.unwrap();
        handled.push_str(completion.logs.first().map_or("-", |line| &line.message));
    }
    handled
}

#[tokio::test]
async fn an_instance_lives_until_something_goes_wrong() {
    let reuse = |reuse: u32| guest_with(move |options| options.reuse = NonZeroU32::new(reuse).unwrap());
    for (limit, script, expected) in [
        (1000, &[("s", 1), ("s", 1), ("s", 1)][..], "123"),
        (2, &[("s", 1), ("s", 1), ("s", 1), ("s", 1), ("s", 1)], "12121"),
        (1, &[("s", 1), ("s", 1)], "11"),
        (1000, &[("s", 1), ("t", 1), ("s", 1)], "1-1"),
        (1000, &[("s", 1), ("j", 1), ("s", 1)], "1-1"),
        (1000, &[("s", 1), ("s", 2), ("s", 3), ("s", 1)], "1112"),
    ] {
        assert_eq!(lives(reuse(limit).await, script).await, expected, "{script:?}");
    }
}

#[tokio::test]
async fn an_invocation_that_is_given_up_leaves_the_guest_usable() {
    let mut guest = guest().await;
    assert_eq!(messages(&invoke(&mut guest, event("s")).await), ["1"]);
    for ty in ["l", "w"] {
        let given_up = tokio::time::timeout(Duration::from_millis(20), guest.invoke(attempt(&event(ty)))).await;
        assert!(given_up.is_err());
        assert_eq!(messages(&invoke(&mut guest, event("s")).await), ["1"], "the instance is a fresh one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_run_on_many_threads() {
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            tokio::spawn(async move {
                let mut guest = guest_with(|options| options.reuse = NonZeroU32::new(number + 1).unwrap()).await;
                let mut emitted = 0;
                for _ in 0..50 {
                    emitted += invoke(&mut guest, event("E")).await.emitted.len();
                }
                emitted
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 50);
    }
}
