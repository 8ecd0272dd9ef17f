use std::fmt::Write as _;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method};
use millrace_core::codec::{self, PLAIN_TYPE};
use millrace_core::event::Event;
use millrace_core::limits;
use millrace_core::name::Topic;
use millrace_core::record::Record;

use super::super::types::{BATCH_TYPE, EVENT_TYPE, Published};
use super::super::{ApiOptions, PLAIN_SOURCE};
use super::{Answer, NOW, Server};
use crate::broker::{Error, PublishError};

const ORDERS: &str = "/v1/topics/orders/events";
const PAYMENTS: &str = "/v1/topics/payments/events";
const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed","data":{"a":1}}"#;
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn event_of(record: &Record) -> Event {
    let topic = Topic::new("payments").unwrap();
    codec::decode(record, codec::Place { topic: &topic, partition: 0, offset: 0 }).unwrap()
}

/// Publishes one event to `payments`, and answers with how it was kept.
async fn publish(headers: &[(&str, &str)], body: &'static [u8]) -> (Record, Event) {
    let server = Server::start().await;
    let answer = send(&server, PAYMENTS, headers, body).await;
    assert_eq!(answer.summary(), "202");
    let published: Published = answer.json();
    assert_eq!((published.topic.as_str(), &published.placements[..]), ("payments", &[super::fake::place(0, 0)][..]));
    let records = server.broker.records("payments");
    let [record] = &records[..] else { panic!("{} records", records.len()) };
    (record.clone(), event_of(record))
}

async fn send(server: &Server, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Answer {
    let mut request = server.request(Method::POST, path);
    for &(name, value) in headers {
        // Headers of requests are bytes, of which those beyond ASCII are opaque.
        request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    server.send(request.body(body.into()).unwrap()).await
}

#[tokio::test]
async fn a_structured_event_is_published_as_it_is() {
    let (record, event) = publish(&[("content-type", EVENT_TYPE)], EVENT.as_bytes()).await;
    assert_eq!(event, codec::json::parse_event(EVENT.as_bytes()).unwrap());
    assert_eq!(record.key, None);
    assert!(record.timestamp >= NOW);
}

#[tokio::test]
async fn a_binary_event_is_published_as_it_is() {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/shop"),
        ("ce-type", "order.placed"),
        ("ce-tenant", "acme"),
        ("ce-partitionkey", "k1"),
        ("content-type", "application/json"),
    ];
    let (record, event) = publish(&headers, br#"{"a":1}"#).await;
    assert_eq!((&*event.id, &*event.ty, event.extension("tenant").map(|t| &**t)), ("1", "order.placed", Some("acme")));
    assert_eq!(event.data.as_deref(), Some(&br#"{"a":1}"#[..]));
    assert_eq!(record.key.as_deref(), Some(&b"k1"[..]));
}

#[tokio::test]
async fn plain_data_becomes_an_event() {
    let (_, event) = publish(&[("content-type", "application/json"), ("idempotency-key", "order-7")], b"[1]").await;
    assert_eq!((&*event.id, &*event.source, &*event.ty), ("order-7", PLAIN_SOURCE, PLAIN_TYPE));
    assert_eq!(event.datacontenttype.as_deref(), Some("application/json"));
    assert_eq!(event.data.as_deref(), Some(&b"[1]"[..]));
    assert!(event.time.is_some_and(|time| time >= NOW));

    let (_, quoted) = publish(&[("idempotency-key", r#""a\"b""#)], &[0xff, 0x00]).await;
    assert_eq!(&*quoted.id, "a\"b");
    assert_eq!(quoted.datacontenttype.as_deref(), Some("application/octet-stream"));
    assert_eq!(quoted.data.as_deref(), Some(&[0xff, 0x00][..]));

    let (_, nothing) = publish(&[], b"").await;
    assert_eq!((nothing.data, nothing.datacontenttype, nothing.id.len()), (None, None, 32));
    let (_, empty) = publish(&[("content-type", "text/plain")], b"").await;
    assert_eq!(empty.data.as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn an_ordering_key_is_kept_and_decides_the_partition() {
    let server = Server::start().await;
    for id in ["1", "2", "3"] {
        let headers = [("millrace-key", "kü"), ("idempotency-key", id)];
        assert_eq!(send(&server, ORDERS, &headers, b"x").await.summary(), "202");
    }
    let partitions: Vec<usize> = server.broker.lock().topics["orders"].iter().map(Vec::len).collect();
    assert_eq!(partitions.iter().max(), Some(&3), "{partitions:?}");
    assert_eq!(server.broker.records("orders")[0].key.as_deref(), Some("kü".as_bytes()));
}

#[tokio::test]
async fn what_is_published_again_lands_beside_the_first() {
    let server = Server::start().await;
    for _ in 0..2 {
        let again = send(&server, ORDERS, &[("idempotency-key", "same")], b"x").await;
        assert_eq!(again.json::<Published>().placements.len(), 1);
    }
    let partitions: Vec<usize> = server.broker.lock().topics["orders"].iter().map(Vec::len).collect();
    assert_eq!(partitions.iter().max(), Some(&2), "{partitions:?}");
}

#[tokio::test]
async fn a_request_puts_its_events_into_its_trace() {
    let headers = [("content-type", EVENT_TYPE), ("traceparent", PARENT), ("tracestate", "a=1")];
    let (_, event) = publish(&headers, EVENT.as_bytes()).await;
    assert_eq!(event.extension("traceparent").map(|t| &**t), Some(PARENT));
    assert_eq!(event.extension("tracestate").map(|t| &**t), Some("a=1"));
}

#[tokio::test]
async fn a_batch_is_published_in_order() {
    let server = Server::start().await;
    let mut batch = "[".to_owned();
    for id in 0..500 {
        let comma = if id == 0 { "" } else { "," };
        write!(batch, r#"{comma}{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","partitionkey":"k{id}"}}"#)
            .unwrap();
    }
    batch.push(']');
    let answer = server.post(ORDERS, BATCH_TYPE, batch).await;
    assert_eq!(answer.summary(), "202");
    let published: Published = answer.json();
    assert_eq!(published.placements.len(), 500);
    let state = server.broker.lock();
    for (id, place) in published.placements.iter().enumerate() {
        let record = &state.topics["orders"][place.partition as usize][usize::try_from(place.offset).unwrap()];
        assert_eq!(*event_of(record).id, id.to_string());
        assert_eq!(record.key.as_deref(), Some(format!("k{id}").as_bytes()));
    }
}

#[tokio::test]
async fn an_empty_batch_publishes_nothing() {
    let server = Server::start().await;
    let published: Published = server.post(ORDERS, BATCH_TYPE, "[]").await.json();
    assert_eq!(published.placements, []);
    assert_eq!(*server.broker.begun.borrow(), 0);
}

#[tokio::test]
async fn each_refusal_of_a_body_has_its_kind() {
    let server = Server::start().await;
    let json = "application/json";
    let long_key = format!(
        r#"[{EVENT},{}]"#,
        EVENT.replace("\"data\"", &format!("\"partitionkey\":\"{}\",\"data\"", "k".repeat(4097)))
    );
    let long_text = EVENT.replace("/shop", &"s".repeat(limits::ATTRIBUTE_MAX_BYTES + 1));
    let many: String = (0..=limits::EXTENSIONS_MAX).map(|n| format!("\"e{n}\":\"\",")).collect();
    let many = EVENT.replacen('{', &format!("{{{many}"), 1);
    let long_name = EVENT.replacen('{', &format!("{{\"{}\":1,", "n".repeat(65)), 1);
    let too_many = format!("[{}]", vec![r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#; 10_001].join(","));
    for (content_type, body, expected, detail) in [
        (json, &b"{"[..], "400 invalid-event", "not JSON"),
        (json, b"", "400 invalid-event", "not JSON"),
        (json, b"\"\xff\"", "400 invalid-event", "not UTF-8"),
        (json, b"{} {}", "400 invalid-event", "trailing"),
        (EVENT_TYPE, b"{", "400 invalid-event", "JSON"),
        (EVENT_TYPE, b"", "400 invalid-event", "JSON"),
        (EVENT_TYPE, b"\xff", "400 invalid-event", "not UTF-8"),
        (EVENT_TYPE, b"[]", "400 invalid-event", "object"),
        (EVENT_TYPE, br#"{"specversion":"1.0","id":"1","type":"t"}"#, "400 invalid-event", "`source` is missing"),
        (EVENT_TYPE, br#"{"id":"1","source":"s","type":"t"}"#, "400 invalid-event", "`specversion` is missing"),
        (EVENT_TYPE, long_text.as_bytes(), "413 too-large", "`source`"),
        (EVENT_TYPE, many.as_bytes(), "400 invalid-event", "too many"),
        (EVENT_TYPE, long_name.as_bytes(), "400 invalid-event", "longer than 64"),
        (BATCH_TYPE, EVENT.as_bytes(), "400 invalid-event at 0", "list"),
        (BATCH_TYPE, b"[\xff]", "400 invalid-event at 0", "not UTF-8"),
        (
            BATCH_TYPE,
            br#"[{"specversion":"1.0","id":"1","source":"s","type":"t"},{}]"#,
            "400 invalid-event at 1",
            "missing",
        ),
        (BATCH_TYPE, long_key.as_bytes(), "413 too-large at 1", "`partitionkey`"),
        (BATCH_TYPE, too_many.as_bytes(), "413 too-large", "10001 events"),
        ("application/cloudevents+avro", b"", "415 unsupported-media-type", "JSON"),
        ("application/cloudevents-batch+xml", b"", "415 unsupported-media-type", "JSON"),
    ] {
        let answer = server.post(ORDERS, content_type, body.to_vec()).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!(answer.summary(), expected, "{content_type}: {shown}");
        let said = answer.problem().detail;
        assert!(said.contains(detail), "{content_type}: {shown}: `{said}` does not say `{detail}`");
    }
    assert_eq!(server.broker.records("orders").len(), 0);
}

#[tokio::test]
async fn each_refusal_of_a_header_has_its_kind() {
    let server = Server::start().await;
    let long = "k".repeat(limits::KEY_MAX_BYTES + 1);
    let structured = ("content-type", EVENT_TYPE);
    for (headers, body, expected) in [
        (vec![("ce-id", "1")], &b"x"[..], "400 invalid-event"),
        (vec![("ce-specversion", "0.3"), ("ce-id", "1")], b"x", "400 invalid-event"),
        (vec![("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s")], b"x", "400 invalid-event"),
        (
            vec![
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "/s"),
                ("ce-type", "t"),
                ("content-type", "a/b+json"),
            ],
            b"x",
            "400 invalid-event",
        ),
        (vec![("millrace-key", "")], b"x", "400 malformed-request"),
        (vec![("millrace-key", "a"), ("millrace-key", "a")], b"x", "400 malformed-request"),
        (vec![("millrace-key", &long)], b"x", "413 too-large"),
        (vec![("idempotency-key", "")], b"x", "400 malformed-request"),
        (vec![("idempotency-key", "\"\"")], b"x", "400 malformed-request"),
        (vec![("idempotency-key", &long)], b"x", "400 malformed-request"),
        (vec![("idempotency-key", "a\u{80}")], b"x", "400 invalid-event"),
        (vec![structured, ("idempotency-key", "2")], EVENT.as_bytes(), "400 malformed-request"),
        (vec![structured, ("idempotency-key", "1")], EVENT.as_bytes(), "202"),
        (vec![("content-type", BATCH_TYPE), ("idempotency-key", "1")], b"[]", "400 malformed-request"),
        (vec![("content-encoding", "gzip")], b"x", "415 unsupported-media-type"),
        (vec![("content-encoding", "identity")], b"x", "202"),
        (vec![("content-type", "té/xt")], b"x", "400 malformed-request"),
    ] {
        let answer = send(&server, ORDERS, &headers, Box::leak(body.to_vec().into_boxed_slice())).await;
        assert_eq!(answer.summary(), expected, "{headers:?}");
    }
}

#[tokio::test]
async fn each_refusal_of_a_target_has_its_kind() {
    let server = Server::start().await;
    for (path, expected) in [
        ("/v1/topics/nowhere/events", "404 unknown-topic"),
        ("/v1/topics/no%20name/events", "404 unknown-topic"),
        ("/v1/topics/%ff/events", "404 unknown-topic"),
        ("/v1/topics/../events", "404 unknown-topic"),
        ("/v1/topics//events", "404 unknown-topic"),
        ("/v1/topics/millrace.shop.pay.dead-letter/events", "403 reserved-topic"),
        ("/v1/topics/orders/events?key=1", "400 malformed-request"),
        ("/v1/topics/orders", "404 unknown-path"),
        ("/", "404 unknown-path"),
        ("/v1/topics", "405 method-not-allowed"),
    ] {
        let answer = server.post(path, "text/plain", "x").await;
        assert_eq!(answer.summary(), expected, "{path}");
    }
    let batch = server.post("/v1/topics/nowhere/events", BATCH_TYPE, format!("[{EVENT}]")).await;
    assert_eq!(batch.summary(), "404 unknown-topic at 0");
    let put = server.send(server.request(Method::PUT, ORDERS).body("x".into()).unwrap()).await;
    assert_eq!(put.summary(), "405 method-not-allowed");
    assert_eq!(put.headers.get("allow").unwrap(), "GET,HEAD,POST");
}

#[tokio::test]
async fn each_refusal_of_the_log_has_its_kind() {
    let server = Server::start().await;
    let topic: Topic = "orders".parse().unwrap();
    let too_large = PublishError::TooLarge { index: 0, topic, size_bytes: 2, max_bytes: 1 };
    for (refusal, expected) in [
        (PublishError::Full("10 of 10 bytes".to_owned()), "503 log-full after 30"),
        (PublishError::Busy, "429 log-busy after 1"),
        (Error::Transient("a moment".to_owned()).into(), "503 log-unavailable after 1"),
        (Error::Fatal("a sync failed".to_owned()).into(), "503 log-failed after 30"),
        (too_large.clone(), "413 too-large"),
    ] {
        server.broker.refuse(refusal);
        assert_eq!(server.post(ORDERS, "text/plain", "x").await.summary(), expected);
    }
    server.broker.refuse(too_large);
    assert_eq!(server.post(ORDERS, BATCH_TYPE, format!("[{EVENT}]")).await.summary(), "413 too-large at 0");
    assert_eq!(server.broker.records("orders").len(), 0);
}

#[tokio::test]
async fn bodies_are_bounded_whether_their_length_is_announced_or_not() {
    let server = Server::start_with(ApiOptions { max_body_bytes: 1000, ..ApiOptions::default() }).await;
    assert_eq!(server.post(ORDERS, "text/plain", vec![b'x'; 1000]).await.summary(), "202");
    assert_eq!(server.post(ORDERS, "text/plain", vec![b'x'; 1001]).await.summary(), "413 too-large");
    let chunked = |bytes: usize| {
        format!(
            "POST {ORDERS} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{bytes:x}\r\n{}\r\n0\r\n\r\n",
            "x".repeat(bytes)
        )
    };
    assert!(super::serving::raw(&server, &chunked(1000)).await.starts_with("HTTP/1.1 202"));
    assert!(super::serving::raw(&server, &chunked(1001)).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_body_that_breaks_off_publishes_nothing() {
    let server = Server::start().await;
    let request = format!("POST {ORDERS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nx");
    super::serving::raw(&server, &request).await;
    assert_eq!(*server.broker.begun.borrow(), 0);
}

#[tokio::test]
async fn content_types_of_plain_data_are_kept() {
    let (_, event) = publish(&[(CONTENT_TYPE.as_str(), "text/csv; charset=utf-8")], b"a,b").await;
    assert_eq!(event.datacontenttype.as_deref(), Some("text/csv; charset=utf-8"));
}
