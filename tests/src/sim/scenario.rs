//! One seed from beginning to end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::broker::{Outgoing, Placing};
use millrace::clock::Clock;
use millrace_core::codec;
use millrace_core::event::Event;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::Topic;
use millrace_core::outcome::Category;
use millrace_core::partition;
use millrace_core::policy::{Ordering, Overflow};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::check;
use super::fleet::Fleet;
use super::group::Group;
use super::guest::Plan;
use super::rng::Rng;
use super::world::{Counts, Faults, Shared, World, lock};

/// What became of a seed.
#[derive(Debug)]
pub struct Report {
    /// Everything that happened, a line each. The same seed gives the same trace.
    pub trace: String,
    /// The first broken promise, if any was broken.
    pub broken: Option<String>,
    /// What came about.
    pub counts: Counts,
}

/// What is published.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) id: String,
    pub(super) key: Option<String>,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An event, possibly one that was published before.
    Event(Plan),
    Filtered,
    Undecodable,
}

#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) settings: Function,
    pub(super) published: Vec<Published>,
    /// How often all instances are killed at once.
    pub(super) crashes: u64,
    /// How often something happens to one of them in the meantime, at most.
    pub(super) disturbances: u64,
    /// How many there are at first.
    pub(super) instances: u64,
    pub(super) faults: Faults,
    pub(super) partitions: u32,
    pub(super) redrive: bool,
    /// Whether somebody changes which revisions run.
    pub(super) decides: bool,
}

pub(super) fn source() -> Topic {
    "in".parse().expect("a topic")
}

pub(super) fn output() -> Topic {
    "out".parse().expect("a topic")
}

/// Runs one seed and checks the promise.
///
/// # Panics
/// If the runtime does, with the seed in front.
#[must_use]
pub fn run(seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let scenario = Scenario::draw(&mut rng);
    let world = scenario.world(rng.next());
    let per_life = scenario.published.len() / usize::try_from(scenario.crashes + 1).expect("few crashes") + 1;
    let lives: Vec<_> = scenario.published.chunks(per_life).collect();
    let mut settled = false;
    for (life, published) in lives.iter().enumerate() {
        let disturbances = if life % 2 == 0 { scenario.disturbances } else { 0 };
        let last = life + 1 == lives.len();
        settled = live(&world, &scenario, async |fleet, world| {
            publish_all(fleet, published, disturbances, scenario.decides).await;
            if last {
                lock(world).faults = Faults::default();
                fleet.keep_one().await;
                return settle(world).await;
            }
            wait_for_parked(world).await;
            false
        });
        if !last {
            lock(&world).crash();
            die_soon(&world, &scenario);
        }
    }
    let before_redrive = check::Snapshot::take(&lock(&world));
    if settled && scenario.redrive {
        lock(&world).mended = true;
        lock(&world).redrive_open();
        settled = live(&world, &scenario, async |_, world| settle(world).await);
    }
    let mut world = lock(&world);
    let checked =
        if settled { check::promise(&scenario, &before_redrive, &world) } else { Err("it never settles".into()) };
    world.counts.healthy_behind_failing += u64::from(checked == Ok(true));
    Report { trace: world.trace.clone(), broken: checked.err(), counts: world.counts }
}

/// Often a process does not get far before it dies again: what the first restart did must not be what the second one needs.
pub(super) fn die_soon(world: &Shared, scenario: &Scenario) {
    loop {
        let (again, life) = {
            let mut world = lock(world);
            (world.rng.percent(50), world.rng.below(60))
        };
        if !again {
            return;
        }
        live(world, scenario, async |_, _| tokio::time::sleep(Duration::from_millis(life)).await);
        lock(world).crash();
    }
}

/// Waits, in every other life, for something that a crash might forget.
async fn wait_for_parked(world: &Shared) {
    if lock(world).rng.percent(50) {
        return;
    }
    for _ in 0..60 {
        if lock(world).units.values().any(|stored| !stored.progress.parked.is_empty()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One life of all processes: from start until the given future ends, when everything is dropped as in a crash.
pub(super) fn live<T>(world: &Shared, scenario: &Scenario, until: impl AsyncFnOnce(&mut Fleet<'_>, &Shared) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    let origin = lock(world).now;
    let result = runtime.block_on(async {
        let group = Group::new(world, Clock::starting_at(origin));
        let mut fleet = Fleet::start(group, &scenario.settings, scenario.instances).await;
        let result = until(&mut fleet, world).await;
        // From here on the world's time stands still, until the next life.
        drop(fleet.group.world());
        let failure = fleet.failure();
        assert!(failure.is_none(), "a worker failed: {failure:?}");
        result
    });
    drop(runtime);
    result
}

async fn publish_all(fleet: &mut Fleet<'_>, published: &[Published], mut disturbances: u64, decides: bool) {
    for item in published {
        publish(&fleet.group, item);
        let (pause, disturbed) = {
            let mut world = fleet.group.world();
            (if world.rng.percent(20) { world.rng.between(0, 400) } else { world.rng.below(4) }, world.rng.percent(15))
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if disturbed && disturbances > 0 {
            disturbances -= 1;
            fleet.disturb().await;
        }
        if decides && fleet.group.world().rng.percent(12) {
            fleet.decide().await;
        }
    }
    let pause = fleet.group.world().rng.below(600);
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

pub(super) fn publish(group: &Group, item: &Published) {
    let (record, hash) = record_of(item, group.clock.now());
    let outgoing = Outgoing { topic: source(), placing: Placing::Hash(hash), record };
    group.publish(vec![outgoing]).expect("the simulated broker takes every event");
}

fn record_of(item: &Published, at: Timestamp) -> (Record, u32) {
    let key = item.key.as_ref().map(|key| bytes::Bytes::from(key.clone()));
    let hash = partition::hash(key.as_deref(), "/sim", &item.id);
    let (ty, plan) = match item.kind {
        Kind::Event(plan) => ("sim.event", plan.to_text()),
        Kind::Filtered => ("sim.filtered", String::from("emit 1")),
        Kind::Undecodable => {
            let headers = [("ce_specversion", Some(&b"1.0"[..])), ("ce_id", Some(item.id.as_bytes()))];
            let record = Record { timestamp: at, key, headers: headers.into_iter().collect(), value: None };
            return (record, hash);
        }
    };
    let event = Event {
        id: item.id.clone().into(),
        source: "/sim".into(),
        ty: ty.into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: vec![("plan".into(), plan.into())],
        data: None,
    };
    (codec::encode(&event, key, at), hash)
}

/// Waits until every record of every unit is settled; false if that does not come.
pub(super) async fn settle(world: &Shared) -> bool {
    for _ in 0..4000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if is_settled(&lock(world)) {
            return true;
        }
    }
    false
}

fn is_settled(world: &World) -> bool {
    world.units.iter().all(|(unit, stored)| {
        let records = world.log(&unit.topic, unit.partition).len() as u64;
        let redriven = world.redrive.get(unit).map_or(0, |records| records.len() as u64);
        stored.progress.source.resume == records && stored.progress.redrive.resume == redriven
    })
}

impl Scenario {
    fn draw(rng: &mut Rng) -> Self {
        // Often enough nothing goes wrong but handlers and processes, so that it shows whom a failing key delays.
        let plain = rng.percent(25);
        let attempts = if plain { 5 } else { rng.between(1, 5) };
        let limit = if plain { 1000 } else { rng.pick(&[2, 5, 1000]) };
        let overflow = rng.pick(&["dead-letter", "pause"]);
        let ordering = rng.pick(&["key", "key", "key", "partition", "none"]);
        let breaker = !plain && rng.percent(30);
        let manifest = format!(
            "application = \"sim\"\n[functions.handler]\ncomponent = \"c.wasm\"\ntopics = [\"in\"]\nordering = \"{ordering}\"\n\
             retry = {{ attempts = {attempts}, initial = \"50ms\", max = \"2s\", max-age = \"1h\" }}\n\
             parked = {{ limit = {limit}, overflow = \"{overflow}\" }}\nbreaker = {{ enabled = {breaker} }}\n"
        );
        let (manifest, _) = Manifest::parse(&manifest).expect("the scenario's manifest is good");
        let hostile = !plain && rng.percent(80);
        let disturbed = rng.percent(70);
        let (decides, instances) = (rng.percent(60), rng.between(1, 3));
        // Instances with several workers do not hear of what is decided.
        let partitions = if decides { rng.between(1, instances) } else { rng.between(1, 3) };
        let percent = |rng: &mut Rng, most| if hostile { rng.below(most) } else { 0 };
        Self {
            settings: manifest.functions.into_iter().next().expect("there is one function"),
            published: draw_events(rng, plain),
            crashes: if disturbed { rng.below(6) } else { 0 },
            disturbances: if disturbed { rng.below(6) } else { 0 },
            instances,
            faults: Faults {
                commit_aborted: percent(rng, 20),
                fetch_failed: percent(rng, 20),
                guest_not_run: percent(rng, 10),
                slow: percent(rng, 30),
            },
            partitions: u32::try_from(partitions).expect("few partitions"),
            redrive: rng.percent(50),
            decides,
        }
    }

    /// Whether nothing went wrong that is not of the processes.
    pub(super) fn is_calm(&self) -> bool {
        let Faults { commit_aborted, fetch_failed, guest_not_run, slow } = self.faults;
        commit_aborted + fetch_failed + guest_not_run + slow == 0
    }

    /// Whether nothing happened to the processes.
    pub(super) fn is_undisturbed(&self) -> bool {
        self.crashes + self.disturbances == 0
    }

    /// A world in which nothing happened yet.
    pub(super) fn world(&self, seed: u64) -> Shared {
        let mut world = World::new(seed, self.faults);
        world.handler_counts = true;
        world.create(source(), self.partitions);
        world.create(output(), self.partitions);
        Arc::new(Mutex::new(world))
    }

    pub(super) fn attempts(&self) -> u32 {
        self.settings.retry.attempts
    }

    pub(super) fn ordering(&self) -> Ordering {
        self.settings.ordering
    }

    pub(super) fn may_overflow(&self) -> bool {
        self.settings.parked.overflow == Overflow::DeadLetter && self.settings.parked.limit < 1000
    }
}

fn draw_events(rng: &mut Rng, plain: bool) -> Vec<Published> {
    let count = rng.between(5, 60);
    let keys = if plain { 12 } else { rng.between(1, 6) };
    let bad = if plain { 10 } else { rng.pick(&[0, 10, 30]) };
    let mut published: Vec<Published> = Vec::new();
    for n in 0..count {
        let key = (!rng.percent(20)).then(|| format!("k{}", rng.below(keys)));
        if !published.is_empty() && rng.percent(10) {
            let earlier = published[usize::try_from(rng.below(published.len() as u64)).expect("an index")].clone();
            if matches!(earlier.kind, Kind::Event(_)) {
                published.push(earlier);
                continue;
            }
        }
        let kind = match rng.below(100) {
            0..5 => Kind::Filtered,
            5..8 => Kind::Undecodable,
            r if r < 8 + bad => Kind::Event(draw_failure(rng, plain)),
            _ => Kind::Event(Plan::Emit(u32::try_from(rng.below(3)).expect("few"))),
        };
        published.push(Published { id: format!("e{n}"), key, kind });
    }
    published
}

fn draw_failure(rng: &mut Rng, plain: bool) -> Plan {
    match rng.below(if plain { 6 } else { 9 }) {
        0..3 => Plan::Recover(u32::try_from(rng.between(1, 4)).expect("few")),
        3 => Plan::Fail(Category::Invalid),
        4 => Plan::Fail(Category::Rejected),
        5 => Plan::Fail(rng.pick(&[Category::Transient, Category::Unknown])),
        6 => Plan::Hang,
        7 => Plan::Forbidden(u32::try_from(rng.between(1, 4)).expect("few")),
        _ => Plan::Refused,
    }
}
