//! A unit's progress in the metadata of its committed offset: frame (version, checksum) around the source's and the redrive
//! log's progress, the commit counter and the parked heads, and its most recent idempotency keys, as base64.
//!
//! Times of parked heads are kept in whole milliseconds, relative to the oldest of them, because a broker takes few bytes. What
//! needs more all the same is kept elsewhere (`overflow.rs`), and the metadata says so.

use bytes::Bytes;
use millrace_core::name::Unit;
use millrace_core::progress::{ParkedHead, Position, Progress, Reset, Stream, StreamProgress};
use millrace_core::time::Timestamp;

use super::base64;
use super::recent::Recent;
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::progress::{category, code, put_stream, take_stream};

/// What a broker takes unless its `offset.metadata.max.bytes` says otherwise.
pub(super) const MAX_BYTES: usize = 4096;
/// So many bytes are that many in base64.
const RAW_MAX_BYTES: usize = MAX_BYTES / 4 * 3;

const KIND: &str = "the metadata of a committed offset";
const VERSION: u8 = 1;
/// Only positions and sums: the rest is kept elsewhere.
const SHORT_VERSION: u8 = 2;
/// All progress, and keys after it.
const KEYS_VERSION: u8 = 3;
/// Added to each of these if a person has set the position: that comes first.
const RESET: u8 = 3;
/// Set in a head's first byte if it waits in the redrive log; the category is in the bits below.
const REDRIVE_BIT: u8 = 0x80;

/// A progress as it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// The metadata of the offset: at most [`MAX_BYTES`].
    pub(super) text: String,
    /// All of it, if that is too much for the metadata: to be kept elsewhere, in the same transaction.
    pub(super) whole: Option<Bytes>,
    /// Whether the keys that were given are in the metadata. Else they are to be kept elsewhere, too.
    pub(super) has_keys: bool,
}

/// A progress as it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) progress: Progress,
    /// What is settled above the resume point, and the parked heads, are kept elsewhere.
    pub(super) is_short: bool,
    /// Idempotency keys that are kept nowhere else.
    pub(super) recent: Recent,
}

/// Encodes a progress, with keys if there is room for them.
pub(super) fn encode(unit: &Unit, progress: &Progress, recent: &Recent) -> Encoded {
    let none = Recent::default();
    let whole = write(VERSION, unit, progress, &none);
    if whole.len() <= RAW_MAX_BYTES {
        if !recent.is_empty() && recent.is_short() {
            let with_keys = write(KEYS_VERSION, unit, progress, recent);
            if with_keys.len() <= RAW_MAX_BYTES {
                return Encoded { text: base64::encode(&with_keys), whole: None, has_keys: true };
            }
        }
        return Encoded { text: base64::encode(&whole), whole: None, has_keys: false };
    }
    let bare = |stream: &StreamProgress| StreamProgress {
        start: stream.start,
        resume: stream.resume,
        settled_above: Vec::new(),
        totals: stream.totals,
    };
    let Progress { source, redrive, commits, reset, .. } = progress;
    let (source, redrive) = (bare(source), bare(redrive));
    let short = Progress { source, redrive, parked: Vec::new(), commits: *commits, reset: *reset };
    let text = base64::encode(&write(SHORT_VERSION, unit, &short, &none));
    Encoded { text, whole: Some(whole), has_keys: false }
}

fn write(version: u8, unit: &Unit, progress: &Progress, recent: &Recent) -> Bytes {
    let was_reset = progress.reset != Reset::default();
    let mut encoder = Encoder::new(if was_reset { version + RESET } else { version });
    if was_reset {
        encoder.varint(progress.reset.number);
        encoder.varint(progress.reset.forgot_in);
    }
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
    if version == KEYS_VERSION {
        recent.put(&mut encoder);
    }
    encoder.seal(unit.to_string().as_bytes())
}

pub(super) fn decode(unit: &Unit, text: &str) -> Result<Decoded, Corrupt> {
    let foreign = Corrupt::Damaged { kind: KIND, what: "it is not base64" };
    let bytes = base64::decode(text).ok_or(foreign)?;
    let mut decoder = Decoder::open(KIND, KEYS_VERSION + RESET, unit.to_string().as_bytes(), &bytes)?;
    let (version, was_reset) = version_of(&bytes);
    let progress = take_progress(&mut decoder, was_reset)?;
    let recent = if version == KEYS_VERSION { Recent::take(&mut decoder)? } else { Recent::default() };
    decoder.end()?;
    Ok(Decoded { progress, is_short: version == SHORT_VERSION, recent })
}

/// The version of a frame, and whether a reset comes first in it.
fn version_of(bytes: &[u8]) -> (u8, bool) {
    let version = bytes.first().copied().unwrap_or_default();
    version.checked_sub(RESET).filter(|version| *version > 0).map_or((version, false), |version| (version, true))
}

/// What [`Encoded::whole`] says.
pub(super) fn decode_whole(unit: &Unit, bytes: &[u8]) -> Result<Progress, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION + RESET, unit.to_string().as_bytes(), bytes)?;
    let progress = take_progress(&mut decoder, version_of(bytes).1)?;
    decoder.end()?;
    Ok(progress)
}

fn take_progress(decoder: &mut Decoder<'_>, was_reset: bool) -> Result<Progress, Corrupt> {
    let reset = match was_reset {
        true => Reset { number: decoder.varint()?, forgot_in: decoder.varint()? },
        false => Reset::default(),
    };
    let commits = decoder.varint()?;
    let source = take_stream(decoder)?;
    let redrive = take_stream(decoder)?;
    let (heads, oldest) = (decoder.varint()?, decoder.varint()?);
    let mut progress = Progress { source, redrive, parked: Vec::new(), commits, reset };
    for _ in 0..heads {
        let head = take_head(decoder, &progress, oldest)?;
        progress.parked.push(head);
    }
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
    use std::time::Duration;

    use millrace_core::name::Topic;
    use millrace_core::outcome::Category;
    use millrace_core::progress::{KeyHash, StreamProgress, Totals};
    use proptest::prelude::*;

    use super::*;
    use crate::broker::kafka::native::TopicId;
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
        Progress { source, redrive: StreamProgress::default(), parked: vec![head], commits: 7, reset: Reset::default() }
    }

    #[test]
    fn the_layout_is_pinned() {
        let text = encode(&unit(), &sample(), &Recent::default()).text;
        let bytes = base64::decode(&text).unwrap();
        let payload = [&[7, 1, 3, 1, 2, 1, 2, 1, 0, 0, 0, 0][..], &[0; 9], &[1, 0xe8, 0x07, 3, 1, 2, 0, 0xfa, 0x01]];
        assert_eq!((bytes[0], &bytes[5..]), (1, &payload.concat()[..]));
        assert_eq!(text, PINNED);
        let reset = Progress { reset: Reset { number: 9, forgot_in: 2 }, ..sample() };
        let bytes = base64::decode(&encode(&unit(), &reset, &Recent::default()).text).unwrap();
        assert_eq!((bytes[0], &bytes[5..]), (4, &[&[9, 2], &payload.concat()[..]].concat()[..]));
    }

    const PINNED: &str = "ASB0HYsHAQMBAgECAQAAAAAAAAAAAAAAAAAB6AcDAQIA+gE";

    #[test]
    fn times_that_are_no_whole_milliseconds_are_not_due_early() {
        let mut progress = sample();
        progress.parked[0].due_at = Timestamp::from_nanos(1_250_000_001);
        let back = decode(&unit(), &encode(&unit(), &progress, &Recent::default()).text).unwrap().progress;
        assert_eq!(back.parked[0].due_at, Timestamp::from_millis(1_251));
    }

    fn keys(count: u128) -> Recent {
        let id = Some(TopicId::from_bytes([9; 16]));
        (0..count).fold(Recent::default(), |recent, key| {
            recent.with(id, Timestamp::from_nanos(u64::MAX - 1), &[KeyHash(u128::MAX - key)])
        })
    }

    #[test]
    fn keys_are_there_if_there_is_room_for_them() {
        let encoded = encode(&unit(), &sample(), &keys(1));
        let decoded = decode(&unit(), &encoded.text).unwrap();
        assert_eq!(decoded, Decoded { progress: sample(), is_short: false, recent: keys(1) });
        assert_eq!((&encoded.text[..], encoded.has_keys), (PINNED_WITH_KEY, true));
        let has_keys = |progress: &Progress, recent: &Recent| {
            let encoded = encode(&unit(), progress, recent);
            let decoded = decode(&unit(), &encoded.text).unwrap();
            assert_eq!(decoded.recent, if encoded.has_keys { recent.clone() } else { Recent::default() });
            encoded.has_keys
        };
        assert!(!has_keys(&sample(), &keys(0)));
        assert!(has_keys(&sample(), &keys(40)));
        assert!(!has_keys(&sample(), &keys(41)));
        assert!(has_keys(&failing(100), &keys(40)));
        let fits = |heads: &u64| encode(&unit(), &failing(*heads), &keys(0)).whole.is_none();
        assert!(!has_keys(&failing((100..).take_while(fits).last().unwrap()), &keys(40)));
        assert!(!has_keys(&failing(5000), &keys(1)));
    }

    const PINNED_WITH_KEY: &str =
        "AzksfIkHAQMBAgECAQAAAAAAAAAAAAAAAAAB6AcDAQIA+gEJCQkJCQkJCQkJCQkJCQkJAf7//////////wH/////////////////////";

    /// So many heads, each with a range of its own before it.
    fn failing(keys: u64) -> Progress {
        let mut progress = sample();
        let head = progress.parked[0].clone();
        let head = |n: u64| {
            let first_failed_at = head.first_failed_at + Duration::from_millis(37 * n);
            let (offset, due_at) = (3 + 10 * n, first_failed_at + Duration::from_secs(60));
            ParkedHead {
                position: Position { stream: Stream::Source, offset },
                first_failed_at,
                due_at,
                ..head.clone()
            }
        };
        progress.parked = (0..keys).map(head).collect();
        progress.source.settled_above = (0..keys).map(|n| 4 + 10 * n..13 + 10 * n).collect();
        progress
    }

    #[test]
    fn a_hundred_failing_keys_and_ranges_fit() {
        let progress = failing(200);
        let encoded = encode(&unit(), &progress, &Recent::default());
        assert_eq!(encoded.whole, None);
        assert!(decode(&unit(), &encoded.text) == Ok(Decoded { progress, is_short: false, recent: Recent::default() }));
    }

    #[test]
    fn what_does_not_fit_is_kept_whole_beside_the_position() {
        let progress = failing(5000);
        let encoded = encode(&unit(), &progress, &Recent::default());
        assert!(encoded.text.len() <= MAX_BYTES);
        let Decoded { progress: short, is_short, .. } = decode(&unit(), &encoded.text).unwrap();
        let resume = |progress: &Progress| (progress.source.resume, progress.redrive.resume);
        assert_eq!((is_short, short.commits, resume(&short)), (true, progress.commits, resume(&progress)));
        let whole = encoded.whole.unwrap();
        assert!(whole.len() < 20 * 5000, "{}", whole.len());
        assert!(decode_whole(&unit(), &whole) == Ok(progress));
    }

    #[test]
    fn what_somebody_else_committed_is_no_progress() {
        let text = encode(&unit(), &sample(), &Recent::default()).text;
        let other = Unit { partition: 4, ..unit() };
        assert!(decode(&other, &text).is_err(), "the metadata of another unit");
        for foreign in ["", "exported by a tool", "AQ", &text[1..], &text[..text.len() - 1]] {
            assert!(decode(&unit(), foreign).is_err(), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn progress_reads_back(progress in any_progress(any_times()), times: Vec<(u64, u128)>) {
            let id = Some(TopicId::from_bytes([9; 16]));
            let recent = times.into_iter().fold(Recent::default(), |recent, (nanos, key)| {
                recent.with(id, Timestamp::from_nanos(nanos), &[KeyHash(key)])
            });
            let Encoded { text, whole, has_keys } = encode(&unit(), &progress, &recent);
            prop_assert_eq!(whole, None);
            let recent = if has_keys { recent } else { Recent::default() };
            prop_assert_eq!(decode(&unit(), &text), Ok(Decoded { progress, is_short: false, recent }));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, text: String) {
            drop(decode(&unit(), &base64::encode(&bytes)));
            drop(decode(&unit(), &text));
        }
    }
}
