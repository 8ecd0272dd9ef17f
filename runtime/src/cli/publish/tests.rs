use std::io::Write as _;

use millrace_core::time::Timestamp;
use serde_json::{Value, json};

use super::prepare::{Ids, Wrapping};
use crate::cli::error::Exit;
use crate::cli::testing::{Answer, Asked, Server, parsed};

/// Acknowledges everything.
fn accept(asked: &Asked) -> Answer {
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    let count = body.as_array().map_or(1, Vec::len);
    let placements: Vec<Value> = (0..count).map(|at| json!({"partition": 2, "offset": 10 + at})).collect();
    Answer::json(&json!({"topic": "orders", "placements": placements}))
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// Publishes these lines, and answers with the events of each request.
async fn publish(content: &[u8], words: &[&str]) -> (String, Vec<Vec<Value>>) {
    let server = Server::scripted(accept).await;
    let file = file(content);
    let mut line = vec!["publish", "orders", "--file", file.path().to_str().unwrap()];
    line.extend_from_slice(words);
    let out = server.run(&line).await.done();
    let asked = server.asked();
    assert!(asked.iter().all(|a| a.content_type == "application/cloudevents-batch+json"));
    assert!(asked.iter().all(|a| a.line == "POST /v1/topics/orders/events"));
    (out, asked.iter().map(|a| serde_json::from_str(&a.body).unwrap()).collect())
}

#[tokio::test]
async fn one_event_is_made_of_flags() {
    let server = Server::scripted(accept).await;
    let words = [
        "publish",
        "orders",
        "--type",
        "order.placed",
        "--id",
        "7",
        "--source",
        "/shop",
        "--subject",
        "s",
        "--key",
        "ada",
        "--extension",
        "tenant=north",
        "--data",
        "{\"n\": 1.0}",
    ];
    let out = server.run(&words).await.done();
    assert_eq!(out, "7 published to orders, partition 2, offset 10\n");
    let asked = server.asked().pop().unwrap();
    assert_eq!(asked.content_type, "application/cloudevents+json");
    assert!(asked.body.contains("{\"n\": 1.0}"), "the data keeps its form: {}", asked.body);
    let mut event: Value = serde_json::from_str(&asked.body).unwrap();
    assert!(event.as_object_mut().unwrap().remove("time").is_some());
    let expected = json!({
        "specversion": "1.0", "id": "7", "source": "/shop", "type": "order.placed", "subject": "s", "partitionkey": "ada",
        "tenant": "north", "datacontenttype": "application/json", "data": {"n": 1.0}
    });
    assert_eq!(event, expected);
}

#[tokio::test]
async fn data_comes_from_a_file_or_is_text_and_ids_are_random() {
    let server = Server::scripted(accept).await;
    let data = file(b"{\"order\": 7}");
    let at = format!("@{}", data.path().display());
    let out = server.run(&["publish", "orders", "--type", "t", "--data", &at, "--json"]).await.done();
    let told: Value = serde_json::from_str(&out).unwrap();
    let text = ["publish", "orders", "--type", "t", "--data", "plain", "--content-type", "text/plain"];
    server.run(&text).await.done();
    server.run(&["publish", "orders", "--type", "t"]).await.done();
    let events: Vec<Value> = server.asked().iter().map(|a| serde_json::from_str(&a.body).unwrap()).collect();
    assert_eq!(events[0]["data"], json!({"order": 7}));
    assert_eq!((&told["id"], &told["partition"]), (&events[0]["id"], &json!(2)));
    assert_eq!((&events[1]["data"], &events[1]["datacontenttype"]), (&json!("plain"), &json!("text/plain")));
    assert_eq!((&events[2]["data"], &events[2]["datacontenttype"]), (&Value::Null, &Value::Null));
    assert_ne!(events[0]["id"], events[1]["id"]);
    assert_eq!(events[0]["id"].as_str().map(str::len), Some(32));
}

#[tokio::test]
async fn flags_that_make_no_event_are_refused_before_anything_is_sent() {
    let server = Server::scripted(accept).await;
    for (words, expected) in [
        (&["--data", "1"][..], "error: an event needs a type\n  fix: give --type"),
        (&["--type", "t", "--data", "{"], "error: the data is not JSON: EOF"),
        (&["--type", "t", "--data", "@/does/not/exist"], "error: /does/not/exist cannot be read: No such file"),
        (&["--type", "t", "--extension", "Tenant=x"], "error: "),
        (&["--type", "t", "--extension", "a=x", "--extension", "a=y"], "error: extension `a` is given twice"),
        (&["--type", "t", "--key", "a", "--extension", "partitionkey=b"], "error: both a key and the extension"),
        (&["--type", ""], "error: "),
        (&["--file", "/does/not/exist"], "error: /does/not/exist cannot be read: No such file"),
    ] {
        let line: Vec<&str> = ["publish", "orders"].iter().chain(words).copied().collect();
        let ran = server.run(&line).await;
        assert_ne!(ran.exit, Exit::Done);
        assert!(ran.err.starts_with(expected), "{}", ran.err);
    }
    assert_eq!(server.asked().len(), 0);
    for words in [
        &["orders", "--data", "1", "--file", "x"][..],
        &["orders", "--raw", "--type", "t"],
        &["orders", "--file", "x", "--key", "a", "--key-field", "/a"],
        &["orders", "--file", "x", "--key-field", "a"],
        &["orders", "--file", "x", "--batch", "0"],
        &["orders", "--file", "x", "--rate", "0"],
        &["a b", "--type", "t"],
        &["orders", "--type", "t", "--extension", "a"],
    ] {
        let line: Vec<&str> = std::iter::once("publish").chain(words.iter().copied()).collect();
        assert!(parsed(&line).is_err(), "{words:?}");
    }
}

#[tokio::test]
async fn lines_are_published_in_batches_and_in_order() {
    let content = "\u{feff}{\"specversion\": \"1.0\", \"id\": \"0\", \"partitionkey\": \"k\"}\r\n\n{\"n\": 1, \"o\": \"b\"}\n{\"n\":2}\n[3]\n\"x\"";
    let (out, requests) = publish(content.as_bytes(), &["--type", "t", "--key-field", "/o", "--batch", "2"]).await;
    assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let events: Vec<Value> = requests.into_iter().flatten().collect();
    assert_eq!(events[0], json!({"specversion": "1.0", "id": "0", "partitionkey": "k"}));
    assert_eq!((&events[1]["partitionkey"], &events[1]["type"]), (&json!("b"), &json!("t")));
    let data: Vec<&Value> = events[1..].iter().map(|event| &event["data"]).collect();
    assert_eq!(data, [&json!({"n": 1, "o": "b"}), &json!({"n": 2}), &json!([3]), &json!("x")]);
    assert_eq!(events[2].get("partitionkey"), None);
    assert!(out.starts_with("5 events published to orders in ") && out.ends_with(", 3 without a key\n"), "{out}");
}

#[tokio::test]
async fn raw_lines_keep_their_bytes() {
    let content = b"{\"o\": \"b\"}\nnot json \xff\n  7 \n";
    let (_, requests) = publish(content, &["--raw", "--key-field", "/o"]).await;
    let events = &requests[0];
    let bytes = |event: &Value| match event["data"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => millrace_core::codec::base64::decode(event["data_base64"].as_str().unwrap().as_bytes()).unwrap(),
    };
    let all: Vec<Vec<u8>> = events.iter().map(bytes).collect();
    assert_eq!(all, [&b"{\"o\": \"b\"}"[..], b"not json \xff", b"  7 "]);
    assert_eq!((&events[0]["type"], &events[0]["partitionkey"]), (&json!("millrace.record"), &json!("b")));
    assert_eq!(events[0]["datacontenttype"], "application/octet-stream");
    assert_eq!(events[1].get("partitionkey"), None);
}

#[tokio::test]
async fn a_line_that_cannot_be_published_is_named() {
    let lines = "{\"a\":1}\n{\"a\":2}\n{\"a\":3\n";
    let server = Server::scripted(accept).await;
    let file = file(lines.as_bytes());
    let path = file.path().to_str().unwrap();
    let run = async |words: &[&str]| {
        let line: Vec<&str> = ["publish", "orders", "--file", path].iter().chain(words).copied().collect();
        server.run(&line).await.refused(Exit::Failed).replace(path, "FILE")
    };
    let err = run(&["--type", "t"]).await;
    assert!(err.contains("error: line 3 of FILE: it is not JSON: EOF"), "{err}");
    assert!(err.ends_with("or publish lines as they are with --raw; nothing is published yet\n"), "{err}");
    let err = run(&["--type", "t", "--batch", "1"]).await;
    assert!(err.starts_with("2 events published to orders in "), "{err}");
    assert!(err.ends_with("; what comes before line 3 is published, so go on from there\n"), "{err}");
    let err = run(&[]).await;
    assert!(err.contains("error: line 1 of FILE: it is JSON without `specversion`"), "{err}");
    assert!(err.contains("fix: give --type"), "{err}");
}

#[tokio::test]
async fn a_refused_event_of_a_batch_is_named_by_its_line() {
    let server = Server::answering([Answer::problem_at(400, "attribute `id` is missing", 1)]).await;
    let file = file(b"\n{\"specversion\":\"1.0\"}\n\n{\"specversion\":\"1.0\"}\n");
    let path = file.path().to_str().unwrap();
    let err = server.run(&["publish", "orders", "--file", path]).await.refused(Exit::Failed).replace(path, "FILE");
    assert!(
        err.contains("error: line 4 of FILE: attribute `id` is missing\n  fix: mend it; nothing is published"),
        "{err}"
    );
}

#[tokio::test]
async fn what_the_server_cannot_take_now_is_sent_again_with_the_same_ids() {
    let mut answers = vec![
        Answer::problem(503, "the log is full").retry_after(0),
        Answer::broken_off(),
        Answer::problem(429, "too many").retry_after(0),
    ];
    answers.reverse();
    let server = Server::scripted(move |asked| answers.pop().unwrap_or_else(|| accept(asked))).await;
    let file = file(b"1\n2\n");
    let out = server.run(&["publish", "orders", "--type", "t", "--file", file.path().to_str().unwrap()]).await.done();
    assert!(out.contains("2 events published") && out.ends_with(", 3 requests sent again\n"), "{out}");
    let asked = server.asked();
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|a| a.body == asked[0].body), "the same bytes, and so the same ids");
}

#[tokio::test]
async fn patience_ends() {
    let server = Server::scripted(|_| Answer::problem(503, "the log is full").retry_after(30)).await;
    let words = ["publish", "orders", "--type", "t", "--give-up-after", "1ms"];
    let err = server.run(&words).await.refused(Exit::Failed);
    assert_eq!(err, "error: the log is full\n  fix: try again in 30 s\n");
    let file = file(b"1\n2\n");
    let words = ["publish", "orders", "--type", "t", "--give-up-after", "1ms", "--file", file.path().to_str().unwrap()];
    let err = server.run(&words).await.refused(Exit::Failed);
    assert!(
        err.contains("\n  fix: when there is room again, send the rest, or wait longer with --give-up-after; nothing"),
        "{err}"
    );
    let server = Server::scripted(|_| Answer::broken_off()).await;
    let words = ["publish", "orders", "--type", "t", "--give-up-after", "1ms"];
    let err = server.run(&words).await.refused(Exit::Unreachable);
    assert!(err.contains("was lost"), "{err}");
}

/// A server may ask for a longer pause than there is patience for.
#[tokio::test]
async fn patience_is_used_up_before_it_ends() {
    let mut answers = vec![Answer::problem(503, "the log is full").retry_after(30)];
    let server = Server::scripted(move |asked| answers.pop().unwrap_or_else(|| accept(asked))).await;
    let words = ["publish", "orders", "--type", "t", "--give-up-after", "20ms"];
    server.run(&words).await.done();
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_rate_is_kept() {
    let began = std::time::Instant::now();
    let content: String = (0..60).map(|n| format!("{n}\n")).collect();
    let (_, requests) = publish(content.as_bytes(), &["--type", "t", "--rate", "200"]).await;
    assert!(requests.iter().all(|events| events.len() <= 20), "small batches come evenly");
    assert!(began.elapsed().as_millis() >= 200, "the third batch waits until two are due");
}

#[test]
fn keys_come_from_their_place_in_a_row() {
    let wrapping =
        Wrapping { ty: Some("t".into()), source: "/s".into(), key_field: Some("/a/b".into()), ..Wrapping::default() };
    for (line, expected) in [
        (r#"{"a": {"b": "x"}}"#, Some("x")),
        (r#"{"a": {"b": 12}}"#, Some("12")),
        (r#"{"a": {"b": true}}"#, Some("true")),
        (r#"{"a": {"b": null}}"#, None),
        (r#"{"a": {"b": ""}}"#, None),
        (r#"{"a": {"b": []}}"#, None),
        ("5", None),
    ] {
        let prepared = wrapping.line(line.as_bytes(), &mut Ids::new(), Timestamp::EPOCH).unwrap();
        let event: Value = serde_json::from_slice(&prepared.json).unwrap();
        assert_eq!(event.get("partitionkey").and_then(Value::as_str), expected, "{line}");
        assert_eq!(prepared.is_keyed, expected.is_some());
    }
}
