//! Components that must be refused: all of them by the sandbox, and some of each kind by a compiler in a process of its own, and by
//! a server.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use millrace::sandbox::{Bounds, Compiler, Engine, EngineOptions, Refusal};
use millrace_core::digest::Digest;
use millrace_core::limits::COMPONENT_MAX_BYTES;
use millrace_tests::corpus::{Bad, bombs, cut_short, generated, handler, made, specification, with_a_good_module};
use millrace_tests::process::{Api, Dev, program};
use serde_json::{Value, json};

const SEEDS: u64 = 200;
/// Of the kinds of which there are very many, every so many-th also takes the longer ways.
const SAMPLED: usize = 23;
/// What is said about a component stays readable, whatever is in it.
const REASON_MAX_BYTES: usize = 8 << 10;
/// What the server may keep of all that it refused.
const KEPT_MAX_MIB: f64 = 32.0;
/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

fn apart(bounds: Bounds) -> Compiler {
    Compiler::Apart { program: program(), bounds }
}

fn engine(compiler: Compiler) -> Engine {
    Engine::new(EngineOptions { compiler, max_instances: 4, ..EngineOptions::default() }).expect("an engine")
}

/// Why the engine refuses it; else what is wrong with that.
async fn refused(engine: &Engine, bad: &Bad) -> Result<Refusal, String> {
    match engine.load(bad.bytes.clone().into()).await {
        Ok(_) => Err(format!("{} is taken", bad.name)),
        Err(refusal @ Refusal::Compiler(_)) => Err(format!("{}: {refusal}", bad.name)),
        Err(refusal) => names_what_is_wrong(bad, &refusal.to_string()).map(|()| refusal),
    }
}

fn names_what_is_wrong(bad: &Bad, reason: &str) -> Result<(), String> {
    let is_readable = reason.len() <= REASON_MAX_BYTES && !reason.contains(char::is_control);
    let is_right = is_readable && !reason.is_empty() && reason.contains(bad.says);
    if is_right { Ok(()) } else { Err(format!("{}: not `{}`: {reason}", bad.name, bad.says)) }
}

fn sample(all: &[Bad]) -> impl Iterator<Item = Bad> {
    all.iter().step_by(SAMPLED).cloned()
}

/// Some of each kind.
fn representative() -> Vec<Bad> {
    let many = [cut_short(), specification(), generated(0..SEEDS)];
    made().into_iter().chain(many.iter().flat_map(|all| sample(all))).collect()
}

async fn check_all(all: &[Bad], at_least: usize) {
    let engine = engine(Compiler::Here);
    for good in [handler(), with_a_good_module()] {
        engine.load(good.into()).await.expect("what all are made from is good");
    }
    let mut wrong = Vec::new();
    for bad in all {
        wrong.extend(refused(&engine, bad).await.err());
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert!(all.len() >= at_least, "there are {}", all.len());
}

#[tokio::test]
async fn what_is_made_by_hand_is_refused_for_what_is_wrong_with_it() {
    check_all(&made(), 60).await;
}

#[tokio::test]
async fn a_component_that_is_cut_short_is_refused() {
    check_all(&cut_short(), 2000).await;
}

#[tokio::test]
async fn what_the_specification_calls_invalid_is_refused() {
    check_all(&specification(), 1900).await;
}

#[tokio::test]
async fn what_a_generator_makes_is_refused() {
    check_all(&generated(0..SEEDS), 4 * 190).await;
}

#[tokio::test]
async fn a_compiler_in_a_process_of_its_own_refuses_the_same_for_the_same_reason() {
    let (here, apart) = (engine(Compiler::Here), engine(apart(Bounds::default())));
    let mut wrong = Vec::new();
    for bad in representative() {
        let both = (refused(&here, &bad).await, refused(&apart, &bad).await);
        if both.0.is_err() || both.0 != both.1 {
            wrong.push(format!("{}: {both:?}", bad.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each bound is told as what it is.
#[tokio::test]
async fn a_compiler_in_a_process_of_its_own_keeps_to_its_bounds() {
    let all = Bounds::default();
    let second = Duration::from_secs(1);
    let bomb = bombs().swap_remove(0);
    for (bounds, told) in [
        (Bounds { memory_bytes: 256 << 20, ..all }, "takes more than 256 MiB of memory:"),
        (Bounds { cpu: second, ..all }, "takes more than 1 s of CPU time:"),
        (Bounds { time: second, ..all }, "takes more than 1 s:"),
    ] {
        let refusal = engine(apart(bounds)).load(bomb.bytes.clone().into()).await.expect_err("it takes more");
        assert!(refusal.to_string().contains(told), "{told} {refusal}");
    }
    let gone = Compiler::Apart { program: "/nowhere".into(), bounds: all };
    let refusal = engine(gone).load(handler().into()).await.expect_err("there is none");
    assert_eq!(refusal, Refusal::Compiler("it cannot be started: No such file or directory (os error 2)".to_owned()));
}

async fn put(url: &str, digest: Digest, bytes: Vec<u8>) -> (StatusCode, Value) {
    let path = format!("{url}/v1/components/{digest}");
    let answer = Api::default().send(Method::PUT, &path, "application/wasm", bytes).await;
    answer.expect("the server answers")
}

/// What is wrong with an answer, which should be this problem.
fn is_problem((status, problem): &(StatusCode, Value), expected: (u16, &str), bad: &Bad) -> Result<(), String> {
    let (code, kind) = expected;
    let kind = format!("https://millrace.dev/problems/{kind}");
    let told = (status.as_u16(), problem["status"].as_u64(), problem["type"].as_str());
    if told != (code, Some(code.into()), Some(&*kind)) || !problem["title"].is_string() {
        return Err(format!("{}: {status} {problem}", bad.name));
    }
    names_what_is_wrong(bad, problem["detail"].as_str().unwrap_or_default())
}

fn assert_problem(answer: &(StatusCode, Value), expected: (u16, &str), bad: &Bad) {
    assert_eq!(is_problem(answer, expected, bad), Ok(()));
}

fn serve(directory: &Path) -> Dev {
    let mut command = Command::new(program());
    command.args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"]).arg(directory);
    Dev::started(&mut command)
}

/// It says what is wrong, keeps nothing of it, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_refuses_them_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = serve(directory.path());
    let (url, api) = (&server.url, Api::default());
    let good = handler();
    let digest = Digest::of(&good);
    assert_eq!(put(url, digest, good.clone()).await.0, StatusCode::CREATED);
    let before = server.resident_mib();
    let mut wrong = Vec::new();
    for bad in representative().into_iter().chain(bombs()) {
        let digest = Digest::of(&bad.bytes);
        let answer = put(url, digest, bad.bytes.clone()).await;
        wrong.extend(is_problem(&answer, (422, "invalid-function"), &bad).err());
        let kept = api.send(Method::GET, &format!("{url}/v1/components/{digest}"), "", "").await;
        assert_eq!(kept.expect("the server answers").0, StatusCode::NOT_FOUND, "{} is kept", bad.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let bad = |name: &str, bytes: Vec<u8>, says| Bad { name: name.to_owned(), bytes, says };
    let other = bad("another digest", good, "send it again");
    assert_problem(&put(url, Digest::of(b""), other.bytes.clone()).await, (400, "malformed-request"), &other);
    let large = bad("one byte too many", vec![0; COMPONENT_MAX_BYTES + 1], "64MiB");
    assert_problem(&put(url, Digest::of(&large.bytes), large.bytes.clone()).await, (413, "too-large"), &large);
    // The allocator keeps for some seconds what is free.
    let began = Instant::now();
    while server.resident_mib() > before + KEPT_MAX_MIB {
        assert!(began.elapsed() < PATIENCE, "{before:.0} MiB became {:.0}", server.resident_mib());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    run_the_good_one(url, digest).await;
}

/// What was refused needs a grant, too: the handler that keeps state runs once it has it.
async fn run_the_good_one(url: &str, digest: Digest) {
    let api = Api::default();
    let state = wat::parse_str(include_str!("../../fixtures/state.wat")).expect("the fixture is sound");
    let stateful = Bad { name: "state".to_owned(), bytes: state, says: "its function has no such grant" };
    let stateful_digest = Digest::of(&stateful.bytes);
    assert_eq!(put(url, stateful_digest, stateful.bytes.clone()).await.0, StatusCode::CREATED);
    let deploy = async |digest: Digest, more: &str| {
        let manifest = format!(
            "application = \"shop\"\n[topics.orders]\n[functions.pay]\ncomponent = \"a.wasm\"\ntopics = [\"orders\"]\n{more}"
        );
        let body = json!({"component": digest.to_string(), "manifest": manifest}).to_string();
        let path = format!("{url}/v1/functions/shop.pay");
        api.send(Method::PUT, &path, "application/json", body).await.expect("the server answers")
    };
    assert_problem(&deploy(stateful_digest, "").await, (422, "invalid-function"), &stateful);
    let small = "limits = { memory = \"64KiB\" }\n";
    let large = Bad { name: "memory".to_owned(), bytes: Vec::new(), says: "its limit is" };
    assert_problem(
        &deploy(stateful_digest, &format!("grants = {{ state = true }}\n{small}")).await,
        (422, "invalid-function"),
        &large,
    );
    assert_eq!(deploy(digest, "").await.0, StatusCode::OK);
    let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed"}).to_string();
    assert_eq!(api.publish(url, "orders", &[event]).await, Some(StatusCode::ACCEPTED));
    let status = api.settled(url).await;
    assert_eq!(status["functions"][0]["totals"]["completed"], 1, "{status:#}");
}
