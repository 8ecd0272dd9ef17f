//! The description of this API in OpenAPI (<https://spec.openapis.org/oas/v3.1.1>). It is made of what the code has: the routes with what they need, the
//! types of parameters and bodies with their documentation, and the problems with their titles. What only handlers know, which problems
//! they answer with, is in a table here, which the tests of the API are checked against, request by request.

use std::collections::BTreeMap;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::problem::Kind;
use super::routes::{self, About, Needs, Row};
use super::types::{self, BATCH_TYPE, EVENT_TYPE, IDEMPOTENCY_KEY_HEADER, KEY_HEADER, PROBLEM_TYPE};
use super::{audit, letters, state, topics};

/// What the specification calls the names of schemas.
const SCHEMAS: &str = "/components/schemas";

/// What a route's handler takes and answers with.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    /// The type of its parameters.
    query: Option<Make>,
    body: Body,
    answers: &'static [(u16, Answer)],
    /// The problems that it has beside those of every route.
    problems: &'static [Kind],
}

/// Makes the schema of a type, or a reference to it.
type Make = fn(&mut SchemaGenerator) -> Schema;

enum Body {
    Nothing,
    Json(Make),
    Component,
    Events,
}

enum Answer {
    Json(Make),
    Metrics,
}

/// The problems that a route can have whatever it is for, unless everybody may use it at any time.
const COMMON: [Kind; 10] = [
    Kind::MalformedRequest,
    Kind::Unauthenticated,
    Kind::Forbidden,
    Kind::ForeignHost,
    Kind::ForeignOrigin,
    Kind::RateLimited,
    Kind::TooManyRequests,
    Kind::Internal,
    Kind::LogUnavailable,
    Kind::LogFailed,
];
/// Those of a request with a body.
const OF_BODIES: [Kind; 3] = [Kind::RequestTimeout, Kind::TooLarge, Kind::UnsupportedMediaType];

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn shows<T: JsonSchema>(path: &'static str, summary: &'static str, problems: &'static [Kind]) -> Operation {
    let answers = &[(200, Answer::Json(of::<T>))];
    Operation { method: "GET", path, summary, query: None, body: Body::Nothing, answers, problems }
}

const fn does<A: JsonSchema>(path: &'static str, summary: &'static str, problems: &'static [Kind]) -> Operation {
    Operation { method: "POST", ..shows::<A>(path, summary, problems) }
}

const fn asks<A: JsonSchema, Q: JsonSchema>(
    path: &'static str,
    summary: &'static str,
    problems: &'static [Kind],
) -> Operation {
    Operation { body: Body::Json(of::<Q>), ..does::<A>(path, summary, problems) }
}

const OPERATIONS: [Operation; routes::ROWS.len()] = {
    use Kind::{
        CompilerUnavailable, Conflict, DeadLetterNotOpen, InvalidEvent, InvalidFunction, InvalidSignature, Lockout,
        LogBusy, LogFull, NotReady, ReservedTopic, UnknownComponent, UnknownDeadLetter, UnknownFunction,
        UnknownPartition, UnknownPath, UnknownRevision, UnknownToken, UnknownTopic,
    };
    use routes::{
        AUDIT, CANARY, COMPONENT, DISCARD, FUNCTION, FUNCTIONS, LETTER, LETTERS, LIVE, METRICS, OPENAPI, PAUSE,
        PROMOTE, PUBLISH, READY, REDRIVE, RESET, RESOLVE, RESUME, REVISIONS, ROLLBACK, SKIP, STATE, STATUS, TOKEN,
        TOKENS, TOPICS,
    };
    use types::{
        Audit, CanaryRequest, Component, DeadLetter, DeadLetters, DeployRequest, Deployed, FunctionStatus, Health,
        LetterAnswer, LetterRequest, PromoteRequest, Published, Records, ResetAnswer, ResetRequest, Revisions,
        RollbackRequest, SkipAnswer, SkipRequest, State, Status, TokenMade, TokenRequest, TokenRevoked, Tokens, Topics,
    };
    const CHANGES: &[Kind] = &[UnknownFunction, UnknownRevision, Conflict, LogFull, LogBusy, UnknownPath];
    const DEPLOYS: &[Kind] = &[
        CompilerUnavailable,
        InvalidFunction,
        InvalidSignature,
        UnknownFunction,
        UnknownComponent,
        UnknownRevision,
        Conflict,
        LogFull,
        LogBusy,
        UnknownPath,
    ];
    const RESETS: &[Kind] = &[UnknownFunction, UnknownTopic, UnknownPartition, Conflict, LogFull, LogBusy, UnknownPath];
    const ACTS: &[Kind] = &[UnknownFunction, UnknownDeadLetter, DeadLetterNotOpen, LogFull, LogBusy];
    const MAKES_TOKENS: &[Kind] = &[Lockout, Conflict, UnknownPath, LogFull, LogBusy];
    [
        Operation {
            query: Some(of::<topics::ReadQuery>),
            ..shows::<Records>(PUBLISH, "Read the records of a topic", &[UnknownTopic, UnknownPartition])
        },
        Operation {
            body: Body::Events,
            answers: &[(202, Answer::Json(of::<Published>))],
            ..does::<Published>(
                PUBLISH,
                "Publish events; they are durable once this is answered",
                &[InvalidEvent, ReservedTopic, UnknownTopic, LogFull, LogBusy],
            )
        },
        Operation { query: Some(of::<topics::ListQuery>), ..shows::<Topics>(TOPICS, "List the topics", &[]) },
        shows::<Status>(FUNCTIONS, "List the functions that run on this instance, with their accounts", &[]),
        shows::<Status>(STATUS, "The same as the list of functions", &[]),
        shows::<FunctionStatus>(FUNCTION, "Show a function that runs on this instance", &[UnknownFunction]),
        shows::<Revisions>(
            REVISIONS,
            "Show everything that was done to a function, and how its instances are",
            &[UnknownFunction, UnknownPath],
        ),
        Operation {
            query: Some(of::<state::Query>),
            ..shows::<State>(STATE, "Show what the handler of a function has stored", &[UnknownFunction])
        },
        shows::<Component>(COMPONENT, "Ask whether a component is there", &[UnknownComponent, UnknownPath]),
        Operation {
            method: "PUT",
            body: Body::Component,
            answers: &[(200, Answer::Json(of::<Component>)), (201, Answer::Json(of::<Component>))],
            ..shows::<Component>(
                COMPONENT,
                "Upload a component",
                &[CompilerUnavailable, InvalidFunction, UnknownComponent, UnknownPath, LogFull, LogBusy],
            )
        },
        Operation {
            method: "PUT",
            ..asks::<Deployed, DeployRequest>(FUNCTION, "Deploy a revision of a function", DEPLOYS)
        },
        Operation {
            method: "DELETE",
            ..does::<Deployed>(FUNCTION, "Delete a function; what it stored stays", CHANGES)
        },
        asks::<Deployed, RollbackRequest>(ROLLBACK, "Run an earlier revision again", DEPLOYS),
        asks::<Deployed, PromoteRequest>(PROMOTE, "Let the canary of a function become its active revision", DEPLOYS),
        asks::<Deployed, CanaryRequest>(CANARY, "Give the canary of a function another share of the keys", DEPLOYS),
        does::<Deployed>(PAUSE, "Let a function take up no more events", CHANGES),
        does::<Deployed>(RESUME, "Let a function go on that was paused", CHANGES),
        asks::<ResetAnswer, ResetRequest>(RESET, "Let a function go on from another place of its topics", RESETS),
        asks::<SkipAnswer, SkipRequest>(
            SKIP,
            "Let partitions of a function go on whose position no longer exists",
            &[UnknownFunction],
        ),
        Operation {
            query: Some(of::<letters::ListQuery>),
            ..shows::<DeadLetters>(LETTERS, "List dead letters", &[UnknownFunction])
        },
        shows::<DeadLetter>(
            LETTER,
            "Show a dead letter with its record",
            &[UnknownFunction, UnknownDeadLetter, UnknownTopic],
        ),
        asks::<LetterAnswer, LetterRequest>(REDRIVE, "Send dead letters to their functions once more", ACTS),
        asks::<LetterAnswer, LetterRequest>(RESOLVE, "Say that dead letters are done", ACTS),
        asks::<LetterAnswer, LetterRequest>(DISCARD, "Give dead letters up", ACTS),
        Operation {
            query: Some(of::<audit::Query>),
            ..shows::<Audit>(AUDIT, "List who changed what, and who was refused", &[UnknownPath])
        },
        shows::<Tokens>(TOKENS, "List the tokens", &[UnknownPath]),
        Operation {
            answers: &[(201, Answer::Json(of::<TokenMade>))],
            ..asks::<TokenMade, TokenRequest>(TOKENS, "Make a token, which is told this once", MAKES_TOKENS)
        },
        Operation {
            method: "DELETE",
            ..does::<TokenRevoked>(
                TOKEN,
                "Revoke a token",
                &[UnknownToken, Lockout, Conflict, UnknownPath, LogFull, LogBusy],
            )
        },
        shows::<Health>(LIVE, "Whether the process answers", &[]),
        shows::<Health>(READY, "Whether it is of use", &[NotReady]),
        Operation { answers: &[(200, Answer::Metrics)], ..shows::<Health>(METRICS, "Figures for Prometheus", &[]) },
        shows::<Map<String, Value>>(OPENAPI, "This description", &[]),
    ]
};

/// The description of the API of this version.
#[must_use]
pub fn document() -> Value {
    let settings = || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
    let mut makers = Makers {
        asked: settings().for_deserialize().into_generator(),
        answered: settings().for_serialize().into_generator(),
    };
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for row in &routes::ROWS {
        let operation = OPERATIONS.iter().find(|one| (one.method, one.path) == (row.method, row.path));
        if let Some(operation) = operation {
            let path = paths.entry(row.path).or_default();
            path.insert(row.method.to_ascii_lowercase(), makers.operation(row, operation));
        }
    }
    let problem = makers.answered.subschema_for::<types::Problem>();
    let mut schemas = makers.asked.take_definitions(true);
    schemas.extend(makers.answered.take_definitions(true));
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Millrace",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "Publishing events, and everything that people and tools ask and do. Instants are RFC 3339, \
                durations seconds, sizes bytes. `HEAD` is as `GET`. A refusal is a problem (RFC 9457) whose `type` is stable; \
                those with `Retry-After` are worth repeating.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "What `millrace tokens create` told. As long as there are no tokens none is needed by those whom the server listens to.",
            }},
            "responses": { "problem": { "description": "A problem", "content": { PROBLEM_TYPE: { "schema": problem } } } },
            "schemas": schemas,
        },
    });
    say_plainly(&mut document);
    document
}

/// Documentation links to other parts of the code, which nobody has here.
fn say_plainly(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
            map.values_mut().for_each(say_plainly);
        }
        Value::Array(list) => list.iter_mut().for_each(say_plainly),
        _ => {}
    }
}

/// Bodies are described as they are read here, answers as they are written.
struct Makers {
    asked: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Makers {
    fn operation(&mut self, row: &Row, operation: &Operation) -> Value {
        let mut parameters: Vec<Value> = path_parameters(row.path).collect();
        if let Some(query) = operation.query {
            parameters.extend(self.query_parameters(query));
        }
        if matches!(operation.body, Body::Events) {
            parameters.extend(headers_of_events());
        }
        let mut described = json!({
            "operationId": operation_id(row),
            "summary": operation.summary,
            "description": needs(row.needs),
            "parameters": parameters,
            "responses": self.responses(row, operation),
        });
        if let Some(body) = self.body(&operation.body) {
            described["requestBody"] = body;
        }
        if row.needs == Needs::Nothing {
            described["security"] = json!([]);
        }
        described
    }

    fn responses(&mut self, row: &Row, operation: &Operation) -> Value {
        let mut responses = Map::new();
        for (status, answer) in operation.answers {
            let content = match answer {
                Answer::Json(make) => json!({ "application/json": { "schema": make(&mut self.answered) } }),
                Answer::Metrics => json!({ "application/openmetrics-text": { "schema": { "type": "string" } } }),
            };
            responses.insert(status.to_string(), json!({ "description": "Done", "content": content }));
        }
        let mut problems: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for kind in problems_of(row, operation) {
            let (name, title, status) = kind.parts();
            problems.entry(status.as_u16()).or_default().push(format!("`{name}`: {title}"));
        }
        for (status, kinds) in problems {
            let mut problem = json!({ "$ref": "#/components/responses/problem" });
            // OpenAPI lets a reference have a description of its own.
            problem["description"] = kinds.join("; ").into();
            responses.insert(status.to_string(), problem);
        }
        responses.into()
    }

    fn body(&mut self, body: &Body) -> Option<Value> {
        let event = || json!({ "type": "object", "required": ["specversion", "id", "source", "type"] });
        let content = match body {
            Body::Nothing => return None,
            Body::Json(make) => json!({ "application/json": { "schema": make(&mut self.asked) } }),
            Body::Component => json!({ "application/wasm": {} }),
            Body::Events => json!({
                EVENT_TYPE: { "schema": event() },
                BATCH_TYPE: { "schema": { "type": "array", "items": event() } },
                "*/*": {},
            }),
        };
        Some(json!({ "required": true, "content": content }))
    }

    /// One parameter for each field of a type.
    fn query_parameters(&mut self, make: Make) -> Vec<Value> {
        let made = make(&mut self.asked);
        let name =
            made.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let schema = self.asked.definitions_mut().remove(name).unwrap_or_default();
        let described = |(name, schema): (&String, &Value)| {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({ "name": name, "in": "query", "description": description, "schema": schema })
        };
        schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(described).collect()
    }
}

/// All problems of a route.
fn problems_of<'a>(row: &Row, operation: &'a Operation) -> impl Iterator<Item = &'a Kind> {
    let common: &[Kind] = match row.needs {
        Needs::Nothing => &[Kind::ForeignHost, Kind::ForeignOrigin],
        Needs::Permission(..) | Needs::UnlessOpened(..) => &COMMON,
    };
    let of_bodies: &[Kind] = if matches!(operation.body, Body::Nothing) { &[] } else { &OF_BODIES };
    common.iter().chain(of_bodies).chain(operation.problems)
}

/// `get-v1-topics` and so on, without what stands in braces.
fn operation_id(row: &Row) -> String {
    let words = row.path.split('/').filter(|word| !word.is_empty());
    let words = words.map(|word| word.trim_matches(['{', '}']).replace('.', "-"));
    std::iter::once(row.method.to_ascii_lowercase()).chain(words).collect::<Vec<_>>().join("-")
}

fn needs(needs: Needs) -> String {
    let (permission, about) = match needs {
        Needs::Nothing => return "Needs no token.".to_owned(),
        Needs::Permission(permission, about) | Needs::UnlessOpened(permission, about) => (permission, about),
    };
    let roles: Vec<String> = permission.roles().iter().map(|role| format!("`{role}`")).collect();
    let about = match about {
        About::Function => ", for this function",
        About::Topic => ", for this topic",
        About::Letter => ", for this function and this topic",
        About::Chosen => "; what it is not for is left out, or refused",
        About::Neither => "",
        About::All => ", for all functions and topics",
    };
    let unless =
        if matches!(needs, Needs::UnlessOpened(..)) { ", unless the configuration opens it to all" } else { "" };
    format!("Needs a token with one of the roles {}{about}{unless}.", roles.join(", "))
}

fn path_parameters(path: &'static str) -> impl Iterator<Item = Value> {
    path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        let (description, schema) = match name {
            "function" => ("`<application>.<function>`", json!({ "type": "string" })),
            "digest" => {
                ("The SHA-256 of a component, in hex", json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" }))
            }
            "partition" => ("A partition's number", json!({ "type": "integer", "minimum": 0 })),
            "offset" => ("An offset in it", json!({ "type": "integer", "minimum": 0 })),
            "id" => ("What a token is known by", json!({ "type": "string" })),
            _ => ("A topic's name", json!({ "type": "string" })),
        };
        json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
    })
}

/// The headers that say something about published events.
fn headers_of_events() -> impl Iterator<Item = Value> {
    [
        (KEY_HEADER, "The ordering key; else the extension `partitionkey` of an event"),
        (IDEMPOTENCY_KEY_HEADER, "The id of a plain event, so that publishing it can be repeated"),
        ("ce-id", "With this and its like the body is the data of an event (the binary mode of the HTTP binding of CloudEvents)"),
        ("traceparent", "The trace that events belong to which say nothing of one"),
    ]
    .into_iter()
    .map(|(name, description)| {
        json!({ "name": name, "in": "header", "description": description, "schema": { "type": "string" } })
    })
}
