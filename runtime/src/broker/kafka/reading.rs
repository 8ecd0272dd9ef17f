//! Reading a partition outside of any group: for people, and for what is kept in topics of ours.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_core::record::Record;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use super::clients::{
    self, Clients, Quiet, REQUEST_TIMEOUT, Shared, at, has_reached, lock, partitions, signed, unreachable_broker,
};
use super::{KafkaLog, native, restore};
use crate::broker::{Error, Spot};

/// Bytes of records after which a read ends.
const READ_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Records read at once of a topic that is read as a whole.
const PAGE_RECORDS: usize = 1000;
/// Open transactions are waited out for so long; brokers end ours long before.
const OPEN_AT_MOST: Duration = Duration::from_secs(60);

/// One consumer for all reads of the process, one after the other.
pub(super) struct Reading {
    reader: Mutex<Shared<Quiet>>,
}

/// Records with their offsets, where to go on, and where the partition ended when they were asked for.
pub(super) struct Page {
    pub(super) records: Vec<(u64, Record)>,
    pub(super) next: u64,
    pub(super) end: u64,
}

impl Reading {
    pub(super) fn new(clients: &Clients) -> Result<Self, Error> {
        Ok(Self { reader: Mutex::new(Arc::new(clients.reader()?)) })
    }

    /// The oldest offset of a partition, and the one after its last stable record. Blocks.
    pub(super) fn bounds(&self, topic: &str, partition: u32) -> Result<(u64, u64), Error> {
        let reader = Arc::clone(&*lock(&self.reader));
        clients::bounds(&reader, topic, partition)
    }

    /// The offset of a place in a partition. Blocks.
    pub(super) fn find(&self, topic: &str, partition: u32, spot: Spot) -> Result<u64, Error> {
        let time = match spot {
            Spot::Earliest => return Ok(self.bounds(topic, partition)?.0),
            Spot::Latest => return Ok(self.bounds(topic, partition)?.1),
            Spot::Offset(offset) => return Ok(offset),
            Spot::Time(time) => time,
        };
        let (_, end) = self.bounds(topic, partition)?;
        // What is not a whole millisecond is rounded up: a record is not to be older than asked for.
        let millis = time.as_nanos().div_ceil(1_000_000);
        let millis = Offset::Offset(i64::try_from(millis).unwrap_or(i64::MAX));
        let reader = Arc::clone(&*lock(&self.reader));
        let found = reader.offsets_for_times(partitions([(topic, partition, millis)]), REQUEST_TIMEOUT);
        let found = found.map_err(|e| unreachable_broker("find a time", &e))?;
        let found = found.elements().first().map(|element| (element.error(), element.offset()));
        match found {
            Some((Ok(()), Offset::Offset(offset))) => Ok(u64::try_from(offset).unwrap_or_default().min(end)),
            Some((Err(error), _)) => Err(unreachable_broker("find a time", &error)),
            // There is no record so young.
            Some(_) | None => Ok(end),
        }
    }

    /// Waits until no transaction is open below `end`, though not for ever: a topic that was made anew may end before. Blocks.
    pub(super) fn wait_until_stable(&self, topic: &str, partition: u32, end: u64) -> Result<(), Error> {
        let (reader, began) = (Arc::clone(&*lock(&self.reader)), Instant::now());
        restore::wait_until_stable(&reader, topic, partition, end, || began.elapsed() < OPEN_AT_MOST)
    }

    /// Records from an offset, or the oldest one there is, on; none at the end. Blocks.
    pub(super) fn page(&self, topic: &str, partition: u32, from: u64, max_records: usize) -> Result<Page, Error> {
        let (earliest, end) = self.bounds(topic, partition)?;
        let from = from.max(earliest);
        if from >= end || max_records == 0 {
            return Ok(Page { records: Vec::new(), next: from, end });
        }
        let reader = lock(&self.reader);
        let unreadable = |e: &KafkaError| unreachable_broker("read a topic", e);
        reader.assign(&partitions([(topic, partition, at(from))])).map_err(|e| unreadable(&e))?;
        let (mut page, mut bytes) = (Page { records: Vec::new(), next: from, end }, 0);
        let began = Instant::now();
        let ended = loop {
            match reader.poll(REQUEST_TIMEOUT) {
                Some(Ok(message)) if message.topic() == topic && message.partition() == signed(partition) => {
                    let (offset, record) = native::read(&message);
                    bytes += record.size_bytes();
                    page.records.push((offset, record));
                    page.next = offset + 1;
                    if page.records.len() >= max_records || bytes >= READ_MAX_BYTES {
                        break Ok(());
                    }
                }
                // What an earlier read left.
                Some(Ok(_)) => {}
                // The last records can be none, such as the marks of transactions. Before the end it is not the end.
                Some(Err(KafkaError::PartitionEOF(ended))) => {
                    if ended == signed(partition) && has_reached(&reader, topic, partition, end) {
                        page.next = page.next.max(end);
                        break Ok(());
                    }
                }
                Some(Err(error)) if goes_on_after(&error) && began.elapsed() < REQUEST_TIMEOUT => {}
                Some(Err(error)) => break Err(unreadable(&error)),
                None => {
                    break Err(Error::Transient(format!("Kafka gave nothing of {topic}/{partition} for ten seconds")));
                }
            }
        };
        reader.unassign().map_err(|e| unreadable(&e))?;
        ended.map(|()| page)
    }
}

/// Whether reading goes on after an error.
pub(super) fn goes_on_after(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        // A connection was lost, possibly long ago: librdkafka connects again.
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve) => true,
        // librdkafka looks for the coordinator of the group that readers name, which the principal need not be allowed to: they
        // are never in it, and commit nothing.
        Some(Code::GroupAuthorizationFailed) => true,
        _ => false,
    }
}

/// Reads a topic of one partition up to its end, and answers with the offset to go on from.
pub(super) fn read_on(log: &KafkaLog, topic: &str, from: u64, each: impl FnMut(u64, &Record)) -> Result<u64, Error> {
    let end = log.end(topic, 0)?;
    read_between(log, topic, from..end, each)
}

/// Reads a topic of one partition from an offset to an end that was asked for, and answers with the offset to go on from.
pub(super) fn read_between(
    log: &KafkaLog,
    topic: &str,
    offsets: Range<u64>,
    mut each: impl FnMut(u64, &Record),
) -> Result<u64, Error> {
    let Range { start: mut next, end } = offsets;
    if next < end {
        log.reading().wait_until_stable(topic, 0, end)?;
    }
    while next < end {
        let page = log.reading().page(topic, 0, next, PAGE_RECORDS)?;
        page.records.iter().for_each(|(offset, record)| each(*offset, record));
        if page.next <= next {
            let reason = "a transaction in it is open for long, or it was made anew";
            return Err(Error::Transient(format!("topic `{topic}` cannot be read beyond {next}: {reason}")));
        }
        next = page.next;
    }
    Ok(next)
}
