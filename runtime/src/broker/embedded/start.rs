//! The start of a partition: what retention removed. Keyspace `state`, key `s`, topic and partition (u32, big endian). A
//! partition that never lost anything has none.

use bytes::Bytes;

use super::batch::PartitionId;
use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "partition start";
const VERSION: u8 = 1;
const TAG: u8 = b's';

/// Where a partition begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionStart {
    /// The oldest offset there is.
    pub(super) earliest: u64,
    /// Bytes of all batches removed so far.
    pub(super) bytes_removed: u64,
}

pub(super) fn key(id: PartitionId) -> [u8; 9] {
    let mut key = [TAG; 9];
    key[1..5].copy_from_slice(&id.topic.to_be_bytes());
    key[5..].copy_from_slice(&id.partition.to_be_bytes());
    key
}

impl PartitionStart {
    pub(super) fn encode(self, key: &[u8]) -> Bytes {
        let mut encoder = Encoder::new(VERSION);
        encoder.varint(self.earliest);
        encoder.varint(self.bytes_removed);
        encoder.seal(key)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, Corrupt> {
        let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
        let start = Self { earliest: decoder.varint()?, bytes_removed: decoder.varint()? };
        decoder.end()?;
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_start_reads_back(earliest: u64, bytes_removed: u64) {
            let start = PartitionStart { earliest, bytes_removed };
            prop_assert_eq!(PartitionStart::decode(b"s", &start.encode(b"s")), Ok(start));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(PartitionId { topic: 1, partition: 2 });
        assert_eq!(key, [b's', 0, 0, 0, 1, 0, 0, 0, 2]);
        let start = PartitionStart { earliest: 200, bytes_removed: 3 };
        assert_eq!(start.encode(&key)[..], [1, 246, 190, 240, 201, 200, 1, 3]);
    }
}
