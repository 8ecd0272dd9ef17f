use millrace_core::breaker::Phase;
use millrace_core::manifest::Function;
use millrace_core::name::Unit;
use millrace_core::outcome::Category;
use millrace_core::progress::{ParkedHead, Position, Progress, Reset, Stream, StreamProgress, Totals};
use millrace_core::record::Record;
use millrace_core::time::Timestamp;

use super::super::types::{FunctionStatus, Records, Status, Topics, UnitStatus};
use super::{NOW, Server, idle};
use crate::broker::{StateEntry, UnitInfo};
use crate::registry::NoCanary;

fn record(value: &'static str) -> Record {
    Record {
        timestamp: Timestamp::from_millis(1_000),
        key: Some(bytes::Bytes::from_static(b"k")),
        value: Some(value.into()),
        headers: [("content-type", Some(&b"application/json"[..]))].into_iter().collect(),
    }
}

/// Fills `orders` with as many records per partition.
async fn filled(counts: [usize; 3]) -> Server {
    let server = Server::start().await;
    let logs = counts.map(|count| vec![record("1"); count]).to_vec();
    server.broker.lock().topics.insert("orders".to_owned(), logs);
    server
}

#[tokio::test]
async fn topics_are_listed_and_the_runtimes_own_only_on_demand() {
    let server = filled([1, 0, 2]).await;
    server.broker.add_internal("millrace.x");
    let names = |topics: &Topics| topics.topics.iter().map(|topic| topic.name.clone()).collect::<Vec<_>>();
    let topics: Topics = server.get("/v1/topics").await.json();
    assert_eq!(names(&topics), ["orders", "payments"]);
    assert_eq!(topics.topics[0].partitions.iter().map(|p| p.next).collect::<Vec<_>>(), [1, 0, 2]);
    let all: Topics = server.get("/v1/topics?internal=true").await.json();
    assert_eq!(names(&all), ["millrace.x", "orders", "payments"]);
    assert_eq!(server.get("/v1/topics?internal=maybe").await.summary(), "400 malformed-request");
}

#[tokio::test]
async fn records_are_shown_as_events() {
    let server = filled([1, 0, 0]).await;
    let undecodable = Record {
        key: Some(vec![0xff].into()),
        headers: [("ce_specversion", Some(&b"1.0"[..]))].into_iter().collect(),
        ..record("x")
    };
    server.broker.lock().topics.get_mut("orders").unwrap()[1].push(undecodable);
    let records: Records = server.get("/v1/topics/orders/events").await.json();
    let [first, second] = &records.records[..] else { panic!("{records:?}") };
    assert_eq!((first.key.as_deref(), first.timestamp.as_str()), (Some("k"), "1970-01-01T00:00:01Z"));
    let event: serde_json::Value = serde_json::from_str(first.event.as_ref().unwrap().get()).unwrap();
    assert_eq!((&event["id"], &event["data"]), (&"orders/0/0".into(), &1.into()));
    assert_eq!((second.key.as_deref(), second.key_base64.as_deref()), (None, Some("/w==")));
    assert!(second.event.is_none());
    assert!(second.undecodable.as_ref().unwrap().contains("`id` is missing"));
    assert_eq!(second.value_base64.as_deref(), Some("eA=="));
    assert_eq!(records.go_on_from(), "0:1,1:1,2:0");
}

#[tokio::test]
async fn pages_follow_one_another_through_all_partitions() {
    let server = filled([100, 0, 70]).await;
    let mut from = "earliest".to_owned();
    let mut seen = Vec::new();
    loop {
        let page: Records = server.get(&format!("/v1/topics/orders/events?limit=50&from={from}")).await.json();
        if page.records.is_empty() {
            break;
        }
        assert!(page.records.len() <= 50);
        from = page.go_on_from();
        seen.extend(page.records.iter().map(|record| (record.partition, record.offset)));
    }
    assert_eq!(seen[..50].iter().filter(|(partition, _)| *partition == 2).count(), 18, "partitions take turns");
    seen.sort_unstable();
    let expected: Vec<_> = (0..100).map(|at| (0, at)).chain((0..70).map(|at| (2, at))).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn reading_begins_where_it_is_asked_to() {
    let server = filled([3, 2, 0]).await;
    for (query, expected, next) in [
        ("", 5, "0:3,1:2,2:0"),
        ("?from=latest", 0, "0:3,1:2,2:0"),
        ("?partition=0&from=1", 2, "0:3"),
        ("?partition=0&from=1&limit=1", 1, "0:2"),
        ("?from=1", 3, "0:3,1:2,2:1"),
        ("?from=0:2,1:2", 1, "0:3,1:2,2:0"),
        ("?partition=1&from=99", 0, "1:99"),
    ] {
        let records: Records = server.get(&format!("/v1/topics/orders/events{query}")).await.json();
        assert_eq!((records.records.len(), records.go_on_from().as_str()), (expected, next), "{query}");
    }
}

#[tokio::test]
async fn a_request_can_wait_for_records() {
    let server = Server::start().await;
    let waiting = server.get("/v1/topics/orders/events?from=0&wait=60");
    let (records, published) = tokio::join!(waiting, server.post("/v1/topics/orders/events", "application/json", "1"));
    assert_eq!(published.summary(), "202");
    assert_eq!(records.json::<Records>().records.len(), 1);
}

#[tokio::test]
async fn each_refusal_of_a_read_has_its_kind() {
    let server = Server::start().await;
    for (path, expected) in [
        ("/v1/topics/nowhere/events", "404 unknown-topic"),
        ("/v1/topics/orders/events?partition=3", "404 unknown-partition"),
        ("/v1/topics/orders/events?from=3:0", "404 unknown-partition"),
        ("/v1/topics/orders/events?partition=-1", "400 malformed-request"),
        ("/v1/topics/orders/events?from=yesterday", "400 malformed-request"),
        ("/v1/topics/orders/events?limit=0", "400 malformed-request"),
        ("/v1/topics/orders/events?limit=1001", "400 malformed-request"),
        ("/v1/topics/orders/events?wait=61", "400 malformed-request"),
        ("/v1/topics/orders/events?form=latest", "400 malformed-request"),
        ("/v1/topics/orders/events?limit=1&limit=2", "400 malformed-request"),
        ("/v1/functions/shop.nowhere", "404 unknown-function"),
        ("/v1/functions/nowhere", "404 unknown-function"),
        ("/v1/functions?name=x", "400 malformed-request"),
        ("/v1/nowhere", "404 unknown-path"),
    ] {
        assert_eq!(server.get(path).await.summary(), expected, "{path}");
    }
    for (query, expected) in [
        ("form=latest", "there is no parameter `form` here; there is `partition`, `from`, `limit`, `wait`"),
        ("limit=1&limit=2", "parameter `limit` is given more than once; give it once"),
        ("limit=many", "parameter `limit`: invalid digit found in string; give it another value, or leave it out"),
    ] {
        let said = server.get(&format!("/v1/topics/orders/events?{query}")).await.problem().detail;
        assert_eq!(said, expected, "{query}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let server = Server::start().await;
    let detail = async |path: &str| server.get(path).await.problem().detail;
    let topic = "there is no topic `nope`; there is `orders`, `payments`; a topic is made when a manifest names it, for example under \
                 [topics]";
    assert_eq!(detail("/v1/topics/nope/events").await, topic);
    let published = server.post("/v1/topics/nope/events", "text/plain", "x").await.problem();
    assert_eq!(published.detail, topic);
    let nobody = detail("/v1/functions/shop.nope").await;
    assert_eq!(nobody, "no function `shop.nope` is known here; none is: start the server on an application");
    server.activate("pay").await;
    let other = detail("/v1/functions/shop.nope").await;
    assert_eq!(other, "no function `shop.nope` is known here; choose one of `shop.pay`");
    let letter = detail("/v1/dead-letters/shop.pay/orders/0/1").await;
    assert!(letter.contains("has no dead letter `orders/0/1`; `millrace dead-letters list"), "{letter}");
}

pub(super) fn unit(partition: u32) -> UnitInfo {
    let at = Position { stream: Stream::Source, offset: 5 };
    let parked =
        ParkedHead { position: at, attempts: 1, first_failed_at: NOW, due_at: NOW, category: Category::Unknown };
    let totals = Totals { completed: 4, filtered: 1, duplicate: 1, dead_lettered: 1, ..Totals::default() };
    UnitInfo {
        unit: Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition },
        progress: Progress {
            source: StreamProgress { start: 0, resume: 5, settled_above: vec![6..7, 8..9], totals },
            redrive: StreamProgress {
                resume: 1,
                totals: Totals { completed: 1, ..Totals::default() },
                ..StreamProgress::default()
            },
            parked: vec![parked],
            commits: 3,
            reset: Reset::default(),
        },
        source_next: 10,
        oldest_unsettled_at: Some(NOW - std::time::Duration::from_secs(2)),
        redrive_next: 2,
        not_records: 1,
    }
}

#[tokio::test]
async fn the_accounts_of_a_function_are_the_sums_of_its_units() {
    let server = Server::start().await;
    server.activate("pay").await;
    server.broker.lock().units = vec![unit(0), unit(1)];
    let status: Status = server.get("/v1/status").await.json();
    let [pay] = &status.functions[..] else { panic!("{status:?}") };
    assert_eq!((pay.name.as_str(), pay.revision, pay.component.as_str()), ("shop.pay", 3, "c0ffee"));
    assert_eq!((pay.breaker.as_str(), &pay.topics[..]), ("closed", &["orders".to_owned()][..]));
    assert_eq!((pay.totals.completed, pay.totals.dead_lettered, pay.redriven.completed), (8, 2, 2));
    assert_eq!((pay.lag_records, pay.parked, pay.open_dead_letters, pay.balanced), (8, 2, 0, true));
    assert!(pay.lag_seconds >= 2.0);
    let lags = |unit: &UnitStatus| (unit.lag_records, unit.processable_lag, unit.lag_seconds >= 2.0);
    assert_eq!((pay.processable_lag, lags(&pay.units[0])), (4, (4, 2, true)));
    assert_eq!((pay.units[1].partition, pay.units[1].settled_above, pay.units[1].resume), (1, 2, 5));
    let one: FunctionStatus = server.get("/v1/functions/shop.pay").await.json();
    assert_eq!(one.totals, pay.totals);

    server.broker.lock().units[1].progress.source.totals.completed = 5;
    let one: FunctionStatus = server.get("/v1/functions/shop.pay").await.json();
    assert!(!one.balanced);
    assert_eq!(super::super::functions::breaker_name(Phase::HalfOpen), "half-open");
}

#[tokio::test]
async fn a_function_that_has_stopped_says_so_of_each_unit() {
    let server = Server::start().await;
    server.activate("pay").await;
    server.broker.lock().units = vec![unit(0), unit(1)];
    server.broker.lock().stopped = Some("its keys have moved".to_owned());
    let status: Status = server.get("/v1/status").await.json();
    let why: Vec<_> = status.functions[0].units.iter().map(|unit| unit.stopped.as_deref()).collect();
    assert_eq!(why, [Some("its keys have moved"); 2]);
    let text = String::from_utf8(server.get("/metrics").await.body.to_vec()).unwrap();
    let line = "millrace_stopped_partitions{faas_name=\"shop.pay\",messaging_destination_name=\"orders\"} 2";
    assert!(text.lines().any(|l| l == line), "{text}");
}

#[tokio::test]
async fn state_is_listed_over_all_units_page_after_page() {
    let server = Server::start().await;
    server.activate("pay").await;
    server.broker.lock().units = vec![unit(0), unit(2)];
    let entry = |partition: u32, key: &str, value: &'static [u8]| {
        (unit(partition).unit, StateEntry { key: key.into(), value: value.into() })
    };
    server.broker.lock().stored =
        vec![entry(0, "c-1", b"1"), entry(0, "c-2", b"2"), entry(0, "d", b"3"), entry(2, "c-3/x", b"\xff")];
    let list = async |query: &str| {
        let page: super::super::types::State = server.get(&format!("/v1/functions/shop.pay/state{query}")).await.json();
        (page.values.iter().map(|value| value.place()).collect::<Vec<_>>().join(" "), page.next, page.values)
    };
    let (all, next, values) = list("").await;
    assert_eq!((&*all, next), ("orders/0/c-1 orders/0/c-2 orders/0/d orders/2/c-3/x", None));
    assert_eq!((values[0].value.as_deref(), values[0].value_base64.as_deref()), (Some("1"), None));
    assert_eq!((values[3].value.as_deref(), values[3].value_base64.as_deref()), (None, Some("/w==")));
    for (query, expected, next) in [
        ("?limit=2", "orders/0/c-1 orders/0/c-2", Some("orders/0/c-2")),
        ("?limit=2&after=orders/0/c-2", "orders/0/d orders/2/c-3/x", Some("orders/2/c-3/x")),
        ("?after=orders/2/c-3/x", "", None),
        ("?prefix=c-&partition=0", "orders/0/c-1 orders/0/c-2", None),
        ("?partition=2", "orders/2/c-3/x", None),
        ("?topic=payments", "", None),
    ] {
        let (found, went_on, _) = list(query).await;
        assert_eq!((&*found, went_on.as_deref()), (expected, next), "{query}");
    }
    for (path, expected) in [
        ("shop.pay/state?after=orders", "400 malformed-request"),
        ("shop.pay/state?limit=0", "400 malformed-request"),
        ("shop.pay/state?key=c-1", "400 malformed-request"),
        ("shop.none/state", "404 unknown-function"),
    ] {
        assert_eq!(server.get(&format!("/v1/functions/{path}")).await.summary(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_canary_is_shown_beside_a_revision_that_is_like_it() {
    let server = Server::start().await;
    server.activate("pay").await;
    let settings = |name: &str, change: fn(&mut Function)| {
        let mut settings = (*server.registry.functions()[0].settings).clone();
        settings.name = name.parse().unwrap();
        change(&mut settings);
        settings
    };
    let share = |text: &str| text.parse().unwrap();
    let attempt = |settings: &Function, of: &str| server.registry.try_canary(settings, idle(), share(of));
    let shown = async || {
        let function: FunctionStatus = server.get("/v1/functions/shop.pay").await.json();
        function.canary.map(|canary| (canary.revision, canary.share))
    };
    let other = settings("shop.pay", |function| {
        function.filter = Some("true".to_owned());
        function.retry.attempts += 1;
    });
    assert_eq!(attempt(&other, "5%"), Err(NoCanary::Differs { settings: vec!["filter", "retry"] }));
    assert_eq!(attempt(&settings("shop.ship", |_| {}), "5%"), Err(NoCanary::Absent));
    assert_eq!(shown().await, None, "the active revision handles all keys");
    let alike = settings("shop.pay", |function| function.limits.emitted_events += 1);
    assert_eq!(attempt(&alike, "5%"), Ok(()));
    assert_eq!(shown().await, Some((3, "5%".to_owned())));
    let name = &alike.name;
    assert!(server.registry.change_canary(name, Some(share("0.5%"))));
    assert!(!server.registry.change_canary(name, Some(share("0.5%"))), "it has that share already");
    assert_eq!(shown().await, Some((3, "0.5%".to_owned())));
    assert!(server.registry.change_canary(name, None) && !server.registry.change_canary(name, None));
    assert_eq!(shown().await, None);
    // Whatever becomes active is alone.
    assert_eq!(attempt(&alike, "5%"), Ok(()));
    server.activate("pay").await;
    assert_eq!(shown().await, None);
    server.stop().await;
}
