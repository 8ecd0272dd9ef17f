//! One thread that publishes: what waits goes into one transaction, so that each batch is there as a whole or not at all.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use millrace_core::limits;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::clients::Clients;
use super::record::Placed;
use super::writer::{Ended, Writer};
use crate::broker::{Error, Placement, PublishError};

/// Bytes that one transaction takes of what waits; a single batch can be larger.
const GROUP_MAX_BYTES: usize = 8 * limits::MIB;
/// Tries of one group when the broker cannot be reached, before its publishers are told.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// A batch that waits.
struct Batch {
    records: Vec<Placed>,
    reply: oneshot::Sender<Result<Vec<Placement>, PublishError>>,
}

impl Batch {
    fn bytes(&self) -> usize {
        self.records.iter().map(|placed| placed.record.size_bytes()).sum()
    }
}

/// The way to the thread. It ends with the last of these.
#[derive(Clone)]
pub(super) struct Publisher(SyncSender<Batch>);

impl Publisher {
    /// Starts the thread.
    pub(super) fn start(clients: Arc<Clients>) -> Result<Self, Error> {
        let (sender, batches) = sync_channel(limits::PUBLISHES_WAITING_MAX);
        let id = clients.names.publisher_id();
        let writer = Writer::new(clients, id).telling_offsets();
        let thread = std::thread::Builder::new().name("kafka-publish".to_owned()).spawn(move || run(writer, &batches));
        thread.map_err(|e| Error::Fatal(format!("no thread can be started: {e}")))?;
        Ok(Self(sender))
    }

    /// Writes a batch; durable when it returns.
    pub(super) async fn publish(&self, records: Vec<Placed>) -> Result<Vec<Placement>, PublishError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || PublishError::Broker(Error::Transient("publishing has ended".to_owned()));
        self.0.try_send(Batch { records, reply }).map_err(|e| match e {
            TrySendError::Full(_) => PublishError::Busy,
            TrySendError::Disconnected(_) => stopped(),
        })?;
        answer.await.map_err(|_| stopped())?
    }
}

fn run(mut writer: Writer, batches: &Receiver<Batch>) {
    while let Ok(first) = batches.recv() {
        writer.wait_for_markers();
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < GROUP_MAX_BYTES
            && let Ok(next) = batches.try_recv()
        {
            bytes += next.bytes();
            group.push(next);
        }
        write(&mut writer, group);
    }
}

fn write(writer: &mut Writer, mut group: Vec<Batch>) {
    let records: Vec<&Placed> = group.iter().flat_map(|batch| &batch.records).collect();
    match attempt(writer, &records) {
        Ended::Committed(offsets) => {
            let mut offsets = offsets.into_iter();
            for batch in group {
                let places = batch.records.iter().zip(offsets.by_ref());
                let places = places.map(|(placed, offset)| Placement { partition: placed.partition, offset });
                drop(batch.reply.send(Ok(places.collect())));
            }
        }
        Ended::Refused { index, code, reason } => {
            // The others must not suffer for it.
            let mut end = 0;
            let at_fault = group.iter().position(|batch| {
                end += batch.records.len();
                index < end
            });
            let batch = group.remove(at_fault.expect("the record that is refused is one of the group's"));
            let error = refusal(&batch, index + batch.records.len() - end, (code, &reason));
            drop(batch.reply.send(Err(error)));
            if !group.is_empty() {
                write(writer, group);
            }
        }
        Ended::Aborted(reason) | Ended::Failed(reason) => {
            tell(group, &format!("Kafka did not take the records: {reason}"));
        }
        Ended::Unknown(reason) => {
            tell(
                group,
                &format!(
                    "it is not known whether Kafka has the records; publish them again, with the same ids: {reason}"
                ),
            );
        }
    }
}

/// Tries until it is known how it ended, or the broker has had its chances.
fn attempt(writer: &mut Writer, records: &[&Placed]) -> Ended {
    let mut ended = Ended::Failed("it was not tried".to_owned());
    for _ in 0..TRIES {
        if !writer.is_ready()
            && let Err(error) = writer.renew()
        {
            ended = Ended::Failed(error.to_string());
        } else {
            ended = writer.write(records, None);
        }
        if !matches!(ended, Ended::Aborted(_) | Ended::Failed(_)) {
            break;
        }
        std::thread::park_timeout(PAUSE);
    }
    ended
}

fn refusal(batch: &Batch, index: usize, (code, reason): (RDKafkaErrorCode, &str)) -> PublishError {
    use RDKafkaErrorCode as Code;
    let Placed { topic, record, .. } = &batch.records[index];
    let topic = topic.clone();
    match code {
        Code::MessageSizeTooLarge => {
            // What the topic takes is asked for by whoever tells of it.
            let max_bytes = limits::EVENT_MAX_BYTES;
            PublishError::TooLarge { index, topic, size_bytes: record.size_bytes(), max_bytes }
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            PublishError::UnknownTopic { index, topic }
        }
        _ => PublishError::Broker(Error::Transient(format!("record {index}: {reason}"))),
    }
}

fn tell(group: Vec<Batch>, reason: &str) {
    for batch in group {
        drop(batch.reply.send(Err(Error::Transient(reason.to_owned()).into())));
    }
}
