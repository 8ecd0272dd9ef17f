//! The topics that the runtime makes, and what they are made with.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;

use super::clients::{Clients, Quiet, REQUEST_TIMEOUT, unreachable_broker};
use crate::broker::{CatalogError, Error, Retention};

/// A topic of ours that a function needs.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) name: Topic,
    partitions: u32,
    settings: Vec<(&'static str, String)>,
}

/// All that a function needs beside its sources, which are given with their partitions. Idempotency keys are kept for
/// `window`.
pub(super) fn needed(
    clients: &Clients,
    function: &FunctionName,
    sources: &BTreeMap<Topic, u32>,
    window: Duration,
) -> Result<Vec<Needed>, Error> {
    let invalid = |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string());
    let names = &clients.names;
    let largest = ("max.message.bytes", (limits::DEAD_LETTER_MAX_BYTES + 64 * limits::KIB).to_string());
    let with = |mut settings: Vec<_>, more: &(&'static str, String)| {
        settings.push(more.clone());
        settings
    };
    let letters = names.dead_letters(function).map_err(invalid)?;
    let statuses = names.statuses(function).map_err(invalid)?;
    let mut needed = vec![
        Needed { name: letters, partitions: 1, settings: with(kept_for_ever(), &largest) },
        Needed { name: statuses, partitions: 1, settings: kept_for_ever() },
    ];
    for (source, partitions) in sources {
        let (redrive, keys) = (names.redrive(function, source), names.keys(function, source));
        let state = names.state(function, source).map_err(invalid)?;
        let settings = with(kept_for_ever(), &largest);
        needed.push(Needed { name: redrive.map_err(invalid)?, partitions: *partitions, settings });
        needed.push(Needed { name: keys.map_err(invalid)?, partitions: *partitions, settings: expiring(window) });
        needed.push(Needed { name: state, partitions: *partitions, settings: with(compacted(), &largest) });
    }
    Ok(needed)
}

/// Segments must end for anything in them to be removed.
fn expiring(window: Duration) -> Vec<(&'static str, String)> {
    let segment = (window / 8).clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600));
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", (window + segment).as_millis().to_string()),
        ("retention.bytes", "-1".to_owned()),
        ("segment.ms", segment.as_millis().to_string()),
        ("segment.bytes", (64 * limits::MIB).to_string()),
    ]
}

/// The newest value of each key is kept. Segments must end, and not be too clean, for older ones to be removed.
fn compacted() -> Vec<(&'static str, String)> {
    const HOUR: Duration = Duration::from_secs(3600);
    vec![
        ("cleanup.policy", "compact".to_owned()),
        ("min.cleanable.dirty.ratio", "0.1".to_owned()),
        ("max.compaction.lag.ms", (24 * HOUR).as_millis().to_string()),
        ("segment.ms", (6 * HOUR).as_millis().to_string()),
        ("segment.bytes", (64 * limits::MIB).to_string()),
    ]
}

/// Makes what is missing. What is there must have as many partitions.
pub(super) async fn make(
    admin: &AdminClient<Quiet>,
    replication: i32,
    needed: &[Needed],
    existing: &BTreeMap<String, u32>,
) -> Result<(), Error> {
    for one in needed {
        match existing.get(one.name.as_str()) {
            Some(partitions) if *partitions == one.partitions => continue,
            Some(partitions) => {
                return Err(Error::Fatal(format!(
                    "topic `{}` of the runtime has {partitions} partitions, and its source has {}: raise the count of the one that has fewer",
                    one.name, one.partitions
                )));
            }
            None => {}
        }
        create(admin, replication, one).await.map_err(CatalogError::into_broker)?;
    }
    Ok(())
}

/// Makes a topic for events, with the broker's own settings where the retention says nothing.
pub(super) async fn make_for_events(
    admin: &AdminClient<Quiet>,
    replication: i32,
    name: Topic,
    partitions: u32,
    retention: Retention,
) -> Result<(), CatalogError> {
    let age = retention.max_age.map(|age| ("retention.ms", age.as_millis().to_string()));
    // The bound is the topic's, and Kafka's is a partition's.
    let bytes =
        retention.max_bytes.map(|bytes| ("retention.bytes", (bytes / u64::from(partitions)).max(1).to_string()));
    let settings = age.into_iter().chain(bytes).collect();
    create(admin, replication, &Needed { name, partitions, settings }).await
}

/// Makes the topic of deployments, if it is missing.
pub(super) async fn make_registry(
    admin: &AdminClient<Quiet>,
    replication: i32,
    name: Topic,
) -> Result<(), CatalogError> {
    create(admin, replication, &Needed { name, partitions: 1, settings: kept_for_ever() }).await
}

fn kept_for_ever() -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", "-1".to_owned()),
        ("retention.bytes", "-1".to_owned()),
    ]
}

async fn create(admin: &AdminClient<Quiet>, replication: i32, needed: &Needed) -> Result<(), CatalogError> {
    let Needed { name, partitions, settings } = needed;
    let mut topic =
        NewTopic::new(name.as_str(), super::clients::signed(*partitions), TopicReplication::Fixed(replication));
    for (setting, value) in settings {
        topic = topic.set(setting, value);
    }
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT));
    let results = admin.create_topics([&topic], &options).await;
    let results = results.map_err(|e| CatalogError::Broker(unreachable_broker("make a topic", &e)))?;
    match results.into_iter().next() {
        Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
            Err(CatalogError::Broker(refused(name, code)))
        }
        _ => Ok(()),
    }
}

fn refused(name: &Topic, code: RDKafkaErrorCode) -> Error {
    use RDKafkaErrorCode as Code;
    let reason = match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            "the principal may not: grant it Create on the cluster or on the prefix, or make the topic beforehand"
                .to_owned()
        }
        Code::InvalidReplicationFactor => {
            format!("{code}: set kafka.replication to at most the number of brokers")
        }
        code => code.to_string(),
    };
    Error::Transient(format!("topic `{name}` cannot be made: {reason}"))
}
