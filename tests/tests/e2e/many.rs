//! Many functions, and many partitions, in one process.

use millrace_tests::many::{self, FUNCTIONS, MEMORY_MAX_MIB, THREADS_MAX};
use millrace_tests::process::{Api, Dev, Kafka, application};
use serde_json::json;

/// Threads of a process that has no functions, and some more.
const THREADS_OF_ITSELF: f64 = 40.0;
/// Memory of a process that has no functions, and some more.
const MEMORY_OF_ITSELF_MIB: f64 = 100.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_hundred_functions_run_in_one_process() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    many::write(directory.path());
    let instance = Dev::serve(directory.path(), &directory.path().join("data"), &kafka.bootstrap);
    many::handle(&instance).await;
    let (threads, memory) = (f64::from(u32::try_from(instance.threads()).expect("few")), instance.peak_mib());
    let all = f64::from(FUNCTIONS);
    assert!(threads <= THREADS_MAX * all + THREADS_OF_ITSELF, "{threads} threads");
    assert!(memory <= MEMORY_MAX_MIB * all + MEMORY_OF_ITSELF_MIB, "{memory} MiB");
    assert!(instance.stop(), "an instance that is asked to stop ends well");
}

/// More partitions have events than there are instances of handlers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_partition_has_its_turn() {
    const INSTANCES: usize = 1000;
    const EVENTS: u32 = 6000;
    let directory = tempfile::tempdir().expect("a directory");
    let function = "[functions.f]\ncomponent = 'guest.wasm'\ntopics = ['in']\n";
    application(directory.path(), &format!("application = 'wide'\n[topics.in]\npartitions = 1024\n{function}"));
    let dev = Dev::start(&directory.path().to_string_lossy(), &directory.path().join("data"));
    let api = Api::default();
    let event = |number: u32| {
        let id = number.to_string();
        json!({"specversion": "1.0", "id": id, "source": "/test", "type": "o", "partitionkey": id}).to_string()
    };
    let events: Vec<String> = (0..EVENTS).map(event).collect();
    for batch in events.chunks(1000) {
        assert_eq!(api.publish(&dev.url, "in", batch).await.map(|status| status.as_u16()), Some(202));
    }
    let status = api.settled(&dev.url).await;
    let function = &status["functions"][0];
    assert_eq!(function["totals"]["completed"], EVENTS, "{}", function["totals"]);
    let units = function["units"].as_array().expect("partitions");
    let with_events = units.iter().filter(|unit| unit["totals"]["completed"].as_u64() > Some(0)).count();
    assert!(with_events > INSTANCES, "{with_events} partitions had events");
}
