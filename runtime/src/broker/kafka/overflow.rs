//! Progress that is more than a broker takes as the metadata of an offset, as when very many keys fail at once: it is kept
//! whole as a record of the state's topic, in the transaction of its commit. Only the newest of a unit is of use, and that topic
//! is compacted.

use bytes::Bytes;
use millrace_core::name::{Topic, Unit};
use millrace_core::progress::Progress;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::member::commit::plain;
use super::metadata;
use super::reading::Reading;
use super::record::Placed;
use crate::broker::Error;

/// It is not text, as all keys of handlers are.
const KEY: &[u8] = b"\xffprogress";
/// How many of the newest records are looked at first.
const LOOKED_AT: u64 = 16;

/// The record of a unit.
pub(super) fn placed(topic: Topic, unit: &Unit, at: Timestamp, whole: Bytes) -> Placed {
    Placed { topic, partition: unit.partition, record: plain(at, Some(Bytes::from_static(KEY)), whole) }
}

/// Whether a record of the state's topic is none of the handler's.
pub(super) fn is_it(record: &Record) -> bool {
    record.key.as_deref() == Some(KEY)
}

/// What such a record says, if it is the one of a unit's commit with this number.
pub(super) fn take(unit: &Unit, record: &Record, commits: u64) -> Option<Progress> {
    let found = metadata::decode_whole(unit, record.value.as_deref()?).ok()?;
    Some(found).filter(|found| found.commits == commits)
}

/// Looks for the record of a commit that was the newest just now: nothing but what was aborted can follow it. None if a newer
/// commit needs none. Blocks.
pub(super) fn find(reading: &Reading, topic: &Topic, unit: &Unit, commits: u64) -> Result<Option<Progress>, Error> {
    let (earliest, end) = reading.bounds(topic.as_str(), unit.partition)?;
    let mut back = LOOKED_AT;
    loop {
        let from = end.saturating_sub(back).max(earliest);
        let (mut next, mut found) = (from, None);
        while next < end {
            let page = reading.page(topic.as_str(), unit.partition, next, usize::MAX)?;
            let records = page.records.iter().map(|(_, record)| record).filter(|record| is_it(record));
            found = records.filter_map(|record| take(unit, record, commits)).last().or(found);
            next = page.next;
        }
        if found.is_some() || from <= earliest {
            return Ok(found);
        }
        back = back.saturating_mul(16);
    }
}
