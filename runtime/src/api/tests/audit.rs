//! Who did what: what is written down of requests, and how it is found again.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use millrace_core::access::{Role, Token};
use millrace_core::audit::{Outcome, Record, Who};
use millrace_core::limits;
use millrace_core::outcome::Category;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::routes::{Needs, ROWS};
use super::super::types::Audit;
use super::super::{Api, ApiOptions, Journal, Keyring};
use super::access::{Ring, only, path, token};
use super::letters::letter;
use super::{NOW, Server};
use crate::broker::CatalogError;

/// Keeps records in memory; each offset that is even has one.
#[derive(Debug)]
struct Book {
    records: Mutex<Vec<Record>>,
    /// Writing waits while this is true.
    held: watch::Sender<bool>,
    read: Mutex<usize>,
}

impl Default for Book {
    fn default() -> Self {
        Self { records: Mutex::default(), held: watch::Sender::new(false), read: Mutex::default() }
    }
}

impl Book {
    fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.records.lock().unwrap())
    }

    fn fill(&self, records: impl IntoIterator<Item = Record>) {
        self.records.lock().unwrap().extend(records);
    }
}

impl Journal for Book {
    fn write(&self, record: Record) -> BoxFuture<'_, ()> {
        async move {
            self.held.subscribe().wait_for(|held| !held).await.unwrap();
            self.records.lock().unwrap().push(record);
        }
        .boxed()
    }

    fn lost(&self) -> u64 {
        7
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Range<u64>, CatalogError>> {
        let records = self.records.lock().unwrap().len() as u64;
        async move { Ok(0..2 * records) }.boxed()
    }

    fn read(&self, offsets: Range<u64>) -> BoxFuture<'_, Result<Vec<(u64, Record)>, CatalogError>> {
        let records = self.records.lock().unwrap();
        *self.read.lock().unwrap() += 1;
        let all = (0..).step_by(2).zip(records.iter().cloned());
        let found = all.filter(|(offset, _)| offsets.contains(offset)).collect();
        async move { Ok(found) }.boxed()
    }
}

struct Watched {
    server: Server,
    book: Arc<Book>,
    ring: Arc<Ring>,
    admin: String,
}

async fn start() -> Watched {
    let (book, ring) = (Arc::<Book>::default(), Arc::<Ring>::default());
    let (journal, keyring): (Arc<dyn Journal>, Arc<dyn Keyring>) = (book.clone(), ring.clone());
    let with = |api: Api<_, _>| api.with_journal(journal).with_keyring(keyring);
    let server = Server::start_as(ApiOptions::default(), with).await;
    server.activate("pay").await;
    let admin = ring.add(1, token(&[Role::Admin]));
    Watched { server, book, ring, admin }
}

impl Watched {
    async fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> super::Answer {
        let request = self.server.request(Method::from_bytes(method.as_bytes()).unwrap(), path);
        let request = request.header(CONTENT_TYPE, "application/json").header(AUTHORIZATION, format!("Bearer {token}"));
        self.server.send(request.body(Bytes::from(body.to_string())).unwrap()).await
    }

    async fn audit(&self, query: &str) -> Audit {
        self.ask("GET", &format!("/v1/audit{query}"), &self.admin, &json!({})).await.json()
    }
}

/// `<action> <functions> <topics> <about>: <result>, <detail>`, as far as there is any of it.
fn told(record: &Record) -> String {
    let Record { action, functions, topics, about, result, detail, .. } = record;
    let of = [functions.join("+"), topics.join("+"), about.clone()];
    let of: String = of.iter().filter(|name| !name.is_empty()).map(|name| format!(" {name}")).collect();
    let detail: String = detail.chars().take(40).collect();
    format!("{action}{of}: {result}{}{detail}", if detail.is_empty() { "" } else { ", " })
}

#[tokio::test]
async fn a_change_for_which_its_token_sends_too_much_is_refused() {
    let watched = start().await;
    let slow = Token { rate: Some("1/h".parse().unwrap()), ..token(&[Role::Operate]) };
    let slow = watched.ring.add(2, slow);
    for (method, path) in [
        ("GET", "/v1/topics"),
        // What is only looked at leaves nothing.
        ("GET", "/v1/topics"),
        ("POST", "/v1/functions/shop.pay/pause"),
    ] {
        watched.ask(method, path, &slow, &json!({})).await;
    }
    let told: Vec<String> = watched.book.take().iter().map(told).collect();
    assert_eq!(told, ["pause shop.pay: refused, rate-limited: the token ada (02020202020"]);
}

#[tokio::test]
async fn each_change_leaves_a_record_and_looking_and_rehearsing_none() {
    let watched = start().await;
    let letters = [letter("shop.pay", 1, Category::Unknown), letter("shop.pay", 2, Category::Unknown)];
    let letters = letters.map(|letter| ((letter.function.clone(), letter.id.clone()), letter));
    watched.server.broker.lock().letters = letters.into();
    let manifest = "application = 'shop'\n[functions.pay]\ncomponent = 'x.wasm'\ntopics = ['orders']\n";
    let digest = millrace_core::digest::Digest::of(b"null").to_string();
    let deploy = |dry_run: bool| json!({"component": digest, "manifest": manifest, "dry_run": dry_run});
    let (component, of_pay) = (format!("/v1/components/{digest}"), "/v1/functions/shop.pay");
    let pay = |what: &str| format!("{of_pay}/{what}");
    for (method, path, body, expected) in [
        ("PUT", &*component, json!(null), &*format!("upload component {}: done, 4 bytes", digest)),
        ("PUT", &component, json!(null), &format!("upload component {digest}: done, it was there already")),
        (
            "PUT",
            &component,
            json!("x"),
            &format!("upload component {digest}: failed, malformed-request: what arrived has the "),
        ),
        ("PUT", of_pay, deploy(true), ""),
        ("PUT", of_pay, deploy(false), "deploy shop.pay: done, deployment 1, revision 1"),
        ("PUT", of_pay, json!({}), "deploy shop.pay: failed, malformed-request: the body: missing fie"),
        ("POST", &pay("rollback"), json!({"to": 1, "dry_run": true}), ""),
        ("POST", &pay("rollback"), json!({"to": 1}), "rollback shop.pay: done, deployment 2, revision 2"),
        (
            "POST",
            &pay("rollback"),
            json!({"to": 9}),
            "rollback shop.pay: failed, unknown-revision: shop.pay: it has no re",
        ),
        ("POST", &pay("promote"), json!({}), "promote shop.pay: failed, conflict: shop.pay: it has no ca"),
        ("POST", &pay("pause"), json!({}), "pause shop.pay: done, deployment 3, revision 3"),
        ("POST", &pay("resume"), json!({}), "resume shop.pay: done, deployment 4, revision 4"),
        ("POST", &pay("skip"), json!({"dry_run": true}), ""),
        ("POST", &pay("skip"), json!({}), "skip shop.pay: done, 0 records"),
        ("DELETE", of_pay, json!({}), "delete shop.pay: done, deployment 5, revision 5"),
        ("POST", "/v1/dead-letters/redrive", json!({"all": true, "dry_run": true}), ""),
        ("POST", "/v1/dead-letters/redrive", json!({"all": true}), "redrive shop.pay orders: done, 2 letters"),
        (
            "POST",
            "/v1/dead-letters/discard",
            json!({"function": "shop.pay", "ids": ["orders/1/1"], "note": "n"}),
            "discard shop.pay orders: failed, dead-letter-not-open: dead letter `order",
        ),
        ("POST", "/v1/dead-letters/resolve", json!({"function": "shop.pay"}), "resolve shop.pay: done, 0 letters"),
        (
            "DELETE",
            "/v1/tokens/000000000000",
            json!({}),
            "revoke-token token 000000000000: failed, unknown-token: there is no token `00000",
        ),
        ("GET", "/v1/functions", json!({}), ""),
        ("GET", "/v1/audit", json!({}), ""),
        ("POST", "/v1/topics/orders/events", json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}), ""),
        ("GET", "/nowhere", json!({}), ""),
    ] {
        let answer = watched.ask(method, path, &watched.admin, &body).await;
        let records = watched.book.take();
        let said: Vec<String> = records.iter().map(told).collect();
        let said = said.join("; ");
        assert_eq!(said.is_empty(), expected.is_empty(), "{method} {path} {body}: {answer:?} {said}");
        assert!(said.starts_with(expected), "{method} {path} {body}: {said}");
        for record in records {
            assert_eq!((&*record.who.by, &*record.who.token), ("ada", "010101010101"));
            assert!((0..60_000).contains(&(record.at_ms - NOW.as_millis())), "{record:?}");
            assert!(record.who.from.starts_with("127.0.0.1:"), "{record:?}");
        }
    }
}

#[tokio::test]
async fn tokens_that_are_made_and_revoked_are_told_of_by_their_ids() {
    let watched = start().await;
    let body = json!({"name": "ci", "roles": ["view", "deploy"], "functions": ["shop.*"], "topics": ["a", "b"]});
    let made: super::super::types::TokenMade =
        serde_json::from_slice(&watched.ask("POST", "/v1/tokens", &watched.admin, &body).await.body).unwrap();
    let id = &made.made.id;
    assert_eq!(watched.ask("DELETE", &format!("/v1/tokens/{id}"), &watched.admin, &json!({})).await.status, 200);
    let said: Vec<String> = watched.book.take().iter().map(told).collect();
    let created = format!("create-token token {id}: done, ci: view deploy, functions shop.*, topic");
    assert_eq!(said, [created, format!("revoke-token token {id}: done, ci")]);
}

#[tokio::test]
async fn every_refusal_leaves_a_record_that_says_why_and_has_no_secret() {
    let watched = start().await;
    let view = watched.ring.add(2, token(&[Role::View]));
    let publish = watched.ring.add(3, only(&[Role::Publish, Role::Admin], &["other"], &["other"]));
    for row in ROWS.iter().filter(|row| row.needs != Needs::Nothing) {
        let path = path(row);
        assert_eq!(watched.ask(row.method, &path, "planted", &json!({})).await.status, 401, "{row:?}");
        let [record] = &watched.book.take()[..] else { panic!("{row:?}") };
        assert_eq!((&*record.action, record.result, &*record.who.by), (row.action, Outcome::Refused, ""), "{row:?}");
        assert!(record.detail.starts_with("unauthenticated: this needs a token"), "{record:?}");
        assert_eq!(record.functions.is_empty(), !row.path.contains("{function}"), "{record:?}");
        for (token, id) in [(&view, "020202020202"), (&publish, "030303030303")] {
            let status = watched.ask(row.method, &path, token, &json!({})).await.status;
            let records = watched.book.take();
            assert_eq!(
                status == 403,
                records.iter().any(|record| record.result == Outcome::Refused),
                "{row:?} {records:?}"
            );
            assert!(records.iter().all(|record| record.who.token == id), "{records:?}");
        }
    }
    for (method, path, token, expected) in [
        ("GET", "/nowhere", "planted", "unknown: refused, unauthenticated: this needs"),
        ("POST", "/v1/functions/shop.pay/pause", &*view, "pause shop.pay: refused, forbidden: this needs one of"),
        ("POST", "/v1/topics/orders/events", &publish, "publish orders: refused, forbidden: the token is for"),
        (
            "POST",
            "/v1/topics/millrace.registry/events",
            &watched.admin,
            "publish millrace.registry: refused, reserved-topic: ",
        ),
        ("GET", "/v1/topics/millrace.audit/events", &view, "view millrace.audit: refused, forbidden: this needs the"),
        ("DELETE", &format!("/v1/tokens/{}", watched.admin), &view, "revoke-token: refused, forbidden: this needs the"),
        ("GET", &format!("/v1/topics/{}/events", watched.admin), "planted", "view mr_010101010101_"),
    ] {
        watched.ask(method, path, token, &json!({})).await;
        let records = watched.book.take();
        let [record] = &records[..] else { panic!("{path}: {records:?}") };
        assert!(told(record).starts_with(expected), "{path}: {}", told(record));
        let kept = String::from_utf8(record.clone().encode()).unwrap();
        assert!(!kept.contains(&watched.admin[16..]) && !kept.contains("planted"), "{kept}");
    }
    let foreign = watched.server.request(Method::GET, "/v1/topics").header("origin", "http://elsewhere.example");
    assert_eq!(watched.server.send(foreign.body(Bytes::new()).unwrap()).await.status, 403);
    assert!(told(&watched.book.take()[0]).starts_with("view: refused, foreign-origin: "));
}

#[tokio::test]
async fn what_somebody_began_is_written_down_although_he_gives_up() {
    let watched = start().await;
    watched.book.held.send_replace(true);
    let stream = TcpStream::connect(watched.server.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = watched.server.request(Method::DELETE, "/v1/tokens/000000000000");
    let request = request.header(AUTHORIZATION, format!("Bearer {}", watched.admin));
    let asking = tokio::spawn(sender.send_request(request.body(Full::<Bytes>::default()).unwrap()));
    while watched.book.held.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    asking.abort();
    connection.abort();
    assert!(connection.await.unwrap_err().is_cancelled());
    // The server learns of it before it answers another one.
    for _ in 0..10 {
        assert_eq!(watched.server.get("/livez").await.status, 200);
    }
    // Nor is it dropped when serving ends.
    let (book, ring) = (Arc::clone(&watched.book), Arc::clone(&watched.ring));
    let mut stopping = tokio::spawn(watched.server.stop());
    assert!(tokio::time::timeout(std::time::Duration::from_millis(100), &mut stopping).await.is_err());
    book.held.send_replace(false);
    stopping.await.unwrap();
    assert_eq!((book.take()[0].action.as_str(), ring.tokens().count()), ("revoke-token", 1));
}

fn record(n: u64) -> Record {
    Record {
        at_ms: n * 1000,
        who: Who { by: ["even", "odd"][usize::from(n % 2 == 1)].to_owned(), ..Who::default() },
        action: "pause".to_owned(),
        functions: vec![format!("shop.f{n}")],
        result: Outcome::Done,
        ..Record::default()
    }
}

#[tokio::test]
async fn records_are_found_page_by_page_the_newest_first() {
    let watched = start().await;
    assert_eq!(watched.audit("").await, Audit::default());
    watched.book.fill((0..1000).map(record));
    let found = |audit: &Audit| audit.records.iter().map(|record| record.offset / 2).collect::<Vec<_>>();
    let newest = watched.audit("?limit=3").await;
    assert_eq!((found(&newest), newest.next), (vec![999, 998, 997], Some(1994)));
    assert_eq!(newest.records[0].functions, ["shop.f999"]);
    for (query, expected) in [
        ("function=shop.f7", vec![7]),
        ("function=shop.f1*5&by=odd&limit=1000", vec![195, 185, 175, 165, 155, 145, 135, 125, 115, 105, 15]),
        ("by=even&before=9", vec![4, 2, 0]),
        ("before=0", vec![]),
        ("before=99999&limit=1", vec![999]),
        ("action=pause&result=done&limit=1", vec![999]),
        ("action=resume", vec![]),
        ("result=refused", vec![]),
        ("topic=*", vec![]),
        ("since=1970-01-01T00:16:38Z", vec![999, 998]),
    ] {
        assert_eq!(found(&watched.audit(&format!("?{query}")).await), expected, "{query}");
    }
    // All pages together are all records, each once.
    let (mut all, mut before) = (Vec::new(), String::new());
    loop {
        let page = watched.audit(&format!("?by=odd&limit=7{before}")).await;
        all.extend(found(&page));
        match page.next {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(all, (0..1000).rev().filter(|n| n % 2 == 1).collect::<Vec<_>>());
    for wrong in ["function=a b", "result=good", "since=yesterday", "before=-1", "limit=0", "limit=1001", "who=me"] {
        let path = format!("/v1/audit?{}", wrong.replace(' ', "%20"));
        let answer = watched.ask("GET", &path, &watched.admin, &json!({})).await;
        assert_eq!(answer.summary(), "400 malformed-request", "{wrong}");
    }
}

#[tokio::test]
async fn one_request_looks_at_so_many_records_and_no_older_ones_than_it_must() {
    let watched = start().await;
    watched.book.fill((0..20_000).map(record));
    let none = watched.audit("?action=resume").await;
    let looked_at = 40_000 - none.next.unwrap();
    assert!(none.records.is_empty() && (10_000..11_000).contains(&looked_at), "{none:?}");
    assert!(looked_at >= limits::AUDIT_SCANNED_MAX);
    *watched.book.read.lock().unwrap() = 0;
    // An hour and a few minutes are looked at, since clocks can differ.
    let recent = watched.audit("?since=1970-01-01T05:33:19Z").await;
    assert_eq!((recent.records.len(), recent.next), (1, None));
    assert!(*watched.book.read.lock().unwrap() < 40);
}

#[tokio::test]
async fn without_a_journal_nothing_is_written_down_and_that_is_said() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/audit").await.summary(), "404 unknown-path");
    let watched = start().await;
    let metrics = watched.ask("GET", "/metrics", &watched.admin, &json!({})).await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("millrace_lost_audit_records_total 7"));
}
