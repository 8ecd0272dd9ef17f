//! The real binary, run as anybody would run it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// How long anything may take that has to come in the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// The built binary.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its file");
    let built = test.parent().and_then(Path::parent).expect("tests lie two levels below").join("millrace");
    assert!(built.exists(), "{} is not built: run `make test`, or `cargo build --workspace`", built.display());
    built
}

/// A running `millrace dev`; killed when dropped.
#[derive(Debug)]
pub struct Dev {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl Dev {
    /// Starts an application of the guest examples, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn start(application: &str, data: &Path) -> Self {
        Self::start_telling(application, data, Stdio::inherit())
    }

    /// The same with another place for what it says on standard error.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_telling(application: &str, data: &Path, errors: Stdio) -> Self {
        let directory = root().join("guest-examples").join(application);
        #[expect(clippy::zombie_processes, reason = "the process that did not start has ended")]
        let mut child = Command::new(program())
            .arg("dev")
            .arg(directory)
            .arg("--data")
            .arg(data)
            .args(["--listen", "127.0.0.1:0", "--no-watch", "--log-level", "error"])
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("the binary can be started");
        let output = child.stdout.take().expect("it has an output");
        let mut said = String::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
            if let Some((_, address)) = line.split_once(" on http://") {
                return Self { child, url: format!("http://{address}") };
            }
        }
        panic!("`millrace dev {application}` did not start (are the guests built? `make guests`):\n{said}");
    }

    /// Waits until it ends by itself, and answers how.
    ///
    /// # Panics
    /// If it does not.
    pub async fn ended(mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it was started") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it never ends");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it with SIGKILL, in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().expect("it is running");
        self.child.wait().expect("it was started");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A client of the API.
#[derive(Clone, Debug)]
pub struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Api {
    fn default() -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build(HttpConnector::new()) }
    }
}

impl Api {
    /// Sends a request; none if there is no answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        content_type: &str,
        body: String,
    ) -> Option<(StatusCode, Value)> {
        let request = Request::builder().method(method).uri(url).header("content-type", content_type);
        let request = request.body(Full::from(body)).expect("the request is well-formed");
        let response = self.http.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Reads a resource that must be there.
    ///
    /// # Panics
    /// If it is not.
    pub async fn get(&self, url: &str) -> Value {
        let answer = self.send(Method::GET, url, "application/json", String::new()).await;
        let (status, body) = answer.expect("the server answers");
        assert!(status.is_success(), "{url}: {status} {body}");
        body
    }

    /// Publishes CloudEvents in JSON as one batch; none if it is not known what became of it.
    pub async fn publish(&self, url: &str, topic: &str, events: &[String]) -> Option<StatusCode> {
        let body = format!("[{}]", events.join(","));
        let url = format!("{url}/v1/topics/{topic}/events");
        let answer = self.send(Method::POST, &url, "application/cloudevents-batch+json", body).await;
        answer.map(|(status, body)| {
            assert!(
                status == StatusCode::ACCEPTED || status.is_server_error() || status.as_u16() == 429,
                "{status} {body}"
            );
            status
        })
    }

    /// Waits until nothing is left to do, and answers with the status.
    ///
    /// # Panics
    /// If that does not come.
    pub async fn settled(&self, url: &str) -> Value {
        let began = Instant::now();
        let mut before = Value::Null;
        loop {
            let status = self.get(&format!("{url}/v1/status")).await;
            let functions = status["functions"].as_array().expect("functions");
            let open = |f: &Value| f["lag_records"].as_u64().unwrap_or(1) + f["parked"].as_u64().unwrap_or(1);
            // Functions are read one after the other: only what stays the same is at rest.
            let totals: Value = functions.iter().map(|f| f["totals"].clone()).collect();
            if functions.iter().map(open).sum::<u64>() == 0 && before == totals {
                return status;
            }
            before = totals;
            assert!(began.elapsed() < PATIENCE, "it never settles: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All records of a topic, by partition and offset.
    pub async fn records(&self, url: &str, topic: &str) -> Vec<Vec<Value>> {
        let topics = self.get(&format!("{url}/v1/topics")).await;
        let found = topics["topics"].as_array().expect("topics").iter().find(|t| t["name"] == topic);
        let partitions = found.expect("the topic is there")["partitions"].as_array().expect("partitions").len();
        let mut all = Vec::new();
        for partition in 0..partitions {
            let mut records: Vec<Value> = Vec::new();
            loop {
                let from = records.len();
                let url = format!("{url}/v1/topics/{topic}/events?partition={partition}&from={from}&limit=1000");
                let mut page = self.get(&url).await;
                let page = page["records"].as_array_mut().expect("records");
                if page.is_empty() {
                    break;
                }
                records.append(page);
            }
            all.push(records);
        }
        all
    }
}

/// Each record in a source partition is settled once: the accounts are compared with what is there.
///
/// # Panics
/// If they do not balance.
pub async fn assert_accounts_balance(api: &Api, url: &str, status: &Value) {
    for function in status["functions"].as_array().expect("functions") {
        for unit in function["units"].as_array().expect("units") {
            let topic = unit["topic"].as_str().expect("a topic");
            let partition = usize::try_from(unit["partition"].as_u64().expect("a number")).expect("few");
            let there = api.records(url, topic).await[partition].len() as u64;
            let totals = unit["totals"].as_object().expect("totals");
            let settled: u64 = totals.values().filter_map(Value::as_u64).sum();
            assert_eq!(settled, there, "{}: {unit:#}", function["name"]);
            assert_eq!(unit["resume"].as_u64(), Some(there), "{}: {unit:#}", function["name"]);
        }
    }
}
