//! Who did what: each request that changes something leaves a record, and each that is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{RawPathParams, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use futures::future::BoxFuture;
use millrace_core::access::{Caller, TokenId};
use millrace_core::audit::{Filter, Outcome, Record, Who};
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::time::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use super::problem::{Kind, Reason, Refusal};
use super::request::{page, parsed, query};
use super::routes::Row;
use super::{Peer, Shared, types};
use crate::broker::{Broker, Catalog, CatalogError};
use crate::worker::Revision;

/// What a record says of topics that are made for a function which is deployed.
pub const MAKE_TOPIC: &str = "make-topic";
/// Offsets that are read at once; not each has a record.
const WINDOW_OFFSETS: u64 = 256;
/// By so much the clocks of instances may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// Keeps who did what.
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// Writes down what somebody did. It is durable when this is done, or was told loudly, or left out because there are too many
    /// refusals at once.
    fn write(&self, record: Record) -> BoxFuture<'_, ()>;

    /// How many records could not be written since the process began.
    fn lost(&self) -> u64;

    /// The oldest offset there is, and the one after the newest.
    fn bounds(&self) -> BoxFuture<'_, Result<Range<u64>, CatalogError>>;

    /// The records at these offsets, in their order and with them.
    fn read(&self, offsets: Range<u64>) -> BoxFuture<'_, Result<Vec<(u64, Record)>, CatalogError>>;
}

/// What becomes known of a request while it is answered. Cheap to clone, and all clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    peer: Option<SocketAddr>,
    caller: Option<Arc<Caller>>,
    functions: BTreeSet<String>,
    topics: BTreeSet<String>,
    about: String,
    detail: String,
    is_rehearsal: bool,
}

impl Trail {
    /// Nothing is known but where the request comes from.
    pub(super) fn from(peer: Option<Peer>) -> Self {
        let said = Said { peer: peer.map(|Peer(address)| address), ..Said::default() };
        Self(Arc::new(Mutex::new(said)))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the path names. What cannot be a name is left out: it could be anything.
    pub(super) fn path(&self, params: &RawPathParams) {
        let mut said = self.said();
        for (part, name) in params {
            match part {
                "function" if name.parse::<FunctionName>().is_ok() => drop(said.functions.insert(name.to_owned())),
                "topic" if Topic::new(name.to_owned()).is_ok() => drop(said.topics.insert(name.to_owned())),
                "id" if name.parse::<TokenId>().is_ok() => said.about = format!("token {name}"),
                "digest" if name.parse::<Digest>().is_ok() => said.about = format!("component {name}"),
                _ => {}
            }
        }
    }

    /// Who asks.
    pub(super) fn caller(&self, caller: &Arc<Caller>) {
        self.said().caller = Some(Arc::clone(caller));
    }

    /// Who asks, as far as it is known.
    pub(super) fn who(&self) -> Who {
        let said = self.said();
        let from = said.peer.map_or_else(String::new, |peer| peer.to_string());
        Who::new(said.caller.as_deref(), from)
    }

    /// Functions that it is about.
    pub(super) fn functions<'a>(&self, names: impl IntoIterator<Item = &'a FunctionName>) {
        self.said().functions.extend(names.into_iter().map(ToString::to_string));
    }

    /// Topics that it is about.
    pub(super) fn topics<'a>(&self, names: impl IntoIterator<Item = &'a Topic>) {
        self.said().topics.extend(names.into_iter().map(ToString::to_string));
    }

    /// What else it is about.
    pub(super) fn about(&self, what: String) {
        self.said().about = what;
    }

    /// What came of it.
    pub(super) fn detail(&self, detail: impl fmt::Display) {
        self.said().detail = detail.to_string();
    }

    /// Nothing is done, whatever is answered.
    pub(super) fn rehearses(&self, is_rehearsal: bool) {
        self.said().is_rehearsal = is_rehearsal;
    }

    /// What is to be written down of a request that was answered so, if anything is.
    pub(super) fn record(&self, row: Option<&Row>, answer: &Response, now: Timestamp) -> Option<Record> {
        let status = answer.status();
        let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let who = self.who();
        let said = self.said();
        if !is_denied && (said.is_rehearsal || !row.is_some_and(|row| row.changes)) {
            return None;
        }
        // Nothing is done then, and who sends too much must not be able to fill the log with that either.
        let is_refused = is_denied || status == StatusCode::TOO_MANY_REQUESTS;
        let (result, detail) = match answer.extensions().get::<Reason>() {
            Some(Reason(reason)) if is_refused => (Outcome::Refused, reason.clone()),
            Some(Reason(reason)) => (Outcome::Failed, reason.clone()),
            None if status.is_success() => (Outcome::Done, said.detail.clone()),
            None => (Outcome::Failed, status.to_string()),
        };
        Some(Record {
            at_ms: now.as_millis(),
            who,
            action: row.map_or("unknown", |row| row.action).to_owned(),
            functions: said.functions.iter().cloned().collect(),
            topics: said.topics.iter().cloned().collect(),
            about: said.about.clone(),
            result,
            detail,
            omitted: 0,
        })
    }
}

/// Parameters of a listing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Only what was done to this function.
    function: Option<String>,
    /// Only what was done to this topic.
    topic: Option<String>,
    /// Only what was done with the token of this name.
    by: Option<String>,
    /// Only what is called so.
    action: Option<String>,
    /// `done`, `refused` or `failed`.
    result: Option<String>,
    /// Only what was done since this instant.
    since: Option<String>,
    /// Only records before this offset: an earlier answer's `next`.
    before: Option<u64>,
    /// At most so many records.
    limit: Option<usize>,
}

/// `GET /v1/audit`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    uri: Uri,
) -> Result<Json<types::Audit>, Refusal> {
    let Query { function, topic, by, action, result, since, before, limit } = query(&uri)?;
    let since = since.map(|text| Timestamp::parse_rfc3339(&text)).transpose();
    let filter = Filter {
        function: parsed("function", function.as_deref())?,
        topic: parsed("topic", topic.as_deref())?,
        by,
        action,
        result: parsed("result", result.as_deref())?,
        since: since.map_err(|e| Refusal::malformed(format_args!("parameter `since`: {e}")))?,
    };
    let limit = page(limit)?;
    let none = || Refusal::new(Kind::UnknownPath, "this server keeps no record of who did what");
    let journal = api.journal.as_deref().ok_or_else(none)?;
    let (found, next) = scan(journal, &filter, before, limit).await?;
    Ok(Json(types::Audit { records: found.into_iter().map(shown).collect(), next }))
}

type Found = Vec<(u64, Record)>;

/// The newest records before an offset that a filter matches. Ends when `limit` are found or many were looked at, and says then before which
/// offset to go on.
async fn scan(
    journal: &dyn Journal,
    filter: &Filter,
    before: Option<u64>,
    limit: usize,
) -> Result<(Found, Option<u64>), Refusal> {
    let bounds = journal.bounds().await?;
    let mut end = before.map_or(bounds.end, |before| before.min(bounds.end));
    let (mut found, mut looked_at) = (Vec::new(), 0);
    while end > bounds.start && found.len() < limit && looked_at < limits::AUDIT_SCANNED_MAX {
        let start = end.saturating_sub(WINDOW_OFFSETS).max(bounds.start);
        let records = journal.read(start..end).await?;
        looked_at += WINDOW_OFFSETS;
        let newest = records.last().map(|(_, record)| Timestamp::from_millis(record.at_ms) + CLOCKS_DIFFER);
        let is_over = newest.zip(filter.since).is_some_and(|(newest, since)| newest < since);
        for (offset, record) in records.into_iter().rev() {
            if found.len() == limit {
                break;
            }
            end = offset;
            if filter.matches(&record) {
                found.push((offset, record));
            }
        }
        if is_over {
            end = bounds.start;
        } else if found.len() < limit {
            end = start;
        }
    }
    Ok((found, (end > bounds.start).then_some(end)))
}

fn shown((offset, record): (u64, Record)) -> types::Audited {
    let Record { at_ms, who, action, functions, topics, about, result, detail, omitted } = record;
    types::Audited {
        offset,
        at: Timestamp::from_millis(at_ms).to_rfc3339(),
        by: who.by,
        token: who.token,
        from: who.from,
        action,
        functions,
        topics,
        about,
        result: result.to_string(),
        detail,
        omitted,
    }
}
