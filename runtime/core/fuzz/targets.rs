//! What must hold for all bytes, whoever sends them. `tests/fuzz.rs` tries them briefly, with what lies in `corpus`, and cargo-fuzz
//! for as long as one likes: `make fuzz`.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use bytes::Bytes;
use millrace_core::access::{Caller, Pattern, Permission, Rate, Role, Shown, Token, TokenId, Tokens, without_secrets};
use millrace_core::audit;
use millrace_core::canary::Share;
use millrace_core::codec::{self, Place, base64, http, json};
use millrace_core::digest::Digest;
use millrace_core::event::Event;
use millrace_core::expression::{ExpressionError, Filter, KeyExpression};
use millrace_core::letter::{self, LetterHeaders};
use millrace_core::limits;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::outcome::Category;
use millrace_core::record::{Headers, Record};
use millrace_core::revision::{self, Action, Change, History, Source, State};
use millrace_core::settings::Problem;
use millrace_core::signature::{Key, Signature, Trusted, Untrusted};
use millrace_core::spot::Spot;
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
            match done.map(|change| change.action) {
                // The same once more would set them again.
                Some(Action::Reset { positions, .. }) => {
                    let told = |place: &revision::Place| {
                        let (function, topic) = (function.clone(), place.topic.clone());
                        history.resets().of(&Unit { function, topic, partition: place.partition })
                    };
                    let is_told = |place| told(place).is_some_and(|target| target.number == *number);
                    assert!(positions.iter().all(is_told), "{positions:?} was possible, and nobody is told");
                }
                Some(action) => assert!(history.is_done(&action), "{action:?} was possible, and is not done"),
                None => {}
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

/// When it is, wherever that matters.
const NOW: Timestamp = Timestamp::from_millis(1000);

/// What somebody shows, and on the lines below it what a log keeps, each behind the name of its entry. Who that is follows from a token
/// that can be read and that holds, and from nothing else; whatever the entries say, none of them opens the API.
pub fn tokens(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let shown = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let kept: BTreeMap<&str, &[u8]> = lines
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b' ')?;
            Some((std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..]))
        })
        .collect();
    kept.values().for_each(|content| is_kept(content));
    let tokens = Tokens::read(kept.iter().map(|(name, content)| (*name, *content)));
    let count = kept.keys().filter(|name| name.starts_with("token.")).count();
    assert_eq!((tokens.count(), tokens.are_needed()), (count, count > 0));
    assert_eq!(tokens.iter().count() + tokens.unreadable().count(), count);
    // A secret is the text of 32 bytes, as a digest is.
    let fits = |id: &TokenId, token: &Token| {
        let secret = shown.strip_prefix(&format!("mr_{id}_")).filter(|secret| secret.parse::<Digest>().is_ok());
        secret.is_some_and(|secret| token.secret.is(secret)) && token.holds(NOW)
    };
    match (tokens.caller(&shown, NOW), tokens.iter().find(|(id, token)| fits(id, token))) {
        (Some(caller), Some((id, token))) => {
            is_who(&caller, id, token);
            assert_eq!(tokens.administers(id, NOW), caller.may(Permission::Administer).is_ok());
            assert_eq!(tokens.caller(&format!("{shown}0"), NOW), None);
        }
        (None, None) => {}
        (caller, expected) => panic!("{caller:?} is let in, and not {expected:?}"),
    }
    let foreign = Shown::of_random([7; 6], [255; 32]);
    assert_eq!(tokens.caller(&foreign.text(), NOW), None);
    let lasts = |tokens: &Tokens| tokens.iter().any(|(_, token)| token.lasts());
    for (id, _) in tokens.iter().filter(|(id, _)| tokens.may_remove(id, false, false).is_ok()) {
        let others = kept.iter().filter(|(name, _)| **name != id.entry());
        let left = Tokens::read(others.map(|(name, content)| (*name, *content)));
        assert!(left.count() + 1 == count && (lasts(&left) || !lasts(&tokens)), "nobody can make tokens without {id}");
    }
}

/// A token says what it said before, and nothing that this version does not know.
fn is_kept(content: &[u8]) {
    let Some(token) = Token::decode(content) else { return };
    let kept = token.encode();
    assert_eq!(Token::decode(&kept).as_ref(), Some(&token));
    assert_eq!(Token::decode(&[br#"{"networks":[],"#, &kept[1..]].concat()), None, "that may be a restriction");
    if let Some(rate) = token.rate {
        assert!((1..=limits::RATE_MAX_REQUESTS).contains(&rate.burst()) && rate.with_burst(rate.burst()) == Ok(rate));
    }
    match token.check() {
        Ok(()) => assert!(!token.name.is_empty() && !token.roles.is_empty(), "{token:?} could be made"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What a caller may do is what the token says.
fn is_who(caller: &Caller, id: &TokenId, token: &Token) {
    assert_eq!((caller.name(), caller.token(), caller.rate()), (token.name.as_str(), Some(id), token.rate));
    for permission in Permission::ALL {
        let has = permission.roles().iter().any(|role| token.roles.contains(role));
        assert_eq!(caller.may(permission).is_ok(), has, "{permission:?}");
    }
    let allow = |patterns: &[Pattern], name: &str| {
        patterns.is_empty() || patterns.iter().any(|pattern| is_meant(&pattern.to_string(), name))
    };
    for name in ["shop.pay", "orders", "millrace", ""] {
        assert_eq!(caller.reaches_function(name).is_ok(), allow(&token.functions, name), "{name}");
        assert_eq!(caller.reaches_topic("millrace", name).is_ok(), allow(&token.topics, name), "{name}");
    }
    let is_for_all = token.functions.is_empty() && token.topics.is_empty();
    assert_eq!(caller.reaches_topic("millrace", "millrace.audit").is_ok(), is_for_all);
    assert_eq!(caller.reaches_all("this").is_ok(), is_for_all);
}

/// What somebody did is told whatever the bytes are. Once it is within bounds and without secrets it stays as it is.
pub fn audit(bytes: &[u8]) {
    let read = audit::Record::decode(NOW, bytes);
    let kept = read.clone().encode();
    assert!(kept.len() <= limits::EVENT_MAX_BYTES, "{} bytes are no record", kept.len());
    let told = audit::Record::decode(Timestamp::EPOCH, &kept);
    assert_eq!((told.at_ms, told.result, told.omitted), (read.at_ms, read.result, read.omitted));
    assert_eq!(audit::Record::decode(Timestamp::EPOCH, &told.clone().encode()), told);
    let audit::Who { by, token, from } = &told.who;
    let texts = [by, token, from, &told.action, &told.about, &told.detail];
    for text in texts.into_iter().chain(&told.functions).chain(&told.topics) {
        assert!(text.len() <= limits::AUDITED_TEXT_MAX_BYTES && !shows_a_secret(text), "`{text}` is kept");
    }
    assert!(told.functions.len().max(told.topics.len()) <= limits::AUDITED_NAMES_MAX);
    let filter = audit::Filter {
        by: Some(by.clone()),
        action: Some(told.action.clone()),
        result: Some(told.result),
        since: Some(Timestamp::from_millis(told.at_ms)),
        ..audit::Filter::default()
    };
    assert!(filter.matches(&told) && audit::Filter::default().matches(&read));
    let parts = read.clone().parts();
    assert!(parts.iter().all(|part| part.functions.len() <= limits::AUDITED_NAMES_MAX));
    let functions: Vec<String> = parts.iter().flat_map(|part| part.functions.clone()).collect();
    assert_eq!(functions, read.functions);
}

/// Whether a token is in a text, with some of its secret.
fn shows_a_secret(text: &str) -> bool {
    text.match_indices("mr_").any(|(at, mark)| {
        let parts = text[at + mark.len()..].split_once('_');
        parts.is_some_and(|(id, secret)| {
            id.parse::<TokenId>().is_ok() && secret.starts_with(|c: char| c.is_ascii_alphanumeric())
        })
    })
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

/// Names, quantities and places: what is read from a text is read from what it is written as.
pub fn texts(bytes: &[u8]) {
    assert_eq!(base64::decode(base64::encode(bytes).as_bytes()).as_deref(), Some(bytes));
    if let Some(decoded) = base64::decode(bytes) {
        assert_eq!(base64::encode(&decoded).as_bytes(), bytes);
    }
    if let Ok(signature) = Signature::of_file(bytes) {
        assert_eq!(Signature::parse(&signature.to_string()), Ok(signature));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for exact in [
        written::<Digest>(text),
        written::<Topic>(text),
        written::<FunctionName>(text),
        written::<TokenId>(text),
        written::<Pattern>(text),
        written::<Role>(text),
        written::<audit::Outcome>(text),
        written::<Category>(text),
    ] {
        assert!(exact.is_none_or(|exact| exact == text), "`{text}` has another form");
    }
    written::<Period>(text);
    written::<Size>(text);
    written::<TraceParent>(text);
    if let Ok(time) = Timestamp::parse_rfc3339(text) {
        assert_eq!(Timestamp::parse_rfc3339(&time.to_rfc3339()), Ok(time));
    }
    if let Some(rate) = written::<Rate>(text) {
        assert_eq!(rate, text.trim_start_matches('0'));
    }
    share(text);
    pattern(text);
    spot(text);
    signature(text);
    let told = without_secrets(text);
    assert!(!shows_a_secret(&told), "`{told}` is told of `{text}`");
    assert_eq!(without_secrets(&told), told);
}

fn share(text: &str) {
    if written::<Share>(text).is_none() {
        return;
    }
    let share: Share = text.parse().expect("it was one just now");
    assert_eq!(Share::try_from(share.basis_points()), Ok(share));
    let percent: f64 = text.trim_end_matches('%').parse().expect("it is a number");
    assert!((percent * 100.0 - f64::from(share.basis_points())).abs() < 0.5, "`{text}` is not {share}");
}

/// A pattern, and a name behind a space.
fn pattern(text: &str) {
    let (pattern, name) = text.split_once(' ').unwrap_or((text, text));
    if let Ok(read) = pattern.parse::<Pattern>() {
        assert_eq!(read.matches(name), is_meant(pattern, name), "{pattern} and `{name}`");
        assert!(read.matches(pattern) && read.matches(&pattern.replace('*', "")));
    }
}

/// Whether a name fits a pattern, by going through all ways in which it could.
fn is_meant(pattern: &str, name: &str) -> bool {
    // For each length, whether so much of the name fits what is read of the pattern.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for wanted in pattern.bytes() {
        if wanted == b'*' {
            (1..fits.len()).for_each(|at| fits[at] |= fits[at - 1]);
        } else {
            let longer = fits.iter().zip(name.bytes()).map(|(fits, byte)| *fits && byte == wanted);
            fits = std::iter::once(false).chain(longer).collect();
        }
    }
    fits.ends_with(&[true])
}

fn spot(text: &str) {
    match text.parse::<Spot>() {
        Ok(spot) => {
            let written = match spot {
                Spot::Earliest => "earliest".to_owned(),
                Spot::Latest => "latest".to_owned(),
                Spot::Time(time) => time.to_rfc3339(),
                Spot::Offset(offset) => offset.to_string(),
            };
            assert_eq!(written.parse(), Ok(spot));
            match spot {
                Spot::Time(time) => assert_eq!(Timestamp::parse_rfc3339(text), Ok(time)),
                Spot::Offset(_) => assert_eq!(text.trim_start_matches('0'), written.trim_start_matches('0')),
                Spot::Earliest | Spot::Latest => assert_eq!(written, text),
            }
        }
        Err(error) => assert!(!error.to_string().is_empty() && Timestamp::parse_rfc3339(text).is_err()),
    }
}

/// A key, and what it signed of the component `abc`: both made with openssl.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEApohktG+1/DSjlyZyUMmuGnU3rY4EX/4pJQIkRvEaguQ=\n-----END PUBLIC KEY-----\n";
const SIGNED: &str = "WyovwJFw8vyjYxXzZp4wxTsG6ing/01ayEDrCJG5LsGDxpYY8YrD9RnD70Y/CzX5kVuHIWO8XWweYcGKVDR7AQ==";

/// A signature, a public key, or a private one. Of all texts, one is what the key signed, and no other key has signed that.
fn signature(text: &str) {
    let (component, mut known) = (Digest::of(b"abc"), Trusted::default());
    known.add(PUBLIC_KEY).expect("it is a key");
    match Signature::parse(text) {
        Ok(signature) => {
            assert_eq!(signature.to_string(), text.trim());
            assert_eq!(Signature::of_file(signature.to_string().as_bytes()), Ok(signature));
        }
        Err(error) => assert_eq!(error, Untrusted::Malformed),
    }
    assert_eq!(known.check(component, Some(text)).is_ok(), text.trim() == SIGNED, "{text}");
    assert!(known.check(Digest::of(b"abd"), Some(text)).is_err(), "{text}");
    let mut trusted = Trusted::default();
    match trusted.add(text) {
        Ok(()) => assert_eq!(trusted.check(component, Some(SIGNED)).is_ok(), trusted == known),
        Err(error) => assert!(!error.to_string().is_empty() && trusted == Trusted::default()),
    }
    if let Ok(key) = Key::parse(text) {
        let signed = key.sign(component).to_string();
        assert_eq!(known.check(component, Some(&signed)).is_ok(), signed == SIGNED);
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
