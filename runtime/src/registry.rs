//! The functions that run here: activate, change over, drain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::breaker::Phase;
use millrace_core::canary::{self, Share};
use millrace_core::dispatcher::Policy;
use millrace_core::idempotency::Bounds;
use millrace_core::manifest::Function;
use millrace_core::name::FunctionName;
use millrace_core::policy::{Deadlines, InstancePolicy, InvocationLimits};
use millrace_core::revision::Resets;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::breaker::SharedBreaker;
use crate::broker::{Assignment, Broker, Error, Subscription, Told};
use crate::clock::Clock;
use crate::telemetry::Tracing;
use crate::worker::feed::Feed;
use crate::worker::{Attempts, Canary, Command, Counts, Exit, Revision, Running, Shared, UnitStatus, Worker};

/// A function as it is activated.
#[derive(Debug)]
pub struct Deployment<R> {
    /// Its part of the manifest.
    pub settings: Function,
    /// The SHA-256 of its component, in hex.
    pub digest: String,
    /// Ready to run.
    pub revision: R,
    /// A revision that handles a share of the keys beside it, and takes events in as it does; a canary that there was ends.
    pub canary: Option<(R, Share)>,
    /// Whether it handles no events until it is told to.
    pub paused: bool,
}

/// What it takes to start a function.
struct Runnable<R> {
    settings: Arc<Function>,
    digest: String,
    running: Running<R>,
    paused: bool,
}

/// What is known of an active function.
#[derive(Clone, Debug)]
pub struct FunctionInfo {
    /// Its part of the manifest.
    pub settings: Arc<Function>,
    /// The SHA-256 of its component, in hex.
    pub digest: String,
    /// The active revision.
    pub revision: u64,
    /// The revision that handles a share of the keys beside it, if there is one.
    pub canary: Option<(u64, Share)>,
    /// What its breaker lets through.
    pub breaker: Phase,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Its workers on this instance, by topic and partition.
    pub units: Vec<Arc<UnitStatus>>,
    /// What was counted by workers that have ended since, as far as it is told by revision.
    ended: Counts,
}

impl FunctionInfo {
    /// What the attempts of each revision came to here, by number.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempts> {
        let live = self.units.iter().flat_map(|unit| unit.figures().counts.revisions);
        Attempts::by_revision(self.ended.revisions.iter().cloned().chain(live))
    }

    /// The same, of those alone that are compared: the active revision, the canary, and the newest of the others.
    #[must_use]
    pub fn compared_attempts(&self) -> Vec<Attempts> {
        let canary = self.canary.map(|(canary, _)| canary);
        Attempts::compared(self.attempts(), |revision| revision == self.revision || Some(revision) == canary)
    }
}

/// All functions of this process. Cheap to clone.
#[derive(Debug)]
pub struct Registry<B, R> {
    broker: Arc<B>,
    clock: Clock,
    active: Arc<Mutex<BTreeMap<FunctionName, Active<R>>>>,
    /// Functions that do not run, with the reason.
    refused: Arc<Mutex<BTreeMap<FunctionName, String>>>,
    /// Where functions were told to go on, whether they run or not.
    resets: Arc<Mutex<BTreeMap<FunctionName, watch::Sender<Arc<Resets>>>>>,
    failure: watch::Sender<Option<Error>>,
    tracing: Tracing,
    feed: Feed,
}

impl<B, R> Clone for Registry<B, R> {
    fn clone(&self) -> Self {
        Self {
            broker: Arc::clone(&self.broker),
            clock: self.clock,
            active: Arc::clone(&self.active),
            refused: Arc::clone(&self.refused),
            resets: Arc::clone(&self.resets),
            failure: self.failure.clone(),
            tracing: self.tracing.clone(),
            feed: self.feed.clone(),
        }
    }
}

#[derive(Debug)]
struct Active<R> {
    settings: Arc<Function>,
    digest: String,
    running: watch::Sender<Running<R>>,
    command: watch::Sender<Command>,
    breaker: SharedBreaker,
    units: Units,
    ended: Arc<Mutex<Counts>>,
    task: JoinHandle<()>,
}

/// The workers of one function, each with the unit it owns.
type Workers = JoinSet<(Arc<UnitStatus>, Exit)>;

type Units = Arc<Mutex<BTreeMap<(String, u32), Arc<UnitStatus>>>>;

impl<B: Broker, R: Revision> Registry<B, R> {
    /// No functions yet, and nobody who wants spans or looks on.
    #[must_use]
    pub fn new(broker: Arc<B>, clock: Clock) -> Self {
        Self {
            broker,
            clock,
            active: Arc::default(),
            refused: Arc::default(),
            resets: Arc::default(),
            failure: watch::Sender::new(None),
            tracing: Tracing::default(),
            feed: Feed::default(),
        }
    }

    /// Sends the spans of functions activated from now on.
    #[must_use]
    pub fn with_tracing(self, tracing: Tracing) -> Self {
        Self { tracing, ..self }
    }

    /// Tells of the events of functions activated from now on.
    #[must_use]
    pub fn with_feed(self, feed: Feed) -> Self {
        Self { feed, ..self }
    }

    /// Where spans go.
    #[must_use]
    pub fn tracing(&self) -> &Tracing {
        &self.tracing
    }

    /// Becomes something when the log cannot go on and the process must stop.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.failure.subscribe()
    }

    /// The log cannot go on, as was found out elsewhere.
    pub fn fail(&self, error: Error) {
        self.failure.send_if_modified(|failure| failure.is_none().then(|| *failure = Some(error)).is_some());
    }

    /// Runs a function, in place of the revision that ran before. If only the component changed, or what a single invocation
    /// is told and allowed, the workers change over between two invocations; else they are drained first.
    ///
    /// # Errors
    /// If the log cannot take up the subscription. The revision that ran before goes on then, unless the log cannot take up
    /// its subscription either.
    pub async fn activate(&self, deployment: Deployment<R>) -> Result<(), Error> {
        let Deployment { settings, digest, revision, canary, paused } = deployment;
        let canary = canary.map(|(revision, share)| Canary { revision: Arc::new(revision), share });
        let (settings, running) = (Arc::new(settings), Running { active: Arc::new(revision), canary });
        if let Some(active) = lock(&self.active).get_mut(&settings.name)
            && runs_alike(&active.settings, &settings)
        {
            active.settings = settings;
            active.digest = digest;
            active.running.send_replace(running);
            active.pause(paused);
            return Ok(());
        }
        let before = self.take_down(&settings.name).await;
        let started = self.start(Runnable { settings, digest, running, paused }).await;
        if started.is_err()
            && let Some(before) = before
        {
            self.start(before).await?;
        }
        started
    }

    /// Lets a revision handle a share of the keys beside the active one, in place of a canary that there was. Workers change over
    /// between two invocations.
    ///
    /// # Errors
    /// The settings, by their keys in the manifest, that would have to be those of the active revision; or that none is active.
    pub fn try_canary(&self, settings: &Function, revision: R, share: Share) -> Result<(), NoCanary> {
        let active = lock(&self.active);
        let Some(active) = active.get(&settings.name) else { return Err(NoCanary::Absent) };
        let differing = canary::differing(&active.settings, settings);
        if !differing.is_empty() {
            return Err(NoCanary::Differs { settings: differing });
        }
        let canary = Canary { revision: Arc::new(revision), share };
        active.running.send_modify(|running| running.canary = Some(canary));
        Ok(())
    }

    /// Gives the canary this share of the keys, or ends it. Says whether there is one and that is a change.
    pub fn change_canary(&self, name: &FunctionName, share: Option<Share>) -> bool {
        let active = lock(&self.active);
        let Some(active) = active.get(name) else { return false };
        active.running.send_if_modified(|running| {
            let Some(canary) = running.canary.take() else { return false };
            let is_change = share != Some(canary.share);
            running.canary = share.map(|share| Canary { share, ..canary });
            is_change
        })
    }

    /// Lets a function handle no events, or go on; says whether that is a change.
    pub fn pause(&self, name: &FunctionName, paused: bool) -> bool {
        lock(&self.active).get(name).is_some_and(|active| active.pause(paused))
    }

    /// Where a function's units were last told to go on. Each obeys what is new to it, whoever runs it when.
    pub fn tell_resets(&self, name: &FunctionName, resets: &Resets) {
        let mut all = lock(&self.resets);
        match all.get(name) {
            Some(told) if **told.borrow() == *resets => {}
            Some(told) => drop(told.send_replace(Arc::new(resets.clone()))),
            None if resets.is_empty() => {}
            None => drop(all.insert(name.clone(), watch::Sender::new(Arc::new(resets.clone())))),
        }
    }

    /// Drains a function and forgets it. Its position stays in the log.
    pub async fn deactivate(&self, name: &FunctionName) {
        drop(self.take_down(name).await);
        lock(&self.refused).remove(name);
    }

    /// A function could not be activated. Unless a revision from before runs, that is remembered until it is activated or
    /// deactivated.
    pub fn refuse(&self, name: &FunctionName, reason: String) {
        if !lock(&self.active).contains_key(name) {
            lock(&self.refused).insert(name.clone(), reason);
        }
    }

    /// The functions that should run and do not, with the reasons.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<FunctionName, String> {
        lock(&self.refused).clone()
    }

    /// Drains a function, and answers with what it takes to start it again.
    async fn take_down(&self, name: &FunctionName) -> Option<Runnable<R>> {
        let active = lock(&self.active).remove(name)?;
        let runnable = Runnable {
            settings: Arc::clone(&active.settings),
            digest: active.digest.clone(),
            running: active.running.borrow().clone(),
            paused: *active.command.borrow() == Command::Pause,
        };
        active.drain().await;
        Some(runnable)
    }

    /// Drains all functions: what is being handled is finished and committed, as far as that ends within this time. What does
    /// not is dropped, and the next owner handles it again: all workers have ended when this returns, so that the log can give
    /// their partitions back.
    pub async fn drain(&self, within: Duration) {
        let all: Vec<_> = std::mem::take(&mut *lock(&self.active)).into_values().collect();
        let commands: Vec<_> = all.iter().map(|active| active.command.clone()).collect();
        let mut draining = std::pin::pin!(futures::future::join_all(all.into_iter().map(Active::drain)));
        if tokio::time::timeout(within, &mut draining).await.is_err() {
            tracing::warn!("Not everything was finished in time; it is handled again after the next start.");
            for command in commands {
                command.send_replace(Command::Abandon);
            }
            draining.await;
        }
    }

    /// All active functions, by name.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionInfo> {
        let now = self.clock.now();
        let info = |active: &Active<R>| FunctionInfo {
            settings: Arc::clone(&active.settings),
            digest: active.digest.clone(),
            revision: active.running.borrow().active.number(),
            canary: active.canary(),
            breaker: active.breaker.phase(now),
            paused: *active.command.borrow() == Command::Pause,
            units: lock(&active.units).values().cloned().collect(),
            ended: lock(&active.ended).clone(),
        };
        lock(&self.active).values().map(info).collect()
    }

    /// One active function.
    #[must_use]
    pub fn function(&self, name: &FunctionName) -> Option<FunctionInfo> {
        self.functions().into_iter().find(|info| info.settings.name == *name)
    }

    async fn start(&self, runnable: Runnable<R>) -> Result<(), Error> {
        let Runnable { settings, digest, running, paused } = runnable;
        let window = Bounds { span: settings.idempotency.window, max_keys: settings.idempotency.max_keys };
        let resets = lock(&self.resets).entry(settings.name.clone()).or_default().subscribe();
        let subscription = Subscription {
            function: settings.name.clone(),
            topics: settings.topics.clone(),
            from: settings.from,
            window,
            told: Told(resets.clone()),
        };
        let assignments = self.broker.subscribe(subscription).await?;
        let first = if paused { Command::Pause } else { Command::Run };
        let (running, command) = (watch::Sender::new(running), watch::Sender::new(first));
        let breaker = SharedBreaker::new(settings.breaker);
        let shared = Shared {
            policy: Policy { retry: settings.retry, parked: settings.parked, concurrency: 1 },
            window,
            window_is_cut: Arc::default(),
            tracing: self.tracing.clone(),
            feed: self.feed.clone(),
            breaker: breaker.clone(),
            running: running.subscribe(),
            command: command.subscribe(),
            resets,
            clock: self.clock,
        };
        let (units, ended) = (Units::default(), Arc::<Mutex<Counts>>::default());
        let failure = self.failure.clone();
        let supervisor = Supervisor { shared, units: Arc::clone(&units), counted: Arc::clone(&ended), failure };
        let task = tokio::spawn(supervisor.run(assignments));
        let name = settings.name.clone();
        lock(&self.refused).remove(&name);
        lock(&self.active).insert(name, Active { settings, digest, running, command, breaker, units, ended, task });
        Ok(())
    }
}

/// Why a revision cannot be a canary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCanary {
    /// The function does not run.
    #[error("no revision is active here that it could run beside")]
    Absent,
    /// It takes events in otherwise than the active revision does.
    #[error("{}", told(settings))]
    Differs {
        /// The settings that differ.
        settings: Vec<&'static str>,
    },
}

fn told(settings: &[&str]) -> String {
    format!(
        "it differs from the active revision in {}, and a canary handles what that one takes in; deploy it without --canary (over the API, without `canary`)",
        settings.join(", ")
    )
}

impl<R: Revision> Active<R> {
    fn canary(&self) -> Option<(u64, Share)> {
        self.running.borrow().canary.as_ref().map(|canary| (canary.revision.number(), canary.share))
    }
}

impl<R> Active<R> {
    /// Does nothing once the workers are to end.
    fn pause(&self, paused: bool) -> bool {
        let (from, to) = if paused { (Command::Run, Command::Pause) } else { (Command::Pause, Command::Run) };
        self.command.send_if_modified(|command| *command == from && std::mem::replace(command, to) == from)
    }

    async fn drain(self) {
        self.command.send_replace(Command::Drain);
        if let Err(error) = self.task.await {
            tracing::error!(function = %self.settings.name, %error, "A function's workers ended abruptly.");
        }
    }
}

/// Whether workers can change over from one to the other between two invocations: all that differs is part of the revision.
fn runs_alike(old: &Function, new: &Function) -> bool {
    let kept = |function: &Function| {
        let mut kept = function.clone();
        (kept.build, kept.component, kept.watch) = (None, String::new(), Vec::new());
        (kept.filter, kept.idempotency.key) = (None, None);
        (kept.instance, kept.limits, kept.config) =
            (InstancePolicy::default(), InvocationLimits::default(), BTreeMap::new());
        (kept.grants.publish, kept.deadlines) = (Vec::new(), Deadlines::default());
        kept
    };
    kept(old) == kept(new)
}

/// Starts a worker for each assignment of one function.
struct Supervisor<R> {
    shared: Shared<R>,
    units: Units,
    /// What workers that have ended counted by revision: revisions are compared over all of the time.
    counted: Arc<Mutex<Counts>>,
    failure: watch::Sender<Option<Error>>,
}

impl<R: Revision> Supervisor<R> {
    async fn run<P: crate::broker::Partition>(mut self, mut assignments: mpsc::Receiver<Assignment<P>>) {
        let mut workers = Workers::new();
        let mut command = self.shared.command.clone();
        let mut assigning = true;
        loop {
            tokio::select! {
                biased;
                _ = command.wait_for(|command| command.ends()) => break,
                assignment = assignments.recv(), if assigning => match assignment {
                    Some(assignment) => self.start(assignment, &mut workers),
                    None => assigning = false,
                },
                Some(ended) = workers.join_next() => self.ended(ended),
                else => break,
            }
        }
        loop {
            tokio::select! {
                biased;
                _ = command.wait_for(|command| *command == Command::Abandon) => break,
                ended = workers.join_next() => match ended {
                    Some(ended) => self.ended(ended),
                    None => break,
                },
            }
        }
        workers.shutdown().await;
    }

    fn start<P: crate::broker::Partition>(&mut self, assignment: Assignment<P>, workers: &mut Workers) {
        let unit = assignment.partition.unit().clone();
        let seed = self.shared.clock.now().as_nanos() ^ u64::from(unit.partition);
        let worker = Worker::new(assignment, self.shared.clone(), seed);
        let status = worker.status();
        lock(&self.units).insert((unit.topic.to_string(), unit.partition), Arc::clone(&status));
        workers.spawn(async move { (status, worker.run().await) });
    }

    /// A worker that cannot go on, or that has a bug, stops the process: recovery is the tested path.
    fn ended(&self, ended: Result<(Arc<UnitStatus>, Exit), tokio::task::JoinError>) {
        let error = match ended {
            Ok((status, Exit::Drained | Exit::Revoked)) => {
                // The next owner of the same unit may be here, and have begun before.
                lock(&self.units).retain(|_, owned| !Arc::ptr_eq(owned, &status));
                let revisions = status.figures().counts.revisions;
                lock(&self.counted).merge(&Counts { revisions, ..Counts::default() });
                return;
            }
            Ok((_, Exit::Failed(error))) => error,
            Err(error) => Error::Fatal(format!("a worker ended abruptly: {error}")),
        };
        tracing::error!(%error, "A worker cannot go on; the process stops.");
        self.failure.send_replace(Some(error));
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
