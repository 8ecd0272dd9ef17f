use axum::http::Method;
use axum::http::header::{HOST, ORIGIN};
use millrace_core::idempotency::Bounds;
use millrace_core::name::{FunctionName, Unit};
use millrace_core::progress::Progress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::ApiOptions;
use super::super::types::{Health, Status};
use super::Server;
use super::fake::Broken;
use crate::broker::{Assignment, Error, Restored};

const ORDERS: &str = "/v1/topics/orders/events";

/// Sends a text as it is, then nothing more; answers with all that comes back.
pub(super) async fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses early may close before it has read everything.
    let _reset = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn foreign_pages_and_hosts_are_refused_on_every_path() {
    let server =
        Server::start_with(ApiOptions { allowed_hosts: vec!["mill.example".to_owned()], ..ApiOptions::default() })
            .await;
    let here = server.address.to_string();
    let same = format!("http://{here}");
    for (method, path) in [
        (Method::POST, ORDERS),
        (Method::GET, "/v1/topics"),
        (Method::GET, "/metrics"),
        (Method::GET, "/livez"),
        (Method::OPTIONS, ORDERS),
        (Method::GET, "/nowhere"),
    ] {
        for (host, origin, expected) in [
            ("evil.example", None, Some("403 foreign-host")),
            ("evil.example", Some("http://evil.example"), Some("403 foreign-host")),
            (&here, Some("http://evil.example"), Some("403 foreign-origin")),
            (&here, Some("null"), Some("403 foreign-origin")),
            (&here, Some(&same), None),
            (&here, None, None),
            ("mill.example", None, None),
            ("mill.example:99", Some("https://mill.example:99"), None),
            ("localhost", None, None),
        ] {
            let mut request = server.request(method.clone(), path);
            request.headers_mut().unwrap().insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                request.headers_mut().unwrap().insert(ORIGIN, origin.parse().unwrap());
            }
            let summary = server.send(request.body("x".into()).unwrap()).await.summary();
            match expected {
                Some(expected) => assert_eq!(summary, expected, "{method} {path} {host} {origin:?}"),
                None => assert!(!summary.starts_with("403"), "{method} {path} {host} {origin:?}: {summary}"),
            }
        }
    }
    assert!(raw(&server, "GET /livez HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 403"));
    assert!(raw(&server, "GET http://evil.example/livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.contains(" 403 "));
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = Server::start().await;
    for request in ["nonsense\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n", ""] {
        let answer = raw(&server, request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{request}: {answer}");
    }
    assert_eq!(server.get("/livez").await.summary(), "200");
}

/// Gives a function a partition of a log that cannot go on.
async fn assign_broken_partition(server: &Server, revoked: watch::Receiver<bool>) {
    let unit = Unit { function: "shop.pay".parse().unwrap(), topic: "orders".parse().unwrap(), partition: 0 };
    let restored = Restored { progress: Progress::default(), keys: Bounds::default().window(1) };
    let assignment = Assignment { partition: Broken(unit), restored, siblings: 1, revoked };
    let assignments = server.broker.lock().assignments[0].clone();
    assignments.send(assignment).await.unwrap();
}

/// The same, and waits until that is known.
async fn fail_partition(server: &Server) {
    let (_owner, revoked) = watch::channel(false);
    assign_broken_partition(server, revoked).await;
    server.registry.failure().wait_for(Option::is_some).await.unwrap();
}

#[tokio::test]
async fn a_partition_that_is_lost_is_no_longer_listed() {
    let server = Server::start().await;
    server.activate("pay").await;
    let (owner, revoked) = watch::channel(true);
    assign_broken_partition(&server, revoked).await;
    owner.closed().await;
    for _turn in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.registry.functions()[0].units.len(), 0);
}

#[tokio::test]
async fn readiness_follows_the_process() {
    let server = Server::start().await;
    let state = async || server.get("/v1/status").await.json::<Status>().state;
    assert_eq!(server.get("/livez").await.json::<Health>().state, "live");
    assert_eq!(server.get("/readyz").await.summary(), "503 not-ready after 1");
    assert_eq!(state().await, "starting");
    server.api.set_ready();
    assert_eq!(server.get("/readyz").await.json::<Health>().state, "ready");
    assert_eq!(state().await, "ready");
    server.activate("pay").await;
    fail_partition(&server).await;
    assert_eq!(server.get("/readyz").await.summary(), "503 not-ready after 1");
    assert_eq!(state().await, "log failed: a sync failed");
    assert_eq!(server.get("/livez").await.summary(), "200");
}

#[tokio::test]
async fn a_refused_function_is_told_of_until_it_runs_or_is_gone() {
    let server = Server::start().await;
    let name: FunctionName = "shop.pay".parse().unwrap();
    let refuse = || server.registry.refuse(&name, "it is not built".to_owned());
    let ready = async || {
        let metrics = server.get("/metrics").await;
        let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
        (server.get("/readyz").await.status, metrics.lines().any(|line| line == "millrace_ready 1"))
    };
    server.api.set_ready();
    server.activate("ship").await;
    refuse();
    assert_eq!(ready().await, (503, false));
    assert_eq!(server.get("/readyz").await.problem().detail, "functions refused: shop.pay");
    let status: Status = server.get("/v1/status").await.json();
    assert_eq!((status.state.as_str(), status.functions.len()), ("functions refused: shop.pay", 1));
    assert_eq!((status.refused[0].name.as_str(), status.refused[0].reason.as_str()), ("shop.pay", "it is not built"));
    let answer = server.get("/v1/functions/shop.pay").await;
    assert_eq!(answer.summary(), "404 unknown-function");
    assert_eq!(answer.problem().detail, "function `shop.pay` was refused: it is not built");

    server.activate("pay").await;
    assert_eq!(ready().await, (200, true));
    refuse();
    assert_eq!(ready().await, (200, true), "the revision that ran before goes on");
    server.registry.deactivate(&name).await;
    refuse();
    assert_eq!(ready().await, (503, false));
    server.registry.deactivate(&name).await;
    assert_eq!(ready().await, (200, true));
}

#[tokio::test]
async fn a_log_that_failed_elsewhere_is_not_ready() {
    let server = Server::start().await;
    server.api.set_ready();
    server.registry.fail(Error::Fatal("the disk is full".to_owned()));
    server.registry.fail(Error::Fatal("because of that".to_owned()));
    let answer = server.get("/readyz").await;
    assert_eq!(
        (answer.summary().as_str(), answer.problem().detail.as_str()),
        ("503 not-ready after 1", "log failed: the disk is full")
    );
}

#[tokio::test]
async fn beyond_the_bound_requests_are_refused_and_health_checks_are_not() {
    let server = Server::start_with(ApiOptions { max_concurrent: 2, ..ApiOptions::default() }).await;
    server.broker.held.send_replace(true);
    let mut begun = server.broker.begun.subscribe();
    let publish = || server.post(ORDERS, "text/plain", "x");
    let watch = async {
        begun.wait_for(|begun| *begun == 2).await.unwrap();
        assert_eq!(publish().await.summary(), "429 too-many-requests after 1");
        assert_eq!(server.get("/v1/topics").await.summary(), "429 too-many-requests after 1");
        assert_eq!(server.get("/livez").await.summary(), "200");
        server.broker.held.send_replace(false);
    };
    let (first, second, ()) = tokio::join!(publish(), publish(), watch);
    assert_eq!((first.summary().as_str(), second.summary().as_str()), ("202", "202"));
    assert_eq!(publish().await.summary(), "202");
}

#[tokio::test]
async fn requests_under_way_come_to_their_end_when_serving_ends() {
    let server = Server::start().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    server.broker.held.send_replace(true);
    let (mut begun, broker) = (server.broker.begun.subscribe(), server.broker.clone());
    let address = server.address;
    let request = server.request(Method::POST, ORDERS).body(bytes::Bytes::from("x")).unwrap();
    let waiting = server.request(Method::GET, "/v1/topics/payments/events?wait=60").body(bytes::Bytes::new()).unwrap();
    let publishing = tokio::spawn(super::send_to(address, request));
    let polling = tokio::spawn(super::send_to(address, waiting));
    begun.wait_for(|begun| *begun == 1).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    assert_eq!(polling.await.unwrap().summary(), "200", "a request that waits for records is answered");
    assert!(TcpStream::connect(address).await.is_err(), "no new connections");
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "idle connections are closed");
    broker.held.send_replace(false);
    assert_eq!(publishing.await.unwrap().summary(), "202");
    stopping.await.unwrap();
}

#[tokio::test]
async fn serving_ends_even_if_a_request_does_not() {
    let server =
        Server::start_with(ApiOptions { drain: std::time::Duration::from_millis(20), ..ApiOptions::default() }).await;
    server.broker.held.send_replace(true);
    let mut begun = server.broker.begun.subscribe();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("POST {ORDERS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx");
    stream.write_all(request.as_bytes()).await.unwrap();
    begun.wait_for(|begun| *begun == 1).await.unwrap();
    server.stop().await;
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn figures_are_shown_for_prometheus() {
    let server = Server::start().await;
    server.activate("pay").await;
    server.post(ORDERS, "text/plain", "x").await;
    server.get("/nowhere/at/all").await;
    let answer = server.get("/metrics").await;
    assert_eq!(
        answer.headers.get("content-type").unwrap(),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    for line in [
        "messaging_client_sent_messages_total{messaging_destination_name=\"orders\"} 1",
        "http_server_active_requests 1",
        "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_route=\"/v1/topics/{topic}/events\",http_response_status_code=\"202\"} 1",
        "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_route=\"\",http_response_status_code=\"404\"} 1",
        "millrace_breaker_state{faas_name=\"shop.pay\",state=\"closed\"} 1",
        "millrace_breaker_state{faas_name=\"shop.pay\",state=\"open\"} 0",
        "millrace_open_dead_letters{faas_name=\"shop.pay\"} 0",
        "millrace_accounts_balanced{faas_name=\"shop.pay\"} 1",
        "millrace_group_assigned_partitions_total{faas_name=\"shop.pay\"} 5",
        "millrace_group_revoked_partitions_total{faas_name=\"shop.pay\"} 4",
        "millrace_group_fenced_commits_total{faas_name=\"shop.pay\"} 3",
        "millrace_restoring_partitions{faas_name=\"shop.pay\"} 2",
        "millrace_restored_records_total{faas_name=\"shop.pay\"} 1",
        "millrace_last_restore_seconds{faas_name=\"shop.pay\"} 0.5",
        "millrace_log_records{messaging_destination_name=\"orders\"} 1",
        "millrace_log_answers 1",
        "millrace_ready 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
    }
}

#[tokio::test]
async fn metrics_that_need_no_log_are_served_without_one() {
    let server = Server::start().await;
    server.activate("pay").await;
    server.broker.lock().is_silent = true;
    let answer = server.get("/metrics").await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(answer.status, 200, "{text}");
    for line in ["millrace_log_answers 0", "millrace_ready 0", "http_server_active_requests 1"] {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
    }
    assert!(!text.contains("faas_name"), "{text}");
}
