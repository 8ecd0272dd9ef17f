//! Who may do what, on the real binary: tokens that are made, needed everywhere, and revoked.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hyper::Method;
use millrace_tests::process::{Api, Dev, Kafka, program};
use serde_json::{Value, json};

use super::revisions::{embedded, on_kafka, two_versions};

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(30);
const STATUS: &str = "/v1/status";
const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

fn millrace(url: &str, token: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(["--server", url]).args(arguments).env("MILLRACE_TOKEN", token);
    command.output().expect("the binary can be started")
}

/// Runs a command that must do what it is asked, and answers with what it says.
pub(super) fn done(url: &str, token: &str, arguments: &[&str]) -> String {
    let ran = millrace(url, token, arguments);
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{arguments:?}: {out}\n{err}");
    out.trim().to_owned()
}

/// Runs a command that must be refused, and answers with what it says.
pub(super) fn refused(url: &str, token: &str, arguments: &[&str]) -> String {
    let ran = millrace(url, token, arguments);
    assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stdout));
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

pub(super) fn id(token: &str) -> &str {
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
async fn a_token_sends_as_much_as_its_rate_says_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let root = done(&server.url, "", &["tokens", "create", "root", "--role", "admin"]);
    let slow =
        done(&server.url, &root, &["tokens", "create", "slow", "--role", "view", "--rate", "1/h", "--burst", "2"]);
    let list = done(&server.url, &root, &["tokens", "list"]);
    assert!(list.contains("1/h, 2 at once") && list.contains("default"), "{list}");
    done(&server.url, &slow, &["topics"]);
    done(&server.url, &slow, &["topics"]);
    let said = refused(&server.url, &slow, &["topics"]);
    assert!(
        said.contains("may send 1/h requests to this instance, and 2 at once") && said.contains("try again in"),
        "{said}"
    );
    let headers = [("authorization", format!("Bearer {root}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let metrics = Api::default().ask(Method::GET, &format!("{}/metrics", server.url), &headers, String::new()).await;
    let (_, metrics) = metrics.expect("the server answers");
    let line = format!("millrace_rate_limited_requests_total{{token=\"{}\"}} 1", id(&slow));
    assert!(metrics.lines().any(|one| one == line), "{line} is not in:\n{metrics}");
    server.kill();
    // Others are not held up, and what the log keeps of the rate holds in the next process too.
    let server = embedded(directory.path());
    done(&server.url, &slow, &["topics"]);
    done(&server.url, &slow, &["topics"]);
    refused(&server.url, &slow, &["topics"]);
    done(&server.url, &root, &["status"]);
}

/// In the token of the configuration, and in what is shown instead of a token.
const PLANTED: &str = "planted-4f1c77aa0b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_what_a_process_says_answers_and_keeps() {
    let directory = tempfile::tempdir().expect("a directory");
    let [version, _] = two_versions(directory.path());
    let admin = format!("{PLANTED}-0123456789-0123456789");
    let log = directory.path().join("said");
    let mut command = Command::new(program());
    command.args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--log-level", "trace", "--data"]);
    command.arg(directory.path().join("data")).current_dir(directory.path()).env("MILLRACE_ADMIN_TOKEN", &admin);
    let server = Dev::started(command.stderr(std::fs::File::create(&log).expect("a file")));
    let url = &server.url;
    let root = done(url, &admin, &["tokens", "create", "root", "--role", "admin"]);
    let ci = done(url, &root, &["tokens", "create", "ci", "--role", "publish", "--topic", "orders"]);
    done(url, &root, &["deploy", &version, "--yes"]);
    let shown =
        [&admin, &root, &ci, &format!("{root}0"), &format!("{PLANTED}-wrong")].map(|text| format!("Bearer {text}"));
    let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "j"}).to_string();
    let mut said = String::new();
    for shown in &shown {
        let headers = [("authorization", shown.as_str()), ("content-type", "application/cloudevents+json")];
        for (method, path, body) in [
            (Method::POST, "/v1/topics/orders/events", &*event),
            (Method::POST, "/v1/topics/payments/events", "{"),
            (Method::GET, &format!("/v1/topics?token={PLANTED}"), ""),
            (Method::DELETE, &format!("/v1/tokens/{root}"), ""),
            (Method::PUT, "/v1/functions/shop.pay", "{"),
            (Method::POST, "/v1/tokens", "{}"),
            (Method::GET, "/v1/tokens", ""),
            (Method::GET, "/v1/status", ""),
            (Method::GET, "/nowhere", ""),
        ] {
            let answer = Api::default().ask(method, &format!("{url}{path}"), &headers, body.to_owned()).await;
            said.push_str(&answer.expect("the server answers").1);
        }
    }
    let ask = async |path: &str| {
        let headers = [("authorization", shown[1].as_str())];
        let answer = Api::default().ask(Method::GET, &format!("{url}{path}"), &headers, String::new()).await;
        let (status, body) = answer.expect("the server answers");
        assert!(status.is_success(), "{path}: {body}");
        body
    };
    let began = Instant::now();
    let letter = loop {
        let letters: Value = serde_json::from_str(&ask("/v1/dead-letters").await).expect("an object");
        match letters["letters"][0]["id"].as_str() {
            Some(id) => break format!("/v1/dead-letters/shop.pay/{id}"),
            None => assert!(began.elapsed() < PATIENCE, "nothing failed"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for path in
        ["/metrics", "/v1/audit?limit=1000", "/v1/dead-letters", &letter, "/v1/topics/orders/events?from=earliest"]
    {
        said.push_str(&ask(path).await);
    }
    assert!(server.stop());
    said.push_str(&std::fs::read_to_string(&log).expect("a file"));
    assert!(
        said.contains("A token was made.")
            && said.contains("\"refused\"")
            && said.contains("unauthenticated")
            && said.contains("rejected"),
        "{said}"
    );
    let secrets = [&root, &ci].map(|token| token.rsplit('_').next().expect("a token has a secret"));
    for secret in [PLANTED, secrets[0], secrets[1]] {
        assert!(!said.contains(secret), "it is said");
        assert!(!is_in(directory.path(), secret), "it is on the disk");
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
    drop((first, second));
    // Somebody empties the log: nobody revoked what was in it, so that nothing opens.
    let topic = ["--topic", "millrace.registry"];
    kafka.tool(TOPICS, &[&["--delete"][..], &topic].concat());
    kafka.tool(TOPICS, &[&["--create", "--if-not-exists", "--config", "retention.ms=-1"][..], &topic].concat());
    answers(&third.url, STATUS, &root, 401).await;
    answers(&third.url, STATUS, "", 401).await;
    let data = directory.path().join("d");
    let mut exposed = Command::new(program());
    exposed.args(["serve", "--listen", "0.0.0.0:0", "--log-level", "error", "--data"]).arg(&data);
    exposed.args(["--set", &format!("kafka.bootstrap={}", kafka.bootstrap)]).current_dir(directory.path());
    let output = exposed.output().expect("the binary can be started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("http.admin-token-file"), "{said}");
}
