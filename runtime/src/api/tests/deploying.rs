//! Uploading and deploying, decided by a double that keeps everything in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_core::audit::Who;
use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::name::FunctionName;
use millrace_core::revision::{Action, Change, History, Source};
use millrace_core::signature::{Key, Trusted};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::super::types::{Component, Deployed, Revisions};
use super::super::{Api, ApiOptions, Decided, Deployer, Refused};
use super::{Answer, NOW, Server};
use crate::broker::{Error, Report};

const MANIFEST: &str = "application = 'shop'\n[functions.pay]\ncomponent = 'pay.wasm'\ntopics = ['orders']\n";

#[derive(Debug, Default)]
pub(super) struct InMemory {
    components: Mutex<BTreeSet<Digest>>,
    histories: Mutex<BTreeMap<FunctionName, History>>,
    /// Who has to have signed.
    trusted: Mutex<Trusted>,
    /// What others do before the next changes, the last one first.
    pub(super) others: Mutex<Vec<(FunctionName, Action)>>,
}

impl InMemory {
    /// Does what others do in between.
    fn interfere(&self) {
        let Some((function, action)) = self.others.lock().unwrap().pop() else { return };
        let mut histories = self.histories.lock().unwrap();
        let history = histories.entry(function).or_default();
        history.apply(history.latest() + 1, &Change::new(action, NOW, "somebody else").encode());
    }
}

impl InMemory {
    fn untrusted(&self, action: &Action) -> Option<millrace_core::signature::Untrusted> {
        let Action::Deploy(Source { component, signature, .. }) = action else { return None };
        self.trusted.lock().unwrap().check(*component, signature.as_deref()).err()
    }
}

impl Deployer for InMemory {
    fn has_component(&self, digest: Digest) -> BoxFuture<'_, Result<bool, Error>> {
        let is_there = self.components.lock().unwrap().contains(&digest);
        async move { Ok(is_there) }.boxed()
    }

    fn put_component(&self, digest: Digest, content: Bytes) -> BoxFuture<'_, Result<bool, Refused>> {
        assert_eq!(Digest::of(&content), digest);
        let new = self.components.lock().unwrap().insert(digest);
        async move { Ok(new) }.boxed()
    }

    fn change(
        &self,
        function: FunctionName,
        action: Action,
        builds_on: Option<u64>,
        rehearsal: bool,
        who: Who,
    ) -> BoxFuture<'_, Result<Decided, Refused>> {
        self.interfere();
        let mut histories = self.histories.lock().unwrap();
        let history = histories.entry(function).or_default();
        let (latest, expected) = (history.latest(), builds_on.unwrap_or(history.latest()));
        let decided = match history.check(&action) {
            _ if expected != latest => Err(Refused::Conflict { latest, expected, what: "it changed".to_owned() }),
            Err(reason) => Err(Refused::Impossible { reason }),
            Ok(()) if self.untrusted(&action).is_some() => {
                Err(Refused::Untrusted { reason: self.untrusted(&action).unwrap() })
            }
            Ok(()) => {
                if !rehearsal {
                    history.apply(latest + 1, &Change::new(action, NOW, &who.label()).encode());
                }
                Ok(Decided { number: latest + 1, revision: latest + 1, new: true })
            }
        };
        async move { decided }.boxed()
    }

    fn history(&self, function: FunctionName) -> BoxFuture<'_, Result<(History, Vec<Report>), Error>> {
        let history = self.histories.lock().unwrap().get(&function).cloned().unwrap_or_default();
        let report = |instance: &str, content: Value| Report {
            instance: instance.to_owned(),
            at: NOW,
            content: content.to_string().into(),
            own: instance == "a",
        };
        let reports = vec![
            report("a", json!({"functions": {"shop.pay": {"revision": 1, "paused": false, "ready": 3}}})),
            report(
                "b",
                json!({"functions": {"shop.pay": {"revision": 1, "attempts": [
                    {"revision": 1, "failed": 1, "seconds": 0.004, "durations": [[1_000_000, 4]]},
                    {"revision": 2, "failed": 9, "seconds": -1.0, "durations": []},
                ]}}}),
            ),
            report("gone", json!({"functions": {}, "ended": true})),
            report("newer", json!("what this version does not know")),
        ];
        async move { Ok((history, reports)) }.boxed()
    }
}

impl Server {
    async fn put(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.request(Method::PUT, path).header("content-type", content_type);
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(super) async fn deploy(&self, function: &str, request: &Value) -> Answer {
        self.put(&format!("/v1/functions/{function}"), "application/json", request.to_string()).await
    }
}

#[tokio::test]
async fn a_component_is_stored_under_its_digest_and_no_other() {
    let server = Server::start().await;
    let (component, digest) = (Bytes::from_static(b"\0asm"), Digest::of(b"\0asm"));
    let path = format!("/v1/components/{digest}");
    assert_eq!(server.get(&path).await.summary(), "404 unknown-component");
    let answer = server.put(&path, "application/wasm", component.clone()).await;
    assert_eq!((answer.status, answer.json::<Component>().new), (201, true));
    let answer = server.put(&path, "application/wasm", component.clone()).await;
    assert_eq!((answer.status, answer.json::<Component>().new), (200, false));
    assert_eq!(server.get(&path).await.status, 200);
    let other = server.put(&path, "application/wasm", Bytes::from_static(b"\0as")).await;
    assert_eq!(other.summary(), "400 malformed-request");
    assert!(other.problem().detail.contains(&Digest::of(b"\0as").to_string()), "{other:?}");
    for wrong in ["abc", &digest.to_string().to_uppercase(), "%ff"] {
        let summary = server.put(&format!("/v1/components/{wrong}"), "application/wasm", "").await.summary();
        assert!(["400 malformed-request", "404 unknown-component"].contains(&&*summary), "{wrong}: {summary}");
    }
    let large = Bytes::from(vec![0; limits::COMPONENT_MAX_BYTES + 1]);
    assert_eq!(server.put(&path, "application/wasm", large).await.summary(), "413 too-large");
    let large = Bytes::from(vec![0; limits::COMPONENT_MAX_BYTES]);
    let path = format!("/v1/components/{}", Digest::of(&large));
    assert_eq!(server.put(&path, "application/wasm", large).await.status, 201);
    server.stop().await;
}

#[tokio::test]
async fn a_deployment_that_cannot_be_is_refused_with_the_place_and_the_reason() {
    let server = Server::start().await;
    let digest = Digest::of(b"").to_string();
    let request = |manifest: &str| json!({"component": digest, "manifest": manifest});
    for (function, request, expected, said) in [
        ("shop.pay", request(MANIFEST), "200", ""),
        ("shop.ship", request(MANIFEST), "422 invalid-function", "only `shop.pay`"),
        ("shop.pay", request("application = 'shop'"), "422 invalid-function", "there is no function"),
        ("shop.pay", request(&MANIFEST.replace("topics", "topisc")), "422 invalid-function", "line 4"),
        ("shop.pay", json!({"component": "x", "manifest": MANIFEST}), "400 malformed-request", "`component`"),
        ("shop.pay", json!({"component": digest}), "400 malformed-request", "manifest"),
        ("shop.pay", json!({"component": digest, "manifest": MANIFEST, "more": 1}), "400 malformed-request", "more"),
        ("pay", request(MANIFEST), "404 unknown-function", "pay"),
        (
            "shop.pay",
            json!({"component": digest, "manifest": MANIFEST, "builds_on": 7}),
            "409 conflict",
            "shop.pay: its latest deployment is 1 by now, and this one builds on 7",
        ),
    ] {
        let answer = server.deploy(function, &request).await;
        assert_eq!(answer.summary(), expected, "{request}");
        let detail = if answer.status < 300 { String::new() } else { answer.problem().detail };
        assert!(detail.contains(said), "{detail}");
    }
    server.stop().await;
}

/// Of the first test of RFC 8032, section 7.1.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

#[tokio::test]
async fn a_signature_is_looked_at_kept_and_told() {
    let deployer = Arc::<InMemory>::default();
    let with: Arc<dyn Deployer> = Arc::<InMemory>::clone(&deployer);
    let server = Server::start_as(ApiOptions::default(), |api| api.with_deployer(with)).await;
    let (component, other) = (Digest::of(b""), Digest::of(b"other"));
    let key = Key::parse(KEY).unwrap();
    let request = |signature: Option<String>| {
        let mut request = json!({"component": component.to_string(), "manifest": MANIFEST});
        if let Some(signature) = signature {
            request["signature"] = signature.into();
        }
        request
    };
    let signed = key.sign(component).to_string();
    // Where nobody asks for one, it is kept all the same, and has to be one.
    for (signature, expected) in [
        (None, "200"),
        (Some("AAAA".to_owned()), "422 invalid-signature"),
        (Some("!".to_owned()), "422 invalid-signature"),
        (Some(format!(" {signed}\n")), "200"),
    ] {
        assert_eq!(server.deploy("shop.pay", &request(signature.clone())).await.summary(), expected, "{signature:?}");
    }
    let revisions: Revisions = server.get("/v1/functions/shop.pay/revisions").await.json();
    let told: Vec<Option<&str>> = revisions.deployments.iter().map(|one| one.signature.as_deref()).collect();
    assert_eq!(told, [None, Some(&*signed)]);
    deployer.trusted.lock().unwrap().add(PUBLIC).unwrap();
    for (signature, expected, said) in [
        (None, "422 invalid-signature", "shop.pay: its component is not signed"),
        (
            Some("AAAA".to_owned()),
            "422 invalid-signature",
            "shop.pay: the signature of its component is not the base64 of 64 bytes",
        ),
        (
            Some(key.sign(other).to_string()),
            "422 invalid-signature",
            "is of none of the keys in `signatures.public-keys`",
        ),
        (Some(signed.clone()), "200", ""),
    ] {
        let answer = server.deploy("shop.pay", &request(signature.clone())).await;
        assert_eq!(answer.summary(), expected, "{signature:?}");
        assert!(said.is_empty() || answer.problem().detail.contains(said), "{answer:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_was_done_to_a_function_is_told_in_order() {
    let server = Server::start().await;
    let there = "/v1/functions/shop.pay";
    assert_eq!(server.get(&format!("{there}/revisions")).await.summary(), "404 unknown-function");
    let post = async |what: &str, body: Value| {
        server.post(&format!("{there}/{what}"), "application/json", body.to_string()).await
    };
    assert_eq!(post("pause", json!({})).await.summary(), "404 unknown-function");
    let deploy = |dry_run: bool| {
        let component = Digest::of(b"").to_string();
        json!({"component": component, "manifest": MANIFEST, "dry_run": dry_run})
    };
    assert_eq!(server.deploy("shop.pay", &deploy(true)).await.status, 200);
    assert_eq!(server.get(&format!("{there}/revisions")).await.summary(), "404 unknown-function", "it was a rehearsal");
    let deployed: Deployed = server.deploy("shop.pay", &deploy(false)).await.json();
    assert_eq!((deployed.number, deployed.revision, deployed.new), (1, Some(1), true));
    assert_eq!(post("rollback", json!({})).await.summary(), "404 unknown-revision", "there is none before it");
    assert_eq!(post("rollback", json!({"to": 9})).await.summary(), "404 unknown-revision");
    assert_eq!(post("rollback", json!({"to": 1})).await.status, 200);
    assert_eq!(post("pause", json!({})).await.status, 200);
    let revisions: Revisions = server.get(&format!("{there}/revisions")).await.json();
    assert_eq!((&*revisions.state, revisions.latest, revisions.active, revisions.paused), ("active", 3, Some(1), true));
    let told: Vec<(u64, &str, &str)> =
        revisions.deployments.iter().map(|one| (one.number, &*one.action, &*one.by)).collect();
    assert_eq!(told, [(1, "deploy", ""), (2, "rollback", ""), (3, "pause", "")]);
    let [instance, other] = &revisions.instances[..] else {
        panic!("two can be read and have not ended: {revisions:?}")
    };
    assert_eq!((&*instance.instance, instance.here.revision, instance.here.ready), ("a", Some(1), Some(3)));
    assert_eq!((instance.asked, &*other.instance, other.asked), (true, "b", false));
    let figures: Vec<_> =
        revisions.figures.iter().map(|one| (one.revision, one.completed, one.failed_attempts)).collect();
    assert_eq!(figures, [(1, 3, 1), (2, 0, 0)], "what others have counted");
    assert_eq!((revisions.figures[0].failure_rate, revisions.figures[0].invoke_mean_seconds), (0.25, 0.001));
    assert_eq!(post("resume", json!({})).await.status, 200);
    let deleted = server.send(server.request(Method::DELETE, there).body(Bytes::new()).unwrap()).await;
    assert_eq!(deleted.status, 200);
    assert_eq!(server.get(&format!("{there}/revisions")).await.json::<Revisions>().state, "deleted");
    server.stop().await;
}

#[tokio::test]
async fn a_canary_is_staged_told_of_and_promoted_or_given_up() {
    let deployer = Arc::<InMemory>::default();
    let deploys: Arc<dyn Deployer> = deployer.clone();
    let server = Server::start_as(ApiOptions::default(), |api: Api<_, _>| api.with_deployer(deploys)).await;
    let there = "/v1/functions/shop.pay";
    let deploy = |of: &[u8], canary: Option<&str>| json!({"component": Digest::of(of).to_string(), "manifest": MANIFEST, "canary": canary});
    let post = async |what: &str, body: Value| {
        server.post(&format!("{there}/{what}"), "application/json", body.to_string()).await
    };
    // Whatever an instance does of itself, before the next request that changes something.
    let meanwhile = |action: Action| deployer.others.lock().unwrap().push(("shop.pay".parse().unwrap(), action));
    let told = async || server.get(&format!("{there}/revisions")).await.json::<Revisions>();
    assert_eq!(server.deploy("shop.pay", &deploy(b"a", Some("5%"))).await.summary(), "409 conflict");
    assert_eq!(post("promote", json!({})).await.summary(), "404 unknown-function");
    assert_eq!(server.deploy("shop.pay", &deploy(b"a", None)).await.status, 200);
    meanwhile(Action::Activate { revision: 1 });
    for wrong in ["0%", "100%", "5", "1.001%", ""] {
        let answer = server.deploy("shop.pay", &deploy(b"b", Some(wrong))).await;
        assert_eq!(answer.summary(), "400 malformed-request", "{wrong}");
        assert!(answer.problem().detail.contains("`canary`: "), "{answer:?}");
    }
    assert_eq!(server.deploy("shop.pay", &deploy(b"b", Some("0.5%"))).await.status, 200);
    let staged = told().await;
    assert_eq!((staged.active, staged.staged, staged.staged_share.as_deref()), (Some(1), Some(3), Some("0.5%")));
    assert_eq!((staged.canary, staged.previous), (None, Some(1)));
    for what in ["promote", "canary"] {
        let answer = post(what, json!({"share": "9%"})).await;
        let expected = if what == "canary" { "409 conflict" } else { "400 malformed-request" };
        assert_eq!(answer.summary(), expected, "it is only staged");
    }
    meanwhile(Action::Canary { revision: 3, share: "0.5%".parse().unwrap() });
    assert_eq!(post("pause", json!({})).await.status, 200);
    assert_eq!(post("canary", json!({"share": "20%", "builds_on": 4})).await.summary(), "409 conflict");
    assert_eq!(post("canary", json!({"share": "200%"})).await.summary(), "400 malformed-request");
    assert_eq!(post("canary", json!({"share": "20%", "dry_run": true})).await.status, 200);
    assert_eq!(post("canary", json!({"share": "20%"})).await.status, 200);
    let running = told().await;
    let canary = running.canary.map(|canary| (canary.revision, canary.share));
    assert_eq!((running.active, running.staged, canary), (Some(1), None, Some((3, "20%".to_owned()))));
    let actions: Vec<_> = running.deployments.iter().map(|one| (&*one.action, one.to, one.share.as_deref())).collect();
    let expected = [
        ("deploy", None, None),
        ("activate", Some(1), None),
        ("deploy", None, Some("0.5%")),
        ("canary", Some(3), Some("0.5%")),
        ("pause", None, None),
        ("canary", Some(3), Some("20%")),
    ];
    assert_eq!(actions, expected);
    assert_eq!(post("promote", json!({"revision": 1})).await.summary(), "409 conflict");
    assert_eq!(post("promote", json!({})).await.status, 200);
    let promoted = told().await;
    assert_eq!((promoted.active, promoted.canary, promoted.previous), (Some(3), None, Some(1)));
    assert_eq!(post("promote", json!({})).await.summary(), "409 conflict");
    server.deploy("shop.pay", &deploy(b"c", Some("50%"))).await;
    assert_eq!(post("rollback", json!({})).await.status, 200);
    let given_up = told().await;
    assert_eq!((given_up.active, given_up.staged, given_up.canary), (Some(3), None, None));
    server.stop().await;
}

/// A body that deploys, with pieces of it replaced.
fn nearly_a_deployment() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "",
        "\"",
        "\\",
        "{",
        "}",
        ":",
        ",",
        "null",
        "1",
        "-1",
        "true",
        "\\n",
        "\\u0000",
        "\"builds_on\"",
        "\"dry_run\"",
        "[functions.f]",
    ];
    let piece =
        prop_oneof![3 => select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec()), 1 => any::<Vec<u8>>()];
    vec((any::<Index>(), 0..12_usize, piece), 0..4).prop_map(|edits| {
        let digest = Digest::of(b"").to_string();
        let good = json!({"component": digest, "manifest": MANIFEST, "builds_on": 0, "dry_run": false});
        let mut body = good.to_string().into_bytes();
        for (at, gone, piece) in edits {
            let at = at.index(body.len() + 1);
            let end = body.len().min(at + gone);
            drop(body.splice(at..end, piece));
        }
        body
    })
}

proptest! {
    #[test]
    fn whatever_is_to_be_deployed_is_answered(body in nearly_a_deployment(), function in "shop\\.pay|[a-z.%]{0,8}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = Request::put(format!("/v1/functions/{function}")).header("host", "localhost");
        let Ok(request) = request.header("content-type", "application/json").body(Body::from(body)) else { return Ok(()) };
        let (status, told) = runtime.block_on(async {
            let api = super::api().with_deployer(Arc::new(InMemory::default()));
            let answer = api.answer(request).await;
            (answer.status().as_u16(), axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap())
        });
        prop_assert!(matches!(status, 200 | 400 | 404 | 405 | 409 | 422), "{}", status);
        let told: Value = serde_json::from_slice(&told).unwrap();
        prop_assert!(status == 200 || told["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", told);
    }
}
