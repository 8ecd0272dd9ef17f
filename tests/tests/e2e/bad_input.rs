//! What people give that cannot be used: the real binary says what is wrong and what to do, and nothing else happens.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use hyper::Method;
use millrace_tests::not_tested;
use millrace_tests::process::{Api, Dev, program, root};
use millrace_tests::small_disk::SmallDisk;

/// Runs a command to its end: its exit code, and all that it says.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let ran = Command::new(program()).args(args).stdin(Stdio::null()).current_dir(root()).output();
    let ran = ran.expect("the binary can be started");
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn assert_refused(what: &str, args: &[&str], expected: &[&str]) {
    let (code, said) = run(args);
    assert_eq!(code, Some(1), "{what}: {said}");
    for expected in expected {
        assert!(said.contains(expected), "{what}: `{expected}` is missing:\n{said}");
    }
}

fn application(directory: &Path, manifest: &str, component: &[u8]) {
    fs::write(directory.join("millrace.toml"), manifest).expect("the manifest is written");
    fs::write(directory.join("a.wasm"), component).expect("the component is written");
}

const MANIFEST: &str = "application = \"shop\"\n[functions.pay]\ntopics = [\"orders\"]\ncomponent = \"a.wasm\"\n";

#[test]
fn what_is_no_component_of_ours_is_named() {
    let whole = fs::read(root().join("target/wasm32-wasip2/guest/hello.wasm")).expect("the guests are built");
    let wasm = |text: &str| wat::parse_str(text).expect("the text is good");
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("an empty file", Vec::new(), "empty"),
        ("a core module", wasm("(module)"), "core module"),
        ("half a component", whole[..whole.len() / 2].to_vec(), "not valid"),
        ("text", b"(component)".to_vec(), "it is not WebAssembly"),
        ("a program of another kind", b"\x7fELF\x02\x01\x01\0".to_vec(), "it is not WebAssembly"),
        (
            "an import of what is not there",
            wasm("(component (import \"acme:payments/api\" (instance)))"),
            "acme:payments/api",
        ),
        ("no handler", wasm("(component)"), "exports no `millrace:function/handler@0.1.0`"),
    ];
    for (what, component, expected) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        application(directory.path(), MANIFEST, &component);
        let path = directory.path().to_str().expect("UTF-8");
        assert_refused(what, &["check", path], &["error: ", expected, "functions.pay.component", "help: "]);
    }
}

#[test]
fn what_is_wrong_with_a_manifest_is_shown_at_its_place() {
    let cases: [(&str, Vec<u8>, &[&str]); 5] = [
        (
            "a typing error",
            MANIFEST.replace("topics", "topcis").into(),
            &["millrace.toml:3:1", "did you mean", "`topics`"],
        ),
        ("a topic twice", b"application = [".to_vec(), &["this is not TOML", "millrace.toml:1:"]),
        ("not UTF-8", b"application = \"\xff\"".to_vec(), &["UTF-8"]),
        ("nothing", Vec::new(), &["application"]),
        (
            "a missing key",
            MANIFEST.replace("component = \"a.wasm\"\n", "").into(),
            &["component", "millrace.toml:2:12 "],
        ),
    ];
    for (what, manifest, expected) in cases {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("millrace.toml"), manifest).expect("the manifest is written");
        assert_refused(what, &["check", directory.path().to_str().expect("UTF-8")], expected);
    }
}

#[test]
fn an_event_that_cannot_be_read_is_named_with_its_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let invoke = |what: &str, content: Option<&[u8]>, expected: &str| {
        let file = directory.path().join("event.json");
        if let Some(content) = content {
            fs::write(&file, content).expect("the event is written");
        }
        let file = file.to_str().expect("UTF-8");
        let args = ["invoke", "hello", "--dir", "guest-examples/hello", "--event", file];
        assert_refused(what, &args, &[file, expected, "fix: "]);
    };
    invoke("no file", None, "No such file");
    invoke("not JSON", Some(b"{"), "is not a CloudEvent");
    invoke("not UTF-8", Some(b"\"\xff\""), "is not a CloudEvent");
    invoke("more than an event can be", Some(&vec![b' '; 3 << 20]), "has more than 2.00 MiB");
    invoke("no attributes", Some(b"{\"specversion\":\"1.0\"}"), "`id` is missing");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let start = |what: &str, data: &Path, expected: &[&str]| {
        let data = data.to_str().expect("UTF-8");
        let args = ["dev", "guest-examples/hello", "--data", data, "--listen", "127.0.0.1:0", "--no-watch"];
        assert_refused(what, &args, expected);
    };
    let made = tempfile::tempdir().expect("a directory");
    Dev::start("hello", made.path()).kill();
    let format = made.path().join("log/FORMAT");
    for (what, content, expected) in [
        ("a newer version", "millrace embedded log, format 99\n", &["format 99", "run a newer Millrace"][..]),
        ("a damaged format", "millrace", &["is corrupted, file `FORMAT`", "restore the directory from a backup"]),
    ] {
        fs::write(&format, content).expect("the file is written");
        start(what, made.path(), expected);
    }
    let others = tempfile::tempdir().expect("a directory");
    fs::create_dir(others.path().join("log")).expect("a directory");
    fs::write(others.path().join("log/thesis.txt"), "").expect("a file");
    start("other people's files", others.path(), &["holds other files and is no Millrace log", "choose an empty"]);
    let file = others.path().join("log/thesis.txt");
    start("a file", &file, &["cannot use the directory", "choose another one"]);
    let place = tempfile::tempdir().expect("a directory");
    match SmallDisk::mount(place.path(), 8) {
        Ok(mut disk) => {
            disk.forbid_writing().expect("it can be made read-only");
            start(
                "a disk that cannot be written",
                &disk.path(),
                &["cannot use the directory", "Read-only file system"],
            );
        }
        Err(reason) => not_tested("a disk that cannot be written", &reason),
    }
}

/// Two processes at work on one log would spoil it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_a_process_uses_is_refused_to_a_second_one() {
    let data = tempfile::tempdir().expect("a directory");
    let (first, api) = (Dev::start("hello", data.path()), Api::default());
    let mut second = Command::new(program());
    second.args(["dev", "guest-examples/hello", "--listen", "127.0.0.1:0", "--no-watch", "--data"]).arg(data.path());
    second.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut second = second.spawn().expect("the binary can be started");
    let output = BufReader::new(second.stdout.take().expect("it has an output"));
    let ready = output.lines().map_while(Result::ok).find(|line| line.contains(" on http"));
    if ready.is_some() {
        second.kill().expect("it is running");
    }
    let ended = second.wait_with_output().expect("it was started");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ready, ended.status.code()), (None, Some(1)), "{said}");
    let holder = format!("is open in process {}; stop that one, or choose another directory", first.id());
    assert!(said.contains("error: ") && said.contains(&holder), "`{holder}` is missing:\n{said}");
    let visitor = r#"{"specversion":"1.0","id":"1","source":"/s","type":"visitor.arrived","data":"Ada"}"#;
    let status = api.publish(&first.url, "visitors", &[visitor.to_owned()]).await;
    assert_eq!(status.map(|status| status.as_u16()), Some(202));
    api.settled(&first.url).await;
    assert_eq!(api.records(&first.url, "greetings").await.concat().len(), 1, "the first one goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_does_wrong_is_answered_with_what_to_do() {
    let data = tempfile::tempdir().expect("a directory");
    let dev = Dev::start("hello", data.path());
    let api = Api::default();
    let event = |id: &str| format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#);
    let large = format!("\"{}\"", "x".repeat(2 << 20));
    let (json, structured, batch) =
        ("application/json", "application/cloudevents+json", "application/cloudevents-batch+json");
    let to = "/v1/topics/visitors/events";
    let cases: [(&str, &str, &str, String, u16, &str); 10] = [
        ("not JSON", to, json, "{".into(), 400, "the body is not JSON"),
        ("no attributes", to, structured, r#"{"specversion":"1.0","id":"1"}"#.into(), 400, "`source` is missing"),
        ("one of a batch", to, batch, format!("[{},{{}}]", event("1")), 400, "is missing"),
        ("too large", to, json, large, 413, "put what is large elsewhere"),
        ("another format", to, "application/cloudevents+avro", String::new(), 415, "JSON is understood"),
        ("no such topic", "/v1/topics/nope/events", json, "1".into(), 404, "there is `greetings`, `visitors`"),
        ("a topic of ours", "/v1/topics/millrace.x/events", json, "1".into(), 403, "only the runtime publishes"),
        ("no such function", "/v1/functions/hello.nope/skip", json, "{}".into(), 404, "choose one of `hello.hello`"),
        ("an unknown parameter", &format!("{to}?ky=1"), json, "1".into(), 400, "`Millrace-Key`"),
        ("no such path", "/v1/nope", json, "{}".into(), 404, "the API is under /v1"),
    ];
    for (what, path, content_type, body, status, expected) in cases {
        let answer = api.send(Method::POST, &format!("{}{path}", dev.url), content_type, body).await;
        let (found, problem) = answer.expect("the server answers");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert_eq!(found.as_u16(), status, "{what}: {problem}");
        assert!(detail.contains(expected), "{what}: `{expected}` is missing: {detail}");
    }
    assert_eq!(api.records(&dev.url, "visitors").await.concat().len(), 0, "nothing was published");
}
