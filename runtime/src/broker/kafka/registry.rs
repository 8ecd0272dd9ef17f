//! Deployments of functions, as records of one topic of one partition that keeps everything. Key: the function's name; value:
//! frame (version, checksum) around the number that the deployment builds on, and its content.
//!
//! Of two that build on the same number, the first in the log counts, and every reader sees that; so whoever writes one reads
//! up to it before he answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::record::Record;

use super::KafkaLog;
use super::member::commit::plain;
use super::record::Placed;
use super::{reading, topics};
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{CatalogError, DeployError, Deployment, Error};

const KIND: &str = "a deployment";
const VERSION: u8 = 1;

fn encode(function: &FunctionName, previous: u64, content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(VERSION);
    encoder.varint(previous);
    encoder.raw(content);
    encoder.seal(function.as_str().as_bytes()).into()
}

fn decode(function: &FunctionName, value: &[u8]) -> Result<(u64, Bytes), Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, function.as_str().as_bytes(), value)?;
    let previous = decoder.varint()?;
    Ok((previous, Bytes::copy_from_slice(decoder.remainder())))
}

/// The deployments that count, in the order of the log.
#[derive(Debug, Default)]
struct Deployments {
    latest: BTreeMap<FunctionName, u64>,
    all: Vec<Deployment>,
    /// The record that was looked for, if it counts.
    found: Option<u64>,
}

impl Deployments {
    fn take(&mut self, offset: u64, record: &Record, looked_for: Option<u64>) {
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let read = key.parse::<FunctionName>().map_err(|e| e.to_string()).and_then(|function| {
            let value = record.value.as_deref().unwrap_or_default();
            decode(&function, value).map(|read| (function, read)).map_err(|e| e.to_string())
        });
        let (function, (previous, content)) = match read {
            Ok(read) => read,
            Err(error) => return tracing::error!(offset, error, "A deployment cannot be read and is left out."),
        };
        let latest = self.latest.entry(function.clone()).or_default();
        if *latest == previous {
            *latest += 1;
            if looked_for == Some(offset) {
                self.found = Some(*latest);
            }
            self.all.push(Deployment { function, number: *latest, content });
        }
    }
}

impl KafkaLog {
    /// All deployments of all functions, by function and number. Blocks.
    fn read_deployments(&self, looked_for: Option<u64>) -> Result<Deployments, Error> {
        let mut deployments = Deployments::default();
        let topic = self.clients().names.registry();
        if self.partition_count(&topic)?.is_some() {
            reading::read_on(self, &topic, 0, |offset, record| deployments.take(offset, record, looked_for))?;
        }
        Ok(deployments)
    }
}

impl super::super::Deployments for KafkaLog {
    async fn deployments(&self, seen: Option<u64>) -> Result<crate::broker::Deployed, Error> {
        loop {
            let read = self.blocking(|log| Ok(log.read_deployments(None)?)).await;
            let mut deployments = read.map_err(CatalogError::into_broker)?.all;
            if seen != Some(deployments.len() as u64) {
                let seen = deployments.len() as u64;
                deployments.sort_by(|a, b| (&a.function, a.number).cmp(&(&b.function, b.number)));
                return Ok(crate::broker::Deployed { seen, deployments });
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }

    async fn put_component(&self, _: millrace_core::digest::Digest, _: Bytes) -> Result<(), Error> {
        Err(Error::Transient("not yet".to_owned()))
    }

    async fn has_component(&self, _: millrace_core::digest::Digest) -> Result<bool, Error> {
        Ok(false)
    }

    async fn component(&self, _: millrace_core::digest::Digest) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }

    async fn components(&self) -> Result<Vec<millrace_core::digest::Digest>, Error> {
        Ok(Vec::new())
    }

    async fn remove_component(&self, _: millrace_core::digest::Digest) -> Result<(), Error> {
        Ok(())
    }

    async fn report(&self, _: Bytes) -> Result<(), Error> {
        Ok(())
    }

    async fn reports(&self) -> Result<Vec<crate::broker::Report>, Error> {
        Ok(Vec::new())
    }

    async fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> Result<u64, DeployError> {
        let topic = Topic::new(self.clients().names.registry()).map_err(|e| Error::Fatal(e.to_string()))?;
        let name = topic.clone();
        topics::make_registry(self.admin(), self.replication(), name.clone())
            .await
            .map_err(CatalogError::into_broker)?;
        let known = self.blocking(move |log| Ok(log.wait_for_topics(&[name])?)).await;
        known.map_err(CatalogError::into_broker)?;
        let value = encode(&function, previous, &content);
        let record =
            plain(self.clock().now(), Some(Bytes::copy_from_slice(function.as_str().as_bytes())), value.into());
        let placed = self.publisher().publish(vec![Placed { topic, partition: 0, record }]).await;
        let placed = placed.map_err(|e| Error::Transient(format!("a deployment cannot be written: {e}")))?;
        let offset = placed.first().map(|place| place.offset);
        let read = self.blocking(move |log| Ok(log.read_deployments(offset)?)).await;
        let read = read.map_err(CatalogError::into_broker)?;
        read.found.ok_or_else(|| {
            let latest = read.latest.get(&function).copied().unwrap_or_default();
            DeployError::Conflict { function, expected: previous, latest }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function() -> FunctionName {
        "shop.pay".parse().unwrap()
    }

    fn record(previous: u64, content: &'static str) -> Record {
        let value = encode(&function(), previous, content.as_bytes());
        plain(millrace_core::time::Timestamp::EPOCH, Some(Bytes::from_static(b"shop.pay")), value.into())
    }

    #[test]
    fn of_two_that_build_on_the_same_the_first_counts() {
        let mut deployments = Deployments::default();
        for (offset, previous, content) in [(0, 0, "a"), (2, 1, "b"), (4, 1, "c"), (6, 2, "d"), (8, 9, "e")] {
            deployments.take(offset, &record(previous, content), Some(4));
        }
        let all: Vec<_> = deployments.all.iter().map(|one| (one.number, &one.content[..])).collect();
        assert_eq!(all, [(1, &b"a"[..]), (2, b"b"), (3, b"d")]);
        assert_eq!(deployments.found, None, "the one at offset 4 came too late");
    }

    #[test]
    fn the_layout_is_pinned() {
        assert_eq!(encode(&function(), 3, b"x"), PINNED);
    }

    const PINNED: [u8; 7] = [1, 216, 183, 215, 188, 3, 120];

    proptest! {
        #[test]
        fn a_deployment_reads_back(previous: u64, content: Vec<u8>) {
            let read = decode(&function(), &encode(&function(), previous, &content));
            prop_assert_eq!(read, Ok((previous, Bytes::from(content))));
        }

        #[test]
        fn foreign_bytes_never_panic(key: Vec<u8>, bytes: Vec<u8>) {
            drop(decode(&function(), &bytes));
            let record = plain(millrace_core::time::Timestamp::EPOCH, Some(key.into()), bytes.into());
            Deployments::default().take(0, &record, None);
        }
    }
}
