//! Instances on Kafka that are slow, or cannot run what others can.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use millrace_tests::process::{Api, Kafka, program};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::revisions::{
    FUNCTION, ONE, done, everywhere, handled, on_kafka, on_kafka_by, order, revisions, run_everywhere, two_versions,
    until,
};

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an instance says of itself.
fn of<'a>(there: &'a Value, instance: &str) -> &'a Value {
    let all = there["instances"].as_array().expect("instances");
    all.iter().find(|one| one["instance"] == instance).unwrap_or(&Value::Null)
}

/// A revision becomes active once all live instances have compiled it: one that answers nothing is waited for as long as it can be taken
/// for a live one, and runs the revision as well when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_revision_becomes_active_once_no_live_instance_is_behind() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let [first, second, slow] = ["a", "b", "slow"].map(|name| on_kafka(directory.path(), name, &kafka.bootstrap));
    let url = &first.url;
    done(url, &["deploy", &versions[0], "--yes"]);
    run_everywhere(url, ONE, 3).await;
    slow.signal(Signal::STOP);
    done(url, &["deploy", &versions[1], "--yes", "--wait", "0"]);
    let (began, mut looks) = (Instant::now(), 0);
    loop {
        let there = revisions(url).await;
        let (is_live, revision) = (of(&there, "slow")["live"] == true, there["active"].as_u64());
        if revision != Some(ONE) {
            assert!(!is_live && looks > 0, "one that is behind was not waited for: {there:#}");
            break;
        }
        looks += u32::from(is_live && there["staged"] == 3 && of(&there, "b")["ready"] == 3);
        assert!(began.elapsed() < PATIENCE, "it is never active: {there:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    run_everywhere(&second.url, 3, 2).await;
    slow.signal(Signal::CONT);
    run_everywhere(&second.url, 3, 3).await;
}

/// One whose compiler does not start says so and goes on with what it runs, while others run the new revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_one_that_cannot_compile_says_so_and_keeps_what_it_runs() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let copy = directory.path().join("millrace");
    std::fs::copy(program(), &copy).expect("it can be copied");
    let first = on_kafka(directory.path(), "a", &kafka.bootstrap);
    let hindered = on_kafka_by(&copy, directory.path(), "hindered", &kafka.bootstrap);
    let (url, api) = (&first.url, Api::default());
    done(url, &["deploy", &versions[0], "--yes"]);
    run_everywhere(url, ONE, 2).await;
    // It runs on, and nobody can start it again.
    let may = |mode: u32| std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(mode)).expect("it is there");
    may(0o644);
    done(url, &["deploy", &versions[1], "--yes", "--wait", "0"]);
    let there = until(url, &format!("functions/{FUNCTION}/revisions"), |there| {
        of(there, "a")["revision"] == 3 && of(there, "hindered")["cannot_run"][0]["revision"] == 3
    })
    .await;
    let told = of(&there, "hindered");
    assert_eq!(told["revision"], json!(ONE), "{told:#}");
    let reason = told["cannot_run"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("it cannot be started: Permission denied"), "{reason}");
    let said = done(url, &["functions", "show", "pay"]);
    assert!(said.contains("revision 3: the compiler failed"), "{said}");
    // Each has some of the partitions, sooner or later.
    let (began, mut published) = (Instant::now(), 0);
    loop {
        let orders: Vec<String> = (published..published + 50).map(|n| order(&format!("o-{n}"), n)).collect();
        assert_eq!(api.publish(url, "orders", &orders).await, Some(StatusCode::ACCEPTED));
        published += orders.len();
        api.settled(url).await;
        let words = handled(url).await;
        assert_eq!(words.len(), published, "an event is lost");
        let by_old = words.values().filter(|word| *word == "emitted").count();
        if (1..published).contains(&by_old) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{by_old} of {published} events were handled by what ran before");
    }
    // What has failed once is tried again when somebody decides that it runs, and not before.
    may(0o755);
    done(url, &["functions", "rollback", "pay", "--to", "1", "--yes"]);
    done(url, &["functions", "rollback", "pay", "--to", "3", "--yes"]);
    everywhere(url, 2, |one| one["revision"] == 3 && one["cannot_run"].is_null()).await;
    assert!(hindered.stop());
}
