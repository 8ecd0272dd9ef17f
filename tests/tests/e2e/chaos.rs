//! Instances and the broker are killed, stopped and replaced at random, in the middle of what they do, and then a consumer of
//! Kafka's own, which shares no code with the runtime, must find each effect once and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hyper::Method;
use millrace_tests::process::{Api, Dev, Kafka, root};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How often something happens to an instance, and how often the broker is killed: as in `CHAOS=100,10`.
const CHAOS: &str = "CHAOS";
const SHORT: (usize, usize) = (20, 2);
/// Three times the session time-out of the instances: long enough for everything of a stopped one to be given away.
const ASLEEP: Duration = Duration::from_secs(18);
const INSTANCES: usize = 3;
const INSTANCES_MAX: usize = 4;
const ACCOUNTS: u64 = 60;
/// Each so many-th entry of an account is refused until the account is released.
const BLOCKED: u64 = 40;
const TOPICS: [&str; 2] = ["orders", "returns"];
const BATCH: u64 = 12;
/// Where effects go, and how many partitions it has.
const LEDGER: (&str, i32) = ("ledger", 5);
/// So many lines of each instance are shown of a run that failed.
const LAST_LINES: usize = 40;
/// How often the accounts are drawn up until they balance; each time takes seconds.
const LOOKS: usize = 5;
/// How often an instance is looked at until it is found in the middle of a commit.
const TRIES: usize = 40;
/// Far longer than a commit of an instance that is awake takes.
const COMMIT: Duration = Duration::from_millis(150);

struct Running {
    dev: Dev,
    /// Asleep until then.
    wakes: Option<Instant>,
}

/// The instances, and what they say.
struct Fleet {
    kafka: Kafka,
    place: tempfile::TempDir,
    running: Vec<Running>,
    started: usize,
    random: u64,
}

impl Fleet {
    fn next(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % bound as u64).expect("it is small")
    }

    fn log(&self, number: usize) -> PathBuf {
        self.place.path().join(format!("{number}.log"))
    }

    fn start(&mut self) {
        let file = Stdio::from(File::create(self.log(self.started)).expect("a file"));
        let application = root().join("tests/chaos");
        let data = self.place.path().join("data");
        let dev = Dev::serve_telling(&application, &data, &self.kafka.bootstrap, file);
        self.started += 1;
        self.running.push(Running { dev, wakes: None });
    }

    /// Those that are awake.
    fn awake(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|at| self.running[*at].wakes.is_none()).collect()
    }

    /// Wakes up those whose time has come.
    fn wake(&mut self, now: Instant) {
        for one in &mut self.running {
            if one.wakes.is_some_and(|wakes| wakes <= now) {
                one.dev.signal(Signal::CONT);
                one.wakes = None;
            }
        }
    }

    fn choose(&mut self) -> usize {
        let awake = self.awake();
        awake[self.next(awake.len())]
    }

    /// One thing happens to this instance, which may be asleep already; somebody stays awake.
    fn strike(&mut self, number: usize, victim: usize) {
        let awake = self.awake();
        // Each kind comes as often as the others.
        match number % 4 {
            0 if awake.len() > 1 => self.running.remove(victim).dev.kill(),
            1 if awake.len() > 1 => drop(self.running.remove(victim).dev.stop()),
            2 if awake.len() > 1 => {
                self.running[victim].dev.signal(Signal::STOP);
                self.running[victim].wakes = Some(Instant::now() + ASLEEP);
            }
            _ if self.running.len() < INSTANCES_MAX || awake.len() == 1 => self.start(),
            _ => self.running.remove(victim).dev.kill(),
        }
        if self.running.len() < INSTANCES {
            self.start();
        }
    }

    /// How often instances said this.
    fn said(&self, text: &str) -> usize {
        let logs = (0..self.started).map(|number| std::fs::read_to_string(self.log(number)).unwrap_or_default());
        logs.map(|log| log.matches(text).count()).sum()
    }
}

/// Whoever has to find out what went wrong reads what each instance said.
impl Drop for Fleet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.place.disable_cleanup(true);
        for number in 0..self.started {
            let said = std::fs::read_to_string(self.log(number)).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            tell(&format!("instance {number} said in the end:\n{last}\n"));
        }
        tell(&format!("All that they said is in {}.", self.place.path().display()));
    }
}

/// What was published.
#[derive(Default)]
struct Published {
    next: u64,
    /// Of each topic and account, the kinds of its entries in their order.
    accounts: BTreeMap<(usize, u64), Vec<&'static str>>,
}

impl Published {
    /// The next entries of one topic, which are the same until they are acknowledged.
    fn batch(&mut self) -> (usize, Vec<String>) {
        let topic = usize::try_from(self.next / BATCH % 2).expect("it is small");
        let events = (0..BATCH).map(|_| {
            let account = self.next % ACCOUNTS;
            self.next += 1;
            self.entry(topic, account, "booking")
        });
        let mut events: Vec<String> = events.collect();
        let account = self.next % ACCOUNTS;
        if self.accounts.get(&(topic, account)).is_some_and(|kinds| kinds.len() as u64 % BLOCKED == 3) {
            events.push(self.entry(topic, account, "blocked"));
            events.push(self.entry(topic, account, "release"));
        }
        (topic, events)
    }

    fn entry(&mut self, topic: usize, account: u64, kind: &'static str) -> String {
        let kinds = self.accounts.entry((topic, account)).or_default();
        kinds.push(kind);
        let (name, number) = (TOPICS[topic], kinds.len());
        let data = json!({"account": format!("a-{account}"), "number": number, "kind": kind});
        let id = format!("{account}-{number}");
        json!({
            "specversion": "1.0", "id": id, "source": format!("/{name}"), "type": "entry", "partitionkey": format!("a-{account}"),
            "data": data,
        })
        .to_string()
    }
}

/// Publishes at a steady rate until told to end, through whoever is awake.
async fn publish(fleet: &tokio::sync::Mutex<Fleet>, api: &Api, ended: &tokio::sync::Notify) -> Published {
    let mut published = Published::default();
    let mut pace = tokio::time::interval(Duration::from_millis(40));
    let mut waiting: Option<(usize, Vec<String>)> = None;
    let end = ended.notified();
    let mut end = std::pin::pin!(end);
    let mut is_ended = false;
    let mut turn = 0;
    while !is_ended || waiting.is_some() {
        tokio::select! {
            () = &mut end, if !is_ended => is_ended = true,
            _ = pace.tick() => {}
        }
        turn += 1;
        let url = {
            let fleet = fleet.lock().await;
            let awake = fleet.awake();
            fleet.running[awake[turn % awake.len()]].dev.url.clone()
        };
        let (topic, events) = waiting.take().unwrap_or_else(|| published.batch());
        let publishing = api.publish(&url, TOPICS[topic], &events);
        // One that was just put to sleep does not answer.
        let answer = tokio::time::timeout(Duration::from_secs(3), publishing).await.ok().flatten();
        if answer.is_none_or(|status| status.as_u16() != 202) {
            waiting = Some((topic, events));
        }
        if turn % 50 == 0 {
            redrive(api, &url).await;
        }
    }
    published
}

/// Sends all open letters once more; whether that is answered does not matter.
async fn redrive(api: &Api, url: &str) {
    let (url, all) = (format!("{url}/v1/dead-letters/redrive"), json!({"all": true}).to_string());
    drop(tokio::time::timeout(Duration::from_secs(3), api.send(Method::POST, &url, "application/json", all)).await);
}

/// A record as Kafka's console consumer tells of it.
struct Read {
    partition: u32,
    value: Value,
}

fn read(kafka: &Kafka, topic: &str) -> Vec<Read> {
    let text = kafka.read(topic);
    let record = |line: &str| {
        let mut parts = line.splitn(4, '\t');
        let partition = parts.next()?.strip_prefix("Partition:")?.parse().ok()?;
        Some(Read { partition, value: serde_json::from_str(parts.nth(2)?).ok()? })
    };
    let records = text.lines().map(|line| record(line).unwrap_or_else(|| panic!("not a record: {line}")));
    records.collect()
}

/// Each entry has been booked once, those of an account in their order, and each saw exactly those before it.
fn assert_each_effect_is_there_once(published: &Published, ledger: &[Read]) {
    let mut booked = BTreeMap::<(String, String), Vec<(u64, u64)>>::new();
    for Read { value, .. } in ledger {
        let text = |name: &str| value[name].as_str().expect("a text").to_owned();
        let number = |name: &str| value[name].as_u64().expect("a number");
        booked.entry((text("from"), text("account"))).or_default().push((number("number"), number("count")));
    }
    for ((topic, account), kinds) in &published.accounts {
        let (topic, account) = (TOPICS[*topic], format!("a-{account}"));
        let found = booked.remove(&(topic.to_owned(), account.clone())).unwrap_or_default();
        let numbers: BTreeSet<u64> = found.iter().map(|(number, _)| *number).collect();
        assert_eq!(found.len(), kinds.len(), "{topic} {account}: {found:?}");
        assert_eq!(numbers, (1..=kinds.len() as u64).collect(), "{topic} {account}: {found:?}");
        let counts: Vec<u64> = found.iter().map(|(_, count)| *count).collect();
        assert_eq!(
            counts,
            (1..=kinds.len() as u64).collect::<Vec<_>>(),
            "{topic} {account}: the state was not that of its effects"
        );
        // Order is not kept for what was redriven.
        let is_in_order = |number: &&u64| kinds[usize::try_from(**number).expect("few") - 1] != "blocked";
        let in_order: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
        let in_order: Vec<u64> = in_order.iter().filter(is_in_order).copied().collect();
        assert!(in_order.is_sorted(), "{topic} {account}: {found:?}");
    }
    assert!(booked.is_empty(), "booked and never published: {booked:?}");
}

/// As many settlements as there are records, as a consumer of nobody's counts them; else where that is not so.
fn accounts_balance(kafka: &Kafka, status: &Value) -> Result<(), String> {
    let units = status["functions"][0]["units"].as_array().expect("units");
    for topic in TOPICS {
        let records = read(kafka, topic);
        for unit in units.iter().filter(|unit| unit["topic"] == topic) {
            let there = records.iter().filter(|record| u64::from(record.partition) == unit["partition"]).count() as u64;
            let total = |outcome: &str| unit["totals"][outcome].as_u64().expect("a number");
            let settled = ["completed", "filtered", "duplicate", "dead_lettered"].into_iter().map(total).sum::<u64>();
            if settled != there || total("skipped") != 0 {
                return Err(format!("{topic}, {there} records: {unit:#}"));
            }
        }
    }
    Ok(())
}

fn chaos() -> (usize, usize) {
    let Ok(text) = std::env::var(CHAOS) else { return SHORT };
    let numbers = text.split_once(',').and_then(|(strikes, kills)| Some((strikes.parse().ok()?, kills.parse().ok()?)));
    numbers.unwrap_or_else(|| {
        panic!("{CHAOS}={text}: write how often something happens to an instance, and to the broker")
    })
}

/// Sees which transactions are open, as any client of Kafka's can.
struct Witness {
    committed: BaseConsumer,
    all: BaseConsumer,
}

impl Witness {
    fn new(bootstrap: &str) -> Self {
        let seeing = |level: &str| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", bootstrap).set("group.id", "witness").set("isolation.level", level);
            config.create().expect("a client")
        };
        Self { committed: seeing("read_committed"), all: seeing("read_uncommitted") }
    }

    /// Partitions of the ledger whose end is hidden by an open transaction, each with where that begins.
    fn open(&self) -> BTreeSet<(i32, i64)> {
        let end = |consumer: &BaseConsumer, partition| {
            Some(consumer.fetch_watermarks(LEDGER.0, partition, Duration::from_secs(5)).ok()?.1)
        };
        let open = |partition| {
            let (stable, end) = (end(&self.committed, partition)?, end(&self.all, partition)?);
            (stable < end).then_some((partition, stable))
        };
        (0..LEDGER.1).filter_map(open).collect()
    }

    /// Those that stay open for longer than a commit takes: whoever began them does not go on.
    async fn stuck(&self) -> BTreeSet<(i32, i64)> {
        let before = tokio::task::block_in_place(|| self.open());
        tokio::time::sleep(COMMIT).await;
        let now = tokio::task::block_in_place(|| self.open());
        before.intersection(&now).copied().collect()
    }
}

/// Puts an instance to sleep in the middle of a commit; whether that could be done. If not, it is awake.
async fn catch(fleet: &tokio::sync::Mutex<Fleet>, victim: usize, witness: &Witness) -> bool {
    for _ in 0..TRIES {
        let before = witness.stuck().await;
        fleet.lock().await.running[victim].dev.signal(Signal::STOP);
        if !witness.stuck().await.is_subset(&before) {
            return true;
        }
        fleet.lock().await.running[victim].dev.signal(Signal::CONT);
    }
    false
}

/// Strikes at random moments, and each second time in the middle of a commit; the broker is killed at even distances. Answers how
/// often that was so.
async fn strike(fleet: &tokio::sync::Mutex<Fleet>, (strikes, broker_kills): (usize, usize)) -> usize {
    let witness = Witness::new(&fleet.lock().await.kafka.bootstrap);
    let mut caught = 0;
    for number in 0..strikes {
        let (victim, others) = {
            let mut fleet = fleet.lock().await;
            (fleet.choose(), fleet.awake().len() - 1)
        };
        // Those that are killed or put to sleep.
        if number % 2 == 0 && others > 0 && catch(fleet, victim, &witness).await {
            caught += 1;
        }
        let mut fleet = fleet.lock().await;
        tokio::task::block_in_place(|| fleet.strike(number, victim));
        if (number + 1) * broker_kills / strikes > number * broker_kills / strikes {
            tokio::task::block_in_place(|| {
                fleet.kafka.kill();
                fleet.kafka.start_again();
            });
        }
        fleet.wake(Instant::now());
        let pause = Duration::from_millis(fleet.next(3000) as u64);
        drop(fleet);
        tokio::time::sleep(pause).await;
    }
    caught
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_each_effect_happens_once_whatever_is_killed() {
    let Some(kafka) = Kafka::start() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let mut fleet = Fleet { kafka, place, running: Vec::new(), started: 0, random: 88_172_645_463_325_252 };
    (0..INSTANCES).for_each(|_| fleet.start());
    let fleet = tokio::sync::Mutex::new(fleet);
    let (api, ended) = (Api::default(), tokio::sync::Notify::new());
    let chaos = chaos();
    let striking = async {
        let caught = strike(&fleet, chaos).await;
        ended.notify_one();
        caught
    };
    let (published, caught) = tokio::join!(publish(&fleet, &api, &ended), striking);
    let mut fleet = fleet.into_inner();
    fleet.wake(Instant::now() + ASLEEP);
    let url = fleet.running[0].dev.url.clone();
    settled(&api, &url).await;
    let fenced = fleet.said("A commit was fenced");
    let unknown = fleet.said("It is not known whether a commit was made");
    assert_each_effect_is_there_once(&published, &read(&fleet.kafka, "ledger"));
    // Whoever was asleep publishes what it was asked for before, though nobody waits for that any more, and may not be done.
    let mut balance = Err(String::new());
    for _ in 0..LOOKS {
        balance = accounts_balance(&fleet.kafka, &settled(&api, &url).await);
        if balance.is_ok() {
            break;
        }
    }
    assert_eq!(balance, Ok(()));
    assert!(fenced > 0, "no commit was under way when its instance lost its place");
    assert!(4 * caught >= chaos.0, "only {caught} of {} strikes were in the middle of a commit", chaos.0);
    tell(&format!(
        "{} entries, {caught} of {} strikes in the middle of a commit, {fenced} commits fenced, {unknown} of unknown outcome",
        published.next, chaos.0
    ));
    for one in fleet.running.drain(..) {
        assert!(one.dev.stop(), "an instance that is asked to stop ends well");
    }
}

#[expect(clippy::print_stderr, reason = "whoever runs the long form wants to know how much happened")]
fn tell(what: &str) {
    eprintln!("{what}");
}

/// Redrives what is left, until nothing is.
async fn settled(api: &Api, url: &str) -> Value {
    loop {
        let status = api.settled(url).await;
        let open = api.get(&format!("{url}/v1/dead-letters?status=open")).await;
        if open["letters"].as_array().is_some_and(Vec::is_empty) {
            return status;
        }
        redrive(api, url).await;
    }
}
