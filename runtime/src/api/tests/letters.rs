use std::time::Duration;

use axum::http::Method;
use bytes::Bytes;
use millrace_core::letter::LetterHeaders;
use millrace_core::outcome::Category;
use millrace_core::record::Record;
use serde_json::json;

use super::super::types::{DeadLetter, DeadLetters, LetterAnswer};
use super::{Answer, NOW, Server};
use crate::broker::{CatalogError, Error, LetterId, LetterStatus, StoredLetter};

pub(super) fn letter(function: &str, offset: u64, category: Category) -> StoredLetter {
    let headers = LetterHeaders {
        function: function.parse().unwrap(),
        revision: 7,
        category,
        reason: format!("reason {offset}").into(),
        attempts: 2,
        first_failed_at: NOW - Duration::from_secs(60),
        last_failed_at: NOW,
        topic: "orders".parse().unwrap(),
        partition: 1,
        offset,
        idempotency_key: Some("key".into()),
        redrives: 1,
    };
    let original = Record {
        timestamp: NOW,
        key: None,
        value: Some(Bytes::from_static(b"{}")),
        headers: [("content-type", Some(&b"application/json"[..]))].into_iter().collect(),
    };
    StoredLetter {
        function: function.parse().unwrap(),
        id: LetterId { topic: "orders".parse().unwrap(), partition: 1, offset },
        status: LetterStatus::Open,
        status_at: NOW,
        note: None,
        record: headers.seal(&original),
    }
}

/// `shop.pay` is active and has letters at even offsets below 300; `shop.gone` is not and has one at 1.
async fn with_letters() -> Server {
    let server = Server::start().await;
    server.activate("pay").await;
    server.activate("quiet").await;
    let category = |n: u64| if n.is_multiple_of(3) { Category::Rejected } else { Category::Unknown };
    let of_pay = (0..150).map(|n| letter("shop.pay", 2 * n, category(n)));
    let all = of_pay.chain([letter("shop.gone", 1, Category::Transient)]);
    server.broker.lock().letters = all.map(|letter| ((letter.function.clone(), letter.id.clone()), letter)).collect();
    server.broker.add_internal("millrace.shop.gone.dead-letter");
    server
}

async fn act(server: &Server, action: &str, request: serde_json::Value) -> Answer {
    server.post(&format!("/v1/dead-letters/{action}"), "application/json", request.to_string()).await
}

fn statuses(server: &Server, status: LetterStatus) -> usize {
    server.broker.lock().letters.values().filter(|letter| letter.status == status).count()
}

fn set_status(server: &Server, offset: u64, status: LetterStatus) {
    let letter = letter("shop.pay", offset, Category::Unknown);
    server.broker.lock().letters.get_mut(&(letter.function, letter.id)).unwrap().status = status;
}

#[tokio::test]
async fn letters_are_listed_page_by_page() {
    let server = with_letters().await;
    let mut after = String::new();
    let mut seen = Vec::new();
    loop {
        let page: DeadLetters = server.get(&format!("/v1/dead-letters?limit=40{after}")).await.json();
        assert!(page.letters.len() <= 40);
        seen.extend(page.letters.iter().map(|letter| format!("{} {}", letter.function, letter.id)));
        let Some(next) = page.next else { break };
        after = format!("&after={next}");
    }
    let of_pay = (0..150).map(|n| format!("shop.pay orders/1/{}", 2 * n));
    let expected: Vec<_> = std::iter::once("shop.gone orders/1/1".to_owned()).chain(of_pay).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn letters_are_chosen_by_function_status_category_and_topic() {
    let server = with_letters().await;
    set_status(&server, 0, LetterStatus::Resolved);
    for (query, expected) in [
        ("", 150),
        ("&status=open", 150),
        ("&status=all", 151),
        ("&status=resolved", 1),
        ("&status=discarded", 0),
        ("&function=shop.pay", 149),
        ("&function=shop.gone", 1),
        ("&function=shop.quiet", 0),
        ("&category=rejected", 49),
        ("&category=rejected&status=all", 50),
        ("&topic=orders", 150),
        ("&topic=payments", 0),
    ] {
        let page: DeadLetters = server.get(&format!("/v1/dead-letters?limit=1000{query}")).await.json();
        assert_eq!(page.letters.len(), expected, "{query}");
    }
}

#[tokio::test]
async fn one_letter_is_shown_with_the_record_it_was_made_from() {
    let server = with_letters().await;
    let letter: DeadLetter = server.get("/v1/dead-letters/shop.pay/orders/1/6").await.json();
    assert_eq!((letter.function.as_str(), letter.id.as_str()), ("shop.pay", "orders/1/6"));
    assert_eq!((letter.category.as_str(), letter.reason.as_str()), ("rejected", "reason 6"));
    assert_eq!((letter.attempts, letter.revision, letter.redrives), (2, 7, 1));
    assert_eq!(letter.idempotency_key.as_deref(), Some("key"));
    assert_eq!(letter.deadline, (NOW + Duration::from_secs(600)).to_rfc3339(), "as the manifest says");
    let record = letter.record.unwrap();
    assert_eq!((record.partition, record.offset), (1, 6));
    let event: serde_json::Value = serde_json::from_str(record.event.unwrap().get()).unwrap();
    assert_eq!(event["id"], "orders/1/6");
    let gone: DeadLetter = server.get("/v1/dead-letters/shop.gone/orders/1/1").await.json();
    assert_eq!(gone.deadline, (NOW + Duration::from_secs(3600)).to_rfc3339(), "the default");
}

#[tokio::test]
async fn a_damaged_letter_hides_no_other() {
    let server = with_letters().await;
    for letter in server.broker.lock().letters.values_mut().take(2) {
        letter.record = Record::default();
    }
    let page: DeadLetters = server.get("/v1/dead-letters?limit=1000").await.json();
    assert_eq!(page.letters.len(), 151);
    assert!(page.letters[0].reason.contains("damaged"));
}

#[tokio::test]
async fn named_letters_change_all_or_none() {
    let server = with_letters().await;
    let request = |ids: &[&str]| json!({"function": "shop.pay", "ids": ids});
    let answer: LetterAnswer =
        act(&server, "redrive", request(&["orders/1/4", "orders/1/2", "orders/1/4"])).await.json();
    let ids: Vec<_> = answer.letters.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!((ids, answer.dry_run), (vec!["orders/1/2", "orders/1/4"], false));
    assert_eq!(statuses(&server, LetterStatus::Redriven), 2);
    for (ids, expected) in [
        (["orders/1/6", "orders/1/2"], "409 dead-letter-not-open"),
        (["orders/1/6", "orders/1/7"], "404 unknown-dead-letter"),
        (["orders/1/6", "orders/1"], "400 malformed-request at 1"),
    ] {
        assert_eq!(act(&server, "redrive", request(&ids)).await.summary(), expected, "{ids:?}");
    }
    assert_eq!(statuses(&server, LetterStatus::Redriven), 2);
    let forced = json!({"function": "shop.pay", "ids": ["orders/1/2"], "force": true, "note": "seen"});
    assert_eq!(act(&server, "resolve", forced).await.summary(), "200");
    assert_eq!(statuses(&server, LetterStatus::Resolved), 1);
}

#[tokio::test]
async fn filters_choose_open_letters_and_change_them_in_bounded_groups() {
    let server = with_letters().await;
    set_status(&server, 0, LetterStatus::Resolved);
    let chosen = |answer: &Answer| answer.json::<LetterAnswer>().letters.len();
    let dry = act(&server, "redrive", json!({"category": "rejected", "dry_run": true})).await;
    assert_eq!((chosen(&dry), statuses(&server, LetterStatus::Redriven)), (49, 0));
    let rejected = act(&server, "redrive", json!({"category": "rejected"})).await;
    assert_eq!((chosen(&rejected), statuses(&server, LetterStatus::Redriven)), (49, 49));
    let reason = act(&server, "resolve", json!({"function": "shop.pay", "reason_contains": "reason 2"})).await;
    let resolved = chosen(&reason);
    assert!(resolved > 1, "{resolved}");
    let all = act(&server, "discard", json!({"all": true, "note": "it was a test"})).await;
    assert_eq!(chosen(&all), 150 - 49 - resolved);
    assert_eq!(statuses(&server, LetterStatus::Open), 0);
    let state = server.broker.lock();
    assert!(state.changes.iter().all(|letters| *letters <= 100), "{:?}", state.changes);
    let gone = state.letters.values().next().unwrap();
    assert_eq!(gone.note.as_deref(), Some("it was a test"));
}

#[tokio::test]
async fn a_letter_that_another_person_was_faster_with_is_left_out() {
    let server = with_letters().await;
    let taken = letter("shop.pay", 4, Category::Unknown);
    let (function, id) = (taken.function, taken.id);
    let refusal = CatalogError::NotOpen { function, id, status: LetterStatus::Redriven };
    server.broker.lock().letter_refusal = Some(refusal);
    let answer: LetterAnswer = act(&server, "redrive", json!({"function": "shop.pay"})).await.json();
    assert_eq!(answer.letters.len(), 149);
}

#[tokio::test]
async fn each_refusal_of_a_change_has_its_kind() {
    let server = with_letters().await;
    let named = json!({"function": "shop.pay", "ids": ["orders/1/4"]});
    let with = |more: serde_json::Value| {
        let mut request = named.clone();
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let many: Vec<String> = (0..1001).map(|n| format!("orders/1/{n}")).collect();
    for (action, request, expected) in [
        ("redrive", json!({}), "400 malformed-request"),
        ("redrive", json!({"force": true}), "400 malformed-request"),
        ("redrive", json!({"al": true}), "400 malformed-request"),
        ("redrive", json!([]), "400 malformed-request"),
        ("redrive", json!({"all": true, "function": "shop.pay"}), "400 malformed-request"),
        ("redrive", json!({"ids": ["orders/1/4"]}), "400 malformed-request"),
        ("redrive", with(json!({"all": true})), "400 malformed-request"),
        ("redrive", with(json!({"category": "unknown"})), "400 malformed-request"),
        ("redrive", with(json!({"note": "why"})), "400 malformed-request"),
        ("redrive", json!({"category": "sad"}), "400 malformed-request"),
        ("redrive", json!({"all": true, "after": "x"}), "400 malformed-request"),
        ("redrive", json!({"function": "shop.pay", "ids": many}), "400 malformed-request"),
        ("redrive", json!({"function": "shop.nowhere"}), "404 unknown-function"),
        ("discard", named.clone(), "400 malformed-request"),
        ("discard", with(json!({"note": "  "})), "400 malformed-request"),
        ("discard", with(json!({"note": "n".repeat(1025)})), "400 malformed-request"),
        ("forget", named.clone(), "404 unknown-path"),
    ] {
        assert_eq!(act(&server, action, request.clone()).await.summary(), expected, "{action} {request}");
    }
    let path = "/v1/dead-letters/redrive";
    assert_eq!(server.post(path, "text/plain", named.to_string()).await.summary(), "415 unsupported-media-type");
    let untyped = server.request(Method::POST, path).body(named.to_string().into()).unwrap();
    assert_eq!(server.send(untyped).await.summary(), "415 unsupported-media-type");
    assert_eq!(server.get(path).await.summary(), "405 method-not-allowed");
    server.broker.lock().letter_refusal = Some(Error::Transient("a moment".to_owned()).into());
    assert_eq!(act(&server, "redrive", named).await.summary(), "503 log-unavailable after 1");
    assert_eq!(statuses(&server, LetterStatus::Open), 151);
}

#[tokio::test]
async fn each_refusal_of_a_look_has_its_kind() {
    let server = with_letters().await;
    for (path, expected) in [
        ("/v1/dead-letters?status=closed", "400 malformed-request"),
        ("/v1/dead-letters?category=sad", "400 malformed-request"),
        ("/v1/dead-letters?topic=a%20b", "400 malformed-request"),
        ("/v1/dead-letters?function=shop", "400 malformed-request"),
        ("/v1/dead-letters?function=shop.nowhere", "404 unknown-function"),
        ("/v1/dead-letters?after=orders/1/4", "400 malformed-request"),
        ("/v1/dead-letters?limit=0", "400 malformed-request"),
        ("/v1/dead-letters?state=open", "400 malformed-request"),
        ("/v1/dead-letters/shop.pay/orders/1/5", "404 unknown-dead-letter"),
        ("/v1/dead-letters/shop.pay/orders/1/five", "404 unknown-dead-letter"),
        ("/v1/dead-letters/shop.pay/orders/-1/5", "404 unknown-dead-letter"),
        ("/v1/dead-letters/shop/orders/1/4", "404 unknown-function"),
        ("/v1/dead-letters/shop.pay", "404 unknown-path"),
    ] {
        assert_eq!(server.get(path).await.summary(), expected, "{path}");
    }
}
