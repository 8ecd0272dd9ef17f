//! Entries: small named things that are opaque to the log. Keyspace `state`, key `e` and the name.

use bytes::Bytes;

use super::frame::{Corrupt, Decoder, Encoder};
use crate::broker::EntryName;

const KIND: &str = "entry";
const VERSION: u8 = 1;
/// The first byte of keys of entries.
pub(super) const TAG: u8 = b'e';

pub(super) fn key(name: &EntryName) -> Vec<u8> {
    [&[TAG], name.as_str().as_bytes()].concat()
}

pub(super) fn encode(key: &[u8], content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(content);
    encoder.seal(key)
}

/// What it is called, if that can be read.
pub(super) fn name_of(key: &[u8]) -> Option<EntryName> {
    std::str::from_utf8(key.strip_prefix(&[TAG])?).ok()?.parse().ok()
}

/// Its content.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Bytes, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
    Ok(Bytes::copy_from_slice(decoder.remainder()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back(name in "[a-z0-9.-]{1,100}", content: Vec<u8>) {
            let name: EntryName = name.parse().unwrap();
            let key = key(&name);
            prop_assert_eq!(decode(&key, &encode(&key, &content)), Ok(content.into()));
            prop_assert_eq!(name_of(&key), Some(name));
        }

        #[test]
        fn foreign_bytes_never_panic(key: Vec<u8>, value: Vec<u8>) {
            prop_assert!(decode(&key, &value).is_err());
            drop(name_of(&key));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(&"token.07".parse().unwrap());
        assert_eq!(key, b"etoken.07");
        assert_eq!(encode(&key, b"x")[..], [1, 247, 234, 69, 145, b'x']);
        for key in [&b"eA"[..], b"e", b"", b"token.07", b"e\xff"] {
            assert_eq!(name_of(key), None, "{key:?}");
        }
    }
}
