//! Many functions in one process.

use millrace_tests::many::{self, FUNCTIONS, MEMORY_MAX_MIB, THREADS_MAX};
use millrace_tests::process::{Dev, Kafka};

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
