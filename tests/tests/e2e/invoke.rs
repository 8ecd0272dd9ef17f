//! An application without a server: `millrace invoke` runs a handler on one event, `millrace bench` on many.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use millrace_tests::process::{program, root};
use serde_json::{Value, json};

/// The manifest of a guest example in a directory of its own, so that nothing is left in the repository, and an event.
fn write(directory: &Path, example: &str, event: &Value) {
    let manifest = root().join("guest-examples").join(example).join("millrace.toml");
    let manifest = fs::read_to_string(manifest).expect("a file").replace("../..", &root().to_string_lossy());
    fs::write(directory.join("millrace.toml"), manifest).expect("a file");
    fs::write(directory.join("event.json"), event.to_string()).expect("a file");
}

/// The event that comes with the hello example.
fn visitor() -> Value {
    let event = fs::read_to_string(root().join("guest-examples/hello/event.json")).expect("a file");
    serde_json::from_str(&event).expect("JSON")
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).current_dir(directory).output().expect("the binary can be started")
}

/// The exit code and what is printed for a person.
fn shown(directory: &Path, function: &str) -> (Option<i32>, String) {
    let ran = run(directory, &["invoke", function, "--event", "event.json"]);
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// The exit code and what is printed for a program.
fn told(directory: &Path, function: &str) -> (Option<i32>, Value) {
    let ran = run(directory, &["invoke", function, "--event", "event.json", "--json"]);
    let answer = serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    (ran.status.code(), answer)
}

#[test]
fn all_that_a_handler_did_is_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "hello", &visitor());
    let (code, out) = shown(directory.path(), "hello");
    assert_eq!(code, Some(0), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let [logged, emitted, outcome, figures] = lines[..] else { panic!("there should be four lines:\n{out}") };
    assert_eq!((logged, outcome), (" info hello: Hello, Ada!", "completed"), "{out}");
    let emitted = emitted.strip_prefix("emitted to greetings: ").unwrap_or_else(|| panic!("{out}"));
    let emitted: Value = serde_json::from_str(emitted).expect("JSON");
    assert_eq!((&emitted["type"], &emitted["data"]), (&json!("greeting"), &json!("Hello, Ada!")), "{out}");
    let (time, memory) = figures.split_once(", ").unwrap_or_else(|| panic!("{out}"));
    assert!(time.ends_with(" ms") && memory.ends_with(" MiB of memory"), "{out}");

    let (code, answer) = told(directory.path(), "hello");
    assert_eq!((code, &answer["outcome"], &answer["filtered"]), (Some(0), &json!("completed"), &json!(false)));
    assert_eq!(answer["logs"], json!([{"level": "info", "context": "hello", "message": "Hello, Ada!"}]));
    let [emitted] = &answer["emitted"].as_array().expect("a list")[..] else { panic!("{answer:#}") };
    assert_eq!((&emitted["topic"], &emitted["key"]), (&json!("greetings"), &Value::Null), "{answer:#}");
    assert_eq!(emitted["event"]["data"], "Hello, Ada!", "{answer:#}");
    assert_eq!(answer["state"], json!([]), "{answer:#}");
    assert!(answer["elapsed_seconds"].as_f64() > Some(0.0), "{answer:#}");
    assert!(answer["memory_bytes"].as_u64() > Some(0), "{answer:#}");
}

#[test]
fn an_event_that_fails_ends_with_its_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut event = visitor();
    event["data"] = json!(7);
    write(directory.path(), "hello", &event);
    let (code, answer) = told(directory.path(), "hello");
    assert_eq!((code, &answer["outcome"], &answer["category"]), (Some(1), &json!("failed"), &json!("invalid")));
    assert_eq!((&answer["emitted"], &answer["logs"]), (&json!([]), &json!([])), "{answer:#}");
    let reason = answer["reason"].as_str().expect("a reason");
    assert!(reason.contains("expected a string"), "{reason}");
    let (code, out) = shown(directory.path(), "hello");
    assert_eq!(code, Some(1), "{out}");
    assert!(out.starts_with(&format!("failed, invalid: {reason}\n")), "{out}");
}

#[test]
fn what_is_stored_and_what_a_filter_says_is_shown_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let flight = |delay: u32| {
        json!({"specversion": "1.0", "id": "f-1", "source": "/feed", "type": "flight.recorded",
            "data": {"origin": "DTW", "destination": "LAS", "delay": delay}})
    };
    let filtered = "The filter says no: outside of this command the handler would not have been called.\n";
    for (delay, is_filtered) in [(66, false), (5, true)] {
        write(directory.path(), "flights", &flight(delay));
        let (code, out) = shown(directory.path(), "alert");
        assert_eq!((code, out.contains(filtered)), (Some(0), is_filtered), "{out}");
        assert!(out.contains("emitted to alerts key DTW: {") && out.contains("\nstored under DTW: 1\n"), "{out}");
        let (code, answer) = told(directory.path(), "alert");
        assert_eq!((code, &answer["filtered"]), (Some(0), &json!(is_filtered)), "{answer:#}");
        assert_eq!(answer["state"], json!([{"key": "DTW", "value": "1"}]), "{answer:#}");
    }
}

#[test]
fn a_measurement_counts_each_event_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "hello", &visitor());
    // Written on one line, the event is a file of events.
    let words = ["--count", "400", "--rate", "2000", "--batch", "20", "--json"];
    let measured = run(directory.path(), &[&["bench", "--file", "event.json"][..], &words].concat());
    assert!(measured.status.success(), "{measured:?}");
    let report: Value = serde_json::from_slice(&measured.stdout).unwrap_or_else(|e| panic!("{e}: {measured:?}"));
    assert_eq!((&report["topic"], &report["events"]), (&json!("visitors"), &json!(400)), "{report:#}");
    let [hello] = &report["functions"].as_array().expect("a list")[..] else { panic!("{report:#}") };
    assert_eq!((&hello["function"], &hello["totals"]["completed"]), (&json!("hello.hello"), &json!(400)), "{hello:#}");
    let figure = |place: &str| {
        let found = report.pointer(place).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("{place} is no number: {report:#}"))
    };
    for place in ["/seconds", "/per_second", "/latency/events", "/latency/p50_ms", "/memory/0/resident_bytes"] {
        assert!(figure(place) > 0.0, "{place}: {report:#}");
    }
    let [all, sender] = ["/cpu_micros_per_event", "/sender_cpu_micros_per_event"].map(figure);
    assert!(0.0 < sender && sender < all, "{report:#}");
    // It is counted in hundredths of a second.
    assert!(figure("/log_cpu_micros_per_event") >= 0.0, "{report:#}");
    assert!((figure("/seconds") * figure("/per_second") - 400.0).abs() < 1e-6, "{report:#}");
    let latencies = ["p50_ms", "p99_ms", "p999_ms", "max_ms"].map(|name| figure(&format!("/latency/{name}")));
    assert!(latencies.is_sorted(), "{report:#}");
    assert!(!directory.path().join(".millrace-bench").exists(), "the log of the measurement is left");
}
