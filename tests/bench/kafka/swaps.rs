//! Swaps on Kafka, of two revisions that two instances run.

use std::path::Path;
use std::process::Command;

use millrace_tests::process::{Dev, program};

use super::super::figure::Figure;
use super::super::swaps::{Compared, IN, OUT, Swapping, deploy_two};
use super::cluster::{Cluster, PARTITIONS};
use super::latency::{of_events, total};

pub(crate) fn measure() -> Vec<Figure> {
    let Some(cluster) = Cluster::start() else { return Vec::new() };
    let directory = tempfile::tempdir_in(super::super::target()).expect("a directory");
    let instances = ["one", "other"].map(|name| instance(directory.path(), name, cluster.bootstrap()));
    let url = &instances[0].url;
    deploy_two(url, directory.path(), PARTITIONS);
    let without_ms = of_events(cluster.bootstrap(), IN, OUT[0], 0).p99;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let swapping = runtime.block_on(async { Swapping::start(url) });
    let with_ms = of_events(cluster.bootstrap(), IN, OUT[1], total()).p99;
    let swaps = runtime.block_on(swapping.stop());
    Compared { without_ms, with_ms, swaps }.figures("swaps.kafka.p99_ratio")
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
