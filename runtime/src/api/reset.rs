//! Where a function goes on is set by a person, after a look at what that means.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use millrace_core::access::Caller;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::progress::StreamProgress;
use millrace_core::revision::{Action, Place};

use super::audit::Trail;
use super::deploy::change;
use super::problem::{Kind, Refusal};
use super::request::function_of;
use super::types::{ResetAnswer, ResetPartition, ResetRequest};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, Spot, UnitInfo};
use crate::worker::Revision;

/// `POST /v1/functions/{function}/reset`
pub(super) async fn reset<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<ResetAnswer>, Refusal> {
    let name = function_of(function)?;
    let asked: ResetRequest = api.json_request(request).await?;
    trail.rehearses(asked.dry_run);
    let settings = api.function(&name, &caller)?.settings;
    api.reaches_topics_of(&caller, &settings)?;
    let spot: Spot = asked.from.parse().map_err(|e| Refusal::malformed(format_args!("`from`: {e}")))?;
    let mut units = api.broker.units(&name).await?;
    units.retain(|info| settings.topics.contains(&info.unit.topic));
    let units = chosen(units, &asked, &name, spot)?;
    let window = settings.idempotency.window;
    let remembered_since = Spot::Time(api.clock.now() - window);
    let (mut partitions, mut positions) = (Vec::with_capacity(units.len()), Vec::with_capacity(units.len()));
    for info in &units {
        let (topic, partition) = (&info.unit.topic, info.unit.partition);
        let to = api.broker.find(topic, partition, spot).await?;
        check_bounds(&*api.broker, topic, partition, to).await?;
        let since = api.broker.find(topic, partition, remembered_since).await?;
        partitions.push(described(info, to, since));
        positions.push(Place { topic: topic.clone(), partition, offset: to });
    }
    trail.topics(settings.topics.iter().filter(|topic| positions.iter().any(|place| place.topic == **topic)));
    let action = Action::Reset { positions, forget: asked.forget };
    let ResetRequest { forget, dry_run, builds_on, .. } = asked;
    let Json(types::Deployed { number, .. }) =
        change(&api, (&caller, &trail), name.clone(), action, builds_on, dry_run).await?;
    let sum = |of: fn(&ResetPartition) -> u64| partitions.iter().map(of).sum();
    let answer = ResetAnswer {
        function: name.to_string(),
        number,
        dry_run,
        forget,
        window_seconds: window.as_secs_f64(),
        again: sum(|one| one.again),
        within_window: sum(|one| one.within_window),
        passed_over: sum(|one| one.passed_over),
        partitions,
    };
    let keys = if forget { ", idempotency keys forgotten" } else { "" };
    let (from, again, passed) = (&asked.from, answer.again, answer.passed_over);
    trail.detail(format_args!("deployment {number}, from {from}: {again} again, {passed} passed over{keys}"));
    Ok(Json(answer))
}

/// The units that are meant. An offset means one partition.
fn chosen(
    mut units: Vec<UnitInfo>,
    asked: &ResetRequest,
    function: &FunctionName,
    spot: Spot,
) -> Result<Vec<UnitInfo>, Refusal> {
    let topics: Vec<String> = units.iter().map(|info| info.unit.topic.to_string()).collect();
    if let Some(topic) = &asked.topic {
        units.retain(|info| info.unit.topic.as_str() == topic);
        if units.is_empty() {
            let mut topics: Vec<String> = topics.iter().map(|name| format!("`{name}`")).collect();
            topics.dedup();
            let reason = format!("`{function}` reads no topic `{topic}`, only {}", topics.join(", "));
            return Err(Refusal::new(Kind::UnknownTopic, reason));
        }
    }
    if let Some(partition) = asked.partition {
        units.retain(|info| info.unit.partition == partition);
        if units.is_empty() {
            let reason = format!("no topic that `{function}` reads has a partition {partition}");
            return Err(Refusal::new(Kind::UnknownPartition, reason));
        }
    }
    if let (Spot::Offset(_), [_, _, ..]) = (spot, &units[..]) {
        let reason =
            format!("an offset means one partition, and there are {}: name `topic` and `partition`", units.len());
        return Err(Refusal::malformed(reason));
    }
    Ok(units)
}

/// A position where nothing is, or will be next, would make the partition wait for ever.
async fn check_bounds<B: Catalog>(broker: &B, topic: &Topic, partition: u32, to: u64) -> Result<(), Refusal> {
    let earliest = broker.find(topic, partition, Spot::Earliest).await?;
    let next = broker.find(topic, partition, Spot::Latest).await?;
    if (earliest..=next).contains(&to) {
        return Ok(());
    }
    let reason = format!("{topic}/{partition} has no offset {to}: choose one from {earliest} to {next}");
    Err(Refusal::malformed(reason))
}

/// What it means for a unit to go on there. What was published from `since` on has its keys remembered.
fn described(info: &UnitInfo, to: u64, since: u64) -> ResetPartition {
    let source = &info.progress.source;
    ResetPartition {
        topic: info.unit.topic.to_string(),
        partition: info.unit.partition,
        from: source.resume,
        to,
        again: settled_from(source, to),
        within_window: settled_from(source, to.max(since)),
        passed_over: source.unsettled_below(to),
    }
}

/// Settled offsets from this one on.
fn settled_from(progress: &StreamProgress, offset: u64) -> u64 {
    let above = progress.settled_above.iter().map(|range| range.end.saturating_sub(range.start.max(offset)));
    // What the function never began with is not settled by it, though it lies before.
    progress.resume.saturating_sub(progress.start.max(offset)) + above.sum::<u64>()
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_and_what_is_passed_over() {
        let progress =
            StreamProgress { start: 10, resume: 20, settled_above: vec![22..25], ..StreamProgress::default() };
        for (to, again, passed_over) in
            [(0, 13, 0), (10, 13, 0), (15, 8, 0), (20, 3, 0), (22, 3, 2), (24, 1, 2), (25, 0, 2), (30, 0, 7)]
        {
            assert_eq!((settled_from(&progress, to), progress.unsettled_below(to)), (again, passed_over), "{to}");
        }
    }
}
