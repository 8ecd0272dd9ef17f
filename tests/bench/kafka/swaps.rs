//! Swaps on Kafka, of two revisions that three instances run.

use std::path::Path;
use std::process::Command;

use millrace_tests::process::{Dev, program};

use super::super::figure::Figure;
use super::super::swaps::{Compared, IN, Names, OUT, Swapping, deploy_two};
use super::cluster::{Cluster, PARTITIONS};
use super::latency::{of_events, total};

pub(crate) fn measure() -> Vec<Figure> {
    let Some(cluster) = Cluster::start() else { return Vec::new() };
    let directory = tempfile::tempdir_in(super::super::target()).expect("a directory");
    let instances = ["one", "other", "third"].map(|name| instance(directory.path(), name, cluster.bootstrap()));
    let url = &instances[0].url;
    deploy_two(url, directory.path(), PARTITIONS);
    let without_ms = without(&cluster, 0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let swapping = runtime.block_on(async { Swapping::start(url, instances.len()) });
    let with_ms = of_events(cluster.bootstrap(), IN, OUT[1], total()).p99;
    let swaps = runtime.block_on(swapping.stop());
    // A cluster that was just started has its bad moments.
    let without_ms = without_ms.min(without(&cluster, 2 * total()));
    Compared { without_ms, with_ms, swaps }
        .figures(&Names { p99: "swaps.kafka.p99_ratio", converged: "swaps.kafka.converged" })
}

/// The p99 of events that nobody swaps revisions under, in milliseconds. So many were published before.
#[expect(clippy::print_stdout, reason = "long work shows how far it is")]
fn without(cluster: &Cluster, before: u64) -> f64 {
    let out = OUT[usize::from(before > 0) * 2];
    let latency = of_events(cluster.bootstrap(), IN, out, before);
    println!("    without swaps: p50 {:.1} ms, p99 {:.1} ms", latency.p50, latency.p99);
    latency.p99
}

fn instance(directory: &Path, name: &str, bootstrap: &str) -> Dev {
    let data = directory.join(format!("data-{name}"));
    std::fs::create_dir_all(&data).expect("a directory");
    let mut command = Command::new(program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"]).arg(&data);
    command.arg("--set").arg(format!("kafka.bootstrap={bootstrap}"));
    command.arg("--set").arg(format!("kafka.instance={name}"));
    Dev::started(command.current_dir(&data))
}
