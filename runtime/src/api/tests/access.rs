//! Who may do what: each route with each kind of token.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Method, Request};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_core::access::{Role, Secret, Shown, Token, TokenId, Tokens};
use serde_json::json;

use super::super::Deployer;
use super::super::access::{AccessOptions, Keyring};
use super::super::routes::{About, Needs, ROWS, Row};
use super::super::types::{self, TokenMade, TokenRevoked};
use super::super::{Api, ApiOptions};
use super::deploying::InMemory;
use super::letters::letter;
use super::reading::unit;
use super::{Answer, NOW, Server};
use crate::broker::{EntryError, Error, LetterStatus, StateEntry, UnitInfo};
use millrace_core::outcome::Category;
use millrace_core::revision::Action;

/// Keeps tokens in memory.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// By names of entries, and how often they were changed.
    kept: Mutex<(BTreeMap<String, Vec<u8>>, u64)>,
    /// What others do before the next changes.
    others: Mutex<Vec<(TokenId, Option<Token>)>>,
    /// Whether what is put is there, and nobody is told so.
    loses_answers: AtomicBool,
}

impl Keyring for Ring {
    fn tokens(&self) -> Arc<Tokens> {
        let (kept, _) = &*self.kept.lock().unwrap();
        Arc::new(Tokens::read(kept.iter().map(|(name, content)| (name.as_str(), &content[..]))))
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(Arc<Tokens>, u64), Error>> {
        async { Ok((self.tokens(), self.kept.lock().unwrap().1)) }.boxed()
    }

    fn put(&self, id: TokenId, token: Option<Token>, builds_on: u64) -> BoxFuture<'_, Result<(), EntryError>> {
        if let Some((id, token)) = self.others.lock().unwrap().pop() {
            self.set(&id, token);
        }
        let is_late = self.kept.lock().unwrap().1 != builds_on;
        if !is_late {
            self.set(&id, token);
        }
        let answer = match (is_late, self.loses_answers.load(Ordering::Relaxed)) {
            (true, _) => Err(EntryError::Conflict),
            (false, true) => Err(Error::Transient("no answer".to_owned()).into()),
            (false, false) => Ok(()),
        };
        async move { answer }.boxed()
    }
}

impl Ring {
    /// Keeps one more token, and answers with its text.
    pub(super) fn add(&self, seed: u8, token: Token) -> String {
        let shown = Shown::of_random([seed; 6], [seed; 32]);
        let token = Token { secret: shown.secret(), ..token };
        self.set(&shown.id, Some(token));
        shown.text()
    }

    fn set(&self, id: &TokenId, token: Option<Token>) {
        let (kept, changes) = &mut *self.kept.lock().unwrap();
        *changes += 1;
        match token {
            Some(token) => kept.insert(id.entry(), token.encode()),
            None => kept.remove(&id.entry()),
        };
    }
}

pub(super) fn token(roles: &[Role]) -> Token {
    Token {
        name: "ada".to_owned(),
        secret: Secret::of(""),
        roles: roles.iter().copied().collect(),
        functions: Vec::new(),
        topics: Vec::new(),
        rate: None,
        created_ms: 0,
        created_by: String::new(),
        expires_ms: None,
    }
}

pub(super) fn only(roles: &[Role], functions: &[&str], topics: &[&str]) -> Token {
    let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Token { functions: patterns(functions), topics: patterns(topics), ..token(roles) }
}

pub(super) async fn start(access: AccessOptions) -> (Server, Arc<Ring>) {
    let ring = Arc::<Ring>::default();
    let keyring: Arc<dyn Keyring> = ring.clone();
    let server =
        Server::start_as(ApiOptions { access, ..ApiOptions::default() }, |api: Api<_, _>| api.with_keyring(keyring))
            .await;
    (server, ring)
}

async fn ask(server: &Server, method: &str, path: &str, shown: Option<&str>, body: &str) -> Answer {
    let mut request = server.request(Method::from_bytes(method.as_bytes()).unwrap(), path);
    if let Some(shown) = shown {
        request = request.header(AUTHORIZATION, shown);
    }
    let request = request.header(CONTENT_TYPE, "application/json");
    server.send(request.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()).await
}

pub(super) async fn with_token(
    server: &Server,
    method: &str,
    path: &str,
    token: &str,
    body: serde_json::Value,
) -> Answer {
    ask(server, method, path, Some(&format!("Bearer {token}")), &body.to_string()).await
}

/// `allowed`, whatever comes of it, or why not.
fn verdict(answer: &Answer) -> String {
    match answer.status {
        401 => {
            assert_eq!(answer.headers.get(WWW_AUTHENTICATE).unwrap(), "Bearer");
            "unauthenticated".to_owned()
        }
        403 => answer.problem().kind.rsplit('/').next().unwrap().to_owned(),
        _ => "allowed".to_owned(),
    }
}

/// Who may use which route, once more and in other words: a new route needs a row here too.
const MAY: [(&str, &str, &str); 32] = [
    ("POST", "/v1/topics/{topic}/events", "publish admin"),
    ("GET", "/v1/topics/{topic}/events", "view deploy operate admin"),
    ("GET", "/v1/topics", "view deploy operate admin"),
    ("GET", "/v1/functions", "view deploy operate admin"),
    ("GET", "/v1/status", "view deploy operate admin"),
    ("GET", "/v1/functions/{function}", "view deploy operate admin"),
    ("GET", "/v1/functions/{function}/revisions", "view deploy operate admin"),
    ("GET", "/v1/functions/{function}/state", "view deploy operate admin"),
    ("GET", "/v1/components/{digest}", "view deploy operate admin"),
    ("PUT", "/v1/components/{digest}", "deploy admin"),
    ("PUT", "/v1/functions/{function}", "deploy admin"),
    ("DELETE", "/v1/functions/{function}", "deploy admin"),
    ("POST", "/v1/functions/{function}/rollback", "deploy operate admin"),
    ("POST", "/v1/functions/{function}/promote", "deploy admin"),
    ("POST", "/v1/functions/{function}/canary", "deploy admin"),
    ("POST", "/v1/functions/{function}/pause", "operate admin"),
    ("POST", "/v1/functions/{function}/resume", "operate admin"),
    ("POST", "/v1/functions/{function}/reset", "operate admin"),
    ("POST", "/v1/functions/{function}/skip", "operate admin"),
    ("GET", "/v1/dead-letters", "view deploy operate admin"),
    ("GET", "/v1/dead-letters/{function}/{topic}/{partition}/{offset}", "view deploy operate admin"),
    ("POST", "/v1/dead-letters/redrive", "operate admin"),
    ("POST", "/v1/dead-letters/resolve", "operate admin"),
    ("POST", "/v1/dead-letters/discard", "operate admin"),
    ("GET", "/v1/audit", "admin"),
    ("GET", "/v1/tokens", "admin"),
    ("POST", "/v1/tokens", "admin"),
    ("DELETE", "/v1/tokens/{id}", "admin"),
    ("GET", "/v1/openapi.json", "all"),
    ("GET", "/livez", "all"),
    ("GET", "/readyz", "all"),
    ("GET", "/metrics", "view deploy operate admin"),
];

pub(super) fn path(row: &Row) -> String {
    let named = [("{function}", "shop.pay"), ("{topic}", "orders"), ("{partition}", "0"), ("{offset}", "1")];
    let path = named.iter().fold(row.path.to_owned(), |path, (part, name)| path.replace(part, name));
    path.replace("{digest}", &"e".repeat(64)).replace("{id}", "ffffffffffff")
}

#[tokio::test]
async fn each_route_is_for_whom_the_table_says() {
    let (server, ring) = start(AccessOptions::default()).await;
    let plain = Role::ALL.map(|role| (role, ring.add(role as u8, token(&[role]))));
    let elsewhere = Role::ALL.map(|role| (role, ring.add(10 + role as u8, only(&[role], &["other.*"], &["other*"]))));
    let expired = ring.add(20, Token { expires_ms: Some(NOW.as_millis()), ..token(&Role::ALL) });
    let revoked = ring.add(21, token(&Role::ALL));
    ring.set(&"151515151515".parse().unwrap(), None);
    let wrong = format!("{}{}", &plain[4].1[..20], "0".repeat(plain[4].1.len() - 20));
    let bad = [
        None,
        Some("Bearer planted".to_owned()),
        Some(format!("Bearer {wrong}")),
        Some(format!("Bearer {expired}")),
        Some(format!("Bearer {revoked}")),
        Some(format!("Basic {}", plain[4].1)),
        Some(plain[4].1.clone()),
    ];
    assert_eq!(ROWS.len(), MAY.len());
    let mut said = Vec::new();
    for row in &ROWS {
        let may = MAY.iter().find(|(method, path, _)| (*method, *path) == (row.method, row.path)).unwrap().2;
        let is_free = row.needs == Needs::Nothing;
        assert_eq!(is_free, may == "all", "{row:?}");
        let path = path(row);
        let mut unauthenticated = Vec::new();
        for shown in &bad {
            let answer = ask(&server, row.method, &path, shown.as_deref(), "{}").await;
            assert_eq!(verdict(&answer), if is_free { "allowed" } else { "unauthenticated" }, "{row:?} {shown:?}");
            unauthenticated.push(answer.body.clone());
            said.push(answer.body);
        }
        // Nothing tells which of the reasons it was.
        assert!(unauthenticated.iter().all(|body| *body == unauthenticated[0]), "{row:?}");
        let head = if row.method == "GET" { ask(&server, "HEAD", &path, None, "").await.status } else { 401 };
        assert_eq!(head == 401, !is_free, "{row:?}");
        for (role, token) in &plain {
            let answer = with_token(&server, row.method, &path, token, json!({})).await;
            let expected = if is_free || may.contains(role.as_str()) { "allowed" } else { "forbidden" };
            assert_eq!(verdict(&answer), expected, "{row:?} {role}: {answer:?}");
            // The router knows what the table has.
            assert_ne!(answer.status, 405, "{row:?}");
            assert!(
                answer.status != 404
                    || !answer.summary().contains("unknown-path")
                    || answer.problem().detail.contains("this server")
            );
            if expected == "forbidden" {
                assert!(
                    may.split(' ').all(|role| answer.problem().detail.contains(&format!("`{role}`"))),
                    "{answer:?}"
                );
            }
            said.push(answer.body);
        }
        for (role, token) in &elsewhere {
            let answer = with_token(&server, row.method, &path, token, json!({})).await;
            let restricted = match row.needs {
                Needs::Nothing => false,
                Needs::Permission(_, about) | Needs::UnlessOpened(_, about) => {
                    !matches!(about, About::Chosen | About::Neither)
                }
            };
            let may = is_free || may.contains(role.as_str()) && !restricted;
            assert_eq!(verdict(&answer), if may { "allowed" } else { "forbidden" }, "{row:?} {role}: {answer:?}");
            said.push(answer.body);
        }
    }
    said.push(with_token(&server, "GET", "/metrics", &plain[4].1, json!({})).await.body);
    let said = said.iter().map(|body| String::from_utf8_lossy(body)).collect::<String>();
    for secret in plain.iter().chain(&elsewhere).map(|(_, token)| token).chain([&expired, &revoked, &wrong]) {
        assert!(!said.contains(&secret[16..]));
    }
    assert!(!said.contains("planted"));
}

#[tokio::test]
async fn what_is_not_in_the_table_is_not_reached_without_a_token_and_not_with_one() {
    let (server, ring) = start(AccessOptions::default()).await;
    let admin = ring.add(1, token(&[Role::Admin]));
    for (method, path, expected) in [
        ("GET", "/nowhere", "404 unknown-path"),
        ("DELETE", "/v1/topics", "405 method-not-allowed"),
        ("OPTIONS", "/v1/functions/shop.pay", "405 method-not-allowed"),
        ("POST", "/livez", "405 method-not-allowed"),
    ] {
        assert_eq!(ask(&server, method, path, None, "").await.status, 401, "{method} {path}");
        assert_eq!(with_token(&server, method, path, &admin, json!({})).await.summary(), expected, "{method} {path}");
    }
    let answer = with_token(&server, "OPTIONS", "/v1/functions/shop.pay", &admin, json!({})).await;
    assert_eq!(answer.headers.get("allow").unwrap(), "GET,HEAD,PUT,DELETE");
    // Two tokens are none.
    let twice = server.request(Method::GET, "/v1/topics").header(AUTHORIZATION, format!("Bearer {admin}"));
    let twice: Request<Bytes> = twice.header(AUTHORIZATION, format!("Bearer {admin}")).body(Bytes::new()).unwrap();
    assert_eq!(server.send(twice).await.status, 401);
}

#[tokio::test]
async fn without_any_token_it_depends_on_the_configuration() {
    let admin = "an-administrator-s-token-0123456789";
    let closed = AccessOptions { open_without_tokens: false, ..AccessOptions::default() };
    let configured = AccessOptions { admin_token: Some(Secret::of(admin)), ..AccessOptions::default() };
    let measured = AccessOptions { open_metrics: true, ..closed.clone() };
    for (access, anonymous, metrics, with_admin) in [
        (AccessOptions::default(), 200, 200, 200),
        (closed, 401, 401, 401),
        (configured, 401, 401, 200),
        (measured, 401, 200, 401),
    ] {
        let (server, _) = start(access).await;
        assert_eq!(server.get("/v1/topics").await.status, anonymous);
        assert_eq!(server.get("/metrics").await.status, metrics);
        assert_eq!(with_token(&server, "GET", "/v1/tokens", admin, json!({})).await.status, with_admin);
        assert_eq!(server.get("/livez").await.status, 200);
    }
}

#[tokio::test]
async fn lists_leave_out_what_patterns_do_not_allow() {
    let (server, ring) = start(AccessOptions::default()).await;
    server.activate("pay").await;
    server.activate("ship").await;
    server.broker.add_internal("millrace.registry");
    let of_payments = |mut letter: crate::broker::StoredLetter| {
        letter.id.topic = "payments".parse().unwrap();
        letter
    };
    let unknown = Category::Unknown;
    let letters =
        [letter("shop.pay", 1, unknown), of_payments(letter("shop.pay", 2, unknown)), letter("shop.ship", 3, unknown)];
    server.broker.lock().letters = letters.map(|letter| ((letter.function.clone(), letter.id.clone()), letter)).into();
    let narrow = ring.add(1, only(&[Role::View, Role::Operate], &["shop.p*"], &["ord*"]));
    let wide = ring.add(2, token(&[Role::View]));
    let admin = ring.add(3, token(&[Role::Admin]));
    let names = async |path: &str, token: &str| {
        let answer = with_token(&server, "GET", path, token, json!({})).await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        ["shop.pay", "shop.ship", "orders", "payments", "millrace.registry"]
            .map(|name| text.contains(&format!("\"{name}")))
    };
    for (path, of_narrow, of_wide) in [
        ("/v1/functions", [true, false, true, false, false], [true, true, true, false, false]),
        ("/v1/topics?internal=true", [false, false, true, false, false], [false, false, true, true, false]),
        ("/v1/dead-letters", [true, false, true, false, false], [true, true, true, true, false]),
    ] {
        assert_eq!(names(path, &narrow).await, of_narrow, "{path}");
        assert_eq!(names(path, &wide).await, of_wide, "{path}");
    }
    assert!(names("/v1/topics?internal=true", &admin).await[4]);
    let get = async |path: &str, token: &str| verdict(&with_token(&server, "GET", path, token, json!({})).await);
    assert_eq!(get("/v1/topics/millrace.registry/events", &wide).await, "forbidden");
    assert_eq!(get("/v1/topics/millrace.registry/events", &admin).await, "allowed");
    assert_eq!(get("/v1/dead-letters?function=shop.ship", &narrow).await, "forbidden");
    assert_eq!(get("/v1/functions/shop.%70ay", &narrow).await, "allowed");
    assert_eq!(get("/v1/functions/shop.%73hip", &narrow).await, "forbidden");
    let absent = with_token(&server, "GET", "/v1/functions/shop.paid", &narrow, json!({})).await.problem().detail;
    assert!(absent.contains("shop.pay") && !absent.contains("shop.ship"), "{absent}");
    let absent = with_token(&server, "GET", "/v1/topics/ordinary/events", &narrow, json!({})).await.problem().detail;
    assert!(absent.contains("`orders`") && !absent.contains("payments"), "{absent}");
    for (request, expected) in [
        (json!({"function": "shop.ship", "ids": ["orders/1/3"]}), "403 forbidden"),
        (json!({"function": "shop.pay", "ids": ["orders/1/1", "payments/1/2"]}), "403 forbidden"),
        (json!({"function": "shop.ship"}), "403 forbidden"),
        (json!({"all": true}), "200"),
    ] {
        let answer = with_token(&server, "POST", "/v1/dead-letters/redrive", &narrow, request.clone()).await;
        assert_eq!(answer.summary(), expected, "{request}");
    }
    let redriven =
        server.broker.lock().letters.values().filter(|letter| letter.status == LetterStatus::Redriven).count();
    assert_eq!(redriven, 1);
}

#[tokio::test]
async fn what_is_shown_of_a_function_is_chosen_by_patterns_for_functions_and_its_state_by_both() {
    let (server, ring) = start(AccessOptions::default()).await;
    server.activate("pay").await;
    let mut other = unit(0);
    other.unit.topic = "payments".parse().unwrap();
    let stored = |unit: &UnitInfo| {
        let key = unit.unit.topic.as_str().into();
        (unit.unit.clone(), StateEntry { key, value: Bytes::from_static(b"1") })
    };
    {
        let mut state = server.broker.lock();
        (state.stored, state.units) = (vec![stored(&unit(0)), stored(&other)], vec![unit(0), other]);
    }
    let admin = ring.add(1, token(&[Role::Admin]));
    let manifest = "application = 'shop'\n[functions.pay]\ncomponent = 'x.wasm'\ntopics = ['orders']";
    let body = json!({"component": "0".repeat(64), "manifest": manifest});
    assert_eq!(with_token(&server, "PUT", "/v1/functions/shop.pay", &admin, body).await.status, 200);
    for (seed, functions, topics, sees, of_state) in [
        (2, &["shop.*"][..], &["payments"][..], true, [false, true]),
        (3, &["shop.*"], &["orders"], true, [true, false]),
        (4, &[], &["none"], true, [false, false]),
        (5, &["shop.*"], &[], true, [true, true]),
        (6, &["other.*"], &["orders"], false, [false, false]),
    ] {
        let token = ring.add(seed, only(&[Role::View], functions, topics));
        let get = async |path: &str| {
            let answer = with_token(&server, "GET", path, &token, json!({})).await;
            (answer.status, String::from_utf8(answer.body.to_vec()).unwrap())
        };
        for path in ["/v1/functions/shop.pay", "/v1/functions/shop.pay/revisions", "/v1/status"] {
            let (status, shown) = get(path).await;
            assert_eq!(status, if sees || path == "/v1/status" { 200 } else { 403 }, "{path} {token}");
            assert_eq!(status == 200 && shown.contains("orders"), sees, "{path} {token}: {shown}");
        }
        let (status, shown) = get("/v1/functions/shop.pay/state").await;
        assert_eq!(status, if sees { 200 } else { 403 });
        assert_eq!(["\"orders\"", "\"payments\""].map(|topic| status == 200 && shown.contains(topic)), of_state);
    }
}

#[tokio::test]
async fn whoever_publishes_alone_is_told_of_no_topics() {
    let (server, ring) = start(AccessOptions::default()).await;
    for (seed, roles, is_told) in [(1, &[Role::Publish][..], false), (2, &[Role::Publish, Role::View], true)] {
        let token = ring.add(seed, token(roles));
        let answer = with_token(&server, "POST", "/v1/topics/absent/events", &token, json!({})).await;
        let detail = answer.problem().detail;
        assert!(answer.status == 404 && detail.contains("a topic is made when"), "{answer:?}");
        assert_eq!(detail.contains("`orders`"), is_told, "{detail}");
    }
}

#[tokio::test]
async fn a_manifest_with_topics_beyond_the_patterns_is_refused() {
    let (server, ring) = start(AccessOptions::default()).await;
    let narrow = ring.add(1, only(&[Role::Deploy], &["shop.*"], &["orders*"]));
    let put = async |topics: &str, publish: &str| {
        let manifest = format!(
            "application = 'shop'\n[functions.pay]\ncomponent = 'x.wasm'\ntopics = [{topics}]\ngrants.publish = [{publish}]"
        );
        let body = json!({"component": "0".repeat(64), "manifest": manifest});
        with_token(&server, "PUT", "/v1/functions/shop.pay", &narrow, body).await
    };
    assert_eq!(put("'orders'", "'payments'").await.summary(), "403 forbidden");
    assert_eq!(put("'payments'", "'orders'").await.summary(), "403 forbidden");
    assert!(put("'payments'", "").await.problem().detail.contains("`orders*` alone, and `payments`"));
    assert_eq!(put("'orders'", "'orders-2'").await.summary(), "200");
}

#[tokio::test]
async fn whoever_changes_a_function_reaches_all_topics_of_what_it_was_and_of_what_it_becomes() {
    let (server, ring) = start(AccessOptions::default()).await;
    let admin = ring.add(1, token(&[Role::Admin]));
    let both = [Role::Deploy, Role::Operate];
    let narrow = ring.add(2, only(&both, &["shop.*"], &["orders*"]));
    let wide = ring.add(3, only(&both, &["shop.*"], &["orders*", "payments"]));
    let of_function = ring.add(4, only(&both, &["shop.*"], &[]));
    let there = "/v1/functions/shop.pay";
    let deploy = async |token: &str, topics: &str, publish: &str| {
        let manifest = format!(
            "application = 'shop'\n[functions.pay]\ncomponent = 'x.wasm'\ntopics = ['{topics}']\ngrants.publish = ['{publish}']"
        );
        let body = json!({"component": "0".repeat(64), "manifest": manifest});
        with_token(&server, "PUT", there, token, body).await.summary()
    };
    let act = async |token: &str, what: &str, body: serde_json::Value| {
        let (method, path) = match what {
            "delete" => ("DELETE", there.to_owned()),
            _ => ("POST", format!("{there}/{what}")),
        };
        with_token(&server, method, &path, token, body).await.summary()
    };
    let to = |revision: u64| json!({ "to": revision });
    // Revision 1 publishes to `payments`, and revision 3 does not.
    assert_eq!(deploy(&admin, "orders", "payments").await, "200");
    assert_eq!(act(&admin, "rollback", to(1)).await, "200");
    assert_eq!(deploy(&admin, "orders", "orders-2").await, "200");
    assert_eq!(act(&admin, "rollback", to(3)).await, "200");
    for (token, what, body, expected) in [
        (&narrow, "pause", json!({}), "200"),
        (&narrow, "rollback", to(3), "200"),
        (&narrow, "rollback", to(1), "403 forbidden"),
        (&narrow, "rollback", json!({"to": 1, "dry_run": true}), "403 forbidden"),
        (&narrow, "rollback", json!({}), "403 forbidden"),
        (&of_function, "rollback", to(1), "200"),
        // What runs now is not for `narrow`.
        (&narrow, "rollback", to(3), "403 forbidden"),
        (&narrow, "pause", json!({}), "403 forbidden"),
        (&narrow, "resume", json!({}), "403 forbidden"),
        (&narrow, "delete", json!({}), "403 forbidden"),
        (&wide, "pause", json!({}), "200"),
        (&wide, "rollback", to(3), "200"),
        (&wide, "rollback", to(1), "200"),
        (&wide, "resume", json!({}), "200"),
    ] {
        assert_eq!(act(token, what, body.clone()).await, expected, "{what} {body}");
    }
    assert_eq!(deploy(&narrow, "orders", "orders-2").await, "403 forbidden");
    assert_eq!(deploy(&wide, "orders", "orders-2").await, "200");
    // Nor may others touch what is staged.
    assert_eq!(deploy(&wide, "payments", "orders").await, "200");
    assert_eq!(act(&wide, "delete", json!({})).await, "200");
    assert_eq!(act(&wide, "rollback", to(3)).await, "200");
    assert_eq!(deploy(&wide, "payments", "orders").await, "200");
    assert_eq!(act(&narrow, "pause", json!({})).await, "403 forbidden");
}

#[tokio::test]
async fn what_was_looked_at_is_changed_and_not_what_somebody_else_makes_of_it_meanwhile() {
    let (ring, deployer) = (Arc::<Ring>::default(), Arc::<InMemory>::default());
    let (keyring, deploys): (Arc<dyn Keyring>, Arc<dyn Deployer>) = (ring.clone(), deployer.clone());
    let with = |api: Api<_, _>| api.with_keyring(keyring).with_deployer(deploys);
    let server = Server::start_as(ApiOptions::default(), with).await;
    let admin = ring.add(1, token(&[Role::Admin]));
    let narrow = ring.add(2, only(&[Role::Operate], &["shop.*"], &["orders*"]));
    for publish in ["orders-1", "payments"] {
        let manifest = format!(
            "application = 'shop'\n[functions.pay]\ncomponent = 'x.wasm'\ntopics = ['orders']\ngrants.publish = ['{publish}']"
        );
        let body = json!({"component": "0".repeat(64), "manifest": manifest});
        assert_eq!(with_token(&server, "PUT", "/v1/functions/shop.pay", &admin, body).await.status, 200);
    }
    let others = |actions: Vec<Action>| {
        *deployer.others.lock().unwrap() =
            actions.into_iter().rev().map(|action| ("shop.pay".parse().unwrap(), action)).collect();
    };
    let act = async |token: &str, what: &str, body: serde_json::Value| {
        with_token(&server, "POST", &format!("/v1/functions/shop.pay/{what}"), token, body).await.summary()
    };
    assert_eq!(act(&admin, "rollback", json!({"to": 1})).await, "200");
    // Somebody lets the one run that is not for `narrow`, just before `narrow` does something.
    others(vec![Action::Rollback { to: 2 }]);
    assert_eq!(act(&narrow, "pause", json!({})).await, "403 forbidden");
    assert_eq!(act(&admin, "rollback", json!({"to": 1})).await, "200");
    // What is none of its business is no reason to be refused, unless it never ends.
    others(vec![Action::Pause, Action::Resume]);
    assert_eq!(act(&narrow, "pause", json!({})).await, "200");
    others([Action::Pause, Action::Resume].into_iter().cycle().take(20).collect());
    assert_eq!(act(&narrow, "pause", json!({})).await, "409 conflict");
    // Nor is something done that builds on what was not looked at.
    others(vec![Action::Resume]);
    assert_eq!(act(&narrow, "rollback", json!({"to": 1, "builds_on": 1000})).await, "409 conflict");
}

#[tokio::test]
async fn a_position_is_moved_by_who_reaches_all_topics_of_the_function() {
    let (server, ring) = start(AccessOptions::default()).await;
    server.activate("pay").await;
    server.activate_with("ship", "grants.publish = ['payments']").await;
    for (seed, topics, of_pay, of_ship) in [
        (1, &["orders"][..], "200", "403 forbidden"),
        (2, &["payments"], "403 forbidden", "403 forbidden"),
        (3, &["orders", "payments"], "200", "200"),
        (4, &[], "200", "200"),
    ] {
        let token = ring.add(seed, only(&[Role::Operate], &[], topics));
        for (function, expected) in [("pay", of_pay), ("ship", of_ship)] {
            let path = format!("/v1/functions/shop.{function}/skip");
            let answer = with_token(&server, "POST", &path, &token, json!({"dry_run": true})).await;
            assert_eq!(answer.summary(), expected, "{function} {topics:?}");
        }
    }
}

#[tokio::test]
async fn tokens_are_made_shown_once_listed_and_revoked() {
    let (server, ring) = start(AccessOptions::default()).await;
    let make = async |token: Option<&str>, request: serde_json::Value| {
        let shown = token.map(|token| format!("Bearer {token}"));
        ask(&server, "POST", "/v1/tokens", shown.as_deref(), &request.to_string()).await
    };
    // The first one must be able to make others.
    let early = make(None, json!({"name": "ci", "roles": ["deploy"]})).await;
    assert_eq!(early.summary(), "409 lockout");
    assert!(early.problem().detail.contains("make one with the role `admin` first"));
    let brief = make(None, json!({"name": "root", "roles": ["admin"], "expires_in": "1d"})).await;
    assert_eq!(brief.summary(), "409 lockout");
    let root: TokenMade = made(&make(None, json!({"name": "root", "roles": ["admin"]})).await);
    // From now on it is needed.
    assert_eq!(make(None, json!({"name": "x", "roles": ["admin"]})).await.status, 401);
    for (wrong, expected) in [
        (json!({"name": "x", "roles": []}), "`roles` is empty"),
        (json!({"name": "", "roles": ["view"]}), "`name` is 1 to 100 bytes"),
        (json!({"name": "x", "roles": ["root"]}), "`roles`: `root` is no role"),
        (json!({"name": "x", "roles": ["view"], "topics": ["a b"]}), "`topics`: a pattern is"),
        (json!({"name": "x", "roles": ["view"], "expires_in": "11000d"}), "`expires_in`: write something from 1s to"),
        (json!({"name": "x", "roles": ["view"], "expires_in": "soon"}), "`expires_in`: "),
        (json!({"name": "x", "roles": ["view"], "rate": "fast"}), "`rate`: a rate is a number of requests"),
        (json!({"name": "x", "roles": ["view"], "rate": "5/s", "burst": 0}), "`burst`: what may come at once"),
        (json!({"name": "x", "roles": ["view"], "burst": 5}), "`burst`: it is part of a rate"),
        (json!({"name": "x", "roles": ["admin"], "functions": ["*"]}), "whoever has the role `admin`"),
    ] {
        let answer = make(Some(&root.token), wrong.clone()).await;
        assert_eq!(answer.summary(), "400 malformed-request", "{wrong}");
        assert!(answer.problem().detail.contains(expected), "{wrong}: {answer:?}");
    }
    let asked =
        json!({"name": "ci", "roles": ["deploy"], "functions": ["shop.*"], "topics": ["orders*"], "expires_in": "90d"});
    let ci = made(&make(Some(&root.token), asked).await);
    assert_eq!((&ci.made.created_by, ci.made.state.as_str()), (&format!("root ({})", root.made.id), "valid"));
    let expires = ci.made.expires_at.as_deref();
    assert!(expires.is_some_and(|at| at.starts_with("2027-04-15T08:00:")), "{expires:?}");
    assert_eq!(with_token(&server, "GET", "/v1/functions", &ci.token, json!({})).await.status, 200);
    let list = with_token(&server, "GET", "/v1/tokens", &root.token, json!({})).await;
    let kept = String::from_utf8(list.body.to_vec()).unwrap() + &format!("{:?}", ring.tokens());
    for made in [&root, &ci] {
        assert!(kept.contains(&made.made.id) && !kept.contains(&made.token[16..]));
    }
    assert_eq!(list.json::<types::Tokens>().tokens.len(), 2);
    let revoke =
        async |id: &str| with_token(&server, "DELETE", &format!("/v1/tokens/{id}"), &root.token, json!({})).await;
    let last = revoke(&root.made.id).await;
    assert_eq!(last.summary(), "409 lockout");
    assert!(last.problem().detail.contains("http.admin-token-file"));
    assert_eq!(revoke("000000000000").await.summary(), "404 unknown-token");
    let whole = revoke(&ci.token).await;
    assert!(whole.status == 404 && !whole.problem().detail.contains(&ci.token[16..]));
    let revoked: TokenRevoked = revoke(&ci.made.id).await.json();
    assert_eq!((revoked.name.as_str(), revoked.open), ("ci", false));
    // It does not hold from then on.
    assert_eq!(with_token(&server, "GET", "/v1/functions", &ci.token, json!({})).await.status, 401);
    // The last of all can go, where this machine alone reaches the API.
    assert!(revoke(&root.made.id).await.json::<TokenRevoked>().open);
    assert_eq!(server.get("/v1/functions").await.status, 200);
}

#[tokio::test]
async fn whoever_changes_tokens_sees_what_others_changed_at_the_same_time() {
    let id = |seed: u8| Shown::of_random([seed; 6], [seed; 32]).id;
    let admin = |seed: u8| Token { secret: Shown::of_random([seed; 6], [seed; 32]).secret(), ..token(&[Role::Admin]) };
    let others = |ring: &Ring, done: Vec<(TokenId, Option<Token>)>| *ring.others.lock().unwrap() = done;
    // Two who make the first one at once.
    let (server, ring) = start(AccessOptions::default()).await;
    others(&ring, vec![(id(1), Some(admin(1)))]);
    let body = json!({"name": "x", "roles": ["admin"]}).to_string();
    assert_eq!(ask(&server, "POST", "/v1/tokens", None, &body).await.summary(), "401 unauthenticated");
    assert_eq!(ring.tokens().count(), 1);
    // Two who revoke the last two of administrators at once, while there are others.
    let first = ring.add(1, admin(1));
    ring.add(2, admin(2));
    ring.add(3, token(&[Role::View]));
    others(&ring, vec![(id(2), None)]);
    let answer = with_token(&server, "DELETE", "/v1/tokens/010101010101", &first, json!({})).await;
    assert_eq!(answer.summary(), "409 lockout");
    // What does no harm is done all the same, unless it never ends.
    others(&ring, (4..6).map(|seed| (id(seed), Some(admin(seed)))).collect());
    let answer = with_token(&server, "POST", "/v1/tokens", &first, json!({"name": "x", "roles": ["view"]})).await;
    assert_eq!((answer.status, ring.tokens().count()), (201, 5));
    others(&ring, (10..200).map(|seed| (id(seed), Some(admin(seed)))).collect());
    let answer = with_token(&server, "DELETE", "/v1/tokens/030303030303", &first, json!({})).await;
    assert!(answer.status == 503 && answer.problem().detail.contains("others change tokens"), "{answer:?}");
    assert!(ring.tokens().has(&id(3)));
}

#[tokio::test]
async fn whoever_is_not_told_whether_the_first_token_was_made_has_it_all_the_same() {
    let (server, ring) = start(AccessOptions::default()).await;
    ring.loses_answers.store(true, Ordering::Relaxed);
    let body = json!({"name": "root", "roles": ["admin"]}).to_string();
    let answer = ask(&server, "POST", "/v1/tokens", None, &body).await;
    assert_eq!((answer.summary().as_str(), answer.headers.get(RETRY_AFTER)), ("503 log-unavailable", None));
    let problem = answer.problem();
    assert!(problem.detail.contains("`http.admin-token-file`"), "{problem:?}");
    let root = problem.token.unwrap().0;
    assert!(!problem.detail.contains(&root[16..]));
    assert_eq!(with_token(&server, "GET", "/v1/tokens", &root, json!({})).await.status, 200);
    ring.add(1, token(&[Role::Admin]));
    let answer = with_token(&server, "DELETE", "/v1/tokens/010101010101", &root, json!({})).await;
    assert!(
        answer.summary().starts_with("503") && answer.problem().detail.contains("whether it was revoked"),
        "{answer:?}"
    );
}

fn made(answer: &Answer) -> TokenMade {
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

/// Does not know yet what the log has, but only what it had.
#[derive(Debug)]
struct Behind(Arc<Tokens>, Arc<Ring>);

impl Keyring for Behind {
    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.0)
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(Arc<Tokens>, u64), Error>> {
        self.1.refresh()
    }

    fn put(&self, id: TokenId, token: Option<Token>, builds_on: u64) -> BoxFuture<'_, Result<(), EntryError>> {
        self.1.put(id, token, builds_on)
    }
}

#[tokio::test]
async fn an_instance_that_does_not_know_yet_of_the_first_token_lets_nobody_touch_tokens() {
    let ring = Arc::<Ring>::default();
    ring.add(1, token(&[Role::Admin]));
    let behind: Arc<dyn Keyring> = Arc::new(Behind(Arc::default(), ring.clone()));
    let server = Server::start_as(ApiOptions::default(), |api: Api<_, _>| api.with_keyring(behind)).await;
    assert_eq!(server.get("/v1/topics").await.status, 200);
    for (method, path) in [("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/010101010101")] {
        let body = json!({"name": "x", "roles": ["admin"]}).to_string();
        assert_eq!(ask(&server, method, path, None, &body).await.summary(), "401 unauthenticated", "{method}");
    }
    assert_eq!(ring.tokens().count(), 1);
}

#[tokio::test]
async fn an_administrator_that_was_revoked_or_expired_meanwhile_touches_no_tokens() {
    let ring = Arc::<Ring>::default();
    let revoked = ring.add(1, token(&[Role::Admin]));
    let demoted = ring.add(2, token(&[Role::Admin]));
    let expired = ring.add(3, token(&[Role::Admin]));
    let before = ring.tokens();
    ring.set(&"010101010101".parse().unwrap(), None);
    ring.add(2, token(&[Role::View]));
    ring.add(3, Token { expires_ms: Some(NOW.as_millis()), ..token(&[Role::Admin]) });
    let admin = ring.add(4, token(&[Role::Admin]));
    let behind: Arc<dyn Keyring> = Arc::new(Behind(before, ring.clone()));
    let server = Server::start_as(ApiOptions::default(), |api: Api<_, _>| api.with_keyring(behind)).await;
    for stale in [&revoked, &demoted, &expired] {
        // It is not known yet, and so for other things.
        assert_eq!(with_token(&server, "GET", "/v1/topics", stale, json!({})).await.status, 200);
        for (method, path) in [("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/040404040404")] {
            let answer = with_token(&server, method, path, stale, json!({"name": "x", "roles": ["admin"]})).await;
            assert_eq!(answer.summary(), "401 unauthenticated", "{method}");
        }
    }
    assert_eq!(ring.tokens().caller(&admin, NOW).map(|caller| caller.name().to_owned()).as_deref(), Some("ada"));
    assert_eq!(ring.tokens().count(), 3);
}

/// Its log has lost what it had.
#[derive(Debug)]
struct Emptied(Arc<Ring>);

impl Keyring for Emptied {
    fn tokens(&self) -> Arc<Tokens> {
        Arc::new(Tokens::clone(&self.0.tokens()).after_a_loss())
    }

    fn refresh(&self) -> BoxFuture<'_, Result<(Arc<Tokens>, u64), Error>> {
        async { Ok((self.tokens(), self.0.refresh().await?.1)) }.boxed()
    }

    fn put(&self, id: TokenId, token: Option<Token>, builds_on: u64) -> BoxFuture<'_, Result<(), EntryError>> {
        self.0.put(id, token, builds_on)
    }
}

#[tokio::test]
async fn an_instance_whose_log_has_lost_its_tokens_opens_to_nobody() {
    let admin = "an-administrator-s-token-0123456789";
    let ring = Arc::<Ring>::default();
    let emptied: Arc<dyn Keyring> = Arc::new(Emptied(ring.clone()));
    let access = AccessOptions { admin_token: Some(Secret::of(admin)), ..AccessOptions::default() };
    for (access, of_configuration) in [(AccessOptions::default(), 401), (access, 200)] {
        let options = ApiOptions { access, ..ApiOptions::default() };
        let keyring = Arc::clone(&emptied);
        let server = Server::start_as(options, |api: Api<_, _>| api.with_keyring(keyring)).await;
        assert_eq!(server.get("/v1/topics").await.status, 401);
        assert_eq!(with_token(&server, "GET", "/v1/topics", admin, json!({})).await.status, of_configuration);
        let made = with_token(&server, "POST", "/v1/tokens", admin, json!({"name": "x", "roles": ["admin"]})).await;
        assert_eq!(made.status, if of_configuration == 200 { 201 } else { 401 });
    }
}

#[tokio::test]
async fn whoever_has_no_token_is_not_told_what_was_refused() {
    let (server, ring) = start(AccessOptions::default()).await;
    server.registry.refuse(&"shop.secret".parse().unwrap(), "why".to_owned());
    server.api.set_ready();
    assert!(server.get("/readyz").await.problem().detail.contains("shop.secret"));
    ring.add(1, token(&[Role::Admin]));
    let brief = server.get("/readyz").await.problem();
    assert_eq!((brief.status, brief.detail.contains("shop.secret")), (503, false));
}
