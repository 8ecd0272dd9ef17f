//! Deployments: per function a numbered list, opaque to the log. Keyspace `state`, key `d`, function, 0, number (u64, big
//! endian), from 1 on without a gap.

use bytes::Bytes;
use millrace_core::name::FunctionName;

use super::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "deployment";
const VERSION: u8 = 1;
/// The first byte of keys of deployments.
pub(super) const TAG: u8 = b'd';

pub(super) fn key(function: &FunctionName, number: u64) -> Vec<u8> {
    [&[TAG], function.as_str().as_bytes(), &[0], &number.to_be_bytes()].concat()
}

pub(super) fn encode(key: &[u8], content: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(content);
    encoder.seal(key)
}

pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<(FunctionName, u64, Bytes), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
    let content = Bytes::copy_from_slice(decoder.remainder());
    let parse = || {
        let (rest, number) = key.strip_prefix(&[TAG])?.split_last_chunk::<8>()?;
        let function = std::str::from_utf8(rest.strip_suffix(&[0])?).ok()?.parse().ok()?;
        Some((function, u64::from_be_bytes(*number)))
    };
    let (function, number) = parse().ok_or_else(|| decoder.damaged("its key is malformed"))?;
    Ok((function, number, content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_deployment_reads_back(number: u64, content: Vec<u8>) {
            let function: FunctionName = "shop.pay".parse().unwrap();
            let key = key(&function, number);
            let value = encode(&key, &content);
            prop_assert_eq!(decode(&key, &value), Ok((function, number, Bytes::from(content))));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let key = key(&"shop.pay".parse().unwrap(), 1);
        assert_eq!(key, b"dshop.pay\0\0\0\0\0\0\0\0\x01");
        assert_eq!(encode(&key, b"toml")[..], [1, 117, 245, 100, 132, b't', b'o', b'm', b'l']);
    }
}
