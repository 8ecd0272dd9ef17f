//! Functions and their accounts.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::{Extension, Json};
use futures::{StreamExt, TryStreamExt};
use millrace_core::access::Caller;
use millrace_core::breaker::Phase;
use millrace_core::name::{FunctionName, Unit};
use millrace_core::progress::{Stream, Totals};
use millrace_core::time::Timestamp;

use super::audit::Trail;
use super::problem::{Kind, Refusal};
use super::request::{function_of, no_query};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, GroupFigures, UnitInfo};
use crate::registry::FunctionInfo;
use crate::worker::{Attempts, Gone, Revision, Stopped, UnitStatus};

/// Functions whose figures are asked for at the same time.
const OBSERVED_AT_ONCE: usize = 8;

/// All that is known of one function at one time.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) function: FunctionInfo,
    /// By topic and partition.
    pub(super) units: Vec<UnitInfo>,
    pub(super) open_letters: u64,
    pub(super) group: GroupFigures,
    /// Why all of its units wait for an operator, if they do.
    pub(super) stopped: Option<String>,
    pub(super) at: Timestamp,
}

/// `GET /v1/functions` and `GET /v1/status`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Json<types::Status>, Refusal> {
    no_query(&uri, "ask for one function as /v1/functions/<application>.<function>")?;
    let sees = |name: &FunctionName| caller.reaches_function(name.as_str()).is_ok();
    let functions = api.observe(sees).await?.iter().map(Observed::status).collect();
    let refused = api.registry.refused().into_iter().filter(|(name, _)| sees(name));
    let refused = refused.map(|(name, reason)| types::RefusedFunction { name: name.to_string(), reason }).collect();
    Ok(Json(types::Status { state: api.state_for(sees).to_string(), functions, refused }))
}

/// `GET /v1/functions/{function}`
pub(super) async fn show<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    function: Result<Path<String>, PathRejection>,
) -> Result<Json<types::FunctionStatus>, Refusal> {
    let name = function_of(function)?;
    let function = api.function(&name, &caller)?;
    Ok(Json(api.observe_one(function).await?.status()))
}

/// There is no such function, but these.
pub(super) fn unknown(name: &FunctionName, there_are: &[FunctionName]) -> Refusal {
    let names: Vec<String> = there_are.iter().map(|name| format!("`{name}`")).collect();
    let fix = match &names[..] {
        [] => "none is: start the server on an application".to_owned(),
        _ => format!("choose one of {}", names.join(", ")),
    };
    Refusal::new(Kind::UnknownFunction, format_args!("no function `{name}` is known here; {fix}"))
}

impl<B: Broker, R: Revision> Shared<B, R> {
    /// The active function with this name.
    pub(super) fn function(&self, name: &FunctionName, caller: &Caller) -> Result<FunctionInfo, Refusal> {
        self.registry.function(name).ok_or_else(|| {
            if let Some(reason) = self.registry.refused().get(name) {
                return Refusal::new(Kind::UnknownFunction, format_args!("function `{name}` was refused: {reason}"));
            }
            let active = self.registry.functions();
            let names = active.iter().map(|info| info.settings.name.clone());
            let active: Vec<_> = names.filter(|name| caller.reaches_function(name.as_str()).is_ok()).collect();
            unknown(name, &active)
        })
    }
}

/// `POST /v1/functions/{function}/skip`
pub(super) async fn skip<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<types::SkipAnswer>, Refusal> {
    let name = function_of(function)?;
    let types::SkipRequest { dry_run } = api.json_request(request).await?;
    trail.rehearses(dry_run);
    let function = api.function(&name, &caller)?;
    api.reaches_topics_of(&caller, &function.settings)?;
    let mut partitions = Vec::new();
    for unit in function.units {
        let gone = if dry_run { unit.gone() } else { unit.skip().await };
        trail.topics(gone.as_ref().map(|_| &unit.unit().topic));
        partitions.extend(gone.map(|gone| skipped(unit.unit(), &gone)));
    }
    let records = partitions.iter().map(|skipped| skipped.records).sum();
    trail.detail(format_args!("{records} records"));
    Ok(Json(types::SkipAnswer { function: name.to_string(), dry_run, records, partitions }))
}

fn skipped(unit: &Unit, gone: &Gone) -> types::Skipped {
    types::Skipped {
        topic: unit.topic.to_string(),
        partition: unit.partition,
        redrive: gone.stream == Stream::Redrive,
        records: gone.records,
        from: gone.wanted,
        to: gone.earliest,
    }
}

impl<B: Broker + Catalog, R: Revision> Shared<B, R> {
    /// The functions that somebody sees, by name.
    pub(super) async fn observe(&self, sees: impl Fn(&FunctionName) -> bool) -> Result<Vec<Observed>, Refusal> {
        let mut seen = self.registry.functions();
        seen.retain(|function| sees(&function.settings.name));
        let observing = seen.into_iter().map(|function| self.observe_one(function));
        futures::stream::iter(observing).buffered(OBSERVED_AT_ONCE).try_collect().await
    }

    async fn observe_one(&self, function: FunctionInfo) -> Result<Observed, Refusal> {
        let name = &function.settings.name;
        let units = self.broker.units(name).await?;
        let open_letters = self.broker.open_letters(name).await?;
        let group = self.broker.group(name);
        let stopped = self.broker.stopped(name);
        Ok(Observed { function, units, open_letters, group, stopped, at: self.clock.now() })
    }
}

impl Observed {
    /// The live status of a unit, if its worker runs here.
    pub(super) fn live(&self, unit: &Unit) -> Option<&UnitStatus> {
        self.function.units.iter().find(|status| status.unit() == unit).map(|status| &**status)
    }

    /// As the API shows it.
    pub(super) fn status(&self) -> types::FunctionStatus {
        let FunctionInfo { settings, digest, revision, canary, breaker, paused, .. } = &self.function;
        let units: Vec<types::UnitStatus> = self.units.iter().map(|info| self.unit(info)).collect();
        let sum = |totals: fn(&UnitInfo) -> &Totals| self.units.iter().map(totals).fold(Totals::default(), plus);
        types::FunctionStatus {
            name: settings.name.to_string(),
            revision: *revision,
            component: digest.clone(),
            topics: settings.topics.iter().map(ToString::to_string).collect(),
            breaker: breaker_name(*breaker).to_owned(),
            paused: *paused,
            canary: canary.map(|(revision, share)| types::Canary { revision, share: share.to_string() }),
            revisions: self.function.attempts().iter().map(figures).collect(),
            totals: shown(sum(|info| &info.progress.source.totals)),
            redriven: shown(sum(|info| &info.progress.redrive.totals)),
            lag_records: self.units.iter().map(lag_records).sum(),
            lag_seconds: self.units.iter().map(|info| lag_seconds(info, self.at)).fold(0.0, f64::max),
            processable_lag: units.iter().map(|unit| unit.processable_lag).sum(),
            parked: units.iter().map(|unit| unit.parked).sum(),
            open_dead_letters: self.open_letters,
            balanced: self.units.iter().all(is_balanced),
            units,
        }
    }

    fn unit(&self, info: &UnitInfo) -> types::UnitStatus {
        let UnitInfo { unit, progress, source_next, .. } = info;
        let figures = self.live(unit).map(UnitStatus::figures);
        let parked = figures.as_ref().map_or(progress.parked.len(), |figures| figures.parked);
        types::UnitStatus {
            topic: unit.topic.to_string(),
            partition: unit.partition,
            start: progress.source.start,
            reset: progress.reset.number,
            resume: progress.source.resume,
            settled_above: progress.source.settled_above_count(),
            next: *source_next,
            totals: shown(progress.source.totals),
            lag_records: lag_records(info),
            lag_seconds: lag_seconds(info, self.at),
            processable_lag: processable_lag(info, parked),
            parked: parked as u64,
            redriven_lag: progress.redrive.unsettled_below(info.redrive_next),
            gone: self.live(unit).and_then(UnitStatus::gone).map_or(0, |gone| gone.records),
            stopped: self.stopped.clone().or_else(|| {
                figures.and_then(|figures| figures.stopped).map(|stopped| match stopped {
                    Stopped::Gone(gone) => format!("its position no longer exists: {gone}"),
                    Stopped::Refused(why) => format!("the log refuses even a dead letter: {why}"),
                })
            }),
        }
    }
}

/// What attempts came to, as the API shows it.
pub(super) fn figures(attempts: &Attempts) -> types::RevisionFigures {
    let Attempts { revision, failed, invoke } = attempts;
    let count = invoke.count();
    let among_all = |figure: f64| if count == 0 { 0.0 } else { figure / count as f64 };
    types::RevisionFigures {
        revision: *revision,
        completed: count.saturating_sub(*failed),
        failed_attempts: *failed,
        failure_rate: among_all(*failed as f64),
        invoke_mean_seconds: among_all(invoke.sum().as_secs_f64()),
        invoke_p50_seconds: invoke.quantile(0.5).as_secs_f64(),
        invoke_p99_seconds: invoke.quantile(0.99).as_secs_f64(),
    }
}

/// The word for what a breaker lets through.
pub(super) const fn breaker_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Closed => "closed",
        Phase::Open { .. } => "open",
        Phase::HalfOpen => "half-open",
    }
}

/// Records of both logs that are published and not settled.
pub(super) fn lag_records(info: &UnitInfo) -> u64 {
    info.progress.source.unsettled_below(info.source_next) + info.progress.redrive.unsettled_below(info.redrive_next)
}

/// Those of them that a handler can have now: neither held back behind failing keys nor markers of transactions.
pub(super) fn processable_lag(info: &UnitInfo, parked: usize) -> u64 {
    lag_records(info).saturating_sub(info.not_records).saturating_sub(parked as u64)
}

/// The age of the oldest record that is not settled.
pub(super) fn lag_seconds(info: &UnitInfo, now: Timestamp) -> f64 {
    info.oldest_unsettled_at.filter(|_| lag_records(info) > 0).map_or(0.0, |at| now.since(at).as_secs_f64())
}

/// Whether as many records are accounted for as the positions say, for both logs.
pub(super) fn is_balanced(info: &UnitInfo) -> bool {
    [&info.progress.source, &info.progress.redrive].into_iter().all(|stream| {
        let contiguous = stream.resume.checked_sub(stream.start);
        contiguous.and_then(|settled| settled.checked_add(stream.settled_above_count())) == Some(stream.totals.sum())
    })
}

fn plus(a: Totals, b: &Totals) -> Totals {
    Totals {
        completed: a.completed + b.completed,
        filtered: a.filtered + b.filtered,
        duplicate: a.duplicate + b.duplicate,
        dead_lettered: a.dead_lettered + b.dead_lettered,
        skipped: a.skipped + b.skipped,
        not_a_record: a.not_a_record + b.not_a_record,
    }
}

fn shown(totals: Totals) -> types::Totals {
    let Totals { completed, filtered, duplicate, dead_lettered, skipped, not_a_record } = totals;
    types::Totals { completed, filtered, duplicate, dead_lettered, skipped, not_a_record }
}

#[cfg(test)]
mod tests {
    use millrace_core::progress::{Progress, StreamProgress};

    use super::*;

    fn unit(resume: u64, above: &[std::ops::Range<u64>], completed: u64) -> UnitInfo {
        let unit = Unit { function: "a.b".parse().unwrap(), topic: "t".parse().unwrap(), partition: 0 };
        let totals = Totals { completed, ..Totals::default() };
        let source = StreamProgress { start: 10, resume, settled_above: above.to_vec(), totals };
        UnitInfo {
            unit,
            progress: Progress { source, ..Progress::default() },
            source_next: 40,
            oldest_unsettled_at: Some(Timestamp::from_millis(5_000)),
            redrive_next: 0,
            not_records: 0,
        }
    }

    #[test]
    fn accounts_balance_if_settlements_are_as_many_as_positions_say() {
        for (unit, expected) in [
            (unit(10, &[], 0), true),
            (unit(20, &[], 10), true),
            (unit(20, &[22..25, 30..31], 14), true),
            (unit(20, &[], 9), false),
            (unit(20, &[], 11), false),
            (unit(20, &[22..25, 30..31], 13), false),
            (unit(9, &[], 0), false),
        ] {
            assert_eq!(is_balanced(&unit), expected, "{unit:?}");
        }
        let mut redriven = unit(20, &[], 10);
        redriven.progress.redrive.resume = 1;
        assert!(!is_balanced(&redriven));
    }

    #[test]
    fn lag_counts_what_is_not_settled() {
        let now = Timestamp::from_millis(7_500);
        let lag = |info: &UnitInfo| (lag_records(info), lag_seconds(info, now));
        assert_eq!(lag(&unit(20, &[22..24, 25..26], 13)), (17, 2.5));
        assert_eq!(lag(&unit(40, &[], 30)), (0, 0.0));
        assert_eq!(lag(&UnitInfo { redrive_next: 3, ..unit(40, &[], 30) }), (3, 2.5));
    }

    #[test]
    fn what_is_held_back_or_no_record_cannot_be_processed_now() {
        let info = UnitInfo { not_records: 4, ..unit(20, &[22..23, 24..25], 12) };
        for (parked, expected) in [(0, 14), (5, 9), (14, 0), (100, 0)] {
            assert_eq!(processable_lag(&info, parked), expected, "{parked}");
        }
    }
}
