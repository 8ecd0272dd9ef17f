//! The index entry of a batch: so that opening, retention and reading at an offset need not read records. Keyspace
//! `index`, same key as the batch.

use bytes::Bytes;
use millrace_core::time::Timestamp;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "index entry";
const VERSION: u8 = 1;

/// What is known of a batch without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Records in it.
    pub(super) count: u32,
    /// Its size on disk.
    pub(super) bytes: u32,
    /// Bytes of all batches of the partition before it, also of those that were removed: the difference of two entries is
    /// the size of what lies between.
    pub(super) bytes_before: u64,
    /// The latest timestamp in it.
    pub(super) newest: Timestamp,
}

impl IndexEntry {
    pub(super) fn encode(&self, key: &[u8]) -> Bytes {
        let mut encoder = Encoder::new(VERSION);
        encoder.varint(self.count.into());
        encoder.varint(self.bytes.into());
        encoder.varint(self.bytes_before);
        encoder.varint(self.newest.as_millis());
        encoder.seal(key)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, Corrupt> {
        let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
        let entry = Self {
            count: decoder.varint_u32()?,
            bytes: decoder.varint_u32()?,
            bytes_before: decoder.varint()?,
            newest: Timestamp::from_millis(decoder.varint()?),
        };
        decoder.end()?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back(count: u32, bytes: u32, bytes_before: u64, millis in 0..1u64 << 43, key: [u8; 16]) {
            let entry = IndexEntry { count, bytes, bytes_before, newest: Timestamp::from_millis(millis) };
            prop_assert_eq!(IndexEntry::decode(&key, &entry.encode(&key)), Ok(entry));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let entry = IndexEntry { count: 3, bytes: 300, bytes_before: 1, newest: Timestamp::from_millis(5) };
        assert_eq!(entry.encode(b"key")[..], [1, 31, 252, 136, 101, 3, 172, 2, 1, 5]);
    }
}
