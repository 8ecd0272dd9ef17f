//! Making, listing and revoking tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use millrace_core::access::{Caller, Lockout, Pattern, Rate, Shown, Token, TokenId, Tokens};
use millrace_core::limits;
use millrace_core::time::Timestamp;
use millrace_core::units::Period;

use super::access::{Keyring, unauthenticated};
use super::audit::Trail;
use super::problem::{Kind, Refusal};
use super::request::no_query;
use super::{Shared, types};
use crate::broker::{Broker, Catalog, EntryError, Error};
use crate::worker::Revision;

/// How often tokens are looked at again because others change some at the same time.
const TRIES_MAX: usize = 20;

impl From<Lockout> for Refusal {
    fn from(lockout: Lockout) -> Self {
        Self::new(Kind::Lockout, lockout)
    }
}

/// Why a token was not made or revoked.
enum Unchanged {
    /// Nothing was done.
    Refused(Refusal),
    /// It can be done all the same.
    Unsure(Error),
}

impl From<Refusal> for Unchanged {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<B, R> Shared<B, R> {
    /// All tokens as the log has them, for somebody who may see and change them by what it has, and not only by what was known here when
    /// the request came: since then, or on another instance, the first token can have been made, or the caller's own one revoked.
    async fn tokens_for(&self, caller: &Caller) -> Result<(Arc<Tokens>, u64), Refusal> {
        let (tokens, at) = self.keyring()?.refresh().await?;
        let may = match caller.token() {
            Some(id) => tokens.administers(id, self.clock.now()),
            None => !caller.name().is_empty() || !tokens.are_needed(),
        };
        if may { Ok((tokens, at)) } else { Err(unauthenticated()) }
    }

    /// Puts a token into the log, or removes it, if `may` allows that with the tokens that there are. They are the same when it is done:
    /// whenever somebody changes some in between, here or on another instance, they are looked at again.
    async fn change(
        &self,
        caller: &Caller,
        id: &TokenId,
        token: Option<Token>,
        may: impl FnMut(&Tokens) -> Result<(), Refusal> + Send,
    ) -> Result<(), Unchanged> {
        let changing = self.change_however_long(caller, id, token, may);
        let late = |_| Unchanged::Unsure(Error::Transient("the log did not answer in time".to_owned()));
        tokio::time::timeout(limits::TOKEN_CHANGE_TIMEOUT, changing).await.map_err(late)?
    }

    async fn change_however_long(
        &self,
        caller: &Caller,
        id: &TokenId,
        token: Option<Token>,
        mut may: impl FnMut(&Tokens) -> Result<(), Refusal> + Send,
    ) -> Result<(), Unchanged> {
        let keyring = self.keyring()?;
        let _deciding = self.access.deciding.lock().await;
        for _ in 0..TRIES_MAX {
            let (tokens, at) = self.tokens_for(caller).await?;
            may(&tokens)?;
            match keyring.put(id.clone(), token.clone(), at).await {
                Ok(()) => return Ok(()),
                Err(EntryError::Conflict) => {}
                Err(EntryError::Broker(error)) => return Err(Unchanged::Unsure(error)),
            }
        }
        let error = Error::Transient("others change tokens all the time; nothing was done".to_owned());
        Err(Unchanged::Refused(error.into()))
    }

    fn keyring(&self) -> Result<&dyn Keyring, Refusal> {
        let none = || Refusal::new(Kind::UnknownPath, "this server keeps no tokens");
        self.access.keyring.as_deref().ok_or_else(none)
    }
}

/// `GET /v1/tokens`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Json<types::Tokens>, Refusal> {
    no_query(&uri, "all tokens are shown")?;
    let ((tokens, _), now) = (api.tokens_for(&caller).await?, api.clock.now());
    let readable = tokens.iter().map(|(id, token)| shown(id, token, now));
    let unreadable = tokens.unreadable().map(|id| types::Token {
        id: id.to_owned(),
        state: "unreadable".to_owned(),
        ..types::Token::default()
    });
    Ok(Json(types::Tokens { tokens: readable.chain(unreadable).collect() }))
}

fn shown(id: &TokenId, token: &Token, now: Timestamp) -> types::Token {
    let texts = |patterns: &[Pattern]| patterns.iter().map(ToString::to_string).collect();
    types::Token {
        id: id.to_string(),
        name: token.name.clone(),
        roles: token.roles.iter().map(ToString::to_string).collect(),
        functions: texts(&token.functions),
        topics: texts(&token.topics),
        created_at: Timestamp::from_millis(token.created_ms).to_rfc3339(),
        created_by: token.created_by.clone(),
        expires_at: token.expires_ms.map(|at| Timestamp::from_millis(at).to_rfc3339()),
        rate: token.rate.map(|rate| rate.to_string()),
        burst: token.rate.map(Rate::burst),
        state: if token.holds(now) { "valid" } else { "expired" }.to_owned(),
    }
}

/// `POST /v1/tokens`
pub(super) async fn create<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(trail): Extension<Trail>,
    Extension(caller): Extension<Arc<Caller>>,
    request: Request,
) -> Result<Response, Refusal> {
    let asked: types::TokenRequest = api.json_request(request).await?;
    let now = api.clock.now();
    let new = random()?;
    let token = token(asked, &new, &caller, now)?;
    trail.about(format!("token {}", new.id));
    trail.detail(told(&token));
    let answer = types::TokenMade { token: new.text(), made: shown(&new.id, &token, now) };
    let may = |tokens: &Tokens| Ok(tokens.may_add(&token, api.access.has_administrator(), api.clock.now())?);
    let made = api.change(&caller, &new.id, Some(token.clone()), may).await;
    made.map_err(|unchanged| match unchanged {
        Unchanged::Refused(refusal) => refusal,
        // If it is there, and the first one, nobody gets in without it.
        Unchanged::Unsure(error) => Refusal::from(error).and(format_args!(
            "it is not known whether token {id} was made, which is in `token`: keep it. `millrace tokens list` shows whether it is \
             there, with that token if no other one is needed. Who has lost the first one gives the server `http.admin-token-file` \
             and starts it again",
            id = new.id
        )).with_token(new.text()),
    })?;
    tracing::info!(token = %new.id, name = answer.made.name, by = caller.label(), "A token was made.");
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// What a token is for, in a line.
fn told(token: &Token) -> String {
    let roles: Vec<&str> = token.roles.iter().map(|role| role.as_str()).collect();
    let patterns = |kind: &str, patterns: &[Pattern]| {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        if patterns.is_empty() { String::new() } else { format!(", {kind} {}", patterns.join(" ")) }
    };
    let (functions, topics) = (patterns("functions", &token.functions), patterns("topics", &token.topics));
    let rate = token.rate.map_or_else(String::new, |rate| format!(", {rate} and {} at once", rate.burst()));
    format!("{}: {}{functions}{topics}{rate}", token.name, roles.join(" "))
}

/// What somebody asks for.
fn token(asked: types::TokenRequest, new: &Shown, caller: &Caller, now: Timestamp) -> Result<Token, Refusal> {
    let types::TokenRequest { name, roles, functions, topics, expires_in, rate, burst } = asked;
    let malformed = |field: &str, e: &dyn std::fmt::Display| Refusal::malformed(format_args!("`{field}`: {e}"));
    let patterns = |field: &'static str, texts: Vec<String>| {
        texts.iter().map(|text| text.parse().map_err(|e| malformed(field, &e))).collect::<Result<Vec<_>, _>>()
    };
    let expires = expires_in.map(|text| lasting(&text)).transpose().map_err(|e| malformed("expires_in", &e))?;
    let rate = rate.map(|text| text.parse::<Rate>()).transpose().map_err(|e| malformed("rate", &e))?;
    let rate = match (rate, burst) {
        (None, Some(_)) => return Err(malformed("burst", &"it is part of a rate of the token's own; give `rate` too")),
        (Some(rate), Some(burst)) => Some(rate.with_burst(burst).map_err(|e| malformed("burst", &e))?),
        (rate, None) => rate,
    };
    let token = Token {
        name,
        secret: new.secret(),
        roles: roles.iter().map(|role| role.parse().map_err(|e| malformed("roles", &e))).collect::<Result<_, _>>()?,
        functions: patterns("functions", functions)?,
        topics: patterns("topics", topics)?,
        rate,
        created_ms: now.as_millis(),
        created_by: caller.label(),
        expires_ms: expires.map(|after| (now + after).as_millis()),
    };
    token.check().map_err(Refusal::malformed)?;
    Ok(token)
}

/// For how long a token holds.
fn lasting(text: &str) -> Result<Duration, String> {
    let Period(period) = text.parse().map_err(|e: millrace_core::units::InvalidQuantity| e.to_string())?;
    if (Duration::from_secs(1)..=limits::TOKEN_EXPIRY_MAX).contains(&period) {
        return Ok(period);
    }
    Err(format!(
        "write something from 1s to {}, or leave it out for a token that does not expire",
        Period(limits::TOKEN_EXPIRY_MAX)
    ))
}

/// A token that nobody can guess.
fn random() -> Result<Shown, Refusal> {
    let (mut id, mut secret) = ([0; 6], [0; 32]);
    let filled = getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut secret));
    filled.map_err(|e| Refusal::new(Kind::Internal, format_args!("the system gives no random bytes: {e}")))?;
    Ok(Shown::of_random(id, secret))
}

/// `DELETE /v1/tokens/{id}`
pub(super) async fn revoke<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(trail): Extension<Trail>,
    Extension(caller): Extension<Arc<Caller>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::TokenRevoked>, Refusal> {
    no_query(&uri, "the token is revoked for ever")?;
    let Path(id) = id.map_err(|e| Refusal::new(Kind::UnknownToken, e.body_text()))?;
    // What does not look like one may be a whole token, which is not repeated.
    let id: TokenId = id.parse().map_err(|e| Refusal::new(Kind::UnknownToken, e))?;
    let mut name = None;
    let may = |tokens: &Tokens| {
        if !tokens.has(&id) {
            let detail = format_args!("there is no token `{id}`; `millrace tokens list` shows those there are");
            return Err(Refusal::new(Kind::UnknownToken, detail));
        }
        tokens.may_remove(&id, api.access.has_administrator(), api.access.opens_without_tokens())?;
        name = tokens.iter().find(|(one, _)| **one == id).map(|(_, token)| token.name.clone());
        trail.detail(name.as_deref().unwrap_or_default());
        Ok(())
    };
    api.change(&caller, &id, None, may).await.map_err(|unchanged| match unchanged {
        Unchanged::Refused(refusal) => refusal,
        Unchanged::Unsure(error) => {
            Refusal::from(error).and("it is not known whether it was revoked: `millrace tokens list` shows that")
        }
    })?;
    tracing::info!(token = %id, name, by = caller.label(), "A token was revoked.");
    let open = api.access.is_open();
    if open {
        tracing::warn!(
            "The last token was revoked: nobody needs one now, and whoever reaches this server may do everything."
        );
    }
    Ok(Json(types::TokenRevoked { id: id.to_string(), name: name.unwrap_or_default(), open }))
}
