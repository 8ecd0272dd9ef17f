//! How much state a unit's handler keeps, so that opening a log need not read all of it. Keyspace `state`, key `v` and the unit's
//! number (u32, big endian).

use bytes::Bytes;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "volume of a unit's state";
const VERSION: u8 = 1;
/// The first byte of keys of volumes.
pub(super) const TAG: u8 = b'v';

/// What lies in keyspace `values` for one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) values: u64,
    /// Bytes of the handler's keys and of what is stored under them.
    pub(super) bytes: u64,
}

impl Volume {
    /// What one value counts for.
    pub(super) const fn of(key_bytes: usize, stored_bytes: usize) -> Self {
        Self { values: 1, bytes: (key_bytes + stored_bytes) as u64 }
    }

    pub(super) const fn add(&mut self, other: Self) {
        self.values += other.values;
        self.bytes += other.bytes;
    }

    /// Stays above zero even if the disk lied: this is a figure, and the values themselves are checked.
    pub(super) const fn remove(&mut self, other: Self) {
        self.values = self.values.saturating_sub(other.values);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

pub(super) fn key(unit: u32) -> [u8; 5] {
    let [a, b, c, d] = unit.to_be_bytes();
    [TAG, a, b, c, d]
}

/// The number of the unit.
pub(super) fn unit_of(key: &[u8]) -> Result<u32, Corrupt> {
    match *key {
        [TAG, a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(Corrupt::Damaged { kind: KIND, what: "its key is no number" }),
    }
}

pub(super) fn encode(key: &[u8], volume: Volume) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(volume.values);
    encoder.varint(volume.bytes);
    encoder.seal(key)
}

pub(super) fn decode(key: &[u8], stored: &[u8]) -> Result<Volume, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key, stored)?;
    let volume = Volume { values: decoder.varint()?, bytes: decoder.varint()? };
    decoder.end()?;
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_volume_reads_back(unit: u32, values: u64, bytes: u64) {
            let (key, volume) = (key(unit), Volume { values, bytes });
            prop_assert_eq!(unit_of(&key), Ok(unit));
            prop_assert_eq!(decode(&key, &encode(&key, volume)), Ok(volume));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(1);
        assert_eq!(key, [b'v', 0, 0, 0, 1]);
        assert_eq!(encode(&key, Volume { values: 2, bytes: 300 })[..], [1, 108, 161, 179, 218, 2, 172, 2]);
    }
}
