//! The promise, checked against what is on the simulated disk. Shares nothing with the runtime but the codec.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace::broker::LetterStatus;
use millrace_core::codec::{self, Place};
use millrace_core::letter::LetterHeaders;
use millrace_core::outcome::Category;
use millrace_core::partition;
use millrace_core::policy::Ordering;

use super::guest::Plan;
use super::scenario::{Kind, Published, Scenario, output, source};
use super::world::World;

type Result<T = ()> = std::result::Result<T, String>;

/// What the log held at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// For each partition of the output: key and id of the event that each output came from.
    outputs: Vec<Vec<(Option<String>, String)>>,
    /// Id of each dead letter's event, with its headers.
    letters: Vec<(String, LetterHeaders)>,
}

impl Snapshot {
    pub(super) fn take(world: &World) -> Self {
        let none = Vec::new();
        let logs = world.topics.get(&output()).unwrap_or(&none);
        let read = |records: &Vec<millrace_core::record::Record>| {
            records
                .iter()
                .map(|record| {
                    let topic = output();
                    let place = Place { topic: &topic, partition: 0, offset: 0 };
                    let event = codec::decode(record, place).expect("outputs are events");
                    let key = record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
                    (key, event.extension("origin").expect("outputs tell where they come from").to_string())
                })
                .collect()
        };
        let letters = world
            .letters
            .values()
            .map(|letter| {
                let id = letter.record.headers.last("ce_id").expect("letters keep their headers");
                let headers = LetterHeaders::read(&letter.record).expect("letters have all headers");
                (String::from_utf8_lossy(&id).into_owned(), headers)
            })
            .collect();
        Self { outputs: logs.iter().map(read).collect(), letters }
    }

    /// The ids of the events that the outputs with each key came from, in their order.
    pub(super) fn by_key(&self) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, id) in self.outputs.iter().flatten() {
            found.entry(key.clone().unwrap_or_default()).or_default().push(id.clone());
        }
        found
    }

    fn letters_of(&self, id: &str) -> impl Iterator<Item = &LetterHeaders> {
        self.letters.iter().filter(move |(of, _)| of == id).map(|(_, headers)| headers)
    }

    fn outputs_of(&self, id: &str) -> usize {
        self.outputs.iter().flatten().filter(|(_, of)| of == id).count()
    }
}

/// The first promise that is broken. If none is: whether a healthy key got on behind one that failed.
pub(super) fn promise(scenario: &Scenario, before_redrive: &Snapshot, world: &World) -> Result<bool> {
    accounts_balance(scenario, before_redrive, world)?;
    effects_happen_once(scenario, before_redrive, world)?;
    letters_are_right(scenario, before_redrive, world)?;
    state_is_what_completed(scenario, before_redrive, world)?;
    order_is_kept(scenario, before_redrive)?;
    attempts_are_bounded(scenario, world)?;
    healthy_keys_are_not_delayed(scenario, world)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result {
    if holds { Ok(()) } else { Err(what()) }
}

/// The ids of all events with what is planned for them and how often each was published.
fn events(scenario: &Scenario) -> BTreeMap<&str, (Plan, usize)> {
    let mut events = BTreeMap::new();
    for item in &scenario.published {
        if let Kind::Event(plan) = item.kind {
            events.entry(item.id.as_str()).or_insert((plan, 0)).1 += 1;
        }
    }
    events
}

fn partition_of(scenario: &Scenario, item: &Published) -> u32 {
    let hash = partition::hash(item.key.as_deref().map(str::as_bytes), "/sim", &item.id);
    partition::partition_of(hash, scenario.partitions)
}

/// Each record has exactly one settlement, and the accounts say which.
fn accounts_balance(scenario: &Scenario, before_redrive: &Snapshot, world: &World) -> Result {
    for (unit, stored) in &world.units {
        let here: Vec<_> = scenario.published.iter().filter(|i| partition_of(scenario, i) == unit.partition).collect();
        let totals = stored.progress.source.totals;
        let filtered = here.iter().filter(|item| item.kind == Kind::Filtered).count() as u64;
        let ids: BTreeSet<_> = here.iter().map(|item| item.id.as_str()).collect();
        let letters: u64 = ids.iter().map(|id| before_redrive.letters_of(id).count() as u64).sum();
        let completed = events(scenario)
            .iter()
            .filter(|(id, (_, times))| ids.contains(*id) && before_redrive.letters_of(id).count() < *times)
            .count() as u64;
        let duplicate = here.len() as u64 - filtered - letters - completed;
        let expected = (completed, filtered, duplicate, letters);
        let counted = (totals.completed, totals.filtered, totals.duplicate, totals.dead_lettered);
        ensure(counted == expected, || format!("{unit}: counted {counted:?}, found {expected:?}"))?;
        let records = world.topics[&source()][usize::try_from(unit.partition).expect("few")].len() as u64;
        ensure(totals.sum() == records, || format!("{unit}: {records} records, {} settled", totals.sum()))?;
        ensure(stored.progress.parked.is_empty(), || format!("{unit}: still parked {:?}", stored.progress.parked))?;
    }
    Ok(())
}

/// Each event that completes has exactly its outputs, and none that does not.
fn effects_happen_once(scenario: &Scenario, before_redrive: &Snapshot, world: &World) -> Result {
    let after = Snapshot::take(world);
    let redriven = world.mended;
    for (id, (plan, times)) in events(scenario) {
        let dead = before_redrive.letters_of(id).count();
        let when_completed = if let Plan::Emit(n) = plan { n as usize } else { 1 };
        let expected = if dead < times { when_completed } else { 0 };
        let found = before_redrive.outputs_of(id);
        ensure(found == expected, || {
            format!("{id}: {found} outputs, not {expected} ({plan:?}, {dead} of {times} dead)")
        })?;
        let expected = if redriven || dead < times { when_completed } else { 0 };
        let found = after.outputs_of(id);
        ensure(found == expected, || format!("{id}: {found} outputs after the redrive, not {expected}"))?;
    }
    let undecodable: BTreeSet<_> =
        scenario.published.iter().filter(|i| i.kind == Kind::Undecodable).map(|i| i.id.as_str()).collect();
    for ((_, id), letter) in &world.letters {
        let event = letter.record.headers.last("ce_id").unwrap_or_default();
        let stays = undecodable.contains(&*String::from_utf8_lossy(&event));
        let expected = if redriven && !stays { LetterStatus::Resolved } else { LetterStatus::Open };
        ensure(letter.status == expected, || format!("letter {id} is {:?}, not {expected:?}", letter.status))?;
        let redrives = LetterHeaders::read(&letter.record).map_or(0, |headers| headers.redrives);
        let expected = u32::from(redriven && stays);
        ensure(redrives == expected, || format!("letter {id} was redriven {redrives} times, not {expected}"))?;
    }
    Ok(())
}

/// What handlers stored holds each event that completed, once, and in the order of its key; and nothing else.
fn state_is_what_completed(scenario: &Scenario, before_redrive: &Snapshot, world: &World) -> Result {
    let times = events(scenario);
    let died = |id: &str| before_redrive.letters_of(id).next().is_some();
    let completed = |id: &str| {
        world.mended || times.get(id).is_some_and(|(_, times)| before_redrive.letters_of(id).count() < *times)
    };
    for (unit, stored) in &world.units {
        let mut expected: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let here = scenario.published.iter().filter(|item| partition_of(scenario, item) == unit.partition);
        for item in here.filter(|item| times.contains_key(&*item.id) && completed(&item.id)) {
            let Some(key) = &item.key else { continue };
            let ids = expected.entry(key).or_default();
            if !ids.contains(&&*item.id) {
                ids.push(&item.id);
            }
        }
        let text = |value: &bytes::Bytes| String::from_utf8_lossy(value).into_owned();
        let lists: BTreeMap<&str, String> =
            stored.state.iter().filter_map(|(key, value)| Some((key.strip_prefix("key/")?, text(value)))).collect();
        ensure(lists.keys().eq(expected.keys()), || format!("{unit}: lists of {lists:?}, not of {expected:?}"))?;
        for (key, ids) in expected {
            let mut found: Vec<&str> = lists[key].split_whitespace().collect();
            let (mut ordered, mut wanted) = (found.clone(), ids.clone());
            ordered.retain(|id| !died(id));
            wanted.retain(|id| !died(id));
            let in_order = scenario.ordering() == Ordering::None || ordered == wanted;
            ensure(in_order, || format!("{unit}: {key} is {ordered:?}, not {wanted:?}"))?;
            found.sort_unstable();
            let mut ids = ids;
            ids.sort_unstable();
            ensure(found == ids, || format!("{unit}: {key} holds {found:?}, not {ids:?}"))?;
        }
        let seen = stored.state.keys().filter(|key| key.starts_with("seen/")).count();
        let any = stored.state.contains_key("total");
        ensure(seen == usize::from(any), || format!("{unit}: {seen} events were seen last"))?;
    }
    Ok(())
}

/// Events are dead-lettered for the right reason, after exactly the attempts that their policy allows.
fn letters_are_right(scenario: &Scenario, snapshot: &Snapshot, world: &World) -> Result {
    let attempts = scenario.attempts();
    for (id, (plan, times)) in events(scenario) {
        let letters: Vec<_> = snapshot.letters_of(id).collect();
        let overflowed = letters.iter().filter(|letter| letter.reason.starts_with("parked-limit")).count();
        ensure(overflowed == 0 || scenario.may_overflow(), || {
            format!("{id}: the limit of parked records is not reached")
        })?;
        let (expected, category) = match plan {
            Plan::Emit(_) => (None, Category::Unknown),
            Plan::Recover(n) | Plan::Forbidden(n) if n < attempts => (None, Category::Transient),
            Plan::Recover(_) | Plan::Forbidden(_) => (Some(attempts), Category::Transient),
            Plan::Fail(category) if category.is_retried() => (Some(attempts), category),
            Plan::Fail(category) => (Some(1), category),
            Plan::Hang | Plan::Refused => (Some(attempts), Category::Unknown),
        };
        for letter in letters.iter().filter(|letter| !letter.reason.starts_with("parked-limit")) {
            let found = (Some(letter.attempts), letter.category);
            ensure(found == (expected, category), || {
                format!("{id}: dead after {found:?} ({}), not {expected:?} {category}", letter.reason)
            })?;
        }
        for letter in &letters {
            let ran = world.ran.get(id).is_some_and(|ran| ran.contains(&letter.revision));
            // What the log refused, or what gave way to others, fails later than its handler was called.
            let later = matches!(plan, Plan::Refused | Plan::Forbidden(_)) || letter.reason.starts_with("parked-limit");
            ensure(ran || later, || format!("{id}: revision {} never handled it", letter.revision))?;
        }
        let expected = if expected.is_some() { times } else { overflowed };
        ensure(letters.len() == expected, || format!("{id}: {} letters, not {expected} ({plan:?})", letters.len()))?;
    }
    for item in scenario.published.iter().filter(|item| item.kind == Kind::Undecodable) {
        let letters: Vec<_> = snapshot.letters_of(&item.id).map(|l| (l.attempts, l.category)).collect();
        ensure(letters == [(0, Category::Invalid)], || format!("{}: letters {letters:?}", item.id))?;
    }
    Ok(())
}

/// Outputs with one key are in the order of the events they came from. Events that failed for good are left out.
fn order_is_kept(scenario: &Scenario, snapshot: &Snapshot) -> Result {
    if scenario.ordering() == Ordering::None {
        return Ok(());
    }
    let mut place = BTreeMap::new();
    for (at, item) in scenario.published.iter().enumerate() {
        place.entry(item.id.as_str()).or_insert(at);
    }
    let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (key, id) in snapshot.outputs.iter().flatten() {
        let Some(key) = key else { continue };
        if snapshot.letters_of(id).next().is_some() {
            continue;
        }
        let at = place[id.as_str()];
        if let Some((before, earlier)) = last.insert(key, (at, id)) {
            ensure(before <= at, || format!("key {key}: the output of {id} follows that of {earlier}"))?;
        }
    }
    Ok(())
}

/// A handler is not called more often than the policy allows, but for what a crash or an abort made happen again.
fn attempts_are_bounded(scenario: &Scenario, world: &World) -> Result {
    let is_refused = |kind| matches!(kind, Kind::Event(Plan::Refused | Plan::Forbidden(_)));
    let refused = scenario.published.iter().any(|item| is_refused(item.kind));
    if !scenario.is_calm() || !scenario.is_undisturbed() || refused || world.mended {
        return Ok(());
    }
    for (id, (plan, times)) in events(scenario) {
        let allowed = match plan {
            Plan::Emit(_) | Plan::Fail(Category::Invalid | Category::Rejected) => 1,
            Plan::Recover(n) => (n + 1).min(scenario.attempts()),
            _ => scenario.attempts(),
        };
        let allowed = allowed * u32::try_from(times).expect("few");
        let calls = world.calls.get(id).copied().unwrap_or(0);
        ensure(calls <= allowed, || format!("{id}: called {calls} times, not {allowed}"))?;
    }
    Ok(())
}

/// When nothing else goes wrong, an event whose key never fails is settled soon, whatever other keys do, and whoever owned the
/// partition before: soon after it was published, or after its partition got an owner that can get on. Answers whether there was
/// such an event behind one that was attempted again.
fn healthy_keys_are_not_delayed(scenario: &Scenario, world: &World) -> Result<bool> {
    const SOON: Duration = Duration::from_millis(500);
    let blocking = |plan: Plan| matches!(plan, Plan::Hang | Plan::Refused | Plan::Forbidden(_));
    let pausing = !scenario.may_overflow() && scenario.settings.parked.limit < 1000;
    let disturbed = scenario.published.iter().any(|item| matches!(item.kind, Kind::Event(plan) if blocking(plan)));
    if !scenario.is_calm() || disturbed || pausing || scenario.settings.breaker.enabled {
        return Ok(false);
    }
    if scenario.ordering() == Ordering::Partition {
        return Ok(false);
    }
    let failing = |item: &&Published| !matches!(item.kind, Kind::Event(Plan::Emit(_)) | Kind::Filtered);
    let keys: BTreeSet<_> = scenario.published.iter().filter(failing).map(|item| item.key.clone()).collect();
    let ids: BTreeSet<_> = scenario.published.iter().filter(failing).map(|item| item.id.clone()).collect();
    let retried = scenario.published.iter().filter(|item| is_retried(scenario, item));
    let retried: BTreeSet<&str> = retried.map(|item| item.id.as_str()).collect();
    let mut behind_failing = false;
    for (partition, records) in world.topics[&source()].iter().enumerate() {
        let mut failed_before = false;
        for (offset, record) in records.iter().enumerate() {
            let key = record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
            let id = record.headers.last("ce_id").map(|id| String::from_utf8_lossy(&id).into_owned());
            failed_before |= id.as_deref().is_some_and(|id| retried.contains(id));
            if (key.is_some() && keys.contains(&key)) || id.is_none_or(|id| ids.contains(&id)) {
                continue;
            }
            let place = (u32::try_from(partition).expect("few"), offset as u64);
            let delay = world.settled_at.get(&place).map(|(at, owned)| at.since(record.timestamp.max(*owned)));
            ensure(delay.is_some_and(|delay| delay < SOON), || format!("{place:?} of key {key:?} took {delay:?}"))?;
            behind_failing |= failed_before;
        }
    }
    Ok(behind_failing)
}

/// Whether other events of its key have to wait for this one.
fn is_retried(scenario: &Scenario, item: &Published) -> bool {
    let fails = match item.kind {
        Kind::Event(Plan::Recover(_)) => true,
        Kind::Event(Plan::Fail(category)) => category.is_retried(),
        _ => false,
    };
    fails && item.key.is_some() && scenario.ordering() == Ordering::Key && scenario.attempts() > 1
}
