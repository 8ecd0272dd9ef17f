//! The index of dead letters: where each lies and what happened to it. Keyspace `state`.
//!
//! Key: `l`, function, 0, source topic, 0, partition (u32), offset (u64), big endian, so that a function's letters sort by
//! their identity; no name contains a 0. Beside it, under `o` and the function, the number of open ones.

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::time::Timestamp;

use super::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{LetterId, LetterStatus, Placement};

const KIND: &str = "dead letter's entry";
const COUNT_KIND: &str = "count of open dead letters";
const VERSION: u8 = 1;
const TAG: u8 = b'l';
/// The first byte of keys of counts.
pub(super) const COUNT_TAG: u8 = b'o';

/// A dead letter as it is indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LetterEntry {
    pub(super) status: LetterStatus,
    pub(super) status_at: Timestamp,
    pub(super) note: Option<String>,
    /// Where its record lies in the dead-letter topic.
    pub(super) place: Placement,
    /// How often it was redriven.
    pub(super) redrives: u32,
}

/// The beginning of all keys of a function's letters.
pub(super) fn prefix(function: &FunctionName) -> Vec<u8> {
    [&[TAG], function.as_str().as_bytes(), &[0]].concat()
}

pub(super) fn key(function: &FunctionName, id: &LetterId) -> Vec<u8> {
    let mut key = prefix(function);
    key.extend_from_slice(id.topic.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&id.partition.to_be_bytes());
    key.extend_from_slice(&id.offset.to_be_bytes());
    key
}

/// The identity that a key names, given the function's [`prefix`].
pub(super) fn id_of(prefix: &[u8], key: &[u8]) -> Result<LetterId, Corrupt> {
    let parse = || {
        let (rest, offset) = key.strip_prefix(prefix)?.split_last_chunk::<8>()?;
        let (rest, partition) = rest.split_last_chunk::<4>()?;
        let topic = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?;
        let topic = Topic::new(ByteString::from(topic)).ok()?;
        Some(LetterId { topic, partition: u32::from_be_bytes(*partition), offset: u64::from_be_bytes(*offset) })
    };
    parse().ok_or(Corrupt::Damaged { kind: KIND, what: "its key is malformed" })
}

const fn code(status: LetterStatus) -> u8 {
    match status {
        LetterStatus::Open => 0,
        LetterStatus::Redriven => 1,
        LetterStatus::Resolved => 2,
        LetterStatus::Discarded => 3,
    }
}

const STATUSES: [LetterStatus; 4] =
    [LetterStatus::Open, LetterStatus::Redriven, LetterStatus::Resolved, LetterStatus::Discarded];

impl LetterEntry {
    pub(super) fn encode(&self, key: &[u8]) -> Bytes {
        let mut encoder = Encoder::new(VERSION);
        encoder.u8(code(self.status));
        encoder.varint(self.status_at.as_nanos());
        encoder.u8(u8::from(self.note.is_some()));
        if let Some(note) = &self.note {
            encoder.text(note);
        }
        encoder.varint(self.place.partition.into());
        encoder.varint(self.place.offset);
        encoder.varint(self.redrives.into());
        encoder.seal(key)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, Corrupt> {
        let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
        let found = decoder.u8()?;
        let status = STATUSES.into_iter().find(|s| code(*s) == found);
        let status = status.ok_or_else(|| decoder.damaged("its status is unknown"))?;
        let status_at = Timestamp::from_nanos(decoder.varint()?);
        let note = match decoder.u8()? {
            0 => None,
            _ => Some(decoder.text()?.to_owned()),
        };
        let place = Placement { partition: decoder.varint_u32()?, offset: decoder.varint()? };
        let redrives = decoder.varint_u32()?;
        decoder.end()?;
        Ok(Self { status, status_at, note, place, redrives })
    }
}

pub(super) fn count_key(function: &FunctionName) -> Vec<u8> {
    [&[COUNT_TAG], function.as_str().as_bytes()].concat()
}

pub(super) fn encode_count(key: &[u8], open: u64) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(open);
    encoder.seal(key)
}

pub(super) fn decode_count(key: &[u8], value: &[u8]) -> Result<(FunctionName, u64), Corrupt> {
    let mut decoder = Decoder::open(COUNT_KIND, VERSION, key, value)?;
    let name = key.strip_prefix(&[COUNT_TAG]).and_then(|name| std::str::from_utf8(name).ok());
    let function = name.and_then(|name| name.parse().ok()).ok_or_else(|| decoder.damaged("its key is malformed"))?;
    let open = decoder.varint()?;
    decoder.end()?;
    Ok((function, open))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function() -> FunctionName {
        "shop.pay".parse().unwrap()
    }

    fn id(topic: &str, partition: u32, offset: u64) -> LetterId {
        LetterId { topic: Topic::new(topic.to_owned()).unwrap(), partition, offset }
    }

    proptest! {
        #[test]
        fn an_entry_reads_back(
            status in 0..4usize, at: u64, note in proptest::option::of(".{0,20}"), partition: u32, offset: u64, redrives: u32,
        ) {
            let place = Placement { partition, offset };
            let status_at = Timestamp::from_nanos(at);
            let entry = LetterEntry { status: STATUSES[status], status_at, note, place, redrives };
            prop_assert_eq!(LetterEntry::decode(b"l", &entry.encode(b"l")), Ok(entry));
        }

        #[test]
        fn keys_name_their_letter_and_sort_like_it(
            a in ("[a-z.-]{1,4}x", any::<u32>(), any::<u64>()), b in ("[a-z.-]{1,4}x", any::<u32>(), any::<u64>()),
        ) {
            let (a, b) = (id(&a.0, a.1, a.2), id(&b.0, b.1, b.2));
            let (key_a, key_b) = (key(&function(), &a), key(&function(), &b));
            prop_assert_eq!(id_of(&prefix(&function()), &key_a), Ok(a.clone()));
            prop_assert_eq!(a.cmp(&b), key_a.cmp(&key_b));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(&function(), &id("orders", 1, 2));
        assert_eq!(key, b"lshop.pay\0orders\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        let entry = LetterEntry {
            status: LetterStatus::Discarded,
            status_at: Timestamp::from_nanos(5),
            note: Some("no".to_owned()),
            place: Placement { partition: 0, offset: 7 },
            redrives: 1,
        };
        assert_eq!(entry.encode(&key)[..], [1, 78, 137, 147, 112, 3, 5, 1, 2, b'n', b'o', 0, 7, 1]);
        let key = count_key(&function());
        assert_eq!(encode_count(&key, 9)[..], [1, 145, 39, 76, 11, 9]);
        assert_eq!(decode_count(&key, &encode_count(&key, 9)), Ok((function(), 9)));
    }
}
