//! The direction of dependencies within the runtime, read from its source:
//! `cli -> server -> {api, registry -> worker} -> {broker, sandbox} -> core`.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the runtime with the modules that it may name. Whatever is missing here is a mistake or a decision: a
/// new module gets a row.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("allocator", &[]),
    ("lib", &[]),
    ("main", &["cli"]),
    (
        "cli",
        &[
            "allocator",
            "api",
            "broker",
            "clock",
            "config",
            "registry",
            "sandbox",
            "server",
            "telemetry",
            "tls",
            "worker",
        ],
    ),
    ("server", &["api", "broker", "clock", "config", "registry", "sandbox", "telemetry", "tls", "worker"]),
    ("api", &["broker", "clock", "config", "registry", "telemetry", "tls", "worker"]),
    ("registry", &["breaker", "broker", "clock", "config", "sandbox", "telemetry", "worker"]),
    ("worker", &["breaker", "broker", "clock", "sandbox", "telemetry"]),
    ("breaker", &[]),
    ("broker", &["clock", "telemetry"]),
    ("sandbox", &["clock", "telemetry"]),
    ("telemetry", &["clock", "config"]),
    ("tls", &["clock"]),
    ("config", &[]),
    ("clock", &[]),
];

/// Each outside library that must not leave its place, with the places: beginnings of paths under `runtime/src`.
const KEPT_IN: [(&str, &[&str]); 18] = [
    ("wasmtime", &["sandbox/"]),
    ("wasmtime_wasi", &["sandbox/"]),
    ("wasmtime_wasi_config", &["sandbox/"]),
    ("fjall", &["broker/embedded.rs", "broker/embedded/"]),
    ("rdkafka", &["broker/kafka.rs", "broker/kafka/"]),
    ("axum", &["api.rs", "api/"]),
    ("hyper", &["api.rs", "api/", "cli/", "telemetry/otlp.rs"]),
    ("hyper_util", &["api.rs", "api/", "cli/", "telemetry/otlp.rs"]),
    ("opentelemetry", &["telemetry/otlp.rs"]),
    ("opentelemetry_http", &["telemetry/otlp.rs"]),
    ("opentelemetry_otlp", &["telemetry/otlp.rs"]),
    ("opentelemetry_sdk", &["telemetry/otlp.rs"]),
    ("notify", &["cli/"]),
    ("rustls", &["tls.rs", "tls/"]),
    ("rustls_native_certs", &["tls.rs", "tls/"]),
    ("tokio_rustls", &["tls.rs", "tls/"]),
    ("hyper_rustls", &["cli/"]),
    ("x509_cert", &["tls.rs", "tls/"]),
];

fn source_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/src")
}

/// Paths below the directory of the runtime's sources, with their text.
fn sources() -> Vec<(String, String)> {
    let root = source_directory();
    let (mut waiting, mut found) = (vec![root.clone()], Vec::new());
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("the sources can be read") {
            let path = entry.expect("the sources can be read").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).expect("it lies below").to_string_lossy().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).expect("the sources can be read")));
            }
        }
    }
    found.sort();
    found
}

/// The text without comments. Strings are left in: a path in one would be odd enough to be looked at.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// What directly follows each occurrence of `prefix` that begins a path: one name, or each first name within braces.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let begins_path = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    let matches = code.match_indices(prefix).filter(|(at, _)| begins_path(*at));
    matches.flat_map(|(at, _)| first_names(&code[at + prefix.len()..])).collect()
}

fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut names, mut at_name) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_name = true,
            c if at_name && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                at_name = false;
            }
            _ => {}
        }
    }
    names
}

/// Tests bring doubles of what their module is told to use, among them a sandbox.
fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

/// What is wrong with one file.
fn violations(file: &str, text: &str) -> Vec<String> {
    let (code, module) = (code(text), module_of(file));
    let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{file}: the module `{module}` has no row in MAY_NAME that says what it may name")];
    };
    let is_module = |name: &String| MAY_NAME.iter().any(|(module, _)| module == name);
    let ours = ["crate::", "millrace::"].into_iter().flat_map(|prefix| names_after(&code, prefix));
    let mut wrong: Vec<String> = ours
        .filter(|name| is_module(name) && name != module && !allowed.contains(&name.as_str()))
        .filter(|name| !(is_test(file) && name == "sandbox"))
        .map(|name| format!("{file}: `{module}` must not name `{name}`; it may name {allowed:?}"))
        .collect();
    for (library, places) in KEPT_IN {
        let named = names_after(&code, &format!("{library}::"));
        if !named.is_empty() && !places.iter().any(|place| file.starts_with(place)) {
            wrong.push(format!("{file}: `{library}` stays inside {places:?}"));
        }
    }
    wrong
}

#[test]
fn dependencies_point_one_way() {
    let sources = sources();
    assert!(sources.iter().any(|(file, _)| file == "lib.rs"), "nothing was read in {}", source_directory().display());
    let wrong: Vec<String> = sources.iter().flat_map(|(file, text)| violations(file, text)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn each_rule_can_fail() {
    for (file, text, expected) in [
        ("api/ingest.rs", "use crate::sandbox::Sandbox;", "`api` must not name `sandbox`"),
        ("api.rs", "fn f(x: &crate::sandbox::Sandbox) {}", "`api` must not name `sandbox`"),
        ("broker/embedded.rs", "use crate::{clock::Clock, sandbox::{A, B}};", "`broker` must not name `sandbox`"),
        ("sandbox.rs", "use crate::{\n    broker,\n    clock,\n};", "`sandbox` must not name `broker`"),
        ("worker.rs", "use crate::server::Server;", "`worker` must not name `server`"),
        ("worker.rs", "use wasmtime::Engine;", "`wasmtime` stays inside"),
        ("sandbox.rs", "fn f(_: wasmtime::Engine) {}", "`wasmtime` stays inside"),
        ("broker.rs", "use fjall::Keyspace;", "`fjall` stays inside"),
        ("worker.rs", "use hyper::Request;", "`hyper` stays inside"),
        ("odd.rs", "", "no row"),
    ] {
        let wrong = violations(file, text).join("\n");
        assert!(wrong.contains(expected), "{file} with {text} gave: {wrong}");
    }
    for (file, text) in [
        ("api/ingest.rs", "use crate::broker::Broker; // not crate::sandbox::X"),
        ("broker/embedded/log.rs", "use fjall::Keyspace;\nuse crate::broker::Error;\npub(crate) fn f() {}"),
        ("sandbox/engine.rs", "use wasmtime::{Engine, Store};\nuse wasmtime_wasi::WasiCtx;"),
        ("main.rs", "fn main() { millrace::cli::run() }"),
        ("api/tests.rs", "use crate::sandbox::Sandbox;"),
    ] {
        assert_eq!(violations(file, text), Vec::<String>::new(), "{file} with {text}");
    }
}
