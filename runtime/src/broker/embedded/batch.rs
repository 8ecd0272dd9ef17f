//! The record batch: the unit on disk. One value per (topic, partition, base offset) in the keyspace `batches`.
//!
//! Key: topic (u32), partition (u32), base offset (u64), all big endian, so that keys sort as the log does.
//! Value: `version (u8) | crc32c of key, version, count and records (u32, LE) | count (u32, LE) | records`.
//! Record: `length of the rest | timestamp in ms | key length + 1, or 0 for no key | key | value length + 1, or 0 | value |
//! headers block`, all numbers as varints. The n-th record has the offset base + n, so that records can be encoded before
//! their offsets are known, and segments joined by appending.

use bytes::Bytes;
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;

use super::frame::{Corrupt, put_varint, split_varint, varint_bytes};

/// Soft bound of a batch: segments are joined up to here. One larger record makes a larger batch.
pub(super) const BATCH_BYTES: usize = 256 * 1024;

const KIND: &str = "record batch";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 9;
/// What a record takes in a batch beside its key, value and headers: four numbers, mostly shorter ones.
const RECORD_OVERHEAD_BYTES: usize = 12;

/// A partition of a topic, as keys name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PartitionId {
    pub(super) topic: u32,
    pub(super) partition: u32,
}

/// The key of a batch and of its index entry.
pub(super) fn key(id: PartitionId, base: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&id.topic.to_be_bytes());
    key[4..8].copy_from_slice(&id.partition.to_be_bytes());
    key[8..].copy_from_slice(&base.to_be_bytes());
    key
}

/// The base offset that a key names.
pub(super) fn base_of(key: &[u8]) -> Option<u64> {
    let (_, base) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*base))
}

/// Encoded records on their way into a batch, with room for the batch's header in front.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    bytes: Vec<u8>,
    count: u32,
    newest: Timestamp,
}

/// What a record takes in a batch, give or take some bytes.
pub(super) fn room(record: &Record) -> usize {
    record.size_bytes() + RECORD_OVERHEAD_BYTES
}

impl Segment {
    /// An empty one, with room for so many bytes of records.
    pub(super) fn with_room(bytes: usize) -> Self {
        let mut header = Vec::with_capacity(HEADER_BYTES + bytes);
        header.resize(HEADER_BYTES, 0);
        Self { bytes: header, count: 0, newest: Timestamp::EPOCH }
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the batch it would make.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The latest timestamp.
    pub(super) const fn newest(&self) -> Timestamp {
        self.newest
    }

    pub(super) fn push(&mut self, record: &Record) {
        let millis = record.timestamp.as_millis();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let body = varint_bytes(millis) + field_bytes(key) + field_bytes(value) + record.headers.as_block().len();
        self.bytes.reserve(varint_bytes(body as u64) + body);
        put_varint(&mut self.bytes, body as u64);
        put_varint(&mut self.bytes, millis);
        self.put_field(key);
        self.put_field(value);
        self.bytes.extend_from_slice(record.headers.as_block());
        self.count += 1;
        self.newest = self.newest.max(Timestamp::from_millis(millis));
    }

    fn put_field(&mut self, field: Option<&[u8]>) {
        match field {
            None => self.bytes.push(0),
            Some(field) => {
                put_varint(&mut self.bytes, field.len() as u64 + 1);
                self.bytes.extend_from_slice(field);
            }
        }
    }

    /// One with the records of both this and the others, in order.
    pub(super) fn joined(mut self, others: &[Self]) -> Self {
        self.bytes.reserve_exact(others.iter().map(|other| other.bytes.len() - HEADER_BYTES).sum());
        for other in others {
            self.bytes.extend_from_slice(&other.bytes[HEADER_BYTES..]);
            self.count += other.count;
            self.newest = self.newest.max(other.newest);
        }
        self
    }

    /// The batch, to be stored under `key`.
    pub(super) fn seal(mut self, key: &[u8]) -> Bytes {
        self.bytes[0] = VERSION;
        self.bytes[5..HEADER_BYTES].copy_from_slice(&self.count.to_le_bytes());
        let checksum = checksum(key, &self.bytes);
        self.bytes[1..5].copy_from_slice(&checksum.to_le_bytes());
        Bytes::from(self.bytes)
    }
}

fn field_bytes(field: Option<&[u8]>) -> usize {
    field.map_or(1, |f| varint_bytes(f.len() as u64 + 1) + f.len())
}

fn checksum(key: &[u8], batch: &[u8]) -> u32 {
    let crc = crc32c::crc32c(key);
    let crc = crc32c::crc32c_append(crc, &batch[..1]);
    crc32c::crc32c_append(crc, &batch[5..])
}

fn damaged(what: &'static str) -> Corrupt {
    Corrupt::Damaged { kind: KIND, what }
}

/// Checks version and checksum of a batch that was read from disk.
pub(super) fn check(key: &[u8], batch: &[u8]) -> Result<(), Corrupt> {
    if batch.len() < HEADER_BYTES {
        return Err(damaged("it is cut short"));
    }
    if checksum(key, batch).to_le_bytes() != batch[1..5] {
        return Err(damaged("its checksum does not match"));
    }
    if batch[0] > VERSION {
        return Err(Corrupt::Newer { kind: KIND, found: batch[0], supported: VERSION });
    }
    Ok(())
}

/// Walks the records of a checked batch. Records share its memory.
#[derive(Debug)]
pub(super) struct Records {
    batch: Bytes,
    at: usize,
    next: u64,
    left: u32,
}

impl Records {
    pub(super) fn of(base: u64, batch: Bytes) -> Result<Self, Corrupt> {
        let count = batch.get(5..HEADER_BYTES).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let left = count.ok_or_else(|| damaged("it is cut short"))?;
        Ok(Self { batch, at: HEADER_BYTES, next: base, left })
    }

    /// One past the last offset.
    pub(super) fn end(&self) -> u64 {
        self.next + u64::from(self.left)
    }

    /// Passes over all records before `offset` without decoding them.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), Corrupt> {
        while self.next < offset && self.left > 0 {
            self.body()?;
        }
        Ok(())
    }

    /// The next record with its offset.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Record)>, Corrupt> {
        if self.left == 0 {
            return Ok(None);
        }
        let offset = self.next;
        let body = self.body()?;
        decode(&body).map(|record| Some((offset, record)))
    }

    fn body(&mut self) -> Result<Bytes, Corrupt> {
        let (len, rest) = split_varint(&self.batch[self.at..]).ok_or_else(|| damaged("a length is malformed"))?;
        let start = self.batch.len() - rest.len();
        let len = usize::try_from(len).ok().filter(|len| *len <= rest.len());
        let end = start + len.ok_or_else(|| damaged("a record is cut short"))?;
        self.at = end;
        self.next += 1;
        self.left -= 1;
        Ok(self.batch.slice(start..end))
    }
}

fn decode(body: &Bytes) -> Result<Record, Corrupt> {
    let (millis, rest) = split_varint(body).ok_or_else(|| damaged("a timestamp is malformed"))?;
    let (key, rest) = field(body, rest)?;
    let (value, rest) = field(body, rest)?;
    let headers = Headers::from_block(body.slice_ref(rest)).map_err(|_| damaged("headers are malformed"))?;
    Ok(Record { timestamp: Timestamp::from_millis(millis), key, value, headers })
}

fn field<'a>(body: &Bytes, bytes: &'a [u8]) -> Result<(Option<Bytes>, &'a [u8]), Corrupt> {
    let (len, rest) = split_varint(bytes).ok_or_else(|| damaged("a length is malformed"))?;
    let Some(len) = len.checked_sub(1) else { return Ok((None, rest)) };
    let len = usize::try_from(len).map_err(|_| damaged("a field is cut short"))?;
    let (field, rest) = rest.split_at_checked(len).ok_or_else(|| damaged("a field is cut short"))?;
    Ok((Some(body.slice_ref(field)), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: PartitionId = PartitionId { topic: 1, partition: 2 };

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50));
        let headers = proptest::collection::vec(("[a-z_-]{0,12}", bytes()), 0..4);
        (0..1u64 << 40, bytes(), bytes(), headers).prop_map(|(millis, key, value, headers)| Record {
            timestamp: Timestamp::from_millis(millis),
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            headers: headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())).collect(),
        })
    }

    fn read(base: u64, batch: &Bytes, from: u64) -> Result<Vec<(u64, Record)>, Corrupt> {
        check(&key(ID, base), batch)?;
        let mut records = Records::of(base, batch.clone())?;
        records.skip_to(from)?;
        let mut read = Vec::new();
        while let Some(record) = records.next()? {
            read.push(record);
        }
        Ok(read)
    }

    proptest! {
        #[test]
        fn joined_segments_read_back_as_one_batch(
            segments in proptest::collection::vec(proptest::collection::vec(any_record(), 0..6), 1..4),
            base in 0..1u64 << 60,
            from in 0..20u64,
        ) {
            let encoded: Vec<Segment> = segments.iter().map(|records| {
                let mut segment = Segment::with_room(records.iter().map(room).sum());
                records.iter().for_each(|r| segment.push(r));
                segment
            }).collect();
            let batch = Segment::with_room(0).joined(&encoded).seal(&key(ID, base));
            let expected: Vec<_> = (base..).zip(segments.concat()).filter(|(o, _)| *o >= base + from).collect();
            prop_assert_eq!(read(base, &batch, base + from).unwrap(), expected);
        }

        #[test]
        fn any_flipped_bit_is_noticed(record in any_record(), at: prop::sample::Index, bit in 0..8u8) {
            let mut segment = Segment::with_room(0);
            segment.push(&record);
            let mut batch = segment.seal(&key(ID, 9)).to_vec();
            let at = at.index(batch.len());
            batch[at] ^= 1 << bit;
            prop_assert!(read(9, &Bytes::from(batch), 0).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, from in 0..300u64) {
            let Ok(mut records) = Records::of(0, Bytes::from(bytes)) else { return Ok(()) };
            if records.skip_to(from).is_ok() {
                while let Ok(Some(_)) = records.next() {}
            }
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let mut segment = Segment::with_room(0);
        segment.push(&Record {
            timestamp: Timestamp::from_millis(1_000),
            key: Some(Bytes::from_static(b"k")),
            value: None,
            headers: [("h", Some(&b"v"[..]))].into_iter().collect(),
        });
        let batch = segment.seal(&key(ID, 3));
        assert_eq!(key(ID, 3), [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let records = [13, 232, 7, 2, b'k', 0, 1, 0, b'h', 1, 0, 0, 0, b'v'];
        assert_eq!(batch[5..9], [1, 0, 0, 0]);
        assert_eq!(batch[9..], records);
        assert_eq!(batch[..5], [1, 26, 135, 211, 209]);
    }

    #[test]
    fn a_batch_under_another_offset_is_noticed() {
        let batch = Segment::with_room(0).seal(&key(ID, 3));
        assert!(check(&key(ID, 4), &batch).is_err());
    }
}
