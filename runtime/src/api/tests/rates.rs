//! How many requests a token may send.

use axum::http::header::RETRY_AFTER;
use millrace_core::access::{Rate, Role, Secret, Token};
use serde_json::json;

use super::super::ApiOptions;
use super::super::access::AccessOptions;
use super::super::types::TokenMade;
use super::access::{Ring, start, token, with_token};
use super::{NOW, Server};

fn rate(text: &str, burst: u32) -> Rate {
    text.parse::<Rate>().unwrap().with_burst(burst).unwrap()
}

/// The answers to so many requests, one after the other.
async fn answers(server: &Server, shown: &str, requests: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..requests {
        answers.push(with_token(server, "GET", "/v1/topics", shown, json!({})).await.summary());
    }
    answers
}

#[tokio::test]
async fn a_token_that_sends_too_much_is_told_when_to_come_again_and_others_are_served() {
    let (server, ring) = start(AccessOptions { rate: Some(rate("1/h", 2)), ..AccessOptions::default() }).await;
    let (one, other) = (ring.add(1, token(&[Role::View])), ring.add(2, token(&[Role::View])));
    let own = ring.add(3, Token { rate: Some(rate("1/m", 3)), ..token(&[Role::View]) });
    let refused = answers(&server, &one, 4).await.split_off(2);
    for answer in refused {
        let after: u64 = answer.strip_prefix("429 rate-limited after ").unwrap().parse().unwrap();
        assert!((3590..=3600).contains(&after), "{answer}");
    }
    assert_eq!(answers(&server, &other, 2).await, ["200", "200"]);
    // Its own rate goes before that of the configuration.
    let with_own = answers(&server, &own, 4).await;
    assert_eq!(with_own[..3], ["200", "200", "200"]);
    let after: u64 = with_own[3].strip_prefix("429 rate-limited after ").unwrap().parse().unwrap();
    assert!((50..=60).contains(&after), "{with_own:?}");
    let answer = with_token(&server, "GET", "/v1/topics", &one, json!({})).await;
    let detail = answer.problem().detail;
    assert!(detail.contains("(010101010101) may send 1/h requests to this instance, and 2 at once"), "{detail}");
    // What is not permitted counts as well, and health is for everybody.
    assert_eq!(with_token(&server, "POST", "/v1/tokens", &one, json!({})).await.status, 429);
    assert_eq!(with_token(&server, "GET", "/livez", &one, json!({})).await.status, 200);
}

#[tokio::test]
async fn refusals_are_counted_for_each_token() {
    let access = AccessOptions { rate: Some(rate("1/h", 1)), open_metrics: true, ..AccessOptions::default() };
    let (server, ring) = start(access).await;
    let (one, other) = (ring.add(1, token(&[Role::View])), ring.add(2, token(&[Role::View])));
    answers(&server, &one, 4).await;
    answers(&server, &other, 1).await;
    let metrics = String::from_utf8(server.get("/metrics").await.body.to_vec()).unwrap();
    let lines: Vec<&str> = metrics.lines().filter(|line| line.starts_with("millrace_rate_limited")).collect();
    assert_eq!(lines, [r#"millrace_rate_limited_requests_total{token="010101010101"} 3"#]);
}

#[tokio::test]
async fn who_shows_no_token_of_the_log_is_not_counted() {
    let limited = AccessOptions { rate: Some(rate("1/h", 1)), ..AccessOptions::default() };
    let server = Server::start_with(ApiOptions { access: limited.clone(), ..ApiOptions::default() }).await;
    for _ in 0..5 {
        assert_eq!(server.get("/v1/topics").await.status, 200);
    }
    let admin = "an-administrator-s-token-0123456789";
    let (server, ring) = start(AccessOptions { admin_token: Some(Secret::of(admin)), ..limited }).await;
    assert_eq!(answers(&server, admin, 5).await, ["200"; 5]);
    // One that does not hold is told so, however often.
    assert_eq!(answers(&server, "mr_010101010101_01", 3).await, ["401 unauthenticated"; 3]);
    let one = ring.add(1, token(&[Role::View]));
    assert_eq!(answers(&server, &one, 1).await, ["200"]);
}

#[tokio::test]
async fn a_token_is_made_with_a_rate_which_its_list_shows() {
    let (server, ring) = start(AccessOptions::default()).await;
    let root = ring.add(1, token(&[Role::Admin]));
    let asked = json!({"name": "shop", "roles": ["publish"], "rate": "600/m", "burst": 20});
    let answer = with_token(&server, "POST", "/v1/tokens", &root, asked).await;
    let made: TokenMade = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, made.made.rate.as_deref(), made.made.burst), (201, Some("600/m"), Some(20)));
    let kept = ring_rate(&ring, &made.token);
    assert_eq!(kept, Some(rate("600/m", 20)));
    let list = with_token(&server, "GET", "/v1/tokens", &root, json!({})).await;
    let list = String::from_utf8(list.body.to_vec()).unwrap();
    assert!(list.contains(r#""rate":"600/m","burst":20"#) && list.contains(r#""rate":null"#), "{list}");
}

fn ring_rate(ring: &Ring, shown: &str) -> Option<Rate> {
    use super::super::access::Keyring as _;
    ring.tokens().caller(shown, NOW)?.rate()
}

#[tokio::test]
async fn the_wait_is_in_whole_seconds() {
    let (server, ring) = start(AccessOptions { rate: Some(rate("10/m", 1)), ..AccessOptions::default() }).await;
    let one = ring.add(1, token(&[Role::View]));
    answers(&server, &one, 1).await;
    let answer = with_token(&server, "GET", "/v1/topics", &one, json!({})).await;
    // Six seconds, less what the requests took.
    assert_eq!(answer.headers.get(RETRY_AFTER).unwrap(), "6");
}
