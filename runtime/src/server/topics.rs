//! Topics that functions need: made before they run, and known to whoever emits.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use millrace_core::manifest::{self, Manifest};
use millrace_core::name::Topic;

use crate::broker::{CatalogError, Log, Retention};
use crate::config;

/// The topics of a log. Cheap to clone.
#[derive(Debug)]
pub(super) struct Topics<L> {
    log: Arc<L>,
    /// For what a manifest does not say.
    defaults: config::Topics,
    /// Those that exist, for whoever asks in the middle of an invocation.
    known: Arc<RwLock<HashSet<Topic>>>,
}

impl<L> Clone for Topics<L> {
    fn clone(&self) -> Self {
        Self { log: Arc::clone(&self.log), defaults: self.defaults.clone(), known: Arc::clone(&self.known) }
    }
}

impl<L: Log> Topics<L> {
    pub(super) fn new(log: Arc<L>, defaults: config::Topics) -> Self {
        Self { log, defaults, known: Arc::default() }
    }

    /// Checks that what a manifest says fits what there is, and that what there is not can be made.
    pub(super) async fn check(&self, manifest: &Manifest) -> Result<(), CatalogError> {
        let existing = self.existing(manifest).await?;
        for topic in manifest.mentioned_topics() {
            if !existing.contains_key(topic.as_str()) {
                let (partitions, retention) = self.wanted(manifest, topic, &existing);
                self.log.may_make_topic(topic.clone(), partitions, retention).await?;
            }
        }
        Ok(())
    }

    /// How many partitions each topic has that there is, none of which the manifest contradicts.
    async fn existing(&self, manifest: &Manifest) -> Result<BTreeMap<String, u32>, CatalogError> {
        let existing = self.log.partition_counts().await?;
        for topic in manifest.mentioned_topics() {
            let wanted = settings(manifest, topic).and_then(|settings| settings.partitions);
            if let (Some(existing), Some(wanted)) = (existing.get(topic.as_str()).copied(), wanted)
                && wanted != existing
            {
                return Err(CatalogError::PartitionCount { topic: topic.clone(), existing, wanted });
            }
        }
        Ok(existing)
    }

    /// Makes the topics that a manifest mentions, and gives each its retention; answers with those that are new. Nothing is
    /// done if one of them exists with another number of partitions.
    pub(super) async fn make(&self, manifest: &Manifest) -> Result<Vec<String>, CatalogError> {
        let (existing, mut made) = (self.existing(manifest).await?, Vec::new());
        self.make_these(manifest, manifest.mentioned_topics(), &existing, &mut made).await?;
        Ok(made)
    }

    /// Makes the topics that a manifest mentions and that do not exist, and sets the retention of those of which it says one. What
    /// it only mentions can be the topic of another application. Those that are new are in `made`, also after an error.
    pub(super) async fn make_missing(&self, manifest: &Manifest, made: &mut Vec<String>) -> Result<(), CatalogError> {
        let existing = self.existing(manifest).await?;
        let says = |topic: &Topic| {
            settings(manifest, topic).is_some_and(|settings| settings.retention != manifest::Retention::default())
        };
        let mut wanted = manifest.mentioned_topics();
        wanted.retain(|topic| !existing.contains_key(topic.as_str()) || says(topic));
        self.make_these(manifest, wanted, &existing, made).await
    }

    async fn make_these(
        &self,
        manifest: &Manifest,
        topics: Vec<&Topic>,
        existing: &BTreeMap<String, u32>,
        made: &mut Vec<String>,
    ) -> Result<(), CatalogError> {
        for topic in topics {
            let (partitions, retention) = self.wanted(manifest, topic, existing);
            self.log.make_topic(topic.clone(), partitions, retention).await?;
            if !existing.contains_key(topic.as_str()) {
                made.push(topic.to_string());
            }
        }
        self.look().await
    }

    /// How many partitions a topic is to have, and how long its records are to be kept.
    fn wanted(&self, manifest: &Manifest, topic: &Topic, existing: &BTreeMap<String, u32>) -> (u32, Retention) {
        let settings = settings(manifest, topic);
        let wanted = settings.and_then(|settings| settings.partitions);
        let partitions = existing.get(topic.as_str()).copied().or(wanted).unwrap_or(self.defaults.partitions);
        let own = settings.map(|settings| settings.retention).unwrap_or_default();
        // What it does not say is the configuration's to say.
        let retention = if own == manifest::Retention::default() {
            Retention::default()
        } else {
            Retention {
                max_age: own.age.or(Some(self.defaults.retention_age)),
                max_bytes: own.size_bytes.or(Some(self.defaults.retention_bytes)),
            }
        };
        (partitions, retention)
    }

    /// Looks which topics there are by now.
    pub(super) async fn look(&self) -> Result<(), CatalogError> {
        let topics = self.log.partition_counts().await?.into_keys().filter_map(|name| Topic::new(name).ok()).collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = topics;
        Ok(())
    }

    /// Whether a topic exists, as was seen last.
    pub(super) fn are_known(&self) -> Arc<dyn Fn(&Topic) -> bool + Send + Sync> {
        let known = Arc::clone(&self.known);
        Arc::new(move |topic| known.read().unwrap_or_else(PoisonError::into_inner).contains(topic))
    }
}

fn settings<'a>(manifest: &'a Manifest, topic: &Topic) -> Option<&'a manifest::TopicSettings> {
    manifest.topics.iter().find(|settings| settings.name == *topic)
}
