//! The command line's side of the HTTP API.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{Error, Exit};
use super::format;
use crate::api::types::{Component, Problem};
use crate::config::DEFAULT_LISTEN;
use crate::tls::{self, Untrusted};

mod body;

use body::Body;
pub(crate) use body::Sent;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long something is asked again that is refused because of how much was asked.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long an answer may take, beyond what the request asks the server to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer may take for which the server compiles a component: seconds for a whole interpreter, on a fast machine.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest answer that is read.
const ANSWER_MAX_BYTES: usize = 256 << 20;
/// Longest wait that a server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Talks to one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    base: String,
    http: legacy::Client<HttpsConnector<HttpConnector>, Body>,
    answer_timeout: Duration,
    token: Option<Token>,
}

/// A token, as the header that shows it. Its text is in no output.
#[derive(Clone, Debug)]
pub(crate) struct Token(HeaderValue);

impl Token {
    /// Reads it from a text that was found in this place.
    ///
    /// # Errors
    /// If it cannot be one.
    pub(crate) fn parse(text: &str, place: impl fmt::Display) -> Result<Self, Error> {
        let header = HeaderValue::try_from(format!("Bearer {text}")).ok();
        let is_one = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let mut header = header.filter(|_| is_one).ok_or_else(|| {
            let fix = "put there what `millrace tokens create` printed, and nothing else";
            Error::usage(format_args!("there is no token in {place}"), fix)
        })?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

/// A request's path with its query, every part encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target(String);

impl Target {
    /// A path of these segments.
    pub(crate) fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            encode(segment, &mut path);
        }
        Self(path)
    }

    /// With a parameter.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        self.0.push_str(name);
        self.0.push('=');
        encode(&value.to_string(), &mut self.0);
        self
    }

    /// With a parameter if it has a value.
    #[must_use]
    pub(crate) fn with_some(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

/// Writes a text so that it stands for itself anywhere in a URI (RFC 3986, section 2.3).
fn encode(text: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.extend(['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]);
        }
    }
}

/// Why a request was not answered as wished.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// No connection came about, so that nothing was sent.
    Unreachable {
        /// The server.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// It is not known who answers there, so that nothing was sent.
    Untrusted {
        /// The server.
        server: String,
        /// What went wrong, and what to do.
        why: Untrusted,
    },
    /// The connection broke, or there was no answer in time. The server may have done what was asked.
    Lost {
        /// The server.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// The server said no.
    Problem {
        /// Why.
        problem: Problem,
        /// When to try again, if that may help.
        retry_after: Option<Duration>,
    },
    /// The answer is not one of Millrace.
    Foreign {
        /// The server.
        server: String,
        /// What is strange about the answer.
        reason: String,
    },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unreachable { server, reason } => Self::new(
                Exit::Unreachable,
                format_args!("there is no server at {server} ({reason})"),
                "start one with `millrace dev`, or name another one with --server",
            ),
            Refusal::Untrusted { server, why: Untrusted { reason, fix } } => {
                Self::new(Exit::Unreachable, format_args!("nothing is sent to {server}: {reason}"), fix)
            }
            Refusal::Lost { server, reason } => Self::new(
                Exit::Unreachable,
                format_args!("the connection to {server} was lost: {reason}"),
                "look at the server's log, then try again",
            ),
            Refusal::Problem { problem, retry_after } => {
                let again = || retry_after.map(|after| format!("try again in {}", format::duration(after)));
                let fix = token_fix(&problem).map(str::to_owned).or_else(again);
                Self::failed(told(&problem), fix.unwrap_or_default())
            }
            Refusal::Foreign { server, reason } => Self::failed(
                format_args!("{server} does not answer as Millrace does: {reason}"),
                "check --server, and that both sides have the same version",
            ),
        }
    }
}

/// What to do if the server wants a token, or another one.
fn token_fix(problem: &Problem) -> Option<&'static str> {
    match problem.known_as()? {
        "unauthenticated" => Some(
            "give a token that holds in MILLRACE_TOKEN or with --token-file FILE; whoever has the role admin makes one: \
             `millrace tokens create NAME --role ROLE`",
        ),
        "forbidden" => Some(
            "give a token that allows it in MILLRACE_TOKEN or with --token-file FILE; whoever has the role admin makes one: \
             `millrace tokens create NAME --role ROLE`",
        ),
        _ => None,
    }
}

/// A problem as a clause. The detail says what to do.
pub(crate) fn told(problem: &Problem) -> String {
    let detail = problem.detail.trim_end_matches('.');
    format::one_line(if detail.is_empty() { &problem.title } else { detail }, 2000)
}

/// Asks again what the server does not take only because of how much was asked, for a while.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, Refusal>>>(ask: impl Fn() -> F) -> Result<T, Refusal> {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(Refusal::Problem { problem, retry_after: Some(after) })
                if problem.status == StatusCode::TOO_MANY_REQUESTS.as_u16() && Instant::now() + after < until =>
            {
                tokio::time::sleep(after).await;
            }
            answer => return answer,
        }
    }
}

/// Whether nobody else hears what is sent there.
fn is_of_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Client {
    /// A client of the server at this address, whose certificate may be of the authorities in a file, or else of those that the system
    /// trusts.
    ///
    /// # Errors
    /// If it is no address of a server, or it is not known whom to trust.
    pub(crate) fn new(server: &str, authorities: Option<&Path>) -> Result<Self, Error> {
        let with_scheme = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let refused = |cause: String| {
            Error::usage(cause, format_args!("write an address such as --server http://{DEFAULT_LISTEN}"))
        };
        let uri: Uri =
            with_scheme.parse().map_err(|e| refused(format!("`{server}` is not the address of a server: {e}")))?;
        let trust = match uri.scheme_str() {
            Some("http") if authorities.is_some() && !is_of_this_machine(&uri) => {
                let host = uri.host().unwrap_or_default();
                let cause = format!("authorities are named, and `{server}` would be spoken to in plain text");
                return Err(Error::usage(
                    cause,
                    format_args!("write --server https://{host}…, or leave out --ca-file"),
                ));
            }
            Some("http") => tls::nobody(),
            Some("https") => tls::trusting(authorities),
            _ => return Err(refused(format!("`{server}` asks for something else than HTTP"))),
        };
        if uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(refused(format!("`{server}` is not the address of a server")));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let trust = trust.map_err(|e| Error::failed(e, ""))?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let base = with_scheme.trim_end_matches('/').to_owned();
        Ok(Self { base, http, answer_timeout: ANSWER_TIMEOUT, token: None })
    }

    /// The same, that shows a token with each request.
    #[must_use]
    pub(crate) fn with_token(self, token: Option<Token>) -> Self {
        Self { token, ..self }
    }

    /// The server's address.
    pub(crate) fn server(&self) -> &str {
        &self.base
    }

    /// Reads something.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses, or answers something else.
    pub(crate) async fn get<T: DeserializeOwned>(&self, target: &Target) -> Result<T, Refusal> {
        self.get_waiting(target, Duration::ZERO).await
    }

    /// Reads something that the server may wait for this long.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn get_waiting<T: DeserializeOwned>(&self, target: &Target, wait: Duration) -> Result<T, Refusal> {
        let request = Request::get(self.url(target)).header(ACCEPT, "application/json");
        self.answer(request.body(Body::default()), self.answer_timeout + wait).await
    }

    /// Sends a JSON document.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn post<T: DeserializeOwned>(&self, target: &Target, body: &impl Serialize) -> Result<T, Refusal> {
        let body = serde_json::to_vec(body).map_err(|e| self.foreign(&e))?;
        self.post_bytes(target, "application/json", body.into()).await
    }

    /// Puts a JSON document in a place.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn put<T: DeserializeOwned>(&self, target: &Target, body: &impl Serialize) -> Result<T, Refusal> {
        let body = serde_json::to_vec(body).map_err(|e| self.foreign(&e))?;
        let request = Request::put(self.url(target)).header(CONTENT_TYPE, "application/json");
        self.answer(request.body(Body::from(body)), COMPILE_TIMEOUT).await
    }

    /// Puts a component in its place, where it is compiled before the answer comes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn put_component(
        &self,
        target: &Target,
        component: Bytes,
        sent: &Sent,
    ) -> Result<Component, Refusal> {
        let request = Request::put(self.url(target)).header(CONTENT_TYPE, "application/wasm");
        let answer = self.answer(request.body(Body::counted(component, sent.clone())), COMPILE_TIMEOUT).await;
        answer.inspect_err(|_| sent.reset())
    }

    /// Deletes something.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn delete<T: DeserializeOwned>(&self, target: &Target) -> Result<T, Refusal> {
        self.answer(Request::delete(self.url(target)).body(Body::default()), self.answer_timeout).await
    }

    /// Sends bytes of this media type.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn post_bytes<T: DeserializeOwned>(
        &self,
        target: &Target,
        content_type: &str,
        body: Bytes,
    ) -> Result<T, Refusal> {
        let request = Request::builder().method(Method::POST).uri(self.url(target)).header(CONTENT_TYPE, content_type);
        self.answer(request.body(Body::from(body)), self.answer_timeout).await
    }

    fn url(&self, target: &Target) -> String {
        format!("{}{}", self.base, target.0)
    }

    fn foreign(&self, reason: &impl fmt::Display) -> Refusal {
        Refusal::Foreign { server: self.base.clone(), reason: reason.to_string() }
    }

    fn lost(&self, reason: &impl fmt::Display) -> Refusal {
        Refusal::Lost { server: self.base.clone(), reason: reason.to_string() }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        request: Result<Request<Body>, hyper::http::Error>,
        timeout: Duration,
    ) -> Result<T, Refusal> {
        let mut request = request.map_err(|e| self.foreign(&e))?;
        if let Some(Token(header)) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        let exchange = tokio::time::timeout(timeout, self.exchange(request)).await;
        let late = |_| self.lost(&format_args!("no answer within {}", format::duration(timeout)));
        let (status, headers, body) = exchange.map_err(late)??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.foreign(&e));
        }
        Err(self.refusal(status, &headers, &body))
    }

    async fn exchange(&self, request: Request<Body>) -> Result<(StatusCode, HeaderMap, Bytes), Refusal> {
        let answer = self.http.request(request).await.map_err(|e| {
            let server = self.base.clone();
            if let Some(why) = tls::explain(&e).filter(|_| e.is_connect()) {
                return Refusal::Untrusted { server, why };
            }
            if self.base.starts_with("http://") && is_not_http(&e) {
                let reason = "it does not speak plain HTTP; if it speaks TLS, its address begins with https://";
                return self.foreign(&reason);
            }
            let reason = root_cause(&e);
            if e.is_connect() { Refusal::Unreachable { server, reason } } else { Refusal::Lost { server, reason } }
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(|e| self.lost(&root_cause(&*e)))?;
        Ok((head.status, head.headers, body.to_bytes()))
    }

    /// What an answer that is no success says.
    fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Refusal {
        let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
        let retry_after = seconds.map(|s| Duration::from_secs(s).min(RETRY_AFTER_MAX));
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => Refusal::Problem { problem, retry_after },
            Err(_) => {
                let said = format::one_line(&String::from_utf8_lossy(body), 200);
                self.foreign(&format_args!("status {status} {said}"))
            }
        }
    }
}

/// Whether what came back is no HTTP at all.
fn is_not_http(error: &legacy::Error) -> bool {
    let source = std::error::Error::source(error);
    source.and_then(|e| e.downcast_ref::<hyper::Error>()).is_some_and(hyper::Error::is_parse)
}

/// The innermost cause, which is the one that tells people something.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(std::io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::testing::{Answer, Server, free_address, run};
    use crate::tls::testing::{Authority, Place};

    /// Whoever names authorities does not want a token to go out in plain text.
    #[test]
    fn with_authorities_only_this_machine_is_spoken_to_in_plain_text() {
        let authorities = Some(Path::new("authority.pem"));
        for (address, is_taken) in [
            ("mill.example:6455", false),
            ("http://10.0.0.1", false),
            ("http://[2001:db8::1]:80", false),
            ("http://localhost:6455", true),
            ("127.0.0.1:6455", true),
            ("http://[::1]:6455", true),
        ] {
            match Client::new(address, authorities) {
                Ok(_) => assert!(is_taken, "{address}"),
                Err(error) => {
                    assert!(!is_taken && error.to_string().contains("plain text"), "{address}: {error}");
                    assert_eq!(error.exit(), Exit::Usage);
                }
            }
        }
    }

    #[test]
    fn addresses_are_those_of_servers() {
        for (address, expected) in [
            ("http://127.0.0.1:6455", Ok("http://127.0.0.1:6455")),
            ("localhost:80/", Ok("http://localhost:80")),
            ("http://[::1]:6455/behind/", Ok("http://[::1]:6455/behind")),
            ("ftp://example.com", Err("`ftp://example.com` asks for something else than HTTP")),
            ("http://", Err("`http://` is not the address of a server: ")),
            ("http://a?b=c", Err("`http://a?b=c` is not the address of a server")),
            ("", Err("`` is not the address of a server: ")),
            ("a b", Err("`a b` is not the address of a server: ")),
        ] {
            let read = Client::new(address, None).map(|client| client.base);
            match (read, expected) {
                (Ok(base), Ok(expected)) => assert_eq!(base, expected),
                (Err(error), Err(cause)) => {
                    assert_eq!(error.exit(), Exit::Usage);
                    assert!(error.to_string().starts_with(cause), "{error}");
                }
                (read, _) => panic!("{address}: {read:?}"),
            }
        }
    }

    #[test]
    fn targets_are_encoded() {
        let target = Target::new(["v1", "a/b", "ü"]).with("q", "x&y=ä z").with_some("none", None::<u8>).with("n", 5);
        assert_eq!(target.0, "/v1/a%2Fb/%C3%BC?q=x%26y%3D%C3%A4%20z&n=5");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_fix() {
        let client = Client::new(&format!("http://{}", free_address()), None).unwrap();
        let refusal = client.get::<Problem>(&Target::new(["v1", "status"])).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Unreachable { .. }), "{refusal:?}");
        let error = Error::from(refusal);
        assert_eq!(error.exit(), Exit::Unreachable);
        let expected = format!(
            "there is no server at {} (connection refused)\n  fix: start one with `millrace dev`, or name another one with --server",
            client.server()
        );
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn problems_become_errors() {
        for (answer, expected) in [
            (
                Answer::problem(404, "there is no topic `x`; `millrace topics` lists them."),
                "there is no topic `x`; `millrace topics` lists them",
            ),
            (Answer::problem(503, "the log is full").retry_after(2), "the log is full\n  fix: try again in 2.0 s"),
            (
                Answer::text(502, "<html>\u{7}"),
                "SERVER does not answer as Millrace does: status 502 Bad Gateway <html>\\u{7}\n  fix: check --server, and \
                 that both sides have the same version",
            ),
        ] {
            let server = Server::answering([answer]).await;
            let refusal = server.client().get::<Problem>(&Target::new(["v1"])).await.unwrap_err();
            assert_eq!(Error::from(refusal).to_string().replace(server.url(), "SERVER"), expected);
        }
    }

    #[tokio::test]
    async fn a_server_with_tls_is_asked_once_it_is_trusted() {
        let answer = |_: &crate::cli::testing::Asked| Answer::json(&serde_json::json!({"tokens": []}));
        let (authority, other) = (Authority::new(), Authority::new());
        let place = Place::of(&authority, &authority.issue(&["127.0.0.1"]));
        let server = Server::secured(place.identity(), answer).await;
        let trusted = place.authority.to_str().unwrap();
        server.run(&["tokens", "list", "--ca-file", trusted]).await.done();
        let elsewhere = Place::of(&other, &authority.issue(&["mill.example"]));
        let foreign = elsewhere.authority.to_str().unwrap();
        let err = server.run(&["tokens", "list", "--ca-file", foreign]).await.refused(Exit::Unreachable);
        assert!(err.contains("nothing is sent to https://") && err.contains("--ca-file or MILLRACE_CA_FILE"), "{err}");
        assert_eq!(server.asked().len(), 1);
        let misnamed = Server::secured(elsewhere.identity(), answer).await;
        let err = misnamed.run(&["tokens", "list", "--ca-file", trusted]).await.refused(Exit::Unreachable);
        assert!(err.contains("its certificate is for mill.example, and not for 127.0.0.1"), "{err}");
        let err = server.run(&["tokens", "list", "--ca-file", "/nowhere"]).await.refused(Exit::Failed);
        assert!(err.contains("/nowhere: it cannot be read"), "{err}");
        // The one that was not meant.
        let plain = server.url().replace("https://", "http://");
        let err = run(&["--server", &plain, "tokens", "list"]).await.refused(Exit::Failed);
        assert!(err.contains("its address begins with https://"), "{err}");
        let http = Server::answering([Answer::text(200, "")]).await;
        let secured = http.url().replace("http://", "https://");
        let err = run(&["--server", &secured, "tokens", "list", "--ca-file", trusted]).await.refused(Exit::Unreachable);
        assert!(err.contains("its address begins with http://"), "{err}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_or_never_comes_is_lost() {
        for answer in [Answer::broken_off(), Answer::never()] {
            let server = Server::answering([answer]).await;
            let client = Client { answer_timeout: Duration::from_millis(100), ..server.client() };
            let refusal = client.get::<Problem>(&Target::new(["v1"])).await.unwrap_err();
            assert!(matches!(refusal, Refusal::Lost { .. }), "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_of_something_else_is_told() {
        let server = Server::answering([Answer::text(200, "hello")]).await;
        let refusal = server.client().get::<Problem>(&Target::new(["v1"])).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Foreign { .. }), "{refusal:?}");
    }
}
