//! Entries: small named things that are opaque to the log, as records of the registry. Key: `entry:<name>`, value: frame (version,
//! checksum) around either a 1 and the content, or a 0 if it is removed. The last one counts.

use bytes::Bytes;

use crate::broker::EntryName;
use crate::broker::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "an entry";
const VERSION: u8 = 1;
const REMOVED: u8 = 0;
const STORED: u8 = 1;
/// No function is named so.
const KEY_PREFIX: &str = "entry:";

pub(super) fn key(name: &EntryName) -> String {
    format!("{KEY_PREFIX}{name}")
}

/// Whose record it is, if it is one of an entry.
pub(super) fn name_of(key: &str) -> Option<Result<EntryName, String>> {
    Some(key.strip_prefix(KEY_PREFIX)?.parse())
}

pub(super) fn encode(name: &EntryName, content: Option<&[u8]>) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    match content {
        Some(content) => {
            encoder.u8(STORED);
            encoder.raw(content);
        }
        None => encoder.u8(REMOVED),
    }
    encoder.seal(key(name).as_bytes())
}

pub(super) fn decode(name: &EntryName, value: &[u8]) -> Result<Option<Bytes>, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key(name).as_bytes(), value)?;
    match decoder.u8()? {
        REMOVED => decoder.end().map(|()| None),
        STORED => Ok(Some(Bytes::copy_from_slice(decoder.remainder()))),
        _ => Err(decoder.damaged("a mark is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back(name in "[a-z0-9.-]{1,100}", content: Option<Vec<u8>>) {
            let name: EntryName = name.parse().unwrap();
            prop_assert_eq!(name_of(&key(&name)), Some(Ok(name.clone())));
            prop_assert_eq!(decode(&name, &encode(&name, content.as_deref())), Ok(content.map(Bytes::from)));
        }

        #[test]
        fn foreign_bytes_never_panic(value: Vec<u8>) {
            prop_assert!(decode(&"a".parse().unwrap(), &value).is_err());
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let name: EntryName = "token.07".parse().unwrap();
        assert_eq!(key(&name), "entry:token.07");
        assert_eq!(encode(&name, Some(b"x"))[..], [1, 109, 57, 104, 191, 1, b'x']);
        assert_eq!(encode(&name, None)[..], [1, 53, 36, 163, 228, 0]);
        assert!(name_of("shop.pay").is_none());
        assert!(name_of("entry:A").unwrap().is_err());
    }
}
