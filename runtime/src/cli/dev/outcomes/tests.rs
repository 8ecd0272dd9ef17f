use millrace_core::outcome::Category;
use millrace_core::progress::Totals;
use millrace_core::time::Timestamp;

use super::*;
use crate::cli::output::Console;
use crate::sandbox::LogLevel;

fn painter() -> Painter {
    Console::captured(false).0.painter()
}

fn lines() -> Form {
    Form::Lines(painter())
}

fn entry(millis: u64, key: &str, what: What) -> Entry {
    Entry { at: Timestamp::from_millis(millis), place: "orders/0/7".to_owned(), key: key.to_owned(), what }
}

fn completed(millis: u64) -> Entry {
    entry(millis, "", What::Completed { took: Duration::from_micros(125) })
}

fn told(name: &str, told: Told) -> BTreeMap<FunctionName, Told> {
    BTreeMap::from([(name.parse().unwrap(), told)])
}

#[test]
fn each_event_has_its_line() {
    let failed = |attempt| What::Failed { attempt, category: Category::Transient, reason: "away".to_owned() };
    let dead = |attempts, reason: &str| What::DeadLettered {
        attempts,
        category: Category::Invalid,
        reason: reason.to_owned(),
    };
    let logged = What::Logged { level: LogLevel::Info, context: "pay".to_owned(), message: "paid\u{1b}[2J".to_owned() };
    for (key, what, expected) in [
        ("ada", What::Completed { took: Duration::from_micros(1250) }, "ada         completed  1.25 ms"),
        ("", What::Filtered, "-           filtered"),
        ("ada", What::Duplicate, "ada         duplicate"),
        ("ada", failed(2), "ada         attempt 2 failed, transient: away"),
        ("ada", dead(0, "no JSON"), "ada         dead-lettered, invalid: no JSON"),
        ("ada", dead(1, "x"), "ada         dead-lettered after 1 attempt, invalid: x"),
        ("ada", dead(3, "two\nlines"), "ada         dead-lettered after 3 attempts, invalid: two\\nlines"),
        // What comes from outside cannot steer the terminal.
        ("a\u{7}b", logged, "a\\u{7}b      info pay: paid\\u{1b}[2J"),
    ] {
        let line = line(&"shop.pay".parse().unwrap(), &entry(3_723_004, key, what), &painter());
        assert_eq!(line, format!("01:02:03.004  shop.pay                  orders/0/7          {expected}"));
    }
}

#[test]
fn lines_of_all_functions_come_in_the_order_of_time() {
    let of = |at: &[u64]| Told { entries: at.iter().copied().map(completed).collect(), ..Told::default() };
    let mut all = told("shop.pay", of(&[3, 9]));
    all.extend(told("shop.ship", of(&[1, 5])));
    let lines = Sums::default().take_in(all, lines());
    let times: Vec<&str> = lines.iter().map(|line| &line[9..12]).collect();
    assert_eq!(times, ["001", "003", "005", "009"]);
}

#[test]
fn what_has_no_line_is_summed_up_by_function() {
    let many = Told {
        settled: Totals { completed: 20_000, filtered: 12, duplicate: 3, dead_lettered: 1, ..Totals::default() },
        failed_attempts: 4,
        log_lines: 1_000,
        attempts: 20_005,
        took: Duration::from_micros(20_005 * 40),
        ..Told::default()
    };
    let mut sums = Sums::default();
    assert_eq!(sums.take_in(told("shop.pay", many.clone()), lines()), [""; 0]);
    assert_eq!(sums.take_in(told("shop.pay", many), lines()), [""; 0]);
    // One that had lines only needs no sum.
    sums.take_in(told("shop.ship", Told { entries: vec![completed(1)], ..Told::default() }), lines());
    assert_eq!(
        sums.end_second(lines()),
        ["summed up     shop.pay                  40,000 completed, 24 filtered, 6 duplicate, 2 dead-lettered, \
             8 failed attempts, 2,000 log lines; 0.04 ms an attempt"]
    );
    assert_eq!(sums.end_second(lines()), [""; 0]);
}

/// For each second how many events there are and how many lines of logs, with the room that the next second has.
#[test]
fn after_a_busy_second_there_are_sums_only() {
    let mut sums = Sums::default();
    for (events, logs, expected) in [
        (0, 0, (30, 30)),
        (30, 30, (30, 30)),
        (31, 0, (0, 30)),
        (20_000, 31, (0, 0)),
        (30, 0, (30, 30)),
        (0, 0, (30, 30)),
    ] {
        let settled = Totals { completed: events, ..Totals::default() };
        sums.take_in(told("shop.pay", Told { settled, log_lines: logs, ..Told::default() }), lines());
        sums.end_second(lines());
        let Room { settled, trouble, logged } = sums.room();
        assert_eq!(((settled, logged), trouble), (expected, TROUBLES_MAX), "after {events} events and {logs} lines");
        assert_eq!(sums.is_calm(), expected == (30, 30));
    }
}

#[test]
fn programs_read_objects() {
    let function: FunctionName = "shop.pay".parse().unwrap();
    let reason = "two\nlines".to_owned();
    let dead = What::DeadLettered { attempts: 3, category: Category::Invalid, reason };
    let value: serde_json::Value = serde_json::from_str(&Form::Json.entry(&function, &entry(1, "ada", dead))).unwrap();
    let expected = serde_json::json!({
        "kind": "dead-lettered", "attempts": 3, "category": "invalid", "reason": "two\nlines",
        "at": "1970-01-01T00:00:00.001Z", "function": "shop.pay", "place": "orders/0/7", "key": "ada",
    });
    assert_eq!(value, expected);
    let filtered = Form::Json.entry(&function, &entry(1, "", What::Filtered));
    assert!(!filtered.contains("key"), "{filtered}");
    let told = Told { settled: Totals { filtered: 12, ..Totals::default() }, ..Told::default() };
    let sum: serde_json::Value = serde_json::from_str(&Form::Json.sum(&function, &told).unwrap()).unwrap();
    assert_eq!((&sum["kind"], &sum["filtered"]), (&"summed-up".into(), &12.into()));
    assert_eq!(Form::Json.sum(&function, &Told::default()), None);
}
