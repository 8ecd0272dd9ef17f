//! A function whose position is set again and again, while instances crash, halt and take over from one another.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::digest::Digest;
use millrace_core::manifest::Manifest;
use millrace_core::revision::{Action, Change, History, Origin, Place, Source};
use millrace_core::time::Timestamp;

use super::check::Snapshot;
use super::fleet::Fleet;
use super::guest::Plan;
use super::rng::Rng;
use super::scenario::{Kind, Published, Report, Scenario, live, publish, settle, source};
use super::world::{Faults, Shared, World, lock};

/// What was decided of the function, and what to decide next.
struct Operator {
    history: History,
}

impl Operator {
    fn new() -> Self {
        let mut history = History::default();
        let source = Source {
            component: Digest::from_bytes([0; 32]),
            manifest: String::new(),
            origin: Origin::Directory,
            signature: None,
        };
        history.apply(1, &Change::new(Action::Deploy(source), Timestamp::EPOCH, "").encode());
        Self { history }
    }

    /// Lets all partitions go on from somewhere that they have been.
    fn reset(&mut self, world: &mut World, forget: bool) {
        let units: Vec<_> =
            world.units.iter().map(|(unit, stored)| (unit.clone(), stored.progress.source.resume)).collect();
        let positions = units.into_iter().map(|(unit, resume)| {
            let offset = if forget { 0 } else { world.rng.below(resume + 1) };
            Place { topic: unit.topic, partition: unit.partition, offset, oldest: forget }
        });
        let positions: Vec<Place> = positions.collect();
        world.note(format_args!("reset {positions:?} forget {forget}"));
        let action = Action::Reset { positions, forget };
        self.history.apply(self.history.latest() + 1, &Change::new(action, Timestamp::EPOCH, "").encode());
    }

    fn tell(&self, fleet: &Fleet<'_>) {
        fleet.tell_resets(self.history.resets());
    }
}

/// Runs one seed and checks that each event has its effects once however often it comes again, and once more after its key was
/// forgotten.
///
/// # Panics
/// If the runtime does.
#[must_use]
pub fn run_resets(seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let scenario = scenario(&mut rng);
    let world = scenario.world(rng.next());
    let mut operator = Operator::new();
    let lives = rng.between(1, 4);
    let per_life = scenario.published.len() as u64 / lives + 1;
    let mut broken = None;
    for life in 0..lives {
        let last = life + 1 == lives;
        let settled = live(&world, &scenario, async |fleet, world| {
            operator.tell(fleet);
            for (at, item) in scenario.published.iter().enumerate().filter(|(at, _)| *at as u64 / per_life == life) {
                publish(&fleet.group, item);
                let (pause, resets, disturbed) = {
                    let mut world = lock(world);
                    (world.rng.below(20), world.rng.percent(15), at > 0 && world.rng.percent(10))
                };
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if resets {
                    operator.reset(&mut fleet.group.world(), false);
                    operator.tell(fleet);
                }
                if disturbed {
                    fleet.disturb().await;
                    operator.tell(fleet);
                }
            }
            if !last {
                return true;
            }
            lock(world).faults = Faults::default();
            fleet.keep_one().await;
            operator.tell(fleet);
            obeyed(world, &operator).await && settle(world).await
        });
        if !settled {
            broken = Some("it never settles".to_owned());
        } else if !last {
            lock(&world).crash();
        }
    }
    let broken = broken.or_else(|| check(&scenario, &lock(&world), 1).err());
    let broken = broken.or_else(|| {
        let settled = live(&world, &scenario, async |fleet, world| {
            operator.tell(fleet);
            operator.reset(&mut fleet.group.world(), true);
            operator.tell(fleet);
            obeyed(world, &operator).await && settle(world).await
        });
        if settled { check(&scenario, &lock(&world), 2).err() } else { Some("it never settles again".to_owned()) }
    });
    let world = lock(&world);
    Report { trace: world.trace.clone(), broken, counts: world.counts }
}

/// Waits until each unit has heard of the latest reset.
async fn obeyed(world: &Shared, operator: &Operator) -> bool {
    for _ in 0..4000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let is_told = |world: &World| {
            world.units.iter().all(|(unit, stored)| {
                let told = operator.history.resets().of(unit);
                told.is_none_or(|target| stored.progress.reset.number == target.number)
            })
        };
        if is_told(&lock(world)) {
            return true;
        }
    }
    false
}

fn scenario(rng: &mut Rng) -> Scenario {
    let ordering = rng.pick(&["key", "partition"]);
    let manifest = format!(
        "application = \"sim\"\n[functions.handler]\ncomponent = \"c.wasm\"\ntopics = [\"in\"]\nordering = \"{ordering}\"\n\
         retry = {{ attempts = 1000, initial = \"20ms\", max = \"100ms\", max-age = \"100h\" }}\n"
    );
    let (manifest, _) = Manifest::parse(&manifest).expect("the manifest is good");
    let keys = rng.between(1, 5);
    let count = rng.between(5, 40);
    let published = (0..count).map(|n| {
        let plan = if rng.percent(15) { Plan::Recover(2) } else { Plan::Emit(1) };
        Published { id: format!("e{n}"), key: Some(format!("k{}", rng.below(keys))), kind: Kind::Event(plan) }
    });
    let published = published.collect();
    Scenario {
        settings: manifest.functions.into_iter().next().expect("there is one function"),
        published,
        crashes: 0,
        disturbances: 0,
        instances: rng.between(1, 3),
        faults: Faults { commit_aborted: rng.below(20), slow: rng.below(30), ..Faults::default() },
        partitions: u32::try_from(rng.between(1, 3)).expect("few partitions"),
        redrive: false,
        decides: false,
    }
}

/// Each event has its one output this often, in the order of its key each time; the accounts begin where the function was last told
/// to go on, and balance.
fn check(scenario: &Scenario, world: &World, times: usize) -> Result<(), String> {
    let snapshot = Snapshot::take(world);
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..times {
        for item in &scenario.published {
            expected.entry(item.key.clone().unwrap_or_default()).or_default().push(item.id.clone());
        }
    }
    let found = snapshot.by_key();
    for (key, ids) in &expected {
        if found.get(key) != Some(ids) {
            return Err(format!("{key} has the outputs {:?}, not {ids:?}", found.get(key)));
        }
    }
    for (unit, stored) in &world.units {
        let progress = &stored.progress.source;
        let records = world.log(&source(), unit.partition).len() as u64;
        if (progress.resume, progress.totals.sum()) != (records, records - progress.start) {
            return Err(format!("{unit}: {records} records, {progress:?}"));
        }
    }
    if world.letters.is_empty() { Ok(()) } else { Err(format!("{} letters", world.letters.len())) }
}
