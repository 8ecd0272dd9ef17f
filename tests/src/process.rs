//! The real binary, run as anybody would run it.

use std::io::{BufRead as _, BufReader, Lines, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take that has to come in the end.
const PATIENCE: Duration = Duration::from_secs(240);

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

/// Writes an application into a directory. Its functions have the component `guest.wasm`: the handler of
/// `tests/fixtures/guest.wat`.
///
/// # Panics
/// If it cannot be written.
pub fn application(directory: &Path, manifest: &str) {
    write_application(directory, manifest, include_str!("../fixtures/guest.wat"));
}

/// The same with another version of the handler, whose events have the type `omitted` instead of `emitted`.
///
/// # Panics
/// If it cannot be written.
pub fn revised_application(directory: &Path, manifest: &str) {
    let guest = include_str!("../fixtures/guest.wat").replace("emitted\")", "omitted\")");
    write_application(directory, manifest, &guest);
}

fn write_application(directory: &Path, manifest: &str, guest: &str) {
    let guest = wat::parse_str(guest).expect("the fixture is sound");
    std::fs::write(directory.join("guest.wasm"), guest).expect("a file");
    std::fs::write(directory.join("millrace.toml"), manifest).expect("a file");
}

/// A Kafka of a test's own; stopped when dropped.
#[derive(Debug)]
pub struct Kafka {
    directory: tempfile::TempDir,
    /// Where it listens.
    pub bootstrap: String,
}

impl Kafka {
    /// Starts one, or says loudly that there is none to be had.
    ///
    /// # Panics
    /// If there is none although there must be one.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// The same, with more lines for its `server.properties`.
    ///
    /// # Panics
    /// If there is none although there must be one.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "whoever reads the output of the tests must see that this one did not run")]
    pub fn start_with(settings: &str) -> Option<Self> {
        // Before a test makes a client of its own: librdkafka's OpenSSL tidies up at the exit, while threads may still use it.
        #[cfg(feature = "kafka")]
        openssl_sys::init();
        let directory = tempfile::tempdir().expect("a directory");
        let started = script("start", &directory).env("KAFKA_SETTINGS", settings).output();
        let started = started.expect("the script can be run");
        if !started.status.success() {
            assert!(std::env::var_os("KAFKA_REQUIRED").is_none(), "there is no Kafka to test on: {started:?}");
            eprintln!(
                "##### SKIPPED: there is no Kafka to test on: {} #####",
                String::from_utf8_lossy(&started.stderr)
            );
            return None;
        }
        let bootstrap = String::from_utf8_lossy(&started.stdout).trim().to_owned();
        Some(Self { directory, bootstrap })
    }

    /// Kills it with SIGKILL; what it has written stays.
    ///
    /// # Panics
    /// If it does not end.
    pub fn kill(&self) {
        let killed = script("kill", &self.directory).output().expect("the script can be run");
        assert!(killed.status.success(), "the broker cannot be killed: {killed:?}");
    }

    /// Starts it again where it was killed, at the same address.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&self) {
        let started = script("start", &self.directory).output().expect("the script can be run");
        assert!(started.status.success(), "the broker does not start again: {started:?}");
    }

    /// How many bytes of a topic are on its disk, of committed records and of others; 0 if there is no such topic.
    #[must_use]
    pub fn bytes_of(&self, topic: &str) -> u64 {
        let read = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        let partitions = read(self.directory.path().join("kafka/data")).filter(|partition| {
            let name = partition.file_name();
            name.to_str().and_then(|name| name.rsplit_once('-')).is_some_and(|(of, _)| of == topic)
        });
        let files = partitions.flat_map(|partition| read(partition.path()));
        let segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
        segments.filter_map(|segment| segment.metadata().ok()).map(|segment| segment.len()).sum()
    }

    /// Where clients are sent that come in at the second address, for a test to listen, and that address.
    ///
    /// # Panics
    /// If the script did not say.
    #[must_use]
    pub fn between(&self) -> (SocketAddr, SocketAddr) {
        let said = std::fs::read_to_string(self.directory.path().join("kafka/between")).expect("the script says");
        let (front, behind) = said.trim().split_once(' ').expect("two addresses");
        (front.parse().expect("an address"), behind.parse().expect("an address"))
    }

    /// Where the listener is that the lines for `server.properties` name as `@SECURED@`.
    ///
    /// # Panics
    /// If the script did not say.
    #[must_use]
    pub fn secured(&self) -> String {
        let said = std::fs::read_to_string(self.directory.path().join("kafka/secured"));
        said.expect("the script says").trim().to_owned()
    }

    /// All committed records of a topic, as Kafka's own console consumer tells of them.
    ///
    /// # Panics
    /// If they cannot be read.
    #[must_use]
    pub fn read(&self, topic: &str) -> String {
        let read = script("read", &self.directory).arg(topic).output().expect("the script can be run");
        assert!(read.status.success(), "`{topic}` cannot be read: {}", String::from_utf8_lossy(&read.stderr));
        String::from_utf8_lossy(&read.stdout).into_owned()
    }

    /// Runs one of Kafka's own tools on it.
    ///
    /// # Panics
    /// If it fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let ran = script("tool", &self.directory).arg(class).args(arguments).output().expect("the script can be run");
        let said = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{class} {arguments:?}: {said:?}");
    }
}

impl Drop for Kafka {
    /// What a test that failed has left is kept, so that it can be looked at.
    #[expect(clippy::print_stderr, reason = "whoever reads the output of the test wants to know where")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(script("kill", &self.directory).output());
            self.directory.disable_cleanup(true);
            eprintln!("All that Kafka holds is in {}.", self.directory.path().display());
        } else {
            drop(script("stop", &self.directory).output());
        }
    }
}

fn script(what: &str, directory: &tempfile::TempDir) -> Command {
    let mut command = Command::new(root().join("tests/kafka/kafka.sh"));
    command.arg(what).arg(directory.path().join("kafka"));
    command
}

/// A running `millrace dev` or `millrace serve`; killed when dropped.
#[derive(Debug)]
pub struct Dev {
    child: Child,
    /// Where it listens.
    pub url: String,
    /// What it says after it is ready.
    output: mpsc::Receiver<String>,
}

impl Dev {
    /// Starts an application of the guest examples, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn start(application: &str, data: &Path) -> Self {
        Self::start_with(application, data, |command| command.args(["--log-level", "error"]))
    }

    /// The same with another place for what it says on standard error.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_telling(application: &str, data: &Path, errors: Stdio) -> Self {
        Self::start_with(application, data, |command| command.args(["--log-level", "error"]).stderr(errors))
    }

    /// The same, with more arguments or another environment.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn start_with(application: &str, data: &Path, configure: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = dev(application, data);
        configure(command.arg("--no-watch"));
        Self::started(&mut command)
    }

    /// Starts an instance of an application on Kafka, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn serve(application: &Path, data: &Path, bootstrap: &str) -> Self {
        Self::started(Self::serving(application, data, bootstrap).args(["--log-level", "error"]))
    }

    /// The same, with its log in a file.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn serve_telling(application: &Path, data: &Path, bootstrap: &str, errors: Stdio) -> Self {
        Self::started(Self::serving(application, data, bootstrap).stderr(errors))
    }

    /// The command that starts an instance.
    #[must_use]
    pub fn serving(application: &Path, data: &Path, bootstrap: &str) -> Command {
        let mut command = on("serve", application, data);
        command.args(["--set", "kafka.properties.session.timeout.ms=6000"]);
        command.arg("--set").arg(format!("kafka.bootstrap={bootstrap}"));
        command
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn signal(&self, signal: Signal) {
        let sent = kill_process(Pid::from_child(&self.child), signal);
        assert_eq!(sent, Ok(()), "the process cannot be sent {signal:?}");
    }

    /// The id of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many threads it has now.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it is running").count()
    }

    /// The time that all its threads together have had a processor, to a hundredth of a second.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it is running");
        // After the name, which is in parentheses: user and system time are the 12th and the 13th, in ticks (proc(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
        Duration::from_millis(ticks * 10)
    }

    /// The most memory that it has had so far, in MiB.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn peak_mib(&self) -> f64 {
        self.memory_mib("VmHWM:")
    }

    /// The memory that it has now, in MiB.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS:")
    }

    fn memory_mib(&self, figure: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it is running");
        let found = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_suffix(" kB"));
        found.and_then(|kibibytes| kibibytes.trim().parse::<f64>().ok()).expect("Linux says so") / 1024.0
    }

    /// Starts what a command of [`Dev::serving`] says, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn started(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary can be started");
        let output = child.stdout.take().expect("it has an output");
        Self::ready(child, output)
    }

    /// Starts an application that may be changed while it runs. What it says on standard error is read too.
    ///
    /// # Panics
    /// If it does not start; what it says is shown.
    #[must_use]
    pub fn start_following(
        application: &str,
        data: &Path,
        configure: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let mut command = dev(application, data);
        let (output, input) = std::io::pipe().expect("a pipe");
        configure(&mut command).stdout(input.try_clone().expect("a pipe")).stderr(input);
        let child = command.spawn().expect("the binary can be started");
        // What is left of the pipe's other end would keep it open.
        drop(command);
        Self::ready(child, output)
    }

    fn ready(child: Child, output: impl Read + Send + 'static) -> Self {
        let mut said = String::new();
        let mut lines = BufReader::new(output).lines();
        while let Some(Ok(line)) = lines.next() {
            said.push_str(&line);
            said.push('\n');
            if let Some((_, address)) = line.split_once(" on http") {
                return Self { child, url: format!("http{address}"), output: read_on(lines) };
            }
        }
        panic!("it did not start (are the guests built? `make guests`):\n{said}");
    }

    /// What it says after it is ready until a line holds this text, with that line.
    ///
    /// # Panics
    /// If that does not come.
    pub fn says(&self, text: &str) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let Ok(line) = self.output.recv_timeout(PATIENCE) else { panic!("it never says `{text}`: {said:#?}") };
            let is_last = line.contains(text);
            said.push(line);
            if is_last {
                return said;
            }
        }
    }

    /// Asks it to stop with SIGTERM, and waits until it has; says whether it ended well.
    ///
    /// # Panics
    /// If it cannot be asked.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.signal(Signal::TERM);
        self.child.wait().expect("it was started").success()
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

/// `millrace dev` on an application of the guest examples, or in a directory of its own.
fn dev(application: &str, data: &Path) -> Command {
    on("dev", &root().join("guest-examples").join(application), data)
}

fn on(subcommand: &str, application: &Path, data: &Path) -> Command {
    let mut command = Command::new(program());
    command.arg(subcommand).arg(application);
    command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]);
    // A collector of whoever runs the tests is not to be disturbed.
    for variable in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        command.env_remove(variable);
    }
    command
}

/// Reads what a process says, so that it never waits for a reader; as much as a test may want to see is kept.
fn read_on(lines: Lines<BufReader<impl Read + Send + 'static>>) -> mpsc::Receiver<String> {
    const KEPT_LINES: usize = 10_000;
    let (sender, receiver) = mpsc::sync_channel(KEPT_LINES);
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.try_send(line))));
    receiver
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
        body: impl Into<Bytes>,
    ) -> Option<(StatusCode, Value)> {
        let request = Request::builder().method(method).uri(url).header("content-type", content_type);
        let request = request.body(Full::new(body.into())).expect("the request is well-formed");
        let response = self.http.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Sends a request without a body and with these headers, and tells its status; none if there is no answer.
    pub async fn send_with(&self, method: Method, url: &str, headers: &[(&str, &str)]) -> Option<StatusCode> {
        Some(self.ask(method, url, headers, String::new()).await?.0)
    }

    /// Sends a request with these headers; none if there is no answer, which is a text here.
    pub async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Option<(StatusCode, String)> {
        let request = Request::builder().method(method).uri(url);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Full::from(body)).expect("the request is well-formed");
        let response = self.http.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
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

    /// Reads a text that must be there.
    ///
    /// # Panics
    /// If it is not.
    pub async fn text(&self, url: &str) -> String {
        let request = Request::get(url).body(Full::default()).expect("the request is well-formed");
        let answer = self.http.request(request).await.expect("the server answers");
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
        let body = answer.into_body().collect().await.expect("the server answers").to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    /// Reads a text until it is as it has to be in the end.
    ///
    /// # Panics
    /// If that does not come.
    pub async fn text_until(&self, url: &str, is_right: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let text = self.text(url).await;
            if is_right(&text) {
                return text;
            }
            assert!(began.elapsed() < PATIENCE, "it never comes right: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
            let answer = self.send(Method::GET, &format!("{url}/v1/status"), "application/json", String::new()).await;
            let (code, status) = answer.expect("the server answers");
            // The log may just be coming back.
            if code.is_server_error() {
                assert!(began.elapsed() < PATIENCE, "it never settles: {status:#}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            assert!(code.is_success(), "{code} {status}");
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
            let mut from = 0;
            loop {
                let url = format!("{url}/v1/topics/{topic}/events?partition={partition}&from={from}&limit=1000");
                let mut page = self.get(&url).await;
                // Not every offset has a record.
                from = page["next"][0]["offset"].as_u64().expect("a number");
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
