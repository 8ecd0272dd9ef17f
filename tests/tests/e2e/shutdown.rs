//! An instance on Kafka that is asked to stop leaves its group, whatever its handlers are doing.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_core::partition;
use millrace_tests::process::{Api, Dev, Kafka, application};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::kafka::ends_at_once_when_asked_twice;

const PARTITIONS: u32 = 2;
const GROUP: &str = "millrace.slow.handler";
const MANIFEST: &str = "application = 'slow'\n[topics.in]\npartitions = 2\n[topics.out]\npartitions = 1\n\
    [functions.handler]\ncomponent = 'guest.wasm'\ntopics = ['in']\ngrants = { publish = ['out'] }\nlimits = { time = '60s' }\n";
/// Whoever does not leave the group keeps its partitions from others for so long.
const LONG_SESSION: &str = "kafka.properties.session.timeout.ms=45000";
const TIMEOUT: Duration = Duration::from_secs(30);
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A broker, an application on it, and somebody who looks at its group.
struct Place {
    kafka: Kafka,
    directory: tempfile::TempDir,
    observer: BaseConsumer,
    api: Api,
}

impl Place {
    /// None if there is no Kafka to test on.
    fn new() -> Option<Self> {
        let kafka = Kafka::start()?;
        let directory = tempfile::tempdir().expect("a directory");
        application(directory.path(), MANIFEST);
        let observer = ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap).create().expect("a client");
        Some(Self { kafka, directory, observer, api: Api::default() })
    }

    fn start(&self, name: &str, settings: &[&str]) -> Dev {
        let data = self.directory.path().join(name);
        let mut command = Dev::serving(self.directory.path(), &data, &self.kafka.bootstrap);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        Dev::started(command.args(["--log-level", "error"]))
    }

    /// The members of the group, each with its partitions.
    fn members(&self) -> BTreeMap<String, Vec<u32>> {
        let list = self.observer.fetch_group_list(Some(GROUP), TIMEOUT).expect("the broker answers");
        let members = list.groups().iter().flat_map(|group| group.members());
        members.map(|member| (member.id().to_owned(), partitions(member.assignment().unwrap_or_default()))).collect()
    }

    /// The member that has joined beside this one, and its partitions, once they are so many.
    async fn member_beside(&self, other: &str, share: usize) -> (String, Vec<u32>) {
        let looking = async {
            loop {
                let mut members = self.members().into_iter();
                if let Some(member) = members.find(|(id, partitions)| id != other && partitions.len() == share) {
                    return member;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("it gets its share")
    }

    async fn publish(&self, to: &Dev, partition: u32, names: &[&str]) {
        let events: Vec<String> = names.iter().map(|name| event(partition, name)).collect();
        let status = self.api.publish(&to.url, "in", &events).await;
        assert_eq!(status.map(|status| status.as_u16()), Some(202));
    }

    /// What came out, in order of its names.
    async fn outputs(&self, of: &Dev) -> Vec<String> {
        let records = self.api.records(&of.url, "out").await;
        let name = |record: &Value| record["event"]["data"].as_str().expect("a name").to_owned();
        let mut names: Vec<String> = records.iter().flatten().map(name).collect();
        names.sort();
        names
    }

    /// Its commit shows that the next event of the partition is being handled.
    async fn until_out(&self, of: &Dev, names: &[&str]) {
        let looking = async {
            while self.outputs(of).await != names {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("it comes out in the end");
    }
}

/// What Kafka's own protocol of assignments says of the only topic.
fn partitions(assignment: &[u8]) -> Vec<u32> {
    let number = |at: usize| u32::from_be_bytes(assignment[at..at + 4].try_into().expect("four bytes"));
    if assignment.is_empty() || number(2) == 0 {
        return Vec::new();
    }
    let after_name = 8 + usize::from(u16::from_be_bytes([assignment[6], assignment[7]]));
    let count = usize::try_from(number(after_name)).expect("few");
    (1..=count).map(|index| number(after_name + 4 * index)).collect()
}

/// An event with a key of its own; one that is named `slow` keeps its handler for six seconds, and `slower` for longer than
/// a process takes to end.
fn event(to: u32, name: &str) -> String {
    let is_there =
        |key: &String| partition::partition_of(partition::hash(Some(key.as_bytes()), "", ""), PARTITIONS) == to;
    let key = (0..).map(|number| format!("{name}-{number}")).find(is_there).expect("there are many keys");
    let (ty, seconds) = match name {
        "slow" => ("W", 6),
        "slower" => ("W", 20),
        _ => ("E", 0),
    };
    let time = format!("1970-01-01T00:00:{seconds:02}Z");
    let event = json!({
        "specversion": "1.0", "id": name, "source": "/test", "type": ty, "subject": "out", "time": time, "partitionkey": key,
        "data": name,
    });
    event.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_an_instance_that_is_asked_to_stop_finishes_and_leaves_its_group() {
    let Some(place) = Place::new() else { return };
    let staying = place.start("staying", &[LONG_SESSION]);
    let (stays, _) = place.member_beside("", 2).await;
    let leaving = place.start("leaving", &[LONG_SESSION]);
    let (_, share) = place.member_beside(&stays, 1).await;
    place.publish(&staying, share[0], &["quick", "slow"]).await;
    place.until_out(&staying, &["quick"]).await;
    leaving.signal(Signal::TERM);
    assert!(leaving.ended().await.success());
    // The slow one was committed before it left, and what it leaves has a new owner now.
    assert_eq!(place.members().into_keys().collect::<Vec<_>>(), [stays]);
    assert_eq!(place.outputs(&staying).await, ["quick", "slow"]);
    place.publish(&staying, share[0], &["after"]).await;
    place.api.settled(&staying.url).await;
    assert_eq!(place.outputs(&staying).await, ["after", "quick", "slow"]);
    assert!(staying.stop(), "an instance that is asked to stop ends well");
    assert_eq!(place.members(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_what_outlives_the_time_to_drain_is_left_to_the_next_member() {
    let Some(place) = Place::new() else { return };
    let first = place.start("first", &[LONG_SESSION, "runtime.drain=100ms"]);
    place.publish(&first, 0, &["quick", "slower"]).await;
    place.until_out(&first, &["quick"]).await;
    first.signal(Signal::TERM);
    assert!(first.ended().await.success());
    assert_eq!(place.members(), BTreeMap::new());
    let second = place.start("second", &[LONG_SESSION]);
    place.api.settled(&second.url).await;
    assert_eq!(place.outputs(&second).await, ["quick", "slower"]);
    assert!(second.stop(), "an instance that is asked to stop ends well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_a_second_signal_ends_an_instance_in_the_middle_of_its_work_and_loses_nothing() {
    let Some(place) = Place::new() else { return };
    let first = place.start("first", &[]);
    place.publish(&first, 1, &["quick", "slow"]).await;
    place.until_out(&first, &["quick"]).await;
    ends_at_once_when_asked_twice(first).await;
    let second = place.start("second", &[]);
    place.api.settled(&second.url).await;
    assert_eq!(place.outputs(&second).await, ["quick", "slow"]);
    assert!(second.stop(), "an instance that is asked to stop ends well");
}
