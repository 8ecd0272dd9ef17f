//! A disk that is really full, under the real binary.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Stdio;

use millrace_tests::not_tested;
use millrace_tests::process::{Api, Dev};
use millrace_tests::small_disk::SmallDisk;
use serde_json::json;

const SMALL_MEBIBYTES: u32 = 32;
const LARGE_MEBIBYTES: u32 = 256;

fn event(id: usize) -> String {
    let data = "x".repeat(50_000);
    json!({"specversion": "1.0", "id": id.to_string(), "source": "/full", "type": "t", "data": data}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_process_and_loses_nothing_that_was_acknowledged() {
    let place = tempfile::tempdir().expect("a directory");
    let mut disk = match SmallDisk::mount(place.path(), SMALL_MEBIBYTES) {
        Ok(disk) => disk,
        Err(reason) => {
            not_tested("a full disk", &reason);
            return;
        }
    };
    let data = disk.path().join("data");
    let errors = place.path().with_extension("errors");
    let api = Api::default();
    // Nobody reads this topic: only the disk is the bound.
    let dev = Dev::start_telling("hello", &data, Stdio::from(File::create(&errors).expect("a file")));
    let mut acknowledged = 0;
    while api.publish(&dev.url, "greetings", &[event(acknowledged)]).await.is_some_and(|s| s.as_u16() == 202) {
        acknowledged += 1;
        assert!(acknowledged < 10_000, "the disk is never full");
    }
    assert!(acknowledged > 50, "the disk is full after {acknowledged} events");
    let status = dev.ended().await;
    let said = fs::read_to_string(&errors).expect("it said something");
    fs::remove_file(&errors).expect("the file is there");
    assert_eq!(status.code(), Some(1), "{said}");
    for expected in ["No space left on device", "what was acknowledged is safe", "fix: "] {
        assert!(said.contains(expected), "`{expected}` is missing:\n{said}");
    }

    disk.resize(LARGE_MEBIBYTES).expect("it can be made larger");
    let dev = Dev::start("hello", &data);
    let records = api.records(&dev.url, "greetings").await;
    let ids: Vec<usize> = records
        .iter()
        .flatten()
        .map(|record| record["event"]["id"].as_str().and_then(|id| id.parse().ok()).expect("an id of ours"))
        .collect();
    let found: BTreeSet<usize> = ids.iter().copied().collect();
    assert_eq!(found.len(), ids.len(), "an event is there twice");
    let missing: Vec<usize> = (0..acknowledged).filter(|id| !found.contains(id)).collect();
    assert!(missing.is_empty(), "acknowledged, and lost: {missing:?}");
    // The one that was not acknowledged may be there or not; nothing else is.
    assert!(found.iter().all(|id| *id <= acknowledged), "{found:?}");
    let published = api.publish(&dev.url, "greetings", &[event(acknowledged + 1)]).await;
    assert_eq!(published.map(|s| s.as_u16()), Some(202), "with more room it goes on");
}
