//! Components: cut into chunks, which are records of one compacted topic. Key: `<digest>/<upload>/<index>`, value: frame (version,
//! checksum) around the bytes.
//!
//! A component is there from the moment on that the registry says where its chunks are, so that it is found without reading them
//! all, and half of one is none. Key: `component:<digest>`, value: frame around either a 1, the upload, size, number of chunks and
//! their offsets, each as the distance from the one before, or a 0 and the upload that is removed. The first upload that is there
//! counts until it is removed.
//!
//! Each upload has keys of its own. With the same ones, compaction would take from each of two that are interleaved what the other one
//! wrote earlier, and a removal could reach what was put there again meanwhile.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::clients::lock;
use super::member::commit::plain;
use super::record::Placed;
use super::topics::Needed;
use super::{KafkaLog, random_number};
use crate::broker::Error;
use crate::broker::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "where a component is";
const CHUNK_KIND: &str = "a chunk of a component";
const VERSION: u8 = 1;
const REMOVED: u8 = 0;
const STORED: u8 = 1;
/// No function is named so.
const KEY_PREFIX: &str = "component:";
/// Far below what a topic takes at once unless told otherwise.
const CHUNK_BYTES: usize = 512 * limits::KIB;
/// Chunks that are written at once: some megabytes.
const CHUNKS_AT_ONCE: usize = 8;

/// What the registry says of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It was stored.
    Stored(Stored),
    /// An upload of it was removed.
    Removed(u64),
}

/// Where a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Tells its chunks from those of other uploads.
    upload: u64,
    bytes: usize,
    /// Of its chunks, ascending.
    offsets: Vec<u64>,
}

pub(super) fn key(digest: &Digest) -> String {
    format!("{KEY_PREFIX}{digest}")
}

/// Whose record it is, if it is one of a component.
pub(super) fn digest_of(key: &str) -> Option<Result<Digest, String>> {
    Some(key.strip_prefix(KEY_PREFIX)?.parse::<Digest>().map_err(|e| e.to_string()))
}

fn chunk_key(digest: &Digest, upload: u64, index: usize) -> String {
    format!("{digest}/{upload:016x}/{index}")
}

fn encode(digest: &Digest, said: &Said) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    match said {
        Said::Removed(upload) => {
            encoder.u8(REMOVED);
            encoder.varint(*upload);
        }
        Said::Stored(Stored { upload, bytes, offsets }) => {
            encoder.u8(STORED);
            encoder.varint(*upload);
            encoder.varint(*bytes as u64);
            encoder.varint(offsets.len() as u64);
            let mut before = 0;
            for offset in offsets {
                encoder.varint(offset - before);
                before = *offset;
            }
        }
    }
    encoder.seal(key(digest).as_bytes())
}

pub(super) fn decode(digest: &Digest, value: &[u8]) -> Result<Said, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key(digest).as_bytes(), value)?;
    let (mark, upload) = (decoder.u8()?, decoder.varint()?);
    let said = match mark {
        REMOVED => Said::Removed(upload),
        STORED => {
            let bytes = usize::try_from(decoder.varint()?).ok().filter(|bytes| *bytes <= limits::COMPONENT_MAX_BYTES);
            let bytes = bytes.ok_or_else(|| decoder.damaged("it is larger than a component can be"))?;
            let (count, mut offsets) = (decoder.varint()?, Vec::new());
            for index in 0..count {
                let (before, distance) = (offsets.last().copied().unwrap_or(0), decoder.varint()?);
                let next = u64::checked_add(before, distance).filter(|next| index == 0 || *next > before);
                offsets.push(next.ok_or_else(|| decoder.damaged("its chunks do not follow one another"))?);
            }
            Said::Stored(Stored { upload, bytes, offsets })
        }
        _ => return Err(decoder.damaged("a mark is neither 0 nor 1")),
    };
    decoder.end()?;
    Ok(said)
}

/// What counts of what the registry says.
pub(super) fn apply(components: &mut BTreeMap<Digest, Stored>, digest: Digest, said: Said) {
    match said {
        Said::Stored(stored) => drop(components.entry(digest).or_insert(stored)),
        Said::Removed(upload) => {
            if components.get(&digest).is_some_and(|stored| stored.upload == upload) {
                components.remove(&digest);
            }
        }
    }
}

fn encode_chunk(key: &str, content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(content);
    encoder.seal(key.as_bytes())
}

fn decode_chunk<'a>(key: &str, value: &'a [u8]) -> Result<&'a [u8], Corrupt> {
    Ok(Decoder::open(CHUNK_KIND, VERSION, key.as_bytes(), value)?.remainder())
}

/// Why a component that is there could not be read.
enum Unread {
    /// Something of it is not as it was stored.
    Damaged(String),
    /// Kafka could not be asked.
    Broker(Error),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Broker(error)
    }
}

/// Shows the chunks of a component in order. Blocks.
fn each_chunk(
    log: &KafkaLog,
    (digest, stored): (&Digest, &Stored),
    mut each: impl FnMut(&[u8]) -> ControlFlow<Unread>,
) -> Result<(), Unread> {
    let Some(last) = stored.offsets.last() else { return Ok(()) };
    let topic = log.components_topic()?;
    let topic = topic.as_str();
    let count = stored.offsets.len();
    let missing = |index: usize| Unread::Damaged(format!("chunk {} of {count} is not there", index + 1));
    // One that was made anew has nothing there yet, and then something else.
    if log.partition_count(topic)?.is_none() || log.end(topic, 0)? <= *last {
        return Err(missing(count - 1));
    }
    log.reading().wait_until_stable(topic, 0, last + 1)?;
    let mut index = 0;
    while let Some(wanted) = stored.offsets.get(index).copied() {
        let before = index;
        let page = log.reading().page(topic, 0, wanted, count - index)?;
        for (offset, record) in &page.records {
            match stored.offsets.get(index) {
                Some(wanted) if wanted == offset => {}
                Some(wanted) if wanted > offset => continue,
                _ => break,
            }
            let key = chunk_key(digest, stored.upload, index);
            let chunk = decode_chunk(&key, record.value.as_deref().unwrap_or_default());
            let chunk = chunk.map_err(|e| Unread::Damaged(format!("chunk {} of {count}: {e}", index + 1)))?;
            if let ControlFlow::Break(unread) = each(chunk) {
                return Err(unread);
            }
            index += 1;
        }
        if page.end <= wanted {
            return Err(Error::Transient(format!("a transaction that is open hides what is in topic `{topic}`")).into());
        }
        if index == before {
            return Err(missing(index));
        }
    }
    Ok(())
}

/// A component that is there. Blocks.
fn whole(log: &KafkaLog, digest: &Digest, stored: &Stored) -> Result<Bytes, Unread> {
    let mut content = Vec::with_capacity(stored.bytes);
    each_chunk(log, (digest, stored), |chunk| {
        if content.len() + chunk.len() > stored.bytes {
            return ControlFlow::Break(Unread::Damaged("it is longer than what was stored".to_owned()));
        }
        content.extend_from_slice(chunk);
        ControlFlow::Continue(())
    })?;
    if Digest::of(&content) != *digest {
        return Err(Unread::Damaged("its bytes have another digest".to_owned()));
    }
    Ok(content.into())
}

/// Whether a component that is there has this content. Blocks.
fn is_whole(log: &KafkaLog, (digest, stored): (&Digest, &Stored), mut content: &[u8]) -> Result<(), Unread> {
    let differs = || Unread::Damaged("its bytes are others".to_owned());
    each_chunk(log, (digest, stored), |chunk| match content.strip_prefix(chunk) {
        Some(rest) => {
            content = rest;
            ControlFlow::Continue(())
        }
        None => ControlFlow::Break(differs()),
    })?;
    if content.is_empty() { Ok(()) } else { Err(differs()) }
}

/// How a component is that is wanted.
enum Found<T> {
    Missing,
    Whole(T),
    Damaged(Stored, String),
}

/// Looks for a component. One that is removed while it is looked at is looked for again. Blocks.
fn look<T>(log: &KafkaLog, digest: &Digest, read: impl Fn(&Stored) -> Result<T, Unread>) -> Result<Found<T>, Error> {
    let current = || {
        let mut registry = lock(&log.0.registry);
        registry.catch_up(log)?;
        Ok::<_, Error>(registry.fold.component(digest).cloned())
    };
    let mut found = current()?;
    while let Some(stored) = found {
        match read(&stored) {
            Ok(read) => return Ok(Found::Whole(read)),
            Err(Unread::Broker(error)) => return Err(error),
            Err(Unread::Damaged(what)) => {
                found = current()?;
                if found.as_ref() == Some(&stored) {
                    return Ok(Found::Damaged(stored, what));
                }
            }
        }
    }
    Ok(Found::Missing)
}

impl KafkaLog {
    /// A component, if it is there. Blocks.
    pub(super) fn read_component(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        match look(self, digest, |stored| whole(self, digest, stored))? {
            Found::Missing => Ok(None),
            Found::Whole(content) => Ok(Some(content)),
            Found::Damaged(_, what) => {
                let topic = self.components_topic()?;
                Err(Error::Transient(format!(
                    "component {digest} cannot be read from topic `{topic}`: {what}; upload it again"
                )))
            }
        }
    }

    /// Stores a component, unless it is there whole.
    pub(super) async fn upload_unless_there(&self, digest: Digest, content: Bytes) -> Result<(), Error> {
        let (bytes, max_bytes) = (content.len(), limits::COMPONENT_MAX_BYTES);
        if bytes > max_bytes {
            return Err(Error::Transient(format!(
                "a component of {bytes} bytes is too large: it can have {max_bytes}"
            )));
        }
        self.make_own(Needed::registry(self.registry_topic()?)).await?;
        let held = content.clone();
        let found =
            self.asking(move |log| look(log, &digest, |stored| is_whole(log, (&digest, stored), &held))).await?;
        match found {
            Found::Whole(()) => return Ok(()),
            Found::Missing => {}
            Found::Damaged(stored, what) => {
                tracing::warn!(%digest, what, "A component could not be read and is stored anew.");
                self.clear_away(&digest, stored.upload, stored.offsets.len()).await?;
            }
        }
        self.make_own(Needed::components(self.components_topic()?)).await?;
        self.upload(digest, &content).await
    }

    /// Writes all chunks, then that they are there. What cannot be written as a whole is cleared away as far as that can be; an
    /// instance that is killed meanwhile leaves it.
    async fn upload(&self, digest: Digest, content: &[u8]) -> Result<(), Error> {
        let upload = random_number();
        let chunks: Vec<&[u8]> = content.chunks(CHUNK_BYTES).collect();
        let told = match self.write_chunks(&digest, upload, &chunks).await {
            Ok(stored) => self.write_said(&digest, Said::Stored(stored)).await,
            Err(error) => Err(error),
        };
        let offset = match told {
            Ok(offset) => offset,
            Err(error) => {
                // That it is there can have been written all the same; it is taken back with the chunks.
                if let Err(error) = self.clear_away(&digest, upload, chunks.len()).await {
                    tracing::warn!(%digest, %error, "Half of a component stays in its topic.");
                }
                return Err(error);
            }
        };
        let counts = self.asking(move |log| {
            let mut registry = lock(&log.0.registry);
            registry.catch_up_beyond(log, offset)?;
            Ok(registry.fold.component(&digest).is_some_and(|stored| stored.upload == upload))
        });
        if !counts.await? {
            // Somebody else was quicker, or it is removed already.
            self.clear_away(&digest, upload, chunks.len()).await?;
        }
        Ok(())
    }

    /// Some at a time, each time until they are durable.
    async fn write_chunks(&self, digest: &Digest, upload: u64, chunks: &[&[u8]]) -> Result<Stored, Error> {
        let (topic, now) = (self.components_topic()?, self.clock().now());
        let mut offsets = Vec::with_capacity(chunks.len());
        for (step, chunks) in chunks.chunks(CHUNKS_AT_ONCE).enumerate() {
            let records = chunks.iter().enumerate().map(|(index, chunk)| {
                let key = chunk_key(digest, upload, step * CHUNKS_AT_ONCE + index);
                let value = encode_chunk(&key, chunk);
                Placed { topic: topic.clone(), partition: 0, record: plain(now, Some(key.into()), value) }
            });
            offsets.extend(self.write_own("a component", records.collect()).await?);
        }
        if !offsets.is_sorted_by(|a, b| a < b) {
            return Err(Error::Transient(format!(
                "topic `{topic}` was made anew while a component was written: try again"
            )));
        }
        Ok(Stored { upload, bytes: chunks.iter().map(|chunk| chunk.len()).sum(), offsets })
    }

    /// Tells of a component, and where that is told.
    async fn write_said(&self, digest: &Digest, said: Said) -> Result<u64, Error> {
        let record = said_of(digest, &said, self.clock().now());
        let topic = self.registry_topic()?;
        let offsets = self.write_own("a component", vec![Placed { topic, partition: 0, record }]).await?;
        offsets.first().copied().ok_or_else(|| Error::Transient("Kafka does not tell where a component is".to_owned()))
    }

    /// Takes an upload away, whether it was there or not: that it is there, and its chunks, in one transaction.
    async fn clear_away(&self, digest: &Digest, upload: u64, chunks: usize) -> Result<(), Error> {
        let (registry, topic, now) = (self.registry_topic()?, self.components_topic()?, self.clock().now());
        let name = topic.clone();
        // They can be gone with their topic.
        let has_chunks = self.asking(move |log| Ok(log.partition_count(name.as_str())?.is_some())).await?;
        let said = Placed { topic: registry, partition: 0, record: said_of(digest, &Said::Removed(upload), now) };
        let cleared = (0..chunks).filter(|_| has_chunks).map(|index| {
            let key = Some(chunk_key(digest, upload, index).into());
            let record = Record { timestamp: now, key, ..Record::default() };
            Placed { topic: topic.clone(), partition: 0, record }
        });
        self.write_own("that a component is removed", std::iter::once(said).chain(cleared).collect()).await.map(drop)
    }

    /// Removes a component, if it is there.
    pub(super) async fn remove_upload(&self, digest: Digest) -> Result<(), Error> {
        let stored = self.with_registry(move |registry| registry.component(&digest).cloned()).await?;
        match stored {
            Some(stored) => self.clear_away(&digest, stored.upload, stored.offsets.len()).await,
            None => Ok(()),
        }
    }
}

fn said_of(digest: &Digest, said: &Said, now: Timestamp) -> Record {
    plain(now, Some(key(digest).into()), encode(digest, said))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: Digest = Digest::from_bytes([7; 32]);

    fn stored() -> impl Strategy<Value = Said> {
        let distances = prop::collection::vec(1..u64::from(u32::MAX), 0..200);
        (any::<u64>(), 0..=limits::COMPONENT_MAX_BYTES, distances).prop_map(|(upload, bytes, distances)| {
            let offsets = distances.iter().scan(0, |at, distance| {
                *at += distance;
                Some(*at - 1)
            });
            Said::Stored(Stored { upload, bytes, offsets: offsets.collect() })
        })
    }

    fn at(upload: u64) -> Stored {
        Stored { upload, bytes: 1, offsets: vec![upload] }
    }

    #[test]
    fn the_first_upload_counts_until_it_is_removed() {
        let mut components = BTreeMap::new();
        for (said, there) in [
            (Said::Removed(1), None),
            (Said::Stored(at(1)), Some(1)),
            (Said::Stored(at(2)), Some(1)),
            (Said::Removed(2), Some(1)),
            (Said::Removed(1), None),
            (Said::Removed(1), None),
            (Said::Stored(at(3)), Some(3)),
        ] {
            apply(&mut components, DIGEST, said.clone());
            assert_eq!(components.get(&DIGEST).map(|stored| stored.upload), there, "{said:?}");
        }
    }

    #[test]
    fn the_layouts_are_pinned() {
        let stored = Said::Stored(Stored { upload: 300, bytes: 5, offsets: vec![4, 5, 200] });
        assert_eq!(encode(&DIGEST, &stored)[..], STORED_PINNED);
        assert_eq!(encode(&DIGEST, &Said::Removed(300))[..], REMOVED_PINNED);
        let key = chunk_key(&DIGEST, 300, 2);
        assert_eq!(key, format!("{}/000000000000012c/2", "07".repeat(32)));
        assert_eq!(encode_chunk(&key, b"x")[..], CHUNK_PINNED);
        assert_eq!(super::key(&DIGEST), format!("component:{}", "07".repeat(32)));
    }

    const STORED_PINNED: [u8; 14] = [1, 252, 44, 129, 224, 1, 172, 2, 5, 3, 4, 1, 195, 1];
    const REMOVED_PINNED: [u8; 8] = [1, 214, 155, 3, 135, 0, 172, 2];
    const CHUNK_PINNED: [u8; 6] = [1, 70, 156, 152, 66, 120];

    /// What is sealed as if it were where a component is.
    fn forged(write: impl Fn(&mut Encoder)) -> Result<Said, Corrupt> {
        let mut encoder = Encoder::new(VERSION);
        write(&mut encoder);
        decode(&DIGEST, &encoder.seal(key(&DIGEST).as_bytes()))
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        let numbers = |numbers: &[u64]| {
            forged(|encoder| {
                encoder.u8(STORED);
                numbers.iter().for_each(|number| encoder.varint(*number));
            })
        };
        let too_large = limits::COMPONENT_MAX_BYTES as u64 + 1;
        assert!(numbers(&[1, too_large - 1, 1, 0]).is_ok());
        assert!(forged(|encoder| [STORED, 1].into_iter().for_each(|byte| encoder.u8(byte))).is_err());
        for wrong in [
            &[1, 1 + limits::COMPONENT_MAX_BYTES as u64, 1, 0][..],
            // Fewer chunks than are told, or more.
            &[1, 1, 2, 0],
            &[1, 1, 1, 0, 1],
            &[1, 1, u64::MAX],
            // Two at one place, and one beyond all places.
            &[1, 1, 2, 5, 0],
            &[1, 1, 2, 5, u64::MAX],
        ] {
            assert!(numbers(wrong).is_err(), "{wrong:?}");
        }
        assert!(forged(|encoder| [2, 1].into_iter().for_each(|byte| encoder.u8(byte))).is_err());
    }

    #[test]
    fn only_keys_of_components_name_one() {
        assert_eq!(digest_of(&key(&DIGEST)), Some(Ok(DIGEST)));
        assert!(matches!(digest_of("component:07"), Some(Err(_))));
        assert_eq!(digest_of("shop.component"), None);
        assert!(key(&DIGEST).parse::<millrace_core::name::FunctionName>().is_err());
    }

    proptest! {
        #[test]
        fn where_a_component_is_reads_back(said in stored(), removed: u64) {
            for said in [said, Said::Removed(removed)] {
                prop_assert_eq!(decode(&DIGEST, &encode(&DIGEST, &said)), Ok(said));
            }
        }

        #[test]
        fn a_chunk_reads_back_under_its_own_key_only(content: Vec<u8>, upload: u64, index: u8) {
            let (key, other) = (chunk_key(&DIGEST, upload, index.into()), chunk_key(&DIGEST, upload, usize::from(index) + 1));
            let value = encode_chunk(&key, &content);
            prop_assert_eq!(decode_chunk(&key, &value), Ok(&content[..]));
            prop_assert!(decode_chunk(&other, &value).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            drop((decode(&DIGEST, &bytes), decode_chunk("a", &bytes)));
            drop(forged(|encoder| encoder.raw(&bytes)));
        }
    }
}
