//! The HTTP API: publishing, and everything that people and tools ask and do.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/topics/{topic}/events` | [`types::Published`], `202` once durable |
//! | `GET /v1/topics?internal=` | [`types::Topics`] |
//! | `GET /v1/topics/{topic}/events?partition=&from=&limit=&wait=` | [`types::Records`] |
//! | `GET /v1/functions`, `GET /v1/status` | [`types::Status`] |
//! | `GET /v1/functions/{function}` | [`types::FunctionStatus`] |
//! | `GET`, `PUT /v1/components/{digest}` | [`types::Component`], `201` if it is new |
//! | `PUT /v1/functions/{function}` | [`types::Deployed`] to a [`types::DeployRequest`] |
//! | `DELETE /v1/functions/{function}`, `POST …/pause`, `…/resume` | [`types::Deployed`] |
//! | `POST /v1/functions/{function}/rollback` | [`types::Deployed`] to a [`types::RollbackRequest`] |
//! | `POST /v1/functions/{function}/promote` | [`types::Deployed`] to a [`types::PromoteRequest`] |
//! | `POST /v1/functions/{function}/canary` | [`types::Deployed`] to a [`types::CanaryRequest`] |
//! | `GET /v1/functions/{function}/revisions` | [`types::Revisions`] |
//! | `GET /v1/dead-letters?function=&status=&category=&topic=&after=&limit=` | [`types::DeadLetters`] |
//! | `GET /v1/dead-letters/{function}/{topic}/{partition}/{offset}` | [`types::DeadLetter`] |
//! | `POST /v1/dead-letters/redrive`, `…/resolve`, `…/discard` | [`types::LetterAnswer`] to a [`types::LetterRequest`] |
//! | `GET /v1/audit?function=&topic=&by=&action=&result=&since=&before=&limit=` | [`types::Audit`] |
//! | `GET /v1/tokens` | [`types::Tokens`] |
//! | `POST /v1/tokens` | [`types::TokenMade`] to a [`types::TokenRequest`], `201` |
//! | `DELETE /v1/tokens/{id}` | [`types::TokenRevoked`] |
//! | `GET /livez`, `GET /readyz` | [`types::Health`] |
//! | `GET /metrics` | figures for Prometheus |
//! | `GET /v1/openapi.json` | all of this for programs: [`openapi_document`] |
//!
//! Any other answer is a [`types::Problem`]; those with `Retry-After` are worth repeating. `429` means too much at once,
//! `503` that the log is full, failed or out of reach, or that the process is starting or ending.
//!
//! **Who may do what.** Each request shows a token as `Authorization: Bearer <token>`; what each route needs is a row of `routes.rs`.
//! `/livez` and `/readyz` need none, and nothing does while there is no token at all and the API listens for this machine alone.
//! Without a token that holds the answer is `401`, and `403` if it does not allow this; lists leave out what it does not allow.
//!
//! **Publishing.** `application/cloudevents+json` is one event, `application/cloudevents-batch+json` a list, all of which
//! is published or nothing. With `ce-` headers the body is an event's data; without them it is plain: the event is made
//! here, with the `Idempotency-Key` or else a random id, [`PLAIN_SOURCE`] and
//! [`PLAIN_TYPE`](millrace_core::codec::PLAIN_TYPE). The ordering key is the header `Millrace-Key`, else the extension
//! `partitionkey`. `traceparent` and `tracestate` become extensions of events that have none.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State as Given};
use axum::http::Uri;
use axum::http::header::ALLOW;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use millrace_core::limits;
use millrace_core::name::{DEFAULT_PREFIX, FunctionName};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::broker::{Broker, Catalog, Error};
use crate::clock::Clock;
use crate::registry::Registry;
use crate::tls;
use crate::worker::Revision;

mod access;
mod audit;
mod body;
mod deploy;
mod functions;
mod guard;
mod ingest;
mod letters;
mod metrics;
mod openapi;
mod problem;
mod request;
mod reset;
mod routes;
mod serve;
mod state;
#[cfg(test)]
mod tests;
mod tokens;
mod topics;
mod trace;
pub mod types;

use access::Access;
pub use access::{AccessOptions, Keyring};
use audit::Trail;
pub use audit::{Journal, MAKE_TOPIC};
pub use deploy::{Decided, Deployer, Refused};
use guard::Guard;
pub use ingest::PLAIN_SOURCE;
use metrics::Metrics;
pub use openapi::document as openapi_document;
use problem::{Kind, Refusal};
use routes::{
    AUDIT, CANARY, COMPONENT, DISCARD, FUNCTION, FUNCTIONS, LETTER, LETTERS, LIVE, METRICS, OPENAPI, PAUSE, PROMOTE,
    PUBLISH, READY, REDRIVE, RESET, RESOLVE, RESUME, REVISIONS, ROLLBACK, Row, SKIP, STATE, STATUS, TOKEN, TOKENS,
    TOPICS,
};
pub use serve::serve;

/// What the API can be told.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Names of this host beyond `localhost` and its addresses, with a port or for any port.
    pub allowed_hosts: Vec<String>,
    /// What everything of ours in the broker begins with.
    pub prefix: String,
    /// Who may do what.
    pub access: AccessOptions,
    /// Requests served at the same time, at least 1; health checks do not count.
    pub max_concurrent: usize,
    /// Largest body of a request.
    pub max_body_bytes: usize,
    /// How long requests under way may take to come to their end when serving ends.
    pub drain: Duration,
    /// The certificate that is shown; without one plain HTTP is spoken.
    pub tls: Option<Arc<tls::Identity>>,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            prefix: DEFAULT_PREFIX.to_owned(),
            access: AccessOptions::default(),
            max_concurrent: limits::REQUESTS_IN_FLIGHT_MAX,
            max_body_bytes: limits::REQUEST_MAX_BYTES,
            drain: Duration::from_secs(10),
            tls: None,
        }
    }
}

/// The API of one process. Cheap to clone.
#[derive(Debug)]
pub struct Api<B, R> {
    shared: Arc<Shared<B, R>>,
}

impl<B, R> Clone for Api<B, R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B: Broker + Catalog, R: Revision> Api<B, R> {
    /// An API that says it is starting until [`Api::set_ready`].
    #[must_use]
    pub fn new(options: ApiOptions, broker: Arc<B>, registry: Registry<B, R>, clock: Clock) -> Self {
        let ApiOptions { allowed_hosts, prefix, access, max_concurrent, max_body_bytes, drain, tls } = options;
        let shared = Shared {
            guard: Guard::new(&allowed_hosts),
            access: Access::new(access),
            prefix,
            in_flight: Semaphore::new(max_concurrent.clamp(1, Semaphore::MAX_PERMITS)),
            bodies: body::Intake::new(max_body_bytes),
            long_polls: Semaphore::new(limits::LONG_POLLS_MAX),
            uploads: Semaphore::new(1),
            drain,
            tls,
            failure: registry.failure(),
            stage: watch::Sender::new(Stage::Starting),
            changing: watch::Sender::new(0),
            ids: Ids::new(),
            metrics: Metrics::new(),
            deployer: None,
            journal: None,
            broker,
            registry,
            clock,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The same, where functions can be deployed. To be called before it is cloned.
    #[must_use]
    pub fn with_deployer(mut self, deployer: Arc<dyn Deployer>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.deployer = Some(deployer);
        }
        self
    }

    /// The same, with tokens. To be called before it is cloned.
    #[must_use]
    pub fn with_keyring(mut self, keyring: Arc<dyn Keyring>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.access.keyring = Some(keyring);
        }
        self
    }

    /// The same, where it is written down who does what. To be called before it is cloned.
    #[must_use]
    pub fn with_journal(mut self, journal: Arc<dyn Journal>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.journal = Some(journal);
        }
        self
    }

    /// Says that all functions have been activated or refused. Has no effect once draining has begun.
    pub fn set_ready(&self) {
        self.shared.stage.send_if_modified(|stage| {
            let is_starting = *stage == Stage::Starting;
            if is_starting {
                *stage = Stage::Ready;
            }
            is_starting
        });
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared<B, R> {
    broker: Arc<B>,
    registry: Registry<B, R>,
    /// Without it nothing can be deployed here.
    deployer: Option<Arc<dyn Deployer>>,
    /// Without it nothing is written down of who does what.
    journal: Option<Arc<dyn Journal>>,
    clock: Clock,
    prefix: String,
    guard: Guard,
    access: Access,
    in_flight: Semaphore,
    bodies: body::Intake,
    long_polls: Semaphore,
    uploads: Semaphore,
    drain: Duration,
    tls: Option<Arc<tls::Identity>>,
    failure: watch::Receiver<Option<Error>>,
    stage: watch::Sender<Stage>,
    /// Requests under way that change something.
    changing: watch::Sender<usize>,
    ids: Ids,
    metrics: Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Draining,
}

/// Whether the process is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Starting,
    Draining,
    Failed(String),
    /// These functions do not run.
    Refused(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Starting => f.write_str("starting"),
            Self::Draining => f.write_str("draining"),
            Self::Failed(error) => write!(f, "log failed: {error}"),
            Self::Refused(functions) => write!(f, "functions refused: {functions}"),
        }
    }
}

impl State {
    /// As it may be told to everybody, without names and reasons.
    const fn brief(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Failed(_) => "log failed; the server's log says why",
            Self::Refused(_) => "functions refused; `millrace status` says which",
        }
    }
}

impl<B: Broker, R: Revision> Shared<B, R> {
    fn state(&self) -> State {
        self.state_for(|_| true)
    }

    /// The same, as far as it is about functions that somebody may see.
    fn state_for(&self, sees: impl Fn(&FunctionName) -> bool) -> State {
        if let Some(error) = &*self.failure.borrow() {
            return State::Failed(error.to_string());
        }
        match *self.stage.borrow() {
            Stage::Starting => State::Starting,
            Stage::Draining => State::Draining,
            Stage::Ready => {
                let refused = self.registry.refused();
                let seen: Vec<String> = refused.keys().filter(|name| sees(name)).map(ToString::to_string).collect();
                if seen.is_empty() { State::Ready } else { State::Refused(seen.join(", ")) }
            }
        }
    }
}

impl<B, R> Shared<B, R> {
    fn begin_to_drain(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Waits, but not beyond the end of serving; says whether that has come.
    async fn pause(&self, time: Duration) -> bool {
        let mut stage = self.stage.subscribe();
        let draining = stage.wait_for(|stage| *stage == Stage::Draining);
        tokio::time::timeout(time, draining).await.is_ok()
    }
}

/// The address that a connection was made to.
#[derive(Clone, Copy, Debug)]
struct Local(Option<IpAddr>);

/// The address that a connection comes from.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

/// Makes ids that do not repeat: 128 bits of SipHash of a counter, under keys that the system chose at random.
#[derive(Debug)]
struct Ids {
    keys: [RandomState; 2],
    counter: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], counter: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [high, low] = [&self.keys[0], &self.keys[1]].map(|key| key.hash_one(count));
        format!("{high:016x}{low:016x}")
    }
}

fn router<B: Broker + Catalog, R: Revision>(shared: Arc<Shared<B, R>>) -> Router {
    Router::new()
        .route(PUBLISH, get(topics::read::<B, R>).post(ingest::publish::<B, R>))
        .route(TOPICS, get(topics::list::<B, R>))
        .route(FUNCTIONS, get(functions::list::<B, R>))
        .route(COMPONENT, get(deploy::component::<B, R>).put(deploy::put_component::<B, R>))
        .route(FUNCTION, get(functions::show::<B, R>).put(deploy::deploy::<B, R>).delete(deploy::delete::<B, R>))
        .route(REVISIONS, get(deploy::revisions::<B, R>))
        .route(ROLLBACK, post(deploy::rollback::<B, R>))
        .route(PROMOTE, post(deploy::promote::<B, R>))
        .route(CANARY, post(deploy::canary::<B, R>))
        .route(PAUSE, post(deploy::pause::<B, R>))
        .route(RESUME, post(deploy::resume::<B, R>))
        .route(RESET, post(reset::reset::<B, R>))
        .route(SKIP, post(functions::skip::<B, R>))
        .route(STATE, get(state::list::<B, R>))
        .route(STATUS, get(functions::list::<B, R>))
        .route(LETTERS, get(letters::list::<B, R>))
        .route(LETTER, get(letters::show::<B, R>))
        .route(REDRIVE, post(letters::redrive::<B, R>))
        .route(RESOLVE, post(letters::resolve::<B, R>))
        .route(DISCARD, post(letters::discard::<B, R>))
        .route(AUDIT, get(audit::list::<B, R>))
        .route(TOKENS, get(tokens::list::<B, R>).post(tokens::create::<B, R>))
        .route(TOKEN, delete(tokens::revoke::<B, R>))
        .route(OPENAPI, get(|| async { Json(openapi_document()) }))
        .route(LIVE, get(live))
        .route(READY, get(ready::<B, R>))
        .route(METRICS, get(metrics::show::<B, R>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), enter::<B, R>))
        .with_state(shared)
}

/// What happens to every request before its route and after it.
async fn enter<B: Broker + Catalog, R: Revision>(
    Given(api): Given<Arc<Shared<B, R>>>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let route = routes::template(matched);
    let method = request.method().clone();
    let row = routes::row_of(method.as_str(), route);
    let answering = answer(Arc::clone(&api), (route, row), request, next);
    let answer = match row {
        Some(Row { changes: true, .. }) => to_its_end(Arc::clone(&api), answering).await,
        _ => answering.await,
    };
    api.metrics.answered(&method, route, answer.status(), begun.elapsed());
    answer
}

/// A client can give up at any time; what changes something goes on all the same, so that it is known and written down how it ended.
async fn to_its_end<B: Broker, R: Revision>(
    api: Arc<Shared<B, R>>,
    answering: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let change = Change::begin(api);
    let answering = async move {
        let _change = change;
        answering.await
    };
    match tokio::spawn(answering).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Refusal::new(Kind::Internal, error).into_response(),
    }
}

/// A request that changes something, until it is answered and written down.
struct Change<B, R>(Arc<Shared<B, R>>);

impl<B, R> Change<B, R> {
    fn begin(api: Arc<Shared<B, R>>) -> Self {
        api.changing.send_modify(|changes| *changes += 1);
        Self(api)
    }
}

impl<B, R> Drop for Change<B, R> {
    fn drop(&mut self) {
        self.0.changing.send_modify(|changes| *changes -= 1);
    }
}

/// A route, and its row if the table has one.
type Matched = (&'static str, Option<&'static Row>);

async fn answer<B, R>(api: Arc<Shared<B, R>>, matched: Matched, request: Request, next: Next) -> Response {
    let trail = Trail::from(request.extensions().get::<Peer>().copied());
    let admitted = admit(&api, matched, request, next, &trail).await;
    let answer = admitted.unwrap_or_else(IntoResponse::into_response);
    let record = trail.record(matched.1, &answer, api.clock.now());
    if let (Some(record), Some(journal)) = (record, &api.journal) {
        journal.write(record).await;
    }
    answer
}

async fn admit<B, R>(
    api: &Shared<B, R>,
    (route, row): Matched,
    request: Request,
    next: Next,
    trail: &Trail,
) -> Result<Response, Refusal> {
    let local = request.extensions().get::<Local>().and_then(|Local(address)| *address);
    api.guard.check(request.uri(), request.headers(), local)?;
    let request = api.authorize(row, request, trail).await?;
    // Whatever the table does not have is not reached, even if the router knows it.
    if row.is_none() && route.is_empty() {
        return Ok(unknown_path(request.uri().clone()).await.into_response());
    }
    if row.is_none() {
        let allow = [(ALLOW, routes::methods(route))];
        return Ok((allow, method_not_allowed().await).into_response());
    }
    // Whoever asks whether we are well must not be told that we are busy.
    if matches!(route, LIVE | READY) {
        return Ok(next.run(request).await);
    }
    let _permit = api.in_flight.try_acquire().map_err(|_| {
        Refusal::new(Kind::TooManyRequests, "too many requests are being served; try again").retry_soon()
    })?;
    let _active = Active::begin(&api.metrics);
    Ok(next.run(request).await)
}

/// A request that is being served, until it is dropped: a client can give up at any time.
struct Active<'a>(&'a Metrics);

impl<'a> Active<'a> {
    fn begin(metrics: &'a Metrics) -> Self {
        metrics.begun();
        Self(metrics)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// `GET /livez`
async fn live() -> Json<types::Health> {
    Json(types::Health { state: "live".to_owned() })
}

/// `GET /readyz`
async fn ready<B: Broker + Catalog, R: Revision>(
    Given(api): Given<Arc<Shared<B, R>>>,
) -> Result<Json<types::Health>, Refusal> {
    match api.state() {
        State::Ready => Ok(Json(types::Health { state: State::Ready.to_string() })),
        state if api.access.is_open() => Err(Refusal::new(Kind::NotReady, state).retry_soon()),
        state => Err(Refusal::new(Kind::NotReady, state.brief()).retry_soon()),
    }
}

async fn unknown_path(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(Kind::UnknownPath, format_args!("there is nothing at `{path}`; the API is under /v1"))
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(Kind::MethodNotAllowed, "the header `Allow` says which methods are possible here")
}
