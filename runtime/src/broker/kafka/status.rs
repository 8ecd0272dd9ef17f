//! What happens to dead letters, as records of their status topic. Key: the letter's id; value: frame (version, checksum)
//! around the wall time in nanoseconds, the kind of change, and a person's note.
//!
//! The topic keeps every change, and its order decides: each reader makes the same of it, whoever wrote at the same time.

use millrace_core::time::Timestamp;

use crate::broker::LetterStatus;
use crate::broker::frame::{Corrupt, Decoder, Encoder};

const KIND: &str = "the status of a dead letter";
const VERSION: u8 = 1;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StatusChange {
    /// Its event failed: for the first time, or once more.
    Opened,
    /// Its redrive completed. What a person decided meanwhile stays.
    Completed,
    /// A person sent it to its function once more.
    Redriven,
    /// A person says that it is done.
    Resolved(Option<String>),
    /// A person gave it up, and this is why.
    Discarded(String),
}

impl StatusChange {
    /// The status after this change, or none if it changes nothing.
    pub(super) fn apply(&self, before: Option<LetterStatus>) -> Option<(LetterStatus, Option<String>)> {
        match self {
            Self::Opened => Some((LetterStatus::Open, None)),
            Self::Completed if before == Some(LetterStatus::Redriven) => Some((LetterStatus::Resolved, None)),
            Self::Completed => None,
            Self::Redriven => Some((LetterStatus::Redriven, None)),
            Self::Resolved(note) => Some((LetterStatus::Resolved, note.clone())),
            Self::Discarded(note) => Some((LetterStatus::Discarded, Some(note.clone()))),
        }
    }

    /// How often a letter was redriven since its newest record was written, after this change.
    pub(super) const fn redriven(&self, before: u32) -> u32 {
        match self {
            // The new record counts the redrive that it comes from.
            Self::Opened => 0,
            Self::Redriven => before.saturating_add(1),
            Self::Completed | Self::Resolved(_) | Self::Discarded(_) => before,
        }
    }
}

pub(super) fn encode(key: &str, at: Timestamp, change: &StatusChange) -> Vec<u8> {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(at.as_nanos());
    let (kind, note) = match change {
        StatusChange::Opened => (0, None),
        StatusChange::Completed => (1, None),
        StatusChange::Redriven => (2, None),
        StatusChange::Resolved(None) => (3, None),
        StatusChange::Resolved(Some(note)) => (4, Some(note)),
        StatusChange::Discarded(note) => (5, Some(note)),
    };
    encoder.u8(kind);
    if let Some(note) = note {
        encoder.text(note);
    }
    encoder.seal(key.as_bytes()).into()
}

pub(super) fn decode(key: &str, value: &[u8]) -> Result<(Timestamp, StatusChange), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, key.as_bytes(), value)?;
    let at = Timestamp::from_nanos(decoder.varint()?);
    let change = match decoder.u8()? {
        0 => StatusChange::Opened,
        1 => StatusChange::Completed,
        2 => StatusChange::Redriven,
        3 => StatusChange::Resolved(None),
        4 => StatusChange::Resolved(Some(decoder.text()?.to_owned())),
        5 => StatusChange::Discarded(decoder.text()?.to_owned()),
        _ => return Err(decoder.damaged("a change is unknown")),
    };
    decoder.end()?;
    Ok((at, change))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_change() -> impl Strategy<Value = StatusChange> {
        prop_oneof![
            Just(StatusChange::Opened),
            Just(StatusChange::Completed),
            Just(StatusChange::Redriven),
            any::<Option<String>>().prop_map(StatusChange::Resolved),
            any::<String>().prop_map(StatusChange::Discarded),
        ]
    }

    #[test]
    fn the_layout_is_pinned() {
        let value = encode("orders/0/7", Timestamp::from_nanos(2), &StatusChange::Discarded("no".to_owned()));
        assert_eq!(value, PINNED);
    }

    const PINNED: [u8; 10] = [1, 217, 40, 177, 86, 2, 5, 2, 110, 111];

    #[test]
    fn what_a_person_decided_is_not_undone_by_a_redrive_that_completes() {
        let completed = |before| StatusChange::Completed.apply(before).map(|(status, _)| status);
        assert_eq!(completed(Some(LetterStatus::Redriven)), Some(LetterStatus::Resolved));
        for before in [None, Some(LetterStatus::Open), Some(LetterStatus::Discarded), Some(LetterStatus::Resolved)] {
            assert_eq!(completed(before), None, "{before:?}");
        }
        let opened = StatusChange::Opened.apply(Some(LetterStatus::Discarded));
        assert_eq!(opened, Some((LetterStatus::Open, None)));
    }

    proptest! {
        #[test]
        fn a_change_reads_back(nanos: u64, change in any_change(), key: String) {
            let at = Timestamp::from_nanos(nanos);
            prop_assert_eq!(decode(&key, &encode(&key, at, &change)), Ok((at, change)));
        }

        #[test]
        fn foreign_bytes_never_panic(key: String, bytes: Vec<u8>) {
            drop(decode(&key, &bytes));
        }
    }
}
