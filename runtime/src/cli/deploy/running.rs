//! Waiting until the instances run what was decided.

use std::time::Duration;

use millrace_core::revision::Origin;
use tokio::time::Instant;

use crate::api::types::{Deployed, Instance, Revisions};
use crate::cli::client::{Client, Refusal, Target, patiently};
use crate::cli::error::{Error, Exit};
use crate::cli::format;
use crate::cli::output::Console;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What was deployed of a function; none if nothing ever was.
pub(crate) async fn revisions(client: &Client, function: &str) -> Result<Option<Revisions>, Error> {
    let target = Target::new(["v1", "functions", function, "revisions"]);
    match patiently(|| client.get(&target)).await {
        Ok(revisions) => Ok(Some(revisions)),
        Err(Refusal::Problem { problem, .. }) if problem.status == 404 => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// How far an instance is.
#[derive(Debug, PartialEq, Eq)]
enum Far {
    Done,
    Behind,
    Failed(String),
}

/// Waits until all live instances do what a deployment says, or something else was deployed since.
pub(crate) async fn wait(
    client: &Client,
    deployed: &Deployed,
    until: Instant,
    console: &mut Console,
) -> Result<(), Error> {
    loop {
        let Some(revisions) = revisions(client, &deployed.function).await? else {
            return Err(Error::failed(format_args!("{} is not deployed any more", deployed.function), ""));
        };
        let staged = deployed.revision.is_some() && revisions.staged == deployed.revision;
        if revisions.active != deployed.revision && !staged && !is_canary(&revisions, deployed.revision) {
            let cause =
                format!("{}: something else was decided meanwhile, deployment {}", deployed.function, revisions.latest);
            let fix = format!("`millrace functions history {}` tells what", deployed.function);
            return Err(Error::failed(cause, fix));
        }
        let live: Vec<&Instance> = revisions.instances.iter().filter(|one| concerns(one, &revisions)).collect();
        let far: Vec<Far> = live.iter().map(|one| far(one, &revisions, deployed)).collect();
        // While it is staged, those that can run it will.
        if !staged || far.iter().all(|far| matches!(far, Far::Failed(_))) {
            for (one, far) in live.iter().zip(&far) {
                if let Far::Failed(problem) = far {
                    return Err(failed(deployed, one, problem));
                }
            }
        }
        let done = far.iter().filter(|far| **far == Far::Done).count();
        if done == far.len() && done > 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            let cause = format!("{}: {done} of {} instances are that far", deployed.function, far.len());
            let fix = format!("it is deployed; see `millrace functions show {}`", deployed.function);
            return Err(Error::new(Exit::TimedOut, cause, fix));
        }
        console.progress(format_args!("{}: {done} of {} instances are that far", deployed.function, far.len()))?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn failed(deployed: &Deployed, on: &Instance, problem: &str) -> Error {
    let goes_on = on
        .here
        .revision
        .map_or_else(|| "it does not run there".to_owned(), |revision| format!("revision {revision} goes on there"));
    let (instance, problem) = (format::one_line(&on.instance, 100), format::one_line(problem, 1000));
    let cause = format!("{} on instance {instance}: {problem}; {goes_on}", deployed.function);
    let fix = format!("`millrace functions show {}` tells of all instances", deployed.function);
    Error::failed(cause, fix)
}

/// Whether an instance is waited for. What runs from a directory runs where that directory is.
fn concerns(instance: &Instance, wanted: &Revisions) -> bool {
    instance.live && (!is_of_directory(wanted) || wanted.staged.is_some() || instance.here.revision.is_some())
}

/// Whether the active revision is one that processes run from a directory.
fn is_of_directory(revisions: &Revisions) -> bool {
    revisions.active_deployment().is_some_and(|active| active.origin == Some(Origin::Directory))
}

fn is_canary(revisions: &Revisions, revision: Option<u64>) -> bool {
    revisions.canary.as_ref().is_some_and(|canary| Some(canary.revision) == revision)
}

fn far(instance: &Instance, wanted: &Revisions, deployed: &Deployed) -> Far {
    let (here, revision) = (&instance.here, deployed.revision);
    // An older version does not tell what it has taken up.
    if here.deployment.is_some_and(|taken_up| taken_up < deployed.number) {
        return Far::Behind;
    }
    let cannot = |revision: Option<u64>| here.cannot_run(revision?).filter(|cannot| !cannot.again);
    if let Some(cannot) = cannot(revision) {
        return Far::Failed(cannot.reason.clone());
    }
    if is_canary(wanted, revision) {
        return match cannot(wanted.active) {
            _ if here.canary == wanted.canary => Far::Done,
            // It would stand beside that.
            Some(active) => Far::Failed(format!("revision {}: {}", active.revision, active.reason)),
            None => Far::Behind,
        };
    }
    if wanted.canary.is_none() && here.canary.is_some() {
        return Far::Behind;
    }
    let runs = here.revision == revision || (is_of_directory(wanted) && revision == wanted.active);
    if runs && (here.paused == wanted.paused || wanted.active.is_none()) { Far::Done } else { Far::Behind }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Canary, CannotRun, FunctionHere};

    fn cannot_run((revision, reason): (u64, &str)) -> CannotRun {
        CannotRun { revision, reason: reason.to_owned(), again: false }
    }

    #[test]
    fn an_instance_is_done_once_it_does_what_is_wanted() {
        let wanted = |active, paused| Revisions {
            function: "shop.pay".to_owned(),
            state: "active".to_owned(),
            latest: 3,
            active,
            staged: None,
            staged_share: None,
            canary: None,
            figures: Vec::new(),
            previous: None,
            paused,
            deployments: Vec::new(),
            instances: Vec::new(),
        };
        let at = |revision, paused, problem: Option<(u64, &str)>| Instance {
            instance: "a".to_owned(),
            at: String::new(),
            live: true,
            asked: false,
            here: FunctionHere {
                revision,
                paused,
                cannot_run: problem.into_iter().map(cannot_run).collect(),
                deployment: Some(3),
                ..FunctionHere::default()
            },
        };
        let again = |mut instance: Instance| {
            instance.here.cannot_run[0].again = true;
            instance
        };
        let deployed = |revision| Deployed { function: "shop.pay".to_owned(), number: 3, revision, new: true };
        for (instance, wanted, expected) in [
            (at(Some(3), false, None), wanted(Some(3), false), Far::Done),
            (at(Some(2), false, None), wanted(Some(3), false), Far::Behind),
            (at(Some(2), false, Some((3, "no"))), wanted(Some(3), false), Far::Failed("no".to_owned())),
            // That was an earlier one.
            (at(Some(1), false, Some((2, "no"))), wanted(Some(3), false), Far::Behind),
            (at(None, false, None), wanted(Some(3), false), Far::Behind),
            (at(Some(3), false, None), wanted(Some(3), true), Far::Behind),
            (at(Some(3), true, None), wanted(Some(3), true), Far::Done),
            (again(at(Some(2), false, Some((3, "not yet")))), wanted(Some(3), false), Far::Behind),
            (at(None, false, None), wanted(None, false), Far::Done),
            (at(Some(3), true, None), wanted(None, false), Far::Behind),
        ] {
            assert_eq!(far(&instance, &wanted, &deployed(wanted.active)), expected, "{instance:?}");
        }
        // It runs the same revision since the swap before the last one.
        for (taken_up, expected) in [(Some(2), Far::Behind), (Some(4), Far::Done), (None, Far::Done)] {
            let runs = at(Some(3), false, None);
            let before = Instance { here: FunctionHere { deployment: taken_up, ..runs.here }, ..runs };
            assert_eq!(far(&before, &wanted(Some(3), false), &deployed(Some(3))), expected, "{taken_up:?}");
        }
        let canary = |share: &str| Some(Canary { revision: 5, share: share.to_owned() });
        let beside = |share: &str| Instance {
            here: FunctionHere { canary: canary(share), ..at(Some(3), false, None).here },
            ..at(None, false, None)
        };
        let with = Revisions { canary: canary("5%"), ..wanted(Some(3), false) };
        let cannot = at(Some(3), false, Some((5, "no")));
        for (instance, wanted, revision, expected) in [
            (beside("5%"), with.clone(), 5, Far::Done),
            (beside("9%"), with.clone(), 5, Far::Behind),
            (at(Some(3), false, None), with.clone(), 5, Far::Behind),
            (cannot.clone(), with.clone(), 5, Far::Failed("no".to_owned())),
            // What it would stand beside does not run.
            (at(Some(1), false, Some((3, "no"))), with.clone(), 5, Far::Failed("revision 3: no".to_owned())),
            // What else is done to the function does not wait for a canary that cannot run.
            (cannot, with, 3, Far::Done),
            // It was given up.
            (beside("5%"), wanted(Some(3), false), 3, Far::Behind),
        ] {
            assert_eq!(far(&instance, &wanted, &deployed(Some(revision))), expected, "{instance:?}");
        }
    }
}
