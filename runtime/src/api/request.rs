//! The parameters of a request: path and query.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Uri};
use millrace_core::codec::is_json;
use millrace_core::name::{FunctionName, Topic};
use serde::de::DeserializeOwned;

use super::Shared;
use super::problem::{Kind, Refusal};

/// The topic that a path names. A name that no topic can have is one that does not exist.
pub(super) fn topic_of(path: Result<Path<String>, PathRejection>) -> Result<Topic, Refusal> {
    let Path(name) = path.map_err(|e| Refusal::new(Kind::UnknownTopic, e.body_text()))?;
    Topic::new(name).map_err(|e| Refusal::new(Kind::UnknownTopic, e))
}

/// The function that a path names.
pub(super) fn function_of(path: Result<Path<String>, PathRejection>) -> Result<FunctionName, Refusal> {
    let Path(name) = path.map_err(|e| Refusal::new(Kind::UnknownFunction, e.body_text()))?;
    name.parse().map_err(|e| Refusal::new(Kind::UnknownFunction, e))
}

/// The parameters of a query. Those that are not known are refused, so that a mistyped one does not pass for absent.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    let Query(query) = Query::try_from_uri(uri).map_err(|e| {
        // The innermost error is the one about the query; the others say that there is one.
        let mut cause: &dyn std::error::Error = &e;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Refusal::malformed(query_flaw(&cause.to_string()))
    })?;
    Ok(query)
}

/// What is wrong with a query, from what its parser says: `<parameter>: <reason>`.
fn query_flaw(said: &str) -> String {
    let (name, reason) = said.split_once(": ").unwrap_or(("", said));
    if let Some((_, known)) = reason.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", expected ")) {
        let known: Vec<String> = known.split('`').skip(1).step_by(2).map(|name| format!("`{name}`")).collect();
        return format!("there is no parameter `{name}` here; there is {}", known.join(", "));
    }
    if let Some(name) = reason.strip_prefix("duplicate field ") {
        return format!("parameter {name} is given more than once; give it once");
    }
    if name.is_empty() {
        return format!("the query is malformed: {said}; write it as name=value&name=value");
    }
    format!("parameter `{name}`: {reason}; give it another value, or leave it out")
}

/// Refuses a query where there are no parameters.
pub(super) fn no_query(uri: &Uri, instead: &str) -> Result<(), Refusal> {
    match uri.query() {
        None | Some("") => Ok(()),
        Some(_) => Err(Refusal::malformed(format_args!("there are no parameters in the query here; {instead}"))),
    }
}

/// Reads one parameter.
pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<T>, Refusal> {
    let parse = |text: &str| text.parse().map_err(|e| Refusal::malformed(format_args!("parameter `{name}`: {e}")));
    text.map(parse).transpose()
}

/// How many items a page can have.
pub(super) fn page(limit: Option<usize>) -> Result<usize, Refusal> {
    let max = millrace_core::limits::PAGE_MAX_ITEMS;
    match limit {
        None => Ok(millrace_core::limits::PAGE_DEFAULT_ITEMS),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(_) => Err(Refusal::malformed(format_args!("parameter `limit` must lie between 1 and {max}"))),
    }
}

impl<B, R> Shared<B, R> {
    /// The body of a request in JSON that changes something.
    pub(super) async fn json_request<T: DeserializeOwned>(&self, request: Request) -> Result<T, Refusal> {
        let (parts, body) = request.into_parts();
        no_query(&parts.uri, "the request is a JSON body")?;
        check_content_type(&parts.headers)?;
        let body = self.bodies.read(&parts.headers, body).await?;
        serde_json::from_slice(&body.bytes).map_err(|e| Refusal::malformed(format_args!("the body: {e}")))
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if given.is_some_and(is_json) {
        return Ok(());
    }
    Err(Refusal::new(Kind::UnsupportedMediaType, "send the request as application/json"))
}
