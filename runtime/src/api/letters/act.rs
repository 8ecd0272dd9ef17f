//! Redriving, resolving and discarding.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use millrace_core::access::Caller;
use millrace_core::limits;
use millrace_core::name::FunctionName;

use super::super::audit::Trail;
use super::super::problem::Refusal;
use super::super::request::parsed;
use super::super::{Shared, types};
use super::scan::{Filter, scan};
use crate::broker::{Broker, Catalog, CatalogError, Force, LetterAction, LetterId, LetterStatus};
use crate::worker::Revision;

type Answer = Result<Json<types::LetterAnswer>, Refusal>;

/// `POST /v1/dead-letters/redrive`
pub(in super::super) async fn redrive<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    request: Request,
) -> Answer {
    let request = api.letter_request(request).await?;
    if request.note.is_some() {
        return Err(Refusal::malformed("`note` goes with resolve and discard; leave it out to redrive"));
    }
    api.act((&caller, &trail), &request, &LetterAction::Redrive).await
}

/// `POST /v1/dead-letters/resolve`
pub(in super::super) async fn resolve<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    request: Request,
) -> Answer {
    let request = api.letter_request(request).await?;
    let note = request.note.clone();
    api.act((&caller, &trail), &request, &LetterAction::Resolve(note)).await
}

/// `POST /v1/dead-letters/discard`
pub(in super::super) async fn discard<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    Extension(trail): Extension<Trail>,
    request: Request,
) -> Answer {
    let request = api.letter_request(request).await?;
    let note = request.note.clone().filter(|note| !note.trim().is_empty());
    let note = note.ok_or_else(|| Refusal::malformed("`note` is missing: say why these events are given up"))?;
    api.act((&caller, &trail), &request, &LetterAction::Discard(note)).await
}

impl<B: Broker + Catalog, R: Revision> Shared<B, R> {
    async fn letter_request(&self, request: Request) -> Result<types::LetterRequest, Refusal> {
        let request: types::LetterRequest = self.json_request(request).await?;
        if request.note.as_ref().is_some_and(|note| note.len() > limits::NOTE_MAX_BYTES) {
            return Err(Refusal::malformed(format_args!("`note` can have {} bytes", limits::NOTE_MAX_BYTES)));
        }
        Ok(request)
    }

    async fn act(
        &self,
        (caller, trail): (&Caller, &Trail),
        request: &types::LetterRequest,
        action: &LetterAction,
    ) -> Answer {
        let force = if request.force { Force::Yes } else { Force::No };
        trail.rehearses(request.dry_run);
        let (mut chosen, next) = match Choice::of(request)? {
            Choice::Named { function, ids } => {
                trail.functions([&function]);
                trail.topics(ids.iter().map(|id| &id.topic));
                caller.reaches_function(function.as_str())?;
                ids.iter().try_for_each(|id| self.reaches_topic(caller, id.topic.as_str()))?;
                (self.named(&function, ids, force).await?, None)
            }
            Choice::Matching(filter) => {
                trail.functions(&filter.function);
                let after = parsed("after", request.after.as_deref())?;
                let functions = self.functions_with_letters(&filter, caller).await?;
                let name = |letter: crate::broker::StoredLetter| (letter.function, letter.id);
                let take = |letter| (filter.matches(&letter) && self.sees(caller, &letter)).then(|| name(letter));
                scan(&*self.broker, &functions, after, limits::PAGE_MAX_ITEMS, take).await?
            }
        };
        if !request.dry_run {
            let patient = request.ids.is_empty();
            chosen = self.act_on(chosen, action, force, patient).await?;
        }
        trail.functions(chosen.iter().map(|(function, _)| function));
        trail.topics(chosen.iter().map(|(_, id)| &id.topic));
        trail.detail(format_args!("{} letters", chosen.len()));
        let letters = chosen
            .into_iter()
            .map(|(function, id)| types::LetterName { function: function.to_string(), id: id.to_string() });
        let answer = types::LetterAnswer {
            dry_run: request.dry_run,
            letters: letters.collect(),
            next: next.map(|next| next.to_string()),
        };
        Ok(Json(answer))
    }

    /// The named letters, all of which exist and may change: so a request that names a wrong one changes nothing.
    async fn named(&self, function: &FunctionName, ids: Vec<LetterId>, force: Force) -> Result<Vec<Chosen>, Refusal> {
        for id in &ids {
            let letter = self.broker.letter(function, id).await?;
            if letter.status != LetterStatus::Open && force == Force::No {
                let (function, id, status) = (letter.function, letter.id, letter.status);
                return Err(CatalogError::NotOpen { function, id, status }.into());
            }
        }
        Ok(ids.into_iter().map(|id| (function.clone(), id)).collect())
    }

    /// Acts on letters a bounded number at a time, and answers with those that changed. Where a filter chose them
    /// (`patient`), one that another person was faster with is left out.
    async fn act_on(
        &self,
        chosen: Vec<Chosen>,
        action: &LetterAction,
        force: Force,
        patient: bool,
    ) -> Result<Vec<Chosen>, Refusal> {
        let total = chosen.len();
        let mut done = Vec::with_capacity(total);
        let of_one_function = chosen.chunk_by(|(a, _), (b, _)| a == b);
        for chunk in of_one_function.flat_map(|chosen| chosen.chunks(limits::LETTERS_AT_ONCE)) {
            let Some((function, _)) = chunk.first() else { continue };
            let mut ids: Vec<LetterId> = chunk.iter().map(|(_, id)| id.clone()).collect();
            while !ids.is_empty() {
                match self.broker.act_on_letters(function, &ids, action.clone(), force).await {
                    Ok(()) => break,
                    Err(CatalogError::NotOpen { id, .. }) if patient && ids.contains(&id) => ids.retain(|i| *i != id),
                    Err(error) if done.is_empty() => return Err(error.into()),
                    Err(error) => {
                        let done = done.len();
                        return Err(Refusal::from(error).and(format_args!("{done} of {total} letters have changed")));
                    }
                }
            }
            done.extend(ids.into_iter().map(|id| (function.clone(), id)));
        }
        Ok(done)
    }
}

type Chosen = (FunctionName, LetterId);

/// Which letters a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Named { function: FunctionName, ids: Vec<LetterId> },
    Matching(Filter),
}

impl Choice {
    fn of(request: &types::LetterRequest) -> Result<Self, Refusal> {
        let types::LetterRequest { function, ids, category, topic, reason_contains, all, force, after, .. } = request;
        let filter = Filter {
            function: parsed("function", function.as_deref())?,
            status: (!force).then_some(LetterStatus::Open),
            category: parsed("category", category.as_deref())?,
            topic: parsed("topic", topic.as_deref())?,
            reason_contains: reason_contains.clone(),
        };
        let narrows = category.is_some() || topic.is_some() || reason_contains.is_some();
        if ids.is_empty() {
            if *all && function.is_some() {
                return Err(Refusal::malformed("`all` means every function's letters; leave out `function` or `all`"));
            }
            if !*all && !narrows && function.is_none() {
                return Err(Refusal::malformed(
                    "name letters by `ids`, choose them by `function`, `category`, `topic` or `reason_contains`, or say \
                     `all`",
                ));
            }
            return Ok(Self::Matching(filter));
        }
        if *all || narrows || after.is_some() {
            return Err(Refusal::malformed("`ids` name the letters; leave out `all`, `after` and the filters"));
        }
        let Some(function) = filter.function else {
            return Err(Refusal::malformed("`function` is missing: ids are known within one function"));
        };
        Ok(Self::Named { function, ids: letter_ids(ids)? })
    }
}

fn letter_ids(texts: &[String]) -> Result<Vec<LetterId>, Refusal> {
    if texts.len() > limits::PAGE_MAX_ITEMS {
        return Err(Refusal::malformed(format_args!("name at most {} `ids` at once", limits::PAGE_MAX_ITEMS)));
    }
    let mut ids = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        ids.push(text.parse().map_err(|e| Refusal::malformed(format_args!("`ids`: {e}")).at(index))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
