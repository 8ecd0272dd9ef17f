//! What the directory is: the log's prefix. Keyspace `state`, key `m`. The format's version is in the file beside the
//! database (`layout.rs`), since it must be known before the database is touched. Under `z`, a mark that says nothing, and is
//! written last of all when the log closes: what comes before the last batch in a journal can be told from a torn tail.

use bytes::Bytes;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "description of the log";
const VERSION: u8 = 1;
/// The key of the description.
pub(super) const KEY: &[u8] = b"m";
/// The key of the mark of a proper end.
pub(super) const CLOSED_KEY: &[u8] = b"z";

pub(super) fn encode(prefix: &str) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.text(prefix);
    encoder.seal(KEY)
}

pub(super) fn decode(value: &[u8]) -> Result<String, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, KEY, value)?;
    let prefix = decoder.text()?.to_owned();
    decoder.end()?;
    Ok(prefix)
}

pub(super) fn encode_closed() -> Bytes {
    Encoder::new(VERSION).seal(CLOSED_KEY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_description_reads_back(prefix in ".{0,30}") {
            prop_assert_eq!(decode(&encode(&prefix)), Ok(prefix));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        assert_eq!(encode("mill")[..], [1, 46, 144, 127, 152, 4, b'm', b'i', b'l', b'l']);
        assert_eq!(encode_closed()[..], [1, 0, 211, 2, 6]);
    }
}
