//! What can be a handler, and what is said about everything else.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use millrace::sandbox::{EngineOptions, Function, Refusal, Sandbox};
use millrace_core::outcome::Outcome;

use super::harness::{attempt, engine, event, guest_bytes, options};

async fn refusal(bytes: impl Into<Bytes>) -> Refusal {
    engine(EngineOptions::default()).load(bytes.into()).await.unwrap_err()
}

/// Loads a component in text and looks for `expected` in what is said against it.
async fn check(text: &str, expected: &[&str]) {
    let said = refusal(wat::parse_str(text).unwrap()).await.to_string();
    for part in expected {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_component_are_named() {
    assert_eq!(refusal("").await, Refusal::Empty);
    assert_eq!(refusal("(component)").await, Refusal::Text);
    assert_eq!(refusal("use millrace_sdk; // ä").await, Refusal::Text);
    assert_eq!(refusal(&b"\x7fELF\x02\x01\x01\0"[..]).await, Refusal::NotWasm);
    assert_eq!(refusal(wat::parse_str("(module)").unwrap()).await, Refusal::CoreModule);
    assert!(matches!(refusal(&b"\0as"[..]).await, Refusal::Invalid(_)));
    assert!(Refusal::CoreModule.to_string().contains("wasm32-wasip2"));
}

#[tokio::test]
async fn a_component_that_is_too_large_is_refused_before_it_is_compiled() {
    let bytes = guest_bytes();
    let small = engine(EngineOptions { component_max_bytes: 1000, ..EngineOptions::default() });
    let refused = Refusal::TooLarge { size_bytes: bytes.len(), max_bytes: 1000 };
    assert_eq!(small.load(bytes).await.unwrap_err(), refused);
}

#[tokio::test]
async fn a_component_cut_short_anywhere_is_refused() {
    let (engine, whole) = (engine(EngineOptions::default()), guest_bytes());
    for end in (1..whole.len()).step_by(97).chain(whole.len() - 20..whole.len()) {
        assert!(engine.load(whole.slice(..end)).await.is_err(), "cut at {end} of {}", whole.len());
    }
}

#[tokio::test]
async fn a_component_with_any_byte_damaged_does_no_harm() {
    let (engine, whole) = (engine(EngineOptions::default()), guest_bytes());
    for at in (8..whole.len()).step_by(211) {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 0x55;
        // Many are refused, some are another valid component.
        if let Ok(component) = engine.load(damaged.into()).await {
            drop(Function::new(&engine, &component, options()));
        }
    }
}

#[tokio::test]
async fn a_refused_import_is_named_with_the_fix() {
    let import = |name: &str| format!(r#"(component (import "{name}" (instance)))"#);
    let cases: [(&str, &[&str]); 11] = [
        (
            "wasi:http/outgoing-handler@0.2.3",
            &["wasi:http/outgoing-handler@0.2.3", "not available in this version", "emit"],
        ),
        ("wasi:keyvalue/store@0.2.0-draft2", &["use `wasi:keyvalue/store@0.2.0-draft`"]),
        ("wasi:keyvalue/atomics@0.2.0-draft", &["there are no `atomics` and no `batch`"]),
        ("wasi:blobstore/blobstore@0.2.0-draft", &["wasi:blobstore/blobstore", "remove what needs"]),
        ("wasi:cli/environment@0.3.0", &["wasi:cli/environment@0.3.0", "wasm32-wasip2"]),
        ("wasi:config/store@0.2.0-draft", &["use `wasi:config/store@0.2.0-rc.1`"]),
        ("wasi:logging/logging@0.2.0", &["use `wasi:logging/logging@0.1.0-draft`"]),
        ("millrace:function/emitter@0.2.0", &["millrace:function/emitter@0.2.0", "has `millrace:function@0.1.0`"]),
        ("millrace:function/clock@0.1.0", &["millrace:function/clock@0.1.0", "does not exist"]),
        ("acme:payments/api", &["acme:payments/api", "compose"]),
        ("env", &["`env`", "does not exist"]),
    ];
    for (name, expected) in cases {
        check(&import(name), expected).await;
    }
}

#[tokio::test]
async fn a_component_without_our_handler_is_told_what_it_exports() {
    let export = |name: &str| format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#);
    check("(component)", &["exports no `millrace:function/handler@0.1.0`, only nothing"]).await;
    check(&export("wasi:cli/run@0.2.0"), &["only `wasi:cli/run@0.2.0`", "implement the handler"]).await;
    check(&export("millrace:function/handler@0.2.0"), &["`millrace:function/handler@0.2.0`", "build it with the SDK"])
        .await;
    check(&export("millrace:function/handler@0.1.0"), &["does not fit", "handle"]).await;
}

#[tokio::test]
async fn an_import_of_another_shape_is_refused() {
    let text = r#"(component
        (import "millrace:function/emitter@0.1.0" (instance (export "emit" (func (param "topic" string)))))
        (instance $i) (export "millrace:function/handler@0.1.0" (instance $i)))"#;
    check(text, &["does not fit", "emitter"]).await;
    let text = r#"(component
        (import "wasi:cli/exit@0.2.0" (instance (export "leave" (func))))
        (instance $i) (export "millrace:function/handler@0.1.0" (instance $i)))"#;
    check(text, &["does not fit", "leave"]).await;
}

#[tokio::test]
async fn a_handler_that_takes_or_returns_something_else_is_refused() {
    let handler = include_str!("../../../tests/fixtures/handler.wat");
    assert!(engine(EngineOptions::default()).load(wat::parse_str(handler).unwrap().into()).await.is_ok());
    for (from, to, expected) in [
        ("(field \"subject\" (option string))", "(field \"subject\" string)", "option"),
        ("(field \"dataschema\" (option string))", "", "expected record of 9 fields, found 8 fields"),
        ("(field \"id\" string)", "(field \"name\" string)", "expected record field named id, found name"),
        ("(case \"invalid\" string)", "(case \"odd\" string)", "expected variant case named invalid, found odd"),
        ("(param \"delivery\" (borrow $delivery))", "", "expected 2-tuple, found 1-tuple"),
        ("(param \"delivery\" (borrow $delivery))", "(param \"delivery\" (own $delivery))", "not a borrowed one"),
    ] {
        assert!(handler.contains(from), "{from}");
        check(&handler.replace(from, to), &["does not fit the interfaces", expected]).await;
    }
}

#[tokio::test]
async fn limits_that_the_component_cannot_start_with_are_refused() {
    let engine = engine(EngineOptions::default());
    let component = engine.load(guest_bytes()).await.unwrap();
    let refused = |change: &dyn Fn(&mut millrace::sandbox::GuestLimits)| {
        let mut options = options();
        change(&mut options.limits);
        Function::new(&engine, &component, options).unwrap_err().to_string()
    };
    assert!(refused(&|limits| limits.memory_bytes = 1 << 20).contains("starts with 2 MiB of memory"));
    assert!(refused(&|limits| limits.memory_bytes = 8 << 30).contains("8192 MiB"));
    assert!(refused(&|limits| limits.table_elements = 9).contains("a table of 10 elements"));
}

/// The least handler, which has one memory and one core instance, with as many more of a core module.
fn handler_with(count: usize, module: &str) -> String {
    let handler = include_str!("../../../tests/fixtures/handler.wat");
    assert!(handler.contains("(component\n"));
    let more = format!("(core module $more {module}) {}", "(core instance (instantiate $more))".repeat(count));
    handler.replace("(component\n", &format!("(component {more}\n"))
}

#[tokio::test]
async fn a_component_that_starts_with_more_than_an_instance_has_is_refused() {
    for (count, module, expected) in [
        (64, "", "65 core module instances, which exceeds the configured maximum of 64"),
        (8, "(memory 0)", "9 Wasm linear memories, which exceeds the configured maximum of 8"),
        (33, "(table 0 funcref)", "33 tables, which exceeds the configured maximum of 32"),
        (1, "(memory 16385)", "which exceeds the limit of"),
        (1, "(table 100001 funcref)", "100001 which exceeds the limit of 100000"),
        (1, "(table 0 funcref) (table 0 funcref)", "exceeds the per-instance limit of 1"),
    ] {
        check(&handler_with(count, module), &["no instance can have", expected, "make it of fewer modules"]).await;
    }
}

#[tokio::test]
async fn a_component_that_starts_with_all_that_an_instance_has_runs() {
    let engine = engine(EngineOptions::default());
    for (count, module) in [(63, ""), (7, "(memory 0)"), (32, "(table 0 funcref)")] {
        let bytes = wat::parse_str(handler_with(count, module)).unwrap();
        let component = engine.load(bytes.into()).await.unwrap();
        let mut guest = Function::new(&engine, &component, options()).unwrap().guest();
        assert_eq!(
            guest.invoke(attempt(&event("o"))).await.unwrap().outcome,
            Outcome::Completed,
            "{count} of {module}"
        );
    }
}

#[tokio::test]
async fn a_damaged_artefact_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("deep/cache");
    let load = async || {
        let engine = engine(EngineOptions { cache_dir: Some(cache.clone()), ..EngineOptions::default() });
        let component = engine.load(guest_bytes()).await.unwrap();
        let mut guest = Function::new(&engine, &component, options()).unwrap().guest();
        guest.invoke(attempt(&event("o"))).await.unwrap()
    };
    load().await;
    assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
    let files: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("one artefact, and nothing else: {files:?}") };
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read(file).unwrap();
    let modified = || fs::metadata(file).unwrap().modified().unwrap();

    let before = modified();
    load().await;
    assert_eq!(modified(), before, "an artefact is used, not made again");

    let mut flipped = written.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut newer = written.clone();
    newer[7] += 1;
    for damaged in [&[][..], &written[..20], &written[..written.len() - 1], &flipped, &newer] {
        fs::write(file, damaged).unwrap();
        load().await;
        assert!(fs::read(file).unwrap() == written, "the artefact is whole again");
    }
}

#[tokio::test]
async fn the_cache_forgets_the_oldest_artefacts() {
    let dir = tempfile::tempdir().unwrap();
    let options = EngineOptions { cache_dir: Some(dir.path().into()), cache_max_bytes: 1, ..EngineOptions::default() };
    let engine = engine(options);
    let first = guest_bytes();
    let second = wat::parse_str(include_str!("../../../tests/fixtures/guest.wat").replace("emitted\")", "omitted\")"));
    engine.load(first).await.unwrap();
    let digest = engine.load(second.unwrap().into()).await.unwrap().digest().to_string();
    let names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() == 1 && names[0].starts_with(&digest), "{names:?}");
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let options = EngineOptions { cache_dir: Some(file.clone()), max_instances: 1, ..EngineOptions::default() };
    let said = millrace::sandbox::Engine::new(options).unwrap_err().to_string();
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}
