use proptest::prelude::*;

use super::*;
use crate::time::Timestamp;

fn event(content_type: Option<&str>, data: Option<&'static str>) -> Event {
    Event {
        id: "7".into(),
        source: "/shop".into(),
        ty: "order.placed".into(),
        subject: Some("order-7".into()),
        time: Some(Timestamp::from_nanos(1_522_949_460_500_000_000)),
        datacontenttype: content_type.map(ByteString::from),
        dataschema: None,
        extensions: vec![("in".into(), "eu".into()), ("tenant".into(), "acme".into())],
        data: data.map(Bytes::from),
    }
}

const ORDER: &str = r#"{"order": 4711, "amount": 12.5, "note": "a\"b", "paid": true, "coupon": null, "big": 18446744073709551615,
    "items": [{"sku": "a", "tags": ["x", "y"]}, {"sku": "b", "tags": []}], "b": 1, "a": 2, "a": 3}"#;

fn order() -> Event {
    event(Some("application/json"), Some(ORDER))
}

fn matches(source: &str, event: &Event) -> Result<bool, String> {
    let filter = Filter::compile(source).unwrap_or_else(|e| panic!("{source}: {e}"));
    let key = Bytes::from_static(b"k1");
    let answer = filter.matches(event, Some(&key));
    assert_eq!(answer, filter.interpret(event, Some(&key)), "{source}");
    answer.map_err(|failure| {
        assert_eq!(failure.category, Category::Invalid);
        failure.reason.to_string()
    })
}

#[test]
fn a_filter_reads_attributes_key_and_data() {
    for (source, expected) in [
        ("true", true),
        ("event.type == 'order.placed'", true),
        ("event.type != 'order.placed'", false),
        ("event.id == '7' && event.source == '/shop'", true),
        ("event.type in ['order.paid', 'order.placed']", true),
        ("event.type.startsWith('order.') && event.type.endsWith('ed')", true),
        ("event.subject.matches('^order-[0-9]+$')", true),
        ("has(event.subject) && !has(event.dataschema) && !has(event.absent)", true),
        ("event.tenant == 'acme'", true),
        ("event['in'] == 'eu'", true),
        ("event.key == 'k1'", true),
        ("event.datacontenttype == 'application/json'", true),
        ("event.time > timestamp('2018-04-05T17:31:00Z')", true),
        ("event.time == timestamp('2018-04-05T19:31:00.5+02:00')", true),
        ("event.time.getFullYear() == 2018 && event.time.getHours() == 17", true),
        ("event.data.order == 4711", true),
        ("event.data.order > 4710.5 && event.data.amount < 13", true),
        ("event.data.big == 18446744073709551615u", true),
        ("event.data.note == 'a\"b'", true),
        ("event.data.paid && event.data.coupon == null", true),
        ("event.data.a == 3", true),
        ("has(event.data.order) && !has(event.data.nothing)", true),
        ("'order' in event.data && !('nothing' in event.data)", true),
        ("event.data.items.size() == 2 && size(event.data) == 9", true),
        ("event.data.items.exists(i, i.sku == 'b')", true),
        ("event.data.items.exists(i, i.tags.exists(t, t == 'y'))", true),
        ("event.data.items.all(i, size(i.tags) > 0)", false),
        ("event.data.items.map(i, i.sku) == ['a', 'b']", true),
        ("event.data.items[0] == event.data.items[0] && event.data.items[0] != event.data.items[1]", true),
        ("event.data.filter(name, name < 'b') == ['a', 'amount']", true),
        ("[3].exists(event, event == 3)", true),
        ("event.?absent.orValue('none') == 'none' && event.?subject.hasValue()", true),
        ("optional.of(event.id).value() == '7'", true),
        ("{'order.placed': 1, 'order.paid': 2}[event.type] == 1 && event.type in {'order.placed': 0}", true),
        ("type(event.data.order) == int && type(event.time) == google.protobuf.Timestamp", true),
        ("event.absent == 'x' || event.id == '7'", true),
        ("has(event.subject) == 'order-7'", false),
    ] {
        assert_eq!(matches(source, &order()), Ok(expected), "{source}");
    }
}

#[test]
fn conditions_are_joined_as_the_interpreter_joins_them() {
    let parts = [
        ("event.id == '7'", Some(true)),
        ("event.id in ['6', '8']", Some(false)),
        ("event.tenant != 'acme'", Some(false)),
        ("event.absent in ['7']", None),
        ("event.key == 'k1'", Some(true)),
        ("event.data.order == 1", Some(false)),
        ("event.data.nothing == 1", None),
    ];
    for ((left, left_answer), (right, right_answer)) in parts.iter().flat_map(|l| parts.iter().map(move |r| (l, r))) {
        for (joint, decisive) in [("&&", false), ("||", true)] {
            let expected = match (left_answer, right_answer) {
                (Some(left), Some(right)) if *left == *right => Some(*left),
                (Some(answer), _) | (_, Some(answer)) if *answer == decisive => Some(decisive),
                _ => None,
            };
            let source = format!("{left} {joint} {right}");
            assert_eq!(matches(&source, &order()).ok(), expected, "{source}");
            assert_eq!(matches(&format!("!({source})"), &order()).ok(), expected.map(|answer| !answer), "!({source})");
        }
    }
}

#[test]
fn an_extension_does_not_hide_the_ordering_key() {
    let event = Event { extensions: vec![("key".into(), "other".into())], ..order() };
    assert_eq!(matches("event.key == 'k1'", &event), Ok(true));
}

#[test]
fn data_is_json_by_its_content_type_or_when_it_looks_like_it() {
    for (content_type, data, source, expected) in [
        (Some("application/x+json"), "[1]", "event.data[0] == 1", Ok(true)),
        (None, "{\"a\":1}", "event.data.a == 1", Ok(true)),
        (None, "text", "event.data == b'text'", Ok(true)),
        (Some("text/plain"), "{}", "event.data == b'{}'", Ok(true)),
        (Some("application/json"), "text", "event.data == 1", Err("failed in `event.data`: not JSON")),
        (Some("application/json"), "", "has(event.data)", Err("not JSON")),
        (Some("application/json"), "text", "event.id == '7'", Ok(true)),
    ] {
        match (matches(source, &event(content_type, Some(data))), expected) {
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{source}: {reason}"),
            (answer, expected) => assert_eq!(answer, expected.map_err(str::to_owned), "{source}"),
        }
    }
    assert_eq!(matches("has(event.data)", &event(None, None)), Ok(false));
}

#[test]
fn an_evaluation_that_fails_says_why() {
    for (source, reason) in [
        ("event.type", "the filter answers with a string"),
        ("event.absent == ''", "reads `event.absent`, which this event does not have"),
        ("event.dataschema == ''", "reads `event.dataschema`"),
        ("event.data.nothing == 1", "reads `nothing`"),
        ("event.data.order + event.id == ''", "cannot apply `add` to int and string"),
        ("event.data.items[2].sku == ''", "reads past the end of a list"),
        ("event.data.order / 0 == 1", "divides by zero"),
        ("event.data.order * 9223372036854775807 == 1", "overflows in `mul`"),
        ("event.id < 5", "failed: found no matching overload"),
        ("event.id && true", "failed: found no matching overload"),
        ("int(event.subject) == 1", "failed in `int`"),
        ("event[1] == 1", "the filter"),
        ("event.data[1] == 1", "the filter"),
        ("event.id.nothing == 1", "the filter"),
        ("type.id == '7'", "the filter"),
    ] {
        let failure = matches(source, &order()).expect_err(source);
        assert!(failure.contains(reason), "{source}: {failure}");
    }
    let filter = Filter::compile("event.key == 'k'").unwrap();
    let not_text = filter.matches(&order(), Some(&Bytes::from_static(b"\xff"))).unwrap_err();
    assert!(not_text.reason.contains("the key is not UTF-8"), "{}", not_text.reason);
    let no_key = filter.matches(&order(), None).unwrap_err();
    assert!(no_key.reason.contains("reads `event.key`"), "{}", no_key.reason);
}

#[test]
fn a_key_expression_gives_texts_and_numbers() {
    for (source, expected) in [
        ("event.subject", Ok("order-7")),
        ("event.subject + '/' + string(event.data.order)", Ok("order-7/4711")),
        ("event.data.order", Ok("4711")),
        ("event.data.amount", Ok("12.5")),
        ("event.data.big", Ok("18446744073709551615")),
        ("event.key", Ok("k1")),
        ("event.data.paid", Err("gives a bool")),
        ("event.data.coupon", Err("gives a null_type")),
        ("event.data.items", Err("gives a list")),
        ("event.time", Err("gives a google.protobuf.Timestamp")),
        ("''", Err("gives an empty text")),
        ("0.0 / 0.0", Err("gives a double")),
        ("event.data.order + event.subject", Err("cannot apply `add` to int and string")),
    ] {
        let key = KeyExpression::compile(source).unwrap().evaluate(&order(), Some(&Bytes::from_static(b"k1")));
        match (key, expected) {
            (Err(failure), Err(reason)) => {
                assert_eq!(failure.category, Category::Invalid);
                assert!(failure.reason.contains(reason), "{source}: {}", failure.reason);
            }
            (key, expected) => {
                assert_eq!(
                    key.map_err(|f| f.reason),
                    expected.map(ByteString::from).map_err(ByteString::from),
                    "{source}"
                );
            }
        }
    }
}

fn check_refused(source: &str, position: Option<(usize, usize)>, message: &str) {
    let error = Filter::compile(source).expect_err(source);
    let short: String = source.chars().take(60).collect();
    assert!(error.message.contains(message), "{short}: {error}");
    if position.is_some() {
        assert_eq!(error.position, position, "{short}: {error}");
    }
}

/// Whoever handles an event puts its key into a dead letter too, which must not be too large for the log.
#[test]
fn a_key_has_a_bound() {
    let evaluate = |bytes: usize| {
        let event = Event { subject: Some("s".repeat(bytes).into()), ..order() };
        KeyExpression::compile("event.subject").unwrap().evaluate(&event, None)
    };
    assert_eq!(evaluate(4096).map(|key| key.len()), Ok(4096));
    let failure = evaluate(4097).unwrap_err();
    assert_eq!(failure.category, Category::Invalid);
    assert!(failure.reason.contains("more than 4.00 KiB"), "{}", failure.reason);
}

#[test]
fn a_text_that_is_no_expression_is_refused_with_its_place() {
    for (source, position, message) in [
        ("", None, "Syntax error"),
        ("event.type = 'a'", Some((1, 12)), "Syntax error"),
        ("true &&\n  event.type == ", Some((2, 17)), "Syntax error"),
        ("'open", None, "Syntax error"),
        ("type == 'a' && subject == 'b'", Some((1, 16)), "there is no variable `subject`: write `event.subject`"),
        ("true &&\n  é(event)", None, "Syntax error"),
        ("event.Type == 'a'", Some((1, 6)), "an event has no attribute `Type`"),
        ("event['a_b'] == 'a'", Some((1, 7)), "an event has no attribute `a_b`"),
        ("event.?a_b.hasValue()", None, "an event has no attribute `a_b`"),
        ("lower(event.type) == 'a'", Some((1, 6)), "there is no function `lower`: known are bool, bytes"),
        ("event.type.lower() == 'a'", None, "there is no function `lower`: known are contains"),
        ("contains(event.type, 'a')", None, "`contains` is called on a value"),
        ("event.type.string() == 'a'", None, "`string` is called as string(...)"),
        ("optional.ofNothing(1)", None, "there is no function `ofNothing`: known are none, of"),
        ("event.type.matches(event.subject)", None, "must be a text in quotes"),
        ("event.type.matches('(')", None, "not a valid regex"),
        ("matches(event.type, 'a{99999}{99999}')", None, "not a valid regex"),
        ("{'a': 1} == event.data", Some((1, 1)), "a map can only be looked up at once"),
        ("{'a': 1}.exists(k, k == 'a')", None, "a map can only be looked up at once"),
        ("{'a': other}['a'] == 1", None, "there is no variable `other`"),
        ("shop.Order{id: 1} == event.data", None, "messages cannot be made here"),
        ("event.data.all(i, i.all(j, j.all(k, true)))", None, "loops more than 2 deep"),
        ("event.data.all(i, event.data.all(j, true))", None, "a loop within a loop can only go over"),
        ("event.data.all(i, [0, 1].all(j, true))", None, "a loop within a loop can only go over"),
        ("event.data.all(i, true) && i == 1", None, "there is no variable `i`"),
        ("nothing.Type == 1", None, "there is no variable `nothing`"),
        ("has(event)", None, "invalid argument to has() macro"),
    ] {
        check_refused(source, position, message);
    }
}

#[test]
fn no_text_overflows_the_stack() {
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let max = EXPRESSION_MAX_BYTES;
    for (source, message) in [
        ("a".repeat(max + 1), "has 4097 bytes, and may have 4096"),
        (nested("(", ")", max / 2 - 1), "nests more than 24"),
        (nested("[", "]", max / 2 - 1), "nests more than 24"),
        (nested("size(", ")", max / 6 - 1), "nests more than 24"),
        (nested("true?1:", "", max / 7 - 1), "nests more than 24"),
        (nested("1+", "", max / 2 - 1), "chains more than 64"),
        (nested("1*", "", max / 2 - 1), "chains more than 64"),
        (nested("1<", "", max / 2 - 1), "chains more than 64"),
        (nested("", "[0]", max / 3 - 1), "chains more than 64"),
        (format!("event{}", ".a".repeat(max / 2 - 3)), "chains more than 64"),
        (format!("event{}", ".?a".repeat(max / 3 - 3)), "chains more than 64"),
        (format!("event.data{}", ".map(a,a)".repeat(max / 9 - 2)), "chains more than 64"),
        ("(".repeat(max), "nests more than 24"),
        ("a ? b ((?))".repeat(max / 11), ""),
    ] {
        check_refused(&source, None, message);
    }
    for source in [nested("!", "", max - 1), nested("- ", "", max / 2 - 1), nested("1==1&&", "==1", max / 12)] {
        drop(Filter::compile(&source).map(|filter| filter.matches(&order(), None)));
    }
}

#[test]
fn the_deepest_expressions_evaluate_on_a_small_stack() {
    // A worker's thread has 2 MiB, and is not empty when an expression is evaluated.
    let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn(|| {
        for source in [
            format!("{}1 > 0", "1+".repeat(61)),
            format!("event.data{} == 1", "[0]".repeat(60)),
            format!("{}true{}", "!(".repeat(23), ")".repeat(23)),
            format!("{}1{} == 1", "[1, 1+".repeat(20), "]".repeat(20)),
            format!("{}'a' == ''", "event.id + ".repeat(60)),
            format!("event.data.all(i, i.all(j, {}j == j))", "j == j && ".repeat(100)),
        ] {
            let filter = Filter::compile(&source).unwrap_or_else(|e| panic!("{source}: {e}"));
            drop(filter.matches(&event(None, Some("[[[[1]]]]")), None));
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn listed_functions_exist() {
    let called = |prefix: &str, functions: &[&str]| -> Vec<String> {
        let without_pattern = functions.iter().filter(|name| **name != "matches");
        without_pattern.map(|name| format!("{prefix}{name}() == 1")).collect()
    };
    let sources = [
        called("", &compile::GLOBAL_FUNCTIONS),
        called("event.id.", &compile::MEMBER_FUNCTIONS),
        called("optional.", &compile::OPTIONAL_FUNCTIONS),
    ];
    for source in sources.concat() {
        // A function that exists complains of its arguments, if at all, and never of its name.
        if let Err(reason) = matches(&source, &order()) {
            assert!(!reason.contains("Undeclared"), "{source}: {reason}");
        }
    }
}

#[test]
fn data_that_is_deeply_nested_fails_and_does_not_overflow() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let event = Event { data: Some(deep.into()), ..event(Some("application/json"), None) };
    let failure = matches("event.data == 1", &event).unwrap_err();
    assert!(failure.contains("recursion limit exceeded"), "{failure}");
}

#[test]
fn expressions_are_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Filter>();
    check::<KeyExpression>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_panics(
        text in ".{0,40}",
        tokens in prop::collection::vec(prop::sample::select(vec![
            "event", ".", "type", "data", "key", "time", "==", "'a'", "1", "1.5", "2u", "(", ")", "[", "]", "{", "}", ":", "?", "+", "-",
            "&&", "||", "!", "has", "exists", "map", "x", ",", "in", "size", "matches", "string", "timestamp", "null", "true", "b''",
            "getHours", "?.", "optional", "of",
        ]), 0..12),
        data in prop::option::of("[\\[\\]{}:,\"a1.]{0,12}"),
    ) {
        let mut event = order();
        event.data = data.map(Bytes::from);
        for source in [text, tokens.concat(), tokens.join(" ")] {
            if let Ok(filter) = Filter::compile(&source) {
                drop(filter.matches(&event, None));
            }
        }
    }

    #[test]
    fn data_is_read_as_json_reads_it(json in r#"(\[|\{"a":)?("a"|-?[0-9]{1,19}|[0-9]\.[0-9]|true|null|\{\})(\]|\})?"#) {
        let is_json = serde_json::from_str::<serde_json::Value>(&json).is_ok();
        prop_assert_eq!(data::read(json.as_bytes()).is_ok(), is_json);
    }
}
