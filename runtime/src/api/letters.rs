//! Dead letters: looking at them, and deciding what becomes of them.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::{Extension, Json};
use millrace_core::access::Caller;
use millrace_core::letter::{self, LetterHeaders, MalformedLetter};
use millrace_core::name::FunctionName;
use millrace_core::outcome::Category;
use millrace_core::policy::Deadlines;
use schemars::JsonSchema;
use serde::Deserialize;

use super::functions::unknown;
use super::problem::{Kind, Refusal};
use super::request::{no_query, page, parsed, query};
use super::topics::record_of;
use super::{Shared, types};
use crate::broker::{Broker, Catalog, LetterId, LetterStatus, StoredLetter};
use crate::worker::Revision;

mod act;
mod scan;

pub(super) use act::{discard, redrive, resolve};
use scan::{Cursor, Filter};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only letters of this function.
    function: Option<String>,
    /// `open`, as without it, `redriven`, `resolved`, `discarded` or `all`.
    status: Option<String>,
    /// Only letters whose last failure has this category.
    category: Option<String>,
    /// Only letters of events from this topic.
    topic: Option<String>,
    /// Go on after an earlier answer's `next`.
    after: Option<String>,
    /// At most so many letters.
    limit: Option<usize>,
}

/// `GET /v1/dead-letters`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Json<types::DeadLetters>, Refusal> {
    let asked: ListQuery = query(&uri)?;
    let filter = Filter {
        function: parsed("function", asked.function.as_deref())?,
        status: status(asked.status.as_deref())?,
        category: parsed("category", asked.category.as_deref())?,
        topic: parsed("topic", asked.topic.as_deref())?,
        reason_contains: None,
    };
    let after: Option<Cursor> = parsed("after", asked.after.as_deref())?;
    let limit = page(asked.limit)?;
    let functions = api.functions_with_letters(&filter, &caller).await?;
    let take = |letter: StoredLetter| (filter.matches(&letter) && api.sees(&caller, &letter)).then_some(letter);
    let (letters, next) = scan::scan(&*api.broker, &functions, after, limit, take).await?;
    let letters = letters.iter().map(|letter| api.shown(letter)).collect();
    Ok(Json(types::DeadLetters { letters, next: next.map(|next| next.to_string()) }))
}

/// None means all.
fn status(text: Option<&str>) -> Result<Option<LetterStatus>, Refusal> {
    match text {
        None | Some("open") => Ok(Some(LetterStatus::Open)),
        Some("redriven") => Ok(Some(LetterStatus::Redriven)),
        Some("resolved") => Ok(Some(LetterStatus::Resolved)),
        Some("discarded") => Ok(Some(LetterStatus::Discarded)),
        Some("all") => Ok(None),
        Some(_) => Err(Refusal::malformed("parameter `status` is one of open, redriven, resolved, discarded, all")),
    }
}

/// `GET /v1/dead-letters/{function}/{topic}/{partition}/{offset}`
pub(super) async fn show<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    name: Result<Path<(String, String, String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::DeadLetter>, Refusal> {
    no_query(&uri, "the path says it all")?;
    let no_letter = |error: String| Refusal::new(Kind::UnknownDeadLetter, error);
    let Path((function, topic, partition, offset)) = name.map_err(|e| no_letter(e.body_text()))?;
    let function: FunctionName = function.parse().map_err(|e| Refusal::new(Kind::UnknownFunction, e))?;
    let id: LetterId = format!("{topic}/{partition}/{offset}").parse().map_err(no_letter)?;
    let stored = api.broker.letter(&function, &id).await?;
    let original = letter::original(&stored.record);
    let at = types::Place { partition: id.partition, offset: id.offset };
    Ok(Json(types::DeadLetter { record: Some(record_of(&id.topic, at, &original)), ..api.shown(&stored) }))
}

impl<B: Broker + Catalog, R: Revision> Shared<B, R> {
    /// A letter without its record.
    fn shown(&self, stored: &StoredLetter) -> types::DeadLetter {
        let headers = LetterHeaders::read(&stored.record).unwrap_or_else(|malformed| stand_in(stored, malformed));
        let active = self.registry.function(&stored.function);
        let deadlines = active.map_or_else(Deadlines::default, |function| function.settings.deadlines);
        types::DeadLetter {
            function: stored.function.to_string(),
            id: stored.id.to_string(),
            status: stored.status,
            status_at: stored.status_at.to_rfc3339(),
            note: stored.note.clone(),
            category: headers.category.to_string(),
            reason: headers.reason.to_string(),
            attempts: headers.attempts,
            first_failed_at: headers.first_failed_at.to_rfc3339(),
            last_failed_at: headers.last_failed_at.to_rfc3339(),
            deadline: (headers.last_failed_at + deadlines.of(headers.category)).to_rfc3339(),
            revision: headers.revision,
            idempotency_key: headers.idempotency_key.map(|key| key.to_string()),
            redrives: headers.redrives,
            record: None,
        }
    }

    /// Whether a letter of a function that somebody sees is of a topic that one sees.
    fn sees(&self, caller: &Caller, letter: &StoredLetter) -> bool {
        self.reaches_topic(caller, letter.id.topic.as_str()).is_ok()
    }

    /// The functions whose letters are asked for, by name: active ones, and those that left letters behind.
    async fn functions_with_letters(&self, filter: &Filter, caller: &Caller) -> Result<Vec<FunctionName>, Refusal> {
        if let Some(wanted) = &filter.function {
            caller.reaches_function(wanted.as_str())?;
        }
        let mut names: Vec<FunctionName> =
            self.registry.functions().into_iter().map(|info| info.settings.name.clone()).collect();
        for topic in self.broker.topics().await? {
            let ours = topic.name.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.'));
            let name = ours.and_then(|rest| rest.strip_suffix(".dead-letter")).and_then(|name| name.parse().ok());
            names.extend(name.filter(|_| topic.internal));
        }
        names.retain(|name| caller.reaches_function(name.as_str()).is_ok());
        names.sort_unstable();
        names.dedup();
        match &filter.function {
            Some(wanted) if !names.contains(wanted) => Err(unknown(wanted, &names)),
            Some(wanted) => Ok(vec![wanted.clone()]),
            None => Ok(names),
        }
    }
}

/// What can be said of a letter whose headers are damaged: it must not hide the others.
fn stand_in(stored: &StoredLetter, malformed: MalformedLetter) -> LetterHeaders {
    LetterHeaders {
        function: stored.function.clone(),
        revision: 0,
        category: Category::Unknown,
        reason: format!("its own headers are damaged: {malformed}").into(),
        attempts: 0,
        first_failed_at: stored.status_at,
        last_failed_at: stored.status_at,
        topic: stored.id.topic.clone(),
        partition: stored.id.partition,
        offset: stored.id.offset,
        idempotency_key: None,
        redrives: 0,
    }
}
