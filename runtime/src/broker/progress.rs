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
