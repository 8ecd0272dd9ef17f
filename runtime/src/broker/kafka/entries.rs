//! Entries: small named things that are opaque to the log, as records of the registry. Key: `entry:<name>`, value: frame (version,
//! checksum) around the offset that it builds on, and either a 1 and the content, or a 0 if it is removed. Of those that count the last
//! one is what there is.
//!
//! One counts if there is no record of any entry from the offset on that it builds on: whoever wrote it knew all that was before. That is
//! told by offsets and not by a number of entries, so that readers agree on it even of records that some of them cannot read.

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

pub(super) fn encode(name: &EntryName, content: Option<&[u8]>, builds_on: u64) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(builds_on);
    match content {
        Some(content) => {
            encoder.u8(STORED);
            encoder.raw(content);
        }
        None => encoder.u8(REMOVED),
    }
    encoder.seal(key(name).as_bytes())
}

/// What it builds on, and what it says.
pub(super) fn decode(name: &EntryName, value: &[u8]) -> Result<(u64, Option<Bytes>), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key(name).as_bytes(), value)?;
    let builds_on = decoder.varint()?;
    match decoder.u8()? {
        REMOVED => decoder.end().map(|()| (builds_on, None)),
        STORED => Ok((builds_on, Some(Bytes::copy_from_slice(decoder.remainder())))),
        _ => Err(decoder.damaged("a mark is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_reads_back(name in "[a-z0-9.-]{1,100}", content: Option<Vec<u8>>, builds_on: u64) {
            let name: EntryName = name.parse().unwrap();
            prop_assert_eq!(name_of(&key(&name)), Some(Ok(name.clone())));
            let read = decode(&name, &encode(&name, content.as_deref(), builds_on));
            prop_assert_eq!(read, Ok((builds_on, content.map(Bytes::from))));
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
        assert_eq!(encode(&name, Some(b"x"), 3)[..], [1, 94, 53, 237, 9, 3, 1, b'x']);
        assert_eq!(encode(&name, None, 3)[..], [1, 65, 5, 108, 99, 3, 0]);
        assert!(name_of("shop.pay").is_none());
        assert!(name_of("entry:A").unwrap().is_err());
    }
}
