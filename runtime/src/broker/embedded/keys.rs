//! Idempotency keys: one block per commit. Keyspace `keys`, key: unit (u32), time of the commit in nanoseconds (u64), the
//! unit's commit counter (u64), all big endian, so that the oldest blocks come first and are removed as a range.

use std::ops::Range;

use bytes::Bytes;
use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "block of idempotency keys";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 16;

pub(super) fn key(unit: u32, committed_at: Timestamp, commit: u64) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&unit.to_be_bytes());
    key[4..12].copy_from_slice(&committed_at.as_nanos().to_be_bytes());
    key[12..].copy_from_slice(&commit.to_be_bytes());
    key
}

/// Keys of the blocks of a unit committed in this span.
pub(super) fn range(unit: u32, span: Range<Timestamp>) -> Range<Vec<u8>> {
    key(unit, span.start, 0).to_vec()..key(unit, span.end, 0).to_vec()
}

pub(super) fn committed_at(key: &[u8]) -> Result<Timestamp, Corrupt> {
    let nanos = key.get(4..12).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    nanos.map(Timestamp::from_nanos).ok_or(Corrupt::Damaged { kind: KIND, what: "its key is cut short" })
}

/// The unit's commit counter in the key of a block.
pub(super) fn commit(key: &[u8]) -> Result<u64, Corrupt> {
    let commit = key.get(12..20).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    commit.ok_or(Corrupt::Damaged { kind: KIND, what: "its key is cut short" })
}

pub(super) fn encode(key: &[u8], hashes: &[KeyHash]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    for hash in hashes {
        encoder.raw(&hash.0.to_le_bytes());
    }
    encoder.seal(key)
}

/// When the keys were committed, and the keys.
pub(super) fn decode<'a>(
    key: &[u8],
    value: &'a [u8],
) -> Result<(Timestamp, impl Iterator<Item = KeyHash> + use<'a>), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
    let (hashes, rest) = decoder.remainder().as_chunks::<HASH_BYTES>();
    if !rest.is_empty() {
        return Err(decoder.damaged("it is cut short"));
    }
    Ok((committed_at(key)?, hashes.iter().map(|hash| KeyHash(u128::from_le_bytes(*hash)))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_reads_back(hashes: Vec<u128>, unit: u32, nanos: u64, commit: u64) {
            let keys: Vec<_> = hashes.into_iter().map(KeyHash).collect();
            let committed_at = Timestamp::from_nanos(nanos);
            let key = key(unit, committed_at, commit);
            let value = encode(&key, &keys);
            let (at, found) = decode(&key, &value).unwrap();
            prop_assert_eq!((at, found.collect::<Vec<_>>()), (committed_at, keys));
            prop_assert_eq!(super::commit(&key), Ok(commit));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(1, Timestamp::from_nanos(2), 3);
        assert_eq!(key, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let block = encode(&key, &[KeyHash(4)]);
        assert_eq!(block[..], [1, 45, 17, 157, 205, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
