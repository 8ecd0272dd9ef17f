//! An event that always fails, beside healthy ones, through many crashes: first alone, then as a redriven dead letter
//! together with a repetition of itself.

use std::time::Duration;

use millrace::broker::LetterStatus;
use millrace_core::letter::LetterHeaders;
use millrace_core::manifest::Manifest;
use millrace_core::outcome::Category;

use super::guest::Plan;
use super::rng::Rng;
use super::scenario::{Kind, Published, Report, Scenario, live, publish, settle};
use super::world::{Faults, World, lock};

/// How often the process is killed in each of the two parts.
const CRASHES: u32 = 20;
const ATTEMPTS: u32 = 7;

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

fn scenario(rng: &mut Rng) -> Scenario {
    let breaker = rng.percent(50);
    let manifest = format!(
        "application = \"sim\"\n[functions.handler]\ncomponent = \"c.wasm\"\ntopics = [\"in\"]\n\
         retry = {{ attempts = {ATTEMPTS}, initial = \"20ms\", max = \"100ms\", max-age = \"1h\" }}\n\
         breaker = {{ enabled = {breaker}, failures-in-row = 1, keys = 1, open = \"50ms\", open-max = \"50ms\" }}\n"
    );
    let (manifest, _) = Manifest::parse(&manifest).expect("the manifest is good");
    Scenario {
        settings: manifest.functions.into_iter().next().expect("there is one function"),
        published: Vec::new(),
        crashes: CRASHES.into(),
        disturbances: 0,
        instances: 1,
        faults: Faults { slow: rng.below(30), ..Faults::default() },
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
