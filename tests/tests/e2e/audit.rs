//! Who did what, on the real binary and both logs.

use millrace_tests::process::{Api, Kafka};
use serde_json::{Value, json};

use super::revisions::{embedded, on_kafka, two_versions};
use super::tokens::{done, id, refused};

/// All records, the oldest first.
fn audit(url: &str, token: &str, arguments: &[&str]) -> Vec<Value> {
    let said = done(url, token, &[&["audit", "--json"], arguments].concat());
    let mut audit: Value = serde_json::from_str(&said).expect("an object");
    let records = audit["records"].as_array_mut().expect("records");
    records.reverse();
    std::mem::take(records)
}

/// `<by> <action> <of>: <result>` of each.
fn told(records: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join("+");
    let line = |record: &Value| {
        let of = [names(&record["functions"]), names(&record["topics"])].join(" ");
        format!("{} {} {}: {}", text(&record["by"]), text(&record["action"]), of.trim(), text(&record["result"]))
    };
    records.iter().map(line).collect()
}

const EXPECTED: [&str; 11] = [
    " create-token : done",
    " view : refused",
    "root create-token : done",
    "ci upload : done",
    "ci make-topic shop.pay orders+payments: done",
    "ci deploy shop.pay: done",
    "ci pause shop.pay: refused",
    "root pause shop.pay: done",
    "root resume shop.pay: done",
    "root revoke-token : done",
    " view : refused",
];

/// Makes tokens, deploys, is refused, and revokes; answers with the administrator's token.
fn use_it(url: &str, version: &str) -> String {
    let root = done(url, "", &["tokens", "create", "root", "--role", "admin"]);
    refused(url, "", &["topics"]);
    let ci = done(url, &root, &["tokens", "create", "ci", "--role", "deploy"]);
    done(url, &ci, &["deploy", version, "--dry-run"]);
    done(url, &ci, &["deploy", version, "--yes"]);
    refused(url, &ci, &["functions", "pause", "shop.pay"]);
    done(url, &root, &["functions", "pause", "shop.pay"]);
    done(url, &root, &["functions", "resume", "shop.pay"]);
    done(url, &root, &["tokens", "revoke", id(&ci), "--yes"]);
    refused(url, &ci, &["topics"]);
    root
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changed_what_and_who_was_refused_is_known_after_a_restart_as_well() {
    let directory = tempfile::tempdir().expect("a directory");
    let [version, _] = two_versions(directory.path());
    let server = embedded(directory.path());
    let root = use_it(&server.url, &version);
    server.kill();
    let server = embedded(directory.path());
    let records = audit(&server.url, &root, &[]);
    assert_eq!(told(&records), EXPECTED);
    assert!(records.iter().all(|record| record["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:"))));
    let at = records[7]["at"].as_str().expect("a time");
    for (arguments, expected) in [
        (&["--function", "shop.*", "--action", "pause"][..], &EXPECTED[6..8]),
        (&["--by", "ci", "--result", "refused"], &EXPECTED[6..7]),
        (&["--by", id(&root), "--since", at], &EXPECTED[7..10]),
        (&["--topic", "payments", "--since", "1h"], &EXPECTED[4..5]),
        (&["--limit", "1"], &EXPECTED[10..]),
        (&["--since", "1ms"], &[]),
    ] {
        assert_eq!(told(&audit(&server.url, &root, arguments)), expected, "{arguments:?}");
    }
    let table = done(&server.url, &root, &["audit"]);
    assert!(table.contains("make-topic") && table.contains("forbidden: this needs one of the roles"), "{table}");
    let internal = done(&server.url, &root, &["topics", "--json"]);
    assert!(!internal.contains("millrace.audit"), "{internal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_each_instance_tells_what_was_done_on_all() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let [version, _] = two_versions(directory.path());
    let (first, second) = ("a", "b");
    let first = on_kafka(directory.path(), first, &kafka.bootstrap);
    let second = on_kafka(directory.path(), second, &kafka.bootstrap);
    let root = use_it(&first.url, &version);
    done(&second.url, &root, &["functions", "pause", "shop.pay"]);
    for url in [&first.url, &second.url] {
        let told = told(&audit(url, &root, &[]));
        assert_eq!(told[..EXPECTED.len()], EXPECTED);
        assert_eq!(told[EXPECTED.len()..], ["root pause shop.pay: done"]);
    }
    let kept = kafka.read("millrace.audit");
    assert_eq!(kept.lines().filter(|line| line.contains("\"action\"")).count(), 12, "{kept}");
    let secret = root.rsplit('_').next().expect("a token has a secret");
    for topic in ["millrace.audit", "millrace.registry"] {
        assert!(!kafka.read(topic).contains(secret), "{topic} holds a token");
    }
    let header = [("authorization", format!("Bearer {root}"))];
    let header = [(header[0].0, header[0].1.as_str())];
    let url = format!("{}/v1/audit?limit=1", first.url);
    let (status, body) = Api::default().ask(hyper::Method::GET, &url, &header, String::new()).await.expect("an answer");
    assert!(status.is_success(), "{body}");
    let newest: Value = serde_json::from_str(&body).expect("an object");
    assert_eq!(newest["records"][0]["action"], json!("pause"));
}
