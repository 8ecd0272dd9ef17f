use proptest::prelude::*;

use super::*;
use crate::outcome::Category;
use crate::policy::Overflow;

const MINIMAL: &str = r#"
application = "hello"
[functions.greet]
component = "greet.wasm"
topics = ["greetings"]
"#;

const FULL: &str = r#"
application = "orders"

[topics.orders]
partitions = 8
retention.age = "7d"
retention.size = "1GiB"

[topics.stock]
[topics.payments]

[functions.reserve-stock]
build = "cargo build --target wasm32-wasip2 --profile guest -p orders-reserve-stock"
component = "../target/wasm32-wasip2/guest/reserve_stock.wasm"
watch = ["src", "Cargo.toml"]
topics = ["orders"]
from = "latest"
filter = 'event.type == "order.placed"'
ordering = "partition"
retry = { attempts = 3, initial = "100ms", max = "1s", max-age = "1m" }
breaker = { enabled = false, window = "20s", failures-in-row = 5, minimum = 10, ratio = 0.25, keys = 1, open = "1s", open-max = "2s" }
idempotency = { key = "event.subject", window = "2h", max-keys = 1_000 }
instance = { reuse = 1 }
limits = { time = "1s", memory = "16MiB", emitted-events = 10, emitted-bytes = "1MiB", log-bytes = "1KiB" }
parked = { limit = 10, overflow = "pause" }
grants = { publish = ["stock", "payments"], state = true }
config = { currency = "EUR", digits = 2, strict = true }
dead-letter = { deadline.transient = "10m", deadline.unknown = "2h" }
"#;

#[test]
fn what_a_manifest_leaves_out_has_the_documented_defaults() {
    let (manifest, warnings) = Manifest::parse(MINIMAL).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(manifest.application, "hello");
    assert_eq!(manifest.topics, []);
    let greet = Function {
        name: "hello.greet".parse().unwrap(),
        build: None,
        component: "greet.wasm".to_owned(),
        watch: vec![],
        topics: vec!["greetings".parse().unwrap()],
        from: StartAt::Earliest,
        filter: None,
        ordering: Ordering::Key,
        retry: RetryPolicy::default(),
        breaker: BreakerPolicy::default(),
        idempotency: IdempotencyPolicy::default(),
        instance: InstancePolicy { reuse_events: 1000 },
        limits: InvocationLimits::default(),
        parked: ParkedPolicy { limit: 1000, overflow: Overflow::DeadLetter },
        grants: Grants::default(),
        config: BTreeMap::new(),
        deadlines: Deadlines::default(),
    };
    assert_eq!(manifest.functions, [greet]);
}

#[test]
fn every_setting_is_read() {
    let (manifest, warnings) = Manifest::parse(FULL).unwrap();
    assert_eq!(warnings, []);
    let names: Vec<&str> = manifest.mentioned_topics().into_iter().map(Topic::as_str).collect();
    assert_eq!(names, ["orders", "payments", "stock"]);
    let orders = &manifest.topics[0];
    assert_eq!(orders.partitions, Some(8));
    assert_eq!(orders.retention.age, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(orders.retention.size_bytes, Some(1 << 30));

    let f = manifest.function("reserve-stock").unwrap();
    assert!(f.build.as_ref().is_some_and(|b| b.starts_with("cargo build")));
    assert_eq!(f.watch, ["src", "Cargo.toml"]);
    assert_eq!(f.from, StartAt::Latest);
    assert_eq!(f.filter.as_deref(), Some("event.type == \"order.placed\""));
    assert_eq!(f.ordering, Ordering::Partition);
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    assert_eq!(f.retry, RetryPolicy { attempts: 3, initial: ms(100), max: s(1), max_age: s(60) });
    let breaker = BreakerPolicy {
        enabled: false,
        window: s(20),
        failures_in_row: 5,
        minimum: 10,
        ratio: 0.25,
        keys: 1,
        open: s(1),
        open_max: s(2),
    };
    assert_eq!(f.breaker, breaker);
    let key = Some("event.subject".to_owned());
    assert_eq!(f.idempotency, IdempotencyPolicy { key, window: s(7200), max_keys: 1000 });
    assert_eq!(f.instance.reuse_events, 1);
    let limits = InvocationLimits {
        time: s(1),
        memory_bytes: 16 << 20,
        emitted_events: 10,
        emitted_bytes: 1 << 20,
        log_bytes: 1024,
    };
    assert_eq!(f.limits, limits);
    assert_eq!(f.parked, ParkedPolicy { limit: 10, overflow: Overflow::Pause });
    assert_eq!(f.grants.publish, ["payments".parse().unwrap(), "stock".parse().unwrap()]);
    assert!(f.grants.state);
    let config: Vec<_> = f.config.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(config, [("currency", "EUR"), ("digits", "2"), ("strict", "true")]);
    assert_eq!(f.deadlines.of(Category::Transient), s(600));
    assert_eq!(f.deadlines.of(Category::Invalid), Category::Invalid.default_deadline());
    assert_eq!(f.deadlines.of(Category::Unknown), s(7200));
}

#[test]
fn the_canonical_form_reads_back_the_same() {
    for text in [MINIMAL, FULL] {
        let (manifest, _) = Manifest::parse(text).unwrap();
        let canonical = manifest.to_toml();
        let (again, warnings) = Manifest::parse(&canonical).unwrap();
        assert_eq!(warnings, []);
        assert_eq!(again, manifest, "{canonical}");
        assert_eq!(again.to_toml(), canonical);
        let json = serde_json::to_value(&manifest).unwrap();
        assert_eq!(
            json["functions"][manifest.functions[0].name.function()]["component"],
            manifest.functions[0].component
        );
    }
}

/// The minimal manifest with more lines in its function.
fn with(lines: &str) -> String {
    format!("{MINIMAL}{lines}\n")
}

/// All problems, or warnings where there are none.
fn problems(text: &str) -> String {
    let list = match Manifest::parse(text) {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors,
    };
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn check(cases: &[(&str, &[&str])]) {
    for (lines, fragments) in cases {
        let text = if lines.starts_with("application") { (*lines).to_owned() } else { with(lines) };
        let shown = problems(&text);
        assert!(Manifest::parse(&text).is_err(), "accepted: {text}");
        for fragment in *fragments {
            assert!(shown.contains(fragment), "{text}\ngave\n{shown}\nwithout\n{fragment}");
        }
    }
}

#[test]
fn a_typing_error_is_answered_with_the_nearest_key() {
    check(&[
        ("retri = { attempts = 3 }", &["line 6, column 1: functions.greet.retri: unknown key; did you mean `retry`?"]),
        ("retry = { atempts = 3 }", &["line 6, column 11: functions.greet.retry.atempts", "did you mean `attempts`?"]),
        ("retry = { max_age = '1h' }", &["did you mean `max-age`?"]),
        ("idempotency = { colour = 1 }", &["unknown key; known here: window, key, max-keys"]),
        ("limits = { fuel = 1 }", &["functions.greet.limits.fuel: unknown key; known here: time, memory"]),
        ("dead-letter = { deadline = { transiet = '1h' } }", &["did you mean `transient`?"]),
        (
            "[[functions.greet.retry]]",
            &["line 6, column 19: functions.greet.retry: a list stands where a table belongs"],
        ),
        ("[functions.greet.filter]", &["line 6, column 18: functions.greet.filter: a table stands where"]),
        ("[function.x]", &["line 6, column 2: function: unknown key; did you mean `functions`?"]),
        ("[topics.t]\npartition = 3", &["topics.t.partition: unknown key; did you mean `partitions`?"]),
        ("ordering = 'keys'", &["`keys` is not one of the choices; did you mean `key`?"]),
        ("from = 'now'", &["`now` is not one of the choices; known here: earliest, latest"]),
    ]);
}

#[test]
fn a_wrong_type_or_unit_is_answered_with_the_expected_form() {
    check(&[
        (
            "retry = { initial = 200 }",
            &["functions.greet.retry.initial: the number 200 has no unit; write a whole number with"],
        ),
        ("retry = { initial = '200' }", &["`200` has no unit", "\"200ms\""]),
        ("retry = { initial = '200 lightyears' }", &["has an unknown unit"]),
        ("retry = { initial = true }", &["true stands where a duration belongs"]),
        ("retry = 3", &["the number 3 stands where a table belongs; write retry = { … } or [functions.greet.retry]"]),
        (
            "retry = { attempts = '3' }",
            &["the text \"3\" stands where a whole number belongs; write a whole number from 1 to 1000"],
        ),
        ("limits = { memory = 64 }", &["the number 64 has no unit", "\"64KiB\""]),
        ("limits = { memory = '64MX' }", &["unknown unit"]),
        ("watch = 'src'", &["the text \"src\" stands where a list belongs; write watch = [\"…\"]"]),
        ("watch = [1]", &["functions.greet.watch: the number 1 stands where a list of texts in quotes belongs"]),
        ("build = 3", &["the number 3 stands where a text in quotes belongs"]),
        ("build = '  '", &["the text is empty"]),
        ("filter = ''", &["functions.greet.filter: the text is empty"]),
        ("breaker = { enabled = 'yes' }", &["write true or false, without quotes"]),
        ("breaker = { ratio = '0.5' }", &["stands where a share belongs"]),
        (
            "config = { a = [1] }",
            &["functions.greet.config.a: a list stands where a text, a number, true or false belongs"],
        ),
        ("config = { a = 1979-05-27 }", &["the date 1979-05-27 stands"]),
        (
            "application = 3\nfunctions = 4",
            &["application: the number 3", "functions: the number 4 stands where a table belongs"],
        ),
        (
            "application = 'a'\n[functions]\nx = 1",
            &["functions.x: the number 1 stands where a table belongs; write it as [functions.x]"],
        ),
    ]);
}

#[test]
fn every_number_has_bounds() {
    check(&[
        ("retry = { attempts = 0 }", &["0 is out of bounds; write a whole number from 1 to 1000"]),
        ("retry = { attempts = -1 }", &["-1 is out of bounds"]),
        ("retry = { attempts = 99999999999999999999999999999999999999999 }", &["is out of bounds"]),
        ("retry = { attempts = 0x7fffffff }", &["is out of bounds"]),
        ("retry = { initial = '0s' }", &["0s is out of bounds; write something from 1ms to 7d"]),
        ("retry = { max-age = '8d' }", &["8d is out of bounds"]),
        (
            "retry = { initial = '2m', max = '1m' }",
            &["2m is more than `max`, which is 1m; lower `initial` or raise `max`"],
        ),
        ("breaker = { open = '2m', open-max = '1m' }", &["2m is more than `open-max`"]),
        ("breaker = { ratio = 0.0 }", &["write a number above 0 and at most 1"]),
        ("breaker = { ratio = nan }", &["write a number above 0 and at most 1"]),
        ("breaker = { ratio = 1.5 }", &["write a number above 0 and at most 1"]),
        ("instance = { reuse = 0 }", &["from 1 to 1000000"]),
        ("limits = { memory = '2GiB' }", &["2GiB is out of bounds; write something from 64KiB to 1GiB"]),
        ("limits = { time = '1h' }", &["from 1ms to 5m"]),
        ("parked = { limit = 0 }", &["from 1 to 40000"]),
        (
            "[topics.t]\npartitions = 0",
            &["topics.t.partitions: 0 is out of bounds; write a whole number from 1 to 1024"],
        ),
        (
            "[topics.t]\nretention.age = '0s'",
            &["topics.t.retention.age: 0s is out of bounds; write something from 1s to 36500d"],
        ),
        (
            "idempotency = { window = '90m' }",
            &[
                "functions.greet.idempotency.window: 90m is shorter than 2h, twice the 1h that retries can take",
                "write 2h or more",
            ],
        ),
    ]);
    let long = format!("filter = '{}'", "x".repeat(5000));
    check(&[(&long, &["an expression of 5000 bytes is too long; keep it to 4096 bytes"])]);
}

#[test]
fn names_are_checked_where_they_stand() {
    let long = format!(
        "application = '{0}'\n[functions.{0}]\ncomponent = 'c'\ntopics = ['{1}']",
        "a".repeat(63),
        "t".repeat(200)
    );
    check(&[
        ("application = 'My App'", &["application: `My App` cannot name an application"]),
        (
            "application = 'a'\n[functions.Greet]\ncomponent = 'c'\ntopics = ['t']",
            &["functions.Greet: `Greet` cannot name function"],
        ),
        ("[topics.'a b']", &["topics.a b: `a b` cannot name a topic"]),
        ("[topics.'millrace.x']", &["topics that begin with `millrace.` are the runtime's own"]),
        (
            "grants = { publish = ['millrace.a.b.dead-letter'] }",
            &["are the runtime's own; choose another name; dead letters are read"],
        ),
        (
            "grants = { publish = ['a', 'b', 'a'] }",
            &["line 6, column 33: functions.greet.grants.publish: `a` is named twice"],
        ),
        (
            "grants = { http = ['https://example.com'] }",
            &["functions.greet.grants.http: this grant is not available in this version"],
        ),
        ("grants = { secrets = ['a'] }", &["grants.secrets: this grant"]),
        ("grants = { state = 'yes' }", &["grants.state: the text \"yes\" stands where"]),
        ("grants = { stat = true }", &["grants.stat: unknown key; did you mean `state`?"]),
        ("grants = { config = true }", &["configuration needs no grant"]),
        ("application = 'a'\n[functions.f]\ncomponent = 'c'\ntopics = ['t', 't']", &["`t` is named twice"]),
        (
            "application = 'a'\n[functions.f]\ncomponent = 'c'\ntopics = ['millrace.a.f.dead-letter']",
            &["are the runtime's own"],
        ),
        (
            "application = 'a'\n[functions.f]\ncomponent = 'c'\ntopics = []",
            &["there is no source; name at least one topic"],
        ),
        (&long, &["this name has", "shorten"]),
    ]);
}

#[test]
fn all_that_is_missing_is_named_at_once() {
    let text = "[functions.a]\nretri = 1\n[functions.b]\ntopics = ['t']\n";
    let expected = "line 1, column 1: `application` is missing; add application = \"NAME\" as the first line
line 1, column 12: functions.a: `component` is missing; add component = \"target/wasm32-wasip2/release/a.wasm\"
line 1, column 12: functions.a: `topics` is missing; add topics = [\"NAME\"], the sources of the function
line 2, column 1: functions.a.retri: unknown key; did you mean `retry`?
line 3, column 12: functions.b: `component` is missing; add component = \"target/wasm32-wasip2/release/b.wasm\"";
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&problems(text)), sorted(expected));
    assert_eq!(
        problems(""),
        "line 1, column 1: `application` is missing; add application = \"NAME\" as the first line\nline 1, column 1: functions: there is no function; add a table [functions.NAME]"
    );
}

#[test]
fn a_text_that_is_not_toml_is_answered_with_the_place() {
    let shown = problems("application = \"a\"\n[functions.f\ncomponent = \"c\"\n");
    assert!(shown.starts_with("line 2, column 13: this is not TOML: "), "{shown}");
    let shown = problems("application = 'a'\napplication = 'b'");
    assert!(shown.starts_with("line 2, column 1: this is not TOML: duplicate key"), "{shown}");
    assert!(problems(&"x".repeat(2 << 20)).contains("is too large"));
}

#[test]
fn what_is_allowed_and_probably_not_meant_is_a_warning() {
    for (text, expected) in [
        (with("grants = { publish = ['greetings'] }"), "which it also reads: its events can go round for ever"),
        (
            format!("{MINIMAL}[topics.greeting]"),
            "`greetings` is not among the topics of this application; did you mean `greeting`?",
        ),
    ] {
        let (_, warnings) = Manifest::parse(&text).unwrap();
        assert_eq!(warnings.len(), 1, "{text}");
        assert!(warnings[0].to_string().contains(expected), "{}", warnings[0]);
    }
}

#[test]
fn the_window_grows_with_the_retries_unless_it_is_given() {
    let window = |lines: &str| Manifest::parse(&with(lines)).unwrap().0.functions[0].idempotency.window;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!(window(""), hours(24));
    assert_eq!(window("retry = { max-age = '2d' }"), hours(96));
    assert_eq!(window("retry = { attempts = 1, max-age = '2d' }"), hours(24));
    assert_eq!(window("idempotency = { window = '2h' }"), hours(2));
    assert_eq!(window("retry = { attempts = 1 }\nidempotency = { window = '1s' }"), Duration::from_secs(1));
}

#[test]
fn one_bound_of_a_pair_moves_the_other_ones_default() {
    let retry = |lines: &str| Manifest::parse(&with(lines)).unwrap().0.functions[0].retry;
    assert_eq!(retry("retry = { max = '50ms' }").initial, Duration::from_millis(50));
    assert_eq!(retry("retry = { initial = '5m' }").max, Duration::from_secs(300));
}

#[test]
fn another_prefix_keeps_other_names_to_itself() {
    let text = with("grants = { publish = ['millrace.x'] }");
    assert!(Manifest::parse_with_prefix(&text, "staging").is_ok());
    assert!(Manifest::parse_with_prefix(&text.replace("millrace.x", "staging.x"), "staging").is_err());
}

/// Pieces that get a random text past the parser's first line.
fn pieces() -> impl Strategy<Value = String> {
    const WORDS: [&str; 24] = [
        "application",
        "functions",
        "topics",
        "retry",
        "a",
        "'a'",
        "\"ü\"",
        "=",
        ".",
        "[",
        "]",
        "{",
        "}",
        "\n",
        ",",
        "1",
        "-0.5",
        "'5s'",
        "true",
        "grants",
        "publish",
        "#",
        "\u{0}",
        "component",
    ];
    proptest::collection::vec(proptest::sample::select(&WORDS[..]), 0..60).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn no_text_panics(text: String, mixed in pieces(), cut in 0..FULL.len()) {
        let _any = Manifest::parse(&text);
        let _mixed = Manifest::parse(&mixed);
        let _cut = Manifest::parse(&FULL[..cut]);
    }

    #[test]
    fn no_change_of_one_character_panics(at in 0..FULL.len(), c: char) {
        let mut text = FULL.to_owned();
        text.replace_range(at..=at, &c.to_string());
        if let Ok((manifest, _)) = Manifest::parse(&text) {
            prop_assert_eq!(Manifest::parse(&manifest.to_toml()).map(|(m, _)| m), Ok(manifest));
        }
    }
}

#[test]
fn what_is_wrong_once_is_said_once() {
    let text = "application = 'a'\n[functions.greet]\ncomponent = 'c.wasm'\ntopics = 'orders'\n";
    assert_eq!(problems(text).matches("stands where a list belongs").count(), 1);
}
