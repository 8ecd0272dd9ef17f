//! Records as Kafka's clients give and take them.

use bytes::Bytes;
use millrace_core::name::Topic;
use millrace_core::record::Record;
use millrace_core::time::Timestamp;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::BaseRecord;

/// A record for one partition.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    pub(super) record: Record,
}

/// A message in memory of our own.
pub(super) fn read(message: &BorrowedMessage<'_>) -> (u64, Record) {
    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0);
    let record = Record {
        // More milliseconds than nanoseconds can hold are nonsense, and no reason to stop.
        timestamp: Timestamp::from_nanos(millis.saturating_mul(1_000_000)),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: super::native::headers(message),
    };
    (u64::try_from(message.offset()).unwrap_or_default(), record)
}

/// The same on its way into Kafka, with its number for the report of its delivery.
pub(super) fn send(placed: &Placed, number: usize) -> BaseRecord<'_, [u8], [u8], usize> {
    let Placed { topic, partition, record } = placed;
    let mut to = BaseRecord::with_opaque_to(topic.as_str(), number).partition(super::clients::signed(*partition));
    to.timestamp = i64::try_from(record.timestamp.as_millis()).ok();
    to.key = record.key.as_deref();
    to.payload = record.value.as_deref();
    if !record.headers.is_empty() {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.iter().count());
        for (name, value) in record.headers.iter() {
            headers = headers.insert(Header { key: name, value: value.as_deref() });
        }
        to.headers = Some(headers);
    }
    to
}
