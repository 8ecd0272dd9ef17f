//! State of handlers. Keyspace `values`, key: unit (u32, big endian) and the handler's key in UTF-8, so that a unit's values lie
//! together in the order of their keys; the value is the handler's.

use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;

use super::frame::{Corrupt, Decoder, Encoder};
use super::storage::prefixed;

const KIND: &str = "value of a handler's state";
const VERSION: u8 = 1;
const UNIT_BYTES: usize = 4;

pub(super) fn key(unit: u32, key: &str) -> Bytes {
    [&unit.to_be_bytes(), key.as_bytes()].concat().into()
}

/// Where the values of a unit lie whose keys begin with `prefix` and come after `after`.
pub(super) fn range(unit: u32, prefix: &str, after: Option<&str>) -> Range<Vec<u8>> {
    let Range { start, end } = prefixed(&key(unit, prefix));
    let start = after.map_or_else(Vec::new, |after| [&key(unit, after)[..], &[0]].concat()).max(start);
    start.min(end.clone())..end
}

/// The handler's key.
pub(super) fn key_of(stored: &[u8]) -> Result<ByteString, Corrupt> {
    let text = stored.get(UNIT_BYTES..).and_then(|key| std::str::from_utf8(key).ok());
    text.map(ByteString::from).ok_or(Corrupt::Damaged { kind: KIND, what: "its key is not UTF-8" })
}

pub(super) fn encode(key: &[u8], value: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(value);
    encoder.seal(key)
}

pub(super) fn decode(key: &[u8], stored: &Bytes) -> Result<Bytes, Corrupt> {
    let value = Decoder::open(KIND, VERSION, key, stored)?.remainder();
    Ok(stored.slice_ref(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_reads_back(unit: u32, name: String, value: Vec<u8>) {
            let key = key(unit, &name);
            prop_assert_eq!(key_of(&key), Ok(ByteString::from(name)));
            prop_assert_eq!(decode(&key, &encode(&key, &value)), Ok(Bytes::from(value)));
        }

        #[test]
        fn a_range_holds_what_begins_with_the_prefix_and_comes_after(
            units: [u32; 2], names in proptest::collection::vec("[a-c]{1,3}", 1..9), prefix in "[a-c]{0,2}", after in "[a-c]{0,3}",
        ) {
            let after = (!after.is_empty()).then_some(&*after);
            for unit in [0, 1, u32::MAX].into_iter().chain(units) {
                let range = range(units[0], &prefix, after);
                for name in &names {
                    let wanted = unit == units[0] && name.starts_with(&prefix) && after.is_none_or(|after| **name > *after);
                    prop_assert_eq!(range.contains(&key(unit, name).to_vec()), wanted, "{} {}", unit, name);
                }
            }
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(1, "ab");
        assert_eq!(key[..], [0, 0, 0, 1, b'a', b'b']);
        assert_eq!(encode(&key, b"xyz")[..], [1, 58, 155, 199, 43, b'x', b'y', b'z']);
    }
}
