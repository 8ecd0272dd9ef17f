//! Commits of several units as one transaction.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_core::limits;
use millrace_core::name::{Topic, Unit};
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::{Member, Owned, PAUSE, Pending, is_member};
use crate::broker::kafka::clients::{at, lock, partition_counts, signed};
use crate::broker::kafka::record::Placed;
use crate::broker::kafka::status::{self, StatusChange};
use crate::broker::kafka::writer::{Ended, Positions};
use crate::broker::kafka::{keys, overflow, values};
use crate::broker::{Commit, CommitOutcome, Error, LetterId, Outgoing, Placing};

/// Partition counts are asked for again after this time.
const COUNTS_ARE_KNOWN: Duration = Duration::from_secs(30);

/// Commits of several units are one transaction up to here. The broker ends one that takes longer than ten seconds, so that
/// after a failure it is half as much, and after each success twice as much again.
pub(super) const TRANSACTION_MAX_BYTES: usize = 64 * limits::MIB;

/// How often it is told that another process has this one's identity.
const TWIN_IS_TOLD: Duration = Duration::from_secs(60);

/// When it was told that another process has the identity of this one, by any of its functions.
#[derive(Clone, Default)]
pub(in crate::broker::kafka) struct Twin(Arc<Mutex<Option<Instant>>>);

impl Twin {
    /// Nobody else can tell: each of the two is a proper member of the group, commits what the other one does not end, and goes on.
    fn warn(&self, instance: &str) {
        let mut told = lock(&self.0);
        if told.is_none_or(|told| told.elapsed() >= TWIN_IS_TOLD) {
            *told = Some(Instant::now());
            tracing::warn!(
                instance,
                "Another process runs with the same kafka.instance, and each ends the transactions of the other: give each one a name \
                 of its own, or none."
            );
        }
    }
}

/// A commit whose records have their places.
struct Prepared {
    pending: Pending,
    records: Vec<Placed>,
}

impl Member {
    /// Commits what several units settled: in one transaction if nothing is wrong with it, and it is not too much for one.
    pub(super) fn commit(&mut self, commits: Vec<Pending>) -> Result<(), Error> {
        let (mut group, mut group_bytes) = (Vec::with_capacity(commits.len()), 0);
        let mut suspects = Vec::new();
        for pending in commits {
            let Some(owned) = self.owner(&pending) else {
                self.fenced(pending);
                continue;
            };
            assert_eq!(pending.commit.progress.commits, owned.commits + 1, "the commit counter must rise by one");
            let suspect = owned.suspect;
            match (self.prepare(&pending), suspect) {
                (Ok(records), Some(failures)) => suspects.push((failures, Prepared { pending, records })),
                (Ok(records), None) => {
                    let bytes: usize = records.iter().map(|placed| placed.record.size_bytes()).sum();
                    if group_bytes + bytes > self.transaction_bytes && !group.is_empty() {
                        self.write(std::mem::take(&mut group))?;
                        group_bytes = 0;
                    }
                    group_bytes += bytes;
                    group.push(Prepared { pending, records });
                }
                (Err(reason), _) => answer(pending, reason),
            }
        }
        self.write(group)?;
        self.write_suspects(suspects)
    }

    /// Commits each unit alone, so that one that cannot be committed holds up no other. Once one fails it may be the broker as a
    /// whole, and each further try would take a time-out: who is not tried now comes before it the next time.
    fn write_suspects(&mut self, mut suspects: Vec<(u32, Prepared)>) -> Result<(), Error> {
        suspects.sort_by_key(|(failures, _)| *failures);
        let mut suspects = suspects.into_iter();
        for (failures, one) in suspects.by_ref() {
            let unit = one.pending.unit.clone();
            self.write(vec![one])?;
            if self.owned.get(&unit).is_some_and(|owned| owned.suspect > Some(failures)) {
                break;
            }
        }
        let error = Error::Transient("Kafka has just not taken a commit of another partition".to_owned());
        suspects.for_each(|(_, one)| answer(one.pending, Err(error.clone())));
        Ok(())
    }

    /// The unit of a commit, if it is still owned by whoever settled what is in it.
    fn owner(&self, pending: &Pending) -> Option<&Owned> {
        self.owned.get(&pending.unit).filter(|owned| owned.epoch == pending.epoch)
    }

    fn write(&mut self, group: Vec<Prepared>) -> Result<(), Error> {
        // Changes of the group are served while it is found out how an earlier transaction ended.
        let (group, lost): (Vec<_>, Vec<_>) = group.into_iter().partition(|one| self.owner(&one.pending).is_some());
        lost.into_iter().for_each(|one| self.fenced(one.pending));
        if group.is_empty() {
            return Ok(());
        }
        // Only a member may fence others of the same identity.
        if !self.writer.is_ready()
            && is_member(&self.consumer)
            && let Err(error) = self.writer.renew()
        {
            self.failed(group, &error);
            return Ok(());
        }
        let metadata = self.consumer.group_metadata();
        // Looked at after it was read: librdkafka resets it by itself when the session is lost.
        let Some(metadata) = metadata.filter(|_| is_member(&self.consumer)) else {
            tracing::info!(function = %self.function(), "A commit is given up: this member has lost its place in the group.");
            group.into_iter().for_each(|one| self.fenced(one.pending));
            return Ok(());
        };
        let records: Vec<&Placed> = group.iter().flat_map(|one| &one.records).collect();
        let offsets = positions(&group);
        let positions = Positions { offsets: &offsets, member: &metadata };
        let ended = if group.len() == 1 {
            self.writer.write(&records, Some(&positions))
        } else {
            self.writer.write_together(&records, Some(&positions))
        };
        if self.writer.has_twin() && is_member(&self.consumer) {
            self.joining.twin.warn(self.joining.clients.names.instance());
        }
        match ended {
            Ended::Refused { code: RDKafkaErrorCode::MessageSizeTooLarge, .. } if group.len() > 1 => {
                // To find the record takes a while; the units that have none of it need not wait for that.
                for one in group {
                    self.write(vec![one])?;
                }
            }
            Ended::Committed(_) => {
                self.transaction_bytes = (self.transaction_bytes * 2).min(TRANSACTION_MAX_BYTES);
                for one in group {
                    self.committed_one(one.pending);
                }
            }
            Ended::Aborted(reason) => {
                tracing::info!(function = %self.function(), reason, "A commit was fenced: the group goes on without this member, or with it in another place.");
                group.into_iter().for_each(|one| self.fenced(one.pending));
            }
            Ended::Failed(reason) => {
                if group.len() > 1 {
                    self.transaction_bytes = (self.transaction_bytes / 2).max(limits::MIB);
                }
                // A topic that is gone is noticed so.
                self.counts.0.clear();
                self.failed(group, &Error::Transient(format!("Kafka did not take a commit: {reason}")));
            }
            Ended::Refused { index, code, reason } => self.refused(group, index, outcome_of(code, reason))?,
            Ended::Unknown(reason) => self.unknown(group, &reason)?,
        }
        Ok(())
    }

    fn committed_one(&mut self, pending: Pending) {
        if let Some(owned) = self.owned.get_mut(&pending.unit).filter(|owned| owned.epoch == pending.epoch) {
            owned.commits = pending.commit.progress.commits;
            owned.suspect = None;
            owned.state.apply(&pending.commit.state);
        }
        answer(pending, Ok(CommitOutcome::Committed));
    }

    /// Its unit is somebody else's by now, or may be.
    fn fenced(&self, pending: Pending) {
        self.figures().fenced += 1;
        answer(pending, Ok(CommitOutcome::Aborted));
    }

    /// It may be the fault of one unit, such as one that emits to a topic which takes nothing: each is tried alone until it succeeds.
    fn failed(&mut self, group: Vec<Prepared>, error: &Error) {
        for Prepared { pending, .. } in group {
            if let Some(owned) = self.owned.get_mut(&pending.unit) {
                owned.suspect = Some(owned.suspect.map_or(0, |failures| failures.saturating_add(1)));
            }
            answer(pending, Err(error.clone()));
        }
    }

    /// One unit is at fault; the others must not wait for it.
    fn refused(&mut self, mut group: Vec<Prepared>, index: usize, outcome: CommitOutcome) -> Result<(), Error> {
        let mut first = 0;
        let at_fault = group.iter().position(|one| {
            first += one.records.len();
            index < first
        });
        let one = group.remove(at_fault.expect("the record that is refused is one of the group's"));
        answer(one.pending, Ok(outcome));
        self.write(group)
    }

    /// Nobody knows whether the transaction was committed: the producer's successor ends it, and the counter tells.
    fn unknown(&mut self, group: Vec<Prepared>, reason: &str) -> Result<(), Error> {
        tracing::warn!(function = %self.function(), reason, "It is not known whether a commit was made; the broker is asked.");
        let units: Vec<_> = group.iter().map(|one| one.pending.unit.clone()).collect();
        let found = loop {
            if self.joining.assignments.is_closed() {
                return Ok(());
            }
            let asked = if self.writer.is_ready() { Ok(()) } else { self.writer.renew() };
            match asked.and_then(|()| self.committed(&units)) {
                Ok(found) => break found,
                Err(error) => tracing::warn!(function = %self.function(), %error, "The broker cannot say yet."),
            }
            self.poll()?;
            std::thread::park_timeout(PAUSE);
        };
        for one in group {
            let Pending { unit, commit, .. } = &one.pending;
            let there = found.iter().find(|found| found.topic == unit.0 && found.partition == unit.1);
            let commits = there.and_then(|found| found.progress.as_ref()).map_or(0, |progress| progress.commits);
            let committed = commits >= commit.progress.commits;
            tracing::info!(topic = %unit.0, partition = unit.1, committed, "What became of the commit is known.");
            if committed {
                self.committed_one(one.pending);
            } else {
                answer(one.pending, Ok(CommitOutcome::Aborted));
            }
        }
        Ok(())
    }

    /// All records of a commit, each with its partition; or what the unit is answered.
    fn prepare(&mut self, pending: &Pending) -> Result<Vec<Placed>, Result<CommitOutcome, Error>> {
        let Commit { at, progress, keys: hashes, outputs, letters, resolved, state } = &pending.commit;
        let function = self.function().clone();
        let unit = Unit { function, topic: pending.unit.0.clone(), partition: pending.unit.1 };
        let refused = |reason: String| Ok(CommitOutcome::Refused { reason });
        let mut records = Vec::with_capacity(outputs.len() + 1);
        for output in outputs {
            records.push(self.place(output)?);
        }
        let names = &self.joining.clients.names;
        let topic = |name: Result<Topic, _>| name.map_err(|e: millrace_core::name::InvalidName| refused(e.to_string()));
        let statuses = topic(names.statuses(&unit.function))?;
        for letter in letters {
            let record = letter.record.clone();
            records.push(Placed { topic: topic(names.dead_letters(&unit.function))?, partition: 0, record });
            records.push(changed(&statuses, &letter.id, *at, &StatusChange::Opened));
        }
        for id in resolved {
            records.push(changed(&statuses, id, *at, &StatusChange::Completed));
        }
        if !hashes.is_empty() {
            let value = keys::encode(&unit, *at, hashes);
            let source_id = pending.source_id.map(|id| Bytes::copy_from_slice(id.as_bytes()));
            let record = plain(*at, source_id, value.into());
            records.push(Placed {
                topic: topic(names.keys(&unit.function, &unit.topic))?,
                partition: unit.partition,
                record,
            });
        }
        if !state.is_empty() || pending.progress.whole.is_some() {
            let topic = topic(names.state(&unit.function, &unit.topic))?;
            records.extend(state.iter().map(|write| values::placed(&topic, &unit, *at, write)));
            records.extend(pending.progress.whole.clone().map(|whole| overflow::placed(topic, &unit, *at, whole)));
        }
        tracing::trace!(%unit, commits = progress.commits, records = records.len(), "A commit is prepared.");
        Ok(records)
    }

    fn place(&mut self, output: &Outgoing) -> Result<Placed, Result<CommitOutcome, Error>> {
        let topic = &output.topic;
        let unknown = || Ok(CommitOutcome::Refused { reason: format!("there is no topic `{topic}`") });
        let count = self.partitions_of(topic.as_str()).map_err(Err)?.ok_or_else(unknown)?;
        let partition = choose(output.placing, count).ok_or_else(unknown)?;
        Ok(Placed { topic: topic.clone(), partition, record: output.record.clone() })
    }

    /// How many partitions a topic has, if there is such a topic.
    fn partitions_of(&mut self, topic: &str) -> Result<Option<u32>, Error> {
        let (counts, asked) = &mut self.counts;
        if asked.elapsed() > COUNTS_ARE_KNOWN {
            counts.clear();
            *asked = Instant::now();
        }
        if let Some(count) = counts.get(topic) {
            return Ok(Some(*count));
        }
        let found = partition_counts(&self.joining.observer, Some(topic))?.get(topic).copied();
        if let Some(count) = found {
            counts.insert(topic.to_owned(), count);
        }
        Ok(found)
    }
}

/// The partition of a record, if there is such a one.
pub(in crate::broker::kafka) fn choose(placing: Placing, count: u32) -> Option<u32> {
    match placing {
        // As Kafka does it: the sign bit is dropped.
        Placing::Hash(hash) => (hash & 0x7fff_ffff).checked_rem(count),
        Placing::Partition(number) => Some(number).filter(|number| *number < count),
    }
}

/// A record of ours, without headers.
pub(in crate::broker::kafka) fn plain(at: Timestamp, key: Option<Bytes>, value: Bytes) -> Record {
    Record { timestamp: at, key, value: Some(value), headers: Headers::default() }
}

/// A change of a letter's status as a record.
pub(in crate::broker::kafka) fn changed(topic: &Topic, id: &LetterId, at: Timestamp, change: &StatusChange) -> Placed {
    let key = id.to_string();
    let value = status::encode(&key, at, change);
    Placed { topic: topic.clone(), partition: 0, record: plain(at, Some(key.into()), value.into()) }
}

/// What the principal may not write today it may be allowed tomorrow.
fn outcome_of(code: RDKafkaErrorCode, reason: String) -> CommitOutcome {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => CommitOutcome::Forbidden { reason },
        _ => CommitOutcome::Refused { reason },
    }
}

fn positions(group: &[Prepared]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for Prepared { pending, .. } in group {
        let (topic, partition) = &pending.unit;
        let mut element = list.add_partition(topic.as_str(), signed(*partition));
        element.set_offset(at(pending.commit.progress.source.resume)).expect("an offset that was read fits");
        element.set_metadata(&pending.progress.text);
    }
    list
}

fn answer(pending: Pending, outcome: Result<CommitOutcome, Error>) {
    drop(pending.reply.send(outcome));
}
