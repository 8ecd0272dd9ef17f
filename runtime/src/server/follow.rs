//! Follows what is deployed: each instance runs what was uploaded, whoever took the upload.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use millrace_core::limits;
use millrace_core::name::FunctionName;
use millrace_core::revision::{History, Origin, Source, State};
use tokio::sync::watch;
use tokio::time::Instant;

use super::revisions::{Failed, Revisions};
use super::stage::{StageError, Staged, intake, without_name};
use crate::api::types::InstanceReport;
use crate::broker::{Deployed, Error, Log};
use crate::registry::lock;
use crate::sandbox::Component;

/// An instance says at least this often how it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// When something is tried again that the log did not answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked whether a staged revision can be activated.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is to be done although nothing was deployed.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// When what failed is tried again.
    again: Option<Instant>,
    /// When staged revisions are looked at.
    look: Option<Instant>,
}

/// What was said last, and when.
struct Reported {
    at: Instant,
    content: Bytes,
}

impl<L: Log> Revisions<L> {
    /// Runs what was uploaded until now. What cannot run is remembered with its reason, and does not keep others from running.
    ///
    /// # Errors
    /// If the log could not be read.
    pub(super) async fn catch_up(&self) -> Result<(), Error> {
        let deployed = self.log.deployments(None).await?;
        self.take_over(&deployed).await;
        Ok(())
    }

    /// Runs what is uploaded from now on, until told to stop. What is begun then is finished.
    pub(super) async fn follow(self, mut stop: watch::Receiver<bool>) {
        let (mut seen, mut pending, mut reported) = (None, Pending::default(), None);
        while !*stop.borrow() {
            let report_at = reported.as_ref().map_or_else(Instant::now, |said: &Reported| said.at + REPORT_EVERY);
            let due = [Some(report_at), pending.again, pending.look].into_iter().flatten().min().unwrap_or(report_at);
            let deployed = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                deployed = self.log.deployments(seen) => Some(deployed),
                () = tokio::time::sleep_until(due) => None,
            };
            match deployed {
                Some(Ok(deployed)) => {
                    seen = Some(deployed.seen);
                    pending.again = self.take_over(&deployed).await.then(|| Instant::now() + AGAIN_AFTER);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "Deployments cannot be read; trying again.");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
                None if pending.again.is_some_and(|at| at <= Instant::now()) => (seen, pending.again) = (None, None),
                None => {}
            }
            self.report(&mut reported).await;
            pending.look = self.activate_staged().await.then(|| Instant::now() + LOOK_EVERY);
        }
        let ended = InstanceReport { ended: true, ..InstanceReport::default() };
        self.say(&serde_json::to_vec(&ended).unwrap_or_default().into()).await;
    }

    /// Runs what should run. Says whether something must be tried again.
    async fn take_over(&self, deployed: &Deployed) -> bool {
        self.take_in(deployed);
        let functions: Vec<FunctionName> = lock(&self.known).1.keys().cloned().collect();
        let looking = stream::iter(functions).map(async |function| {
            let again = self.make_ready(&function, &self.history(&function)).await;
            let _alone = self.alone(&function).await;
            // By now it can stand otherwise.
            self.look_at(&function, &self.history(&function)).await || again
        });
        let outcomes: Vec<bool> = looking.buffer_unordered(limits::FUNCTIONS_STARTED_AT_ONCE).collect().await;
        outcomes.contains(&true)
    }

    /// Does for one function what its history asks of this instance. Says whether it must be tried again.
    async fn look_at(&self, function: &FunctionName, history: &History) -> bool {
        let runs = lock(&self.here).uploaded.get(function).copied();
        match (history.state(), history.active()) {
            (State::Active { paused, .. }, Some((revision, source))) if source.origin == Origin::Upload => {
                if runs != Some(revision) {
                    return self.bring_up(function, revision, source, *paused).await;
                }
                let staged = history.staged().map(|(staged, _)| staged);
                self.forgive(function, |failed| Some(failed) != staged);
                self.pause(function, *paused);
            }
            (State::Active { paused, .. }, _) => {
                self.take_down(function, runs).await;
                self.pause(function, *paused);
            }
            (State::Absent, _) => self.take_down(function, runs).await,
            (State::Unknown { number }, _) => {
                let reason = "a newer version of Millrace did something to it; update this instance";
                self.registry.refuse(function, reason.to_owned());
                let failed = Failed { revision: *number, reason: reason.to_owned(), again: false };
                lock(&self.here).failed.insert(function.clone(), failed);
            }
        }
        false
    }

    fn pause(&self, function: &FunctionName, paused: bool) {
        if self.registry.pause(function, paused) {
            let what = if paused { "It is paused." } else { "It goes on." };
            tracing::info!(%function, "{what}");
        }
    }

    /// Compiles a staged revision, so that it can run as soon as it is active.
    async fn make_ready(&self, function: &FunctionName, history: &History) -> bool {
        let Some((revision, source)) = history.staged() else {
            lock(&self.here).staged_since.retain(|(staged, _), _| staged != function);
            return false;
        };
        {
            let mut here = lock(&self.here);
            here.staged_since.entry((function.clone(), revision)).or_insert_with(Instant::now);
            if here.ready.get(function).is_some_and(|(ready, _)| *ready == revision) {
                return false;
            }
            if here.failed.get(function).is_some_and(|failed| failed.revision == revision && !failed.again) {
                return false;
            }
        }
        let made = async {
            let component = self.component(function, source).await?;
            self.prepare(function, revision, source, &component).map(|_| component)
        };
        match made.await {
            Ok(component) => {
                self.forgive(function, |failed| failed == revision);
                lock(&self.here).ready.insert(function.clone(), (revision, component));
                false
            }
            // Nothing is amiss while it is only staged.
            Err(error) => self.cannot(function, revision, &error),
        }
    }

    /// Runs a revision. If that fails, what ran before goes on.
    async fn bring_up(&self, function: &FunctionName, revision: u64, source: &Source, paused: bool) -> bool {
        if lock(&self.here).failed.get(function).is_some_and(|failed| failed.revision == revision && !failed.again) {
            return false;
        }
        let started = async {
            let ready = lock(&self.here).ready.get(function).filter(|(ready, _)| *ready == revision).cloned();
            let component = match ready {
                Some((_, component)) => component,
                None => self.component(function, source).await?,
            };
            // Whoever uploaded it has made its topics.
            let looked = self.topics.look().await;
            looked.map_err(|e| StageError::Broker {
                function: function.clone(),
                reason: Error::Transient(e.to_string()),
            })?;
            let (settings, staged) = self.prepare(function, revision, source, &component)?;
            self.run(settings, source.component, staged, paused).await
        };
        match started.await {
            Ok(()) => {
                self.forgive(function, |failed| failed <= revision);
                let mut here = lock(&self.here);
                here.uploaded.insert(function.clone(), revision);
                if here.ready.get(function).is_some_and(|(ready, _)| *ready <= revision) {
                    here.ready.remove(function);
                }
                drop(here);
                tracing::info!(%function, revision, "An uploaded revision is active.");
                false
            }
            Err(error) => {
                if self.registry.function(function).is_none() {
                    lock(&self.here).uploaded.remove(function);
                }
                let reason = without_name(&error, function);
                self.registry.refuse(function, format!("revision {revision}: {reason}"));
                self.cannot(function, revision, &error)
            }
        }
    }

    /// Remembers that a revision cannot run here, and says so once. Says whether it is worth another try.
    fn cannot(&self, function: &FunctionName, revision: u64, error: &StageError) -> bool {
        let again = matches!(error, StageError::Broker { reason, .. } if reason.is_transient());
        let reason = without_name(error, function);
        if lock(&self.here).failed.get(function).is_none_or(|failed| failed.revision != revision) {
            tracing::error!(%function, revision, reason, "An uploaded revision cannot run here.");
        }
        lock(&self.here).failed.insert(function.clone(), Failed { revision, reason, again });
        again
    }

    /// Forgets a failure that is no more.
    fn forgive(&self, function: &FunctionName, is_over: impl Fn(u64) -> bool) {
        let mut here = lock(&self.here);
        if here.failed.get(function).is_some_and(|failed| is_over(failed.revision)) {
            here.failed.remove(function);
        }
    }

    /// Reads a component from the log, and compiles it.
    async fn component(&self, function: &FunctionName, source: &Source) -> Result<Component, StageError> {
        let digest = source.component;
        let undecided = |reason: String| StageError::Undecided { function: function.clone(), reason };
        let bytes = self.log.component(digest).await;
        let bytes = bytes.map_err(|reason| StageError::Broker { function: function.clone(), reason })?;
        // Whoever deploys it again uploads it.
        let bytes = bytes.ok_or_else(|| StageError::Broker {
            function: function.clone(),
            reason: Error::Transient(format!("its component {digest} is not in the log; deploy it again")),
        })?;
        let component = self.compile(function, bytes).await?;
        if component.digest() == digest {
            return Ok(component);
        }
        Err(undecided(format!("its component in the log is not {digest}; deploy it again")))
    }

    /// All that it takes to run a revision.
    fn prepare(
        &self,
        function: &FunctionName,
        revision: u64,
        source: &Source,
        component: &Component,
    ) -> Result<(millrace_core::manifest::Function, Staged), StageError> {
        let (_, settings) = source
            .read(&self.prefix)
            .map_err(|e| StageError::Undecided { function: function.clone(), reason: e.to_string() })?;
        let staged = Staged {
            number: revision,
            intake: intake(&settings)?,
            keeps_state: settings.grants.state,
            function: self.stage(&settings, component)?,
        };
        Ok((settings, staged))
    }

    /// Lets go of what was uploaded and runs here.
    async fn take_down(&self, function: &FunctionName, runs: Option<u64>) {
        let failed = {
            let mut here = lock(&self.here);
            let is_staged = here.staged_since.keys().any(|(staged, _)| staged == function);
            if !is_staged {
                here.ready.remove(function);
            }
            !is_staged && here.failed.remove(function).is_some()
        };
        if failed && runs.is_none() && self.registry.function(function).is_none() {
            // It is forgotten that it was refused.
            self.registry.deactivate(function).await;
        }
        if runs.is_none() {
            return;
        }
        self.registry.deactivate(function).await;
        lock(&self.here).uploaded.remove(function);
        if self.registry.function(function).is_some() {
            return;
        }
        if let Err(error) = self.log.retire(function.clone()).await {
            tracing::warn!(%function, %error, "What is kept for it cannot be let go of.");
        }
        tracing::info!(%function, "It was deleted and does not run any more.");
    }

    /// Tells others what runs here, if that has changed or was not said for a while.
    async fn report(&self, reported: &mut Option<Reported>) {
        let content: Bytes = serde_json::to_vec(&self.how_it_is()).unwrap_or_default().into();
        let said = |said: &Reported| said.content == content && said.at.elapsed() < REPORT_EVERY;
        if !reported.as_ref().is_some_and(said) {
            self.say(&content).await;
            *reported = Some(Reported { at: Instant::now(), content });
        }
    }

    async fn say(&self, content: &Bytes) {
        if let Err(error) = self.log.report(content.clone()).await {
            tracing::warn!(%error, "Others cannot be told what runs here.");
        }
    }

    fn how_it_is(&self) -> InstanceReport {
        let mut report = InstanceReport::default();
        for info in self.registry.functions() {
            let here = report.functions.entry(info.settings.name.to_string()).or_default();
            (here.revision, here.paused) = (Some(info.revision), info.paused);
        }
        let here = lock(&self.here);
        for (name, (revision, _)) in &here.ready {
            report.functions.entry(name.to_string()).or_default().ready = Some(*revision);
        }
        for (name, Failed { revision, reason, .. }) in &here.failed {
            let function = report.functions.entry(name.to_string()).or_default();
            (function.failed, function.problem) = (Some(*revision), Some(reason.clone()));
        }
        report
    }
}
