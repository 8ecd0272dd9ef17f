//! What each of a hundred functions in one process takes.

use millrace_tests::many::{self, FUNCTIONS, MEMORY_MAX_MIB, THREADS_MAX};
use millrace_tests::process::{Dev, Kafka};

use super::super::figure::{Figure, Goal};

pub(crate) fn measure() -> Vec<Figure> {
    let Some(kafka) = Kafka::start() else { return Vec::new() };
    let directory = tempfile::tempdir_in(super::super::target()).expect("a directory");
    many::write(directory.path());
    let instance = Dev::serve(directory.path(), &directory.path().join("data"), &kafka.bootstrap);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(many::handle(&instance));
    let each = |all: f64| all / f64::from(FUNCTIONS);
    let threads = each(f64::from(u32::try_from(instance.threads()).expect("few")));
    vec![
        Figure::new("kafka.functions.threads", threads, "threads", THREADS_MAX, Goal::RatioAtMost(1.0)),
        Figure::new(
            "kafka.functions.memory_mib",
            each(instance.peak_mib()),
            "MiB",
            MEMORY_MAX_MIB,
            Goal::RatioAtMost(1.0),
        ),
    ]
}
