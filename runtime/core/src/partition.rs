//! Which partition a record goes to: as Kafka's producers decide it, so that keys land alike on every log.

/// Kafka's variant of MurmurHash2 (`org.apache.kafka.common.utils.Utils.murmur2`), with its seed.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    // Records are bounded far below the 2 GiB at which Kafka's lengths end.
    let mut hash = SEED ^ u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ word.wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// The hash that chooses an event's partition: of its ordering key, or else of its source, a zero byte and its id, so
/// that a repeated event lands where it did before. No attribute holds a zero byte.
#[must_use]
pub fn hash(key: Option<&[u8]>, source: &str, id: &str) -> u32 {
    match key {
        Some(key) => murmur2(key),
        None => murmur2(&[source.as_bytes(), &[0], id.as_bytes()].concat()),
    }
}

/// The partition, out of `count`, for a hash: Kafka's `toPositive(hash) % count`.
///
/// # Panics
/// If there are no partitions.
#[must_use]
pub const fn partition_of(hash: u32, count: u32) -> u32 {
    assert!(count > 0, "a topic has at least one partition");
    (hash & 0x7fff_ffff) % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafka() {
        // From Kafka's own `UtilsTest`.
        for (text, expected) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), expected.cast_unsigned(), "{text}");
        }
    }

    #[test]
    fn a_key_goes_where_kafka_sends_it() {
        for (hash, count, expected) in [
            (murmur2(b"abc"), 8, 479_470_107 % 8),
            (murmur2(b"21"), 8, (-973_932_308_i32 & 0x7fff_ffff).cast_unsigned() % 8),
            (u32::MAX, 1, 0),
            (0x8000_0000, 7, 0),
        ] {
            assert_eq!(partition_of(hash, count), expected);
        }
    }

    #[test]
    fn an_event_without_a_key_goes_by_source_and_id() {
        assert_eq!(hash(Some(b"abc"), "/shop", "1"), murmur2(b"abc"));
        assert_eq!(hash(None, "/shop", "1"), murmur2(b"/shop\x001"));
        assert_ne!(hash(None, "/shop", "1"), hash(None, "/sho", "p1"));
        assert_ne!(hash(Some(b""), "/shop", "1"), hash(None, "/shop", "1"));
    }
}
