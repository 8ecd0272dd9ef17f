//! What all stored values share: a version byte, a checksum over key and value, and few ways to write a number.
//!
//! `version (u8) | crc32c of key, version and payload (u32, little endian) | payload`. The key is part of the checksum, so
//! that a value can never be taken for another one's.

use bytes::Bytes;

/// Bytes before the payload.
const HEADER_BYTES: usize = 5;

/// A stored value that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Corrupt {
    /// Its bytes are not what was written.
    #[error("{kind} is damaged ({what})")]
    Damaged {
        /// Which kind of value.
        kind: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A newer version of Millrace wrote it.
    #[error("{kind} has version {found}, and this Millrace reads up to {supported}")]
    Newer {
        /// Which kind of value.
        kind: &'static str,
        /// Its version.
        found: u8,
        /// The newest version that can be read.
        supported: u8,
    },
}

/// Builds one stored value.
#[derive(Debug)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn new(version: u8) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[version, 0, 0, 0, 0]);
        Self(bytes)
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn varint(&mut self, value: u64) {
        put_varint(&mut self.0, value);
    }

    pub(super) fn option(&mut self, value: Option<u64>) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            self.varint(value);
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.varint(text.len() as u64);
        self.raw(text.as_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The finished value, to be stored under `key`.
    pub(super) fn seal(mut self, key: &[u8]) -> Bytes {
        let checksum = checksum(key, self.0[0], &self.0[HEADER_BYTES..]);
        self.0[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        Bytes::from(self.0)
    }
}

fn checksum(key: &[u8], version: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(key);
    let crc = crc32c::crc32c_append(crc, &[version]);
    crc32c::crc32c_append(crc, payload)
}

/// Reads one stored value.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    kind: &'static str,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Checks version and checksum of what is stored under `key`.
    pub(super) fn open(kind: &'static str, supported: u8, key: &[u8], value: &'a [u8]) -> Result<Self, Corrupt> {
        let Some((header, payload)) = value.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Corrupt::Damaged { kind, what: "it is cut short" });
        };
        let [version, crc @ ..] = *header;
        if checksum(key, version, payload) != u32::from_le_bytes(crc) {
            return Err(Corrupt::Damaged { kind, what: "its checksum does not match" });
        }
        if version > supported {
            return Err(Corrupt::Newer { kind, found: version, supported });
        }
        Ok(Self { kind, rest: payload })
    }

    pub(super) fn damaged(&self, what: &'static str) -> Corrupt {
        Corrupt::Damaged { kind: self.kind, what }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.damaged("it is cut short"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| self.damaged("it is cut short"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Corrupt> {
        let (value, rest) = split_varint(self.rest).ok_or_else(|| self.damaged("a number is malformed"))?;
        self.rest = rest;
        Ok(value)
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, Corrupt> {
        u32::try_from(self.varint()?).map_err(|_| self.damaged("a number is too large"))
    }

    pub(super) fn option(&mut self) -> Result<Option<u64>, Corrupt> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.varint().map(Some),
            _ => Err(self.damaged("a mark is neither 0 nor 1")),
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Corrupt> {
        let len = usize::try_from(self.varint()?).map_err(|_| self.damaged("a text is too long"))?;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// All that is left.
    pub(super) fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Corrupt> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.damaged("bytes are left over")) }
    }
}

/// Seven bits a byte, lowest first, the high bit set on all but the last (LEB128).
pub(super) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// How many bytes [`put_varint`] takes.
pub(super) const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// A number and what follows it; none if it is cut short or does not fit.
pub(super) fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * i);
        if shifted >> (7 * i) != bits {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_reads_back_and_has_the_length_foretold(value: u64, tail: Vec<u8>) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(bytes.len(), varint_bytes(value));
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(split_varint(&bytes), Some((value, &tail[..])));
        }

        #[test]
        fn a_varint_of_arbitrary_bytes_never_panics(bytes: Vec<u8>) {
            if let Some((_, rest)) = split_varint(&bytes) {
                prop_assert!(rest.len() < bytes.len());
            }
        }

        #[test]
        fn any_flipped_bit_is_noticed(payload: Vec<u8>, key: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let mut encoder = Encoder::new(1);
            encoder.raw(&payload);
            let mut value = encoder.seal(&key).to_vec();
            prop_assert!(Decoder::open("value", 1, &key, &value).is_ok());
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert!(Decoder::open("value", 1, &key, &value).is_err());
        }
    }

    #[test]
    fn a_value_under_another_key_is_noticed() {
        let value = Encoder::new(1).seal(b"a");
        assert!(Decoder::open("value", 1, b"b", &value).is_err());
    }

    #[test]
    fn a_newer_version_is_named() {
        let value = Encoder::new(2).seal(b"a");
        let error = Decoder::open("unit", 1, b"a", &value).unwrap_err();
        assert_eq!(error.to_string(), "unit has version 2, and this Millrace reads up to 1");
    }

    #[test]
    fn the_layout_is_pinned() {
        let mut encoder = Encoder::new(1);
        encoder.u8(7);
        encoder.varint(300);
        encoder.option(None);
        encoder.option(Some(1));
        encoder.text("é");
        assert_eq!(encoder.seal(b"k")[..], [1, 115, 176, 248, 180, 7, 172, 2, 0, 1, 1, 2, 195, 169]);
    }
}
