//! The API over real connections, on a log in memory that can be told to refuse.

mod access;
mod audit;
mod deploying;
mod described;
mod embedded;
mod fake;
mod letters;
mod publishing;
mod rates;
mod reading;
mod reset;
mod serving;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use millrace_core::intake::Intake;
use millrace_core::manifest::Manifest;
use millrace_core::policy::Ordering;
use millrace_core::time::Timestamp;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::Service;

use super::types::{PROBLEM_PREFIX, PROBLEM_TYPE, Problem};
use super::{Api, ApiOptions, serve};
use crate::broker::{Broker, Catalog};
use crate::clock::Clock;
use crate::registry::{Deployment, Registry};
use crate::sandbox::{Completion, Error, Invocation, Sandbox};
use crate::worker::Revision;
use fake::Fake;

/// When the tests' clock starts.
const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A revision that is never asked to run anything.
struct Idle(Intake);

impl Revision for Idle {
    type Sandbox = Self;

    fn number(&self) -> u64 {
        3
    }

    fn intake(&self) -> &Intake {
        &self.0
    }

    fn keeps_state(&self) -> bool {
        false
    }

    fn sandbox(&self) -> Self {
        idle()
    }
}

impl Sandbox for Idle {
    async fn invoke(&mut self, _: Invocation<'_>) -> Result<Completion, Error> {
        Err(Error("nothing runs here".to_owned()))
    }
}

fn idle() -> Idle {
    Idle(Intake { ordering: Ordering::Key, filter: None, key: None })
}

/// An API without a server.
fn api() -> Api<Fake, Idle> {
    let broker = Arc::new(Fake::with_topics(&[("orders", 3)]));
    let clock = Clock::starting_at(NOW);
    Api::new(ApiOptions::default(), Arc::clone(&broker), Registry::new(broker, clock), clock)
}

impl Api<Fake, Idle> {
    /// Answers a request that came over no connection.
    async fn answer(&self, request: Request<axum::body::Body>) -> axum::response::Response {
        let Ok(answer) = super::router(Arc::clone(&self.shared)).call(request).await;
        answer
    }
}

/// A server with topics `orders` (three partitions) and `payments` (one).
struct Server<B = Fake> {
    address: SocketAddr,
    broker: Arc<B>,
    registry: Registry<B, Idle>,
    api: Api<B, Idle>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(ApiOptions::default()).await
    }

    async fn start_with(options: ApiOptions) -> Self {
        Self::start_as(options, |api| api).await
    }

    async fn start_as(options: ApiOptions, with: impl FnOnce(Api<Fake, Idle>) -> Api<Fake, Idle>) -> Self {
        Self::on_as(Fake::with_topics(&[("orders", 3), ("payments", 1)]), options, with).await
    }
}

impl<B: Broker + Catalog> Server<B> {
    async fn on(broker: B, options: ApiOptions) -> Self {
        Self::on_as(broker, options, |api| api).await
    }

    /// With an API that something was added to.
    async fn on_as(broker: B, options: ApiOptions, with: impl FnOnce(Api<B, Idle>) -> Api<B, Idle>) -> Self {
        let broker = Arc::new(broker);
        let clock = Clock::starting_at(NOW);
        let registry = Registry::new(Arc::clone(&broker), clock);
        let api = Api::new(options, Arc::clone(&broker), registry.clone(), clock);
        let api = with(api.with_deployer(Arc::new(deploying::InMemory::default())));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = serve(listener, api.clone(), async {
            let _dropped_is_fine_too = stopped.await;
        });
        Self { address, broker, registry, api, stop: Some(stop), served: tokio::spawn(serving) }
    }

    /// Activates `shop.<name>`, which reads `orders`.
    async fn activate(&self, name: &str) {
        self.activate_with(name, "dead-letter = { deadline.rejected = '10m' }").await;
    }

    /// With more in its part of the manifest.
    async fn activate_with(&self, name: &str, more: &str) {
        let manifest =
            format!("application = 'shop'\n[functions.{name}]\ncomponent = 'x.wasm'\ntopics = ['orders']\n{more}");
        let (manifest, _) = Manifest::parse(&manifest).unwrap();
        let settings = manifest.functions.into_iter().next().unwrap();
        let deployment =
            Deployment { settings, digest: "c0ffee".to_owned(), revision: idle(), canary: None, paused: false };
        self.registry.activate(deployment).await.unwrap();
    }

    fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(path).header(HOST, self.address.to_string())
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Bytes::new()).unwrap()).await
    }

    async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.send(self.request(Method::POST, path).header(CONTENT_TYPE, content_type).body(body.into()).unwrap()).await
    }

    async fn send(&self, request: Request<Bytes>) -> Answer {
        send_to(self.address, request).await
    }

    /// Ends serving, and waits until it has ended.
    async fn stop(mut self) {
        drop(self.stop.take());
        self.served.await.unwrap();
    }
}

async fn send_to(address: SocketAddr, request: Request<Bytes>) -> Answer {
    let asked = described::Asked::of(&request);
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request.map(Full::new)).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    drop(sender);
    let _a_server_may_close_first = connection.await;
    let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, body };
    asked.hold_against(&answer);
    answer
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.headers.get(CONTENT_TYPE).unwrap(), "application/json", "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn problem(&self) -> Problem {
        assert_eq!(self.headers.get(CONTENT_TYPE).unwrap(), PROBLEM_TYPE, "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert!(!problem.title.is_empty());
        problem
    }

    /// `<status>`, then the kind, index and pause of a problem if it is one.
    fn summary(&self) -> String {
        if self.status < 300 {
            return self.status.to_string();
        }
        let problem = self.problem();
        let kind = problem.kind.strip_prefix(PROBLEM_PREFIX).unwrap();
        let index = problem.index.map_or(String::new(), |index| format!(" at {index}"));
        let retry = self.headers.get(RETRY_AFTER).map_or("", |after| after.to_str().unwrap());
        let retry = if retry.is_empty() { String::new() } else { format!(" after {retry}") };
        format!("{} {kind}{index}{retry}", self.status)
    }
}
