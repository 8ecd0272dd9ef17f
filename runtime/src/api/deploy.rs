//! Uploading components, deploying functions, and what else is done to them. Who decides is told by [`Deployer`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures::future::BoxFuture;
use millrace_core::access::Caller;
use millrace_core::audit::Who;
use millrace_core::canary::Share;
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::manifest::Manifest;
use millrace_core::name::FunctionName;
use millrace_core::revision::{Action, Change, History, Impossible, Source, State as Stands};
use millrace_core::signature::{Signature, Untrusted};
use millrace_core::time::Timestamp;

use super::audit::Trail;
use super::functions::figures;
use super::problem::{Kind, Refusal};
use super::request::{function_of, no_query};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, CatalogError, Error, Report};
use crate::registry::FunctionInfo;
use crate::telemetry::Histogram;
use crate::worker::{Attempts, Revision};

/// How often a change is looked at again because others change the function at the same time.
const TRIES_MAX: usize = 5;

/// Decides about components and revisions, in agreement with all other instances.
pub trait Deployer: fmt::Debug + Send + Sync + 'static {
    /// Whether a component is in the log.
    fn has_component(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>>;

    /// Puts a component into the log, if it can be a handler. Says whether it is new there. The content has this digest.
    fn put_component(&self, digest: Digest, content: Bytes) -> BoxFuture<'_, Result<bool, Refused>>;

    /// Does something to a function, for whoever is named last. With `builds_on` only if that is its latest deployment; in a rehearsal everything is
    /// checked and nothing done.
    fn change(
        &self,
        function: FunctionName,
        action: Action,
        builds_on: Option<u64>,
        rehearsal: bool,
        who: Who,
    ) -> BoxFuture<'_, Result<Decided, Refused>>;

    /// All that was done to a function, and what the instances say of themselves.
    fn history(&self, function: FunctionName) -> BoxFuture<'_, Result<(History, Vec<Report>), Error>>;
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The number of the deployment.
    pub number: u64,
    /// The revision that is active by it; 0 if none is.
    pub revision: u64,
    /// Whether it changes anything.
    pub new: bool,
}

/// Why a component or a change was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// The component or the manifest cannot be used. Says what to do.
    #[error("{reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// The component was not uploaded.
    #[error("there is no component {digest}; upload it first, to /v1/components/{digest}")]
    UnknownComponent {
        /// Its digest.
        digest: Digest,
    },
    /// The component is not signed as it has to be.
    #[error("{reason}")]
    Untrusted {
        /// Why.
        reason: Untrusted,
    },
    /// Somebody else did something in between.
    #[error(
        "its latest deployment is {latest} by now, and this one builds on {expected}: {what}; look at it, then try again"
    )]
    Conflict {
        /// The latest deployment.
        latest: u64,
        /// The one that was built on.
        expected: u64,
        /// What stands now.
        what: String,
    },
    /// It does not fit what was done before.
    #[error("{reason}")]
    Impossible {
        /// Why.
        reason: Impossible,
    },
    /// A process runs it from a directory, and it was not uploaded.
    #[error(
        "revision {revision} runs from a directory; take the function out of the manifest there, and restart that instance"
    )]
    OfDirectory {
        /// The active revision.
        revision: u64,
    },
    /// Its component was removed, because newer revisions are kept.
    #[error("the component of revision {revision} is not kept any more; deploy it again with `millrace deploy`")]
    Forgotten {
        /// The revision.
        revision: u64,
    },
    /// It was uploaded, and a directory cannot take it back.
    #[error("revision {revision} was uploaded and runs")]
    Uploaded {
        /// The active revision.
        revision: u64,
    },
    /// Nothing can be compiled at the moment.
    #[error("the compiler cannot be started: {reason}; try again later")]
    NoCompiler {
        /// Why.
        reason: String,
    },
    /// The topics do not allow it, or the log could not act.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The log could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}

impl Refused {
    /// Somebody else did something to a function since this deployment.
    #[must_use]
    pub fn conflict(history: &History, expected: u64) -> Self {
        let active = match history.active() {
            Some((revision, _)) => format!("revision {revision} is active"),
            None => "none is active".to_owned(),
        };
        let staged =
            history.staged().map_or_else(String::new, |(revision, _)| format!(", revision {revision} is staged"));
        // What instances do of themselves is by nobody.
        let since = history.changes().rev().take_while(|(number, _)| *number > expected);
        let last = since.filter_map(|(_, change)| change.ok()).find(|change| !change.by.is_empty());
        let by = last.map_or_else(String::new, |last| format!(", and {} was the last to change it", last.by));
        Self::Conflict { latest: history.latest(), expected, what: format!("{active}{staged}{by}") }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let kind = match refused {
            Refused::Invalid { .. } => Kind::InvalidFunction,
            Refused::UnknownComponent { .. } => Kind::UnknownComponent,
            Refused::Untrusted { .. } => Kind::InvalidSignature,
            Refused::Forgotten { .. } => Kind::UnknownRevision,
            Refused::Conflict { .. } | Refused::OfDirectory { .. } | Refused::Uploaded { .. } => Kind::Conflict,
            Refused::Impossible { ref reason } => match reason {
                Impossible::Absent => Kind::UnknownFunction,
                Impossible::NoRevision { .. } => Kind::UnknownRevision,
                Impossible::OfDirectory { .. }
                | Impossible::NotStaged { .. }
                | Impossible::NothingBeside
                | Impossible::NoCanary
                | Impossible::NotCanary { .. }
                | Impossible::Unknown { .. } => Kind::Conflict,
            },
            Refused::NoCompiler { .. } => return Self::new(Kind::CompilerUnavailable, refused).retry_soon(),
            Refused::Catalog(CatalogError::PartitionCount { .. }) => Kind::InvalidFunction,
            Refused::Catalog(error) => return error.into(),
            Refused::Broker(error) => return error.into(),
        };
        Self::new(kind, refused)
    }
}

impl<B, R> Shared<B, R> {
    fn deployer(&self) -> Result<&dyn Deployer, Refusal> {
        let none = || Refusal::new(Kind::UnknownPath, "this server takes no deployments");
        self.deployer.as_deref().ok_or_else(none)
    }
}

fn digest_of(path: Result<Path<String>, PathRejection>) -> Result<Digest, Refusal> {
    let Path(text) = path.map_err(|e| Refusal::new(Kind::UnknownComponent, e.body_text()))?;
    text.parse().map_err(|e| Refusal::malformed(format_args!("`{text}`: {e}")))
}

/// `GET /v1/components/{digest}`
pub(super) async fn component<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    digest: Result<Path<String>, PathRejection>,
) -> Result<Json<types::Component>, Refusal> {
    let digest = digest_of(digest)?;
    if api.deployer()?.has_component(digest).await? {
        return Ok(Json(types::Component { digest: digest.to_string(), new: false }));
    }
    Err(Refused::UnknownComponent { digest }.into())
}

/// `PUT /v1/components/{digest}`
pub(super) async fn put_component<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(trail): Extension<Trail>,
    digest: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let digest = digest_of(digest)?;
    let deployer = api.deployer()?;
    // One after the other, so that uploads leave room for the bodies of others. Whoever waits has not sent anything yet.
    let in_turn = tokio::time::timeout(limits::REQUEST_READ_TIMEOUT, api.uploads.acquire()).await;
    let _in_turn =
        in_turn.map_err(|_| Refusal::new(Kind::TooManyRequests, "others upload components; try again").retry_soon())?;
    let (head, body) = request.into_parts();
    let received = api.bodies.read_up_to(&head.headers, body, limits::COMPONENT_MAX_BYTES).await?;
    let content = received.bytes.clone();
    let (content, is) = tokio::task::spawn_blocking(move || {
        let is = Digest::of(&content);
        (content, is)
    })
    .await
    .map_err(|e| Refusal::new(Kind::Internal, e))?;
    if is != digest {
        return Err(Refusal::malformed(format_args!(
            "what arrived has the digest {is}, and not the {digest} of the path; send it again"
        )));
    }
    let bytes = content.len();
    let new = deployer.put_component(digest, content).await?;
    trail.detail(if new { format!("{bytes} bytes") } else { "it was there already".to_owned() });
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(types::Component { digest: digest.to_string(), new })).into_response())
}

/// `PUT /v1/functions/{function}`
pub(super) async fn deploy<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<types::Deployed>, Refusal> {
    let function = function_of(function)?;
    let types::DeployRequest { component, manifest, signature, canary, builds_on, dry_run } =
        api.json_request(request).await?;
    let component: Digest = component.parse().map_err(|e| Refusal::malformed(format_args!("`component`: {e}")))?;
    let source = source(&api, &function, component, &manifest)?;
    // Kept in one form, so that the same one given twice changes nothing.
    let signature = signature.map(|text| Signature::parse(&text)).transpose();
    let signature =
        signature.map_err(|reason| Refusal::from(Refused::Untrusted { reason }).about(&function.to_string()))?;
    let source = Source { signature: signature.map(|signature| signature.to_string()), ..source };
    let action = match canary {
        Some(share) => Action::DeployCanary { source, share: share_of(&share, "canary")? },
        None => Action::Deploy(source),
    };
    change(&api, (&caller, &trail), function, action, builds_on, dry_run).await
}

fn share_of(text: &str, field: &str) -> Result<Share, Refusal> {
    text.parse().map_err(|e| Refusal::malformed(format_args!("`{field}`: {e}")))
}

/// What a manifest says of a function.
fn source<B, R>(
    api: &Shared<B, R>,
    function: &FunctionName,
    component: Digest,
    manifest: &str,
) -> Result<Source, Refusal> {
    let invalid = |reason: String| Refusal::new(Kind::InvalidFunction, reason);
    let (manifest, _warnings) = Manifest::parse_with_prefix(manifest, &api.prefix).map_err(|problems| {
        let told = problems.iter().map(|problem| {
            let (line, path) = (problem.line, &problem.path);
            let help = if problem.help.is_empty() { String::new() } else { format!("; {}", problem.help) };
            format!("line {line} ({path}): {}{help}", problem.message)
        });
        invalid(format!("the manifest cannot be used: {}", told.collect::<Vec<_>>().join("; ")))
    })?;
    let named = manifest.functions.iter().find(|one| one.name == *function).ok_or_else(|| {
        let there_are: Vec<String> = manifest.functions.iter().map(|one| format!("`{}`", one.name)).collect();
        invalid(format!("the manifest has no function `{function}`, only {}", there_are.join(", ")))
    })?;
    Ok(Source::uploaded(&manifest, named, component))
}

impl<B, R> Shared<B, R> {
    /// The number of a function's canary.
    async fn canary_of(&self, function: &FunctionName) -> Result<u64, Refusal> {
        let (history, _) = self.deployer()?.history(function.clone()).await?;
        let canary = history.canary().map(|(revision, ..)| revision);
        canary.ok_or_else(|| {
            let is_there = history.active().is_some() || history.staged().is_some();
            let reason = if is_there { Impossible::NoCanary } else { Impossible::Absent };
            Refusal::from(Refused::Impossible { reason }).about(&function.to_string())
        })
    }

    /// Whether somebody may have to do with all topics that a function reads or publishes to, before a change and after it.
    fn reaches_change(&self, caller: &Caller, history: &History, action: &Action) -> Result<(), Refusal> {
        let after = match action {
            Action::Rollback { to } => history.revision(*to),
            action => action.source(),
        };
        let before = history.active().into_iter().chain(history.staged()).map(|(_, source)| source);
        let before = before.chain(history.canary().map(|(_, source, _)| source));
        before.chain(after).try_for_each(|source| {
            let Ok((_, function)) = source.read(&self.prefix) else {
                return Ok(caller.reaches_all("a revision whose manifest cannot be read")?);
            };
            self.reaches_topics_of(caller, &function)
        })
    }
}

/// The deployment that a change has to build on, if it matters. Somebody with patterns may change what was looked at, and not what
/// somebody else makes of it meanwhile.
async fn allowed<B, R>(
    api: &Shared<B, R>,
    caller: &Caller,
    function: &FunctionName,
    action: &Action,
    builds_on: Option<u64>,
) -> Result<Option<u64>, Refusal> {
    if caller.is_for_all() {
        return Ok(builds_on);
    }
    let (history, _) = api.deployer()?.history(function.clone()).await?;
    api.reaches_change(caller, &history, action)?;
    match builds_on.filter(|expected| *expected != history.latest()) {
        Some(expected) => Err(Refusal::from(Refused::conflict(&history, expected)).about(&function.to_string())),
        None => Ok(Some(history.latest())),
    }
}

pub(super) async fn change<B, R>(
    api: &Shared<B, R>,
    (caller, trail): (&Caller, &Trail),
    function: FunctionName,
    action: Action,
    builds_on: Option<u64>,
    rehearsal: bool,
) -> Result<Json<types::Deployed>, Refusal> {
    let (name, deployer) = (function.to_string(), api.deployer()?);
    trail.rehearses(rehearsal);
    let mut tries = 1..TRIES_MAX;
    let decided = loop {
        let allowed = allowed(api, caller, &function, &action, builds_on).await?;
        let done = deployer.change(function.clone(), action.clone(), allowed, rehearsal, trail.who()).await;
        let is_overtaken = matches!(done, Err(Refused::Conflict { .. })) && builds_on != allowed;
        if !is_overtaken || tries.next().is_none() {
            break done;
        }
    };
    let Decided { number, revision, new } = decided.map_err(|e| Refusal::from(e).about(&name))?;
    match (new, revision) {
        (false, _) => trail.detail("it was so already"),
        (true, 0) => trail.detail(format_args!("deployment {number}")),
        (true, _) => trail.detail(format_args!("deployment {number}, revision {revision}")),
    }
    Ok(Json(types::Deployed { function: name, number, revision: (revision > 0).then_some(revision), new }))
}

/// `POST /v1/functions/{function}/rollback`
pub(super) async fn rollback<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<types::Deployed>, Refusal> {
    let function = function_of(function)?;
    let types::RollbackRequest { to, builds_on, dry_run } = api.json_request(request).await?;
    let to = match to {
        Some(to) => to,
        None => {
            let (history, _) = api.deployer()?.history(function.clone()).await?;
            history.back().ok_or_else(|| {
                let reason = format!("`{function}` has no earlier revision that was uploaded; name one with `to`");
                Refusal::new(Kind::UnknownRevision, reason)
            })?
        }
    };
    change(&api, (&caller, &trail), function, Action::Rollback { to }, builds_on, dry_run).await
}

/// `POST /v1/functions/{function}/promote`
pub(super) async fn promote<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<types::Deployed>, Refusal> {
    let function = function_of(function)?;
    let types::PromoteRequest { revision, builds_on, dry_run } = api.json_request(request).await?;
    let revision = match revision {
        Some(revision) => revision,
        None => api.canary_of(&function).await?,
    };
    change(&api, (&caller, &trail), function, Action::Promote { revision }, builds_on, dry_run).await
}

/// `POST /v1/functions/{function}/canary`
pub(super) async fn canary<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<types::Deployed>, Refusal> {
    let function = function_of(function)?;
    let types::CanaryRequest { share, builds_on, dry_run } = api.json_request(request).await?;
    let share = share_of(&share, "share")?;
    let revision = api.canary_of(&function).await?;
    change(&api, (&caller, &trail), function, Action::Canary { revision, share }, builds_on, dry_run).await
}

/// `POST /v1/functions/{function}/pause`
pub(super) async fn pause<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::Deployed>, Refusal> {
    no_query(&uri, "a function is paused as a whole")?;
    change(&api, (&caller, &trail), function_of(function)?, Action::Pause, None, false).await
}

/// `POST /v1/functions/{function}/resume`
pub(super) async fn resume<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::Deployed>, Refusal> {
    no_query(&uri, "a function is resumed as a whole")?;
    change(&api, (&caller, &trail), function_of(function)?, Action::Resume, None, false).await
}

/// `DELETE /v1/functions/{function}`
pub(super) async fn delete<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    function: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::Deployed>, Refusal> {
    no_query(&uri, "a function is deleted as a whole")?;
    change(&api, (&caller, &trail), function_of(function)?, Action::Delete, None, false).await
}

/// `GET /v1/functions/{function}/revisions`
pub(super) async fn revisions<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    function: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::Revisions>, Refusal> {
    no_query(&uri, "all deployments of the function are shown")?;
    let function = function_of(function)?;
    let (history, reports) = api.deployer()?.history(function.clone()).await?;
    if history.latest() == 0 {
        return Err(Refusal::from(Refused::Impossible { reason: Impossible::Absent }).about(&function.to_string()));
    }
    let now = api.clock.now();
    let here = api.registry.function(&function);
    let (state, active, paused) = match *history.state() {
        Stands::Absent if history.staged().is_some() => ("staged", None, false),
        Stands::Absent => ("deleted", None, false),
        Stands::Active { revision, paused } => ("active", Some(revision), paused),
        Stands::Unknown { .. } => ("unknown", None, false),
    };
    let instances: Vec<_> = reports.iter().filter_map(|report| instance(report, &function, now)).collect();
    Ok(Json(types::Revisions {
        function: function.to_string(),
        state: state.to_owned(),
        latest: history.latest(),
        active,
        staged: history.staged().map(|(revision, _)| revision),
        staged_share: history.staged_share().map(|share| share.to_string()),
        canary: history.canary().map(|(revision, _, share)| types::Canary { revision, share: share.to_string() }),
        previous: history.back(),
        paused,
        figures: compared(here.as_ref(), &instances, &history),
        deployments: history.changes().map(|(number, change)| deployment(number, change)).collect(),
        instances,
    }))
}

/// What attempts came to on all live instances, by revision.
fn compared(
    here: Option<&FunctionInfo>,
    instances: &[types::Instance],
    history: &History,
) -> Vec<types::RevisionFigures> {
    let others = instances.iter().filter(|one| one.live && !one.asked).flat_map(|one| &one.here.attempts);
    let others = others.map(|types::AttemptsHere { revision, failed, seconds, durations }| {
        let invoke = Histogram::told(durations, Duration::try_from_secs_f64(*seconds).unwrap_or_default());
        Attempts { revision: *revision, failed: invoke.count().min(*failed), invoke }
    });
    let own = here.map(FunctionInfo::compared_attempts).unwrap_or_default();
    let all = Attempts::by_revision(own.into_iter().chain(others));
    let run = [history.active().map(|(active, _)| active), history.canary().map(|(canary, ..)| canary)];
    // What is no newest one to all is not told by all.
    Attempts::compared(all, |revision| run.contains(&Some(revision))).iter().map(figures).collect()
}

fn deployment(number: u64, change: Result<&Change, &str>) -> types::Deployment {
    let mut shown = types::Deployment { number, ..types::Deployment::default() };
    let Change { action, at, by } = match change {
        Ok(change) => change,
        Err(_) => {
            "unknown".clone_into(&mut shown.action);
            return shown;
        }
    };
    (shown.at, shown.by) = (at.clone(), by.clone());
    if let Some(source) = action.source() {
        shown.component = Some(source.component.to_string());
        shown.manifest = Some(source.manifest.clone());
        shown.origin = Some(source.origin);
        shown.signature.clone_from(&source.signature);
    }
    let word = match action {
        Action::Deploy(_) => "deploy",
        Action::DeployCanary { share, .. } => {
            shown.share = Some(share.to_string());
            "deploy"
        }
        Action::Activate { revision } => {
            shown.to = Some(*revision);
            "activate"
        }
        Action::Canary { revision, share } => {
            (shown.to, shown.share) = (Some(*revision), Some(share.to_string()));
            "canary"
        }
        Action::Promote { revision } => {
            shown.to = Some(*revision);
            "promote"
        }
        Action::Rollback { to } => {
            shown.to = Some(*to);
            "rollback"
        }
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::Delete => "delete",
        Action::Reset { positions, .. } => {
            shown.partitions = Some(positions.len() as u64);
            "reset"
        }
    };
    word.clone_into(&mut shown.action);
    shown
}

/// What an instance says of one function, if it says anything that can be read.
fn instance(report: &Report, function: &FunctionName, now: Timestamp) -> Option<types::Instance> {
    let said: types::InstanceReport = serde_json::from_slice(&report.content).ok()?;
    if said.ended {
        return None;
    }
    let here = said.functions.get(&function.to_string()).cloned().unwrap_or_default();
    let live = now.since(report.at) < types::INSTANCE_LIVE_FOR;
    let (instance, at, asked) = (report.instance.clone(), report.at.to_rfc3339(), report.own);
    Some(types::Instance { instance, at, live, asked, here })
}
