//! What each instance says of itself, as records of one compacted topic of one partition. Key: the instance; value: frame (version,
//! checksum) around when it was said, in milliseconds, and what. The last word of each counts.
//!
//! An instance that has said nothing for a day is forgotten by whichever speaks next: most have names that no other one will have.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::KafkaLog;
use super::clients::lock;
use super::kept::Fold;
use super::member::commit::plain;
use super::record::Placed;
use super::topics::Needed;
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{Error, Report};

const KIND: &str = "what an instance says of itself";
const VERSION: u8 = 1;
/// Who is silent for longer is forgotten.
const SILENCE: Duration = Duration::from_secs(24 * 3600);
/// Instances that are forgotten at once.
const FORGOTTEN_AT_ONCE: usize = 100;

fn encode(instance: &str, at: Timestamp, content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(at.as_millis());
    encoder.raw(content);
    encoder.seal(instance.as_bytes())
}

fn decode(instance: &str, value: &[u8]) -> Result<(Timestamp, Bytes), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, instance.as_bytes(), value)?;
    let millis = decoder.varint()?;
    // A time that does not fit is nonsense, and no reason to stop.
    let at = Timestamp::from_nanos(millis.saturating_mul(1_000_000));
    Ok((at, Bytes::copy_from_slice(decoder.remainder())))
}

/// The last word of each instance.
#[derive(Debug, Default)]
pub(super) struct Instances(BTreeMap<String, Report>);

impl Fold for Instances {
    fn take(&mut self, offset: u64, record: &Record) {
        let key = record.key.as_deref().unwrap_or_default();
        let instance = String::from_utf8_lossy(key).into_owned();
        let Some(value) = record.value.as_deref() else {
            self.0.remove(&instance);
            return;
        };
        match decode(&instance, value) {
            Ok((at, content)) => {
                self.0.insert(instance.clone(), Report { instance, at, content, own: false });
            }
            Err(error) => {
                tracing::error!(offset, instance, %error, "What an instance says of itself cannot be read and is left out.");
            }
        }
    }

    fn begin_anew(&mut self) {
        *self = Self::default();
    }

    fn miss(&mut self, _: u64) {
        // Each says it again soon.
    }
}

impl Instances {
    fn silent(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let silent = self.0.values().filter(move |report| now.since(report.at) > SILENCE);
        silent.map(|report| report.instance.as_str())
    }
}

impl KafkaLog {
    /// Says something of this instance, and forgets who is silent.
    pub(super) async fn speak(&self, content: Bytes) -> Result<(), Error> {
        let topic = self.instances_topic()?;
        let name = topic.clone();
        // Its settings can lose nothing that is not said again.
        if self.asking(move |log| log.partition_count(name.as_str())).await?.is_none() {
            self.make_own(Needed::instances(topic.clone())).await?;
        }
        let (now, own) = (self.clock().now(), self.clients().names.instance().to_owned());
        let besides = own.clone();
        let silent = self.with_instances(move |instances| {
            let silent = instances.silent(now).filter(|instance| *instance != besides);
            silent.take(FORGOTTEN_AT_ONCE).map(str::to_owned).collect::<Vec<_>>()
        });
        let forgotten = silent.await?.into_iter();
        let forgotten =
            forgotten.map(|instance| Record { timestamp: now, key: Some(instance.into()), ..Record::default() });
        let value = encode(&own, now, &content);
        let records = std::iter::once(plain(now, Some(own.into()), value)).chain(forgotten);
        let placed = records.map(|record| Placed { topic: topic.clone(), partition: 0, record });
        self.write_own("what this instance says of itself", placed.collect()).await.map(drop)
    }

    /// The last word of each instance, by instance.
    pub(super) async fn heard(&self) -> Result<Vec<Report>, Error> {
        let own = self.clients().names.instance().to_owned();
        let told = move |report: &Report| Report { own: report.instance == own, ..report.clone() };
        self.with_instances(move |instances| instances.0.values().map(told).collect()).await
    }

    /// Looks at what instances say as it is now.
    async fn with_instances<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Instances) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.asking(move |log| {
            let mut instances = lock(&log.0.instances);
            instances.catch_up(log)?;
            Ok(look(&instances.fold))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(instance: &str, millis: u64, content: &str) -> Record {
        let value = encode(instance, Timestamp::from_millis(millis), content.as_bytes());
        plain(Timestamp::EPOCH, Some(Bytes::copy_from_slice(instance.as_bytes())), value)
    }

    #[test]
    fn the_last_word_counts_and_who_is_silent_for_a_day_can_be_forgotten() {
        let mut instances = Instances::default();
        for (offset, record) in [said("a", 5, "one"), said("b", 7, "two"), said("a", 3, "three")].iter().enumerate() {
            instances.take(offset as u64, record);
        }
        let words: Vec<_> =
            instances.0.values().map(|one| (&one.instance[..], one.at.as_millis(), &one.content[..])).collect();
        assert_eq!(words, [("a", 3, &b"three"[..]), ("b", 7, b"two")]);
        let silent = |millis| instances.silent(Timestamp::from_millis(millis) + SILENCE).collect::<Vec<_>>();
        assert_eq!([silent(3), silent(4), silent(8)], [vec![], vec!["a"], vec!["a", "b"]]);
        instances.take(9, &Record { key: Some("a".into()), ..Record::default() });
        assert_eq!(instances.0.into_keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_layout_is_pinned() {
        assert_eq!(encode("a1", Timestamp::from_millis(300), b"x")[..], [1, 193, 97, 220, 82, 172, 2, 120]);
    }

    proptest! {
        #[test]
        fn what_is_said_reads_back(instance: String, millis in 0..u64::from(u32::MAX), content: Vec<u8>) {
            let at = Timestamp::from_millis(millis);
            prop_assert_eq!(decode(&instance, &encode(&instance, at, &content)), Ok((at, content.into())));
        }

        #[test]
        fn foreign_bytes_never_panic(key: Vec<u8>, bytes: Vec<u8>, millis: u64) {
            let mut encoder = Encoder::new(VERSION);
            encoder.varint(millis);
            let forged = encoder.seal(b"a");
            prop_assert!(decode("a", &forged).is_ok());
            let mut instances = Instances::default();
            instances.take(0, &plain(Timestamp::EPOCH, Some(key.into()), bytes.into()));
            instances.take(1, &plain(Timestamp::EPOCH, Some("a".into()), forged));
            prop_assert_eq!(instances.silent(Timestamp::EPOCH).count(), 0);
        }
    }
}
