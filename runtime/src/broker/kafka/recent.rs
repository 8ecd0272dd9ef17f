//! Idempotency keys of a unit's last commits, which are with its position and not in the topic of its keys yet.
//!
//! Each partition that a transaction writes to is a request of its own, which takes the broker a third of a millisecond. A unit that
//! commits a key or two many times a second would write to its partition of the keys each time, and does so once there are enough.

use bytes::Bytes;
use millrace_core::name::{Topic, Unit};
use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

use super::keys;
use super::member::commit::plain;
use super::native::TopicId;
use super::record::Placed;
use crate::broker::frame::{Corrupt, Decoder, Encoder};

/// How many can be with a position, at 17 to 26 bytes each. A broker keeps all positions in memory.
const MAX_KEYS: usize = 40;

/// Keys, each with the time of its commit, in the order of their commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recent {
    /// What the source is called by whose events they are of.
    of: Option<TopicId>,
    keys: Vec<(Timestamp, KeyHash)>,
}

impl Recent {
    /// Those that are of `oldest` or younger; older ones are of no use any more.
    pub(super) fn since(mut self, oldest: Timestamp) -> Self {
        self.keys.retain(|(at, _)| *at >= oldest);
        self
    }

    /// With those of one more commit. Keys of an earlier topic of the source's name are of no use any more.
    pub(super) fn with(mut self, of: Option<TopicId>, at: Timestamp, hashes: &[KeyHash]) -> Self {
        if of != self.of {
            self = Self { of, keys: Vec::new() };
        }
        self.keys.extend(hashes.iter().map(|hash| (at, *hash)));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether they can be with a position.
    pub(super) fn is_short(&self) -> bool {
        self.of.is_some() && self.keys.len() <= MAX_KEYS
    }

    pub(super) fn put(&self, encoder: &mut Encoder) {
        encoder.raw(self.of.as_ref().map_or(&[0; 16], TopicId::as_bytes));
        encoder.varint(self.keys.len() as u64);
        let mut before = 0;
        for (at, hash) in &self.keys {
            encoder.varint(at.as_nanos().wrapping_sub(before));
            encoder.raw(&hash.0.to_le_bytes());
            before = at.as_nanos();
        }
    }

    /// Reads what [`Recent::put`] wrote.
    pub(super) fn take(decoder: &mut Decoder<'_>) -> Result<Self, Corrupt> {
        let mut recent = Self { of: Some(TopicId::from_bytes(decoder.array()?)), keys: Vec::new() };
        let mut at = 0_u64;
        for _ in 0..decoder.varint()? {
            at = at.wrapping_add(decoder.varint()?);
            let hash = KeyHash(u128::from_le_bytes(decoder.array()?));
            recent.keys.push((Timestamp::from_nanos(at), hash));
        }
        Ok(recent)
    }

    /// Those that are of the source with this id, a commit at a time.
    pub(super) fn commits_of(&self, id: TopicId) -> impl Iterator<Item = (Timestamp, Vec<KeyHash>)> {
        self.commits().filter(move |_| self.of == Some(id))
    }

    /// All of them as records of the topic of keys that are written now: a broker can refuse records that are too old.
    pub(super) fn placed(&self, topic: &Topic, unit: &Unit, now: Timestamp) -> impl Iterator<Item = Placed> {
        let of = self.of.map(|id| Bytes::copy_from_slice(id.as_bytes()));
        self.commits().map(move |(at, hashes)| {
            let record = plain(now, of.clone(), keys::encode(unit, at, &hashes).into());
            Placed { topic: topic.clone(), partition: unit.partition, record }
        })
    }

    fn commits(&self) -> impl Iterator<Item = (Timestamp, Vec<KeyHash>)> {
        let commits = self.keys.chunk_by(|(one, _), (other, _)| one == other);
        commits.map(|commit| (commit[0].0, commit.iter().map(|(_, hash)| *hash).collect()))
    }
}

/// Says in the topic of keys that all before are forgotten.
pub(super) fn forgotten(topic: Topic, unit: &Unit, of: Option<TopicId>, now: Timestamp) -> Placed {
    let of = of.map(|id| Bytes::copy_from_slice(id.as_bytes()));
    Placed { topic, partition: unit.partition, record: plain(now, of, keys::encode(unit, now, &[]).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Option<TopicId> = Some(TopicId::from_bytes([1; 16]));
    const NEW: Option<TopicId> = Some(TopicId::from_bytes([2; 16]));

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn keys_of_a_source_that_was_made_anew_are_dropped() {
        let recent = Recent::default().with(OLD, at(5), &[KeyHash(1)]).with(OLD, at(6), &[]);
        assert_eq!(recent.commits_of(OLD.unwrap()).collect::<Vec<_>>(), [(at(5), vec![KeyHash(1)])]);
        assert_eq!(recent.commits_of(NEW.unwrap()).count(), 0);
        let recent = recent.with(NEW, at(7), &[KeyHash(2)]);
        assert_eq!(recent.commits_of(NEW.unwrap()).collect::<Vec<_>>(), [(at(7), vec![KeyHash(2)])]);
    }

    #[test]
    fn keys_that_have_expired_are_dropped() {
        let recent = Recent::default().with(OLD, at(5), &[KeyHash(1)]).with(OLD, at(6), &[KeyHash(2)]).since(at(6));
        assert_eq!(recent, Recent::default().with(OLD, at(6), &[KeyHash(2)]));
    }

    #[test]
    fn each_commit_is_a_record_of_its_own() {
        let unit = Unit { function: "shop.pay".parse().unwrap(), topic: Topic::new("orders").unwrap(), partition: 3 };
        let (topic, keys) = (Topic::new("keys").unwrap(), [1, 2, 3].map(KeyHash));
        let recent = Recent::default().with(OLD, at(5), &keys[..2]).with(OLD, at(6), &keys[2..]);
        let placed: Vec<_> = recent.placed(&topic, &unit, at(9)).collect();
        assert!(placed.iter().all(|one| one.topic == topic && one.partition == 3));
        assert!(placed.iter().all(|one| one.record.timestamp == at(9)));
        assert!(placed.iter().all(|one| one.record.key.as_deref() == Some(&[1; 16][..])));
        let read = |placed: &Placed| {
            let (at, keys) = keys::decode(&unit, placed.record.value.as_ref().unwrap()).unwrap();
            (at, keys.collect::<Vec<_>>())
        };
        assert_eq!(placed.iter().map(read).collect::<Vec<_>>(), recent.commits_of(OLD.unwrap()).collect::<Vec<_>>());
        assert_eq!(placed.len(), 2);
    }
}
