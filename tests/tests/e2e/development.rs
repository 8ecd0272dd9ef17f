//! `millrace dev` while somebody works on an application: what it shows, and what it takes over without a restart.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use hyper::Method;
use millrace::broker::embedded::{EmbeddedLog, Options};
use millrace_tests::process::{Api, Dev, application, program, revised_application, root};
use serde_json::{Value, json};

/// A function of the hello example under another name.
fn function(name: &str, rest: &str) -> String {
    let component = root().join("target/wasm32-wasip2/guest/hello.wasm");
    format!(
        "[functions.{name}]\ncomponent = '{}'\ntopics = ['visitors']\ngrants = {{ publish = ['greetings'] }}\n{rest}\n",
        component.display()
    )
}

fn write(directory: &Path, functions: &[String]) {
    let text = format!("application = 'hall'\n[topics.visitors]\npartitions = 1\n{}", functions.concat());
    fs::write(directory.join("millrace.toml"), text).expect("a file");
}

/// Starts what lies in a directory and follows its changes; all that it says comes on standard output.
fn start(directory: &Path, more: &[&str]) -> Dev {
    let data = directory.join(".millrace");
    Dev::start_following(&directory.to_string_lossy(), &data, |command: &mut Command| command.args(more))
}

fn visitor(number: u32, data: &Value) -> String {
    json!({"specversion": "1.0", "id": format!("v-{number}"), "source": "/door", "type": "visitor", "data": data,
        "partitionkey": "ada"})
    .to_string()
}

async fn publish(dev: &Dev, topic: &str, visitors: &[String]) {
    let status = Api::default().publish(&dev.url, topic, visitors).await;
    assert_eq!(status.map(|status| status.as_u16()), Some(202));
}

/// Waits until it has said all of these, in whatever order.
fn says_all(dev: &Dev, texts: &[&str]) {
    let mut said: Vec<String> = Vec::new();
    for text in texts {
        if !said.iter().any(|line| line.contains(text)) {
            said.extend(dev.says(text));
        }
    }
}

/// The names of the functions that run, with their revisions.
async fn running(dev: &Dev) -> Vec<(String, u64)> {
    let functions = Api::default().get(&format!("{}/v1/functions", dev.url)).await;
    let functions = functions["functions"].as_array().expect("functions");
    let named =
        functions.iter().map(|f| (f["name"].as_str().expect("a name"), f["revision"].as_u64().expect("a number")));
    named.map(|(name, revision)| (name.to_owned(), revision)).collect()
}

/// Why it is not ready, if it is not.
async fn refused(dev: &Dev) -> String {
    let url = format!("{}/readyz", dev.url);
    let answer = Api::default().send(Method::GET, &url, "text/plain", String::new()).await;
    let (status, body) = answer.expect("the server answers");
    if status.is_success() { String::new() } else { body["detail"].as_str().expect("a reason").to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_manifest_is_taken_over_while_everything_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    write(path, &[function("greet", ""), function("old", "")]);
    let dev = start(path, &[]);
    publish(&dev, "visitors", &[visitor(1, &json!("Ada"))]).await;

    // What does not parse is shown at its place, and nothing changes.
    write(path, &[function("greet", "fliter = 'true'")]);
    let said = dev.says("Nothing of the manifest was taken over").concat();
    for expected in ["fliter", "millrace.toml:8:1", "did you mean `filter`?"] {
        assert!(said.contains(expected), "`{expected}` is missing: {said}");
    }
    assert_eq!(running(&dev).await, [("hall.greet".to_owned(), 1), ("hall.old".to_owned(), 1)]);

    // A new function on a new topic, a changed one, and one that is gone.
    let elsewhere = function("new", "").replace("'visitors'", "'guests'");
    write(path, &[function("greet", "filter = 'event.id == \"x\"'"), elsewhere.clone()]);
    let said = dev.says("hall.new: new; revision 1 runs").join("\n");
    for expected in
        ["guests: a new topic", "hall.old: no longer in the manifest", "hall.greet: changed filter; revision 2 runs"]
    {
        assert!(said.contains(expected), "`{expected}` is missing:\n{said}");
    }
    assert_eq!(running(&dev).await, [("hall.greet".to_owned(), 2), ("hall.new".to_owned(), 1)]);
    publish(&dev, "visitors", &[visitor(2, &json!("Bob"))]).await;
    publish(&dev, "guests", &[visitor(3, &json!("Cy"))]).await;
    let api = Api::default();
    let status = api.settled(&dev.url).await;
    let totals =
        |at: usize| (&status["functions"][at]["totals"]["completed"], &status["functions"][at]["totals"]["filtered"]);
    assert_eq!((totals(0), totals(1)), ((&json!(1), &json!(1)), (&json!(1), &json!(0))), "{status:#}");

    // What cannot be is said with the way out, and nothing else of that change is taken over.
    let text = fs::read_to_string(path.join("millrace.toml")).expect("a file");
    let text = text.replace("partitions = 1", "partitions = 2").replace("'event.id == \"x\"'", "'true'");
    fs::write(path.join("millrace.toml"), text).expect("a file");
    let said = dev.says("Nothing of the manifest was taken over").join("\n");
    assert!(said.contains("topic `visitors` has 1 partitions, and a count cannot be changed later"), "{said}");
    assert_eq!(running(&dev).await[0], ("hall.greet".to_owned(), 2));

    // The first manifest once more: the position of who was away is where it was.
    write(path, &[function("greet", ""), function("old", "")]);
    dev.says("hall.old: new; revision 1 runs");
    let status = api.settled(&dev.url).await;
    assert_eq!(status["functions"][1]["totals"]["completed"], 2, "{status:#}");
    fs::write(path.join("millrace-config.toml"), "").expect("a file");
    dev.says("millrace-config.toml changed: it is read at the start only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_for_an_application_that_has_another_name_now() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &[function("greet", "")]);
    assert!(start(directory.path(), &["--no-watch"]).stop(), "it ends well");
    let manifest = directory.path().join("millrace.toml");
    let text = fs::read_to_string(&manifest).expect("a file").replace("'hall'", "'house'");
    fs::write(&manifest, text).expect("a file");
    assert!(start(directory.path(), &["--no-watch"]).stop(), "it ends well");
    let log = EmbeddedLog::open(Options::new(directory.path().join(".millrace/log"))).expect("the log can be opened");
    for (function, expected) in [("hall.greet", false), ("house.greet", true)] {
        let was_kept_for = log.retire(function.parse().expect("a name")).await.expect("the log works");
        assert_eq!(was_kept_for, expected, "{function}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_and_logs_are_shown_as_they_come() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        &[function("greet", ""), function("picky", "filter = 'event.id == \"v-1\"'\nretry = { attempts = 1 }")],
    );
    let dev = start(directory.path(), &["--no-watch"]);
    publish(&dev, "visitors", &[visitor(1, &json!("Ada"))]).await;
    says_all(
        &dev,
        &[
            "hall.greet                visitors/0/0        ada          info hello: Hello, Ada!",
            "hall.greet                visitors/0/0        ada         completed  ",
            "hall.picky                visitors/0/0        ada         completed  ",
        ],
    );
    publish(&dev, "visitors", &[visitor(2, &json!(7)), visitor(1, &json!("Ada"))]).await;
    says_all(
        &dev,
        &[
            "hall.greet                visitors/0/1        ada         dead-lettered after 1 attempt, invalid: ",
            "hall.greet                visitors/0/2        ada         duplicate",
            "hall.picky                visitors/0/1        -           filtered",
            "hall.picky                visitors/0/2        ada         duplicate",
        ],
    );
    // Many at once are summed up.
    let many: Vec<String> = (10..510).map(|number| visitor(number, &json!("you"))).collect();
    publish(&dev, "visitors", &many).await;
    let said = dev.says("summed up     hall.picky");
    let lines = said.iter().filter(|line| line.contains("completed  ")).count();
    assert!(lines <= 60, "{lines} events have a line of their own:\n{}", said.join("\n"));
    assert!(dev.stop(), "it ends well");
}

/// Somebody who starts in the middle of their work sees what does not build, and goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_build_keeps_nobody_from_starting() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let component = root().join("target/wasm32-wasip2/guest/hello.wasm");
    let built = |name: &str| {
        format!(
            "[functions.{name}]\nbuild = 'test -e {name}.ok && cp {} {name}.wasm'\nwatch = ['{name}.ok', 'nowhere']\n\
             component = '{name}.wasm'\ntopics = ['visitors']\ngrants = {{ publish = ['greetings'] }}\n",
            component.display()
        )
    };
    // One was built before, with sources that are older than the one that is there now; one never was.
    fs::copy(&component, path.join("old.wasm")).expect("a file");
    let old = fs::File::options().write(true).open(path.join("old.wasm")).expect("a file");
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
    write(path, &[function("greet", ""), built("old").replace("'old.ok', ", "'old.rs', "), built("new")]);
    fs::write(path.join("old.rs"), "").expect("a file");
    let dev = start(path, &[]);
    assert_eq!(running(&dev).await, [("hall.greet".to_owned(), 1), ("hall.old".to_owned(), 1)]);
    assert_eq!(refused(&dev).await, "functions refused: hall.new");
    let status = Api::default().get(&format!("{}/v1/status", dev.url)).await;
    let told = (&status["refused"][0]["name"], status["refused"][0]["reason"].as_str().expect("a reason"));
    assert_eq!(told.0, "hall.new", "{status:#}");
    assert!(told.1.starts_with("cannot read the component"), "{status:#}");
    dev.says("warning: hall.old: `nowhere`, which `watch` names, is not there");
    fs::write(path.join("new.ok"), "").expect("a file");
    dev.says("swapped hall.new to revision 1");
    assert_eq!(running(&dev).await.len(), 3);
    assert_eq!(refused(&dev).await, "");
    // One that was never built, and one that is gone from the manifest before it is.
    write(path, &[function("greet", ""), built("never")]);
    dev.says("hall.never: it does not run");
    assert_eq!(refused(&dev).await, "functions refused: hall.never");
    write(path, &[function("greet", "")]);
    dev.says("hall.never: no longer in the manifest");
    assert_eq!(refused(&dev).await, "");
}

/// The scripts that build copy one of two components that are there: nothing has to be compiled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_changed_is_built_and_a_build_that_fails_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    revised_application(path, "");
    fs::rename(path.join("guest.wasm"), path.join("revised.wasm")).expect("a file");
    application(path, "");
    let script = |name: &str, text: &str| fs::write(path.join(name).join("build.sh"), text).expect("a file");
    let built = |name: &str| {
        fs::create_dir(path.join(name)).expect("a directory");
        script(name, &format!("cp guest.wasm {name}.wasm"));
        format!(
            "[functions.{name}]\nbuild = 'sh {name}/build.sh'\nwatch = ['{name}']\ncomponent = '{name}.wasm'\n\
             topics = ['visitors']\ngrants = {{ publish = ['greetings'] }}\n"
        )
    };
    write(path, &[built("greet"), built("seat")]);
    let dev = start(path, &[]);
    let revisions = |of_seat: u64| [("hall.greet".to_owned(), 1), ("hall.seat".to_owned(), of_seat)];
    assert_eq!(running(&dev).await, revisions(1));
    script("seat", "cp revised.wasm seat.wasm");
    let said = dev.says("swapped hall.seat to revision 2").join("\n");
    assert!(said.contains("$ sh seat/build.sh") && !said.contains("$ sh greet/build.sh"), "{said}");
    assert_eq!(running(&dev).await, revisions(2));
    assert_eq!(emitted_after(&dev, "v-1").await, ["emitted", "omitted"]);

    script("seat", "echo 'a bracket is missing' >&2; exit 1");
    let said = dev.says("hall.seat: the revision that ran before goes on").join("\n");
    for expected in ["a bracket is missing", "`sh seat/build.sh` failed with exit status: 1"] {
        assert!(said.contains(expected), "`{expected}` is missing:\n{said}");
    }
    assert_eq!(running(&dev).await, revisions(2));
    assert_eq!(refused(&dev).await, "");
    assert_eq!(emitted_after(&dev, "v-2").await, ["emitted", "emitted", "omitted", "omitted"]);
}

/// Publishes a visitor whom each function tells of, and answers with the types of all that they have emitted.
async fn emitted_after(dev: &Dev, id: &str) -> Vec<String> {
    let event = json!({"specversion": "1.0", "id": id, "source": "/door", "type": "E", "subject": "greetings"});
    publish(dev, "visitors", &[event.to_string()]).await;
    let api = Api::default();
    api.settled(&dev.url).await;
    let records = api.records(&dev.url, "greetings").await.concat();
    let mut types: Vec<String> =
        records.iter().map(|record| record["event"]["type"].as_str().expect("a type").to_owned()).collect();
    types.sort();
    types
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_told_in_json() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &[function("greet", "")]);
    let mut dev = Command::new(program());
    dev.args(["dev", "--json", "--no-watch", "--listen", "127.0.0.1:0"]).arg(directory.path());
    let mut dev = dev.stdout(Stdio::piped()).spawn().expect("the binary can be started");
    let lines = BufReader::new(dev.stdout.take().expect("it has an output")).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.expect("a text")).expect("JSON"));
    let ready = lines.next().expect("it says that it is ready");
    assert_eq!((&ready["kind"], &ready["functions"][0]["name"]), (&json!("ready"), &json!("hall.greet")));
    let url = ready["url"].as_str().expect("an address");
    let status = Api::default().publish(url, "visitors", &[visitor(1, &json!("Ada"))]).await;
    assert_eq!(status.map(|status| status.as_u16()), Some(202));
    let told: Vec<Value> = lines.by_ref().take(2).collect();
    assert_eq!((&told[0]["kind"], &told[0]["message"]), (&json!("logged"), &json!("Hello, Ada!")));
    assert_eq!((&told[1]["kind"], &told[1]["place"]), (&json!("completed"), &json!("visitors/0/0")));
    dev.kill().expect("it is running");
    dev.wait().expect("it was started");
}

/// It is neither open nor gone: somebody has to hear what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redriven_letter_that_is_filtered_now_is_resolved() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &[function("greet", "")]);
    let dev = start(directory.path(), &[]);
    publish(&dev, "visitors", &[visitor(1, &json!(7))]).await;
    dev.says("dead-lettered after 1 attempt, invalid: ");
    write(directory.path(), &[function("greet", "filter = 'event.id == \"x\"'")]);
    dev.says("hall.greet: changed filter; revision 2 runs");
    let (api, letters) = (Api::default(), format!("{}/v1/dead-letters", dev.url));
    let all = json!({"function": "hall.greet"}).to_string();
    let answer = api.send(Method::POST, &format!("{letters}/redrive"), "application/json", all).await;
    assert_eq!(answer.map(|(status, _)| status.as_u16()), Some(200));
    dev.says("hall.greet                visitors/0/0        ada         filtered");
    let letters = api.get(&format!("{letters}?status=all")).await;
    assert_eq!(letters["letters"][0]["status"], "resolved", "{letters:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_quiet_has_it() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), &[function("greet", "")]);
    let dev = start(directory.path(), &["--no-watch", "--quiet"]);
    publish(&dev, "visitors", &[visitor(1, &json!("Ada")), visitor(2, &json!(7))]).await;
    Api::default().settled(&dev.url).await;
    // Logs say then what else they leave to the lines.
    let said = dev.says("An event is dead-lettered.").join("\n");
    assert!(said.contains("Hello, Ada!"), "{said}");
    assert!(!said.contains("completed"), "{said}");
}
