//! Deployments in the middle of which the broker goes away.

use std::process::{Command, Stdio};
use std::time::Instant;

use hyper::StatusCode;
use millrace_tests::process::{Api, Kafka, program};

use super::revisions::{FUNCTION, ONE, done, handled, on_kafka, order, run_everywhere, two_versions, until};

/// How often the broker is killed while somebody deploys, each time later.
const KILLS: u32 = 4;

/// Afterwards either the old revision runs or the new one, the same on all instances, and no event is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_deployment_without_a_broker_leaves_the_old_revision_or_the_new_one() {
    let Some(kafka) = Kafka::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let versions = two_versions(directory.path());
    let instances = ["a", "b"].map(|name| on_kafka(directory.path(), name, &kafka.bootstrap));
    let urls = instances.each_ref().map(|instance| instance.url.clone());
    let began = Instant::now();
    done(&urls[0], &["deploy", &versions[0], "--yes"]);
    let took = began.elapsed();
    run_everywhere(&urls[1], ONE, 2).await;
    let (mut published, mut before) = (0, ONE);
    for kill in 0..KILLS {
        let mut client = Command::new(program())
            .args(["--server", &urls[0], "deploy", &versions[(kill as usize + 1) % 2], "--yes", "--wait", "20"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary can be started");
        tokio::time::sleep(took.mul_f64(f64::from(kill + 1) / f64::from(KILLS + 1))).await;
        tokio::task::block_in_place(|| {
            kafka.kill();
            kafka.start_again();
            client.wait().expect("it was started")
        });
        for url in &urls {
            let there = until(url, &format!("functions/{FUNCTION}/revisions"), |there| {
                let told = there["instances"].as_array().expect("instances");
                there["staged"].is_null()
                    && told.iter().filter(|one| one["revision"] == there["active"] && one["live"] == true).count() == 2
            })
            .await;
            let active = there["active"].as_u64().expect("a number");
            assert!(active >= before, "revision {active} after {before}");
            before = active;
        }
        let batch: Vec<String> = (published..published + 10).map(|n| order(&format!("o-{n}"), n)).collect();
        let api = Api::default();
        let url = &urls[kill as usize % 2];
        assert_eq!(api.publish(url, "orders", &batch).await, Some(StatusCode::ACCEPTED));
        published += 10;
        api.settled(url).await;
        assert_eq!(handled(url).await.len(), published);
    }
    assert!(before > ONE, "none of them came about");
}
