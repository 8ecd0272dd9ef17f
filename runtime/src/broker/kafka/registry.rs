//! What runs, as records of one topic of one partition that keeps everything: deployments of functions, where components are
//! (`components.rs`), and entries (`entries.rs`).
//!
//! A deployment. Key: the function's name; value: frame (version, checksum) around the number that the deployment builds on, and its
//! content. Of two that build on the same number, the first in the log counts, and every reader sees that; so whoever writes one reads
//! up to it before he answers.
//!
//! What was read is kept, so that whoever follows what runs asks for the topic's end now and then, and reads what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::name::{FunctionName, InvalidName, Topic};
use millrace_core::record::Record;

use super::KafkaLog;
use super::clients::lock;
use super::components::{self, Stored};
use super::entries;
use super::kept::Fold;
use super::member::commit::plain;
use super::record::Placed;
use super::topics::{self, Needed};
use crate::broker::deployments::check_entry;
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{DeployError, Deployed, Deployment, Deployments, Entry, EntryError, EntryName, Error, Report};

const KIND: &str = "a deployment";
const VERSION: u8 = 1;
/// Records of entries of which it is known that they count: whoever wrote one asks at once.
const COUNTED_MAX: usize = 1000;
/// Between two looks for another deployment.
const LOOK_AGAIN: Duration = Duration::from_millis(400);

fn encode(function: &FunctionName, previous: u64, content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(previous);
    encoder.raw(content);
    encoder.seal(function.as_str().as_bytes())
}

fn decode(function: &FunctionName, value: &[u8]) -> Result<(u64, Bytes), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, function.as_str().as_bytes(), value)?;
    let previous = decoder.varint()?;
    Ok((previous, Bytes::copy_from_slice(decoder.remainder())))
}

/// What counts of the registry's records.
#[derive(Debug, Default)]
pub(super) struct Registry {
    latest: BTreeMap<FunctionName, u64>,
    /// By the offsets of their records.
    deployments: BTreeMap<u64, Deployment>,
    /// Whether there were deployments in a topic that was made anew, or may have been some in what is gone or cannot be read.
    deployments_lost: bool,
    components: BTreeMap<Digest, Stored>,
    entries: BTreeMap<EntryName, Bytes>,
    /// The offset after the last record of any entry, whether it counts or not.
    entries_at: u64,
    /// Offsets of the latest records of entries that count.
    counted: BTreeSet<u64>,
    /// Whether there were entries in a topic that was made anew, or may have been some in what is gone, or some have no name that is known.
    entries_lost: bool,
    /// How often there were other deployments or entries since the process began.
    changes: u64,
}

impl Fold for Registry {
    fn take(&mut self, offset: u64, record: &Record) {
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let value = record.value.as_deref().unwrap_or_default();
        let taken = match (components::digest_of(&key), entries::name_of(&key)) {
            (Some(digest), _) => self.take_component(digest, value),
            (None, Some(name)) => self.take_entry(offset, name, value),
            (None, None) => self.take_deployment(offset, &key, value),
        };
        if let Err(error) = taken {
            tracing::error!(offset, key = &*key, error, "A record of the registry cannot be read and is left out.");
        }
    }

    fn begin_anew(&mut self) {
        let entries_lost = self.entries_lost || !self.entries.is_empty();
        let deployments_lost = self.deployments_lost || !self.deployments.is_empty();
        *self = Self { changes: self.changes + 1, deployments_lost, entries_lost, ..Self::default() };
    }

    fn miss(&mut self, earliest: u64) {
        tracing::error!(
            earliest,
            "The registry has lost its oldest records: somebody deleted them, or the topic is set to keep them for a time alone. What was \
             deployed and which tokens there were is not known any more; restore the topic from a backup."
        );
        (self.changes, self.entries_at) = (self.changes + 1, earliest);
        (self.deployments_lost, self.entries_lost) = (true, true);
    }
}

impl Registry {
    fn take_deployment(&mut self, offset: u64, key: &str, value: &[u8]) -> Result<(), String> {
        let read = key.parse::<FunctionName>().map_err(|e| e.to_string()).and_then(|function| {
            let (previous, content) = decode(&function, value).map_err(|e| e.to_string())?;
            Ok((function, previous, content))
        });
        // Whatever it is, it can name a component.
        let (function, previous, content) = read.inspect_err(|_| self.lose_deployments())?;
        let latest = self.latest.entry(function.clone()).or_default();
        // Whoever wrote it had read more than is there, as where somebody has let the topic be compacted.
        let is_missing = previous > *latest;
        if *latest == previous {
            *latest += 1;
            self.changes += 1;
            self.deployments.insert(offset, Deployment { function, number: *latest, content });
        }
        if is_missing {
            self.lose_deployments();
        }
        Ok(())
    }

    /// There was one, or may have been, that is not known here.
    fn lose_deployments(&mut self) {
        if !std::mem::replace(&mut self.deployments_lost, true) {
            self.changes += 1;
            tracing::warn!(
                "A deployment in the registry cannot be read or is missing. No component is removed from the log any more, for it could name one."
            );
        }
    }

    fn take_component(&mut self, digest: Result<Digest, String>, value: &[u8]) -> Result<(), String> {
        let digest = digest?;
        let said = components::decode(&digest, value).map_err(|e| e.to_string())?;
        components::apply(&mut self.components, digest, said);
        Ok(())
    }

    fn take_entry(&mut self, offset: u64, name: Result<EntryName, String>, value: &[u8]) -> Result<(), String> {
        let before = std::mem::replace(&mut self.entries_at, offset + 1);
        self.changes += 1;
        // A later version may have named it so; it is not told of, and still it is there.
        let name = name.inspect_err(|_| self.entries_lost = true)?;
        match entries::decode(&name, value) {
            // Somebody else was quicker.
            Ok((builds_on, _)) if !(before..=offset).contains(&builds_on) => {}
            Ok((_, content)) => {
                match content {
                    Some(content) => drop(self.entries.insert(name, content)),
                    None => drop(self.entries.remove(&name)),
                }
                self.counted.insert(offset);
                if self.counted.len() > COUNTED_MAX {
                    self.counted.pop_first();
                }
            }
            Err(error) => {
                // Without a content it means nothing to anybody. Were it not there, a token that cannot be read would be none.
                self.entries.insert(name, Bytes::new());
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// Where a component is, if it is there.
    pub(super) fn component(&self, digest: &Digest) -> Option<&Stored> {
        self.components.get(digest)
    }

    fn deployed(&self) -> Deployed {
        let mut deployments: Vec<_> = self.deployments.values().cloned().collect();
        deployments.sort_by(|a, b| (&a.function, a.number).cmp(&(&b.function, b.number)));
        let entries = self.entries.iter().map(|(name, content)| Entry { name: name.clone(), content: content.clone() });
        Deployed {
            seen: self.changes,
            deployments,
            deployments_lost: self.deployments_lost,
            entries: entries.collect(),
            entries_at: self.entries_at,
            entries_lost: self.entries_lost,
        }
    }

    /// What became of a record that proposed a deployment.
    fn decided(&self, offset: u64, function: FunctionName, previous: u64) -> Result<u64, DeployError> {
        match self.deployments.get(&offset) {
            Some(deployment) if deployment.function == function => Ok(deployment.number),
            _ => {
                let latest = self.latest.get(&function).copied().unwrap_or_default();
                Err(DeployError::Conflict { function, expected: previous, latest })
            }
        }
    }
}

fn valid(topic: Result<Topic, InvalidName>) -> Result<Topic, Error> {
    topic.map_err(|e| Error::Fatal(e.to_string()))
}

impl KafkaLog {
    pub(super) fn registry_topic(&self) -> Result<Topic, Error> {
        valid(self.clients().names.registry())
    }

    pub(super) fn components_topic(&self) -> Result<Topic, Error> {
        valid(self.clients().names.components())
    }

    pub(super) fn instances_topic(&self) -> Result<Topic, Error> {
        valid(self.clients().names.instances())
    }

    pub(super) fn audit_topic(&self) -> Result<Topic, Error> {
        valid(self.clients().names.audit())
    }

    /// Looks at the registry as it is now.
    pub(super) async fn with_registry<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Registry) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.asking(move |log| {
            let mut registry = lock(&log.0.registry);
            registry.catch_up(log)?;
            Ok(look(&registry.fold))
        })
        .await
    }

    /// Makes a topic of all instances, unless it is there with settings that lose nothing.
    pub(super) async fn make_own(&self, needed: Needed) -> Result<(), Error> {
        let name = needed.name.clone();
        let count = self.asking(move |log| log.partition_count(name.as_str())).await?;
        let existing = count.map(|count| (needed.name.to_string(), count)).into_iter().collect();
        let made = topics::make(self.admin(), self.replication(), std::slice::from_ref(&needed), &existing).await;
        // What runs can go on all the same.
        made.map_err(|e| Error::Transient(e.to_string()))?;
        match count {
            None => self.asking(move |log| log.wait_for_topics(&[needed.name])).await,
            Some(_) => Ok(()),
        }
    }

    /// Writes records of topics that are for all instances, all or nothing. Says where they are.
    pub(super) async fn write_own(&self, what: &str, records: Vec<Placed>) -> Result<Vec<u64>, Error> {
        let placed = self.publisher().publish(records).await;
        let placed = placed.map_err(|e| Error::Transient(format!("{what} cannot be written: {e}")))?;
        Ok(placed.into_iter().map(|place| place.offset).collect())
    }
}

impl Deployments for KafkaLog {
    async fn deployments(&self, seen: Option<u64>) -> Result<Deployed, Error> {
        let mut is_told = false;
        loop {
            let others = move |registry: &Registry| (seen != Some(registry.changes)).then(|| registry.deployed());
            match self.with_registry(others).await {
                Ok(Some(deployed)) => return Ok(deployed),
                Ok(None) => is_told = false,
                Err(error) if seen.is_none() || !error.is_transient() => return Err(error),
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(%error, "Kafka does not tell of deployments; it is asked until it does.");
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> Result<u64, DeployError> {
        let topic = self.registry_topic()?;
        self.make_own(Needed::registry(topic.clone())).await?;
        let value = encode(&function, previous, &content);
        let record = plain(self.clock().now(), Some(Bytes::copy_from_slice(function.as_str().as_bytes())), value);
        let offsets = self.write_own("a deployment", vec![Placed { topic, partition: 0, record }]).await?;
        let untold = || Error::Transient("Kafka does not tell where a deployment is".to_owned());
        let offset = offsets.first().copied().ok_or_else(untold)?;
        let decided = self.asking(move |log| {
            let mut registry = lock(&log.0.registry);
            registry.catch_up_beyond(log, offset)?;
            Ok(registry.fold.decided(offset, function, previous))
        });
        decided.await?
    }

    async fn put_component(&self, digest: Digest, content: Bytes) -> Result<(), Error> {
        self.upload_unless_there(digest, content).await
    }

    async fn has_component(&self, digest: Digest) -> Result<bool, Error> {
        self.with_registry(move |registry| registry.component(&digest).is_some()).await
    }

    async fn component(&self, digest: Digest) -> Result<Option<Bytes>, Error> {
        self.asking(move |log| log.read_component(&digest)).await
    }

    async fn components(&self) -> Result<Vec<Digest>, Error> {
        self.with_registry(|registry| registry.components.keys().copied().collect()).await
    }

    async fn remove_component(&self, digest: Digest) -> Result<(), Error> {
        self.remove_upload(digest).await
    }

    async fn put_entry(&self, name: EntryName, content: Option<Bytes>, builds_on: u64) -> Result<(), EntryError> {
        check_entry(content.as_ref())?;
        let topic = self.registry_topic()?;
        self.make_own(Needed::registry(topic.clone())).await?;
        let value = entries::encode(&name, content.as_deref(), builds_on);
        let record = plain(self.clock().now(), Some(entries::key(&name).into()), value);
        let offsets = self.write_own("an entry", vec![Placed { topic, partition: 0, record }]).await?;
        let untold = || Error::Transient("Kafka does not tell where an entry is".to_owned());
        let offset = offsets.first().copied().ok_or_else(untold)?;
        let counts = self.asking(move |log| {
            let mut registry = lock(&log.0.registry);
            registry.catch_up_beyond(log, offset)?;
            Ok(registry.fold.counted.contains(&offset))
        });
        if counts.await? { Ok(()) } else { Err(EntryError::Conflict) }
    }

    async fn report(&self, content: Bytes) -> Result<(), Error> {
        self.speak(content).await
    }

    async fn reports(&self) -> Result<Vec<Report>, Error> {
        self.heard().await
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::time::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn function() -> FunctionName {
        "shop.pay".parse().unwrap()
    }

    fn record(previous: u64, content: &str) -> Record {
        let value = encode(&function(), previous, content.as_bytes());
        plain(Timestamp::EPOCH, Some(Bytes::from_static(b"shop.pay")), value)
    }

    #[test]
    fn of_two_that_build_on_the_same_the_first_counts() {
        let mut registry = Registry::default();
        for (offset, previous, content) in [(0, 0, "a"), (2, 1, "b"), (4, 1, "c"), (6, 2, "d"), (8, 9, "e")] {
            registry.take(offset, &record(previous, content));
        }
        let Deployed { seen, deployments, .. } = registry.deployed();
        let all: Vec<_> = deployments.iter().map(|one| (one.number, &one.content[..])).collect();
        // The last one builds on what is not there, which is a change as well.
        assert_eq!((seen, &all[..]), (4, &[(1, &b"a"[..]), (2, b"b"), (3, b"d")][..]));
        assert_eq!(registry.decided(2, function(), 1).unwrap(), 2);
        let late = registry.decided(4, function(), 1).unwrap_err();
        assert!(matches!(late, DeployError::Conflict { expected: 1, latest: 3, .. }), "{late}");
    }

    #[test]
    fn deployments_that_are_gone_or_cannot_be_read_are_missed() {
        let unreadable = |key: &'static str| {
            plain(Timestamp::EPOCH, Some(Bytes::from_static(key.as_bytes())), Bytes::from_static(b"?"))
        };
        for (records, expected) in [
            (vec![], false),
            (vec![record(0, "a"), record(1, "b"), record(1, "late")], false),
            (vec![record(0, "a"), record(2, "c")], true),
            (vec![record(0, "a"), unreadable("shop.pay")], true),
            // A later version may have written it.
            (vec![unreadable("Shop/pay")], true),
            // These are no deployments, whatever they say.
            (vec![unreadable("component:x"), unreadable("entry:Token/1")], false),
        ] {
            let mut registry = Registry::default();
            records.iter().zip(0..).for_each(|(record, offset)| registry.take(offset, record));
            let Deployed { deployments, deployments_lost, .. } = registry.deployed();
            assert_eq!(deployments_lost, expected, "{records:?}");
            // What there was is not in a topic that is made anew.
            registry.begin_anew();
            assert_eq!(registry.deployed().deployments_lost, expected || !deployments.is_empty(), "{records:?}");
        }
        let mut registry = Registry::default();
        registry.miss(5);
        assert!(registry.deployed().deployments_lost);
    }

    #[test]
    fn a_topic_that_was_made_anew_has_other_deployments_even_if_they_are_as_many() {
        let mut registry = Registry::default();
        registry.take(0, &record(0, "a"));
        let seen = registry.deployed().seen;
        registry.begin_anew();
        registry.take(0, &record(0, "b"));
        let now = registry.deployed();
        assert_ne!(now.seen, seen);
        assert_eq!(
            now.deployments.iter().map(|one| (one.number, &one.content[..])).collect::<Vec<_>>(),
            [(1, &b"b"[..])]
        );
    }

    #[test]
    fn of_what_was_written_under_one_name_the_last_counts() {
        let mut registry = Registry::default();
        let name: EntryName = "token.1".parse().unwrap();
        let entry = |content, builds_on| {
            let value = entries::encode(&name, content, builds_on);
            plain(Timestamp::EPOCH, Some(entries::key(&name).into()), value)
        };
        for (offset, content, expected) in
            [(0, Some(&b"a"[..]), &[&b"a"[..]][..]), (1, Some(b"b"), &[b"b"]), (2, None, &[]), (3, Some(b"c"), &[b"c"])]
        {
            registry.take(offset, &entry(content, offset));
            let deployed = registry.deployed();
            assert_eq!(deployed.entries_at, offset + 1);
            assert_eq!(deployed.entries.iter().map(|one| &one.content[..]).collect::<Vec<_>>(), expected);
            assert_eq!((deployed.seen, deployed.deployments), (offset + 1, Vec::new()));
        }
        assert!(!registry.deployed().entries_lost);
        for turn in 5..7 {
            registry.begin_anew();
            let Deployed { seen, entries, entries_lost, .. } = registry.deployed();
            assert_eq!((seen, entries, entries_lost), (turn, Vec::new(), true));
        }
        let mut registry = Registry::default();
        registry.begin_anew();
        assert!(!registry.deployed().entries_lost, "there was nothing");
    }

    #[test]
    fn an_entry_whose_name_is_none_is_missed() {
        for (key, expected) in [("entry:Token/1", true), ("entry:", true), ("entry:token.1", false), ("Token/1", false)]
        {
            let mut registry = Registry::default();
            registry.take(
                3,
                &plain(Timestamp::EPOCH, Some(Bytes::copy_from_slice(key.as_bytes())), Bytes::from_static(b"?")),
            );
            assert_eq!(registry.deployed().entries_lost, expected, "{key}");
        }
    }

    #[test]
    fn whoever_has_not_read_the_oldest_records_agrees_on_later_ones_and_knows_that_it_misses_some() {
        let name: EntryName = "token.1".parse().unwrap();
        let entry = |builds_on| {
            let value = entries::encode(&name, Some(b"x"), builds_on);
            plain(Timestamp::EPOCH, Some(entries::key(&name).into()), value)
        };
        let (mut all, mut late) = (Registry::default(), Registry::default());
        all.take(0, &entry(0));
        late.miss(5);
        assert_eq!((late.deployed().seen, late.deployed().entries_at, late.deployed().entries_lost), (1, 5, true));
        for (offset, builds_on, counts) in [(5, 4, None), (7, 6, Some(true)), (9, 6, Some(false)), (11, 10, Some(true))]
        {
            for registry in [&mut all, &mut late] {
                registry.take(offset, &entry(builds_on));
            }
            // One that builds on what is gone counts only for who has seen that.
            let counted = [&all, &late].map(|registry| registry.counted.contains(&offset));
            assert_eq!(counted, counts.map_or([true, false], |counts| [counts; 2]), "{offset}");
        }
        assert!(late.deployed().entries_lost && !all.deployed().entries_lost);
    }

    #[test]
    fn of_entries_that_build_on_the_same_the_first_counts_whatever_they_are_called() {
        let mut registry = Registry::default();
        let name = |text: &str| text.parse::<EntryName>().unwrap();
        let entry = |text: &str, builds_on| {
            let value = entries::encode(&name(text), Some(b"x"), builds_on);
            plain(Timestamp::EPOCH, Some(entries::key(&name(text)).into()), value)
        };
        let names = |registry: &Registry| -> Vec<String> {
            registry.deployed().entries.iter().map(|entry| entry.name.to_string()).collect()
        };
        for (offset, text, builds_on, expected) in [
            (3, "a", 0, &["a"][..]),
            // It knew nothing of `a`.
            (5, "b", 0, &["a"]),
            // Nor this one of `b`, of which a reader that has less than this one cannot know that it does not count.
            (7, "b", 4, &["a"]),
            (9, "b", 8, &["a", "b"]),
            (11, "c", 11, &["a", "b", "c"]),
            // No reader can have been there.
            (13, "d", 14, &["a", "b", "c"]),
        ] {
            registry.take(offset, &entry(text, builds_on));
            assert_eq!(names(&registry), expected, "{offset}");
            assert_eq!(
                registry.counted.contains(&offset),
                expected.contains(&text) && registry.entries_at == offset + 1
            );
        }
        assert_eq!(registry.counted, BTreeSet::from([3, 9, 11]));
        // Deployments are something else.
        registry.take(15, &record(0, "a"));
        registry.take(17, &entry("d", 14));
        assert_eq!(names(&registry), ["a", "b", "c", "d"]);
        // Of what cannot be read nobody knows what it builds on.
        registry.take(19, &plain(Timestamp::EPOCH, Some(entries::key(&name("e")).into()), Bytes::from_static(b"?")));
        registry.take(21, &entry("f", 18));
        assert_eq!(names(&registry), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn the_layout_is_pinned() {
        assert_eq!(encode(&function(), 3, b"x")[..], [1, 216, 183, 215, 188, 3, 120]);
    }

    proptest! {
        #[test]
        fn a_deployment_reads_back(previous: u64, content: Vec<u8>) {
            let read = decode(&function(), &encode(&function(), previous, &content));
            prop_assert_eq!(read, Ok((previous, Bytes::from(content))));
        }

        #[test]
        fn foreign_bytes_never_panic(key in prop_oneof![any::<Vec<u8>>(), "(component:[0-9a-f]{64}|entry:[a-z.]{1,9})".prop_map(String::into_bytes)], bytes: Vec<u8>) {
            drop(decode(&function(), &bytes));
            let record = plain(Timestamp::EPOCH, Some(key.into()), bytes.into());
            let mut registry = Registry::default();
            registry.take(0, &record);
            let Deployed { deployments, entries, .. } = registry.deployed();
            prop_assert_eq!(deployments, []);
            prop_assert!(entries.iter().all(|entry| entry.content.is_empty()));
        }
    }
}
