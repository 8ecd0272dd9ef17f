//! When a staged revision becomes active, or the canary, and which components are needed no more.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_core::digest::Digest;
use millrace_core::name::FunctionName;
use millrace_core::revision::{Action, History};
use millrace_core::time::Timestamp;
use tokio::time::Instant;

use super::revisions::Revisions;
use crate::api::types::{INSTANCE_LIVE_FOR, InstanceReport};
use crate::api::{Decided, Refused};
use crate::broker::{Error, Log, Report};
use crate::registry::lock;

/// So long instances are waited for that have not made it ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How much longer others wait than the instance that staged it, in case that one is gone.
const OTHERS_WAIT: Duration = Duration::from_secs(5);
/// Revisions of a function whose components are kept.
const KEPT_REVISIONS: usize = 20;

/// What an instance, or all of them together, made of a staged revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// Some live instances are not that far.
    Waiting,
    /// Each live instance has made it ready or failed to, and one at least has made it ready.
    Ready,
    /// It runs nowhere.
    Failed,
}

impl Readiness {
    /// Whether an instance activates a revision that is ready there, and that it knows since then. Others leave that to the instance that
    /// staged it, unless that one is gone.
    fn activates(self, since: Duration, is_own: bool) -> bool {
        let waited = since.checked_sub(if is_own { Duration::ZERO } else { OTHERS_WAIT });
        waited.is_some_and(|waited| match self {
            Self::Ready => true,
            Self::Waiting => waited >= READY_WITHIN,
            Self::Failed => false,
        })
    }
}

/// What the live instances said last.
fn live(reports: &[Report], now: Timestamp) -> Vec<InstanceReport> {
    let live = reports.iter().filter(|report| now.since(report.at) < INSTANCE_LIVE_FOR);
    let said = live.filter_map(|report| serde_json::from_slice::<InstanceReport>(&report.content).ok());
    said.filter(|report| !report.ended).collect()
}

/// What they make of a staged revision.
fn readiness(live: &[InstanceReport], function: &FunctionName, revision: u64) -> Readiness {
    let mut any = false;
    let mut ready = false;
    for report in live {
        let here = report.functions.get(&function.to_string()).cloned().unwrap_or_default();
        any = true;
        if here.ready == Some(revision) {
            ready = true;
        } else if here.cannot_run(revision).is_none_or(|cannot| cannot.again) {
            return Readiness::Waiting;
        }
    }
    match (any, ready) {
        (_, true) => Readiness::Ready,
        (true, false) => Readiness::Failed,
        (false, false) => Readiness::Waiting,
    }
}

impl<L: Log> Revisions<L> {
    /// Activates staged revisions that the instances have made ready, or makes canaries of them. Says whether some are left.
    pub(super) async fn activate_staged(&self) -> bool {
        let staged: Vec<(FunctionName, u64, Action)> = {
            let known = lock(&self.known);
            let staged = known.histories.iter().filter_map(|(name, history)| {
                let (revision, _) = history.staged()?;
                Some((name.clone(), revision, history.next()?))
            });
            staged.collect()
        };
        if staged.is_empty() {
            return false;
        }
        let live = match self.log.reports().await {
            Ok(reports) => live(&reports, self.clock.now()),
            Err(error) => {
                tracing::warn!(%error, "What instances say cannot be read; trying again.");
                return true;
            }
        };
        let mut any = false;
        for (function, revision, next) in staged {
            if self.may_activate(&live, &function, revision) {
                match self.propose(&function, next, None, "").await {
                    Ok(Decided { new: true, .. }) => any = true,
                    // Another instance was quicker, or somebody has decided otherwise.
                    Ok(_) | Err(Refused::Impossible { .. }) => {}
                    Err(error) => tracing::warn!(%function, revision, %error, "A revision cannot be activated yet."),
                }
            }
        }
        if any {
            self.remove_what_is_not_needed().await;
        }
        true
    }

    fn may_activate(&self, live: &[InstanceReport], function: &FunctionName, revision: u64) -> bool {
        let (is_ready_here, since, is_own) = {
            let here = lock(&self.here);
            let is_ready = here.ready.get(function).is_some_and(|(ready, _)| *ready == revision);
            let since = here.staged_since.get(&(function.clone(), revision)).copied();
            (is_ready, since.unwrap_or_else(Instant::now), here.proposed.get(function) == Some(&revision))
        };
        is_ready_here && readiness(live, function, revision).activates(since.elapsed(), is_own)
    }

    /// Removes components that only revisions have which nobody can go back to.
    pub(super) async fn remove_what_is_not_needed(&self) {
        if let Err(error) = self.try_to_remove_what_is_not_needed().await {
            tracing::warn!(%error, "Components that no kept revision needs cannot be removed; later.");
        }
    }

    async fn try_to_remove_what_is_not_needed(&self) -> Result<(), Error> {
        let removable = self.removable();
        if removable.is_empty() {
            return Ok(());
        }
        for digest in self.log.components().await?.into_iter().filter(|digest| removable.contains(digest)) {
            // Somebody may have deployed it again a moment ago.
            self.refresh().await?;
            if self.removable().contains(&digest) {
                self.log.remove_component(digest).await?;
                tracing::info!(%digest, "A component that no kept revision needs was removed.");
            }
        }
        Ok(())
    }

    /// What may be removed, as far as is known here.
    fn removable(&self) -> BTreeSet<Digest> {
        if self.knows_all() { removable(lock(&self.known).histories.values()) } else { BTreeSet::new() }
    }
}

/// The components of revisions that are not kept, unless one that is kept has the same.
fn removable<'a>(histories: impl Iterator<Item = &'a History> + Clone) -> BTreeSet<Digest> {
    let kept: BTreeSet<Digest> = histories
        .clone()
        .flat_map(|history| history.kept(KEPT_REVISIONS).into_values().map(|source| source.component))
        .collect();
    let all = histories.flat_map(|history| history.revisions().map(|(_, source)| source.component));
    all.filter(|digest| !kept.contains(digest)).collect()
}

#[cfg(test)]
mod tests {
    use millrace_core::revision::{Change, Origin, Source};
    use serde_json::json;

    use super::*;

    fn report(instance: &str, at: u64, here: &serde_json::Value, ended: bool) -> Report {
        let content = json!({ "functions": { "shop.pay": here }, "ended": ended }).to_string();
        Report { instance: instance.to_owned(), at: Timestamp::from_millis(at), content: content.into(), own: false }
    }

    #[test]
    fn a_revision_is_ready_once_each_live_instance_has_said_so() {
        let function: FunctionName = "shop.pay".parse().unwrap();
        let cannot = |revisions: &[u64]| {
            let told = revisions.iter().map(|revision| json!({"revision": revision, "reason": "no"}));
            json!({ "revision": 1, "cannot_run": told.collect::<Vec<_>>() })
        };
        let (ready, behind, failed) = (json!({"ready": 3}), json!({"revision": 2}), cannot(&[2, 3]));
        let tries = json!({"cannot_run": [{"revision": 3, "reason": "not yet", "again": true}]});
        for (reports, expected) in [
            (vec![], Readiness::Waiting),
            (vec![report("a", 90_000, &ready, false)], Readiness::Ready),
            (vec![report("a", 90_000, &behind, false)], Readiness::Waiting),
            (vec![report("a", 90_000, &ready, false), report("b", 90_000, &behind, false)], Readiness::Waiting),
            // Said nothing for a long time, or that it has ended.
            (vec![report("a", 90_000, &ready, false), report("b", 70_000, &behind, false)], Readiness::Ready),
            (vec![report("a", 90_000, &ready, false), report("b", 90_000, &behind, true)], Readiness::Ready),
            (vec![report("a", 90_000, &ready, false), report("b", 90_000, &failed, false)], Readiness::Ready),
            (vec![report("a", 90_000, &failed, false), report("b", 90_000, &failed, false)], Readiness::Failed),
            (vec![report("a", 90_000, &json!({"ready": 2}), false)], Readiness::Waiting),
            (vec![report("a", 90_000, &cannot(&[2]), false)], Readiness::Waiting),
            (vec![report("a", 90_000, &ready, false), report("b", 90_000, &tries, false)], Readiness::Waiting),
        ] {
            let found = readiness(&live(&reports, Timestamp::from_millis(100_000)), &function, 3);
            assert_eq!(found, expected, "{reports:?}");
        }
    }

    #[test]
    fn a_slow_instance_is_waited_for_and_whoever_staged_it_comes_first() {
        let (none, second) = (Duration::ZERO, Duration::from_secs(1));
        for (readiness, is_own, since, expected) in [
            (Readiness::Ready, true, none, true),
            (Readiness::Ready, false, OTHERS_WAIT - second, false),
            (Readiness::Ready, false, OTHERS_WAIT, true),
            (Readiness::Waiting, true, READY_WITHIN - second, false),
            (Readiness::Waiting, true, READY_WITHIN, true),
            (Readiness::Waiting, false, READY_WITHIN, false),
            (Readiness::Waiting, false, READY_WITHIN + OTHERS_WAIT, true),
            (Readiness::Failed, true, READY_WITHIN * 9, false),
        ] {
            assert_eq!(readiness.activates(since, is_own), expected, "{readiness:?} {is_own} {since:?}");
        }
    }

    #[test]
    fn a_component_is_kept_as_long_as_one_kept_revision_has_it() {
        let history = |components: &[u32]| {
            let mut history = History::default();
            for (number, component) in (1..).step_by(2).zip(components) {
                let component = Digest::of(&component.to_be_bytes());
                let source =
                    Source { component, manifest: number.to_string(), origin: Origin::Upload, signature: None };
                for (number, action) in
                    [(number, Action::Deploy(source)), (number + 1, Action::Activate { revision: number })]
                {
                    history.apply(number, &Change::new(action, Timestamp::EPOCH, "").encode());
                }
            }
            history
        };
        let most = u32::try_from(KEPT_REVISIONS).unwrap();
        let long: Vec<u32> = (0..most + 3).collect();
        let digests = |numbers: &[u32]| numbers.iter().map(|n| Digest::of(&n.to_be_bytes())).collect::<BTreeSet<_>>();
        assert_eq!(removable([history(&long[..KEPT_REVISIONS])].iter()), BTreeSet::new());
        assert_eq!(removable([history(&long)].iter()), digests(&[0, 1, 2]));
        // Another function has one of them.
        assert_eq!(removable([history(&long), history(&[1])].iter()), digests(&[0, 2]));
    }
}
