//! The idempotency keys of one commit as a record of the unit's keys topic: no key; value: frame (version, checksum)
//! around the commit's wall time in nanoseconds and the 128-bit hashes, little endian.

use millrace_core::name::Unit;
use millrace_core::progress::KeyHash;
use millrace_core::time::Timestamp;

use crate::broker::KeyBlock;
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

pub(super) fn decode(unit: &Unit, value: &[u8]) -> Result<KeyBlock, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, unit.to_string().as_bytes(), value)?;
    let committed_at = Timestamp::from_nanos(decoder.varint()?);
    let (hashes, rest) = decoder.remainder().as_chunks::<HASH_BYTES>();
    if !rest.is_empty() {
        return Err(decoder.damaged("it is cut short"));
    }
    let keys = hashes.iter().map(|hash| KeyHash(u128::from_le_bytes(*hash))).collect();
    Ok(KeyBlock { committed_at, keys })
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
            prop_assert_eq!(decode(&unit(), &value), Ok(KeyBlock { committed_at, keys }));
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
