//! Units with their committed progress. Keyspace `state`, key `u` and the unit's number (u32, big endian).

use bytes::Bytes;
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{ParkedHead, Position, Progress, Reset, Stream};
use millrace_core::time::Timestamp;

use super::frame::{Corrupt, Decoder, Encoder};
use crate::broker::progress::{category, code, put_stream, take_stream};

const KIND: &str = "unit";
const VERSION: u8 = 1;
/// A unit whose position was set by a person: that follows at the end.
const RESET_VERSION: u8 = 2;
/// The first byte of keys of units.
pub(super) const TAG: u8 = b'u';

/// A unit as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnitRecord {
    pub(super) unit: Unit,
    pub(super) progress: Progress,
    /// Whether its function still reads this topic. What an inactive unit has not settled can be removed.
    pub(super) active: bool,
}

pub(super) fn key(id: u32) -> [u8; 5] {
    let [a, b, c, d] = id.to_be_bytes();
    [TAG, a, b, c, d]
}

pub(super) fn id_of(key: &[u8]) -> Result<u32, Corrupt> {
    match *key {
        [TAG, a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(Corrupt::Damaged { kind: KIND, what: "its key is no number" }),
    }
}

/// The stored form, without owning the parts.
pub(super) fn encode(key: &[u8], unit: &Unit, progress: &Progress, active: bool) -> Bytes {
    let was_reset = progress.reset != Reset::default();
    let mut encoder = Encoder::new(if was_reset { RESET_VERSION } else { VERSION });
    encoder.text(unit.function.as_str());
    encoder.text(unit.topic.as_str());
    encoder.varint(unit.partition.into());
    encoder.u8(u8::from(active));
    encoder.varint(progress.commits);
    put_stream(&mut encoder, &progress.source);
    put_stream(&mut encoder, &progress.redrive);
    encoder.varint(progress.parked.len() as u64);
    for head in &progress.parked {
        put_head(&mut encoder, head);
    }
    if was_reset {
        encoder.varint(progress.reset.number);
        encoder.varint(progress.reset.forgot_in);
    }
    encoder.seal(key)
}

impl UnitRecord {
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, Corrupt> {
        let mut decoder = Decoder::open(KIND, RESET_VERSION, key, value)?;
        let function: FunctionName =
            decoder.text()?.parse().map_err(|_| decoder.damaged("its function has no proper name"))?;
        let topic: Topic = decoder.text()?.parse().map_err(|_| decoder.damaged("its topic has no proper name"))?;
        let unit = Unit { function, topic, partition: decoder.varint_u32()? };
        let active = decoder.u8()? != 0;
        let commits = decoder.varint()?;
        let source = take_stream(&mut decoder)?;
        let redrive = take_stream(&mut decoder)?;
        let parked = (0..decoder.varint()?).map(|_| take_head(&mut decoder)).collect::<Result<_, _>>()?;
        let reset = match value.first() {
            Some(&RESET_VERSION) => Reset { number: decoder.varint()?, forgot_in: decoder.varint()? },
            _ => Reset::default(),
        };
        decoder.end()?;
        Ok(Self { unit, progress: Progress { source, redrive, parked, commits, reset }, active })
    }
}

fn put_head(encoder: &mut Encoder, head: &ParkedHead) {
    encoder.u8(match head.position.stream {
        Stream::Source => 0,
        Stream::Redrive => 1,
    });
    encoder.varint(head.position.offset);
    encoder.varint(head.attempts.into());
    encoder.varint(head.first_failed_at.as_nanos());
    encoder.varint(head.due_at.as_nanos());
    encoder.u8(code(head.category));
}

fn take_head(decoder: &mut Decoder<'_>) -> Result<ParkedHead, Corrupt> {
    let stream = match decoder.u8()? {
        0 => Stream::Source,
        1 => Stream::Redrive,
        _ => return Err(decoder.damaged("a position lies in no log")),
    };
    let position = Position { stream, offset: decoder.varint()? };
    let attempts = decoder.varint_u32()?;
    let first_failed_at = Timestamp::from_nanos(decoder.varint()?);
    let due_at = Timestamp::from_nanos(decoder.varint()?);
    let found = decoder.u8()?;
    let category = category(found).ok_or_else(|| decoder.damaged("a category is unknown"))?;
    Ok(ParkedHead { position, attempts, first_failed_at, due_at, category })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use millrace_core::outcome::Category;
    use millrace_core::progress::{StreamProgress, Totals};
    use proptest::prelude::*;

    use super::*;
    use crate::broker::progress::generated::any_progress;

    fn unit() -> Unit {
        Unit { function: "shop.pay".parse().unwrap(), topic: Topic::new("orders").unwrap(), partition: 3 }
    }

    proptest! {
        #[test]
        fn a_unit_reads_back(
            progress in any_progress(any::<(u64, u64)>().prop_map(|(first, due)| (Timestamp::from_nanos(first), Timestamp::from_nanos(due)))),
            active: bool,
        ) {
            let value = encode(b"u", &unit(), &progress, active);
            prop_assert_eq!(UnitRecord::decode(b"u", &value), Ok(UnitRecord { unit: unit(), progress, active }));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let totals = Totals { completed: 2, filtered: 1, ..Totals::default() };
        let source = StreamProgress { start: 1, resume: 3, settled_above: vec![Range { start: 5, end: 6 }], totals };
        let head = ParkedHead {
            position: Position { stream: Stream::Source, offset: 4 },
            attempts: 2,
            first_failed_at: Timestamp::from_nanos(7),
            due_at: Timestamp::from_nanos(9),
            category: Category::Unknown,
        };
        let progress = Progress {
            source,
            redrive: StreamProgress::default(),
            parked: vec![head],
            commits: 1,
            reset: Reset::default(),
        };
        let value = encode(&key(1), &unit(), &progress, true);
        let mut expected = vec![1, 6, 35, 182, 165, 8];
        expected.extend_from_slice(b"shop.pay\x06orders");
        expected.extend_from_slice(&[3, 1, 1, 1, 3, 1, 2, 1, 2, 1, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0; 9]);
        expected.extend_from_slice(&[1, 0, 4, 2, 7, 9, 3]);
        assert_eq!(value[..], expected[..]);
        let reset = Progress { reset: Reset { number: 9, forgot_in: 1 }, ..progress };
        let value = encode(&key(1), &unit(), &reset, true);
        assert_eq!((value[0], &value[5..]), (2, &[&expected[5..], &[9, 1]].concat()[..]));
    }
}
