//! The topics that the runtime makes, and what they are made with.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::error::RDKafkaErrorCode;

use super::clients::{Clients, Quiet, REQUEST_TIMEOUT, dead_letter_bytes, unreachable_broker};
use crate::broker::{CatalogError, Error, Retention};

/// No bound, as Kafka writes it.
const KEPT_FOR_EVER: &str = "-1";

/// A topic of ours that a function needs.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) name: Topic,
    pub(super) partitions: u32,
    /// It follows its source when that gets more partitions.
    pub(super) grows: bool,
    settings: Vec<Setting>,
}

impl Needed {
    /// A topic for events, with the broker's settings.
    pub(super) fn for_events(name: Topic, partitions: u32) -> Self {
        Self { name, partitions, grows: false, settings: Vec::new() }
    }

    /// The same, whose records are kept for as long as this says, or else the broker.
    pub(super) fn retained_events(name: Topic, partitions: u32, retention: Retention) -> Self {
        Self { settings: settings_of(retention, partitions), ..Self::for_events(name, partitions) }
    }

    /// The topic of deployments, and of where components are.
    pub(super) fn registry(name: Topic) -> Self {
        Self { name, partitions: 1, grows: false, settings: kept_for_ever() }
    }

    /// The topic of chunks of components.
    pub(super) fn components(name: Topic) -> Self {
        Self { name, partitions: 1, grows: false, settings: with(compacted(), takes(dead_letter_bytes(0))) }
    }

    /// The topic of what instances say of themselves.
    pub(super) fn instances(name: Topic) -> Self {
        Self { name, partitions: 1, grows: false, settings: with(compacted(), takes(dead_letter_bytes(0))) }
    }

    /// A topic whose records are kept for as long as a retention says.
    pub(super) fn retained(name: Topic, retention: Retention) -> Self {
        let settings = with(settings_of(retention, 1), ("cleanup.policy", "delete".to_owned()));
        Self { name, partitions: 1, grows: false, settings }
    }

    fn as_new(&self, replication: i32) -> NewTopic<'_> {
        let (name, partitions) = (self.name.as_str(), super::clients::signed(self.partitions));
        let new = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        self.settings.iter().fold(new, |new, (setting, value)| new.set(setting, value))
    }
}

/// All that a function needs beside its sources, which are given with their partitions. Idempotency keys are kept for
/// `window`; a source takes at most `source_bytes` at once.
pub(super) fn needed(
    clients: &Clients,
    function: &FunctionName,
    sources: &BTreeMap<Topic, u32>,
    window: Duration,
    source_bytes: usize,
) -> Result<Vec<Needed>, Error> {
    let invalid = |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string());
    let names = &clients.names;
    let largest = || takes(dead_letter_bytes(source_bytes));
    let letters = names.dead_letters(function).map_err(invalid)?;
    let statuses = names.statuses(function).map_err(invalid)?;
    let mut needed = vec![
        Needed { name: letters, partitions: 1, grows: false, settings: with(kept_for_ever(), largest()) },
        Needed { name: statuses, partitions: 1, grows: false, settings: kept_for_ever() },
    ];
    for (source, partitions) in sources {
        let (redrive, keys) = (names.redrive(function, source), names.keys(function, source));
        let state = names.state(function, source).map_err(invalid)?;
        for (name, settings) in [
            (redrive.map_err(invalid)?, with(kept_for_ever(), largest())),
            (keys.map_err(invalid)?, expiring(window)),
            (state, with(compacted(), takes(dead_letter_bytes(0)))),
        ] {
            needed.push(Needed { name, partitions: *partitions, grows: true, settings });
        }
    }
    Ok(needed)
}

/// A setting.
type Setting = (&'static str, String);

/// The most that a topic takes at once.
fn takes(bytes: usize) -> Setting {
    ("max.message.bytes", bytes.to_string())
}

fn with(mut settings: Vec<Setting>, more: Setting) -> Vec<Setting> {
    settings.push(more);
    settings
}

/// Segments must end for anything in them to be removed.
fn expiring(window: Duration) -> Vec<Setting> {
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
fn compacted() -> Vec<Setting> {
    const HOUR: Duration = Duration::from_secs(3600);
    vec![
        ("cleanup.policy", "compact".to_owned()),
        ("min.cleanable.dirty.ratio", "0.1".to_owned()),
        ("max.compaction.lag.ms", (24 * HOUR).as_millis().to_string()),
        ("segment.ms", (6 * HOUR).as_millis().to_string()),
        ("segment.bytes", (64 * limits::MIB).to_string()),
    ]
}

/// Makes what is missing. What is there must have as many partitions, and settings that lose nothing.
pub(super) async fn make(
    admin: &AdminClient<Quiet>,
    replication: i32,
    needed: &[Needed],
    existing: &BTreeMap<String, u32>,
) -> Result<(), Error> {
    let (there, missing): (Vec<Needed>, Vec<Needed>) =
        needed.iter().cloned().partition(|one| existing.contains_key(one.name.as_str()));
    let partitions = |one: &Needed| existing.get(one.name.as_str()).copied().unwrap_or_default();
    if let Some(one) = there.iter().find(|one| partitions(one) != one.partitions) {
        return Err(Error::Fatal(format!(
            "topic `{}` of the runtime has {} partitions and needs {}: a source was made anew with fewer; give it another \
             name, or remove the topics of the runtime for it",
            one.name,
            partitions(one),
            one.partitions
        )));
    }
    create(admin, replication, &missing).await.map_err(CatalogError::into_broker)?;
    let mut unread = Vec::new();
    for (topic, unfit) in unfit(admin, &there).await {
        match unfit {
            Unfit::Lossy(settings) => {
                return Err(Error::Fatal(format!(
                    "topic `{topic}` of the runtime would lose something: set {settings}, for example with `{}`",
                    alter(&topic, &settings)
                )));
            }
            Unfit::Short(more) => {
                more.set(admin, &topic).await?;
                tracing::info!(%topic, settings = more.settings, "A topic of the runtime keeps or takes more from now on, as the manifest or a source asks.");
            }
            Unfit::Unknown(reason) => unread.push((topic, reason)),
        }
    }
    if let Some((_, reason)) = unread.first() {
        let topics = unread.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            topics,
            reason,
            "The settings of topics of the runtime cannot be read, and could be such that something in them gets lost; grant the principal DescribeConfigs."
        );
    }
    Ok(())
}

/// What is not as it must be with the settings of a topic of ours.
pub(super) enum Unfit {
    /// Something in it can be lost. What it must be set to, as `name=value` with commas between.
    Lossy(String),
    /// It keeps or takes less than is asked for by now.
    Short(More),
    /// They cannot be read, for this reason.
    Unknown(String),
}

/// What a topic is set to so that it keeps or takes more.
pub(super) struct More {
    /// What changes, as `name=value` with commas between.
    pub(super) settings: String,
    /// That, and all that is set for the topic beside it: whatever is left out would be as the broker has it for all topics.
    all: BTreeMap<String, String>,
}

impl More {
    async fn set(&self, admin: &AdminClient<Quiet>, topic: &Topic) -> Result<(), Error> {
        self.ask(admin, topic, &options()).await
    }

    /// Whether the broker would set it; it sets nothing.
    pub(super) async fn would_set(&self, admin: &AdminClient<Quiet>, topic: &Topic) -> Result<(), Error> {
        self.ask(admin, topic, &options().validate_only(true)).await
    }

    async fn ask(&self, admin: &AdminClient<Quiet>, topic: &Topic, options: &AdminOptions) -> Result<(), Error> {
        let altered = AlterConfig::new(ResourceSpecifier::Topic(topic.as_str()));
        let altered = self.all.iter().fold(altered, |altered, (name, value)| altered.set(name, value));
        let results = admin.alter_configs([&altered], options).await;
        let results = results.map_err(|e| unreachable_broker("change a topic's settings", &e))?;
        match results.into_iter().next() {
            Some(Err((_, code))) => Err(Error::Fatal(format!(
                "topic `{topic}` of the runtime keeps or takes less than the manifest or a source asks for, and may not be \
                 changed ({code}): grant the principal AlterConfigs, or set {}, for example with `{}`",
                self.settings,
                alter(topic, &self.settings)
            ))),
            _ => Ok(()),
        }
    }
}

/// Topics of ours that are there, and have not the settings that they must have.
pub(super) async fn unfit(admin: &AdminClient<Quiet>, there: &[Needed]) -> Vec<(Topic, Unfit)> {
    if there.is_empty() {
        return Vec::new();
    }
    let asked: Vec<_> = there.iter().map(|one| ResourceSpecifier::Topic(one.name.as_str())).collect();
    let named = |one: &Needed, unfit| (one.name.clone(), unfit);
    match admin.describe_configs(&asked, &options()).await {
        Ok(found) => there.iter().zip(found).filter_map(|(one, found)| Some(named(one, one.judge(found)?))).collect(),
        Err(error) => there.iter().map(|one| named(one, Unfit::Unknown(error.to_string()))).collect(),
    }
}

impl Needed {
    fn judge(&self, found: Result<ConfigResource, RDKafkaErrorCode>) -> Option<Unfit> {
        let found = match found {
            Ok(found) if !found.entries.is_empty() => found,
            // So rust-rdkafka shows those that the broker refuses to tell.
            Ok(_) => return Some(Unfit::Unknown("the broker tells none".to_owned())),
            Err(code) => return Some(Unfit::Unknown(code.to_string())),
        };
        let is = |name: &str| found.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let wrong: Vec<_> = self.settings.iter().filter(|(name, value)| loses(name, is(name), value)).collect();
        if wrong.is_empty() {
            return None;
        }
        let settings = wrong.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
        // What is to be kept for ever never was to be kept for less: somebody else set that.
        let was_less =
            |name: &str, value: &str| name == "max.message.bytes" || (name == "retention.ms" && value != KEPT_FOR_EVER);
        if !wrong.iter().all(|(name, value)| was_less(name, value)) {
            return Some(Unfit::Lossy(settings));
        }
        let set = found.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let set = set.filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?)));
        let wrong = wrong.into_iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Some(Unfit::Short(More { settings, all: set.chain(wrong).collect() }))
    }
}

/// Whether something can be lost by what a setting is instead of what it is made with.
fn loses(name: &str, is: &str, wanted: &str) -> bool {
    let number = |text: &str| text.parse::<i64>().ok().map(|number| if number < 0 { i64::MAX } else { number });
    match name {
        "cleanup.policy" => is != wanted,
        "retention.ms" | "retention.bytes" | "max.message.bytes" => number(is) < number(wanted),
        _ => false,
    }
}

/// The command that gives a topic its settings.
pub(super) fn alter(topic: &Topic, settings: &str) -> String {
    format!("kafka-configs --bootstrap-server … --alter --topic {topic} --add-config {settings}")
}

/// Whether the broker would make a topic; it makes none.
pub(super) async fn would_make(admin: &AdminClient<Quiet>, replication: i32, needed: &Needed) -> Result<(), Error> {
    let asked = ask(admin, replication, std::slice::from_ref(needed), &options().validate_only(true)).await;
    if asked.map_err(CatalogError::into_broker)?.is_empty() {
        return Ok(());
    }
    Err(Error::Transient("it is there, and the principal may not see it: grant it Describe".to_owned()))
}

/// Makes a topic for events, or has the broker only say whether it would. One that somebody else has made is as good.
pub(super) async fn ask_for_events(
    admin: &AdminClient<Quiet>,
    replication: i32,
    needed: &Needed,
    makes: bool,
) -> Result<(), CatalogError> {
    ask(admin, replication, std::slice::from_ref(needed), &options().validate_only(!makes)).await.map(drop)
}

fn settings_of(retention: Retention, partitions: u32) -> Vec<Setting> {
    let age = retention.max_age.map(|age| ("retention.ms", age.as_millis().to_string()));
    // The bound is the topic's, and Kafka's is a partition's.
    let bytes =
        retention.max_bytes.map(|bytes| ("retention.bytes", (bytes / u64::from(partitions)).max(1).to_string()));
    age.into_iter().chain(bytes).collect()
}

fn kept_for_ever() -> Vec<Setting> {
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", KEPT_FOR_EVER.to_owned()),
        ("retention.bytes", KEPT_FOR_EVER.to_owned()),
    ]
}

/// Makes topics in one request, except those that somebody else has made meanwhile.
async fn create(admin: &AdminClient<Quiet>, replication: i32, needed: &[Needed]) -> Result<(), CatalogError> {
    if needed.is_empty() { Ok(()) } else { ask(admin, replication, needed, &options()).await.map(drop) }
}

/// Asks a broker to make topics, at least one. Answers with the names of those that are there already.
async fn ask(
    admin: &AdminClient<Quiet>,
    replication: i32,
    needed: &[Needed],
    options: &AdminOptions,
) -> Result<Vec<String>, CatalogError> {
    let topics: Vec<_> = needed.iter().map(|one| one.as_new(replication)).collect();
    let results = admin.create_topics(&topics, options).await;
    let results = results.map_err(|e| CatalogError::Broker(unreachable_broker("make a topic", &e)))?;
    let mut there = Vec::new();
    for result in results {
        match result {
            Ok(_) => {}
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => there.push(name),
            Err((name, code)) => return Err(CatalogError::Broker(refused(&name, code))),
        }
    }
    Ok(there)
}

/// Raises the number of a topic's partitions. Somebody else may have been quicker.
pub(super) async fn raise(admin: &AdminClient<Quiet>, name: &Topic, partitions: u32) -> Result<(), Error> {
    let wanted = NewPartitions::new(name.as_str(), partitions as usize);
    let results = admin.create_partitions([&wanted], &options()).await;
    let results = results.map_err(|e| unreachable_broker("raise the partitions of a topic", &e))?;
    match results.into_iter().next() {
        Some(Err((_, code))) if code != RDKafkaErrorCode::InvalidPartitions => Err(refused(name.as_str(), code)),
        _ => Ok(()),
    }
}

/// The largest batch of records that one of some topics takes, as far as the broker tells.
pub(super) async fn batch_max_bytes<'a>(
    admin: &AdminClient<Quiet>,
    topics: impl IntoIterator<Item = &'a Topic>,
) -> Option<usize> {
    let asked: Vec<_> = topics.into_iter().map(|topic| ResourceSpecifier::Topic(topic.as_str())).collect();
    if asked.is_empty() {
        return None;
    }
    let found = admin.describe_configs(&asked, &options()).await.ok()?;
    let bytes = found.into_iter().filter_map(|one| {
        let settings = one.ok()?;
        settings.get("max.message.bytes")?.value.as_ref()?.parse().ok()
    });
    bytes.max()
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

fn refused(name: &str, code: RDKafkaErrorCode) -> Error {
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
