//! The real binary on a real Kafka.

use std::collections::HashMap;

use flights_sample::Row;
use millrace_tests::process::{Api, Dev, Kafka};

use super::{assert_each_flight_is_there_once, events};

/// How often an instance is killed while others work.
const KILLS: usize = 6;
const ROWS: usize = 3000;

/// Two instances work at the same time, and one after the other is killed and replaced in the middle of what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_effects_happen_once_and_in_order_whenever_an_instance_is_killed() {
    let Some(kafka) = Kafka::start() else { return };
    let data = tempfile::tempdir().expect("a directory");
    let api = Api::default();
    let mut rows: Vec<Row> = flights_sample::rows().into_iter().filter(|row| row.key.is_some()).collect();
    let mut seen = HashMap::new();
    rows.retain(|row| seen.insert(row.value.clone(), ()).is_none());
    rows.truncate(ROWS);
    let events = events(&rows);
    let start = |number: usize| Dev::serve("flights", &data.path().join(number.to_string()), &kafka.bootstrap);
    let mut instances = vec![start(0), start(1)];
    for (round, part) in events.chunks(ROWS.div_ceil(KILLS + 1)).enumerate() {
        for batch in part.chunks(20) {
            // Not known, or not now: the same events once more.
            while api.publish(&instances[1].url, "flights-raw", batch).await.is_none_or(|status| status.as_u16() != 202)
            {
            }
        }
        if round < KILLS {
            instances.remove(0).kill();
            instances.push(start(round + 2));
        }
    }
    let last = instances.pop().expect("two instances run");
    assert!(instances.remove(0).stop(), "an instance that is asked to stop ends well");
    api.settled(&last.url).await;
    assert_each_flight_is_there_once(&api, &last.url, &rows).await;
    assert!(last.stop(), "the last one too");
}
