//! Revisions of functions: made ready here, and agreed on with all other instances through the log.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_core::audit::{Outcome, Record, Who};
use millrace_core::canary;
use millrace_core::digest::Digest;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::FunctionName;
use millrace_core::revision::{Action, Change, History, Origin, Source, State, histories};
use millrace_core::signature::Trusted;

use super::ledger::Ledger;
use super::stage::{self, StageError, Staged, function_options, intake, read_component};
use super::tokens::Keys;
use super::topics::Topics;
use crate::api::{Decided, Deployer, Journal as _, MAKE_TOPIC, Refused};
use crate::broker::{DeployError, Deployed, Error, Log, Report};
use crate::clock::Clock;
use crate::registry::{Deployment, NoCanary, Registry, lock};
use crate::sandbox::{self, Component, Engine, FunctionOptions, Refusal};
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore};
use tokio::time::Instant;

/// How often a proposal is made anew because somebody else was quicker, where that does not matter.
const PROPOSALS_MAX: u32 = 20;

/// What all users of revisions share. Cheap to clone.
pub(super) struct Revisions<L> {
    pub(super) log: Arc<L>,
    pub(super) engine: Engine,
    pub(super) registry: Registry<L, Staged>,
    pub(super) clock: Clock,
    /// Names of topics with it belong to the runtime.
    pub(super) prefix: String,
    /// Who has to have signed what is uploaded.
    pub(super) signatures: Arc<Trusted>,
    pub(super) topics: Topics<L>,
    pub(super) keys: Keys<L>,
    pub(super) ledger: Ledger<L>,
    pub(super) known: Arc<Mutex<Known>>,
    /// Held by whoever changes what runs of a function.
    pub(super) changing: Arc<Mutex<BTreeMap<FunctionName, Arc<tokio::sync::Mutex<()>>>>>,
    /// Held while an upload or a deployment is examined, one after the other: it takes the memory of whole components.
    pub(super) examining: Arc<Semaphore>,
    /// Held while a component is read and compiled to run here: so many are in memory at most.
    pub(super) loading: Arc<Semaphore>,
    /// Held while a function starts that does not run yet: each asks the log for its topics, and joins a group.
    pub(super) starting: Arc<Semaphore>,
    pub(super) here: Arc<Mutex<Here>>,
    /// Told when something has changed that others want to know.
    pub(super) changed: Arc<Notify>,
}

/// What was read last of what is deployed. Nothing was before the first time.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What to wait for others with.
    pub(super) seen: u64,
    pub(super) histories: BTreeMap<FunctionName, History>,
    /// Whether these are all deployments that there ever were, as far as the log can tell.
    pub(super) is_whole: bool,
}

/// What of the uploaded functions became of them here.
#[derive(Debug, Default)]
pub(super) struct Here {
    /// Those that run, with their revisions.
    pub(super) uploaded: BTreeMap<FunctionName, u64>,
    /// Staged revisions that are compiled.
    pub(super) ready: BTreeMap<FunctionName, (u64, Component)>,
    /// Staged revisions, and since when they are known here.
    pub(super) staged_since: BTreeMap<(FunctionName, u64), Instant>,
    /// Revisions that were staged through this instance.
    pub(super) proposed: BTreeMap<FunctionName, u64>,
    /// Revisions that do not run although they should, active, staged or the canary.
    pub(super) failed: BTreeMap<FunctionName, BTreeMap<u64, Failed>>,
    /// The newest deployment of each function that it does here what it says, or has told why it cannot.
    pub(super) taken_up: BTreeMap<FunctionName, u64>,
}

impl Here {
    /// Whether it is known that a revision cannot run here.
    pub(super) fn has_given_up(&self, function: &FunctionName, revision: u64) -> bool {
        let failed = self.failed.get(function).and_then(|failed| failed.get(&revision));
        failed.is_some_and(|failed| !failed.again)
    }

    /// Forgets failures that are no more.
    pub(super) fn forgive(&mut self, function: &FunctionName, is_over: impl Fn(u64) -> bool) {
        if let Some(failed) = self.failed.get_mut(function) {
            failed.retain(|revision, _| !is_over(*revision));
        }
    }
}

/// Why a revision does not run although it should.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) reason: String,
    /// Whether another try can help, though nothing was deployed since.
    pub(super) again: bool,
}

impl<L> fmt::Debug for Revisions<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revisions").field("here", &self.here).finish_non_exhaustive()
    }
}

impl<L> Clone for Revisions<L> {
    fn clone(&self) -> Self {
        Self {
            log: Arc::clone(&self.log),
            engine: self.engine.clone(),
            registry: self.registry.clone(),
            clock: self.clock,
            prefix: self.prefix.clone(),
            signatures: Arc::clone(&self.signatures),
            topics: self.topics.clone(),
            keys: self.keys.clone(),
            ledger: self.ledger.clone(),
            known: Arc::clone(&self.known),
            changing: Arc::clone(&self.changing),
            examining: Arc::clone(&self.examining),
            loading: Arc::clone(&self.loading),
            starting: Arc::clone(&self.starting),
            here: Arc::clone(&self.here),
            changed: Arc::clone(&self.changed),
        }
    }
}

impl<L: Log> Revisions<L> {
    /// Reads all deployments that there are.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        self.take_in(&self.log.deployments(None).await?);
        Ok(())
    }

    /// Keeps what was read of deployments and tokens, unless somebody has read more meanwhile.
    pub(super) fn take_in(&self, deployed: &Deployed) {
        self.keys.take_over(deployed);
        let read = deployed.deployments.iter().map(|one| (&one.function, one.number, &one.content[..]));
        let read = Known { seen: deployed.seen, histories: histories(read), is_whole: !deployed.deployments_lost };
        let mut known = lock(&self.known);
        if known.seen <= read.seen {
            *known = read;
        }
    }

    /// Nobody else starts, stops or pauses the function here as long as this is held.
    pub(super) async fn alone(&self, function: &FunctionName) -> OwnedMutexGuard<()> {
        let own = Arc::clone(lock(&self.changing).entry(function.clone()).or_default());
        own.lock_owned().await
    }

    /// All deployments of a function, as they were read last.
    pub(super) fn history(&self, function: &FunctionName) -> History {
        lock(&self.known).histories.get(function).cloned().unwrap_or_default()
    }

    /// Whether the function runs what was uploaded, wherever it runs.
    pub(super) fn is_uploaded(&self, function: &FunctionName) -> bool {
        lock(&self.known)
            .histories
            .get(function)
            .and_then(History::active)
            .is_some_and(|(_, source)| source.origin == Origin::Upload)
    }

    /// Runs a function of a directory in place of the revision that ran before. Answers with the revision's number.
    pub(super) async fn activate(&self, function: &Function, directory: &Path) -> Result<u64, StageError> {
        let _alone = self.alone(&function.name).await;
        if let (true, Some((revision, _))) = (self.is_uploaded(&function.name), self.history(&function.name).active()) {
            return Err(StageError::Uploaded { function: function.name.clone(), revision });
        }
        let intake = intake(function)?;
        let component = self.load(function, directory).await?;
        let staged = self.stage(function, &component)?;
        let action = Action::Deploy(Source::of_directory(function, component.digest()));
        let decided = self.propose(&function.name, action, None, "").await.map_err(|refused| match refused {
            Refused::Broker(reason) => StageError::Broker { function: function.name.clone(), reason },
            Refused::Uploaded { revision } => StageError::Uploaded { function: function.name.clone(), revision },
            other => StageError::Undecided { function: function.name.clone(), reason: other.to_string() },
        })?;
        let paused = self.is_paused(&function.name);
        let revision =
            Staged { number: decided.revision, intake, keeps_state: function.grants.state, function: staged };
        let (settings, digest) = (function.clone(), component.digest().to_string());
        self.run(Deployment { settings, digest, revision, canary: None, paused }).await?;
        Ok(decided.revision)
    }

    /// Whether it should handle no events.
    pub(super) fn is_paused(&self, function: &FunctionName) -> bool {
        matches!(self.history(function).state(), State::Active { paused: true, .. })
    }

    /// Runs a staged revision.
    pub(super) async fn run(&self, deployment: Deployment<Staged>) -> Result<(), StageError> {
        let function = deployment.settings.name.clone();
        self.registry.tell_resets(&function, self.history(&function).resets());
        let activated = self.registry.activate(deployment).await;
        activated.map_err(|reason| StageError::Broker { function, reason })
    }

    async fn load(&self, function: &Function, directory: &Path) -> Result<Component, StageError> {
        self.compile(&function.name, read_component(function, directory).await?).await
    }

    pub(super) async fn compile(&self, function: &FunctionName, bytes: Bytes) -> Result<Component, StageError> {
        let loaded = self.engine.load(bytes).await;
        loaded.map_err(|reason| StageError::Refused { function: function.clone(), reason })
    }

    /// Puts a function and its component together.
    pub(super) fn stage(&self, function: &Function, component: &Component) -> Result<sandbox::Function, StageError> {
        let options = FunctionOptions { known_topics: self.topics.are_known(), ..function_options(function) };
        sandbox::Function::new(&self.engine, component, options)
            .map_err(|reason| StageError::Refused { function: function.name.clone(), reason })
    }

    /// Writes into the log that something is done to a function, unless it is done already as far as is known here. With
    /// `builds_on` only if nothing else was done since that deployment.
    pub(super) async fn propose(
        &self,
        function: &FunctionName,
        action: Action,
        builds_on: Option<u64>,
        by: &str,
    ) -> Result<Decided, Refused> {
        for _ in 0..PROPOSALS_MAX {
            let history = self.history(function);
            if let Some(expected) = builds_on.filter(|number| *number != history.latest()) {
                return Err(Refused::conflict(&history, expected));
            }
            let decided = |number| Decided { number, revision: revision_after(&history, &action, number), new: false };
            may(&history, &action, &self.prefix)?;
            if history.is_done(&action) {
                return Ok(decided(history.latest()));
            }
            let change = Change::new(action.clone(), self.clock.now(), by).encode();
            match self.log.append_deployment(function.clone(), history.latest(), change.into()).await {
                Ok(number) => {
                    self.refresh().await?;
                    return Ok(Decided { new: true, ..decided(number) });
                }
                // Somebody else was quicker: what is there now is looked at first.
                Err(DeployError::Conflict { .. }) => self.refresh().await?,
                Err(DeployError::Broker(error)) => return Err(error.into()),
            }
        }
        let reason = format!("others deploy `{function}` all the time; try again later");
        Err(Refused::Broker(Error::Transient(reason)))
    }

    /// Checks an uploaded source as far as this instance can, and its component last: whoever has not uploaded that yet learns what
    /// else is wrong. Answers with what must be known of its topics.
    async fn examine(&self, function: &FunctionName, source: &Source) -> Result<Manifest, Refused> {
        let invalid = |reason: String| Refused::Invalid { reason };
        let (manifest, settings) = source.read(&self.prefix).map_err(|e| invalid(e.to_string()))?;
        if settings.name != *function {
            return Err(invalid(format!("the manifest is of `{}`, not of `{function}`", settings.name)));
        }
        let unfit = |error: StageError| match error {
            StageError::Broker { reason, .. } => Refused::Broker(reason),
            StageError::Refused { reason: Refusal::Unavailable(reason), .. } => Refused::NoCompiler { reason },
            error => invalid(stage::without_name(&error, function)),
        };
        intake(&settings).map_err(unfit)?;
        self.topics.check(&manifest).await?;
        let _in_turn = self.examining.acquire().await;
        let bytes = self.log.component(source.component).await?;
        let bytes = bytes.ok_or(Refused::UnknownComponent { digest: source.component })?;
        let component = self.compile(function, bytes).await.map_err(unfit)?;
        self.stage(&settings, &component).map_err(unfit)?;
        Ok(manifest)
    }

    /// Whether the revision that an action brings may run here as far as its signature says.
    fn is_signed(&self, history: &History, action: &Action) -> Result<(), Refused> {
        let source = action.source().or_else(|| history.revision(action.revision()?));
        let Some(source) = source.filter(|source| source.origin == Origin::Upload) else { return Ok(()) };
        let checked = self.signatures.check(source.component, source.signature.as_deref());
        checked.map_err(|reason| Refused::Untrusted { reason })
    }

    /// Makes the topics that a function needs, for somebody.
    async fn make_topics(&self, function: &FunctionName, manifest: &Manifest, who: &Who) -> Result<(), Refused> {
        let mut made = Vec::new();
        let done = self.topics.make_missing(manifest, &mut made).await;
        if !made.is_empty() {
            let record = Record {
                at_ms: self.clock.now().as_millis(),
                who: who.clone(),
                action: MAKE_TOPIC.to_owned(),
                functions: vec![function.to_string()],
                topics: made,
                result: Outcome::Done,
                ..Record::default()
            };
            self.ledger.write(record).await;
        }
        Ok(done?)
    }
}

/// Whether an action is allowed, beyond being possible: what runs from a directory is that directory's.
fn may(history: &History, action: &Action, prefix: &str) -> Result<(), Refused> {
    history.check(action).map_err(|reason| Refused::Impossible { reason })?;
    let (active, running) = match history.active() {
        Some((revision, source)) => (revision, source),
        None => return Ok(()),
    };
    match (running.origin, action) {
        (Origin::Upload, Action::Deploy(Source { origin: Origin::Directory, .. })) => {
            Err(Refused::Uploaded { revision: active })
        }
        (Origin::Directory, Action::Delete) => Err(Refused::OfDirectory { revision: active }),
        (_, Action::DeployCanary { source, .. }) => {
            let invalid = |reason: String| Refused::Invalid { reason };
            let of_active = |e| invalid(format!("the active revision cannot be compared with: {e}"));
            let (_, running) = running.read(prefix).map_err(of_active)?;
            let (_, settings) = source.read(prefix).map_err(|e| invalid(e.to_string()))?;
            match canary::differing(&running, &settings)[..] {
                [] => Ok(()),
                ref settings => Err(invalid(NoCanary::Differs { settings: settings.to_vec() }.to_string())),
            }
        }
        _ => Ok(()),
    }
}

/// The active revision once this is done; 0 if there is none then.
fn revision_after(history: &History, action: &Action, number: u64) -> u64 {
    match action {
        Action::Deploy(source) | Action::DeployCanary { source, .. } if history.is_done(action) => {
            let is_same = |(_, there): &(u64, &Source)| *there == source;
            let staged = history.staged().filter(is_same);
            let canary = history.canary().map(|(revision, there, _)| (revision, there));
            let canary = canary.filter(|there| is_same(there) && matches!(action, Action::DeployCanary { .. }));
            staged.or(canary).or_else(|| history.active()).map_or(number, |(revision, _)| revision)
        }
        Action::Deploy(_) | Action::DeployCanary { .. } => number,
        Action::Delete => 0,
        action => action.revision().or_else(|| Some(history.active()?.0)).unwrap_or_default(),
    }
}

impl<L: Log> Deployer for Revisions<L> {
    fn has_component(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>> {
        self.log.has_component(digest).boxed()
    }

    fn put_component(&self, digest: Digest, content: Bytes) -> BoxFuture<'_, Result<bool, Refused>> {
        async move {
            let loaded = self.engine.load(content.clone()).await;
            loaded.map_err(|refusal| match refusal {
                Refusal::Unavailable(reason) => Refused::NoCompiler { reason },
                refusal => Refused::Invalid { reason: refusal.to_string() },
            })?;
            if self.log.has_component(digest).await? {
                return Ok(false);
            }
            self.log.put_component(digest, content).await?;
            Ok(true)
        }
        .boxed()
    }

    fn change(
        &self,
        function: FunctionName,
        action: Action,
        builds_on: Option<u64>,
        rehearsal: bool,
        who: Who,
    ) -> BoxFuture<'_, Result<Decided, Refused>> {
        async move {
            self.refresh().await?;
            let history = Self::history(self, &function);
            if let Some(expected) = builds_on.filter(|number| *number != history.latest()) {
                return Err(Refused::conflict(&history, expected));
            }
            let action = history.as_share(action);
            may(&history, &action, &self.prefix)?;
            // What runs already need not be looked at to give up what stands beside it.
            let runs = history.active().map(|(revision, _)| revision);
            let stays = matches!(action, Action::Rollback { to } if runs == Some(to));
            if !stays {
                self.is_signed(&history, &action)?;
            }
            let done = history.is_done(&action);
            if let Some(source) = action.source()
                && !done
            {
                let manifest = self.examine(&function, source).await?;
                if !rehearsal {
                    self.make_topics(&function, &manifest, &who).await?;
                }
            }
            if let Action::Rollback { to } = action
                && !stays
                && let Some(Source { component, .. }) = history.revision(to)
                && !self.log.has_component(*component).await?
            {
                return Err(Refused::Forgotten { revision: to });
            }
            if rehearsal {
                let number = history.latest() + u64::from(!done);
                return Ok(Decided { number, revision: revision_after(&history, &action, number), new: !done });
            }
            let decided = self.propose(&function, action, builds_on, &who.label()).await?;
            lock(&self.here).proposed.insert(function, decided.revision);
            Ok(decided)
        }
        .boxed()
    }

    fn history(&self, function: FunctionName) -> BoxFuture<'_, Result<(History, Vec<Report>), Error>> {
        async move {
            self.refresh().await?;
            Ok((Self::history(self, &function), self.log.reports().await?))
        }
        .boxed()
    }
}
