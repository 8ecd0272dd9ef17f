//! Follows what is deployed: each instance runs what was uploaded, whoever took the upload.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered, StreamExt as _};
use millrace_core::canary::{self, Share};
use millrace_core::limits;
use millrace_core::manifest::Function;
use millrace_core::name::FunctionName;
use millrace_core::revision::{History, Origin, Source, State};
use tokio::sync::watch;
use tokio::time::Instant;

use super::revisions::{Failed, Revisions};
use super::stage::{StageError, Staged, intake, without_name};
use crate::broker::{Deployed, Error, Log};
use crate::registry::{Deployment, lock};
use crate::sandbox::Component;

/// When something is tried again that the log did not answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One thing that is to be done about one function. None waits for another, so that a slow one holds up nothing else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    /// What is staged is compiled.
    MakeReady(FunctionName),
    /// What is active runs.
    TakeUp(FunctionName),
}

/// What is being done.
struct Jobs<'a> {
    stop: watch::Receiver<bool>,
    under_way: FuturesUnordered<BoxFuture<'a, (Job, bool)>>,
    /// Each that is under way, and whether it has to be done once more because something was deployed meanwhile.
    again: BTreeMap<Job, bool>,
}

impl<L: Log> Revisions<L> {
    /// Runs what was uploaded until now. What cannot run is remembered with its reason, and does not keep others from running.
    ///
    /// # Errors
    /// If the log could not be read.
    pub(super) async fn catch_up(&self) -> Result<(), Error> {
        self.refresh().await?;
        let jobs = stream::iter(self.jobs()).map(|job| self.work_on(job));
        jobs.buffer_unordered(limits::FUNCTIONS_STARTED_AT_ONCE).map(drop).collect::<()>().await;
        Ok(())
    }

    /// Runs what is uploaded from now on, tells others of it, and takes over tokens, until told to stop. What is begun then is finished.
    pub(super) async fn follow(self, stop: watch::Receiver<bool>) {
        let (done, is_done) = watch::channel(false);
        let following = async {
            self.take_over(stop.clone()).await;
            done.send_replace(true);
        };
        tokio::join!(following, self.tell(is_done));
    }

    async fn take_over(&self, mut stop: watch::Receiver<bool>) {
        let mut jobs = Jobs { stop: stop.clone(), under_way: FuturesUnordered::new(), again: BTreeMap::new() };
        // Jobs that end do not begin it again: however many there are, a token that was revoked holds no longer for that.
        let mut reading = pin!(self.read(None, Instant::now()));
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                Some((job, failed)) = jobs.under_way.next() => {
                    let is_stale = jobs.again.remove(&job).unwrap_or_default();
                    if failed || is_stale {
                        let wait = if failed { AGAIN_AFTER } else { Duration::ZERO };
                        self.begin(&mut jobs, job, Instant::now() + wait);
                    }
                }
                (seen, read) = &mut reading => match read {
                    Ok(deployed) => {
                        reading.set(self.read(Some(deployed.seen), Instant::now()));
                        self.take_in(&deployed);
                        for job in self.jobs() {
                            self.begin(&mut jobs, job, Instant::now());
                        }
                    }
                    Err(error) => {
                        tracing::warn!(
                            %error, "Deployments and tokens cannot be read; those that were read last hold, and it is tried again."
                        );
                        reading.set(self.read(seen, Instant::now() + AGAIN_AFTER));
                    }
                },
            }
        }
        while jobs.under_way.next().await.is_some() {}
    }

    /// Waits for other deployments than were seen, from this time on.
    async fn read(&self, seen: Option<u64>, at: Instant) -> (Option<u64>, Result<Deployed, Error>) {
        tokio::time::sleep_until(at).await;
        (seen, self.log.deployments(seen).await)
    }

    /// What may have to be done, as far as is known.
    fn jobs(&self) -> Vec<Job> {
        let known = lock(&self.known);
        known.histories.keys().flat_map(|name| [Job::TakeUp(name.clone()), Job::MakeReady(name.clone())]).collect()
    }

    /// Does it at this time, unless it is time to stop then, or once more if it is under way.
    fn begin<'a>(&'a self, jobs: &mut Jobs<'a>, job: Job, at: Instant) {
        match jobs.again.entry(job) {
            Entry::Occupied(mut again) => drop(again.insert(true)),
            Entry::Vacant(new) => {
                let (job, mut stop) = (new.key().clone(), jobs.stop.clone());
                let working = async move {
                    let is_time = tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => false,
                        () = tokio::time::sleep_until(at) => true,
                    };
                    if is_time { self.work_on(job).await } else { (job, false) }
                };
                jobs.under_way.push(working.boxed());
                new.insert(false);
            }
        }
    }

    /// Does one thing as the history is now. Says whether it must be tried again.
    async fn work_on(&self, job: Job) -> (Job, bool) {
        let failed = match &job {
            Job::MakeReady(function) => self.make_ready(function).await,
            Job::TakeUp(function) => {
                let _alone = self.alone(function).await;
                let history = self.history(function);
                let again = self.look_at(function, &history).await;
                let is_over = history.active().is_none() && history.staged().is_none();
                let mut here = lock(&self.here);
                if is_over && self.registry.function(function).is_none() {
                    here.taken_up.remove(function);
                } else {
                    here.taken_up.insert(function.clone(), history.latest());
                }
                again
            }
        };
        self.changed.notify_one();
        (job, failed)
    }

    /// Does for one function what its history asks of this instance. Says whether it must be tried again.
    async fn look_at(&self, function: &FunctionName, history: &History) -> bool {
        let runs = lock(&self.here).uploaded.get(function).copied();
        self.registry.tell_resets(function, history.resets());
        match (history.state(), history.active()) {
            (State::Active { paused, .. }, Some((revision, source))) if source.origin == Origin::Upload => {
                let again = runs != Some(revision) && self.bring_up(function, history, *paused).await;
                self.forget_what_is_over(function, history);
                self.pause(function, *paused);
                if lock(&self.here).uploaded.get(function) == Some(&revision) {
                    return self.take_canary(function, history).await;
                }
                self.end_canary(function, &[Some(revision), history.canary().map(|(canary, ..)| canary)]);
                return again;
            }
            (State::Active { paused, .. }, _) => {
                self.take_down(function, runs).await;
                self.pause(function, *paused);
            }
            (State::Absent, _) => self.take_down(function, runs).await,
            (State::Unknown { number }, _) => {
                let reason = "a newer version of Millrace did something to it; update this instance";
                self.registry.refuse(function, reason.to_owned());
                let failed = Failed { reason: reason.to_owned(), again: false };
                lock(&self.here).failed.insert(function.clone(), BTreeMap::from([(*number, failed)]));
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
    async fn make_ready(&self, function: &FunctionName) -> bool {
        let history = self.history(function);
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
            if here.has_given_up(function, revision) {
                return false;
            }
        }
        let made = async {
            let component = self.component(function, source).await?;
            self.prepare(function, revision, source, &component).map(|_| component)
        };
        let made = made.await;
        if self.history(function).staged().is_none_or(|(staged, _)| staged != revision) {
            // Meanwhile it was activated, or something else was staged.
            return false;
        }
        match made {
            Ok(component) => {
                lock(&self.here).forgive(function, |failed| failed == revision);
                lock(&self.here).ready.insert(function.clone(), (revision, component));
                false
            }
            // Nothing is amiss while it is only staged.
            Err(error) => self.cannot(function, revision, &error),
        }
    }

    /// Runs a revision. If that fails, what ran before goes on.
    async fn bring_up(&self, function: &FunctionName, history: &History, paused: bool) -> bool {
        let Some((revision, source)) = history.active() else { return false };
        if lock(&self.here).has_given_up(function, revision) {
            return false;
        }
        let started = async {
            // A change-over can take as long as a handler, and waits for nobody.
            let is_new = self.registry.function(function).is_none();
            let _in_turn = if is_new { Some(self.starting.acquire().await) } else { None };
            let component = self.ready_component(function, revision, source).await?;
            self.look_for_topics(function).await?;
            let (settings, staged) = self.prepare(function, revision, source, &component)?;
            // Both begin at once, so that no key of the canary's is handled by the active revision first.
            let beside = match self.prepare_canary(function, history).await {
                Err(error) if error.is_transient() => return Err(error),
                beside => beside.ok().flatten(),
            };
            let beside = beside.filter(|(canary, ..)| canary::differing(&settings, canary).is_empty());
            let canary = beside.map(|(_, staged, share)| (staged, share));
            let digest = source.component.to_string();
            self.run(Deployment { settings, digest, revision: staged, canary, paused }).await
        };
        match started.await {
            Ok(()) => {
                let mut here = lock(&self.here);
                here.forgive(function, |failed| failed <= revision);
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

    /// Ends a canary that runs, unless it is one of these.
    fn end_canary(&self, function: &FunctionName, unless: &[Option<u64>]) {
        let runs = self.registry.function(function).and_then(|info| info.canary);
        if runs.is_some_and(|(running, _)| !unless.contains(&Some(running)))
            && self.registry.change_canary(function, None)
        {
            tracing::info!(%function, "The canary has ended; what ran beside it handles all keys.");
        }
    }

    /// Whoever uploaded something has made its topics.
    async fn look_for_topics(&self, function: &FunctionName) -> Result<(), StageError> {
        let looked = self.topics.look().await;
        looked.map_err(|e| StageError::Broker { function: function.clone(), reason: Error::Transient(e.to_string()) })
    }

    /// Runs the canary that the history names beside what is active, or ends the one that runs. One that cannot run here leaves all
    /// keys to the active revision. Says whether it must be tried again.
    async fn take_canary(&self, function: &FunctionName, history: &History) -> bool {
        let Some((revision, _, share)) = history.canary() else {
            self.end_canary(function, &[]);
            return false;
        };
        let runs = self.registry.function(function).and_then(|info| info.canary);
        if runs.is_some_and(|(running, _)| running == revision) {
            if self.registry.change_canary(function, Some(share)) {
                tracing::info!(%function, revision, %share, "The canary has another share of the keys.");
            }
            return false;
        }
        // Another one is none any more, whatever becomes of this one.
        self.registry.change_canary(function, None);
        if lock(&self.here).has_given_up(function, revision) {
            return false;
        }
        let started = async {
            self.look_for_topics(function).await?;
            let Some((settings, staged, share)) = self.prepare_canary(function, history).await? else { return Ok(()) };
            let tried = self.registry.try_canary(&settings, staged, share);
            tried.map_err(|e| StageError::Undecided { function: function.clone(), reason: e.to_string() })
        };
        match started.await {
            Ok(()) => {
                lock(&self.here).forgive(function, |failed| failed == revision);
                tracing::info!(%function, revision, %share, "An uploaded revision is the canary.");
                false
            }
            Err(error) => self.cannot(function, revision, &error),
        }
    }

    /// All that it takes to run the canary that the history names, if it names one.
    async fn prepare_canary(
        &self,
        function: &FunctionName,
        history: &History,
    ) -> Result<Option<(Function, Staged, Share)>, StageError> {
        let Some((revision, source, share)) = history.canary() else { return Ok(None) };
        let component = self.ready_component(function, revision, source).await?;
        let (settings, staged) = self.prepare(function, revision, source, &component)?;
        Ok(Some((settings, staged, share)))
    }

    /// Forgets what was kept of revisions that are neither active nor staged nor the canary any more.
    fn forget_what_is_over(&self, function: &FunctionName, history: &History) {
        let active = history.active().map(|(active, _)| active);
        let wanted = [active, history.staged().map(|(staged, _)| staged), history.canary().map(|(canary, ..)| canary)];
        // What was staged since is not in this history.
        let is_over = |revision: u64| revision <= history.latest() && !wanted.contains(&Some(revision));
        let mut here = lock(&self.here);
        here.forgive(function, is_over);
        if here.ready.get(function).is_some_and(|(ready, _)| is_over(*ready)) {
            here.ready.remove(function);
        }
    }

    /// A revision's component: as it was compiled while it was staged or before, or else from the log.
    async fn ready_component(
        &self,
        function: &FunctionName,
        revision: u64,
        source: &Source,
    ) -> Result<Component, StageError> {
        let ready = lock(&self.here).ready.get(function).filter(|(ready, _)| *ready == revision).cloned();
        match ready {
            Some((_, component)) => Ok(component),
            None => {
                self.check_signature(function, source)?;
                match self.engine.known(source.component).await {
                    Some(component) => Ok(component),
                    None => self.component(function, source).await,
                }
            }
        }
    }

    fn check_signature(&self, function: &FunctionName, source: &Source) -> Result<(), StageError> {
        let trusted = self.signatures.check(source.component, source.signature.as_deref());
        trusted.map_err(|reason| StageError::Untrusted { function: function.clone(), reason })
    }

    /// Remembers that a revision cannot run here, and says so once. Says whether it is worth another try.
    fn cannot(&self, function: &FunctionName, revision: u64, error: &StageError) -> bool {
        let again = error.is_transient();
        let reason = without_name(error, function);
        let failed = Failed { reason: reason.clone(), again };
        let before = lock(&self.here).failed.entry(function.clone()).or_default().insert(revision, failed);
        if before.is_none_or(|before| before.again != again) {
            if again {
                tracing::warn!(%function, revision, reason, "An uploaded revision does not run here yet; it is tried again.");
            } else {
                tracing::error!(%function, revision, reason, "An uploaded revision cannot run here.");
            }
        }
        again
    }

    /// Reads a component from the log, and compiles it, if it is signed as this instance asks for.
    async fn component(&self, function: &FunctionName, source: &Source) -> Result<Component, StageError> {
        let digest = source.component;
        let undecided = |reason: String| StageError::Undecided { function: function.clone(), reason };
        self.check_signature(function, source)?;
        let _in_turn = self.loading.acquire().await;
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
    ) -> Result<(Function, Staged), StageError> {
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
        let history = self.history(function);
        let is_staged = history.staged().is_some();
        if is_staged {
            self.forget_what_is_over(function, &history);
        }
        let failed = {
            let mut here = lock(&self.here);
            if !is_staged {
                here.ready.remove(function);
            }
            !is_staged && here.failed.remove(function).is_some_and(|failed| !failed.is_empty())
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
}
