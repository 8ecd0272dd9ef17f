//! What must hold for all bytes, whoever sends them. `tests/fuzz.rs` tries them briefly, with what lies in `corpus`, and cargo-fuzz
//! for as long as one likes: `make fuzz`.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use bytes::Bytes;
use millrace_core::codec::{self, Place, base64, http, json};
use millrace_core::digest::Digest;
use millrace_core::event::Event;
use millrace_core::expression::{ExpressionError, Filter, KeyExpression};
use millrace_core::letter::{self, LetterHeaders};
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::{FunctionName, Topic};
use millrace_core::record::{Headers, Record};
use millrace_core::revision::{self, Action, Change, History, Source, State};
use millrace_core::settings::Problem;
use millrace_core::time::Timestamp;
use millrace_core::trace::TraceParent;
use millrace_core::units::{Period, Size};

/// A manifest is read, or each thing that is wrong has its place; its canonical form is the same manifest.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let is_placed = |problem: &Problem| {
        let line = text.lines().nth(problem.line.saturating_sub(1)).unwrap_or_default();
        let is_within = problem.line <= text.lines().count() + 1 && problem.column <= line.chars().count() + 1;
        assert!(is_within && problem.line > 0 && problem.column > 0, "{problem:?} lies outside of the text");
        assert!(!problem.message.is_empty(), "{problem:?} says nothing");
    };
    let (manifest, warnings) = match Manifest::parse(text) {
        Ok(read) => read,
        Err(problems) => {
            assert!(!problems.is_empty(), "it is refused without a reason");
            return problems.iter().for_each(is_placed);
        }
    };
    warnings.iter().for_each(is_placed);
    let canonical = manifest.to_toml();
    let (again, _) = Manifest::parse(&canonical).expect("the canonical form is a manifest");
    assert_eq!(again, manifest);
    assert_eq!(again.to_toml(), canonical);
    for function in &manifest.functions {
        let source = Source::uploaded(&manifest, function, Digest::of(bytes));
        let (_, read) = source.read("millrace").expect("what is deployed can be read");
        let uploaded =
            Function { component: read.component.clone(), build: None, watch: Vec::new(), ..function.clone() };
        assert_eq!(read, uploaded);
    }
}

/// An expression is compiled and can be evaluated, or what is wrong is told with its place.
pub fn expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let event = json::parse_event(br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-11-20T08:15:00Z","data":{"a":[1,"b",null]},"ext":"x"}"#);
    let (event, key) = (event.expect("it is an event"), Bytes::from_static(b"key"));
    let is_told = |error: &ExpressionError| {
        assert!(!error.message.is_empty(), "it is refused without a reason");
        if let Some((line, column)) = error.position {
            let is_within = line > 0 && column > 0 && line <= text.lines().count() + 1 && column <= text.len() + 1;
            assert!(is_within, "{error:?} lies outside of the text");
        }
    };
    match (Filter::compile(text), KeyExpression::compile(text)) {
        (Ok(filter), Ok(expression)) => {
            assert_eq!(filter.matches(&event, Some(&key)), filter.matches(&event, Some(&key)));
            if let Ok(value) = expression.evaluate(&event, Some(&key)) {
                assert!(!value.is_empty());
            }
        }
        (Err(one), Err(other)) => {
            assert_eq!(one, other);
            is_told(&one);
        }
        (filter, expression) => panic!("{filter:?} is not {expression:?}"),
    }
}

/// A record of the registry says what it said before, or why it cannot be read.
pub fn change(bytes: &[u8]) {
    match Change::decode(bytes) {
        Ok(change) => {
            assert_eq!(Change::decode(&change.encode()), Ok(change));
        }
        Err(reason) => assert!(!reason.is_empty(), "it cannot be read, and nobody knows why"),
    }
}

/// Deployments, one on each line behind the function's name, lead to the same histories however many are read at a time; what
/// these say of themselves goes together.
pub fn histories(bytes: &[u8]) {
    let mut numbers = BTreeMap::<FunctionName, u64>::new();
    let deployments: Vec<(FunctionName, u64, &[u8])> = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b' ')?;
            let function: FunctionName = std::str::from_utf8(&line[..at]).ok()?.parse().ok()?;
            let number = numbers.entry(function.clone()).or_default();
            *number += 1;
            Some((function, *number, &line[at + 1..]))
        })
        .collect();
    let of = |deployments: &[(FunctionName, u64, &'_ [u8])]| -> BTreeMap<FunctionName, History> {
        revision::histories(deployments.iter().map(|(function, number, content)| (function, *number, *content)))
    };
    let at_once = of(&deployments);
    for split in 0..deployments.len() {
        let (first, then) = deployments.split_at(split);
        let mut read = of(first);
        for (function, number, content) in then {
            let history = read.entry(function.clone()).or_default();
            let done = Change::decode(content).ok().filter(|change| history.check(&change.action).is_ok());
            history.apply(*number, content);
            if let Some(Change { action, .. }) = done {
                assert!(history.is_done(&action), "{action:?} was possible, and is not done");
            }
            goes_together(history);
        }
        assert_eq!(read, at_once, "after {split} and the others");
    }
}

fn goes_together(history: &History) {
    let active = history.active().map(|(revision, _)| revision);
    match history.state() {
        State::Active { revision, .. } => assert_eq!(active, Some(*revision)),
        State::Absent | State::Unknown { .. } => assert_eq!(active, None),
    }
    if let Some(previous) = history.previous() {
        assert!(Some(previous) < active && history.check(&Action::Rollback { to: previous }).is_ok());
    }
    assert_eq!(history.staged().is_some(), history.next().is_some());
    if let Some(next) = history.next() {
        // What a newer version did stands in the way of everything.
        let is_possible = history.check(&next).is_ok();
        assert_eq!(is_possible, !matches!(history.state(), State::Unknown { .. }));
    }
    if let Some((canary, ..)) = history.canary() {
        assert!(active.is_some() && history.check(&Action::Promote { revision: canary }).is_ok());
        assert_eq!(history.back(), active);
    }
    let kept = history.kept(2);
    assert!(kept.len() <= 2 && kept.keys().all(|number| history.revision(*number).is_some()));
}

/// An event is the same in a record and in JSON.
fn survives(event: &Event) {
    assert_eq!(codec::check(event), Ok(()));
    let record = codec::encode(event, None, Timestamp::EPOCH);
    let topic = Topic::new("orders").expect("a name");
    assert_eq!(codec::decode(&record, Place { topic: &topic, partition: 0, offset: 0 }).as_ref(), Ok(event));
    let read = json::parse_event(&json::write_event(event)).expect("it is an event");
    // Data that is JSON has a content type from then on, which an absent one stands for.
    let datacontenttype = event.datacontenttype.clone().or_else(|| read.datacontenttype.clone());
    assert_eq!(read, Event { datacontenttype, ..event.clone() });
}

/// Structured mode.
pub fn event(bytes: &[u8]) {
    match json::parse_event(bytes) {
        Ok(event) => {
            survives(&event);
            assert_eq!(json::parse_batch(&[b"[", bytes, b"]"].concat()), Ok(vec![event]));
        }
        Err(failure) => assert!(is_placed(&failure.reason), "{failure:?}"),
    }
}

fn is_placed(reason: &str) -> bool {
    reason.contains(" at line ") || reason.ends_with("the bytes are not UTF-8")
}

/// Batched mode: all of it, or the first that is wrong.
pub fn batch(bytes: &[u8]) {
    match json::parse_batch(bytes) {
        Ok(events) => {
            events.iter().for_each(survives);
            let each: Vec<Vec<u8>> = events.iter().map(json::write_event).collect();
            let written = [&b"["[..], &each.join(&b','), b"]"].concat();
            assert_eq!(json::parse_batch(&written).map(|read| read.len()), Ok(events.len()));
        }
        Err(error) => {
            assert!(error.index <= bytes.len() && is_placed(&error.failure.reason), "{error:?}");
        }
    }
}

/// A name, and a value if there is one.
type Header<'a> = (&'a str, Option<&'a [u8]>);

/// Header lines, an empty line, and what comes behind them.
fn head_and_body(bytes: &[u8]) -> (Vec<Header<'_>>, &[u8]) {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..at], &rest[at + 1..]);
        rest = behind;
        if line.is_empty() {
            break;
        }
        let colon = line.windows(2).position(|two| two == b": ");
        let (name, value) = colon.map_or((line, None), |at| (&line[..at], Some(&line[at + 2..])));
        lines.extend(std::str::from_utf8(name).map(|name| (name, value)));
    }
    (lines, rest)
}

/// Binary mode over HTTP.
pub fn headers(bytes: &[u8]) {
    let (headers, body) = head_and_body(bytes);
    let given = headers.iter().map(|(name, value)| (*name, value.unwrap_or_default()));
    match http::read_binary(given, Bytes::copy_from_slice(body)) {
        Ok(event) => survives(&event),
        Err(failure) => assert!(!failure.reason.is_empty()),
    }
}

/// Binary mode in a record, a record of any kind, and a dead letter. The bytes are also a block of headers.
pub fn record(bytes: &[u8]) {
    if let Ok(headers) = Headers::from_block(Bytes::copy_from_slice(bytes)) {
        assert_eq!(headers.entries().count(), headers.iter().count());
        reads(&Record { headers, ..Record::default() });
    }
    let (headers, body) = head_and_body(bytes);
    reads(&Record {
        headers: headers.iter().filter(|(name, _)| name.len() <= usize::from(u16::MAX)).copied().collect(),
        value: (!body.is_empty()).then(|| Bytes::copy_from_slice(body)),
        ..Record::default()
    });
}

fn reads(record: &Record) {
    let headers: Headers =
        record.headers.iter().collect::<Vec<_>>().iter().map(|(name, value)| (*name, value.as_deref())).collect();
    assert_eq!(headers, record.headers);
    let topic = Topic::new("orders").expect("a name");
    match codec::decode(record, Place { topic: &topic, partition: 1, offset: 2 }) {
        Ok(event) => survives(&event),
        Err(failure) => assert!(!failure.reason.is_empty()),
    }
    if let Ok(letter) = LetterHeaders::read(record) {
        let original = letter::original(record);
        let sealed = letter.seal(&original);
        assert_eq!(letter::original(&sealed), original);
        assert_eq!(LetterHeaders::read(&sealed).map(|read| read.redrives), Ok(letter.redrives));
        drop(letter::redriven(record, u32::MAX));
    }
}

/// Names and quantities: what is read from a text is read from what it is written as.
pub fn texts(bytes: &[u8]) {
    assert_eq!(base64::decode(base64::encode(bytes).as_bytes()).as_deref(), Some(bytes));
    if let Some(decoded) = base64::decode(bytes) {
        assert_eq!(base64::encode(&decoded).as_bytes(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for exact in [written::<Digest>(text), written::<Topic>(text), written::<FunctionName>(text)] {
        assert!(exact.is_none_or(|exact| exact == text), "`{text}` has another form");
    }
    written::<Period>(text);
    written::<Size>(text);
    written::<TraceParent>(text);
    if let Ok(time) = Timestamp::parse_rfc3339(text) {
        assert_eq!(Timestamp::parse_rfc3339(&time.to_rfc3339()), Ok(time));
    }
}

/// How what a text says is written, if it says anything.
fn written<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) -> Option<String> {
    match text.parse::<T>() {
        Ok(read) => {
            let written = read.to_string();
            assert!(written.parse::<T>().is_ok_and(|again| again == read), "{read:?} is written as `{written}`");
            Some(written)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}
