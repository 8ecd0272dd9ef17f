//! What the tests of commands need: a server that answers as told, and a command line run against it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::client::Client;
use super::error::Exit;
use super::output::Console;
use super::output::captured::Written;
use super::{Cli, Context, TokenPlace};
use crate::tls::Identity;

/// An answer of the server.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    content_type: &'static str,
    retry_after: Option<u64>,
    body: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    BrokenOff,
    Never,
}

impl Answer {
    pub(super) fn text(status: u16, body: &str) -> Self {
        Self { status, content_type: "text/plain", retry_after: None, body: body.to_owned(), kind: Kind::Whole }
    }

    pub(super) fn json(body: &impl Serialize) -> Self {
        Self { content_type: "application/json", ..Self::text(200, &serde_json::to_string(body).unwrap()) }
    }

    pub(super) fn problem(status: u16, detail: &str) -> Self {
        let problem = serde_json::json!({
            "type": "https://millrace.dev/problems/some", "title": "Some", "status": status, "detail": detail
        });
        Self { status, content_type: "application/problem+json", ..Self::json(&problem) }
    }

    pub(super) fn problem_of(status: u16, kind: &str, detail: &str) -> Self {
        let answer = Self::problem(status, detail);
        Self { body: answer.body.replace("/problems/some", &format!("/problems/{kind}")), ..answer }
    }

    pub(super) fn problem_at(status: u16, detail: &str, index: usize) -> Self {
        let mut answer = Self::problem(status, detail);
        let mut problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        problem["index"] = index.into();
        answer.body = problem.to_string();
        answer
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The connection is closed without an answer, after the request was read.
    pub(super) fn broken_off() -> Self {
        Self { kind: Kind::BrokenOff, ..Self::text(200, "") }
    }

    /// The connection stays open without an answer.
    pub(super) fn never() -> Self {
        Self { kind: Kind::Never, ..Self::text(200, "") }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Method, path and query.
    pub(super) line: String,
    pub(super) content_type: String,
    pub(super) authorization: String,
    pub(super) body: String,
}

type Script = Box<dyn FnMut(&Asked) -> Answer + Send>;

#[derive(Clone)]
struct State {
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A server on a free port, until it is dropped.
pub(super) struct Server {
    url: String,
    state: State,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Gives these answers in this order, and then none.
    pub(super) async fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        Self::scripted(move |_| answers.pop_front().unwrap_or_else(Answer::never)).await
    }

    /// Answers each request as the script says.
    pub(super) async fn scripted(script: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self::listening(script, None).await
    }

    /// The same over TLS.
    pub(super) async fn secured(
        identity: Arc<Identity>,
        script: impl FnMut(&Asked) -> Answer + Send + 'static,
    ) -> Self {
        Self::listening(script, Some(identity)).await
    }

    async fn listening(script: impl FnMut(&Asked) -> Answer + Send + 'static, identity: Option<Arc<Identity>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let scheme = if identity.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = State { script: Arc::new(Mutex::new(Box::new(script))), asked: Arc::default() };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, identity, state.clone()));
        Self { url, state, _tasks: tasks }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.url, None).unwrap()
    }

    /// All requests so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Runs a command against this server; its exit code and what it wrote.
    pub(super) async fn run(&self, line: &[&str]) -> Ran {
        let mut words = vec!["--server", &self.url];
        words.extend_from_slice(line);
        run(&words).await
    }
}

async fn accept(listener: TcpListener, identity: Option<Arc<Identity>>, state: State) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (state, identity) = (state.clone(), identity.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| serve(state.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            let _broken_off_on_purpose = match identity {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(identity) => match identity.accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => return,
                },
            };
        });
    }
}

/// A connection that ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("broken off")]
struct BrokenOff;

async fn serve(state: State, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BrokenOff> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| BrokenOff)?.to_bytes();
    let asked = Asked {
        line: format!("{} {}", head.method, head.uri),
        content_type: head.headers.get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned(),
        authorization: head.headers.get("authorization").map_or("", |v| v.to_str().unwrap()).to_owned(),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    let answer = (state.script.lock().unwrap())(&asked);
    state.asked.lock().unwrap().push(asked);
    match answer.kind {
        Kind::BrokenOff => return Err(BrokenOff),
        Kind::Never => std::future::pending::<()>().await,
        Kind::Whole => {}
    }
    let mut response = Response::builder().status(answer.status).header("content-type", answer.content_type);
    if let Some(seconds) = answer.retry_after {
        response = response.header("retry-after", seconds);
    }
    Ok(response.body(Full::from(answer.body)).unwrap())
}

/// An address where nobody listens.
pub(super) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) exit: Exit,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ran {
    /// The output of a command that did what it was asked.
    #[track_caller]
    pub(super) fn done(self) -> String {
        assert_eq!(self.exit, Exit::Done, "{}{}", self.out, self.err);
        self.out
    }

    /// The words on standard error of a command that did not.
    #[track_caller]
    pub(super) fn refused(self, exit: Exit) -> String {
        assert_eq!(self.exit, exit, "{}{}", self.out, self.err);
        self.err
    }
}

/// Runs a command line, without the program's name.
pub(super) async fn run(words: &[&str]) -> Ran {
    let cli = Cli::try_parse_from(std::iter::once(&"millrace").chain(words)).unwrap();
    let (console, written): (Console, Written) = Console::captured(cli.global.json);
    let token = TokenPlace::of(cli.global.token_file, None).unwrap();
    let exit =
        super::run(cli.command, Context { console, server: cli.global.server, token, ca_file: cli.global.ca_file })
            .await;
    Ran { exit, out: written.out(), err: written.err() }
}

/// A command line as it is parsed, without the program's name.
pub(super) fn parsed(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"millrace").chain(words))
}
