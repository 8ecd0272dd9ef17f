//! A transactional producer: one group of records, and of positions, as one transaction.
//!
//! A transaction is opened only when all that it contains is there, and a call that fails is looked at once, here: it left
//! nothing, or its content is at fault, or nobody knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};

use super::clients::{Clients, Deliveries, REQUEST_TIMEOUT};
use super::native;
use super::record::Placed;
use crate::broker::Error;

/// How long a transaction may take before it is given up: as long as the broker would wait for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at what is on its way: far below the time that it takes.
const LOOK_AGAIN: Duration = Duration::from_micros(100);
/// How soon a record that failed is noticed.
const FAILURES_ARE_READ: Duration = Duration::from_millis(10);
/// What librdkafka puts into one batch unless told otherwise.
const BATCH_BYTES: usize = 1_000_000;
/// Batches are not made smaller than this for a topic that takes only small ones.
const BATCH_MIN_BYTES: usize = 1024;

/// A transaction's markers are written after its end is answered, and the next of the same producer cannot begin before. If it
/// tries too early it waits for [20 ms](https://github.com/confluentinc/librdkafka) and more; markers take about a millisecond.
const MARKERS: Duration = Duration::from_millis(1);

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// All of it is durable and visible; offsets of the records, in order, of a [`Writer::telling_offsets`].
    Committed(Vec<u64>),
    /// Nothing of it is visible, because the group's members changed, or another producer of the same id began.
    Aborted(String),
    /// Nothing of it is visible: the broker refuses this record, now and later.
    Refused {
        /// Which of the records.
        index: usize,
        /// What the broker has against it.
        code: RDKafkaErrorCode,
        /// For a person.
        reason: String,
    },
    /// Nothing of it is visible; trying again may help.
    Failed(String),
    /// It may be visible or not. [`Writer::renew`] ends it one way or the other, and what is committed tells which.
    Unknown(String),
}

/// Positions that are part of a transaction, with what the broker checks them against.
pub(super) struct Positions<'a> {
    pub(super) offsets: &'a TopicPartitionList,
    pub(super) member: &'a ConsumerGroupMetadata,
}

/// Why a step did not succeed.
enum Fault {
    /// The transaction can be aborted, and the producer goes on.
    Abort(Ended),
    /// The producer is of no use any more.
    Renew(Ended),
}

/// One transactional producer, made anew when it is fenced or broken.
pub(super) struct Writer {
    clients: Arc<Clients>,
    transactional_id: String,
    producer: Option<BaseProducer<Deliveries>>,
    /// How many bytes a batch may have, once a topic was found that takes less than usual.
    batch_bytes: Option<usize>,
    tells_offsets: bool,
    /// How long a transaction may take before it is given up.
    patience: Duration,
    /// When the last transaction ended.
    ended: Option<Instant>,
    has_twin: bool,
}

impl Writer {
    /// Fences whoever had the same id before. To be followed by [`Writer::renew`].
    pub(super) fn new(clients: Arc<Clients>, transactional_id: String) -> Self {
        let (producer, batch_bytes, ended) = (None, None, None);
        Self {
            clients,
            transactional_id,
            producer,
            batch_bytes,
            tells_offsets: false,
            patience: PATIENCE,
            ended,
            has_twin: false,
        }
    }

    /// It also tells where records are, which costs a report of each.
    pub(super) const fn telling_offsets(mut self) -> Self {
        self.tells_offsets = true;
        self
    }

    /// Nobody waits for long from now on: each step may take so long.
    pub(super) fn hurry(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Waits until the next transaction can begin at once. What comes meanwhile can be part of it.
    pub(super) fn wait_for_markers(&mut self) {
        if let Some(ended) = self.ended.take() {
            let until = ended + MARKERS;
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.producer.is_some()
    }

    /// Whether the last transaction was ended by a producer of the same id, which began after this one.
    pub(super) fn has_twin(&self) -> bool {
        self.has_twin
    }

    /// A new producer. When it returns, every earlier transaction of the same id has ended, one way or the other.
    pub(super) fn renew(&mut self) -> Result<(), Error> {
        self.producer = None;
        let producer = self.clients.producer(&self.transactional_id, self.batch_bytes, !self.tells_offsets)?;
        producer.init_transactions(self.patience).map_err(|error| {
            let fatal = matches!(&error, KafkaError::Transaction(e) if is_forbidden(e.code()));
            let reason = format!("no transaction of `{}` can be begun: {error}", self.transactional_id);
            if fatal { Error::Fatal(reason) } else { Error::Transient(reason) }
        })?;
        self.producer = Some(producer);
        Ok(())
    }

    /// Writes all or nothing. If the broker finds something too large, it may be several records together, and which is not
    /// known.
    pub(super) fn write_together(&mut self, records: &[&Placed], positions: Option<&Positions<'_>>) -> Ended {
        self.wait_for_markers();
        self.write_once(records, positions)
    }

    /// Writes all or nothing. If the broker finds something too large, it is known which record that is.
    pub(super) fn write(&mut self, records: &[&Placed], positions: Option<&Positions<'_>>) -> Ended {
        match self.write_together(records, positions) {
            Ended::Refused { code: RDKafkaErrorCode::MessageSizeTooLarge, .. } if records.len() > 1 => {
                self.write_one_by_one(records, positions)
            }
            ended => ended,
        }
    }

    /// A broker measures whole batches, so what it found too large may be several records together, and does not tell which
    /// record it is. Each in a batch of its own, only a record that really is too large is refused.
    fn write_one_by_one(&mut self, records: &[&Placed], positions: Option<&Positions<'_>>) -> Ended {
        let before = self.batch_bytes.replace(1);
        let ended = match self.renew() {
            Ok(()) => self.write_once(records, positions),
            Err(error) => Ended::Failed(error.to_string()),
        };
        self.producer = None;
        self.batch_bytes = match &ended {
            Ended::Committed(_) => Some((before.unwrap_or(BATCH_BYTES) / 4).max(BATCH_MIN_BYTES)),
            _ => before,
        };
        ended
    }

    fn write_once(&mut self, records: &[&Placed], positions: Option<&Positions<'_>>) -> Ended {
        let Some(producer) = &self.producer else { return Ended::Failed("the producer is not ready".to_owned()) };
        let began = Instant::now();
        let attempted = attempt(producer, records, positions, (self.tells_offsets, self.patience));
        let took = began.elapsed();
        self.ended = Some(Instant::now());
        let (ended, is_broken) = match attempted {
            Ok(offsets) => (Ended::Committed(offsets), false),
            Err(Fault::Renew(ended)) => (ended, true),
            Err(Fault::Abort(ended)) => {
                let aborted = abort(producer, self.patience);
                if let Err(error) = &aborted {
                    tracing::warn!(%error, id = self.transactional_id, "A transaction could not be aborted; its producer is replaced.");
                }
                (ended, aborted.is_err())
            }
        };
        // The broker fences a producer whose transaction takes too long, too.
        self.has_twin = is_broken && is_fenced(producer) && took < PATIENCE / 2;
        if is_broken {
            self.producer = None;
        }
        match ended {
            Ended::Failed(reason) if self.has_twin => Ended::Aborted(reason),
            ended => ended,
        }
    }
}

impl Drop for Writer {
    /// Destroying a producer waits for what it has in flight; nothing of an unfinished transaction is worth that.
    fn drop(&mut self) {
        if let Some(producer) = &self.producer {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

fn attempt(
    producer: &BaseProducer<Deliveries>,
    records: &[&Placed],
    positions: Option<&Positions<'_>>,
    (tells_offsets, patience): (bool, Duration),
) -> Result<Vec<u64>, Fault> {
    drop(producer.context().take());
    producer.begin_transaction().map_err(|e| fault(&e))?;
    let deadline = Instant::now() + patience;
    for (number, placed) in records.iter().enumerate() {
        send(producer, placed, number, deadline)?;
    }
    let offsets = delivered(producer, records, deadline, tells_offsets)?;
    if let Some(Positions { offsets, member }) = positions {
        repeat(deadline, || producer.send_offsets_to_transaction(offsets, member, patience)).map_err(|e| fault(&e))?;
    }
    // From here on, an error that does not ask for an abort says nothing about what the broker did.
    repeat(deadline, || producer.commit_transaction(patience)).map_err(|error| match &error {
        KafkaError::Transaction(e) if e.txn_requires_abort() => fault(&error),
        error => Fault::Renew(Ended::Unknown(error.to_string())),
    })?;
    Ok(offsets)
}

/// Calls again what can be called again, until the time is up.
fn repeat(deadline: Instant, mut call: impl FnMut() -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        match call() {
            Err(KafkaError::Transaction(e))
                if e.is_retriable() && !e.txn_requires_abort() && Instant::now() < deadline =>
            {
                std::thread::park_timeout(LOOK_AGAIN);
            }
            result => return result,
        }
    }
}

fn send(producer: &BaseProducer<Deliveries>, placed: &Placed, number: usize, deadline: Instant) -> Result<(), Fault> {
    loop {
        match native::send(producer.client(), placed, number) {
            Ok(()) => return Ok(()),
            Err(RDKafkaErrorCode::QueueFull) if Instant::now() < deadline => {
                producer.poll(Duration::ZERO);
                std::thread::park_timeout(LOOK_AGAIN);
            }
            Err(code) if is_content(code) => return Err(Fault::Abort(refused(number, placed, code))),
            Err(code) => return Err(fault(&KafkaError::MessageProduction(code))),
        }
    }
}

/// Waits until all records are with the broker. Where each is reported, the reports must be read meanwhile.
fn delivered(
    producer: &BaseProducer<Deliveries>,
    records: &[&Placed],
    deadline: Instant,
    tells_offsets: bool,
) -> Result<Vec<u64>, Fault> {
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        if tells_offsets {
            std::thread::park_timeout(LOOK_AGAIN);
        } else {
            native::flush(producer.client(), FAILURES_ARE_READ);
        }
        producer.poll(Duration::ZERO);
    }
    let too_slow = || Fault::Abort(Ended::Failed("the broker took too long to take all records".to_owned()));
    let mut offsets = if tells_offsets { vec![None; records.len()] } else { Vec::new() };
    let mut failed: Option<(usize, RDKafkaErrorCode)> = None;
    for delivery in producer.context().take() {
        match delivery.result {
            Ok(offset) => offsets[delivery.number] = Some(offset),
            // The others of its request fail with it; the one that is at fault says more.
            Err(code) if failed.is_none_or(|(_, earlier)| !is_content(earlier)) => {
                failed = Some((delivery.number, code));
            }
            Err(_) => {}
        }
    }
    match failed {
        None => {}
        Some((number, code)) if is_content(code) => {
            return Err(Fault::Abort(refused(number, records[number], code)));
        }
        // What is not allowed fails before it is sent, and nothing says which topic it was.
        Some((_, code)) if is_purged(code) => {
            let failed = || Ended::Failed("records were given up before they were sent".to_owned());
            return Err(Fault::Abort(forbidden(producer, records).unwrap_or_else(failed)));
        }
        Some((_, code)) => return Err(Fault::Abort(Ended::Failed(format!("a record was not taken: {code}")))),
    }
    if producer.in_flight_count() > 0 {
        return Err(too_slow());
    }
    let all: Option<Vec<u64>> = offsets.into_iter().collect();
    all.ok_or_else(too_slow)
}

fn is_purged(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
}

/// The first record whose topic the principal may not write to, if the broker says so of one.
fn forbidden(producer: &BaseProducer<Deliveries>, records: &[&Placed]) -> Option<Ended> {
    let topics: Vec<&str> =
        records.iter().map(|placed| placed.topic.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let allowed = native::allowed(producer.client(), &topics, REQUEST_TIMEOUT).ok()?;
    let may_write = |topic: &str| match allowed.get(topic) {
        Some(Ok(Some(allowed))) => allowed.write,
        Some(Err(code)) => *code != RDKafkaErrorCode::TopicAuthorizationFailed,
        Some(Ok(None)) | None => true,
    };
    let index = records.iter().position(|placed| !may_write(placed.topic.as_str()))?;
    Some(refused(index, records[index], RDKafkaErrorCode::TopicAuthorizationFailed))
}

/// Aborts, once nothing is on its way any more: the reports of what is purged must be served by this thread.
fn abort(producer: &BaseProducer<Deliveries>, patience: Duration) -> KafkaResult<()> {
    producer.purge(PurgeConfig::default().queue().inflight());
    let deadline = Instant::now() + patience;
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        producer.poll(Duration::ZERO);
        std::thread::park_timeout(LOOK_AGAIN);
    }
    repeat(deadline, || producer.abort_transaction(patience))
}

fn fault(error: &KafkaError) -> Fault {
    let reason = error.to_string();
    let KafkaError::Transaction(transaction) = error else { return Fault::Abort(Ended::Failed(reason)) };
    let ended = if is_rebalance(transaction.code()) { Ended::Aborted(reason) } else { Ended::Failed(reason) };
    if transaction.txn_requires_abort() || (transaction.is_retriable() && !transaction.is_fatal()) {
        Fault::Abort(ended)
    } else {
        Fault::Renew(ended)
    }
}

/// Another producer of its id has begun, or the broker acts as if: whatever a call answers then, librdkafka keeps that as the reason.
fn is_fenced(producer: &BaseProducer<Deliveries>) -> bool {
    matches!(producer.client().fatal_error(), Some((RDKafkaErrorCode::Fenced, _)))
}

/// The group went on without this member, or with it in another generation; or another instance took over.
fn is_rebalance(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::RebalanceInProgress
            | Code::FencedInstanceId
            | Code::StaleMemberEpoch
            | Code::FencedMemberEpoch
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::Fenced
    )
}

/// The record itself is refused, or its topic takes none.
fn is_content(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::PolicyViolation
    )
}

/// The principal may not do this, now and later.
fn is_forbidden(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::TransactionalIdAuthorizationFailed | Code::ClusterAuthorizationFailed)
}

fn refused(index: usize, placed: &Placed, code: RDKafkaErrorCode) -> Ended {
    Ended::Refused { index, code, reason: format!("topic `{}`: the broker refuses the record: {code}", placed.topic) }
}
