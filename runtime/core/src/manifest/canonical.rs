//! The canonical form of a manifest: every setting under its key, tables and keys in alphabetical order.

use std::fmt::Display;
use std::time::Duration;

use toml::{Table, Value};

use super::function::{ORDERINGS, OVERFLOWS, STARTS};
use super::{Function, Manifest, TopicSettings};
use crate::name::Topic;
use crate::policy::{BreakerPolicy, RetryPolicy};
use crate::units::{Period, Size};

pub(super) fn manifest(manifest: &Manifest) -> Table {
    let topics = manifest.topics.iter().map(|t| (t.name.as_str(), topic(t).into()));
    let functions = manifest.functions.iter().map(|f| (f.name.function(), function(f).into()));
    table([
        ("application", text(&manifest.application)),
        ("topics", table(topics).into()),
        ("functions", table(functions).into()),
    ])
}

fn topic(settings: &TopicSettings) -> Table {
    let age = settings.retention.age.map(|age| ("age", duration(age)));
    let size = settings.retention.size_bytes.map(|bytes| ("size", text(Size(bytes))));
    let retention: Table = table(age.into_iter().chain(size));
    let partitions = settings.partitions.map(|n| ("partitions", count(n)));
    let retention = (!retention.is_empty()).then(|| ("retention", retention.into()));
    table(partitions.into_iter().chain(retention))
}

pub(super) fn function(function: &Function) -> Table {
    let idempotency = &function.idempotency;
    let mut out = table([
        ("component", text(&function.component)),
        ("topics", topics(&function.topics)),
        ("from", word(&STARTS, function.from)),
        ("ordering", word(&ORDERINGS, function.ordering)),
        ("retry", retry(&function.retry).into()),
        ("breaker", breaker(&function.breaker).into()),
        ("instance", table([("reuse", count(function.instance.reuse_events))]).into()),
        ("limits", limits(function).into()),
        ("parked", parked(function).into()),
        (
            "grants",
            table([("publish", topics(&function.grants.publish)), ("state", function.grants.state.into())]).into(),
        ),
        ("config", table(function.config.iter().map(|(name, value)| (name.as_str(), text(value)))).into()),
        ("dead-letter", table([("deadline", deadlines(function).into())]).into()),
    ]);
    let optional = [("build", &function.build), ("filter", &function.filter)];
    out.extend(optional.iter().filter_map(|(key, value)| Some(((*key).to_owned(), text(value.as_ref()?)))));
    if !function.watch.is_empty() {
        out.insert("watch".to_owned(), function.watch.iter().map(text).collect::<Vec<_>>().into());
    }
    let window = [("window", duration(idempotency.window)), ("max-keys", count(idempotency.max_keys))];
    let key = idempotency.key.as_ref().map(|key| ("key", text(key)));
    out.insert("idempotency".to_owned(), table(window.into_iter().chain(key)).into());
    out
}

fn retry(policy: &RetryPolicy) -> Table {
    table([
        ("attempts", count(policy.attempts)),
        ("initial", duration(policy.initial)),
        ("max", duration(policy.max)),
        ("max-age", duration(policy.max_age)),
    ])
}

fn breaker(policy: &BreakerPolicy) -> Table {
    table([
        ("enabled", policy.enabled.into()),
        ("window", duration(policy.window)),
        ("failures-in-row", count(policy.failures_in_row)),
        ("minimum", count(policy.minimum)),
        ("ratio", policy.ratio.into()),
        ("keys", count(policy.keys)),
        ("open", duration(policy.open)),
        ("open-max", duration(policy.open_max)),
    ])
}

fn limits(function: &Function) -> Table {
    let limits = &function.limits;
    table([
        ("time", duration(limits.time)),
        ("memory", bytes(limits.memory_bytes)),
        ("emitted-events", count(limits.emitted_events)),
        ("emitted-bytes", bytes(limits.emitted_bytes)),
        ("log-bytes", bytes(limits.log_bytes)),
    ])
}

fn parked(function: &Function) -> Table {
    table([("limit", count(function.parked.limit)), ("overflow", word(&OVERFLOWS, function.parked.overflow))])
}

fn deadlines(function: &Function) -> Table {
    let deadlines = &function.deadlines;
    table([
        ("transient", duration(deadlines.transient)),
        ("invalid", duration(deadlines.invalid)),
        ("rejected", duration(deadlines.rejected)),
        ("unknown", duration(deadlines.unknown)),
    ])
}

fn table<'k>(entries: impl IntoIterator<Item = (&'k str, Value)>) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn text(value: impl Display) -> Value {
    Value::String(value.to_string())
}

fn duration(duration: Duration) -> Value {
    text(Period(duration))
}

fn bytes(bytes: usize) -> Value {
    text(Size(bytes as u64))
}

/// Every count of a manifest is bounded far below what TOML can hold.
fn count(count: impl TryInto<i64>) -> Value {
    Value::Integer(count.try_into().unwrap_or(i64::MAX))
}

fn topics(topics: &[Topic]) -> Value {
    topics.iter().map(text).collect::<Vec<_>>().into()
}

fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> Value {
    text(words.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word))
}
