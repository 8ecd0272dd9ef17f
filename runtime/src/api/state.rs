//! What handlers have stored.

use std::str::FromStr;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::{Extension, Json};
use bytestring::ByteString;
use millrace_core::access::Caller;
use millrace_core::codec::base64;
use millrace_core::limits;
use millrace_core::name::{Topic, Unit};
use schemars::JsonSchema;
use serde::Deserialize;

use super::problem::Refusal;
use super::request::{function_of, page, parsed, query};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, StateEntry, StateRange};
use crate::worker::Revision;

/// Parameters of a listing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Only values of events from this topic.
    topic: Option<String>,
    /// Only values of this partition.
    partition: Option<u32>,
    /// Only keys that begin with this.
    prefix: Option<String>,
    /// Go on after an earlier answer's `next`.
    after: Option<String>,
    /// At most so many values.
    limit: Option<usize>,
}

/// A place in the state of all units of a function: `<topic>/<partition>/<key>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    topic: Topic,
    partition: u32,
    key: ByteString,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '/');
        let mut parse = || {
            let topic = Topic::new(parts.next()?.to_owned()).ok()?;
            let partition = parts.next()?.parse().ok()?;
            Some(Self { topic, partition, key: parts.next()?.into() })
        };
        parse().ok_or_else(|| format!("`{text}` is not <topic>/<partition>/<key>; give it what `next` said"))
    }
}

/// `GET /v1/functions/{function}/state`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    api: State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    function: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::State>, Refusal> {
    let name = function_of(function)?;
    let Query { topic, partition, prefix, after, limit } = query(&uri)?;
    let (after, topic) = (parsed::<Place>("after", after.as_deref())?, parsed::<Topic>("topic", topic.as_deref())?);
    let (prefix, max) = (ByteString::from(prefix.unwrap_or_default()), page(limit)?);
    api.function(&name, &caller)?;
    let mut units: Vec<Unit> = api.broker.units(&name).await?.into_iter().map(|info| info.unit).collect();
    units.retain(|unit| {
        let follows = |after: &Place| (&unit.topic, unit.partition) >= (&after.topic, after.partition);
        let chosen = topic.as_ref().is_none_or(|topic| unit.topic == *topic);
        let seen = api.reaches_topic(&caller, unit.topic.as_str()).is_ok();
        seen && chosen && partition.is_none_or(|number| unit.partition == number) && after.as_ref().is_none_or(follows)
    });
    let mut values = Vec::new();
    let mut bytes_left = limits::RESPONSE_MAX_BYTES;
    for unit in units {
        let begun = after.as_ref().filter(|after| (&after.topic, after.partition) == (&unit.topic, unit.partition));
        let mut from = begun.map(|after| after.key.clone());
        loop {
            if values.len() >= max || bytes_left == 0 {
                let next = values.last().map(|last: &types::StateValue| last.place());
                return Ok(Json(types::State { values, next }));
            }
            let range =
                StateRange { prefix: prefix.clone(), after: from, max: max - values.len(), max_bytes: bytes_left };
            let entries = api.broker.state(&unit, range).await?;
            let Some(last) = entries.last() else { break };
            from = Some(last.key.clone());
            let bytes = entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
            bytes_left = bytes_left.saturating_sub(bytes);
            values.extend(entries.into_iter().map(|entry| shown(&unit, entry)));
        }
    }
    Ok(Json(types::State { values, next: None }))
}

fn shown(unit: &Unit, StateEntry { key, value }: StateEntry) -> types::StateValue {
    let text = std::str::from_utf8(&value).ok();
    types::StateValue {
        topic: unit.topic.to_string(),
        partition: unit.partition,
        key: key.to_string(),
        value: text.map(str::to_owned),
        value_base64: text.is_none().then(|| base64::encode(&value)),
    }
}
