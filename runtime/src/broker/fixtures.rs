//! What the tests of all adapters share.

use bytes::Bytes;
use millrace_core::progress::Progress;
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;

pub(super) fn record(value: &str, timestamp: Timestamp) -> Record {
    Record {
        timestamp,
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Headers::default(),
    }
}

pub(super) fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap()
}

/// Progress after `completed` more source records than `before`.
pub(super) fn after(before: &Progress, completed: u64) -> Progress {
    let mut progress = before.clone();
    progress.source.resume += completed;
    progress.source.totals.completed += completed;
    progress.commits += 1;
    progress
}
