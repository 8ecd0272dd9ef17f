//! The API over TLS.

use std::time::Duration;

use axum::http::header::HOST;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::super::ApiOptions;
use super::Server;
use super::serving::raw;
use crate::tls::testing::{Authority, Place, shown};

/// Longer than anything here takes, and shorter than any time-out that would hide a mistake.
const SOON: Duration = Duration::from_secs(5);

async fn start(place: &Place) -> Server {
    Server::start_with(ApiOptions { tls: Some(place.identity()), ..ApiOptions::default() }).await
}

/// A connection that stays open, and the certificate that it was shown.
async fn connect(server: &Server, place: &Place) -> (SendRequest<Full<Bytes>>, Vec<u8>) {
    let stream = place.connect(server.address).await.unwrap();
    let shown = shown(&stream);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (sender, shown)
}

async fn ask(server: &Server, sender: &mut SendRequest<Full<Bytes>>, path: &str) -> (u16, String) {
    let request = hyper::Request::get(path).header(HOST, server.address.to_string()).body(Full::default()).unwrap();
    let answer = tokio::time::timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
    let (status, body) = (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes());
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn with_a_certificate_only_tls_is_spoken() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue_for(&["127.0.0.1"], [2020, 2200]));
    let server = start(&place).await;
    let (mut sender, _) = connect(&server, &place).await;
    assert_eq!(ask(&server, &mut sender, "/livez").await.0, 200);
    let (_, metrics) = ask(&server, &mut sender, "/metrics").await;
    let line =
        format!("millrace_certificate_expiry_timestamp_seconds {}", server.api.shared.tls.as_ref().unwrap().expires());
    assert!(metrics.lines().any(|one| one == line), "{line} is not in:\n{metrics}");
    // What reaches the API is looked at as without TLS.
    let request = hyper::Request::get("/livez").header(HOST, "evil.example").body(Full::default()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 403);
    let answer = raw(&server, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(!answer.contains("HTTP"), "{answer}");
}

#[tokio::test]
async fn who_never_agrees_on_tls_holds_up_nobody() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue(&["127.0.0.1"]));
    let server = start(&place).await;
    let mut silent = Vec::new();
    for _connection in 0..20 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    silent[0].write_all(b"\x16\x03\x01").await.unwrap();
    let (mut sender, _) = connect(&server, &place).await;
    assert_eq!(ask(&server, &mut sender, "/livez").await.0, 200);
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < SOON, "it took {:?} to end", began.elapsed());
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_while_others_stay_open() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue(&["127.0.0.1"]));
    let server = start(&place).await;
    let tls = server.api.shared.tls.clone().unwrap();
    let (mut before, first) = connect(&server, &place).await;
    assert_eq!(ask(&server, &mut before, "/livez").await.0, 200);
    let new = authority.issue(&["127.0.0.1"]);
    std::fs::write(&place.files.certificate, &new.certificate).unwrap();
    tls.look_once().await;
    let (mut during, same) = connect(&server, &place).await;
    assert_eq!(same, first, "half a pair is shown to nobody");
    std::fs::write(&place.files.key, &new.key).unwrap();
    tls.look_once().await;
    let (mut after, other) = connect(&server, &place).await;
    assert_ne!(other, first);
    for sender in [&mut before, &mut during, &mut after] {
        assert_eq!(ask(&server, sender, "/livez").await.0, 200);
    }
}
