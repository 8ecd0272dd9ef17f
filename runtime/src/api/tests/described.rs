//! The description of the API, held against what the server takes and answers in all tests of the API.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, Uri};
use bytes::Bytes;
use jsonschema::Validator;
use serde_json::{Value, json};

use super::{Answer, Server};
use crate::api::openapi::document;
use crate::api::routes::ROWS;

static DESCRIBED: LazyLock<Value> = LazyLock::new(|| closed(document()));

/// The same, where no answer can have a field that is not described.
fn closed(mut document: Value) -> Value {
    let schemas = document["components"]["schemas"].as_object_mut().unwrap();
    for schema in schemas.values_mut().filter(|schema| schema.get("properties").is_some()) {
        schema["additionalProperties"] = false.into();
    }
    document
}

/// A request that was sent.
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    content_type: String,
    body: Bytes,
}

impl Asked {
    pub(super) fn of(request: &Request<Bytes>) -> Self {
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            content_type: content_type.unwrap_or_default().to_owned(),
            body: request.body().clone(),
        }
    }

    /// Panics if the request was answered in another way than is described. What the description does not have must be refused.
    pub(super) fn hold_against(&self, answer: &Answer) {
        let Some(operation) = self.operation() else {
            let is_options = self.method == Method::HEAD;
            assert!(is_options || answer.status >= 400, "{} {} is not described", self.method, self.uri);
            return;
        };
        let place = format!("{} {} answered with {}", self.method, self.uri, answer.status);
        let mut response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{place}, which is not described: {:?}", answer.body);
        if answer.status >= 400 {
            let (name, said) = (answer.summary(), response["description"].as_str().unwrap());
            let kind = name.split(' ').nth(1).unwrap();
            assert!(said.contains(&format!("`{kind}`")), "{place} ({kind}), which is not described");
            response = &DESCRIBED["components"]["responses"]["problem"];
        } else {
            self.is_as_described(operation, &place);
        }
        let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap();
        let content = &response["content"][content_type];
        assert!(content.is_object(), "{place} in {content_type}, which is not described");
        if content_type.ends_with("json") {
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            fits(&content["schema"], &body, &place);
        }
    }

    fn operation(&self) -> Option<&'static Value> {
        let method = self.method.as_str().to_ascii_lowercase();
        let path: Vec<&str> = self.uri.path().split('/').collect();
        let is_at = |template: &str| {
            let template: Vec<&str> = template.split('/').collect();
            template.len() == path.len()
                && template.iter().zip(&path).all(|(part, given)| part.starts_with('{') || part == given)
        };
        let paths = DESCRIBED["paths"].as_object().unwrap();
        // What is written out goes before what stands in braces.
        let mut found: Vec<_> = paths.iter().filter(|(template, _)| is_at(template)).collect();
        found.sort_by_key(|(template, _)| template.matches('{').count());
        found.first().and_then(|(_, methods)| methods.get(method))
    }

    /// A request that was accepted is described.
    fn is_as_described(&self, operation: &Value, place: &str) {
        let parameters = operation["parameters"].as_array().unwrap();
        let known: BTreeSet<&str> =
            parameters.iter().filter(|one| one["in"] == "query").filter_map(|one| one["name"].as_str()).collect();
        let query = self.uri.query().unwrap_or_default();
        for name in query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap()) {
            assert!(known.contains(name), "{place}, and its parameter {name} is not described");
        }
        // Whatever takes no body does not look at it.
        let Some(body) = operation.get("requestBody") else { return };
        let content_type = self.content_type.split(';').next().unwrap();
        let content = [content_type, "*/*"].iter().find_map(|one| body["content"].get(one));
        let is_component = body["content"].get("application/wasm").is_some();
        assert!(content.is_some() || is_component, "{place}, and a body in {content_type} is not described");
        if let Some(schema) = content.and_then(|content| content.get("schema")) {
            fits(schema, &serde_json::from_slice(&self.body).unwrap(), place);
        }
    }
}

fn fits(schema: &Value, body: &Value, place: &str) {
    let mut schema = schema.clone();
    schema["components"] = DESCRIBED["components"].clone();
    let wrong: Vec<String> =
        validator(&schema).iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{place}: {}\n{body:#}", wrong.join("; "));
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::new(schema).unwrap()
}

#[tokio::test]
async fn the_server_says_what_it_is_described_as() {
    let server = Server::start().await;
    let answer = server.get("/v1/openapi.json").await;
    assert_eq!(answer.json::<Value>(), document());
    server.stop().await;
}

#[test]
fn every_route_is_described_once_and_every_schema_can_be_used() {
    let document = document();
    let described = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (method.to_ascii_uppercase(), path.clone()))
    });
    let routes: BTreeSet<_> = ROWS.iter().map(|row| (row.method.to_owned(), row.path.to_owned())).collect();
    assert_eq!(described.collect::<BTreeSet<_>>(), routes);
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        let _usable = validator(&schema);
        assert!(schema.get("description").is_some(), "{name}");
    }
    let ids = document["paths"].as_object().unwrap().values().flat_map(|methods| methods.as_object().unwrap().values());
    let ids: Vec<_> = ids.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}

#[test]
fn what_is_not_described_is_found() {
    let answer = |status, body: Value| {
        let mut headers = axum::http::HeaderMap::new();
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        Answer { status, headers, body: body.to_string().into() }
    };
    let asked = |method: &str, uri: &str, body: Value| {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, "application/json");
        Asked::of(&request.body(body).unwrap())
    };
    let none = || Value::Null;
    let topics = json!({ "topics": [] });
    let deployed = json!({ "function": "a.b", "number": 1, "revision": null, "new": true });
    for (name, asked, answer, is_wrong) in [
        ("as described", asked("GET", "/v1/topics?internal=true", none()), answer(200, topics.clone()), false),
        ("unknown parameter", asked("GET", "/v1/topics?all=true", none()), answer(200, topics.clone()), true),
        ("unknown status", asked("GET", "/v1/topics", none()), answer(204, topics.clone()), true),
        ("missing field", asked("GET", "/v1/topics", none()), answer(200, json!({})), true),
        ("field too many", asked("GET", "/v1/topics", none()), answer(200, json!({ "topics": [], "more": 1 })), true),
        ("other type", asked("GET", "/v1/topics", none()), answer(200, json!({ "topics": {} })), true),
        ("body", asked("POST", "/v1/functions/a.b/rollback", json!({ "to": 1 })), answer(200, deployed.clone()), false),
        ("body wrong", asked("POST", "/v1/functions/a.b/rollback", json!({ "two": 1 })), answer(200, deployed), true),
        ("unknown path", asked("GET", "/v1/topic", none()), answer(200, topics), true),
    ] {
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| asked.hold_against(&answer)));
        assert_eq!(held.is_err(), is_wrong, "{name}");
    }
}
