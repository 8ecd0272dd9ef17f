//! Follows what is deployed: each instance runs what was uploaded, whoever took the upload.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use millrace_core::limits;
use millrace_core::name::FunctionName;
use millrace_core::revision::{History, Origin, Source, State, histories};
use tokio::sync::watch;
use tokio::time::Instant;

use super::revisions::Revisions;
use super::stage::{StageError, Staged, intake, without_name};
use crate::api::types::{FunctionHere, InstanceReport};
use crate::broker::{Deployed, Error, Log};
use crate::registry::lock;

/// An instance says at least this often how it is.
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(5);
/// When something is tried again that the log did not answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl<L: Log> Revisions<L> {
    /// Runs what was uploaded until now. What cannot run is remembered with its reason, and does not keep others from running.
    ///
    /// # Errors
    /// If the log could not be read.
    pub(super) async fn catch_up(&self) -> Result<Deployed, Error> {
        let deployed = self.log.deployments(None).await?;
        self.take_over(&deployed).await;
        self.report().await;
        Ok(deployed)
    }

    /// Runs what is uploaded from now on, until told to stop. What is begun then is finished.
    pub(super) async fn follow(self, mut stop: watch::Receiver<bool>) {
        let (mut seen, mut again, mut reported) = (None, None, Instant::now());
        while !*stop.borrow() {
            let due = again.unwrap_or(reported + REPORT_EVERY).min(reported + REPORT_EVERY);
            let deployed = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                deployed = self.log.deployments(seen) => Some(deployed),
                () = tokio::time::sleep_until(due) => None,
            };
            match deployed {
                Some(Ok(deployed)) => {
                    seen = Some(deployed.seen);
                    again = self.take_over(&deployed).await.then(|| Instant::now() + AGAIN_AFTER);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "Deployments cannot be read; trying again.");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
                None if again.is_some_and(|at| at <= Instant::now()) => seen = None,
                None => {}
            }
            self.report().await;
            reported = Instant::now();
        }
    }

    /// Runs what should run. Says whether something must be tried again.
    async fn take_over(&self, deployed: &Deployed) -> bool {
        let read = deployed.deployments.iter().map(|one| (&one.function, one.number, &one.content[..]));
        let all = histories(read);
        lock(&self.known).clone_from(&all);
        let looking = stream::iter(all).map(async |(function, history)| self.look_at(&function, &history).await);
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
                lock(&self.here).failed.remove(function);
                self.pause(function, *paused);
            }
            (State::Active { paused, .. }, _) => {
                self.take_down(function, runs).await;
                self.pause(function, *paused);
            }
            (State::Absent, _) => self.take_down(function, runs).await,
            (State::Unknown { number }, _) => {
                let reason =
                    format!("deployment {number} was made by a newer version of Millrace; update this instance");
                self.failed(function, *number, reason);
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

    /// Runs a revision. If that fails, what ran before goes on.
    async fn bring_up(&self, function: &FunctionName, revision: u64, source: &Source, paused: bool) -> bool {
        let failed_before = lock(&self.here).failed.get(function).is_some_and(|(failed, _)| *failed == revision);
        match self.start(function, revision, source, paused).await {
            Ok(()) => {
                let mut here = lock(&self.here);
                here.uploaded.insert(function.clone(), revision);
                here.failed.remove(function);
                drop(here);
                tracing::info!(%function, revision, "An uploaded revision is active.");
                false
            }
            Err(error) => {
                let again = matches!(&error, StageError::Broker { reason, .. } if reason.is_transient());
                let reason = without_name(&error, function);
                if !failed_before {
                    tracing::error!(%function, revision, reason, "An uploaded revision cannot run here.");
                }
                self.failed(function, revision, reason);
                again
            }
        }
    }

    fn failed(&self, function: &FunctionName, revision: u64, reason: String) {
        self.registry.refuse(function, format!("revision {revision}: {reason}"));
        lock(&self.here).failed.insert(function.clone(), (revision, reason));
    }

    async fn start(
        &self,
        function: &FunctionName,
        revision: u64,
        source: &Source,
        paused: bool,
    ) -> Result<(), StageError> {
        let broker = |reason: Error| StageError::Broker { function: function.clone(), reason };
        let undecided = |reason: String| StageError::Undecided { function: function.clone(), reason };
        let (_, settings) = source.read(&self.prefix).map_err(|e| undecided(e.to_string()))?;
        let bytes = self.log.component(source.component).await.map_err(broker)?;
        let bytes = bytes.ok_or_else(|| {
            undecided(format!("its component {} is not in the log; deploy it again", source.component))
        })?;
        let component = self.compile(function, bytes).await?;
        if component.digest() != source.component {
            return Err(undecided(format!("its component in the log is not {}; deploy it again", source.component)));
        }
        // Whoever uploaded it has made its topics.
        let looked = self.topics.look().await;
        looked.map_err(|e| broker(Error::Transient(e.to_string())))?;
        let staged = self.stage(&settings, &component)?;
        let staged = Staged {
            number: revision,
            intake: intake(&settings)?,
            keeps_state: settings.grants.state,
            function: staged,
        };
        self.run(settings, source.component, staged, paused).await
    }

    /// Lets go of what was uploaded and runs here.
    async fn take_down(&self, function: &FunctionName, runs: Option<u64>) {
        let failed = lock(&self.here).failed.remove(function).is_some();
        if runs.is_none() && !(failed && self.registry.function(function).is_none()) {
            return;
        }
        self.registry.deactivate(function).await;
        lock(&self.here).uploaded.remove(function);
        if let Err(error) = self.log.retire(function.clone()).await {
            tracing::warn!(%function, %error, "What is kept for it cannot be let go of.");
        }
        tracing::info!(%function, "It was deleted and does not run any more.");
    }

    /// Tells others what runs here.
    async fn report(&self) {
        let mut functions: BTreeMap<String, FunctionHere> = BTreeMap::new();
        for info in self.registry.functions() {
            let (revision, paused) = (Some(info.revision), info.paused);
            functions.insert(info.settings.name.to_string(), FunctionHere { revision, paused, problem: None });
        }
        for (name, (revision, reason)) in &lock(&self.here).failed {
            let here = functions.entry(name.to_string()).or_default();
            here.problem = Some(format!("revision {revision}: {reason}"));
        }
        let content = serde_json::to_vec(&InstanceReport { functions }).unwrap_or_default();
        if let Err(error) = self.log.report(content.into()).await {
            tracing::debug!(%error, "Others cannot be told what runs here.");
        }
    }
}
