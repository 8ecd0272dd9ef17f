//! Who may do what, on the real binary: tokens that are made, needed everywhere, and revoked.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hyper::Method;
use millrace_tests::process::{Api, Dev, Kafka, program};

use super::revisions::{embedded, on_kafka, two_versions};

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(30);
const STATUS: &str = "/v1/status";

fn millrace(url: &str, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(["--server", url]).args(arguments).env("MILLRACE_TOKEN", token);
    command.output().expect("the binary can be started")
}

/// Runs a command that must do what it is asked, and answers with what it says.
fn done(url: &str, token: &str, arguments: &[&str]) -> String {
    let ran = millrace(url, token, arguments);
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{arguments:?}: {out}\n{err}");
    out.trim().to_owned()
}

/// Runs a command that must be refused, and answers with what it says.
fn refused(url: &str, token: &str, arguments: &[&str]) -> String {
    let ran = millrace(url, token, arguments);
    assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stdout));
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

fn id(token: &str) -> &str {
    token.split('_').nth(1).expect("a token has an id")
}

/// Whether a text is somewhere in the files below a directory.
fn is_in(directory: &Path, text: &str) -> bool {
    let holds = |content: Vec<u8>| content.windows(text.len()).any(|window| window == text.as_bytes());
    std::fs::read_dir(directory).expect("a directory").flatten().any(|entry| match entry.path() {
        path if path.is_dir() => is_in(&path, text),
        path => std::fs::read(path).is_ok_and(holds),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_first_token_on_each_request_needs_one_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let server = embedded(directory.path());
    assert!(refused(&server.url, "", &["tokens", "create", "ci", "--role", "deploy"]).contains("role `admin` first"));
    let root = done(&server.url, "", &["tokens", "create", "root", "--role", "admin"]);
    let said = refused(&server.url, "", &["status"]);
    assert!(said.contains("MILLRACE_TOKEN or with --token-file"), "{said}");
    let create = ["tokens", "create", "ci", "--role", "deploy", "--function", "shop.*", "--expires", "90d"];
    let ci = done(&server.url, &root, &[&create[..], &["--topic", "orders", "--topic", "payments"]].concat());
    let elsewhere = done(&server.url, &root, &[&create[..], &["--topic", "orders"]].concat());
    let said = refused(&server.url, &elsewhere, &["deploy", &versions[0], "--yes"]);
    assert!(said.contains("`orders` alone, and `payments`"), "{said}");
    done(&server.url, &ci, &["deploy", &versions[0], "--yes"]);
    let said = refused(&server.url, &ci, &["functions", "pause", "shop.pay"]);
    assert!(said.contains("`operate`, `admin`"), "{said}");
    let history = done(&server.url, &ci, &["functions", "history", "shop.pay"]);
    let deployed = history.lines().find(|line| line.contains("deploy")).expect("it was deployed");
    assert!(deployed.split_whitespace().any(|word| word == "ci"), "{history}");
    server.kill();
    let server = embedded(directory.path());
    refused(&server.url, "", &["status"]);
    done(&server.url, &ci, &["status"]);
    done(&server.url, &root, &["tokens", "revoke", id(&ci), "--yes"]);
    refused(&server.url, &ci, &["status"]);
    let said = refused(&server.url, &root, &["tokens", "revoke", id(&root), "--yes"]);
    assert!(said.contains("http.admin-token-file"), "{said}");
    for token in [&root, &ci, &elsewhere] {
        let secret = token.rsplit('_').next().expect("a token has a secret");
        assert!(!is_in(directory.path(), secret), "a secret is on the disk");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_others_reach_it_a_server_starts_with_a_token_alone_or_when_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let serve = |settings: &[&str]| {
        let mut command = Command::new(program());
        command.args(["serve", "--embedded", "--listen", "0.0.0.0:0", "--log-level", "error", "--data"]);
        command.arg(directory.path().join("data")).args(settings).current_dir(directory.path());
        command
    };
    let output = serve(&[]).output().expect("the binary can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("http.admin-token-file") && said.contains("http.allow-anonymous = true"), "{said}");
    let near = |server: &Dev| server.url.replace("0.0.0.0", "127.0.0.1");
    let server = Dev::started(&mut serve(&["--set", "http.allow-anonymous=true"]));
    done(&near(&server), "", &["status"]);
    server.kill();
    let admin = "an-administrator-s-token-0123456789";
    let server = Dev::started(serve(&[]).env("MILLRACE_ADMIN_TOKEN", admin));
    refused(&near(&server), "", &["status"]);
    let ci = done(&near(&server), admin, &["tokens", "create", "ci", "--role", "view"]);
    done(&near(&server), &ci, &["status"]);
    server.kill();
    // A token in the log is enough.
    let server = Dev::started(&mut serve(&[]));
    done(&near(&server), &ci, &["status"]);
    refused(&near(&server), admin, &["status"]);
}

/// Waits until an instance answers so.
async fn answers(url: &str, path: &str, token: &str, expected: u16) -> Duration {
    let (api, began) = (Api::default(), Instant::now());
    loop {
        let path = format!("{url}{path}");
        let answer = api.send_with(Method::GET, &path, &[("authorization", &format!("Bearer {token}"))]).await;
        if answer.expect("the server answers").as_u16() == expected {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{url} never answers {expected}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_token_holds_everywhere_and_nowhere_once_it_is_revoked() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let start = |name: &str| on_kafka(directory.path(), name, &kafka.bootstrap);
    let (first, second) = (start("a"), start("b"));
    done(&second.url, "", &["status"]);
    let root = done(&first.url, "", &["tokens", "create", "root", "--role", "admin"]);
    refused(&first.url, "", &["status"]);
    answers(&second.url, STATUS, "", 401).await;
    let ci = done(&first.url, &root, &["tokens", "create", "ci", "--role", "view"]);
    answers(&second.url, STATUS, &ci, 200).await;
    done(&first.url, &root, &["tokens", "revoke", id(&ci), "--yes"]);
    let took = answers(&second.url, STATUS, &ci, 401).await;
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    let third = start("c");
    refused(&third.url, &ci, &["status"]);
    done(&third.url, &root, &["status"]);
    // What is kept of tokens is for administrators.
    let view = done(&third.url, &root, &["tokens", "create", "view", "--role", "view"]);
    let registry = "/v1/topics/millrace.registry/events";
    answers(&third.url, registry, &view, 403).await;
    answers(&third.url, registry, &root, 200).await;
}
