//! Errors that a broker cannot be made to have when they are wanted, on librdkafka's own imitation of one. It proves nothing of
//! transactions: it shows what was aborted.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::super::clients::Clients;
use super::super::names::Names;
use super::super::record::Placed;
use super::super::writer::{Ended, Writer};
use super::support::record;

/// What a broker answers whose disk takes nothing, however often it is asked in one of our transactions.
const DISK_FULL: [RDKafkaRespErr; 1_000] = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR; 1_000];

#[test]
fn what_a_full_disk_does_not_take_is_not_told_to_be_written_and_can_be_written_later() {
    // The cluster makes a client of its own before ours.
    openssl_sys::init();
    let brokers = MockCluster::new(1).unwrap();
    brokers.create_topic("orders", 1, 1).unwrap();
    let clients = Clients {
        bootstrap: brokers.bootstrap_servers(),
        properties: BTreeMap::new(),
        names: Names::new("millrace", "a"),
        source_bytes: Arc::default(),
    };
    let placed = Placed { topic: "orders".parse().unwrap(), partition: 0, record: record("a") };
    let mut writer = Writer::new(Arc::new(clients), "millrace.shop.pay.a".to_owned()).telling_offsets();
    writer.renew().unwrap();

    // For a moment: librdkafka asks again.
    brokers.request_errors(RDKafkaApiKey::Produce, &DISK_FULL[..3]);
    let ended = writer.write(&[&placed], None);
    assert!(matches!(&ended, Ended::Committed(offsets) if offsets.len() == 1), "{ended:?}");

    // For as long as a transaction may take.
    brokers.request_errors(RDKafkaApiKey::Produce, &DISK_FULL);
    let ended = writer.write(&[&placed], None);
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");

    // What comes right after it can still be given up with it; whoever writes tries again.
    brokers.clear_request_errors(RDKafkaApiKey::Produce);
    let mut again = || {
        if !writer.is_ready() {
            writer.renew().unwrap();
        }
        let ended = writer.write(&[&placed], None);
        std::thread::park_timeout(std::time::Duration::from_millis(100));
        matches!(&ended, Ended::Committed(offsets) if offsets.len() == 1)
    };
    assert!((0..100).any(|_| again()), "it is never written");
}
