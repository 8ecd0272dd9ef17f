//! `millrace serve --check` on a real Kafka that refuses some things.

use std::process::Output;

use millrace_tests::process::{Dev, Kafka, root};
use serde_json::Value;

/// Whoever has no name may do everything with what no rule is about.
const RULES: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true";
const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const RULE: &str = "org.apache.kafka.tools.AclCommand";

fn check(bootstrap: &str, arguments: &[&str]) -> Output {
    let data = tempfile::tempdir().expect("a directory");
    let mut command = Dev::serving(&root().join("tests/chaos"), data.path(), bootstrap);
    command.args(["--log-level", "error", "--check"]).args(arguments).output().expect("the binary can be started")
}

/// Findings by subject and verdict, with their fixes, of a check that exits like this.
fn findings(bootstrap: &str, code: i32) -> Vec<(String, String, String)> {
    let output = check(bootstrap, &["--json"]);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let found = report["findings"].as_array().expect("findings").iter().map(|one| {
        let text = |name: &str| one[name].as_str().expect("a text").to_owned();
        (text("subject"), text("verdict"), text("fix"))
    });
    found.collect()
}

#[test]
fn on_kafka_a_check_says_what_is_missing_and_how_to_mend_it() {
    let Some(kafka) = Kafka::start_with(RULES) else { return };
    let found = findings(&kafka.bootstrap, 0);
    let state = "topic millrace.chaos.book.state.orders";
    let shared =
        ["topic millrace.registry", "topic millrace.components", "topic millrace.instances", "topic millrace.audit"];
    for subject in ["topic orders", "topic ledger", state].into_iter().chain(shared) {
        let is_to_be_made = |one: &&(String, String, String)| one.0 == subject && one.1 == "will-be-made";
        assert!(found.iter().find(is_to_be_made).is_some(), "{subject}: {found:?}");
    }
    // Nothing was made by looking.
    kafka.tool(TOPICS, &["--create", "--topic", "returns", "--partitions", "3"]);
    kafka.tool(TOPICS, &["--create", "--topic", "orders", "--partitions", "8"]);
    kafka.tool(TOPICS, &["--create", "--topic", "millrace.chaos.book.state.orders", "--partitions", "8"]);
    let allow = ["--add", "--allow-principal", "User:ANONYMOUS", "--operation", "Describe", "--operation", "Write"];
    kafka.tool(RULE, &[&allow[..], &["--topic", "orders"]].concat());
    kafka.tool(
        RULE,
        &["--add", "--deny-principal", "User:ANONYMOUS", "--operation", "All", "--group", "millrace.chaos.book"],
    );
    let found = findings(&kafka.bootstrap, 1);
    for (subject, fix) in [
        ("topic returns", "write `partitions = 3` under `[topics.returns]`"),
        ("topic orders", "--operation Read --topic orders"),
        (state, "--add-config cleanup.policy=compact"),
        ("group millrace.chaos.book", "--operation Read --group millrace.chaos.book"),
    ] {
        let is_wrong = |one: &&(String, String, String)| one.0 == subject && one.1 == "wrong" && one.2.contains(fix);
        assert!(found.iter().find(is_wrong).is_some(), "{subject}: {found:?}");
    }
    let said = check(&kafka.bootstrap, &[]);
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(out.contains("wrong         topic returns: it has 3 partitions, and the manifest says 4"), "{out}");
    assert_eq!(check("127.0.0.1:1", &[]).status.code(), Some(3));
    assert_eq!(check(&kafka.bootstrap, &["--set", "kafka.replicas=1"]).status.code(), Some(2));
    // Without the check, the same is refused at the start.
    let data = tempfile::tempdir().expect("a directory");
    let started = Dev::serving(&root().join("tests/chaos"), data.path(), &kafka.bootstrap).output().expect("it starts");
    let said = String::from_utf8_lossy(&started.stderr);
    assert!(!started.status.success() && said.contains("`returns` has 3 partitions"), "{said}");
}
