//! Deployments that are cut off: whoever is killed, and however far they are, either the old revision runs afterwards or the new one,
//! whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use millrace_core::digest::Digest;
use millrace_tests::process::{Api, Dev, Kafka, application, assert_accounts_balance, program, revised_application};
use serde_json::{Value, json};

use super::revisions::{FUNCTION, MANIFEST, done, embedded, handled, on_kafka, order};

/// Makes components so large that Kafka takes one in ten records and two transactions.
const PADDING_BYTES: usize = 5 * 1024 * 1024;
/// More than a topic grows by anything but records of a component.
const PART_BYTES: u64 = 256 * 1024;
/// The topic of components on Kafka.
const COMPONENTS: &str = "millrace.components";
/// Events that are published at once.
const BATCH: usize = 10;
const INSTANCES_ON_KAFKA: [&str; 2] = ["a", "b"];
/// How often it is tried again to kill somebody at a step that had passed before it was seen.
const TRIES_AGAIN: usize = 8;
/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(120);

/// How far a deployment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The client is at work, and nothing is in the log yet.
    Begun,
    /// Some of the component is on Kafka's disk.
    Partly,
    /// The component is there.
    Uploaded,
    /// The revision is on record.
    Staged,
    Active,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Client,
    /// The one that takes the upload.
    Instance,
    Broker,
}

/// What is deployed: each has a component that was never there before.
#[derive(Clone, Debug)]
struct Version {
    directory: String,
    digest: String,
    bytes: u64,
    /// The type of the events that its handler emits.
    word: &'static str,
}

impl Version {
    fn write(root: &Path, number: usize, word: &'static str) -> Self {
        let directory = root.join(format!("version-{number}"));
        std::fs::create_dir_all(&directory).expect("a directory");
        match word {
            "omitted" => revised_application(&directory, MANIFEST),
            _ => application(&directory, MANIFEST),
        }
        let file = directory.join("guest.wasm");
        let mut component = std::fs::read(&file).expect("a file");
        component.extend(custom_section("padding", &random_bytes(number)));
        std::fs::write(&file, &component).expect("a file");
        let (digest, bytes) = (Digest::of(&component).to_string(), component.len() as u64);
        Self { directory: directory.to_string_lossy().into_owned(), digest, bytes, word }
    }

    /// The word of the one that comes after it.
    fn other_word(&self) -> &'static str {
        if self.word == "emitted" { "omitted" } else { "emitted" }
    }

    /// Has a client deploy it.
    fn deploy(&self, url: &str) -> Child {
        Command::new(program())
            .args(["--server", url, "deploy", &self.directory, "--yes", "--wait", "20"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary can be started")
    }
}

/// Bytes that no other number gives, and that cannot be compressed.
fn random_bytes(number: usize) -> Vec<u8> {
    let mut random = 88_172_645_463_325_252u64 ^ ((number as u64) << 1);
    let next = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()
    });
    next.flatten().take(PADDING_BYTES).collect()
}

/// A section that means nothing, as it is appended to a component.
pub(super) fn custom_section(name: &str, payload: &[u8]) -> Vec<u8> {
    let content = [leb128(name.len()), name.as_bytes().to_vec(), payload.to_vec()].concat();
    [vec![0], leb128(content.len()), content].concat()
}

fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// What the API tells, if it does.
async fn asked(url: &str, path: &str) -> Option<Value> {
    let answer = Api::default().send(Method::GET, &format!("{url}/v1/{path}"), "application/json", String::new()).await;
    answer.filter(|(status, _)| status.is_success()).map(|(_, body)| body)
}

/// What an instance tells of the revisions, once nothing is staged any more and all run what is active.
async fn at_rest(url: &str, instances: usize) -> Option<Value> {
    let there = asked(url, &format!("functions/{FUNCTION}/revisions")).await?;
    // What an instance said before it was killed is not what it does now.
    let here = asked(url, &format!("functions/{FUNCTION}")).await?;
    let told = there["instances"].as_array().expect("instances").iter().filter(|one| one["live"] == true);
    let is_done = |one: &&Value| one["deployment"] == there["latest"] && one["revision"] == there["active"];
    let all_are_done = told.filter(is_done).count() == instances;
    (there["staged"].is_null() && all_are_done && here["revision"] == there["active"]).then_some(there)
}

/// Waits until all instances are at rest and say that the same was deployed, and answers with it.
async fn calm(urls: &[String]) -> Value {
    let began = Instant::now();
    loop {
        let mut told = Vec::new();
        for url in urls {
            told.extend(at_rest(url, urls.len()).await);
        }
        let agree = told.windows(2).all(|pair| pair[0]["deployments"] == pair[1]["deployments"]);
        if told.len() == urls.len() && agree {
            return told.swap_remove(0);
        }
        if began.elapsed() > PATIENCE {
            let there = asked(&urls[0], &format!("functions/{FUNCTION}/revisions")).await;
            panic!("they are never at rest: {there:#?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes events; none if it is not known what became of them.
async fn publish(url: String, batch: Vec<String>) -> Option<StatusCode> {
    Api::default().publish(&url, "orders", &batch).await
}

/// Waits until a client has ended, and tells how.
async fn ended(client: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = client.try_wait().expect("it was started") {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "the client never ends");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A deployment that is watched.
struct Watch<'a> {
    url: &'a str,
    new: &'a Version,
    /// How much Kafka had stored of components before.
    filled: u64,
    began: Instant,
}

/// One deployment after the other, each cut off.
struct Scene {
    instances: Vec<Dev>,
    kafka: Option<Kafka>,
    directory: tempfile::TempDir,
    /// Versions that were made.
    made: usize,
    /// What is active, with the number of its revision and of the latest deployment.
    active: Version,
    revision: u64,
    latest: u64,
    /// The last one that did not come about.
    undone: Option<Version>,
    published: usize,
    /// The shortest time in which a component was seen to be there.
    upload: Duration,
    /// How often who was killed where, and whether the new revision runs since.
    seen: BTreeMap<(Step, Victim, bool), usize>,
}

impl Scene {
    /// The first deployment is not cut off.
    async fn begin(kafka: Option<Kafka>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let active = Version::write(directory.path(), 0, "emitted");
        let mut scene = Self {
            instances: Vec::new(),
            kafka,
            directory,
            made: 1,
            active,
            revision: 1,
            latest: 2,
            undone: None,
            published: 0,
            upload: Duration::MAX,
            seen: BTreeMap::new(),
        };
        let many = if scene.kafka.is_some() { INSTANCES_ON_KAFKA.len() } else { 1 };
        scene.instances = (0..many).map(|at| scene.start(at)).collect();
        let began = Instant::now();
        done(&scene.instances[0].url, &["deploy", &scene.active.directory, "--yes"]);
        scene.upload = began.elapsed() / 2;
        let (there, words) = scene.look().await;
        scene.assert_runs(&there, &words).await;
        scene
    }

    fn start(&self, at: usize) -> Dev {
        match &self.kafka {
            None => embedded(self.directory.path()),
            Some(kafka) => on_kafka(self.directory.path(), INSTANCES_ON_KAFKA[at], &kafka.bootstrap),
        }
    }

    fn urls(&self) -> Vec<String> {
        self.instances.iter().map(|instance| instance.url.clone()).collect()
    }

    fn next(&mut self) -> Version {
        self.made += 1;
        Version::write(self.directory.path(), self.made, self.active.other_word())
    }

    /// Cuts off deployments until each of these victims was killed at each of these steps.
    async fn cut_off_at(&mut self, steps: &[Step], victims: &[Victim]) {
        let of_step = |step: &Step| victims.iter().map(|victim| (*step, *victim)).collect::<Vec<_>>();
        let wanted: Vec<(Step, Victim)> = steps.iter().flat_map(of_step).collect();
        for (step, victim) in &wanted {
            self.cut_off(*step, *victim).await;
        }
        for _ in 0..TRIES_AGAIN {
            for (step, victim) in self.missed(&wanted) {
                self.cut_off(step, victim).await;
            }
        }
        let missed = self.missed(&wanted);
        assert!(missed.is_empty(), "nobody was killed at {missed:?}: {:?}", self.seen);
    }

    /// The steps at which somebody was never killed, with whom. An instance that is alone activates what it has made ready at once, and it is
    /// staged for some milliseconds, which a look can miss: there one victim is enough.
    fn missed(&self, wanted: &[(Step, Victim)]) -> Vec<(Step, Victim)> {
        let is_met = |(step, victim): (Step, Victim)| {
            let is_short = self.kafka.is_none() && step == Step::Staged;
            self.seen.keys().any(|(stood, who, _)| *stood == step && (is_short || *who == victim))
        };
        wanted.iter().copied().filter(|pair| !is_met(*pair)).collect()
    }

    /// Deploys something new, and kills somebody once it is as far.
    async fn cut_off(&mut self, wanted: Step, victim: Victim) {
        let new = self.next();
        // Whoever is killed, each instance has its turn.
        let at = self.made / 2 % self.instances.len();
        let url = self.instances[at].url.clone();
        let filled = self.filled();
        let (began, mut client) = (Instant::now(), new.deploy(&url));
        // These are handled by the old revision or by the new one.
        let meanwhile = tokio::spawn(publish(url.clone(), self.batch()));
        let watch = Watch { url: &url, new: &new, filled, began };
        let stood = self.watch(&watch, wanted, &mut client).await;
        match victim {
            Victim::Client => client.kill().expect("it was started"),
            Victim::Instance => {
                self.instances.remove(at).kill();
                self.instances.insert(at, self.start(at));
            }
            Victim::Broker => tokio::task::block_in_place(|| {
                let kafka = self.kafka.as_ref().expect("there is one");
                kafka.kill();
                kafka.start_again();
            }),
        }
        match meanwhile.await.expect("it ends") {
            Some(StatusCode::ACCEPTED) => self.published += BATCH,
            // They may be there or not, and are once they were published again.
            _ => drop(self.publish(&self.urls()[at]).await),
        }
        let said_so = ended(&mut client).await.success();
        let is_new = self.find(new, stood).await;
        assert!(is_new || !said_so, "the client says that it runs, and it does not");
        *self.seen.entry((stood, victim, is_new)).or_default() += 1;
    }

    /// How much Kafka has stored of components.
    fn filled(&self) -> u64 {
        self.kafka.as_ref().map_or(0, |kafka| kafka.bytes_of(COMPONENTS))
    }

    /// Waits until a deployment is as far, and tells how far it is; steps can pass too fast to be seen.
    async fn watch(&mut self, watch: &Watch<'_>, wanted: Step, client: &mut Child) -> Step {
        if wanted == Step::Begun {
            // From early in the upload to its end.
            let part = [0.9, 0.5, 0.7, 0.3, 0.8][self.made % 5];
            tokio::time::sleep(self.upload.mul_f64(part).saturating_sub(watch.began.elapsed())).await;
            return self.step(watch, Step::Begun).await;
        }
        let mut step = Step::Begun;
        loop {
            step = self.step(watch, step).await;
            if step >= Step::Uploaded {
                self.upload = self.upload.min(watch.began.elapsed());
            }
            if step >= wanted || client.try_wait().expect("it was started").is_some() {
                return step;
            }
            assert!(watch.began.elapsed() < PATIENCE, "it never gets beyond {step:?}");
            // What lies between the upload and the end is short.
            if step < Step::Uploaded || wanted == Step::Active {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// How far a deployment is that was as far before.
    async fn step(&self, watch: &Watch<'_>, before: Step) -> Step {
        if before < Step::Uploaded {
            let grown = self.filled().saturating_sub(watch.filled);
            // As long as some is missing, nobody need be asked.
            let is_there = (self.kafka.is_none() || grown >= watch.new.bytes)
                && asked(watch.url, &format!("components/{}", watch.new.digest)).await.is_some();
            if !is_there {
                return if grown >= PART_BYTES { Step::Partly } else { Step::Begun };
            }
        }
        match asked(watch.url, &format!("functions/{FUNCTION}/revisions")).await {
            Some(there) if there["active"] != self.revision => Step::Active,
            Some(there) if there["latest"] != self.latest => Step::Staged,
            _ => before.max(Step::Uploaded),
        }
    }

    /// Finds out which revision runs, and that it is all of one and nothing of the other. Says whether it is the new one.
    async fn find(&mut self, new: Version, stood: Step) -> bool {
        let (there, words) = self.look().await;
        let revision = there["active"].as_u64().expect("a number");
        let is_new = revision != self.revision;
        // What was on record stays, and goes on to its end.
        assert!(is_new || stood < Step::Staged, "it was {stood:?}, and is gone: {there:#}");
        if is_new {
            assert_eq!((revision, there["latest"].as_u64()), (self.latest + 1, Some(self.latest + 2)), "{there:#}");
            (self.revision, self.latest) = (revision, self.latest + 2);
            self.active = new;
        } else {
            assert_eq!(there["latest"].as_u64(), Some(self.latest), "{there:#}");
            if stood >= Step::Uploaded {
                self.assert_has(&new).await;
            }
            self.assert_none_or_whole(&new, &there).await;
            self.undone = Some(new);
        }
        self.assert_runs(&there, &words).await;
        is_new
    }

    /// What is on record is what is there, and what handles events.
    async fn assert_runs(&self, there: &Value, words: &BTreeSet<String>) {
        let deployments = there["deployments"].as_array().expect("deployments");
        let deployment = deployments.iter().find(|one| one["number"] == there["active"]).expect("it is on record");
        assert_eq!(
            deployment["component"], *self.active.digest,
            "revision {} is made of something else",
            self.revision
        );
        self.assert_has(&self.active).await;
        let expected = BTreeSet::from([self.active.word.to_owned()]);
        assert_eq!(*words, expected, "revision {} runs: {:?}", self.revision, self.seen);
    }

    /// All instances say that the component of a version is there.
    async fn assert_has(&self, version: &Version) {
        for url in self.urls() {
            Api::default().get(&format!("{url}/v1/components/{}", version.digest)).await;
        }
    }

    /// If a component is said to be there, it could be deployed on each instance, which reads all of it for that.
    async fn assert_none_or_whole(&self, version: &Version, there: &Value) {
        let manifest = &there["deployments"][0]["manifest"];
        let request = json!({ "component": version.digest, "manifest": manifest, "dry_run": true }).to_string();
        for url in self.urls() {
            let is_there = asked(&url, &format!("components/{}", version.digest)).await.is_some();
            let path = format!("{url}/v1/functions/{FUNCTION}");
            let answer = Api::default().send(Method::PUT, &path, "application/json", request.clone()).await;
            let (status, body) = answer.expect("the server answers");
            let expected = if is_there { StatusCode::OK } else { StatusCode::NOT_FOUND };
            assert_eq!(status, expected, "{body:#}");
        }
    }

    /// Waits until nothing is under way any more, and publishes some events. Each that ever was published is handled once. Answers with
    /// what is deployed, and with the types of what came of these ones.
    async fn look(&mut self) -> (Value, BTreeSet<String>) {
        let urls = self.urls();
        let url = &urls[self.made % urls.len()];
        let mut there = calm(&urls).await;
        loop {
            let batch = self.publish(url).await;
            Api::default().settled(url).await;
            let handled = handled(url).await;
            assert_eq!(handled.len(), self.published, "an event is lost");
            let now = calm(&urls).await;
            if now["latest"] == there["latest"] {
                return (now, batch.iter().map(|id| handled[id].clone()).collect());
            }
            // Something that was under way on an instance came to its end only now, which is the end of it.
            assert!(now["latest"].as_u64() <= Some(self.latest + 2), "{now:#}");
            there = now;
        }
    }

    /// The events that are published next.
    fn batch(&self) -> Vec<String> {
        (self.published..self.published + BATCH).map(|n| order(&format!("o-{n}"), n)).collect()
    }

    /// Publishes some events, until that is certain, and answers with their identifiers.
    async fn publish(&mut self, url: &str) -> Vec<String> {
        let began = Instant::now();
        while publish(url.to_owned(), self.batch()).await != Some(StatusCode::ACCEPTED) {
            assert!(began.elapsed() < PATIENCE, "events are never taken");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let first = self.published;
        self.published += BATCH;
        (first..self.published).map(|n| format!("o-{n}")).collect()
    }

    /// What did not come about last is deployed once more, to its end; done twice it is done once.
    async fn complete(&mut self) {
        let Some(new) = self.undone.take() else { return };
        let url = self.instances[0].url.clone();
        for _ in 0..2 {
            done(&url, &["deploy", &new.directory, "--yes"]);
        }
        assert!(self.find(new, Step::Active).await);
    }

    /// Sometimes the old revision ran afterwards, and sometimes the new one.
    fn assert_ended_both_ways(&self) {
        let ends: BTreeSet<bool> = self.seen.keys().map(|(.., is_new)| *is_new).collect();
        assert_eq!(ends.len(), 2, "{:?}", self.seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_that_is_interrupted_leaves_the_old_revision_or_the_new_one() {
    let mut scene = Scene::begin(None).await;
    let steps = [Step::Active, Step::Staged, Step::Uploaded, Step::Begun];
    for _ in 0..2 {
        scene.cut_off_at(&steps, &[Victim::Client, Victim::Instance]).await;
    }
    scene.assert_ended_both_ways();
    scene.complete().await;
    let url = &scene.instances[0].url;
    let status = Api::default().settled(url).await;
    assert_accounts_balance(&Api::default(), url, &status).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_deployment_that_is_interrupted_leaves_the_old_revision_or_the_new_one() {
    let Some(kafka) = Kafka::start() else { return };
    let mut scene = Scene::begin(Some(kafka)).await;
    let steps = [Step::Active, Step::Staged, Step::Uploaded, Step::Partly, Step::Begun];
    scene.cut_off_at(&steps, &[Victim::Client, Victim::Instance]).await;
    scene.assert_ended_both_ways();
    scene.complete().await;
    // One that has nothing of its own finds all of it in the log.
    let bootstrap = &scene.kafka.as_ref().expect("there is one").bootstrap;
    scene.instances.push(on_kafka(scene.directory.path(), "c", bootstrap));
    let (there, words) = scene.look().await;
    scene.assert_runs(&there, &words).await;
    let status = Api::default().settled(&scene.instances[0].url).await;
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_deployment_without_a_broker_leaves_the_old_revision_or_the_new_one() {
    let Some(kafka) = Kafka::start() else { return };
    let mut scene = Scene::begin(Some(kafka)).await;
    // An upload may wait until the broker is back, so that the new revision can run afterwards each time.
    scene.cut_off_at(&[Step::Staged, Step::Uploaded, Step::Partly], &[Victim::Broker]).await;
    scene.complete().await;
    let status = Api::default().settled(&scene.instances[0].url).await;
    assert_eq!(status["functions"][0]["balanced"], true, "{status:#}");
}
