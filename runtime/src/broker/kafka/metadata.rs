//! A unit's progress in the metadata of its committed offset: frame (version, checksum) around the source's and the redrive
//! log's progress, the commit counter and the parked heads, as base64.
//!
//! Times of parked heads are kept in whole milliseconds, relative to the oldest of them, because a broker takes few bytes.

use millrace_core::name::Unit;
use millrace_core::progress::{ParkedHead, Position, Progress, Stream};
use millrace_core::time::Timestamp;

use super::base64;
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::progress::{category, code, put_stream, take_stream};

/// What a broker takes unless its `offset.metadata.max.bytes` says otherwise.
pub(super) const MAX_BYTES: usize = 4096;

const KIND: &str = "the metadata of a committed offset";
const VERSION: u8 = 1;
/// Set in a head's first byte if it waits in the redrive log; the category is in the bits below.
const REDRIVE_BIT: u8 = 0x80;

/// The text to commit. It can be longer than [`MAX_BYTES`]; the caller looks.
pub(super) fn encode(unit: &Unit, progress: &Progress) -> String {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(progress.commits);
    put_stream(&mut encoder, &progress.source);
    put_stream(&mut encoder, &progress.redrive);
    let oldest = progress.parked.iter().map(|head| head.first_failed_at.as_millis()).min().unwrap_or(0);
    encoder.varint(progress.parked.len() as u64);
    encoder.varint(oldest);
    for head in &progress.parked {
        let (bit, resume) = match head.position.stream {
            Stream::Source => (0, progress.source.resume),
            Stream::Redrive => (REDRIVE_BIT, progress.redrive.resume),
        };
        encoder.u8(bit | code(head.category));
        encoder.varint(head.position.offset.wrapping_sub(resume));
        encoder.varint(head.attempts.into());
        let first_failed = head.first_failed_at.as_millis();
        encoder.varint(first_failed - oldest);
        // Rounded up: not to be attempted before.
        encoder.varint(head.due_at.as_nanos().div_ceil(1_000_000).saturating_sub(first_failed));
    }
    base64::encode(&encoder.seal(unit.to_string().as_bytes()))
}

pub(super) fn decode(unit: &Unit, text: &str) -> Result<Progress, Corrupt> {
    let foreign = Corrupt::Damaged { kind: KIND, what: "it is not base64" };
    let bytes = base64::decode(text).ok_or(foreign)?;
    let mut decoder = Decoder::open(KIND, VERSION, unit.to_string().as_bytes(), &bytes)?;
    let commits = decoder.varint()?;
    let source = take_stream(&mut decoder)?;
    let redrive = take_stream(&mut decoder)?;
    let (heads, oldest) = (decoder.varint()?, decoder.varint()?);
    let mut progress = Progress { source, redrive, parked: Vec::new(), commits };
    for _ in 0..heads {
        let head = take_head(&mut decoder, &progress, oldest)?;
        progress.parked.push(head);
    }
    decoder.end()?;
    Ok(progress)
}

fn take_head(decoder: &mut Decoder<'_>, progress: &Progress, oldest: u64) -> Result<ParkedHead, Corrupt> {
    let first = decoder.u8()?;
    let (stream, resume) = match first & REDRIVE_BIT {
        0 => (Stream::Source, progress.source.resume),
        _ => (Stream::Redrive, progress.redrive.resume),
    };
    let category = category(first & !REDRIVE_BIT).ok_or_else(|| decoder.damaged("a category is unknown"))?;
    let position = Position { stream, offset: resume.wrapping_add(decoder.varint()?) };
    let attempts = decoder.varint_u32()?;
    let first_failed = oldest.saturating_add(decoder.varint()?);
    let due = first_failed.saturating_add(decoder.varint()?);
    let at = |millis: u64| Timestamp::from_nanos(millis.saturating_mul(1_000_000));
    Ok(ParkedHead { position, attempts, first_failed_at: at(first_failed), due_at: at(due), category })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use millrace_core::name::Topic;
    use millrace_core::outcome::Category;
    use millrace_core::progress::{StreamProgress, Totals};
    use proptest::prelude::*;

    use super::*;
    use crate::broker::progress::generated::any_progress;

    fn unit() -> Unit {
        Unit { function: "shop.pay".parse().unwrap(), topic: Topic::new("orders").unwrap(), partition: 3 }
    }

    /// In whole milliseconds, as they are written.
    fn any_times() -> impl Strategy<Value = (Timestamp, Timestamp)> {
        (0..1u64 << 42, 0..1u64 << 30)
            .prop_map(|(first, wait)| (Timestamp::from_millis(first), Timestamp::from_millis(first + wait)))
    }

    fn sample() -> Progress {
        let totals = Totals { completed: 2, filtered: 1, ..Totals::default() };
        let source = StreamProgress { start: 1, resume: 3, settled_above: vec![Range { start: 5, end: 6 }], totals };
        let head = ParkedHead {
            position: Position { stream: Stream::Source, offset: 4 },
            attempts: 2,
            first_failed_at: Timestamp::from_millis(1_000),
            due_at: Timestamp::from_millis(1_250),
            category: Category::Unknown,
        };
        Progress { source, redrive: StreamProgress::default(), parked: vec![head], commits: 7 }
    }

    #[test]
    fn the_layout_is_pinned() {
        let text = encode(&unit(), &sample());
        let bytes = base64::decode(&text).unwrap();
        let payload = [&[7, 1, 3, 1, 2, 1, 2, 1, 0, 0, 0, 0][..], &[0; 9], &[1, 0xe8, 0x07, 3, 1, 2, 0, 0xfa, 0x01]];
        assert_eq!((bytes[0], &bytes[5..]), (1, &payload.concat()[..]));
        assert_eq!(text, PINNED);
    }

    const PINNED: &str = "ASB0HYsHAQMBAgECAQAAAAAAAAAAAAAAAAAB6AcDAQIA+gE";

    #[test]
    fn times_that_are_no_whole_milliseconds_are_not_due_early() {
        let mut progress = sample();
        progress.parked[0].due_at = Timestamp::from_nanos(1_250_000_001);
        let back = decode(&unit(), &encode(&unit(), &progress)).unwrap();
        assert_eq!(back.parked[0].due_at, Timestamp::from_millis(1_251));
    }

    #[test]
    fn a_hundred_failing_keys_and_ranges_fit() {
        let mut progress = sample();
        let head = progress.parked[0].clone();
        let head = |n: u64| ParkedHead {
            position: Position { stream: Stream::Source, offset: 3 + 10 * n },
            first_failed_at: head.first_failed_at + std::time::Duration::from_millis(37 * n),
            due_at: head.due_at + std::time::Duration::from_secs(60),
            ..head.clone()
        };
        progress.parked = (0..200).map(head).collect();
        progress.source.settled_above = (0..200).map(|n| 4 + 10 * n..13 + 10 * n).collect();
        assert!(encode(&unit(), &progress).len() <= MAX_BYTES);
    }

    #[test]
    fn what_somebody_else_committed_is_no_progress() {
        let text = encode(&unit(), &sample());
        let other = Unit { partition: 4, ..unit() };
        assert!(decode(&other, &text).is_err(), "the metadata of another unit");
        for foreign in ["", "exported by a tool", "AQ", &text[1..], &text[..text.len() - 1]] {
            assert!(decode(&unit(), foreign).is_err(), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn progress_reads_back(progress in any_progress(any_times())) {
            prop_assert_eq!(decode(&unit(), &encode(&unit(), &progress)), Ok(progress));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text: String) {
            drop(decode(&unit(), &base64::encode(&bytes)));
            drop(decode(&unit(), &text));
        }
    }
}
