//! The figures of the real binary.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use millrace_tests::process::{Api, Dev, root};
use serde_json::json;

/// An application with one function that remembers four idempotency keys in each of two partitions.
fn forgetful(directory: &Path) {
    let component = root().join("target/wasm32-wasip2/guest/hello.wasm");
    let manifest = format!(
        "application = 'hello'\n[topics.visitors]\npartitions = 2\n[topics.greetings]\npartitions = 1\n\
         [functions.hello]\ncomponent = '{}'\ntopics = ['visitors']\ngrants = {{ publish = ['greetings'] }}\n\
         idempotency = {{ window = '2h', max-keys = 4 }}\n",
        component.display()
    );
    std::fs::write(directory.join("millrace.toml"), manifest).expect("a file");
}

fn visitor(number: u32, data: &serde_json::Value) -> String {
    json!({"specversion": "1.0", "id": format!("v-{number}"), "source": "/door", "type": "visitor", "data": data})
        .to_string()
}

/// The value of a line; a histogram's count is a line of its own.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no `{name}` in:\n{metrics}"))
}

/// What there is only with a certificate, and once a token has sent too much.
const NOT_ALWAYS: [&str; 2] = ["millrace_certificate_expiry_timestamp_seconds", "millrace_rate_limited_requests"];

/// Each metric with its type, as the process says and as the table in the README does.
fn types(metrics: &str) -> BTreeMap<String, String> {
    let typed = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    typed.map(|(name, of)| (name.to_owned(), of.to_owned())).collect()
}

fn types_in_readme() -> BTreeMap<String, String> {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("it is there");
    let rows = readme.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        Some((name.trim_end_matches("_total").to_owned(), cells.next()?.to_owned()))
    });
    let rows = rows.filter(|(name, _)| !NOT_ALWAYS.contains(&&**name));
    rows.filter(|(_, of)| ["counter", "gauge", "histogram"].contains(&of.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_say_what_happened() {
    let directory = tempfile::tempdir().expect("a directory");
    forgetful(directory.path());
    let log = directory.path().join("log");
    let dev = Dev::start_with(&directory.path().to_string_lossy(), &directory.path().join("data"), |command| {
        command.args(["--log-level", "warn"]).stderr(File::create(&log).expect("a file"))
    });
    let api = Api::default();
    let mut visitors: Vec<String> = (0..40).map(|number| visitor(number, &json!("you"))).collect();
    visitors.push(visitor(40, &json!({"name": "not a text"})));
    for batch in visitors.chunks(10) {
        assert_eq!(api.publish(&dev.url, "visitors", batch).await.map(|s| s.as_u16()), Some(202));
    }
    api.settled(&dev.url).await;
    // A worker shows what it counted right after its commit is to be seen.
    let all = |metrics: &str| {
        metrics.contains(
            "end_to_end_duration_seconds_count{faas_name=\"hello.hello\",messaging_destination_name=\"visitors\"} 41",
        )
    };
    let metrics = api.text_until(&format!("{}/metrics", dev.url), all).await;
    let function = "faas_name=\"hello.hello\"";
    let source = format!("{function},messaging_destination_name=\"visitors\"");
    let operation = |name: &str| format!("{source},messaging_operation_name=\"{name}\",messaging_system=\"millrace\"");
    let (process, commit) = (operation("process"), operation("commit"));
    let of = |name: &str, labels: &str| value(&metrics, &format!("{name}{{{labels}}}"));
    for (name, labels, expected) in [
        ("messaging_client_consumed_messages_total", &process, 41.0),
        ("messaging_process_duration_seconds_count", &process, 41.0),
        ("millrace_queue_duration_seconds_count", &source, 41.0),
        ("millrace_end_to_end_duration_seconds_count", &source, 41.0),
        ("millrace_attempts_total", &source, 41.0),
        ("millrace_failed_attempts_total", &source, 1.0),
        ("millrace_lag_records", &source, 0.0),
        ("millrace_lag_seconds", &source, 0.0),
        ("millrace_processable_lag_records", &source, 0.0),
        ("millrace_parked_records", &source, 0.0),
        ("millrace_stopped_partitions", &source, 0.0),
        ("millrace_open_dead_letters", &function.to_owned(), 1.0),
        ("millrace_accounts_balanced", &function.to_owned(), 1.0),
        ("millrace_breaker_state", &format!("{function},state=\"closed\""), 1.0),
        ("millrace_breaker_state", &format!("{function},state=\"open\""), 0.0),
        ("millrace_settled_records_total", &format!("{source},log=\"source\",outcome=\"completed\""), 40.0),
        ("millrace_settled_records_total", &format!("{source},log=\"source\",outcome=\"dead-lettered\""), 1.0),
    ] {
        assert_eq!(of(name, labels), expected, "{name}{{{labels}}} in:\n{metrics}");
    }
    let commits = of("millrace_commits_total", &source);
    assert_eq!(of("messaging_client_operation_duration_seconds_count", &commit), commits);
    assert!(of("millrace_guest_memory_bytes", function) >= 65536.0, "{metrics}");
    assert!(of("messaging_process_duration_seconds_sum", &process) > 0.0, "{metrics}");
    // Commits wait for the disk, and what was published waits for its commit.
    let whole = of("millrace_end_to_end_duration_seconds_sum", &source);
    assert!(whole >= of("messaging_process_duration_seconds_sum", &process) / 41.0, "{metrics}");
    // The keys of two hours do not find room: it is seen, and told once for both partitions.
    assert!((0.0..7200.0).contains(&of("millrace_idempotency_window_seconds", &source)), "{metrics}");
    assert!(of("millrace_idempotency_keys", &source) <= 8.0, "{metrics}");
    let said = std::fs::read_to_string(&log).expect("a file");
    assert_eq!(said.matches("Idempotency keys are forgotten early").count(), 1, "{said}");
    assert_eq!(types(&metrics), types_in_readme(), "the table of metrics in README.md is not what there is");
}
