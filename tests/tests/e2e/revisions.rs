//! Functions that are uploaded to a running server: staged, swapped, taken back, on both logs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use millrace_tests::process::{Api, Dev, Kafka, application, program, revised_application};
use serde_json::{Value, json};

/// How often one revision takes the place of the other under load.
const SWAPS: usize = 1000;
/// The same on Kafka, where each is a record that others must read; `SWAPS=1000` makes as many there, in about twelve minutes.
const SWAPS_ON_KAFKA: usize = 100;
/// The same where the function subscribes anew each time; on Kafka, instances that join a group learn of one another by a heartbeat.
const SWAPS_ANEW: usize = 10;
const SWAPS_ANEW_ON_KAFKA: usize = 4;
/// After so many swaps an event is published of which is known which revision must handle it.
const CHECK_EVERY: usize = 25;
pub(super) const FUNCTION: &str = "shop.pay";
/// The numbers of the first two revisions: each is activated by a deployment of its own.
pub(super) const ONE: u64 = 1;
const OTHER: u64 = 3;
/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) const MANIFEST: &str = "application = \"shop\"\n[topics.orders]\npartitions = 4\n[topics.payments]\npartitions = 4\n\
    [functions.pay]\ncomponent = \"guest.wasm\"\ntopics = [\"orders\"]\n\
    grants = { publish = [\"payments\"] }\n";

/// A server that was given nothing but a place for its data.
pub(super) fn embedded(directory: &Path) -> Dev {
    Dev::started(
        Command::new(program())
            .args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"])
            .arg(directory.join("data"))
            .current_dir(directory),
    )
}

/// An instance that was given nothing but the broker's address.
pub(super) fn on_kafka(directory: &Path, instance: &str, bootstrap: &str) -> Dev {
    on_kafka_by(&program(), directory, instance, bootstrap)
}

/// The same, with a copy of the program.
pub(super) fn on_kafka_by(program: &Path, directory: &Path, instance: &str, bootstrap: &str) -> Dev {
    let data = directory.join(instance);
    std::fs::create_dir_all(&data).expect("a directory");
    Dev::started(
        Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"])
            .arg(&data)
            .args(["--set", &format!("kafka.bootstrap={bootstrap}"), "--set", &format!("kafka.instance={instance}")])
            .args(["--set", "kafka.properties.session.timeout.ms=6000"])
            .current_dir(&data),
    )
}

pub(super) fn millrace(url: &str, arguments: &[&str]) -> Output {
    Command::new(program()).args(["--server", url]).args(arguments).output().expect("the binary can be started")
}

/// Runs a command that must do what it is asked, and answers with what it says.
pub(super) fn done(url: &str, arguments: &[&str]) -> String {
    let ran = millrace(url, arguments);
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{arguments:?}: {out}\n{err}");
    out.into_owned()
}

/// Two directories with the same application, whose handlers emit events of type `emitted` and `omitted`.
pub(super) fn two_versions(directory: &Path) -> [String; 2] {
    let [one, other] = ["one", "other"].map(|name| directory.join(name));
    for path in [&one, &other] {
        std::fs::create_dir_all(path).expect("a directory");
    }
    application(&one, MANIFEST);
    revised_application(&other, MANIFEST);
    [one, other].map(|path| path.to_string_lossy().into_owned())
}

pub(super) fn order(id: &str, key: usize) -> String {
    json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "E.order.placed",
        "subject": "payments", "data": {"n": 1}, "partitionkey": format!("k{key}")})
    .to_string()
}

pub(super) async fn revisions(url: &str) -> Value {
    Api::default().get(&format!("{url}/v1/functions/{FUNCTION}/revisions")).await
}

/// Waits until what the API tells is so, and answers with it.
pub(super) async fn until(url: &str, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let there = Api::default().get(&format!("{url}/v1/{path}")).await;
        if is_so(&there) {
            return there;
        }
        assert!(began.elapsed() < PATIENCE, "that never comes: {there:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until as many instances have taken up the latest deployment, and this is so of them.
pub(super) async fn everywhere(url: &str, instances: usize, is_so: impl Fn(&Value) -> bool) {
    let path = format!("functions/{FUNCTION}/revisions");
    until(url, &path, |there| {
        let told = there["instances"].as_array().expect("instances").iter().filter(|one| one["live"] == true);
        told.filter(|one| one["deployment"] == there["latest"] && is_so(one)).count() >= instances
    })
    .await;
}

/// Waits until as many instances run this revision.
pub(super) async fn run_everywhere(url: &str, revision: u64, instances: usize) {
    everywhere(url, instances, |one| one["revision"] == revision).await;
}

async fn roll_back(url: &str, to: u64) {
    let path = format!("{url}/v1/functions/{FUNCTION}/rollback");
    let answer = Api::default().send(Method::POST, &path, "application/json", json!({ "to": to }).to_string()).await;
    let (status, body) = answer.expect("the server answers");
    assert!(status.is_success(), "{status} {body}");
}

/// The types of the emitted events, by the event that they come from: each event was handled once.
pub(super) async fn handled(url: &str) -> BTreeMap<String, String> {
    let mut handled = BTreeMap::new();
    for record in Api::default().records(url, "payments").await.iter().flatten() {
        let event = &record["event"];
        let cause = event["causationid"].as_str().expect("a cause").to_owned();
        let before = handled.insert(cause, event["type"].as_str().expect("a type").to_owned());
        assert!(before.is_none(), "{event} was handled twice");
    }
    handled
}

/// The types of what comes of these events, which are published now, once it is there.
async fn come_of(url: &str, ids: &[String]) -> BTreeMap<String, String> {
    let api = Api::default();
    let read = async |from: &str| api.get(&format!("{url}/v1/topics/payments/events?limit=1000&from={from}")).await;
    let after = |page: &Value| {
        let place = |place: &Value| format!("{}:{}", place["partition"], place["offset"]);
        page["next"].as_array().expect("places").iter().map(place).collect::<Vec<_>>().join(",")
    };
    let mut from = after(&read("latest").await);
    let batch: Vec<String> = ids.iter().enumerate().map(|(n, id)| order(id, 100 + n)).collect();
    assert_eq!(api.publish(url, "orders", &batch).await, Some(StatusCode::ACCEPTED));
    let (began, mut found) = (Instant::now(), BTreeMap::new());
    while found.len() < ids.len() {
        assert!(began.elapsed() < PATIENCE, "{found:?} is all that comes of {ids:?}");
        let page = read(&from).await;
        for record in page["records"].as_array().expect("records") {
            let text = |name: &str| record["event"][name].as_str().expect("a text").to_owned();
            if ids.contains(&text("causationid")) {
                found.insert(text("causationid"), text("type"));
            }
        }
        from = after(&page);
    }
    found
}

/// Publishes one batch after the other.
#[derive(Default)]
pub(super) struct Load {
    /// Events that were published.
    pub(super) published: AtomicUsize,
    pub(super) held: AtomicBool,
    pub(super) ended: AtomicBool,
}

impl Load {
    pub(super) async fn run(self: Arc<Self>, url: String) {
        let api = Api::default();
        while !self.ended.load(Ordering::Relaxed) {
            let first = self.published.load(Ordering::Relaxed);
            let batch: Vec<String> = (first..first + 20).map(|n| order(&format!("o-{n}"), n % 50)).collect();
            if !self.held.load(Ordering::Relaxed)
                && api.publish(&url, "orders", &batch).await == Some(StatusCode::ACCEPTED)
            {
                self.published.store(first + 20, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until so many more events were published.
    pub(super) async fn more(&self, events: usize) {
        let (began, wanted) = (Instant::now(), self.published.load(Ordering::Relaxed) + events);
        while self.published.load(Ordering::Relaxed) < wanted {
            assert!(began.elapsed() < PATIENCE, "no more events are published");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Two revisions that take the place of one another.
struct Swaps {
    /// Their numbers, and the types of what they emit.
    revisions: [(u64, &'static str); 2],
    many: usize,
    /// After so many an event is published of which is known which revision must handle it.
    check_every: usize,
}

/// Swaps two revisions while events come, each time once it runs everywhere; each event is handled once, and none that was published after
/// a swap by the revision before it. What was handled before is still there. Answers with all that was handled.
async fn swap_under_load(
    urls: &[String],
    swaps: &Swaps,
    before: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let (url, api, load) = (&urls[0], Api::default(), Arc::new(Load::default()));
    let first = before.keys().filter(|id| id.starts_with("o-")).count();
    load.published.store(first, Ordering::Relaxed);
    let loading = tokio::spawn(Arc::clone(&load).run(url.clone()));
    let mut marks = 0;
    for swap in 0..swaps.many {
        let (to, word) = swaps.revisions[swap % 2];
        roll_back(url, to).await;
        run_everywhere(url, to, urls.len()).await;
        if swap % swaps.check_every == 0 {
            // What waits is handled first.
            load.held.store(true, Ordering::Relaxed);
            let ids: Vec<String> = (0..8).map(|n| format!("mark-{first}-{swap}-{n}")).collect();
            let words = come_of(url, &ids).await;
            assert!(words.values().all(|found| found == word), "after swap {swap}, to what says `{word}`: {words:?}");
            marks += ids.len();
            load.held.store(false, Ordering::Relaxed);
            load.more(40).await;
        }
    }
    load.ended.store(true, Ordering::Relaxed);
    loading.await.expect("it ends");
    let status = api.settled(url).await;
    let handled = handled(url).await;
    let events = load.published.load(Ordering::Relaxed) - first;
    assert!(events > swaps.many, "only {events} events were published meanwhile");
    assert_eq!(handled.len(), before.len() + events + marks, "an event is lost");
    for (_, word) in swaps.revisions {
        let new = handled.iter().filter(|(id, _)| !before.contains_key(*id));
        let many = new.filter(|(_, kind)| *kind == word).count();
        assert!(many > events / 20, "{many} of {events} events were handled by the revision that says `{word}`");
    }
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
    handled
}

/// Swaps the first two revisions, and then the first one with another one that attempts otherwise: for that the workers are drained, and the
/// function subscribes anew.
async fn swap_both_ways_under_load(urls: &[String], directory: &Path, [alike, anew]: [usize; 2]) {
    let swaps = Swaps { revisions: [(ONE, "emitted"), (OTHER, "omitted")], many: alike, check_every: CHECK_EVERY };
    let handled = swap_under_load(urls, &swaps, &BTreeMap::new()).await;
    let history = revisions(&urls[0]).await;
    assert_eq!(history["latest"], 4 + alike, "each swap is on record");
    let third = directory.join("third");
    std::fs::create_dir_all(&third).expect("a directory");
    revised_application(&third, &format!("{MANIFEST}retry = {{ attempts = 2 }}\n"));
    done(&urls[0], &["deploy", &third.to_string_lossy(), "--yes"]);
    let third = revisions(&urls[0]).await["active"].as_u64().expect("a number");
    let swaps = Swaps { revisions: [(ONE, "emitted"), (third, "omitted")], many: anew, check_every: 1 };
    swap_under_load(urls, &swaps, &handled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_swaps_lose_and_double_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    done(&server.url, &["deploy", &one, "--yes"]);
    done(&server.url, &["deploy", &other, "--yes"]);
    let urls = std::slice::from_ref(&server.url);
    swap_both_ways_under_load(urls, directory.path(), [SWAPS, SWAPS_ANEW]).await;
    assert!(server.stop());
}

/// What is under way ends on the revision that it began with, while what comes later is handled by the one that took its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invocation_ends_on_the_revision_that_it_began_with() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let (url, api) = (&server.url, Api::default());
    done(url, &["deploy", &one, "--yes"]);
    done(url, &["deploy", &other, "--yes"]);
    roll_back(url, ONE).await;
    run_everywhere(url, ONE, 1).await;
    // It emits after as long as its time is after 1970.
    let slow = |id: &str, time: &str| {
        let mut event: Value = serde_json::from_str(&order(id, 1)).expect("an event");
        (event["type"], event["time"]) = (json!("W.order.placed"), json!(time));
        event.to_string()
    };
    let both = [slow("before", "1970-01-01T00:00:00.1Z"), slow("meanwhile", "1970-01-01T00:00:03Z")];
    assert_eq!(api.publish(url, "orders", &both).await, Some(StatusCode::ACCEPTED));
    // They have the same key: once the first one has ended, the second one has begun.
    until(url, "topics/payments/events", |there| there["records"].as_array().is_some_and(|all| !all.is_empty())).await;
    roll_back(url, OTHER).await;
    run_everywhere(url, OTHER, 1).await;
    let words = come_of(url, &["after".to_owned()]).await;
    assert_eq!(words["after"], "omitted");
    api.settled(url).await;
    let words = handled(url).await;
    assert_eq!((&*words["before"], &*words["meanwhile"]), ("emitted", "emitted"), "{words:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_deploy_at_once_one_is_told_of_the_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    done(&server.url, &["deploy", &one, "--yes"]);
    done(&server.url, &["deploy", &other, "--yes"]);
    let (url, api) = (&server.url, Api::default());
    let there = revisions(url).await;
    let manifest = there["deployments"][0]["manifest"].as_str().expect("a manifest");
    let ask = |component: &Value, builds_on: u64| {
        let body = json!({"component": component, "manifest": manifest, "builds_on": builds_on}).to_string();
        let api = api.clone();
        async move {
            let path = format!("{url}/v1/functions/{FUNCTION}");
            api.send(Method::PUT, &path, "application/json", body).await.expect("the server answers")
        }
    };
    let first = there["deployments"][0]["component"].clone();
    let late = ask(&first, 1).await;
    assert_eq!(late.0, StatusCode::CONFLICT);
    let detail = late.1["detail"].as_str().expect("a reason");
    assert!(detail.contains("latest deployment is 4") && detail.contains("revision 3 is active"), "{detail}");
    let both = tokio::join!(ask(&first, 4), ask(&first, 4));
    let mut statuses = [both.0.0.as_u16(), both.1.0.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{both:?}");
    // What runs already is no new revision, and a component that nobody uploaded cannot run.
    run_everywhere(url, 5, 1).await;
    assert_eq!(ask(&first, 6).await.1["new"], false);
    let unknown = ask(&json!("0".repeat(64)), 6).await;
    assert_eq!(
        (unknown.0, &unknown.1["type"]),
        (StatusCode::NOT_FOUND, &json!("https://millrace.dev/problems/unknown-component"))
    );
}

/// A paused function handles nothing, whoever deploys meanwhile, and goes on where it is; a deleted one too, once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_paused_deleted_and_brought_back_without_losing_an_event() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let (url, api) = (server.url.clone(), Api::default());
    done(&url, &["deploy", &one, "--yes"]);
    let publish = async |id: &str| {
        assert_eq!(Api::default().publish(&url, "orders", &[order(id, 1)]).await, Some(StatusCode::ACCEPTED));
    };
    publish("before").await;
    api.settled(&url).await;
    assert!(done(&url, &["functions", "pause", "pay"]).contains("shop.pay: paused"));
    publish("paused").await;
    done(&url, &["deploy", &other, "--yes"]);
    let status = api.get(&format!("{url}/v1/functions/{FUNCTION}")).await;
    assert_eq!((&status["paused"], &status["lag_records"], &status["revision"]), (&json!(true), &json!(1), &json!(4)));
    drop(server);
    let server = embedded(directory.path());
    let url = server.url.clone();
    let status = api.get(&format!("{url}/v1/functions/{FUNCTION}")).await;
    assert_eq!((&status["paused"], &status["lag_records"]), (&json!(true), &json!(1)), "it is paused still");
    done(&url, &["functions", "resume", "pay"]);
    api.settled(&url).await;
    done(&url, &["functions", "delete", "pay", "--yes"]);
    let path = format!("{url}/v1/functions/{FUNCTION}");
    let answer = api.send(Method::GET, &path, "text/plain", String::new()).await.expect("the server answers");
    assert_eq!(answer.0, StatusCode::NOT_FOUND);
    assert_eq!(api.publish(&url, "orders", &[order("deleted", 1)]).await, Some(StatusCode::ACCEPTED));
    done(&url, &["functions", "rollback", FUNCTION, "--to", "1", "--yes"]);
    api.settled(&url).await;
    let expected = [("before", "emitted"), ("deleted", "emitted"), ("paused", "omitted")];
    let expected = expected.map(|(id, word)| (id.to_owned(), word.to_owned()));
    assert_eq!(handled(&url).await, BTreeMap::from(expected));
    let said = done(&url, &["functions", "history", FUNCTION]);
    for action in ["deploy", "pause", "resume", "delete", "rollback to 1"] {
        assert!(said.contains(action), "{action} is missing: {said}");
    }
}

/// While a function cannot change over because its handler is at work, others are paused and go on, and that is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_changes_over_slowly_holds_up_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let slow = "[topics.slow]\npartitions = 1\n[functions.slow]\ncomponent = \"guest.wasm\"\ntopics = [\"slow\"]\n\
        grants = { publish = [\"payments\"] }\nlimits = { time = \"5m\" }\n";
    // A worker that attempts otherwise is another worker.
    for (path, more) in [(&one, ""), (&other, "retry = { attempts = 2 }\n")] {
        std::fs::write(Path::new(path).join("millrace.toml"), format!("{MANIFEST}{slow}{more}")).expect("a file");
    }
    let (url, api) = (&server.url, Api::default());
    done(url, &["deploy", &one, "--yes"]);
    let event =
        |id: &str, kind: &str| json!({"specversion": "1.0", "id": id, "source": "/shop", "type": kind}).to_string();
    // One that is handled at once, and one that never ends.
    let both = [event("done", "o"), event("long", "l")];
    assert_eq!(api.publish(url, "slow", &both).await, Some(StatusCode::ACCEPTED));
    until(url, "functions/shop.slow", |slow| slow["lag_records"] == 1).await;
    done(url, &["deploy", &other, "--yes", "--wait", "0"]);
    let path = "functions/shop.slow/revisions";
    until(url, path, |slow| slow["active"].as_u64() > Some(ONE)).await;
    done(url, &["functions", "pause", "pay"]);
    until(url, "functions/shop.pay/revisions", |pay| pay["instances"][0]["paused"] == true).await;
    done(url, &["functions", "resume", "pay"]);
    let there = api.get(&format!("{url}/v1/{path}")).await;
    assert!(there["instances"][0]["live"] == true, "{there:#}");
    assert_ne!(there["instances"][0]["revision"], there["active"], "it has changed over: {there:#}");
    server.kill();
}

/// What cannot run is refused with a reason before anything is changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_is_refused_and_what_runs_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = embedded(directory.path());
    let [one, other] = two_versions(directory.path());
    let url = &server.url;
    done(url, &["deploy", &one, "--yes"]);
    let guest = std::fs::read(Path::new(&other).join("guest.wasm")).expect("a file");
    let component = |bytes: &[u8]| std::fs::write(Path::new(&other).join("guest.wasm"), bytes).expect("a file");
    let manifest = |text: &str| std::fs::write(Path::new(&other).join("millrace.toml"), text).expect("a file");
    for (bytes, reason) in [
        (&b""[..], "empty"),
        (b"(component)", "text"),
        (b"\0asm\x01\0\0\0", "core module"),
        (&guest[..guest.len() / 2], "cut short"),
    ] {
        component(bytes);
        let ran = millrace(url, &["deploy", &other, "--yes"]);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(1) && said.contains(reason), "{reason}: {said}");
    }
    component(&guest);
    for (text, reason) in [
        (
            MANIFEST.replace("partitions = 4\n[functions", "partitions = 5\n[functions"),
            "a count cannot be changed later",
        ),
        (MANIFEST.replace("[functions.pay]", "[functions.pay]\nfilter = \"event.\""), "filter"),
        (MANIFEST.replace("topics = [", "topic = ["), "2 errors"),
    ] {
        manifest(&text);
        let ran = millrace(url, &["deploy", &other, "--yes"]);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(1) && said.contains(reason), "{reason}: {said}");
    }
    manifest(MANIFEST);
    let ran = millrace(url, &["deploy", &other]);
    assert_eq!(ran.status.code(), Some(2), "nobody can be asked");
    assert_eq!(revisions(url).await["latest"], 2);
    done(url, &["deploy", &other, "--dry-run"]);
    assert_eq!(revisions(url).await["latest"], 2, "a dry run changes nothing");
}

/// Three instances that know nothing but the broker run what is uploaded to one of them, as does one that was down meanwhile, and
/// one that starts later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_every_instance_runs_what_was_uploaded_to_one() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let start = |name: &str| on_kafka(directory.path(), name, &kafka.bootstrap);
    let (first, second, third) = (start("a"), start("b"), start("c"));
    let api = Api::default();
    done(&first.url, &["deploy", &versions[0], "--yes"]);
    run_everywhere(&second.url, ONE, 3).await;
    let batch = |from: usize| (from..from + 200).map(|n| order(&format!("o-{n}"), n)).collect::<Vec<_>>();
    assert_eq!(api.publish(&second.url, "orders", &batch(0)).await, Some(StatusCode::ACCEPTED));
    third.kill();
    done(&second.url, &["deploy", &versions[1], "--yes", "--wait", "0"]);
    run_everywhere(&first.url, OTHER, 2).await;
    let third = start("c");
    run_everywhere(&third.url, OTHER, 3).await;
    // Two proposals that build on the same, made to two instances: exactly one counts, and all say so.
    let there = revisions(&first.url).await;
    let request = |latest: u64, at: usize| {
        let deployment = &there["deployments"][at];
        json!({"component": deployment["component"], "manifest": deployment["manifest"], "builds_on": latest})
            .to_string()
    };
    let ask = async |url: &str, body: String| {
        let path = format!("{url}/v1/functions/{FUNCTION}");
        Api::default().send(Method::PUT, &path, "application/json", body).await.expect("the server answers")
    };
    for (latest, at) in [(4, 0), (6, 2), (8, 0)] {
        let both = [ask(&first.url, request(latest, at)), ask(&second.url, request(latest, at))];
        let mut both = futures::future::join_all(both).await;
        both.sort_by_key(|(status, _)| *status);
        let [(StatusCode::OK, _), (StatusCode::CONFLICT, problem)] = &both[..] else { panic!("{both:?}") };
        let told = problem["detail"].as_str().expect("a problem says why");
        let revision = latest + 1;
        let names = [format!("revision {revision} is staged"), format!("revision {revision} is active")];
        assert!(names.iter().any(|name| told.contains(name)), "{told}");
        run_everywhere(&second.url, revision, 3).await;
    }
    let late = start("d");
    run_everywhere(&late.url, 9, 4).await;
    assert_eq!(api.publish(&late.url, "orders", &batch(200)).await, Some(StatusCode::ACCEPTED));
    let status = api.settled(&late.url).await;
    assert_eq!(handled(&late.url).await.len(), 400);
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
    let mut told = Vec::new();
    for instance in [&first, &second, &third, &late] {
        told.push(revisions(&instance.url).await["deployments"].clone());
    }
    // All of them anew.
    [first, second, third, late].into_iter().for_each(Dev::kill);
    for name in ["a", "b"] {
        told.push(revisions(&start(name).url).await["deployments"].clone());
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_swaps_lose_and_double_nothing() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let [one, other] = two_versions(directory.path());
    let instances = ["a", "b"].map(|name| on_kafka(directory.path(), name, &kafka.bootstrap));
    let urls = instances.each_ref().map(|instance| instance.url.clone());
    done(&urls[0], &["deploy", &one, "--yes"]);
    done(&urls[0], &["deploy", &other, "--yes"]);
    let swaps = std::env::var("SWAPS").ok().and_then(|swaps| swaps.parse().ok());
    let swaps = [swaps.unwrap_or(SWAPS_ON_KAFKA), SWAPS_ANEW_ON_KAFKA];
    swap_both_ways_under_load(&urls, directory.path(), swaps).await;
}
