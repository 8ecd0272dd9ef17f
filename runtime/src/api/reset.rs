//! Where a function goes on is set by a person, after a look at what that means.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use millrace_core::access::Caller;
use millrace_core::name::{FunctionName, Unit};
use millrace_core::progress::StreamProgress;
use millrace_core::revision::{Action, Place};
use millrace_core::time::Timestamp;

use super::audit::Trail;
use super::deploy::change;
use super::problem::{Kind, Refusal};
use super::request::function_of;
use super::types::{ResetAnswer, ResetPartition, ResetRequest};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, Spot, UnitInfo};
use crate::worker::Revision;

/// Partitions that the log is asked about at the same time.
const LOOKED_AT_ONCE: usize = 8;

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
    let remembered_since = api.clock.now() - window;
    let looking = units.iter().cloned().map(|info| look(&*api.broker, info, spot, remembered_since));
    let partitions: Vec<ResetPartition> = stream::iter(looking).buffered(LOOKED_AT_ONCE).try_collect().await?;
    let places = units.iter().zip(&partitions).map(|(info, found)| {
        let Unit { topic, partition, .. } = &info.unit;
        Place { topic: topic.clone(), partition: *partition, offset: found.to, oldest: spot == Spot::Earliest }
    });
    let positions: Vec<Place> = places.collect();
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

/// What it means for a unit to go on there. What was published from a time on has its keys remembered.
async fn look<B: Catalog>(
    broker: &B,
    info: UnitInfo,
    spot: Spot,
    remembered_since: Timestamp,
) -> Result<ResetPartition, Refusal> {
    let (topic, partition) = (&info.unit.topic, info.unit.partition);
    let earliest = broker.find(topic, partition, Spot::Earliest).await?;
    let to = match spot {
        Spot::Earliest => earliest,
        spot => broker.find(topic, partition, spot).await?,
    };
    if let Spot::Offset(_) = spot {
        // A position where nothing is, or will be next, would make the partition wait for ever.
        let next = broker.find(topic, partition, Spot::Latest).await?;
        if !(earliest..=next).contains(&to) {
            let reason = format!("{topic}/{partition} has no offset {to}: choose one from {earliest} to {next}");
            return Err(Refusal::malformed(reason));
        }
    }
    let since = broker.find(topic, partition, Spot::Time(remembered_since)).await?;
    let source = &info.progress.source;
    Ok(ResetPartition {
        topic: topic.to_string(),
        partition,
        from: source.resume,
        to,
        again: behind(source, to),
        within_window: behind(source, to.max(since)),
        passed_over: waiting(source, earliest, to),
    })
}

/// Offsets from this one on that the function has behind it: they are settled, or lie before the place where it began.
fn behind(progress: &StreamProgress, offset: u64) -> u64 {
    let above = progress.settled_above.iter().map(|range| range.end.saturating_sub(range.start.max(offset)));
    progress.resume.saturating_sub(offset) + above.sum::<u64>()
}

/// Offsets below `to` that wait to be settled, and are there.
fn waiting(progress: &StreamProgress, earliest: u64, to: u64) -> u64 {
    progress.unsettled_below(to) - progress.unsettled_below(earliest.min(to))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_and_what_is_passed_over() {
        // It was told before to go on from 10, and what is before comes again all the same.
        let progress =
            StreamProgress { start: 10, resume: 20, settled_above: vec![22..25], ..StreamProgress::default() };
        for (earliest, to, again, passed_over) in [
            (0, 0, 23, 0),
            (5, 5, 18, 0),
            (0, 10, 13, 0),
            (0, 15, 8, 0),
            (0, 20, 3, 0),
            (0, 22, 3, 2),
            (0, 24, 1, 2),
            (0, 25, 0, 2),
            (0, 30, 0, 7),
            // Some of those that wait are gone.
            (27, 30, 0, 3),
            (40, 30, 0, 0),
        ] {
            let found = (behind(&progress, to), waiting(&progress, earliest, to));
            assert_eq!(found, (again, passed_over), "from {earliest} to {to}");
        }
    }
}
