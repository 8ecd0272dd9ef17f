//! Entries: small named things that are opaque to the log. Keyspace `state`, key `e` and the name.

use bytes::Bytes;

use super::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{Entry, EntryName};

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

pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Entry, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
    let content = Bytes::copy_from_slice(decoder.remainder());
    let name = key.strip_prefix(&[TAG]).and_then(|name| std::str::from_utf8(name).ok()?.parse().ok());
    let name = name.ok_or_else(|| decoder.damaged("its key is no name"))?;
    Ok(Entry { name, content })
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
            let read = decode(&key, &encode(&key, &content));
            prop_assert_eq!(read, Ok(Entry { name, content: content.into() }));
        }

        #[test]
        fn foreign_bytes_never_panic(key: Vec<u8>, value: Vec<u8>) {
            prop_assert!(decode(&key, &value).is_err());
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(&"token.07".parse().unwrap());
        assert_eq!(key, b"etoken.07");
        assert_eq!(encode(&key, b"x")[..], [1, 247, 234, 69, 145, b'x']);
        let unnamed = encode(b"eA", b"x");
        assert!(decode(b"eA", &unnamed).is_err());
    }
}
