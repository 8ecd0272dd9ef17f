//! Who asks, and whether that is allowed. What each route needs is in `routes.rs`.

use std::fmt;
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};

use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use futures::future::BoxFuture;
use millrace_core::access::{ADMINISTRATOR, Caller, Denied, Limiter, Permission, Rate, Secret, Token, TokenId, Tokens};
use millrace_core::manifest::Function;
use millrace_core::time::Timestamp;
use tokio::sync::Mutex;

use super::Shared;
use super::audit::Trail;
use super::problem::{Kind, Refusal};
use super::routes::{About, Needs, Row};
use crate::broker::{EntryError, Error};

/// Keeps tokens, in agreement with all other instances.
pub trait Keyring: fmt::Debug + Send + Sync + 'static {
    /// All tokens as this instance knows them: at most about a second behind the log while that answers.
    fn tokens(&self) -> Arc<Tokens>;

    /// All tokens as the log has them, and what a change of these builds on.
    fn refresh(&self) -> BoxFuture<'_, Result<(Arc<Tokens>, u64), Error>>;

    /// Puts a token into the log, or removes it, unless something was changed since what it builds on. It holds here once this is done.
    fn put(&self, id: TokenId, token: Option<Token>, builds_on: u64) -> BoxFuture<'_, Result<(), EntryError>>;
}

/// What the configuration says of who may do what.
#[derive(Clone, Debug)]
pub struct AccessOptions {
    /// Whether everybody may do everything while there is no token at all.
    pub open_without_tokens: bool,
    /// Whether `/metrics` needs no token.
    pub open_metrics: bool,
    /// A token for everything that is not in the log.
    pub admin_token: Option<Secret>,
    /// How many requests a token in the log may send that says nothing of it itself; none means any number.
    pub rate: Option<Rate>,
}

impl Default for AccessOptions {
    fn default() -> Self {
        Self { open_without_tokens: true, open_metrics: false, admin_token: None, rate: None }
    }
}

/// Knows who may do what.
#[derive(Debug)]
pub(super) struct Access {
    options: AccessOptions,
    pub(super) keyring: Option<Arc<dyn Keyring>>,
    everybody: Arc<Caller>,
    administrator: Arc<Caller>,
    /// Held by whoever makes or revokes a token here, so that they do not build on the same. Others can elsewhere.
    pub(super) deciding: Mutex<()>,
    limiter: Lock<Limiter>,
}

impl Access {
    pub(super) fn new(options: AccessOptions) -> Self {
        let [everybody, administrator] = ["", ADMINISTRATOR].map(|name| Arc::new(Caller::unrestricted(name)));
        Self { options, keyring: None, everybody, administrator, deciding: Mutex::default(), limiter: Lock::default() }
    }

    /// Whether there is a token for everything that is not in the log.
    pub(super) const fn has_administrator(&self) -> bool {
        self.options.admin_token.is_some()
    }

    /// Whether requests need no token once there is none in the log.
    pub(super) const fn opens_without_tokens(&self) -> bool {
        self.options.open_without_tokens && self.options.admin_token.is_none()
    }

    /// Whether requests need no token.
    pub(super) fn is_open(&self) -> bool {
        let has_tokens = self.keyring.as_ref().is_some_and(|keyring| keyring.tokens().are_needed());
        self.opens_without_tokens() && !has_tokens
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests of each token were refused because it sends too many.
    pub(super) fn rate_limited(&self) -> Vec<(TokenId, u64)> {
        self.limiter().refused().map(|(id, refused)| (id.clone(), refused)).collect()
    }

    /// Refuses what is more than a token may send. Whoever shows none in the log is not counted.
    fn limit(&self, caller: &Caller, now: Timestamp) -> Result<(), Refusal> {
        let (Some(id), Some(rate)) = (caller.token(), caller.rate().or(self.options.rate)) else { return Ok(()) };
        let admitted = self.limiter().admit(id, rate, now);
        admitted.map_err(|wait| {
            let detail = format_args!(
                "the token {} may send {rate} requests to this instance, and {} at once; send fewer, or ask for a token with a higher rate",
                caller.label(),
                rate.burst()
            );
            Refusal::new(Kind::RateLimited, detail).retry_after(wait)
        })
    }

    /// Who asks.
    fn caller(&self, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Caller>, Refusal> {
        if self.is_open() {
            return Ok(Arc::clone(&self.everybody));
        }
        let known = bearer(headers).and_then(|shown| {
            if self.options.admin_token.is_some_and(|secret| secret.is(shown)) {
                return Some(Arc::clone(&self.administrator));
            }
            self.keyring.as_ref()?.tokens().caller(shown, now).map(Arc::new)
        });
        known.ok_or_else(unauthenticated)
    }
}

/// The same words whatever the reason: whoever guesses learns nothing.
pub(super) fn unauthenticated() -> Refusal {
    let detail = "this needs a token that holds, in the header `Authorization: Bearer <token>`; the command line takes it \
                          from the environment variable MILLRACE_TOKEN or from --token-file";
    Refusal::new(Kind::Unauthenticated, detail)
}

/// The token that a request shows, if it shows exactly one (<https://www.rfc-editor.org/rfc/rfc6750>).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (Some(given), None) = (given.next(), given.next()) else { return None };
    let (scheme, token) = given.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::new(Kind::Forbidden, denied)
    }
}

impl<B, R> Shared<B, R> {
    /// Finds out who sends a request, and refuses what that one may not do. `row` is that of the route, if there is one.
    pub(super) async fn authorize(
        &self,
        row: Option<&Row>,
        request: Request,
        trail: &Trail,
    ) -> Result<Request, Refusal> {
        let (permission, about) = match row.map(|row| row.needs) {
            Some(Needs::Nothing) => return Ok(request),
            Some(Needs::UnlessOpened(..)) if self.access.options.open_metrics => return Ok(request),
            Some(Needs::Permission(permission, about) | Needs::UnlessOpened(permission, about)) => {
                (Some(permission), about)
            }
            None => (None, About::Neither),
        };
        let (mut parts, body) = request.into_parts();
        let params = RawPathParams::from_request_parts(&mut parts, &()).await;
        if let Ok(params) = &params {
            trail.path(params);
        }
        let now = self.clock.now();
        let caller = self.access.caller(&parts.headers, now)?;
        trail.caller(&caller);
        self.access.limit(&caller, now)?;
        if let Some(permission) = permission {
            caller.may(permission)?;
        }
        if about == About::All {
            caller.reaches_all("this")?;
        }
        if matches!(about, About::Function | About::Topic | About::Letter) {
            match params {
                Ok(params) => params.iter().try_for_each(|(name, value)| self.reaches(&caller, name, value))?,
                // It names nothing that there could be.
                Err(_) => caller.reaches_all("this")?,
            }
        }
        parts.extensions.insert(caller);
        parts.extensions.insert(trail.clone());
        Ok(Request::from_parts(parts, body))
    }

    /// Whether somebody may have to do with what a part of a path names.
    fn reaches(&self, caller: &Caller, part: &str, name: &str) -> Result<(), Refusal> {
        match part {
            "function" => Ok(caller.reaches_function(name)?),
            "topic" => self.reaches_topic(caller, name),
            _ => Ok(()),
        }
    }

    /// Whether somebody may have to do with all topics that a function reads or publishes to.
    pub(super) fn reaches_topics_of(&self, caller: &Caller, function: &Function) -> Result<(), Refusal> {
        let mut topics = function.topics.iter().chain(&function.grants.publish);
        topics.try_for_each(|topic| self.reaches_topic(caller, topic.as_str()))
    }

    /// Whether somebody may have to do with a topic.
    pub(super) fn reaches_topic(&self, caller: &Caller, topic: &str) -> Result<(), Refusal> {
        caller.reaches_topic(&self.prefix, topic)?;
        // One has what is kept of tokens, the other one who did what.
        if matches!(topic.strip_prefix(&self.prefix), Some(".registry" | ".audit")) {
            caller.may(Permission::Administer)?;
        }
        Ok(())
    }
}
