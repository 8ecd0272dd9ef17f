//! Swaps on Kafka, of two revisions that three instances run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hdrhistogram::Histogram;
use millrace_tests::process::{Dev, program};

use super::super::figure::Figure;
use super::super::swaps::{Compared, IN, Names, OUT, Swapping, deploy_two};
use super::cluster::{Cluster, PARTITIONS};
use super::latency::{Load, of_events};

/// What two cores carry, the broker's work among it: where they are busy all the time, whatever is done beside is waited for.
const LOAD: Load = Load { rate: 500, warm_up: Duration::from_secs(5), measured: Duration::from_secs(20) };
/// Until then a broker that was just started has not compiled all that it needs.
const WARM_UP: Duration = Duration::from_secs(60);
/// How often it is measured without swaps and with them, in turns; the medians count.
const TURNS: usize = 3;

pub(crate) fn measure() -> Vec<Figure> {
    let Some(cluster) = Cluster::start() else { return Vec::new() };
    let directory = tempfile::tempdir_in(super::super::target()).expect("a directory");
    let instances = ["one", "other", "third"].map(|name| instance(directory.path(), name, cluster.bootstrap()));
    let url = &instances[0].url;
    deploy_two(url, directory.path(), PARTITIONS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut run = Run { cluster: &cluster, out: OUT.iter(), published: 0 };
    run.p99("warm-up", &Load { warm_up: WARM_UP, ..LOAD });
    let (mut without_ms, mut with_ms, mut swaps) = (Vec::new(), Vec::new(), Histogram::new(3).expect("three digits"));
    for _ in 0..TURNS {
        without_ms.push(run.p99("without swaps", &LOAD));
        let swapping = runtime.block_on(async { Swapping::start(url, instances.len()) });
        with_ms.push(run.p99("with swaps", &LOAD));
        swaps += runtime.block_on(swapping.stop());
    }
    let [without_ms, with_ms] = [without_ms, with_ms].map(median);
    Compared { without_ms, with_ms, swaps }
        .figures(&Names { p99: "swaps.kafka.p99_ratio", converged: "swaps.kafka.converged" })
}

/// Runs one after the other, what comes of each in a topic of its own.
struct Run<'a> {
    cluster: &'a Cluster,
    out: std::slice::Iter<'a, &'a str>,
    published: u64,
}

impl Run<'_> {
    /// The p99 of events, in milliseconds.
    #[expect(clippy::print_stdout, reason = "long work shows how far it is")]
    fn p99(&mut self, what: &str, load: &Load) -> f64 {
        let out = self.out.next().expect("each run has a topic");
        let latency = of_events(load, self.cluster.bootstrap(), (IN, out), self.published);
        self.published += load.total();
        println!("    {what}: p50 {:.1} ms, p99 {:.1} ms", latency.p50, latency.p99);
        latency.p99
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
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
