//! Where to go on in redrive logs whose position is lost: Kafka forgets the positions of a group that nobody was in for a week
//! (`offsets.retention.minutes`), and a tool that sets one by hand overwrites what belongs to it.
//!
//! Nothing is redriven anew then. Redrive logs are kept for ever, and so is the topic of statuses, in which the commit that
//! settles a redriven letter says so: as many of a letter's records in the redrive log are settled as that topic has such changes.

use std::collections::BTreeMap;

use millrace_core::letter::LetterHeaders;
use millrace_core::progress::{StreamProgress, Totals};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::restore::Past;
use super::status::StatusChange;
use super::{native, status};
use crate::broker::{Error, LetterId};

/// Redrives of one letter that are known from its status.
#[derive(Clone, Copy, Debug, Default)]
struct Redrives {
    sent: u64,
    settled: u64,
}

impl Redrives {
    fn change(&mut self, change: &StatusChange) {
        match change {
            StatusChange::Redriven => self.sent += 1,
            // A letter was there before its first redrive.
            StatusChange::Opened | StatusChange::Completed => self.settled = self.sent.min(self.settled + 1),
            StatusChange::Resolved(_) | StatusChange::Discarded(_) => {}
        }
    }
}

/// Puts together how far a redrive log is, record by record.
#[derive(Debug, Default)]
struct Rebuilding {
    /// The first record that is not settled.
    resume: Option<u64>,
    settled_above: Vec<std::ops::Range<u64>>,
    /// Records in these ranges; what else is in them is none, such as the markers of transactions.
    settled: u64,
    /// Whether the last record waits.
    waits: bool,
}

impl Rebuilding {
    fn take(&mut self, offset: u64, is_settled: bool) {
        let waited = std::mem::replace(&mut self.waits, !is_settled);
        if !is_settled {
            self.resume.get_or_insert(offset);
        } else if self.resume.is_some() {
            self.settled += 1;
            match self.settled_above.last_mut().filter(|_| !waited) {
                Some(last) => last.end = offset + 1,
                None => self.settled_above.push(offset..offset + 1),
            }
        }
    }

    /// `end` is where the log ends. Its accounts begin here.
    fn finish(self, end: u64) -> StreamProgress {
        let Self { resume, settled_above, settled, .. } = self;
        let resume = resume.unwrap_or(end);
        let all: u64 = settled_above.iter().map(|range| range.end - range.start).sum();
        // What they came to before is not known any more, and they are not handled again.
        let totals = Totals { duplicate: settled, not_a_record: all - settled, ..Totals::default() };
        StreamProgress { start: resume, resume, settled_above, totals }
    }
}

impl Past<'_> {
    /// How far the redrive logs of some partitions are. Blocks.
    pub(super) fn redrives(&self, wanted: &[u32]) -> Result<BTreeMap<u32, StreamProgress>, Error> {
        let invalid = |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string());
        let names = &self.clients.names;
        let log = names.redrive(self.function, self.source).map_err(invalid)?;
        let statuses = names.statuses(self.function).map_err(invalid)?;
        let reader = self.clients.reader()?;
        let ends = self.stable_ends(&reader, log.as_str(), wanted.iter().copied())?;
        let mut redrives = BTreeMap::<LetterId, Redrives>::new();
        if !ends.is_empty() {
            let all = Past { is_wanted: &|_| wanted.iter().any(|partition| (self.is_wanted)(*partition)), ..*self };
            let end = all.stable_ends(&reader, statuses.as_str(), std::iter::once(0))?;
            all.read_from_beginning(&reader, statuses.as_str(), end, |_, message| {
                if let Some((id, change)) = change(message) {
                    redrives.entry(id).or_default().change(&change);
                }
            })?;
        }
        let mut rebuilding = BTreeMap::<u32, Rebuilding>::new();
        self.read_from_beginning(&self.clients.reader()?, log.as_str(), ends.clone(), |partition, message| {
            let (offset, record) = native::read(message);
            // What is no letter was settled as one that cannot be redriven.
            let redrive = LetterHeaders::read(&record).ok().and_then(|headers| {
                let LetterHeaders { topic, partition, offset, .. } = headers;
                redrives.get_mut(&LetterId { topic, partition, offset })
            });
            let is_settled = redrive.is_none_or(|redrive| {
                let left = redrive.settled.checked_sub(1);
                redrive.settled = left.unwrap_or_default();
                left.is_some()
            });
            rebuilding.entry(partition).or_default().take(offset, is_settled);
        })?;
        let progress = |partition: &u32| {
            let end = ends.get(partition).copied().unwrap_or_default();
            (*partition, rebuilding.remove(partition).unwrap_or_default().finish(end))
        };
        Ok(wanted.iter().map(progress).collect())
    }
}

/// What is no status is told of where letters are read.
fn change(message: &BorrowedMessage<'_>) -> Option<(LetterId, StatusChange)> {
    let key = std::str::from_utf8(message.key()?).ok()?;
    let (_, change) = status::decode(key, message.payload()?).ok()?;
    Some((key.parse().ok()?, change))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `changes` are those of one letter: opened, redriven, completed, discarded.
    #[test]
    fn a_redrive_is_settled_by_what_follows_it() {
        for (changes, settled) in [
            ("o", 0),
            ("or", 0),
            ("orc", 1),
            ("oro", 1),
            ("orrc", 1),
            ("orrcc", 2),
            ("ordrc", 1),
            ("orco", 1),
            ("oor", 0),
        ] {
            let mut redrives = Redrives::default();
            for change in changes.chars() {
                redrives.change(&match change {
                    'o' => StatusChange::Opened,
                    'r' => StatusChange::Redriven,
                    'c' => StatusChange::Completed,
                    _ => StatusChange::Discarded("no".to_owned()),
                });
            }
            assert_eq!(redrives.settled, settled, "{changes}");
        }
    }

    /// `log` has a letter for each offset: settled, waiting, or `.` for what is no record.
    #[test]
    fn what_is_settled_is_not_done_again() {
        for (log, resume, above, duplicate, not_a_record) in [
            ("", 0, vec![], 0, 0),
            ("sss.", 4, vec![], 0, 0),
            ("w.", 0, vec![], 0, 0),
            ("s.w.", 2, vec![], 0, 0),
            ("swss.wsw.", 1, vec![2..4, 6..7], 3, 0),
            ("w.s.ss.s.w.s", 0, vec![2..8, 11..12], 5, 2),
        ] {
            let mut rebuilding = Rebuilding::default();
            for (offset, one) in (0..).zip(log.chars()).filter(|(_, one)| *one != '.') {
                rebuilding.take(offset, one == 's');
            }
            let found = rebuilding.finish(log.len() as u64);
            let totals = Totals { duplicate, not_a_record, ..Totals::default() };
            assert_eq!(found, StreamProgress { start: resume, resume, settled_above: above, totals }, "{log}");
        }
    }
}
