//! Components. Keyspace `components`, key the digest: the bytes. So that they can be listed without reading them, keyspace
//! `state`, key `c` and the digest: the number of bytes. Both are written at once.

use bytes::Bytes;
use millrace_core::digest::Digest;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "component";
const VERSION: u8 = 1;
/// The first byte of keys under which sizes of components are.
pub(super) const TAG: u8 = b'c';

pub(super) fn size_key(digest: &Digest) -> Vec<u8> {
    [&[TAG], &digest.as_bytes()[..]].concat()
}

pub(super) fn digest_of(size_key: &[u8]) -> Result<Digest, Corrupt> {
    let digest = size_key.strip_prefix(&[TAG]).and_then(|digest| digest.try_into().ok());
    digest.map(Digest::from_bytes).ok_or(Corrupt::Damaged { kind: KIND, what: "its key is no digest" })
}

pub(super) fn encode_size(size_key: &[u8], size: usize) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(size as u64);
    encoder.seal(size_key)
}

pub(super) fn encode(digest: &Digest, content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(content);
    encoder.seal(digest.as_bytes())
}

pub(super) fn decode(digest: &Digest, value: &Bytes) -> Result<Bytes, Corrupt> {
    Ok(value.slice_ref(Decoder::open(KIND, VERSION, digest.as_bytes(), value)?.remainder()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_component_reads_back(content: Vec<u8>) {
            let digest = Digest::of(&content);
            prop_assert_eq!(digest_of(&size_key(&digest)), Ok(digest));
            prop_assert_eq!(decode(&digest, &encode(&digest, &content)), Ok(Bytes::from(content)));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let digest = Digest::from_bytes([7; 32]);
        assert_eq!(encode(&digest, b"wasm")[..], [1, 121, 135, 200, 66, b'w', b'a', b's', b'm']);
        assert_eq!(encode_size(&size_key(&digest), 300)[..], [1, 165, 88, 79, 142, 172, 2]);
        assert!(digest_of(b"c7").is_err());
    }
}
