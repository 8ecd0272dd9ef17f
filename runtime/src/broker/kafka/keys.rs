//! The idempotency keys of one commit as a record of the unit's keys topic. Key: what the source topic is called by in its cluster,
//! 16 bytes, or none if an earlier version wrote it; value: frame (version, checksum) around the commit's wall time in nanoseconds
//! and the 128-bit hashes, little endian. A block without hashes says that all keys before it are forgotten.

use millrace_core::name::Unit;
use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

use crate::broker::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "block of idempotency keys";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 16;

pub(super) fn encode(unit: &Unit, committed_at: Timestamp, keys: &[KeyHash]) -> Vec<u8> {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(committed_at.as_nanos());
    for hash in keys {
        encoder.raw(&hash.0.to_le_bytes());
    }
    encoder.seal(unit.to_string().as_bytes()).into()
}

/// When the keys were committed, and the keys; none if all before are forgotten.
pub(super) fn decode<'a>(
    unit: &Unit,
    value: &'a [u8],
) -> Result<(Timestamp, impl ExactSizeIterator<Item = KeyHash> + use<'a>), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, unit.to_string().as_bytes(), value)?;
    let committed_at = Timestamp::from_nanos(decoder.varint()?);
    let (hashes, rest) = decoder.remainder().as_chunks::<HASH_BYTES>();
    if !rest.is_empty() {
        return Err(decoder.damaged("it is cut short"));
    }
    Ok((committed_at, hashes.iter().map(|hash| KeyHash(u128::from_le_bytes(*hash)))))
}

#[cfg(test)]
mod tests {
    use millrace_core::name::Topic;
    use proptest::prelude::*;

    use super::*;

    fn unit() -> Unit {
        Unit { function: "shop.pay".parse().unwrap(), topic: Topic::new("orders").unwrap(), partition: 3 }
    }

    proptest! {
        #[test]
        fn a_block_reads_back(hashes: Vec<u128>, nanos: u64) {
            let keys: Vec<_> = hashes.into_iter().map(KeyHash).collect();
            let committed_at = Timestamp::from_nanos(nanos);
            let value = encode(&unit(), committed_at, &keys);
            let (at, found) = decode(&unit(), &value).unwrap();
            prop_assert_eq!((at, found.collect::<Vec<_>>()), (committed_at, keys));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            drop(decode(&unit(), &bytes));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let value = encode(&unit(), Timestamp::from_nanos(2), &[KeyHash(4)]);
        assert_eq!(value, PINNED);
        assert!(decode(&Unit { partition: 4, ..unit() }, &value).is_err(), "the block of another unit");
    }

    const PINNED: [u8; 22] = [1, 203, 206, 228, 211, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
}
