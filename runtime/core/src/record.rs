//! A record as a log keeps it: key, value, headers, as in Kafka.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::time::Timestamp;

/// What a log keeps and a consumer reads. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When it was published; the log keeps whole milliseconds.
    pub timestamp: Timestamp,
    /// The ordering key; decides the partition.
    pub key: Option<Bytes>,
    /// Absent is not the same as empty.
    pub value: Option<Bytes>,
    /// Names with values, in the order they were given; names can repeat.
    pub headers: Headers,
}

impl Record {
    /// Bytes of key, value and headers together.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len)
            + self.value.as_ref().map_or(0, Bytes::len)
            + self.headers.as_block().len()
    }

    /// The same in memory of its own: a record that was read shares that of a whole batch.
    #[must_use]
    pub fn detached(&self) -> Self {
        let mut memory = BytesMut::with_capacity(self.size_bytes());
        let mut copy = |bytes: &Bytes| {
            memory.put_slice(bytes);
            memory.split().freeze()
        };
        Self {
            timestamp: self.timestamp,
            key: self.key.as_ref().map(&mut copy),
            value: self.value.as_ref().map(&mut copy),
            headers: Headers(copy(&self.headers.0)),
        }
    }
}

/// Headers, kept as one encoded block so that a record costs no allocation per header.
///
/// The block is a sequence of: name length (u16, little endian), name (UTF-8), value length (u32, little endian, or
/// `u32::MAX` for an absent value), value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

/// A block of headers that does not follow the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedHeaders;

impl std::fmt::Display for MalformedHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a block of headers is malformed")
    }
}

impl std::error::Error for MalformedHeaders {}

const ABSENT: u32 = u32::MAX;
const NAME_LEN_BYTES: usize = 2;
const VALUE_LEN_BYTES: usize = 4;

impl Headers {
    /// Takes a block that [`Headers::as_block`] gave.
    ///
    /// # Errors
    /// If the block is cut short, or a name is not UTF-8.
    pub fn from_block(block: Bytes) -> Result<Self, MalformedHeaders> {
        let mut rest: &[u8] = &block;
        while !rest.is_empty() {
            let (name, _, tail) = split(rest).ok_or(MalformedHeaders)?;
            std::str::from_utf8(name).map_err(|_| MalformedHeaders)?;
            rest = tail;
        }
        Ok(Self(block))
    }

    /// The encoded block.
    #[must_use]
    pub fn as_block(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All headers in order: name, and the value if there is one. Values share the block's memory.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<Bytes>)> {
        // Names were checked when the block was made.
        let text = |name| std::str::from_utf8(name).unwrap_or_default();
        self.entries().map(move |(name, value)| (text(name), value.map(|value| self.0.slice_ref(value))))
    }

    /// The same, names as bytes, and without a share of the block's memory for each value.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (name, value, tail) = split(rest)?;
            rest = tail;
            Some((name, value))
        })
    }

    /// Where in the block each header's name and value lie.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (Range<usize>, Option<Range<usize>>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (name, value, _) = split(self.0.get(at..)?)?;
            let name = at + NAME_LEN_BYTES..at + NAME_LEN_BYTES + name.len();
            let value_at = name.end + VALUE_LEN_BYTES;
            let value = value.map(|v| value_at..value_at + v.len());
            at = value.as_ref().map_or(value_at, |v| v.end);
            Some((name, value))
        })
    }

    /// The value of the last header with this name, as Kafka's `lastHeader` does.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<Bytes> {
        self.iter().filter(|(n, _)| *n == name).last().and_then(|(_, value)| value)
    }
}

impl<'a> FromIterator<(&'a str, Option<&'a [u8]>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, Option<&'a [u8]>)>>(iter: I) -> Self {
        let mut builder = HeadersBuilder::default();
        for (name, value) in iter {
            builder.push(name, value);
        }
        builder.build()
    }
}

/// Builds [`Headers`].
#[derive(Debug, Default)]
pub struct HeadersBuilder(BytesMut);

impl HeadersBuilder {
    /// What a header takes beside its name and its value.
    pub const OVERHEAD_BYTES: usize = NAME_LEN_BYTES + VALUE_LEN_BYTES;

    /// A builder with room for this many bytes, so that it allocates once.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// A builder in this memory, which holds nothing else.
    #[must_use]
    pub fn within(memory: BytesMut) -> Self {
        Self(memory)
    }

    /// A builder that begins with these headers.
    #[must_use]
    pub fn starting_with(headers: &Headers) -> Self {
        Self(BytesMut::from(&headers.0[..]))
    }

    /// Appends one header. A name longer than 65,535 bytes is cut at a character's boundary.
    ///
    /// # Panics
    /// If the value has 4 GiB or more; records are bounded far below.
    pub fn push(&mut self, name: &str, value: Option<&[u8]>) {
        let name = &name[..name.floor_char_boundary(usize::from(u16::MAX))];
        self.0.put_u16_le(u16::try_from(name.len()).unwrap_or(u16::MAX));
        self.0.put_slice(name.as_bytes());
        self.put_value(value);
    }

    fn put_value(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.0.put_u32_le(ABSENT),
            Some(value) => {
                let len = u32::try_from(value.len()).unwrap_or(ABSENT);
                assert!(len != ABSENT, "a header's value must be smaller than 4 GiB");
                self.0.put_u32_le(len);
                self.0.put_slice(value);
            }
        }
    }

    /// Appends one header with text.
    pub fn push_str(&mut self, name: &str, value: &str) {
        self.push(name, Some(value.as_bytes()));
    }

    /// Appends one header whose name has two parts, which must be shorter than 64 KiB together.
    pub(crate) fn push_prefixed(&mut self, prefix: &str, name: &str, value: &str) {
        let len = u16::try_from(prefix.len() + name.len()).expect("the name of a header is shorter than 64 KiB");
        self.0.put_u16_le(len);
        self.0.put_slice(prefix.as_bytes());
        self.0.put_slice(name.as_bytes());
        self.put_value(Some(value.as_bytes()));
    }

    /// The headers.
    #[must_use]
    pub fn build(self) -> Headers {
        Headers(self.0.freeze())
    }
}

type Split<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8]);

/// Name, value and what follows; none at the end and where the block is malformed.
fn split(block: &[u8]) -> Option<Split<'_>> {
    let (len, rest) = block.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    match u32::from_le_bytes(*len) {
        ABSENT => Some((name, None, rest)),
        len => {
            let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            Some((name, Some(value), rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given() -> impl Strategy<Value = Vec<(String, Option<Vec<u8>>)>> {
        prop::collection::vec((".{0,6}", prop::option::of(any::<Vec<u8>>())), 0..8)
    }

    fn build(given: &[(String, Option<Vec<u8>>)]) -> Headers {
        given.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect()
    }

    #[test]
    fn the_last_header_of_a_name_counts() {
        let headers: Headers = [("a", Some(&b"1"[..])), ("b", None), ("a", Some(b"2"))].into_iter().collect();
        assert_eq!(headers.last("a"), Some(Bytes::from_static(b"2")));
        assert_eq!((headers.last("b"), headers.last("c")), (None, None));
    }

    #[test]
    fn a_name_in_two_parts_is_one_name() {
        let (mut whole, mut parts) =
            (HeadersBuilder::default(), HeadersBuilder::with_capacity(HeadersBuilder::OVERHEAD_BYTES + 6));
        whole.push_str("ce_id", "1");
        parts.push_prefixed("ce_", "id", "1");
        assert_eq!(whole.build(), parts.build());
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_between_characters() {
        let headers: Headers = [("é".repeat(40_000).as_str(), None)].into_iter().collect();
        assert_eq!(headers.iter().map(|(name, _)| name.len()).collect::<Vec<_>>(), [65_534]);
        assert_eq!(Headers::from_block(headers.as_block().clone()), Ok(headers));
    }

    proptest! {
        #[test]
        fn headers_come_back_in_order(given in given(), more in given()) {
            let headers = build(&given);
            let listed = |headers: &Headers| -> Vec<(String, Option<Vec<u8>>)> {
                headers.iter().map(|(name, value)| (name.to_owned(), value.map(|v| v.to_vec()))).collect()
            };
            prop_assert_eq!(listed(&headers), &given[..]);
            let entries = headers.entries().map(|(name, value)| {
                (String::from_utf8_lossy(name).into_owned(), value.map(<[u8]>::to_vec))
            });
            prop_assert_eq!(entries.collect::<Vec<_>>(), &given[..]);
            prop_assert_eq!(Headers::from_block(headers.as_block().clone()), Ok(headers.clone()));

            let mut builder = HeadersBuilder::starting_with(&headers);
            more.iter().for_each(|(name, value)| builder.push(name, value.as_deref()));
            prop_assert_eq!(listed(&builder.build()), [given, more].concat());
        }

        #[test]
        fn spans_are_where_headers_lie(given in given()) {
            let headers = build(&given);
            let block = headers.as_block();
            let spanned: Vec<_> = headers.spans().map(|(name, value)| {
                (String::from_utf8(block[name].to_vec()).unwrap_or_default(), value.map(|v| block[v].to_vec()))
            }).collect();
            prop_assert_eq!(spanned, given);
        }

        #[test]
        fn no_block_panics(bytes in any::<Vec<u8>>(), given in given(), cut in any::<prop::sample::Index>()) {
            let block = build(&given).as_block().clone();
            let cut = block.slice(..cut.index(block.len() + 1));
            for block in [Bytes::from(bytes), cut] {
                if let Ok(headers) = Headers::from_block(block) {
                    prop_assert_eq!(headers.iter().count(), headers.spans().count());
                }
            }
        }
    }
}
