//! `millrace demo`: runs an application on its sample events, and checks what came out.
//!
//! It starts `millrace dev` as anybody would, publishes with `millrace publish`, and then counts for itself: the log is
//! read over the API, and what it holds is compared with `expected.json` and with the accounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::Context;
use super::build::without_tokens;
use super::client::{Client, Target};
use super::dev::stop_signal;
use super::error::{Error, Exit};
use super::output::Style;
use crate::api::types::{DeadLetters, FunctionStatus, Records, Status};

mod found;

use found::Found;

/// How long everything may take to settle.
const SETTLE_MAX: Duration = Duration::from_secs(300);
/// Records read at once.
const PAGE_RECORDS: usize = 1000;

/// Arguments of `millrace demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace demo guest-examples/orders                 then look around until Ctrl-C
  DEMO_EXIT=1 millrace demo guest-examples/orders     exits, with 0 if everything is as expected")]
pub(crate) struct Args {
    /// The application's directory, with sample events and expected.json
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// What the sample events must lead to.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Expected {
    functions: BTreeMap<String, ExpectedFunction>,
    /// For each topic how many events of which type.
    topics: BTreeMap<String, BTreeMap<String, u64>>,
    /// For each topic that functions emit to, and each type, the subjects of its events, one as often as there are events
    /// about it.
    subjects: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ExpectedFunction {
    completed: u64,
    filtered: u64,
    duplicate: u64,
    /// By category.
    dead_lettered: BTreeMap<String, u64>,
}

pub(crate) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let file = args.directory.join("expected.json");
    let text = std::fs::read_to_string(&file).map_err(|e| {
        let cause = format_args!("what the sample must give cannot be read: {}: {e}", file.display());
        Error::failed(cause, "name an application with a sample, such as guest-examples/orders")
    })?;
    let expected: Expected = serde_json::from_str(&text)
        .map_err(|e| Error::failed(format_args!("{}: {e}", file.display()), "mend the file"))?;
    let exits = std::env::var_os("DEMO_EXIT").is_some_and(|value| value != "0" && !value.is_empty());
    let data = std::env::temp_dir().join(format!("millrace-demo-{}", std::process::id()));
    let (mut dev, server) = start(&args.directory, &data, exits, context).await?;
    let outcome = show(&args.directory, &expected, &server, context).await;
    let good = match &outcome {
        Ok(wrong) => wrong.is_empty(),
        Err(_) => false,
    };
    if !exits && good {
        // Listened for before it is said: whoever reads the line may be quick.
        let stop = stop_signal()?;
        context.console.line("It goes on running. Ctrl-C stops it.")?;
        context.console.flush()?;
        // A terminal's Ctrl-C reaches the other one as well, which then ends at once when it is asked to stop: nobody needs its data.
        tokio::select! {
            _ = dev.wait() => {}
            () = stop => {}
        }
    }
    stop(&mut dev).await;
    std::fs::remove_dir_all(&data).ok();
    let wrong = outcome?;
    if wrong.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Error::failed(wrong.join("\n"), "this is a bug in Millrace: please report it with what is printed above"))
}

/// Starts `millrace dev` and waits until it says where it listens.
async fn start(directory: &Path, data: &Path, exits: bool, context: &mut Context) -> Result<(Child, String), Error> {
    let program = std::env::current_exe().map_err(|e| Error::file("this program", &e))?;
    context.console.line(format_args!("$ millrace dev {}", directory.display()))?;
    let mut command = without_tokens(program);
    command
        .arg("dev")
        .arg(directory)
        .arg("--data")
        .arg(data)
        .args(["--no-watch", "--quiet", "--log-level", "error"])
        .stdout(Stdio::piped());
    if exits {
        // Whatever else runs here is not disturbed.
        command.args(["--listen", "127.0.0.1:0"]);
    }
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| Error::file("`millrace dev`", &e))?;
    let output = child.stdout.take().ok_or_else(|| Error::failed("`millrace dev` has no output", "try again"))?;
    let mut lines = BufReader::new(output).lines();
    let mut server = None;
    while let Ok(Some(line)) = lines.next_line().await {
        context.console.line(&line)?;
        if let Some((_, address)) = line.split_once(" on http") {
            server = Some(format!("http{address}"));
        }
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    context.console.flush()?;
    let server = server.ok_or_else(|| Error::failed("`millrace dev` did not start", "see above why"))?;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, server))
}

/// Publishes, waits, counts, and shows; answers with what is wrong.
async fn show(
    directory: &Path,
    expected: &Expected,
    server: &str,
    context: &mut Context,
) -> Result<Vec<String>, Error> {
    let client = context.client_of(server)?;
    publish(directory, server, context).await?;
    let status = settle(&client, context).await?;
    let mut wrong = Vec::new();
    let topics = count_topics(&client, expected, &mut wrong).await?;
    let runs = |name: &str| status.functions.iter().any(|function| short_name(&function.name) == name);
    let missing = expected.functions.keys().filter(|name| !runs(name));
    wrong.extend(missing.map(|name| format!("{name} does not run")));
    for function in &status.functions {
        check_accounts(function, &topics, &mut wrong);
        check_function(&client, function, expected, &mut wrong).await?;
    }
    report(&client, &status, server, context).await?;
    let verdict = if wrong.is_empty() {
        context.console.paint(Style::Good, "The accounts balance, and every expected event is there, once.")
    } else {
        context.console.paint(Style::Bad, "Something is wrong.")
    };
    context.console.line(verdict)?;
    Ok(wrong)
}

async fn publish(directory: &Path, server: &str, context: &mut Context) -> Result<(), Error> {
    let events = directory.join("orders.ndjson");
    context.console.line(format_args!("\n$ millrace publish orders --file {}", events.display()))?;
    context.console.flush()?;
    let program = std::env::current_exe().map_err(|e| Error::file("this program", &e))?;
    let mut command = Command::new(program);
    command.args(["publish", "orders", "--server", server, "--file"]).arg(events);
    if let Some(authorities) = &context.ca_file {
        command.arg("--ca-file").arg(authorities);
    }
    let status = command.status().await.map_err(|e| Error::file("`millrace publish`", &e))?;
    if status.success() { Ok(()) } else { Err(Error::failed("publishing failed", "see above why")) }
}

/// Waits until nothing is left to do.
async fn settle(client: &Client, context: &mut Context) -> Result<Status, Error> {
    let began = Instant::now();
    let mut before = None;
    loop {
        let status: Status = client.get(&Target::new(["v1", "status"])).await?;
        let open: u64 = status.functions.iter().map(|function| function.lag_records + function.parked).sum();
        // Functions are read one after the other, and an event can pass from one not yet read to one read already. Where
        // nothing was settled between two readings, nothing was under way.
        let settled: u64 = status.functions.iter().map(|function| function.totals.sum()).sum();
        if open == 0 && before.replace(settled) == Some(settled) {
            context.console.line(format_args!("\nEverything is settled after {:.1?}.", began.elapsed()))?;
            return Ok(status);
        }
        if began.elapsed() > SETTLE_MAX {
            return Err(Error::failed(format_args!("{open} events are not settled"), "see `millrace status`"));
        }
        context.console.progress(format_args!("{open} events to go"))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads all topics, and answers with the records in each partition.
async fn count_topics(
    client: &Client,
    expected: &Expected,
    wrong: &mut Vec<String>,
) -> Result<BTreeMap<(String, u32), u64>, Error> {
    let mut records = BTreeMap::new();
    for (topic, types) in &expected.topics {
        let mut found = Found::default();
        let partitions = partitions_of(client, topic).await?;
        for partition in 0..partitions {
            let (mut from, mut count) = (0, 0);
            loop {
                let target = Target::new(["v1", "topics", topic, "events"])
                    .with("partition", partition)
                    .with("from", from)
                    .with("limit", PAGE_RECORDS);
                let page: Records = client.get(&target).await?;
                if page.records.is_empty() {
                    break;
                }
                for record in &page.records {
                    found.take(record.event.as_ref().map_or("", |event| event.get()));
                    count += 1;
                    from = record.offset + 1;
                }
            }
            records.insert((topic.clone(), partition), count);
        }
        wrong.extend(found.compare(topic, types, expected.subjects.get(topic)));
    }
    Ok(records)
}

async fn partitions_of(client: &Client, topic: &str) -> Result<u32, Error> {
    let topics: crate::api::types::Topics = client.get(&Target::new(["v1", "topics"])).await?;
    let partitions = topics.topics.iter().find(|t| t.name == topic).map_or(0, |t| t.partitions.len());
    Ok(u32::try_from(partitions).unwrap_or(u32::MAX))
}

/// Each record that is in a source is settled once: by outcome, they are as many as the log holds.
fn check_accounts(function: &FunctionStatus, topics: &BTreeMap<(String, u32), u64>, wrong: &mut Vec<String>) {
    for unit in &function.units {
        let totals = unit.totals;
        let settled = totals.completed + totals.filtered + totals.duplicate + totals.dead_lettered;
        let there = topics.get(&(unit.topic.clone(), unit.partition)).copied().unwrap_or_default();
        if settled != there || unit.resume != there {
            let (name, topic, partition) = (&function.name, &unit.topic, unit.partition);
            wrong.push(format!("{name}: {settled} events of {topic}/{partition} are settled, and {there} are there"));
        }
    }
}

async fn check_function(
    client: &Client,
    function: &FunctionStatus,
    expected: &Expected,
    wrong: &mut Vec<String>,
) -> Result<(), Error> {
    let Some(expected) = expected.functions.get(short_name(&function.name)) else {
        wrong.push(format!("{} is not expected", function.name));
        return Ok(());
    };
    let totals = function.totals;
    let dead: u64 = expected.dead_lettered.values().sum();
    let counted = (totals.completed, totals.filtered, totals.duplicate, totals.dead_lettered);
    let wanted = (expected.completed, expected.filtered, expected.duplicate, dead);
    if counted != wanted {
        wrong.push(format!(
            "{}: completed, filtered, duplicate, dead-lettered are {counted:?}, not {wanted:?}",
            function.name
        ));
    }
    let mut categories: BTreeMap<String, u64> = BTreeMap::new();
    for letter in letters_of(client, &function.name).await?.letters {
        *categories.entry(letter.category).or_default() += 1;
    }
    if categories != expected.dead_lettered {
        wrong.push(format!("{}: dead letters are {categories:?}, not {:?}", function.name, expected.dead_lettered));
    }
    Ok(())
}

/// A function's name within its application.
fn short_name(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, short)| short)
}

async fn letters_of(client: &Client, function: &str) -> Result<DeadLetters, Error> {
    let target = Target::new(["v1", "dead-letters"]).with("function", function).with("limit", PAGE_RECORDS);
    Ok(client.get(&target).await?)
}

async fn report(client: &Client, status: &Status, server: &str, context: &mut Context) -> Result<(), Error> {
    let console = &mut context.console;
    let head =
        format!("{:<26} {:>10} {:>9} {:>10} {:>14}", "function", "completed", "filtered", "duplicate", "dead-lettered");
    let head = console.paint(Style::Strong, &head);
    console.line(format_args!("\n{head}"))?;
    for function in &status.functions {
        let totals = function.totals;
        console.line(format_args!(
            "{:<26} {:>10} {:>9} {:>10} {:>14}",
            function.name, totals.completed, totals.filtered, totals.duplicate, totals.dead_lettered
        ))?;
    }
    let failing = status.functions.iter().filter(|function| function.open_dead_letters > 0);
    // The most telling letter is one of a function that broke, not one that a rule refused.
    let function = failing.min_by_key(|function| function.totals.dead_lettered);
    if let Some(function) = function
        && let Some(letter) = letters_of(client, &function.name).await?.letters.first()
    {
        let console = &mut context.console;
        console.line(format_args!("\nOne of the dead letters, {} of {}:", letter.id, letter.function))?;
        let first = letter.reason.lines().next().unwrap_or_default();
        console.line(format_args!("  {} after {} attempts: {first}", letter.category, letter.attempts))?;
        console.line("When its cause is mended, this sends it to its function once more:")?;
        console.line(format_args!(
            "  millrace dead-letters redrive {} {} --server {server}",
            letter.function, letter.id
        ))?;
    }
    let console = &mut context.console;
    console.line("\nWhere to look next:")?;
    for (what, command) in [
        ("how far each function is", "status"),
        ("what the customers were told", "tail notifications --from earliest"),
        ("everything that failed, and why", "dead-letters list"),
    ] {
        console.line(format_args!("  {:<55} {what}", format!("millrace {command} --server {server}")))?;
    }
    console.line(format_args!("  {:<55} figures for Prometheus\n", format!("{server}/metrics")))
}

/// Asks the other process to drain, and waits for it.
async fn stop(dev: &mut Child) {
    // What has an id has not been waited for yet, so that the number is its own.
    let id = dev.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        kill_process(id, Signal::TERM).ok();
    }
    if tokio::time::timeout(Duration::from_secs(30), dev.wait()).await.is_err() {
        dev.kill().await.ok();
    }
}
