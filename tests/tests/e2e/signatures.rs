//! Signed components, on the real binary: what is taken, and what an instance runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_tests::process::{Api, Dev, Kafka, program};
use serde_json::Value;

use super::revisions::{everywhere, handled, on_kafka, order, two_versions};

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(60);
const FUNCTION: &str = "shop.pay";
/// Two keys, as openssl writes them: those of the first two tests of RFC 8032, section 7.1.
const KEYS: [[&str; 2]; 2] = [
    [
        "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    ],
    [
        "MC4CAQAwBQYDK2VwBCIEIEzNCJso/5banbbDRuwRTg9bijGfNaumJNqM9u1PuKb7",
        "MCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=",
    ],
];

/// Files with a private key and its public one.
struct Pair {
    private: PathBuf,
    public: PathBuf,
}

impl Pair {
    fn write(directory: &Path, name: &str, [private, public]: [&str; 2]) -> Self {
        let pair = Self {
            private: directory.join(format!("{name}.pem")),
            public: directory.join(format!("{name}-public.pem")),
        };
        for (file, kind, text) in [(&pair.private, "PRIVATE", private), (&pair.public, "PUBLIC", public)] {
            let pem = format!("-----BEGIN {kind} KEY-----\n{text}\n-----END {kind} KEY-----\n");
            std::fs::write(file, pem).expect("a file");
        }
        pair
    }
}

fn serve(directory: &Path, trusted: &[&Pair]) -> Dev {
    let mut command = Command::new(program());
    command.args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"]);
    command.arg(directory.join("data")).current_dir(directory);
    let files: Vec<String> = trusted.iter().map(|pair| pair.public.to_string_lossy().into_owned()).collect();
    command.arg("--set").arg(format!("signatures.public-keys={}", files.join(",")));
    Dev::started(&mut command)
}

fn millrace(url: &str, arguments: &[&str]) -> (Output, String) {
    let ran =
        Command::new(program()).args(["--server", url]).args(arguments).output().expect("the binary can be started");
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    (ran, said)
}

fn done(url: &str, arguments: &[&str]) -> String {
    let (ran, said) = millrace(url, arguments);
    assert!(ran.status.success(), "{arguments:?}: {said}");
    said
}

fn refused(url: &str, arguments: &[&str]) -> String {
    let (ran, said) = millrace(url, arguments);
    assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_is_not_taken_and_does_not_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let [one, other] = two_versions(directory.path());
    let [own, foreign] =
        [("own", KEYS[0]), ("foreign", KEYS[1])].map(|(name, key)| Pair::write(directory.path(), name, key));
    // Nobody asks for signatures yet.
    let server = serve(directory.path(), &[]);
    done(&server.url, &["deploy", &one, "--yes"]);
    assert!(done(&server.url, &["functions", "show", FUNCTION]).contains("not signed"));
    assert!(server.stop());
    // What was there before is looked at as well.
    let server = serve(directory.path(), &[&own]);
    let (url, api) = (&*server.url, Api::default());
    let status = api.get(&format!("{url}/v1/status")).await;
    assert_eq!(status["refused"][0]["name"], FUNCTION, "{status}");
    let reason = status["refused"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("is not signed, and only what is signed may run here"), "{reason}");
    let said = refused(url, &["deploy", &other, "--yes"]);
    assert!(said.contains("its component is not signed") && said.contains("--sign-with KEY.pem"), "{said}");
    let said = refused(url, &["deploy", &other, "--yes", "--sign-with", text(&foreign.private)]);
    assert!(said.contains("is of none of the keys in `signatures.public-keys`"), "{said}");
    let said = refused(url, &["deploy", &other, "--dry-run", "--sign-with", text(&foreign.private)]);
    assert!(said.contains("is of none of the keys"), "{said}");
    let said = done(url, &["deploy", &other, "--yes", "--sign-with", text(&own.private)]);
    assert!(said.contains(&format!("  signed: with {}", own.private.display())), "{said}");
    assert!(done(url, &["functions", "show", FUNCTION]).contains(", signed"));
    let said = refused(url, &["functions", "rollback", FUNCTION, "--to", "1", "--yes"]);
    assert!(said.contains("is not signed"), "{said}");
    let said = done(url, &["functions", "history", FUNCTION]);
    let words = |line: &str, word: &str| line.split_whitespace().any(|one| one == word);
    assert!(said.lines().any(|line| words(line, "deploy") && words(line, "no")), "{said}");
    assert!(said.lines().any(|line| words(line, "deploy") && words(line, "yes")), "{said}");
    assert!(server.stop());
    // It runs wherever one of several keys is the right one, and nowhere else.
    let server = serve(directory.path(), &[&foreign, &own]);
    let status = api.get(&format!("{}/v1/status", server.url)).await;
    assert_eq!(status["functions"][0]["name"], FUNCTION, "{status}");
    assert!(server.stop());
    let server = serve(directory.path(), &[&foreign]);
    let status = api.get(&format!("{}/v1/status", server.url)).await;
    let reason = status["refused"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("is of none of the keys"), "{reason}");
}

/// What the guide says how keys are made and a component is signed without the command line.
#[test]
fn a_component_that_openssl_signed_is_taken() {
    let guide = millrace_tests::process::root().join("deploy/guide/deploying.md");
    let guide = std::fs::read_to_string(guide).expect("it is there");
    let begins = guide.find("openssl genpkey -algorithm ed25519").expect("the guide says how");
    let commands = guide[begins..].split("\n```").next().expect("they end");
    let directory = tempfile::tempdir().expect("a directory");
    let [one, _] = two_versions(directory.path());
    let commands = commands.replace("shop/pay.wasm", &format!("{one}/guest.wasm"));
    let made = Command::new("sh").args(["-ec", &commands]).current_dir(directory.path()).output();
    let version = Command::new("openssl").arg("version").output();
    let version = version.map(|told| String::from_utf8_lossy(&told.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with("OpenSSL 3") {
        return millrace_tests::not_tested("a signature of openssl", &format!("there is no OpenSSL 3: {version}"));
    }
    let made = made.expect("it can be started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pair =
        Pair { private: directory.path().join("release.pem"), public: directory.path().join("release-public.pem") };
    let server = serve(directory.path(), &[&pair]);
    let said = done(&server.url, &["deploy", &one, "--yes"]);
    assert!(said.contains("signed: as in") && said.contains("guest.wasm.sig"), "{said}");
    assert!(done(&server.url, &["functions", "show", FUNCTION]).contains(", signed"));
}

/// Two instances, of which one asks for signatures: it keeps what it runs, and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_an_instance_keeps_what_it_runs_where_another_takes_what_is_not_signed() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let [one, other] = two_versions(directory.path());
    let own = Pair::write(directory.path(), "own", KEYS[0]);
    let lenient = on_kafka(directory.path(), "lenient", &kafka.bootstrap);
    let place = directory.path().join("strict");
    std::fs::create_dir_all(&place).expect("a directory");
    let keys = format!("signatures.public-keys = [{:?}]\n", text(&own.public));
    std::fs::write(place.join("millrace-config.toml"), keys).expect("a file");
    let strict = on_kafka(directory.path(), "strict", &kafka.bootstrap);
    let signing = ["--sign-with", text(&own.private)];
    done(&lenient.url, &[&["deploy", &one, "--yes"], &signing[..]].concat());
    let api = Api::default();
    let runs = async |url: &str, revision: u64| {
        let began = Instant::now();
        loop {
            let status: Value = api.get(&format!("{url}/v1/status")).await;
            if status["functions"][0]["revision"] == revision {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "revision {revision} never runs: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    runs(&strict.url, 1).await;
    let said = refused(&strict.url, &["deploy", &other, "--yes"]);
    assert!(said.contains("its component is not signed"), "{said}");
    // The command ends with what the strict one says, or well, according to who is asked first.
    let (_, said) = millrace(&lenient.url, &["deploy", &other, "--yes"]);
    runs(&lenient.url, 3).await;
    let shown = done(&lenient.url, &["functions", "show", FUNCTION]);
    assert!(shown.contains("revision 3: its component is not signed"), "{said}\n{shown}");
    let status: Value = api.get(&format!("{}/v1/status", strict.url)).await;
    assert_eq!(status["functions"][0]["revision"], 1, "{status:#}");
    // A canary that is not signed either is told beside it.
    let canary = ["deploy", &one, "--yes", "--canary", "50%"];
    millrace(&lenient.url, &canary);
    let told = cannot_run(&lenient.url, [3, 5]).await;
    assert!(told["canary"].is_null() && told["revision"] == 1, "{told:#}");
    // Signed after all, it runs everywhere.
    done(&lenient.url, &[&["deploy", &other, "--yes"], &signing[..]].concat());
    runs(&strict.url, 7).await;
    // A canary that cannot run leaves all keys to what is active there.
    millrace(&lenient.url, &canary);
    let told = cannot_run(&lenient.url, [9]).await;
    assert!(told["canary"].is_null() && told["revision"] == 7, "{told:#}");
    let (began, mut published) = (Instant::now(), 0);
    loop {
        let orders: Vec<String> = (published..published + 100).map(|n| order(&format!("o-{n}"), n)).collect();
        api.publish(&strict.url, "orders", &orders).await.expect("they are taken");
        published += orders.len();
        api.settled(&strict.url).await;
        let by_canary = handled(&strict.url).await.values().filter(|word| *word == "emitted").count();
        assert!(by_canary < published / 4 * 3, "{by_canary} of {published} events were the canary's of one instance");
        // It has some of the partitions, sooner or later.
        if by_canary > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the canary handles none of {published} events");
    }
}

/// Waits until the instance that asks for signatures says that these revisions cannot run there and the other runs the last of them, and answers
/// with what the first one tells.
async fn cannot_run<const N: usize>(url: &str, revisions: [u64; N]) -> Value {
    let told = |one: &Value| one["cannot_run"].as_array().cloned().unwrap_or_default();
    let cannot = |one: &Value| told(one).iter().filter_map(|one| one["revision"].as_u64()).eq(revisions);
    everywhere(url, 2, |one| cannot(one) || Some(&one["canary"]["revision"]) == revisions.map(Value::from).last())
        .await;
    let there = super::revisions::revisions(url).await;
    let strict = there["instances"].as_array().expect("instances").iter().find(|one| one["instance"] == "strict");
    strict.expect("it is there").clone()
}
