//! How the parts of a unit's progress are written, in every log alike.

use std::ops::Range;

use millrace_core::outcome::Category;
use millrace_core::progress::{StreamProgress, Totals};

use super::frame::{Corrupt, Decoder, Encoder};

/// Ranges are written as the gap before and the length, so that they take few bytes.
pub(super) fn put_stream(encoder: &mut Encoder, stream: &StreamProgress) {
    encoder.varint(stream.start);
    encoder.varint(stream.resume);
    encoder.varint(stream.settled_above.len() as u64);
    let mut end = stream.resume;
    for range in &stream.settled_above {
        encoder.varint(range.start.wrapping_sub(end));
        encoder.varint(range.end.wrapping_sub(range.start));
        end = range.end;
    }
    let Totals { completed, filtered, duplicate, dead_lettered, skipped, not_a_record } = stream.totals;
    for total in [completed, filtered, duplicate, dead_lettered, skipped, not_a_record] {
        encoder.varint(total);
    }
}

pub(super) fn take_stream(decoder: &mut Decoder<'_>) -> Result<StreamProgress, Corrupt> {
    let (start, resume, ranges) = (decoder.varint()?, decoder.varint()?, decoder.varint()?);
    let mut settled_above = Vec::new();
    let mut end = resume;
    for _ in 0..ranges {
        let from = end.wrapping_add(decoder.varint()?);
        end = from.wrapping_add(decoder.varint()?);
        settled_above.push(Range { start: from, end });
    }
    let totals = Totals {
        completed: decoder.varint()?,
        filtered: decoder.varint()?,
        duplicate: decoder.varint()?,
        dead_lettered: decoder.varint()?,
        skipped: decoder.varint()?,
        not_a_record: decoder.varint()?,
    };
    Ok(StreamProgress { start, resume, settled_above, totals })
}

/// A category in one byte.
pub(super) const fn code(category: Category) -> u8 {
    match category {
        Category::Transient => 0,
        Category::Invalid => 1,
        Category::Rejected => 2,
        Category::Unknown => 3,
    }
}

/// The category of a byte that [`code`] gave.
pub(super) fn category(byte: u8) -> Option<Category> {
    Category::ALL.into_iter().find(|category| code(*category) == byte)
}

/// Values for the properties of both formats.
#[cfg(test)]
pub(super) mod generated {
    use millrace_core::progress::{ParkedHead, Position, Progress, Reset, Stream};
    use millrace_core::time::Timestamp;
    use proptest::prelude::*;

    use super::{Category, StreamProgress, Totals};

    /// Any progress; heads failed first, and are due, at one of these pairs of times.
    pub(in crate::broker) fn any_progress(
        times: impl Strategy<Value = (Timestamp, Timestamp)>,
    ) -> impl Strategy<Value = Progress> {
        let parked = proptest::collection::vec(any_head(times), 0..5);
        let reset = any::<Option<(u64, u64)>>()
            .prop_map(|reset| reset.map_or_else(Reset::default, |(number, forgot_in)| Reset { number, forgot_in }));
        (any_stream(), any_stream(), parked, any::<u64>(), reset)
            .prop_map(|(source, redrive, parked, commits, reset)| Progress { source, redrive, parked, commits, reset })
    }

    fn any_stream() -> impl Strategy<Value = StreamProgress> {
        let ranges = proptest::collection::vec((1..9u64, 1..9u64), 0..5);
        (0..1u64 << 40, 0..1u64 << 40, ranges, any::<[u64; 6]>()).prop_map(|(start, run, ranges, t)| {
            let resume = start + run;
            let mut end = resume;
            let settled_above = ranges.into_iter().map(|(gap, len)| {
                let from = end + gap;
                end = from + len;
                from..end
            });
            let settled_above = settled_above.collect();
            let [completed, filtered, duplicate, dead_lettered, skipped, not_a_record] = t;
            let totals = Totals { completed, filtered, duplicate, dead_lettered, skipped, not_a_record };
            StreamProgress { start, resume, settled_above, totals }
        })
    }

    fn any_head(times: impl Strategy<Value = (Timestamp, Timestamp)>) -> impl Strategy<Value = ParkedHead> {
        (any::<bool>(), any::<u64>(), any::<u32>(), times, 0..4usize).prop_map(
            |(source, offset, attempts, (first_failed_at, due_at), category)| ParkedHead {
                position: Position { stream: if source { Stream::Source } else { Stream::Redrive }, offset },
                attempts,
                first_failed_at,
                due_at,
                category: Category::ALL[category],
            },
        )
    }
}
