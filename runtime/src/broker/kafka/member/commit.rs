//! Commits of several units as one transaction.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_core::limits;
use millrace_core::name::{Topic, Unit};
use millrace_core::record::{Headers, Record};
use millrace_core::time::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::RDKafkaErrorCode;

use super::{Member, Owned, PAUSE, Pending, is_member};
use crate::broker::kafka::clients::{at, lock, partition_counts, signed, unreachable_broker};
use crate::broker::kafka::metadata::{self, Decoded, Encoded};
use crate::broker::kafka::recent::{self, Recent};
use crate::broker::kafka::record::Placed;
use crate::broker::kafka::status::{self, StatusChange};
use crate::broker::kafka::writer::{Ended, Positions};
use crate::broker::kafka::{native, overflow, values};
use crate::broker::{Commit, CommitOutcome, Error, LetterId, Outgoing, Placing};

/// Partition counts are asked for again after this time.
const COUNTS_ARE_KNOWN: Duration = Duration::from_secs(30);

/// Commits of several units are one transaction up to here. The broker ends one that takes longer than ten seconds, so that
/// after a failure it is half as much, and after each success twice as much again.
pub(super) const TRANSACTION_MAX_BYTES: usize = 64 * limits::MIB;

/// How long each step of it may take to put keys away when a function ends.
const PUTTING_AWAY: Duration = Duration::from_secs(2);
/// Between two looks at what is committed.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

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

/// A commit, ready to be written.
struct Prepared {
    pending: Pending,
    parts: Parts,
}

/// What is written.
struct Parts {
    /// Each with its place.
    records: Vec<Placed>,
    /// What its position says beside the offset.
    metadata: String,
    /// The idempotency keys in there.
    recent: Recent,
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
                (Ok(parts), Some(failures)) => suspects.push((failures, Prepared { pending, parts })),
                (Ok(parts), None) => {
                    let bytes: usize = parts.records.iter().map(|placed| placed.record.size_bytes()).sum();
                    if group_bytes + bytes > self.transaction_bytes && !group.is_empty() {
                        self.write(std::mem::take(&mut group))?;
                        group_bytes = 0;
                    }
                    group_bytes += bytes;
                    group.push(Prepared { pending, parts });
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
        let metadata = match self.membership() {
            Ok(Some(metadata)) => metadata,
            Ok(None) => {
                tracing::info!(function = %self.function(), "A commit is given up: this member has lost its place in the group.");
                group.into_iter().for_each(|one| self.fenced(one.pending));
                return Ok(());
            }
            Err(error) => {
                self.failed(group, &error);
                return Ok(());
            }
        };
        let records: Vec<&Placed> = group.iter().flat_map(|one| &one.parts.records).collect();
        let offsets = positions(group.iter().map(|one| {
            let Prepared { pending, parts } = one;
            (&pending.unit, pending.commit.progress.source.resume, parts.metadata.as_str())
        }));
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
                group.into_iter().for_each(|one| self.committed_one(one));
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

    /// What positions are checked against, with a writer that is ready; none if this member has lost its place in the group.
    fn membership(&mut self) -> Result<Option<ConsumerGroupMetadata>, Error> {
        // Only a member may fence others of the same identity.
        if !self.writer.is_ready() && is_member(&self.consumer) {
            self.writer.renew()?;
        }
        let metadata = self.consumer.group_metadata();
        // Looked at after it was read: librdkafka resets it by itself when the session is lost.
        Ok(metadata.filter(|_| is_member(&self.consumer)))
    }

    fn committed_one(&mut self, Prepared { pending, parts }: Prepared) {
        if let Some(owned) = self.owned.get_mut(&pending.unit).filter(|owned| owned.epoch == pending.epoch) {
            owned.commits = pending.commit.progress.commits;
            (owned.recent, owned.position) = (parts.recent, (pending.commit.progress.source.resume, parts.metadata));
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
            first += one.parts.records.len();
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
                // What is known of their positions may be older than what is committed, and must not be committed again.
                units.iter().for_each(|unit| self.lose(unit));
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
                self.committed_one(one);
            } else {
                answer(one.pending, Ok(CommitOutcome::Aborted));
            }
        }
        Ok(())
    }

    /// All that is written of a commit; or what the unit is answered.
    fn prepare(&mut self, pending: &Pending) -> Result<Parts, Result<CommitOutcome, Error>> {
        let Commit { at, progress, keys: hashes, outputs, letters, resolved, state } = &pending.commit;
        let unit = self.unit(&pending.unit);
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
        let oldest = self.joining.subscription.window.oldest(*at);
        let before = self.owner(pending).map(|owned| owned.recent.clone().since(oldest));
        let mut before = before.unwrap_or_default();
        if progress.reset.forgot_in == progress.commits {
            before = Recent::default();
            let topic = topic(names.keys(&unit.function, &unit.topic))?;
            records.push(recent::forgotten(topic, &unit, pending.source_id, *at));
        }
        let mut recent = before.with(pending.source_id, *at, hashes);
        let Encoded { text, whole, has_keys } = metadata::encode(&unit, progress, &recent);
        if !has_keys && !recent.is_empty() {
            records.extend(recent.placed(&topic(names.keys(&unit.function, &unit.topic))?, &unit, *at));
            recent = Recent::default();
        }
        if !state.is_empty() || whole.is_some() {
            let topic = topic(names.state(&unit.function, &unit.topic))?;
            records.extend(state.iter().map(|write| values::placed(&topic, &unit, *at, write)));
            records.extend(whole.map(|whole| overflow::placed(topic, &unit, *at, whole)));
        }
        tracing::trace!(%unit, commits = progress.commits, records = records.len(), "A commit is prepared.");
        Ok(Parts { records, metadata: text, recent })
    }

    /// Writes idempotency keys that are with positions alone to the topic of keys, so that they are known when somebody moves a
    /// position while nothing runs. Where that fails, they stay with their positions.
    pub(super) fn put_keys_away(&mut self) {
        let keeping = self.owned.iter().filter(|(_, owned)| !owned.recent.is_empty());
        let keeping: Vec<_> = keeping.map(|(place, _)| place.clone()).collect();
        if keeping.is_empty() {
            return;
        }
        let put_away = self.unmoved(&keeping).and_then(|unmoved| {
            self.put_away(&unmoved)?;
            let all = unmoved.len() == keeping.len();
            if all { Ok(()) } else { Err("positions were moved meanwhile".to_owned()) }
        });
        if let Err(reason) = put_away {
            tracing::warn!(
                function = %self.function(), reason,
                "The newest idempotency keys stay with positions: whoever moves one by hand before the function runs again loses them."
            );
        }
    }

    /// Those whose positions are still what was committed here. That of a topic that was deleted is gone, and must not come back for
    /// the next one of its name.
    fn unmoved(&self, keeping: &[(Topic, u32)]) -> Result<Vec<(Topic, u32)>, String> {
        let deadline = Instant::now() + PUTTING_AWAY;
        let group = self.joining.clients.names.group(self.function());
        let about = (keeping.first().map_or("", |(topic, _)| topic.as_str()), PUTTING_AWAY);
        loop {
            let found = native::group_positions(self.consumer.client(), &group, about);
            let found = found.map_err(|code| unreachable_broker("tell what is committed", &code).to_string())?;
            let found = native::by_partition(&found);
            let is_there = |place: &&(Topic, u32)| {
                let ((topic, partition), (offset, metadata)) = (place, &self.owned[*place].position);
                found.get(&(topic.as_str(), *partition)) == Some(&(*offset, metadata.as_str()))
            };
            let unmoved: Vec<_> = keeping.iter().filter(is_there).cloned().collect();
            // What has just been committed is told once its marker is written.
            if unmoved.len() == keeping.len() || Instant::now() >= deadline {
                return Ok(unmoved);
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn put_away(&mut self, places: &[(Topic, u32)]) -> Result<(), String> {
        if places.is_empty() {
            return Ok(());
        }
        self.writer.hurry(PUTTING_AWAY);
        let member = self.membership().map_err(|error| error.to_string())?;
        let member = member.ok_or("this member has lost its place in the group")?;
        let (mut records, mut positioned) = (Vec::new(), Vec::new());
        for place in places {
            let (unit, owned) = (self.unit(place), &self.owned[place]);
            let topic = self.joining.clients.names.keys(&unit.function, &unit.topic).map_err(|e| e.to_string())?;
            let Decoded { progress, .. } = metadata::decode(&unit, &owned.position.1).map_err(|e| e.to_string())?;
            records.extend(owned.recent.placed(&topic, &unit, self.joining.clock.now()));
            positioned.push((place, owned.position.0, metadata::encode(&unit, &progress, &Recent::default()).text));
        }
        let offsets = positions(positioned.iter().map(|(place, offset, text)| (*place, *offset, text.as_str())));
        let positions = Positions { offsets: &offsets, member: &member };
        match self.writer.write_together(&records.iter().collect::<Vec<_>>(), Some(&positions)) {
            Ended::Committed(_) => Ok(()),
            Ended::Aborted(reason) | Ended::Failed(reason) | Ended::Unknown(reason) | Ended::Refused { reason, .. } => {
                Err(reason)
            }
        }
    }

    fn unit(&self, (topic, partition): &(Topic, u32)) -> Unit {
        Unit { function: self.function().clone(), topic: topic.clone(), partition: *partition }
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

/// Positions, each with its offset and metadata.
fn positions<'a>(units: impl Iterator<Item = (&'a (Topic, u32), u64, &'a str)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset, metadata) in units {
        let mut element = list.add_partition(topic.as_str(), signed(*partition));
        element.set_offset(at(offset)).expect("an offset that was read fits");
        element.set_metadata(metadata);
    }
    list
}

fn answer(pending: Pending, outcome: Result<CommitOutcome, Error>) {
    drop(pending.reply.send(outcome));
}
