//! Topics and their records.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::{Extension, Json};
use millrace_core::access::{Caller, Permission};
use millrace_core::codec::{self, base64};
use millrace_core::limits;
use millrace_core::name::Topic;
use millrace_core::record::Record;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::problem::{Kind, Refusal};
use super::request::{page, parsed, query, topic_of};
use super::{Shared, types};
use crate::broker::{Broker, Catalog, CatalogError, PartitionInfo, TopicInfo};
use crate::worker::Revision;

/// Records of one partition that are read before it is the next one's turn.
const TURN_RECORDS: usize = 32;
/// How often a waiting request looks for records.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Also those that the runtime made for itself.
    #[serde(default)]
    internal: bool,
}

/// `GET /v1/topics`
pub(super) async fn list<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    uri: Uri,
) -> Result<Json<types::Topics>, Refusal> {
    let ListQuery { internal } = query(&uri)?;
    let topics = api.broker.topics().await?;
    let seen = topics.into_iter().filter(|topic| api.reaches_topic(&caller, &topic.name).is_ok());
    let topics = seen.filter(|topic| internal || !topic.internal).map(shown).collect();
    Ok(Json(types::Topics { topics }))
}

fn shown(topic: TopicInfo) -> types::Topic {
    let partition = |info: PartitionInfo| {
        let PartitionInfo { earliest, next, size_bytes } = info;
        types::Partition { earliest, next, size_bytes }
    };
    let partitions = topic.partitions.into_iter().map(partition).collect();
    types::Topic { name: topic.name, internal: topic.internal, partitions }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    /// Only this partition.
    partition: Option<u32>,
    /// `earliest`, `latest`, an offset, or `<partition>:<offset>` for each partition, with commas; `earliest` without it.
    from: Option<String>,
    /// At most so many records.
    limit: Option<usize>,
    /// How many seconds to wait if there is no record yet.
    wait: Option<u64>,
}

/// `GET /v1/topics/{topic}/events`
pub(super) async fn read<B: Broker + Catalog, R: Revision>(
    State(api): State<Arc<Shared<B, R>>>,
    Extension(caller): Extension<Arc<Caller>>,
    topic: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Json<types::Records>, Refusal> {
    let topic = topic_of(topic)?;
    let ReadQuery { partition, from, limit, wait } = query(&uri)?;
    let from = parsed("from", from.as_deref())?.unwrap_or(Start::Earliest);
    let limit = page(limit)?;
    let wait = Duration::from_secs(wait.unwrap_or(0));
    if wait > limits::LONG_POLL_MAX {
        let max = limits::LONG_POLL_MAX.as_secs();
        return Err(Refusal::malformed(format_args!("parameter `wait` must lie between 0 and {max} seconds")));
    }
    let topics = api.broker.topics().await?;
    let Some(info) = topics.iter().find(|info| info.name == topic.as_str()) else {
        return Err(api.with_topics(CatalogError::UnknownTopic(topic).into(), &caller).await);
    };
    let mut next = from.places(&topic, partition, &info.partitions)?;
    let mut records = page_of(&*api.broker, &topic, &mut next, limit).await?;
    if records.is_empty() && !wait.is_zero() {
        let _permit = api.long_polls.try_acquire().map_err(|_| {
            Refusal::new(Kind::TooManyRequests, "too many requests wait for records; ask without `wait`").retry_soon()
        })?;
        let deadline = Instant::now() + wait;
        while records.is_empty() && Instant::now() < deadline && !api.pause(LOOK_EVERY).await {
            records = page_of(&*api.broker, &topic, &mut next, limit).await?;
        }
    }
    Ok(Json(types::Records { records, next }))
}

/// What to do about a topic that is not there.
fn declared(topics: &[TopicInfo]) -> String {
    /// Names that are told.
    const TOLD: usize = 10;
    let own: Vec<String> =
        topics.iter().filter(|topic| !topic.internal).map(|topic| format!("`{}`", topic.name)).collect();
    let names = own.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    let there_is = match own.len() {
        0 => String::new(),
        1..=TOLD => format!("there is {names}; "),
        more => format!("there is {names} and {} more; ", more - TOLD),
    };
    format!("{there_is}a topic is made when a manifest names it, for example under [topics]")
}

impl<B: Broker + Catalog, R: Revision> Shared<B, R> {
    /// The same refusal, and if it is about a topic that is not there, what to do about it.
    pub(super) async fn with_topics(&self, refusal: Refusal, caller: &Caller) -> Refusal {
        match self.broker.topics().await {
            Ok(mut topics) if refusal.is(Kind::UnknownTopic) => {
                // Whoever publishes alone looks at nothing.
                let sees = caller.may(Permission::View).is_ok();
                topics.retain(|topic| sees && self.reaches_topic(caller, &topic.name).is_ok());
                refusal.and(declared(&topics))
            }
            Ok(_) | Err(_) => refusal,
        }
    }
}

/// Where to begin to read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    Earliest,
    Latest,
    Offset(u64),
    Places(Vec<types::Place>),
}

impl FromStr for Start {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let place = |text: &str| {
            let (partition, offset) = text.split_once(':')?;
            Some(types::Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        };
        let places = || s.split(',').map(place).collect::<Option<Vec<_>>>();
        match s {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => s.parse().ok().map(Self::Offset).or_else(|| places().map(Self::Places)).ok_or_else(|| {
                let shown: String = s.chars().take(40).collect();
                format!("`{shown}` is not a place; write earliest, latest, an offset, or <partition>:<offset>,…")
            }),
        }
    }
}

impl Start {
    /// The first offset to read of each partition that is asked for.
    fn places(
        &self,
        topic: &Topic,
        only: Option<u32>,
        partitions: &[PartitionInfo],
    ) -> Result<Vec<types::Place>, Refusal> {
        let named = match self {
            Self::Places(places) => places.as_slice(),
            Self::Earliest | Self::Latest | Self::Offset(_) => &[],
        };
        let all = (0..).zip(partitions);
        let known = |partition: u32| (partition as usize) < partitions.len();
        if let Some(partition) = only.into_iter().chain(named.iter().map(|place| place.partition)).find(|p| !known(*p))
        {
            return Err(CatalogError::UnknownPartition(topic.clone(), partition).into());
        }
        let offset = |partition: u32, info: &PartitionInfo| match self {
            Self::Earliest => info.earliest,
            Self::Latest => info.next,
            Self::Offset(offset) => *offset,
            Self::Places(places) => {
                places.iter().rfind(|place| place.partition == partition).map_or(info.earliest, |place| place.offset)
            }
        };
        let wanted = all.filter(|(partition, _)| only.is_none_or(|only| only == *partition));
        Ok(wanted.map(|(partition, info)| types::Place { partition, offset: offset(partition, info) }).collect())
    }
}

/// Records from these places on, which move on. Partitions take turns, so that a full one does not hide the others.
async fn page_of<B: Catalog>(
    broker: &B,
    topic: &Topic,
    next: &mut [types::Place],
    limit: usize,
) -> Result<Vec<types::Record>, Refusal> {
    let mut records = Vec::new();
    let mut bytes = 0;
    loop {
        let before = records.len();
        for place in next.iter_mut() {
            let room = limit - records.len();
            if room == 0 || bytes >= limits::RESPONSE_MAX_BYTES {
                return Ok(records);
            }
            let fetched = broker.read(topic, place.partition, place.offset, room.min(TURN_RECORDS)).await?;
            place.offset = fetched.next.max(place.offset);
            for (offset, record) in fetched.records {
                bytes += record.size_bytes();
                records.push(record_of(topic, types::Place { offset, ..*place }, &record));
            }
        }
        if records.len() == before {
            return Ok(records);
        }
    }
}

/// A record as it is shown.
pub(super) fn record_of(topic: &Topic, at: types::Place, record: &Record) -> types::Record {
    let types::Place { partition, offset } = at;
    let text = record.key.as_ref().map(|key| std::str::from_utf8(key));
    let decoded = codec::decode(record, codec::Place { topic, partition, offset });
    let event = decoded.as_ref().ok().and_then(|event| {
        let json = String::from_utf8(codec::json::write_event(event)).ok()?;
        RawValue::from_string(json).ok()
    });
    let value_base64 = match (&event, &record.value) {
        (None, Some(value)) => Some(base64::encode(value)),
        _ => None,
    };
    types::Record {
        partition,
        offset,
        timestamp: record.timestamp.to_rfc3339(),
        key: text.and_then(Result::ok).map(str::to_owned),
        key_base64: record.key.as_ref().filter(|_| matches!(text, Some(Err(_)))).map(|key| base64::encode(key)),
        event,
        undecodable: decoded.err().map(|failure| failure.reason.to_string()),
        value_base64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_begin_are_read_from_texts() {
        let places = |places: &[(u32, u64)]| {
            Start::Places(places.iter().map(|&(partition, offset)| types::Place { partition, offset }).collect())
        };
        for (text, expected) in [
            ("earliest", Some(Start::Earliest)),
            ("latest", Some(Start::Latest)),
            ("0", Some(Start::Offset(0))),
            ("18446744073709551615", Some(Start::Offset(u64::MAX))),
            ("0:5", Some(places(&[(0, 5)]))),
            ("1:5,0:7", Some(places(&[(1, 5), (0, 7)]))),
            ("18446744073709551616", None),
            ("-1", None),
            ("now", None),
            ("0:5,", None),
            ("0:5;1:2", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    #[test]
    fn each_partition_that_is_asked_for_has_a_place() {
        let topic = Topic::new("t").unwrap();
        let partitions =
            [(3, 9), (0, 0), (5, 8)].map(|(earliest, next)| PartitionInfo { earliest, next, size_bytes: 0 });
        let check =
            |from: &str, only: Option<u32>| match from.parse::<Start>().unwrap().places(&topic, only, &partitions) {
                Ok(next) => types::Records { records: Vec::new(), next }.go_on_from(),
                Err(refusal) => format!("{refusal:?}"),
            };
        for (from, only, expected) in [
            ("earliest", None, "0:3,1:0,2:5"),
            ("latest", None, "0:9,1:0,2:8"),
            ("4", None, "0:4,1:4,2:4"),
            ("latest", Some(2), "2:8"),
            ("2:6", None, "0:3,1:0,2:6"),
            ("2:6,2:7", Some(2), "2:7"),
        ] {
            assert_eq!(check(from, only), expected, "{from} {only:?}");
        }
        assert!(check("latest", Some(3)).contains("UnknownPartition"));
        assert!(check("3:0", None).contains("UnknownPartition"));
    }
}
