//! Spans of the real binary, at a collector and without one.

use std::fs::File;
use std::path::Path;

use millrace_tests::collector::{Collector, Span};
use millrace_tests::process::{Api, Dev, assert_accounts_balance};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An order with these extensions.
fn order(id: &str, quantity: u32, extensions: &[(&str, &str)]) -> String {
    let data = json!({
        "order": id, "customer": "c-1", "card": "card-1", "zone": 1, "total_cents": 100,
        "items": [{"sku": "tea", "quantity": quantity}],
    });
    let mut event = json!({
        "specversion": "1.0", "id": id, "source": "/shop", "type": "order.placed", "subject": id,
        "partitionkey": id, "data": data,
    });
    for (name, value) in extensions {
        event[*name] = json!(value);
    }
    event.to_string()
}

/// Starts an application with a collector at this endpoint; what it logs goes to a file.
fn start(application: &str, data: &Path, endpoint: &str, log: &Path) -> Dev {
    let log = File::create(log).expect("a file");
    Dev::start_with(application, data, |command| {
        command
            .args(["--log-level", "info", "--log-format", "json"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_SERVICE_NAME", "shop")
            .stderr(log)
    })
}

fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).expect("a file");
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The line that a target logged about an event.
fn line(log: &Path, target: &str, event: &str) -> Value {
    let lines = lines(log);
    let found = lines.iter().find(|line| line["target"] == target && line["event"] == event);
    found.unwrap_or_else(|| panic!("no line of {target} about {event} in {lines:#?}")).clone()
}

/// The only span of a name that is about an event.
fn about<'a>(spans: &'a [Span], name: &str, event: &str) -> &'a Span {
    let found: Vec<&Span> =
        spans.iter().filter(|s| s.name == name && s.attribute("messaging.message.id") == event).collect();
    assert_eq!(found.len(), 1, "`{name}` of {event} in {spans:#?}");
    found[0]
}

fn attributes(span: &Span, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| span.attribute(name).to_owned()).collect()
}

/// The event that was emitted for another one.
async fn emitted(api: &Api, url: &str, topic: &str, cause: &str) -> Value {
    let records = api.records(url, topic).await;
    let found = records.iter().flatten().find(|record| record["event"]["causationid"] == cause);
    found.unwrap_or_else(|| panic!("{cause} caused nothing in {topic}: {records:#?}"))["event"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_sees_the_way_of_an_event() {
    let data = tempfile::tempdir().expect("a directory");
    let log = data.path().join("log.json");
    let mut collector = Collector::start().await;
    let dev = start("orders", &data.path().join("data"), &collector.endpoint, &log);
    let api = Api::default();
    let (sampled, unsampled) = (format!("00-{TRACE}-{PARENT}-01"), format!("00-{TRACE}-{PARENT}-00"));
    let events = [
        order("traced", 1, &[("traceparent", &sampled), ("tracestate", "a=1"), ("correlationid", "cart-7")]),
        order("quiet", 1, &[("traceparent", &unsampled)]),
        order("new", 1, &[]),
        order("greedy", 21, &[("traceparent", &sampled)]),
    ];
    assert_eq!(api.publish(&dev.url, "orders", &events).await.map(|s| s.as_u16()), Some(202));
    api.settled(&dev.url).await;
    let stock = [
        emitted(&api, &dev.url, "stock", "traced").await,
        emitted(&api, &dev.url, "stock", "quiet").await,
        emitted(&api, &dev.url, "stock", "new").await,
    ];
    let metrics = api.text(&format!("{}/metrics", dev.url)).await;
    assert!(dev.stop(), "it ends well");
    // What waited was sent before it ended.
    let spans = collector.spans_until(|spans| spans.iter().any(|s| s.name == "process shipping")).await;
    assert!(spans.iter().all(|span| span.service == "shop" && span.nanos >= 0), "{spans:#?}");
    assert!(metrics.contains("millrace_lost_spans_total 0"), "{metrics}");

    let traced = about(&spans, "process orders", "traced");
    follows_the_conventions(traced);
    // The emitted event names the attempt that made it, and the next function goes on from there.
    assert_eq!(stock[0]["traceparent"], format!("00-{TRACE}-{}-01", traced.id));
    assert_eq!((&stock[0]["tracestate"], &stock[0]["correlationid"]), (&json!("a=1"), &json!("cart-7")));
    let next = about(&spans, "process stock", stock[0]["id"].as_str().expect("an id"));
    assert_eq!((&*next.trace, &next.parent), (TRACE, &traced.id));

    // Not recorded elsewhere is not recorded here, and the context goes on as it came.
    assert!(spans.iter().all(|span| span.attribute("messaging.message.id") != "quiet"), "{spans:#?}");
    assert_eq!(stock[1]["traceparent"], unsampled);
    // Without a context a trace begins.
    let new = about(&spans, "process orders", "new");
    assert_eq!((&*new.parent, new.links.len()), ("", 0));
    assert_eq!(stock[2]["traceparent"], format!("00-{}-{}-01", new.trace, new.id));

    let greedy = about(&spans, "process orders", "greedy");
    assert_eq!(attributes(greedy, &["error.type", "millrace.outcome"]), ["rejected", "failed"]);
    assert_eq!(greedy.error.as_deref(), Some("order greedy: 21 pieces of tea are more than 20"));
    commits_and_sends_link_to_attempts(&spans, traced);
    let letter = line(&log, "millrace::letter", "greedy");
    let said = ["trace_id", "span_id", "correlation_id"].map(|name| letter[name].as_str().unwrap_or_default());
    assert_eq!(said, [TRACE, &*greedy.id, "greedy"], "{letter:#}");
}

fn follows_the_conventions(traced: &Span) {
    assert_eq!((traced.kind, &*traced.trace, &*traced.parent), (SpanKind::Consumer, TRACE, PARENT));
    assert_eq!((&*traced.state, &traced.error), ("a=1", &None));
    assert_eq!(traced.links, [(TRACE.to_owned(), PARENT.to_owned())]);
    let names = [
        "messaging.system",
        "messaging.destination.name",
        "messaging.operation.name",
        "messaging.operation.type",
        "messaging.consumer.group.name",
        "messaging.message.conversation_id",
        "millrace.function",
        "millrace.outcome",
        "millrace.attempt",
        "error.type",
    ];
    assert_eq!(
        attributes(traced, &names),
        [
            "millrace",
            "orders",
            "process",
            "process",
            "orders.reserve-stock",
            "cart-7",
            "orders.reserve-stock",
            "completed",
            "1",
            "",
        ]
    );
}

fn commits_and_sends_link_to_attempts(spans: &[Span], traced: &Span) {
    let links_to = |span: &&Span| span.links.contains(&traced.as_link());
    let commits: Vec<&Span> = spans.iter().filter(|s| s.name == "commit").filter(links_to).collect();
    let [commit] = commits[..] else { panic!("one commit of the attempt, not {commits:#?}") };
    assert_eq!((commit.kind, &*commit.parent, &commit.error), (SpanKind::Client, "", &None));
    let names =
        ["messaging.operation.name", "messaging.operation.type", "messaging.destination.name", "millrace.outcome"];
    assert_eq!(attributes(commit, &names), ["commit", "settle", "orders", "committed"]);
    assert_ne!(commit.attribute("messaging.batch.message_count"), "0");
    let sends: Vec<&Span> = spans.iter().filter(|s| s.name == "send stock").filter(links_to).collect();
    let [send] = sends[..] else { panic!("one send of the attempt, not {sends:#?}") };
    assert_eq!((send.kind, &send.trace, &send.parent), (SpanKind::Client, &commit.trace, &commit.id));
    let sent: u32 = spans
        .iter()
        .filter(|s| s.name == "send stock" && s.attribute("millrace.function") == "orders.reserve-stock")
        .filter_map(|s| s.attribute("messaging.batch.message_count").parse::<u32>().ok())
        .sum();
    // A commit of nothing but the quiet event is not told of.
    assert!((2..=3).contains(&sent), "{sent} events were sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_logs_says_the_trace() {
    let mut collector = Collector::start().await;
    let api = Api::default();
    let context = |flags: &str| format!("00-{TRACE}-{PARENT}-{flags}");
    for endpoint in ["", &*collector.endpoint.clone()] {
        let data = tempfile::tempdir().expect("a directory");
        let log = data.path().join("log.json");
        let dev = start("hello", &data.path().join("data"), endpoint, &log);
        let visitor = |id: &str, extensions: Value| {
            let mut event = json!({"specversion": "1.0", "id": id, "source": "/door", "type": "v", "data": "you"});
            let more = extensions.as_object().expect("an object").clone();
            event.as_object_mut().expect("an object").extend(more);
            event.to_string()
        };
        let events = [
            visitor("sampled", json!({"traceparent": context("01"), "correlationid": "day", "causationid": "bell"})),
            visitor("quiet", json!({"traceparent": context("00")})),
            visitor("plain", json!({})),
        ];
        assert_eq!(api.publish(&dev.url, "visitors", &events).await.map(|s| s.as_u16()), Some(202));
        api.settled(&dev.url).await;
        assert!(dev.stop(), "it ends well");
        let mut spans = Vec::new();
        if !endpoint.is_empty() {
            spans = collector.spans_until(|spans| spans.iter().any(|s| s.name == "commit")).await;
        }
        // What is recorded is known by its own span, what is not by the one that it came with.
        let of = |event: &str| spans.iter().find(|span| span.attribute("messaging.message.id") == event);
        let own = |event: &str| of(event).map(|span| json!(span.id));
        let traces = [
            ("sampled", Some(json!(TRACE)), own("sampled").or(Some(json!(PARENT))), json!("day")),
            ("quiet", Some(json!(TRACE)), Some(json!(PARENT)), json!("quiet")),
            ("plain", of("plain").map(|span| json!(span.trace)), own("plain"), json!("plain")),
        ];
        assert_eq!(of("plain").is_some(), !endpoint.is_empty());
        for (event, trace, span, correlation) in traces {
            let line = line(&log, "millrace::guest", event);
            assert_eq!(line["message"], "Hello, you!");
            assert_eq!((line.get("trace_id"), line.get("span_id")), (trace.as_ref(), span.as_ref()), "{line:#}");
            assert_eq!(line["correlation_id"], correlation, "{line:#}");
            let causation = (event == "sampled").then(|| json!("bell"));
            assert_eq!(line.get("causation_id"), causation.as_ref(), "{line:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_or_silent_costs_nothing_but_spans() {
    // Nobody listens there any more; and one that listens, and never answers.
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.expect("an address").local_addr().expect("an address");
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("an address");
    for (address, says) in [(gone, 1), (silent.local_addr().expect("an address"), 0)] {
        let data = tempfile::tempdir().expect("a directory");
        let log = data.path().join("log.json");
        let dev = start("orders", &data.path().join("data"), &format!("http://{address}"), &log);
        let api = Api::default();
        for round in 0..20 {
            let events: Vec<String> = (0..50).map(|n| order(&format!("o-{round}-{n}"), 1, &[])).collect();
            assert_eq!(api.publish(&dev.url, "orders", &events).await.map(|s| s.as_u16()), Some(202));
        }
        let status = api.settled(&dev.url).await;
        assert_accounts_balance(&api, &dev.url, &status).await;
        let notified = api.records(&dev.url, "stock").await.iter().map(Vec::len).sum::<usize>();
        assert!(notified >= 1000, "only {notified} events came out");
        assert!(dev.stop(), "it ends well");
        let told = lines(&log)
            .iter()
            .filter(|l| l["message"].as_str().is_some_and(|m| m.starts_with("Spans could not")))
            .count();
        assert_eq!(told, says, "{:#?}", lines(&log));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_trace_context_goes_through() {
    let data = tempfile::tempdir().expect("a directory");
    let dev = Dev::start("orders", data.path());
    let api = Api::default();
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let events = [order("traced", 1, &[("traceparent", &parent), ("tracestate", "a=1")]), order("plain", 1, &[])];
    assert_eq!(api.publish(&dev.url, "orders", &events).await.map(|s| s.as_u16()), Some(202));
    api.settled(&dev.url).await;
    let traced = emitted(&api, &dev.url, "stock", "traced").await;
    assert_eq!((&traced["traceparent"], &traced["tracestate"]), (&json!(parent), &json!("a=1")));
    assert_eq!(emitted(&api, &dev.url, "stock", "plain").await.get("traceparent"), None);
}
