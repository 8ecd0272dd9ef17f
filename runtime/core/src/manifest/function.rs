//! One function's table.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Function, Grants, checked_topic, warn_if_misspelt};
use crate::limits;
use crate::name::{FunctionName, Topic, dead_letter_topic, redrive_topic};
use crate::policy::{
    BreakerPolicy, Deadlines, IdempotencyPolicy, InstancePolicy, InvocationLimits, Ordering, Overflow, ParkedPolicy,
    RetryPolicy, StartAt,
};
use crate::settings::{Placed, Section};
use crate::units::Period;

/// What a function's table is read against.
pub(super) struct Context<'a> {
    pub(super) application: &'a str,
    pub(super) declared: &'a [&'a str],
    pub(super) prefix: &'a str,
}

/// The words for where a function starts.
pub(super) const STARTS: [(&str, StartAt); 2] = [("earliest", StartAt::Earliest), ("latest", StartAt::Latest)];
/// The words for orderings.
pub(super) const ORDERINGS: [(&str, Ordering); 3] =
    [("key", Ordering::Key), ("partition", Ordering::Partition), ("none", Ordering::None)];
/// The words for what happens at the limit of parked records.
pub(super) const OVERFLOWS: [(&str, Overflow); 2] = [("dead-letter", Overflow::DeadLetter), ("pause", Overflow::Pause)];

const MILLISECOND: Duration = Duration::from_millis(1);

/// Reads a function's table.
pub(super) fn read(mut table: Section<'_, '_, '_>, label: &str, context: &Context<'_>) -> Option<Function> {
    let name = read_name(&mut table, label, context)?;
    let topics = read_sources(&mut table, &name, context);
    let retry = read_retry(&mut table);
    let function = Function {
        build: read_text(&mut table, "build"),
        component: read_component(&mut table, label),
        watch: table.texts("watch").unwrap_or_default().into_iter().map(|w| w.value.to_owned()).collect(),
        from: table.choice("from", &STARTS).unwrap_or_default(),
        filter: read_expression(&mut table, "filter"),
        ordering: table.choice("ordering", &ORDERINGS).unwrap_or_default(),
        breaker: read_breaker(&mut table),
        idempotency: read_idempotency(&mut table, &retry),
        instance: read_instance(&mut table),
        limits: read_limits(&mut table),
        parked: read_parked(&mut table),
        grants: read_grants(&mut table, &topics, context),
        config: read_config(&mut table),
        deadlines: read_deadlines(&mut table),
        name,
        topics,
        retry,
    };
    table.finish();
    Some(function)
}

/// The full name. Where the label is wrong, reading goes on under another name, to find what else is.
fn read_name(table: &mut Section<'_, '_, '_>, label: &str, context: &Context<'_>) -> Option<FunctionName> {
    let name = FunctionName::new(context.application, label).or_else(|e| {
        let place = table.place().clone();
        table.problems().error(&place, e, "");
        FunctionName::new(context.application, "function")
    });
    let name = name.ok()?;
    if let Err(e) = dead_letter_topic(context.prefix, &name) {
        let place = table.place().clone();
        table.problems().error(&place, e, "");
    }
    Some(name)
}

fn read_text(table: &mut Section<'_, '_, '_>, key: &'static str) -> Option<String> {
    table.text(key).map(|text| text.value.to_owned())
}

fn read_component(table: &mut Section<'_, '_, '_>, label: &str) -> String {
    if !table.has("component") {
        let file = label.replace('-', "_");
        table.missing("component", format_args!("add component = \"target/wasm32-wasip2/release/{file}.wasm\""));
    }
    read_text(table, "component").unwrap_or_default()
}

fn read_sources(table: &mut Section<'_, '_, '_>, name: &FunctionName, context: &Context<'_>) -> Vec<Topic> {
    let topics = read_topic_list(table, "topics", limits::SOURCES_MAX, context);
    let place = table.place_of("topics");
    if !table.has("topics") {
        table.missing("topics", "add topics = [\"NAME\"], the sources of the function");
    } else if topics.is_empty() && table.texts("topics").is_some_and(|texts| texts.is_empty()) {
        table.problems().error(&place, "there is no source", "name at least one topic");
    }
    for topic in &topics {
        if let Err(e) = redrive_topic(context.prefix, name, topic) {
            table.problems().error(&place, e, "");
        }
    }
    topics
}

/// A list of topics, none twice.
fn read_topic_list(
    table: &mut Section<'_, '_, '_>,
    key: &'static str,
    max: usize,
    context: &Context<'_>,
) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Vec::new();
    let texts = table.texts(key).unwrap_or_default();
    if texts.len() > max {
        let place = table.place_of(key);
        table.problems().error(
            &place,
            format_args!("{} topics are too many", texts.len()),
            format_args!("keep to {max}"),
        );
    }
    for Placed { value, place } in texts.into_iter().take(max) {
        let Some(topic) = checked_topic(table, &place, value, context.prefix) else { continue };
        if topics.contains(&topic) {
            table.problems().error(&place, format_args!("`{topic}` is named twice"), "name it once");
        } else {
            warn_if_misspelt(table, &place, &topic, context.declared);
            topics.push(topic);
        }
    }
    topics
}

fn read_expression(table: &mut Section<'_, '_, '_>, key: &'static str) -> Option<String> {
    let text = table.text(key)?;
    let max = limits::EXPRESSION_MAX_BYTES;
    if text.value.len() > max {
        let message = format!("an expression of {} bytes is too long", text.value.len());
        table.problems().error(&text.place, message, format_args!("keep it to {max} bytes"));
    }
    Some(text.value.to_owned())
}

fn read_retry(table: &mut Section<'_, '_, '_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let mut s = table.section("retry");
    let delays = MILLISECOND..=limits::RETRY_MAX_AGE;
    let initial = s.duration("initial", delays.clone());
    let max = s.duration("max", delays.clone());
    let policy = RetryPolicy {
        attempts: s.count("attempts", 1..=limits::ATTEMPTS_MAX).unwrap_or(default.attempts),
        initial: initial.unwrap_or_else(|| default.initial.min(max.unwrap_or(default.initial))),
        max: max.unwrap_or_else(|| default.max.max(initial.unwrap_or(default.max))),
        max_age: s.duration("max-age", delays).unwrap_or(default.max_age),
    };
    check_order(&mut s, ("initial", policy.initial), ("max", policy.max));
    s.finish();
    policy
}

/// Notes a lower bound that is above its upper one.
fn check_order(s: &mut Section<'_, '_, '_>, low: (&'static str, Duration), high: (&'static str, Duration)) {
    if low.1 > high.1 {
        let place = s.place_of(low.0);
        let message = format!("{} is more than `{}`, which is {}", Period(low.1), high.0, Period(high.1));
        s.problems().error(&place, message, format_args!("lower `{}` or raise `{}`", low.0, high.0));
    }
}

fn read_breaker(table: &mut Section<'_, '_, '_>) -> BreakerPolicy {
    let default = BreakerPolicy::default();
    let mut s = table.section("breaker");
    let times = MILLISECOND..=limits::BREAKER_MAX_TIME;
    let counts = || 1..=limits::BREAKER_MAX_EVENTS;
    let open = s.duration("open", times.clone());
    let open_max = s.duration("open-max", times.clone());
    let policy = BreakerPolicy {
        enabled: s.flag("enabled").unwrap_or(default.enabled),
        window: s.duration("window", times).unwrap_or(default.window),
        failures_in_row: s.count("failures-in-row", counts()).unwrap_or(default.failures_in_row),
        minimum: s.count("minimum", counts()).unwrap_or(default.minimum),
        ratio: s.ratio("ratio").unwrap_or(default.ratio),
        keys: s.count("keys", counts()).unwrap_or(default.keys),
        open: open.unwrap_or_else(|| default.open.min(open_max.unwrap_or(default.open))),
        open_max: open_max.unwrap_or_else(|| default.open_max.max(open.unwrap_or(default.open_max))),
    };
    check_order(&mut s, ("open", policy.open), ("open-max", policy.open_max));
    s.finish();
    policy
}

/// A window that is not given grows with the retry policy; one that is given must be safe with it.
fn read_idempotency(table: &mut Section<'_, '_, '_>, retry: &RetryPolicy) -> IdempotencyPolicy {
    let default = IdempotencyPolicy::default();
    let shortest = IdempotencyPolicy::shortest_window(retry);
    let mut s = table.section("idempotency");
    let window = s.duration("window", MILLISECOND..=limits::IDEMPOTENCY_MAX_WINDOW);
    if let Some(window) = window.filter(|window| *window < shortest) {
        let place = s.place_of("window");
        let message = format!(
            "{} is shorter than {}, twice the {} that retries can take, so that a repetition could be taken for new",
            Period(window),
            Period(shortest),
            Period(retry.longest()),
        );
        s.problems().error(
            &place,
            message,
            format_args!("write {} or more, or lower `retry.max-age`", Period(shortest)),
        );
    }
    let policy = IdempotencyPolicy {
        key: read_expression(&mut s, "key"),
        window: window.unwrap_or_else(|| default.window.max(shortest)),
        max_keys: s.count("max-keys", 1..=limits::IDEMPOTENCY_MAX_KEYS).unwrap_or(default.max_keys),
    };
    s.finish();
    policy
}

fn read_instance(table: &mut Section<'_, '_, '_>) -> InstancePolicy {
    let mut s = table.section("instance");
    let reuse = s.count("reuse", 1..=limits::INSTANCE_REUSE_MAX_EVENTS);
    s.finish();
    reuse.map_or_else(InstancePolicy::default, |reuse_events| InstancePolicy { reuse_events })
}

fn read_limits(table: &mut Section<'_, '_, '_>) -> InvocationLimits {
    let default = InvocationLimits::default();
    let mut s = table.section("limits");
    let limits = InvocationLimits {
        time: s.duration("time", MILLISECOND..=limits::INVOCATION_MAX_TIME).unwrap_or(default.time),
        memory_bytes: read_bytes(&mut s, "memory", 64 * limits::KIB..=limits::MEMORY_MAX_BYTES)
            .unwrap_or(default.memory_bytes),
        emitted_events: s.count("emitted-events", 0..=limits::EMITTED_MAX_EVENTS).unwrap_or(default.emitted_events),
        emitted_bytes: read_bytes(&mut s, "emitted-bytes", 0..=limits::EMITTED_MAX_BYTES)
            .unwrap_or(default.emitted_bytes),
        log_bytes: read_bytes(&mut s, "log-bytes", 0..=limits::LOG_BYTES_MAX).unwrap_or(default.log_bytes),
    };
    s.finish();
    limits
}

fn read_bytes(s: &mut Section<'_, '_, '_>, key: &'static str, bounds: RangeInclusive<usize>) -> Option<usize> {
    let size = s.size(key, *bounds.start() as u64..=*bounds.end() as u64)?;
    usize::try_from(size).ok()
}

fn read_parked(table: &mut Section<'_, '_, '_>) -> ParkedPolicy {
    let default = ParkedPolicy::default();
    let mut s = table.section("parked");
    let policy = ParkedPolicy {
        limit: s.count("limit", 1..=limits::PARKED_MAX_RECORDS).unwrap_or(default.limit),
        overflow: s.choice("overflow", &OVERFLOWS).unwrap_or(default.overflow),
    };
    s.finish();
    policy
}

fn read_grants(table: &mut Section<'_, '_, '_>, sources: &[Topic], context: &Context<'_>) -> Grants {
    let mut s = table.section("grants");
    let mut publish = read_topic_list(&mut s, "publish", limits::GRANTS_MAX, context);
    for topic in publish.iter().filter(|topic| sources.contains(topic)) {
        let place = s.place_of("publish");
        let message =
            format!("the function may publish to `{topic}`, which it also reads: its events can go round for ever");
        s.problems().warning(&place, message, "leave it out, or make sure that the handler ends the round");
    }
    for later in ["http", "secrets"] {
        if s.has(later) {
            let place = s.place_of(later);
            s.problems().error(&place, "this grant is not available in this version", "leave it out");
        }
    }
    let state = s.flag("state").unwrap_or_default();
    if s.has("config") {
        let place = s.place_of("config");
        s.problems().error(&place, "configuration needs no grant", "move it to `config` of the function");
    }
    s.finish();
    publish.sort_unstable();
    Grants { publish, state }
}

fn read_config(table: &mut Section<'_, '_, '_>) -> BTreeMap<String, String> {
    let mut s = table.section("config");
    let mut config = BTreeMap::new();
    for name in s.names() {
        if let Some(entry) = s.named_scalar(name) {
            config.insert(name.to_owned(), entry.value);
        }
    }
    let bytes: usize = config.iter().map(|(name, value)| name.len() + value.len()).sum();
    if config.len() > limits::CONFIG_MAX_ENTRIES || bytes > limits::CONFIG_MAX_BYTES {
        let place = s.place().clone();
        let message = format!("{} entries of {bytes} bytes together are too much", config.len());
        let (entries, bytes) = (limits::CONFIG_MAX_ENTRIES, limits::CONFIG_MAX_BYTES);
        s.problems().error(&place, message, format_args!("keep to {entries} entries and {bytes} bytes"));
    }
    config
}

fn read_deadlines(table: &mut Section<'_, '_, '_>) -> Deadlines {
    let default = Deadlines::default();
    let mut outer = table.section("dead-letter");
    let mut s = outer.section("deadline");
    let times = || MILLISECOND..=limits::DEADLINE_MAX;
    let deadlines = Deadlines {
        transient: s.duration("transient", times()).unwrap_or(default.transient),
        invalid: s.duration("invalid", times()).unwrap_or(default.invalid),
        rejected: s.duration("rejected", times()).unwrap_or(default.rejected),
        unknown: s.duration("unknown", times()).unwrap_or(default.unknown),
    };
    s.finish();
    outer.finish();
    deadlines
}
