//! A function's dead letters, as their two topics tell: the records, and what happened to them. Read on from where the last
//! look ended.

use std::collections::BTreeMap;

use millrace_core::letter::LetterHeaders;
use millrace_core::name::FunctionName;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::KafkaLog;
use super::reading::{Page, read_on};
use super::status;
use crate::broker::{Error, LetterId, LetterStatus, StoredLetter};

/// What is known of a letter without its record.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) status: LetterStatus,
    pub(super) status_at: Timestamp,
    pub(super) note: Option<String>,
    /// How often it was redriven since its newest record was written.
    pub(super) redriven: u32,
    /// Where its newest record lies in the dead-letter topic.
    place: Option<u64>,
}

/// What is known of a function's letters.
#[derive(Debug, Default)]
pub(super) struct Letters {
    entries: BTreeMap<LetterId, Entry>,
    /// Where the newest record of each letter lies, status or not.
    places: BTreeMap<LetterId, u64>,
    /// Where to go on in both topics.
    next: [u64; 2],
}

impl Letters {
    pub(super) fn get(&self, id: &LetterId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(super) fn open(&self) -> u64 {
        self.entries.values().filter(|entry| entry.status == LetterStatus::Open).count() as u64
    }

    /// Letters after `after`, by identity.
    pub(super) fn after(&self, after: Option<&LetterId>, max: usize) -> Vec<(LetterId, Entry)> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let found = self.entries.range::<LetterId, _>((from, Bound::Unbounded)).take(max);
        found.map(|(id, entry)| (id.clone(), entry.clone())).collect()
    }

    /// Reads on in both topics, up to their ends. Blocks.
    pub(super) fn catch_up(&mut self, log: &KafkaLog, function: &FunctionName) -> Result<(), Error> {
        let invalid = |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string());
        let names = &log.clients().names;
        let (letters, statuses) =
            (names.dead_letters(function).map_err(invalid)?, names.statuses(function).map_err(invalid)?);
        // A function that was never subscribed has neither.
        if log.partition_count(statuses.as_str())?.is_none() {
            return Ok(());
        }
        // First the statuses: the record of each letter is written in the same transaction, so it is there then.
        self.next[0] = read_on(log, statuses.as_str(), self.next[0], |offset, record| self.change(offset, record))?;
        self.next[1] = read_on(log, letters.as_str(), self.next[1], |offset, record| self.letter(offset, record))?;
        for (id, entry) in &mut self.entries {
            entry.place = self.places.get(id).copied();
        }
        Ok(())
    }

    fn change(&mut self, offset: u64, record: &Record) {
        // If what follows cannot be read this one is not read again: a redrive would count twice.
        self.next[0] = offset + 1;
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let read = key.parse::<LetterId>().and_then(|id| {
            let value = record.value.as_deref().unwrap_or_default();
            status::decode(&key, value).map(|change| (id, change)).map_err(|e| e.to_string())
        });
        let (id, (at, change)) = match read {
            Ok(read) => read,
            Err(error) => {
                return tracing::error!(
                    key = &*key,
                    error,
                    "The status of a dead letter cannot be read and is left out."
                );
            }
        };
        let before = self.entries.get(&id);
        if let Some((status, note)) = change.apply(before.map(|entry| entry.status)) {
            let place = before.and_then(|entry| entry.place);
            let redriven = change.redriven(before.map_or(0, |entry| entry.redriven));
            self.entries.insert(id, Entry { status, status_at: at, note, redriven, place });
        }
    }

    fn letter(&mut self, offset: u64, record: &Record) {
        self.next[1] = offset + 1;
        match LetterHeaders::read(record) {
            Ok(LetterHeaders { topic, partition, offset: from, .. }) => {
                self.places.insert(LetterId { topic, partition, offset: from }, offset);
            }
            Err(error) => tracing::error!(offset, %error, "A record among dead letters is none and is left out."),
        }
    }
}

impl Entry {
    /// The letter with its record. Blocks.
    pub(super) fn stored(&self, log: &KafkaLog, function: &FunctionName, id: &LetterId) -> Result<StoredLetter, Error> {
        let missing =
            || Error::Transient(format!("the record of dead letter `{id}` of `{function}` is gone from its topic"));
        let topic = log.clients().names.dead_letters(function).map_err(|e| Error::Fatal(e.to_string()))?;
        let place = self.place.ok_or_else(missing)?;
        let Page { records, .. } = log.reading().page(topic.as_str(), 0, place, 1)?;
        let found = records.into_iter().find(|(offset, _)| *offset == place);
        let record = found.map(|(_, record)| record).ok_or_else(missing)?;
        let Self { status, status_at, note, .. } = self.clone();
        Ok(StoredLetter { function: function.clone(), id: id.clone(), status, status_at, note, record })
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::name::Topic;

    use super::*;
    use crate::broker::kafka::member::commit::{changed, plain};
    use crate::broker::kafka::status::StatusChange;

    #[test]
    fn what_was_taken_in_is_not_read_again_when_reading_fails_later() {
        let mut letters = Letters::default();
        let topic = Topic::new("statuses").unwrap();
        let id: LetterId = "orders/0/7".parse().unwrap();
        for (offset, change) in [(3, StatusChange::Opened), (5, StatusChange::Redriven)] {
            letters.change(offset, &changed(&topic, &id, Timestamp::from_millis(offset), &change).record);
            assert_eq!(letters.next, [offset + 1, 0]);
        }
        assert_eq!(letters.get(&id).unwrap().redriven, 1);
        letters.letter(8, &plain(Timestamp::from_millis(8), None, "no letter".into()));
        assert_eq!(letters.next, [6, 9]);
    }
}
