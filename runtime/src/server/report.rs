//! What an instance tells the others of itself, and staged revisions activated by what all of them have told.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::revisions::{Failed, Revisions};
use super::strays::Strays;
use crate::api::types::{self, AttemptsHere, CannotRun, InstanceReport};
use crate::broker::Log;
use crate::registry::lock;
use crate::worker::Attempts;

/// An instance says at least this often how it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether a staged revision can be activated.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A report is no larger because of what attempts came to: who says nothing counts as down.
const WITH_ATTEMPTS_MAX_BYTES: usize = 512 * 1024;

fn encoded(report: &InstanceReport) -> Bytes {
    serde_json::to_vec(report).unwrap_or_default().into()
}

/// What was said last, but for what attempts came to, which is no reason to say it again.
struct Reported {
    at: Instant,
    here: InstanceReport,
}

impl<L: Log> Revisions<L> {
    /// Tells others how it is here, and activates what all have made ready, until nothing changes here any more.
    pub(super) async fn tell(&self, mut is_done: watch::Receiver<bool>) {
        let (mut reported, mut strays) = (None, Strays::default());
        loop {
            self.report(&mut reported).await;
            self.remove_strays(&mut strays).await;
            let due = reported.as_ref().map_or_else(Instant::now, |said: &Reported| said.at) + REPORT_EVERY;
            let next = if self.activate_staged().await { due.min(Instant::now() + LOOK_EVERY) } else { due };
            tokio::select! {
                biased;
                _ = is_done.wait_for(|done| *done) => break,
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
        let ended = InstanceReport { ended: true, ..InstanceReport::default() };
        self.say(encoded(&ended)).await;
    }

    /// Tells others what runs here, if that has changed or was not said for a while.
    async fn report(&self, reported: &mut Option<Reported>) {
        let mut here = self.how_it_is();
        let said = |said: &Reported| said.here == here && said.at.elapsed() < REPORT_EVERY;
        if !reported.as_ref().is_some_and(said) {
            let stands = here.clone();
            self.add_attempts(&mut here);
            let mut content = encoded(&here);
            if content.len() > WITH_ATTEMPTS_MAX_BYTES {
                content = encoded(&stands);
            }
            self.say(content).await;
            *reported = Some(Reported { at: Instant::now(), here: stands });
        }
    }

    async fn say(&self, content: Bytes) {
        if let Err(error) = self.log.report(content).await {
            tracing::warn!(%error, "Others cannot be told what runs here.");
        }
    }

    fn how_it_is(&self) -> InstanceReport {
        let mut report = InstanceReport::default();
        for info in self.registry.functions() {
            let here = report.functions.entry(info.settings.name.to_string()).or_default();
            (here.revision, here.paused) = (Some(info.revision), info.paused);
            here.canary = info.canary.map(|(revision, share)| types::Canary { revision, share: share.to_string() });
        }
        let here = lock(&self.here);
        for (name, (revision, _)) in &here.ready {
            report.functions.entry(name.to_string()).or_default().ready = Some(*revision);
        }
        for (name, failed) in here.failed.iter().filter(|(_, failed)| !failed.is_empty()) {
            let told = |(revision, failed): (&u64, &Failed)| {
                let Failed { reason, again } = failed.clone();
                CannotRun { revision: *revision, reason, again }
            };
            report.functions.entry(name.to_string()).or_default().cannot_run = failed.iter().map(told).collect();
        }
        for (name, deployment) in &here.taken_up {
            report.functions.entry(name.to_string()).or_default().deployment = Some(*deployment);
        }
        report
    }

    /// What attempts came to here, which others add up.
    fn add_attempts(&self, report: &mut InstanceReport) {
        for info in self.registry.functions() {
            let attempts = info.compared_attempts();
            let told = attempts.iter().map(|Attempts { revision, failed, invoke }| AttemptsHere {
                revision: *revision,
                failed: *failed,
                seconds: invoke.sum().as_secs_f64(),
                durations: invoke.to_tell(),
            });
            report.functions.entry(info.settings.name.to_string()).or_default().attempts = told.collect();
        }
    }
}
