//! What applications need of a cluster, compared with what is there: looked at, and nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use millrace_core::name::{FunctionName, Topic};
use rdkafka::error::RDKafkaErrorCode;
use serde::Serialize;

use super::clients::REQUEST_TIMEOUT;
use super::member::committed;
use super::native::Allowed;
use super::writer::Writer;
use super::{KafkaLog, native, topics};
use crate::broker::{CatalogError, Error};

/// What is to run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Topics for events, with the partitions that they are made with, and whether they must have as many.
    pub topics: BTreeMap<Topic, (u32, bool)>,
    /// The functions.
    pub functions: Vec<PlannedFunction>,
}

/// A function that is to run.
#[derive(Clone, Debug)]
pub struct PlannedFunction {
    /// Its name.
    pub name: FunctionName,
    /// What it reads.
    pub sources: Vec<Topic>,
    /// What it may emit to.
    pub emits: Vec<Topic>,
    /// How long its idempotency keys are remembered.
    pub window: Duration,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is, such as `topic orders`.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// More about that.
    pub detail: String,
    /// What to do; empty if there is nothing to do.
    pub fix: String,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it must be.
    Good,
    /// Not there, and made at the start.
    WillBeMade,
    /// To be mended.
    Wrong,
}

impl Finding {
    fn good(subject: String, detail: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, detail: detail.into(), fix: String::new() }
    }

    fn wrong(subject: String, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Wrong, detail: detail.into(), fix: fix.into() }
    }
}

/// What must be allowed with a topic.
type Needs = BTreeMap<Topic, Allowed>;

impl KafkaLog {
    /// Compares what a plan needs with what is there.
    ///
    /// # Errors
    /// If the cluster cannot be asked at all.
    pub async fn audit(&self, plan: &Plan) -> Result<Vec<Finding>, Error> {
        let existing = self.blocking(|log| Ok(log.partition_counts()?)).await.map_err(CatalogError::into_broker)?;
        let (mut found, mut needs) = (Vec::new(), Needs::new());
        for (topic, (partitions, is_fixed)) in &plan.topics {
            let subject = format!("topic {topic}");
            match existing.get(topic.as_str()) {
                Some(has) if has != partitions && *is_fixed => {
                    let fix = format!("write `partitions = {has}` under `[topics.{topic}]`, or take another topic");
                    found.push(Finding::wrong(
                        subject,
                        format!("it has {has} partitions, and the manifest says {partitions}"),
                        fix,
                    ));
                }
                Some(has) => found.push(Finding::good(subject, counted(*has))),
                None => found.push(self.to_be_made(topics::Needed::for_events(topic.clone(), *partitions)).await),
            }
        }
        for function in &plan.functions {
            let count = |topic: &Topic| existing.get(topic.as_str()).copied().or(Some(plan.topics.get(topic)?.0));
            let sources = function.sources.iter().filter_map(|topic| Some((topic.clone(), count(topic)?))).collect();
            function.sources.iter().for_each(|topic| needs.entry(topic.clone()).or_default().read = true);
            function.emits.iter().for_each(|topic| needs.entry(topic.clone()).or_default().write = true);
            let there: Vec<_> = function.sources.iter().filter(|topic| existing.contains_key(topic.as_str())).collect();
            let source_bytes = topics::batch_max_bytes(self.admin(), there).await.unwrap_or_default();
            for needed in topics::needed(self.clients(), &function.name, &sources, function.window, source_bytes)? {
                needs.insert(needed.name.clone(), Allowed { read: true, write: true });
                found.push(self.own_topic(needed, &existing).await);
            }
        }
        for shared in [
            topics::Needed::registry(self.registry_topic()?),
            topics::Needed::components(self.components_topic()?),
            topics::Needed::instances(self.instances_topic()?),
            // How long it is kept is the operator's to say.
            topics::Needed::for_events(self.audit_topic()?, 1),
        ] {
            needs.insert(shared.name.clone(), Allowed { read: true, write: true });
            found.push(self.own_topic(shared, &existing).await);
        }
        let functions: Vec<_> = plan.functions.iter().map(|one| (one.name.clone(), one.sources.clone())).collect();
        let permissions = self.blocking(move |log| Ok(permissions(log, &needs, &existing, &functions)?)).await;
        found.extend(permissions.map_err(CatalogError::into_broker)?);
        Ok(found)
    }

    /// A topic of the runtime's own.
    async fn own_topic(&self, needed: topics::Needed, existing: &BTreeMap<String, u32>) -> Finding {
        let subject = format!("topic {}", needed.name);
        match existing.get(needed.name.as_str()) {
            None => self.to_be_made(needed).await,
            // The runtime raises it, unless it holds state.
            Some(has) if *has < needed.partitions && needed.grows => Finding::good(
                subject,
                format!("it has {has} partitions, and is raised to the {} of its source", needed.partitions),
            ),
            Some(has) if *has != needed.partitions => Finding::wrong(
                subject,
                format!("it has {has} partitions, and needs {}", needed.partitions),
                "remove it if nothing in it is needed, or read a source of another name",
            ),
            Some(has) => match topics::unfit(self.admin(), std::slice::from_ref(&needed)).await.pop() {
                Some((topic, unfit)) => self.unfit(subject, &topic, unfit).await,
                None => Finding::good(subject, counted(*has)),
            },
        }
    }

    /// A topic of the runtime's own that has not the settings that it must have.
    async fn unfit(&self, subject: String, topic: &Topic, unfit: topics::Unfit) -> Finding {
        match unfit {
            topics::Unfit::Lossy(settings) => {
                Finding::wrong(subject, settings.clone(), topics::alter(topic, &settings))
            }
            topics::Unfit::Short(more) => match more.would_set(self.admin(), topic).await {
                Ok(()) => Finding::good(subject, format!("it is set to {} at the start", more.settings)),
                Err(error) => Finding::wrong(subject, error.to_string(), topics::alter(topic, &more.settings)),
            },
            topics::Unfit::Unknown(reason) => Finding::wrong(
                subject,
                format!("its settings cannot be read: {reason}"),
                acl("DescribeConfigs", "topic", topic.as_str()),
            ),
        }
    }

    /// Whether the broker would make it.
    async fn to_be_made(&self, needed: topics::Needed) -> Finding {
        let subject = format!("topic {}", needed.name);
        let detail = counted(needed.partitions);
        match topics::would_make(self.admin(), self.replication(), &needed).await {
            Ok(()) => Finding { verdict: Verdict::WillBeMade, ..Finding::good(subject, detail) },
            Err(error) => Finding::wrong(subject, "it is not there, and cannot be made", error.to_string()),
        }
    }
}

fn counted(partitions: u32) -> String {
    if partitions == 1 { "1 partition".to_owned() } else { format!("{partitions} partitions") }
}

/// What may not be done that must be. Blocks.
fn permissions(
    log: &KafkaLog,
    needs: &Needs,
    existing: &BTreeMap<String, u32>,
    functions: &[(FunctionName, Vec<Topic>)],
) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    let there: Vec<&str> = needs.keys().map(Topic::as_str).filter(|topic| existing.contains_key(*topic)).collect();
    if !there.is_empty() {
        let allowed = native::allowed(log.admin().inner(), &there, REQUEST_TIMEOUT);
        let allowed = allowed.map_err(|e| Error::Transient(format!("Kafka cannot be asked what is allowed: {e}")))?;
        for (topic, allowed) in allowed {
            let needed =
                needs.iter().find(|(name, _)| name.as_str() == topic).map(|(_, needed)| *needed).unwrap_or_default();
            found.extend(forbidden(&topic, needed, allowed));
        }
    }
    let groups: BTreeSet<_> =
        functions.iter().filter(|(_, sources)| sources.iter().any(|one| existing.contains_key(one.as_str()))).collect();
    for (function, sources) in groups {
        let group = log.clients().names.group(function);
        let outsider = log.clients().outsider(&group)?;
        let wanted: Vec<_> =
            sources.iter().filter(|one| existing.contains_key(one.as_str())).map(|one| (one.clone(), 0)).collect();
        found.push(match committed(&outsider, function, &wanted) {
            Ok(_) => Finding::good(format!("group {group}"), ""),
            Err(error) => Finding::wrong(format!("group {group}"), error.to_string(), acl("Read", "group", &group)),
        });
    }
    let id = log.clients().names.check_id();
    let mut writer = Writer::new(Arc::clone(log.clients()), id);
    found.push(match writer.renew() {
        Ok(()) => Finding::good("transactions".to_owned(), ""),
        Err(error) => {
            let fix =
                acl("Write", "transactional-id", &format!("{} --resource-pattern-type prefixed", log.0.options.prefix));
            Finding::wrong("transactions".to_owned(), error.to_string(), fix)
        }
    });
    Ok(found)
}

/// What of the things needed with a topic is not allowed.
fn forbidden(topic: &str, needed: Allowed, allowed: Result<Option<Allowed>, RDKafkaErrorCode>) -> Vec<Finding> {
    let subject = format!("topic {topic}");
    let allowed = match allowed {
        Ok(Some(allowed)) => allowed,
        // An old broker does not say.
        Ok(None) => return Vec::new(),
        Err(code) => {
            return vec![Finding::wrong(
                subject,
                format!("it may not be looked at: {code}"),
                acl("Describe", "topic", topic),
            )];
        }
    };
    let pairs = [("Read", needed.read, allowed.read), ("Write", needed.write, allowed.write)];
    let missing = pairs.into_iter().filter(|(_, needed, allowed)| *needed && !allowed);
    missing
        .map(|(operation, ..)| {
            let detail = format!("the principal may not {} it", operation.to_lowercase());
            Finding::wrong(subject.clone(), detail, acl(operation, "topic", topic))
        })
        .collect()
}

/// The command that allows it.
fn acl(operation: &str, kind: &str, name: &str) -> String {
    format!("kafka-acls --bootstrap-server … --add --allow-principal User:… --operation {operation} --{kind} {name}")
}
