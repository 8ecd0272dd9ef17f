//! Who did what, kept in a topic of the log.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_core::audit::{Outcome, Record, Throttles};
use millrace_core::limits;
use millrace_core::name::{InvalidName, Topic, audit_topic};
use millrace_core::record;
use millrace_core::time::Timestamp;

use crate::api::Journal;
use crate::broker::{CatalogError, Log, Outgoing, Placing, PublishError, Retention, TopicInfo};
use crate::clock::Clock;
use crate::registry::lock;

/// Records that are read at once.
const PAGE_RECORDS: usize = 1000;

/// Writes down who did what. Cheap to clone.
pub(super) struct Ledger<L> {
    log: Arc<L>,
    topic: Topic,
    clock: Clock,
    refusals: Arc<Mutex<Throttles>>,
    lost: Arc<AtomicU64>,
}

impl<L> Clone for Ledger<L> {
    fn clone(&self) -> Self {
        Self {
            log: Arc::clone(&self.log),
            topic: self.topic.clone(),
            clock: self.clock,
            refusals: Arc::clone(&self.refusals),
            lost: Arc::clone(&self.lost),
        }
    }
}

impl<L> fmt::Debug for Ledger<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl<L: Log> Ledger<L> {
    pub(super) fn new(log: Arc<L>, prefix: &str, clock: Clock) -> Result<Self, InvalidName> {
        Ok(Self { log, topic: audit_topic(prefix)?, clock, refusals: Arc::default(), lost: Arc::default() })
    }

    /// Writes records, all or nothing. The topic is made when it is needed first.
    async fn append(&self, records: &[Record]) -> Result<(), String> {
        let outgoing = || {
            let value = |record: &Record| Some(record.clone().encode().into());
            let record =
                |one| record::Record { timestamp: self.clock.now(), value: value(one), ..record::Record::default() };
            let placed =
                |one| Outgoing { topic: self.topic.clone(), placing: Placing::Partition(0), record: record(one) };
            records.iter().map(placed).collect()
        };
        match self.log.publish(outgoing()).await {
            Err(PublishError::UnknownTopic { .. }) => {
                let retention = Retention {
                    max_age: Some(limits::AUDIT_RETENTION_AGE),
                    max_bytes: Some(limits::AUDIT_RETENTION_BYTES),
                };
                self.log.make_internal(self.topic.clone(), retention).await.map_err(|e| e.to_string())?;
                self.log.publish(outgoing()).await.map(drop).map_err(|e| e.to_string())
            }
            published => published.map(drop).map_err(|e| e.to_string()),
        }
    }
}

impl<L: Log> Journal for Ledger<L> {
    fn write(&self, record: Record) -> BoxFuture<'_, ()> {
        async move {
            let mut record = record;
            if record.result == Outcome::Refused {
                match lock(&self.refusals).admit(&record.who.token, self.clock.now()) {
                    Some(omitted) => record.omitted = omitted,
                    None => return,
                }
            }
            let records = record.parts();
            let written = tokio::time::timeout(limits::AUDIT_WRITE_TIMEOUT, self.append(&records)).await;
            let unknown = |_| Err("the log did not answer in time, and has it or not".to_owned());
            let Err(reason) = written.unwrap_or_else(unknown) else { return };
            self.lost.fetch_add(records.len() as u64, Ordering::Relaxed);
            for record in records {
                let record = String::from_utf8_lossy(&record.encode()).into_owned();
                tracing::error!(topic = %self.topic, record, reason, "It could not be written who did what; this is the record.");
            }
        }
        .boxed()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Range<u64>, CatalogError>> {
        async {
            let topics = self.log.topics().await?;
            let own = topics.iter().find(|info| info.name == self.topic.as_str());
            let bounds = |info: &TopicInfo| info.partitions.first().map(|partition| partition.earliest..partition.next);
            Ok(own.and_then(bounds).unwrap_or_default())
        }
        .boxed()
    }

    fn read(&self, offsets: Range<u64>) -> BoxFuture<'_, Result<Vec<(u64, Record)>, CatalogError>> {
        async move {
            let (mut found, mut next) = (Vec::new(), offsets.start);
            while next < offsets.end {
                let fetched = self.log.read(&self.topic, 0, next, PAGE_RECORDS).await?;
                let there = fetched.records.into_iter().filter(|(offset, _)| *offset < offsets.end);
                found.extend(there.map(|(offset, record)| (offset, read(record.timestamp, record.value.as_deref()))));
                // Nothing follows.
                if fetched.next <= next {
                    break;
                }
                next = fetched.next;
            }
            Ok(found)
        }
        .boxed()
    }
}

fn read(at: Timestamp, value: Option<&[u8]>) -> Record {
    Record::decode(at, value.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use millrace_core::audit::Who;

    use super::*;
    use crate::broker::Broker as _;
    use crate::broker::embedded::{EmbeddedLog, Options};

    fn open(directory: &tempfile::TempDir, size_max_bytes: u64) -> Ledger<EmbeddedLog> {
        let clock = Clock::starting_at(Timestamp::from_millis(9000));
        let options = Options { clock, size_max_bytes, ..Options::new(directory.path().join("log")) };
        Ledger::new(Arc::new(EmbeddedLog::open(options).unwrap()), "millrace", clock).unwrap()
    }

    fn record(n: usize, result: Outcome) -> Record {
        let who = Who { by: "ci".to_owned(), ..Who::default() };
        Record { at_ms: n as u64, who, action: "pause".to_owned(), result, ..Record::default() }
    }

    async fn all<L: Log>(ledger: &Ledger<L>) -> Vec<Record> {
        let bounds = ledger.bounds().await.unwrap();
        let read = ledger.read(bounds).await.unwrap();
        assert!(read.iter().map(|(offset, _)| *offset).eq(0..read.len() as u64));
        read.into_iter().map(|(_, record)| record).collect()
    }

    #[tokio::test]
    async fn what_is_written_is_there_after_a_restart_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(&directory, 1 << 30);
        assert_eq!(ledger.bounds().await.unwrap(), 0..0, "nothing was ever written");
        let records: Vec<Record> = (0..10).map(|n| record(n, Outcome::Done)).collect();
        for record in &records {
            ledger.write(record.clone()).await;
        }
        assert_eq!((all(&ledger).await, ledger.lost()), (records.clone(), 0));
        drop(ledger);
        let ledger = open(&directory, 1 << 30);
        assert_eq!(ledger.bounds().await.unwrap(), 0..10);
        assert_eq!(ledger.read(3..5).await.unwrap().into_iter().map(|(offset, _)| offset).collect::<Vec<_>>(), [3, 4]);
        let many = Record { functions: vec!["shop.pay".to_owned(); 250], ..record(10, Outcome::Done) };
        ledger.write(many).await;
        assert_eq!(
            all(&ledger).await[10..].iter().map(|part| part.functions.len()).collect::<Vec<_>>(),
            [100, 100, 50]
        );
        // What somebody else wrote there is told as unreadable.
        let record = record::Record { value: Some("{".into()), ..record::Record::default() };
        let foreign = Outgoing { topic: ledger.topic.clone(), placing: Placing::Partition(0), record };
        ledger.log.publish(vec![foreign]).await.unwrap();
        assert_eq!(all(&ledger).await.last().unwrap().action, "unknown");
    }

    #[tokio::test]
    async fn a_flood_of_refusals_keeps_no_change_from_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(&directory, 1 << 30);
        let at_once = limits::AUDITED_REFUSALS_AT_ONCE as usize;
        for n in 0..3 * at_once {
            ledger.write(record(n, Outcome::Refused)).await;
            if n % 10 == 0 {
                ledger.write(record(n, Outcome::Done)).await;
            }
        }
        let (records, seconds) = (all(&ledger).await, ledger.clock.now().since(Timestamp::from_millis(9000)).as_secs());
        let refused = records.iter().filter(|record| record.result == Outcome::Refused);
        assert!((at_once..=at_once + usize::try_from(seconds).unwrap()).contains(&refused.count()));
        assert_eq!(records.iter().filter(|record| record.result == Outcome::Done).count(), 3 * at_once / 10);
    }

    #[tokio::test]
    async fn a_flood_of_refusals_of_one_hides_none_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(&directory, 1 << 30);
        let of = |token: &str, n: usize| {
            let who = Who { token: token.to_owned(), ..Who::default() };
            Record { who, ..record(n, Outcome::Refused) }
        };
        for n in 0..2 * limits::AUDITED_REFUSALS_AT_ONCE as usize {
            ledger.write(of("", n)).await;
        }
        for token in ["9f3a6c01d2e4", "070707070707"] {
            ledger.write(of(token, 1)).await;
        }
        let last: Vec<_> = all(&ledger).await.into_iter().rev().take(2).map(|record| record.who.token).collect();
        assert_eq!(last, ["070707070707", "9f3a6c01d2e4"]);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(&directory, 1);
        ledger.write(record(1, Outcome::Done)).await;
        ledger.write(record(2, Outcome::Failed)).await;
        assert_eq!((all(&ledger).await, ledger.lost()), (Vec::new(), 2));
    }
}
