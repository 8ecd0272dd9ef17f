//! An event that always fails, through many crashes: beside healthy ones and until its attempts are made, first alone, then as a
//! redriven dead letter together with a repetition of itself; and until it is too old.

use std::time::Duration;

use millrace::broker::LetterStatus;
use millrace_core::letter::LetterHeaders;
use millrace_core::manifest::Manifest;
use millrace_core::outcome::Category;
use millrace_core::time::Timestamp;

use super::guest::Plan;
use super::rng::Rng;
use super::scenario::{Kind, Published, Report, Scenario, live, publish, settle};
use super::world::{Faults, Shared, World, lock};

/// How often the process is killed in each of the two parts.
const CRASHES: u32 = 20;
const ATTEMPTS: u32 = 7;
/// More attempts than can be made until the event is too old.
const MANY_ATTEMPTS: u32 = 1000;
/// For so long it is attempted then, with this time at most between two attempts.
const AGE_MAX: Duration = Duration::from_secs(3);
const DELAY_MAX: Duration = Duration::from_millis(100);
/// What a crash, the time until the next start and that start can hold up an attempt that was due.
const HELD_UP_MAX: Duration = Duration::from_millis(500);
/// Far more lives than it takes.
const LIVES_MAX: u32 = 200;

/// Runs one seed and checks that the event becomes a dead letter after exactly its attempts, each time.
///
/// # Panics
/// If the runtime does, or a commit forgets attempts.
#[must_use]
pub fn run_crashes(seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let scenario = scenario(&mut rng);
    let world = scenario.world(rng.next());
    let mut broken = None;
    let mut redriven = 0;
    for part in 0..2 {
        // Whether the person or the publisher is faster.
        let redrive_first = rng.percent(50);
        if part > 0 && redrive_first {
            redriven = lock(&world).redrive_open();
        }
        for crash in 0..CRASHES {
            if part > 0 && !redrive_first && crash == 2 {
                redriven = lock(&world).redrive_open();
            }
            let (life, stumbles) = (rng.below(90), rng.percent(30));
            live(&world, &scenario, async |fleet, world| {
                if crash == 0 {
                    publish(&fleet.group, &failing());
                }
                let number = part * CRASHES + crash;
                if stumbles {
                    publish(&fleet.group, &stumbling(number));
                }
                publish(&fleet.group, &healthy(number));
                tokio::time::sleep(Duration::from_millis(life)).await;
                lock(world).note(format_args!("after {life} ms"));
            });
            lock(&world).crash();
        }
        let settled = live(&world, &scenario, async |_, world| settle(world).await);
        if !settled {
            broken = broken.or_else(|| Some(format!("part {part} never settles")));
            break;
        }
        broken = broken.or_else(|| check(&lock(&world), part, redriven).err());
    }
    let world = lock(&world);
    Report { trace: world.trace.clone(), broken, counts: world.counts }
}

/// Runs one seed and checks that the event becomes a dead letter by its age, which counts from its first failure on, whatever
/// crashed since.
///
/// # Panics
/// If the runtime does, or a commit forgets attempts.
#[must_use]
pub fn run_ageing(seed: u64) -> Report {
    let mut rng = Rng::new(seed);
    let scenario = scenario_with((MANY_ATTEMPTS, AGE_MAX), false, Faults::default());
    let world = scenario.world(rng.next());
    let first_failed_at = live(&world, &scenario, async |fleet, world| {
        publish(&fleet.group, &failing());
        first_failure(world).await
    });
    let mut lives = 1;
    loop {
        {
            let mut world = lock(&world);
            world.crash();
            let started_again = world.now + Duration::from_millis(rng.below(100));
            world.now = started_again;
            if !world.letters.is_empty() || lives == LIVES_MAX {
                break;
            }
        }
        lives += 1;
        let life = Duration::from_millis(rng.between(50, 150));
        live(&world, &scenario, async |_, _| tokio::time::sleep(life).await);
    }
    let world = lock(&world);
    Report { trace: world.trace.clone(), broken: check_age(&world, first_failed_at, lives).err(), counts: world.counts }
}

/// Waits until it is on the disk that an event failed, and answers with when that was.
async fn first_failure(world: &Shared) -> Option<Timestamp> {
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let world = lock(world);
        let first = world.units.values().find_map(|stored| stored.progress.parked.first());
        if let Some(head) = first {
            return Some(head.first_failed_at);
        }
    }
    None
}

fn scenario(rng: &mut Rng) -> Scenario {
    let breaker = rng.percent(50);
    let faults = Faults { slow: rng.below(30), ..Faults::default() };
    scenario_with((ATTEMPTS, Duration::from_secs(3600)), breaker, faults)
}

fn scenario_with((attempts, age_max): (u32, Duration), breaker: bool, faults: Faults) -> Scenario {
    let (delay_max, age_max) = (DELAY_MAX.as_millis(), age_max.as_secs());
    let manifest = format!(
        "application = \"sim\"\n[functions.handler]\ncomponent = \"c.wasm\"\ntopics = [\"in\"]\n\
         retry = {{ attempts = {attempts}, initial = \"20ms\", max = \"{delay_max}ms\", max-age = \"{age_max}s\" }}\n\
         breaker = {{ enabled = {breaker}, failures-in-row = 1, keys = 1, open = \"50ms\", open-max = \"50ms\" }}\n"
    );
    let (manifest, _) = Manifest::parse(&manifest).expect("the manifest is good");
    Scenario {
        settings: manifest.functions.into_iter().next().expect("there is one function"),
        published: Vec::new(),
        crashes: CRASHES.into(),
        disturbances: 0,
        instances: 1,
        faults,
        partitions: 1,
        redrive: false,
        decides: false,
    }
}

fn failing() -> Published {
    Published { id: "failing".into(), key: Some("k".into()), kind: Kind::Event(Plan::Fail(Category::Transient)) }
}

fn healthy(number: u32) -> Published {
    Published { id: format!("healthy-{number}"), key: Some(format!("h{number}")), kind: Kind::Event(Plan::Emit(1)) }
}

/// Its first attempt fails, which may open the breaker.
fn stumbling(number: u32) -> Published {
    Published {
        id: format!("stumbling-{number}"),
        key: Some(format!("s{number}")),
        kind: Kind::Event(Plan::Recover(1)),
    }
}

/// After the first part there is one letter; after the second one it was redriven, and there is another one, which may have
/// been there in time to be redriven too.
fn check(world: &World, part: u32, redriven: usize) -> Result<(), String> {
    let mut redrives = 0;
    for ((_, id), letter) in &world.letters {
        let headers = LetterHeaders::read(&letter.record).map_err(|e| format!("letter {id}: {e}"))?;
        redrives += headers.redrives;
        if (letter.status, headers.attempts) != (LetterStatus::Open, ATTEMPTS) {
            return Err(format!("part {part}: {id} is {:?} after {} attempts", letter.status, headers.attempts));
        }
    }
    let letters = part + 1;
    if (world.letters.len(), usize::try_from(redrives)) != (letters as usize, Ok(redriven)) {
        return Err(format!("part {part}: {} letters, {redrives} redrives", world.letters.len()));
    }
    // What a crash cut short, or was not committed before it, is made again: in a short life that is a handful of attempts.
    let calls = world.calls.get("failing").copied().unwrap_or(0);
    let allowed = (letters + redrives) * ATTEMPTS + 4 * letters * CRASHES;
    if calls > allowed {
        return Err(format!("part {part}: {calls} attempts, not at most {allowed}"));
    }
    let healthy = world.calls.keys().filter(|id| id.starts_with("healthy")).count();
    let expected = usize::try_from((part + 1) * CRASHES).map_err(|e| e.to_string())?;
    if healthy == expected { Ok(()) } else { Err(format!("{healthy} healthy events were handled, not {expected}")) }
}

/// There is one letter, written when no attempt could be made in time any more: neither earlier nor later, although many more
/// attempts were allowed.
fn check_age(world: &World, first_failed_at: Option<Timestamp>, lives: u32) -> Result<(), String> {
    let letters: Vec<_> = world.letters.values().map(|letter| LetterHeaders::read(&letter.record)).collect();
    let [Ok(letter)] = &letters[..] else {
        return Err(format!("after {lives} lives there are the letters {letters:?}"));
    };
    if Some(letter.first_failed_at) != first_failed_at {
        return Err(format!("it failed first at {first_failed_at:?}, not at {:?}", letter.first_failed_at));
    }
    let age = letter.last_failed_at.since(letter.first_failed_at);
    if age < AGE_MAX.saturating_sub(DELAY_MAX) || age > AGE_MAX + HELD_UP_MAX {
        return Err(format!("it was given up after {age:?}, in life {lives}"));
    }
    // Neither a delay nor a life with the time after it is so long that there could be fewer.
    if !(5..MANY_ATTEMPTS).contains(&letter.attempts) || lives < 5 {
        return Err(format!("it was given up after {} attempts in {lives} lives", letter.attempts));
    }
    Ok(())
}
