//! `millrace invoke`: one handler, one event, no log.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_core::codec::json;
use millrace_core::event::Event;
use millrace_core::identity;
use millrace_core::limits;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::outcome::{Failure, Outcome};
use serde::Serialize;

use super::error::{Error, Exit};
use super::output::Style;
use super::{Context, dev, format};
use crate::sandbox::{self, Completion, Delivery, Engine, EngineOptions, Invocation, NoState, Sandbox as _, StateView};
use crate::server;

/// How much is read of an event: the largest with its data in base 64, and the attributes around it.
const EVENT_FILE_MAX_BYTES: u64 = 2 * limits::EVENT_MAX_BYTES as u64;

/// Arguments of `millrace invoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace invoke reserve-stock --event order.json
  millrace publish orders --help                       to send an event for good
  cat event.json | millrace invoke hello --event - --attempt 2 --json")]
pub(crate) struct Args {
    /// The function, by its name in the manifest
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// A CloudEvent in JSON; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The application's directory, with its millrace.toml
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Which attempt the handler is told this is
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: u32,
}

/// What an invocation did, for programs.
#[derive(Debug, Serialize)]
struct Answer {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    filtered: bool,
    emitted: Vec<Emitted>,
    state: Vec<Written>,
    logs: Vec<Line>,
    elapsed_seconds: f64,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Emitted {
    topic: String,
    key: Option<String>,
    event: serde_json::Value,
}

/// A change of the function's state; without a value it was deleted.
#[derive(Debug, Serialize)]
struct Written {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    level: String,
    context: String,
    message: String,
}

pub(crate) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let application = dev::read(&args.dir, context)?;
    let directory = &application.source.directory;
    let function = find(&application.manifest, &args.function)?;
    let event = read_event(&args.event)?;
    let intake = server::intake(function).map_err(|e| Error::failed(e, "mend the manifest"))?;
    let key = event.extension("partitionkey").map(|key| key.clone().into_bytes());
    let filtered = match &intake.filter {
        Some(filter) => !filter.matches(&event, key.as_ref()).map_err(|f| unusable(&args.event, &f))?,
        None => false,
    };
    let idempotency_key = match &intake.key {
        Some(expression) => expression.evaluate(&event, key.as_ref()).map_err(|f| unusable(&args.event, &f))?,
        None => identity::default_idempotency_key(&event),
    };
    let mut guest = guest(function, directory).await?;
    let topic =
        function.topics.first().ok_or_else(|| Error::failed("the function has no topic", "mend the manifest"))?;
    let delivery =
        Delivery { topic: topic.clone(), partition: 0, offset: 0, key, attempt: args.attempt, idempotency_key };
    // Of a unit that has never stored anything.
    let state = function.grants.state.then(|| StateView::new(Arc::new(NoState), Arc::default()));
    let completion = guest
        .invoke(Invocation { event: &event, delivery, trace: None, state })
        .await
        .map_err(|e| Error::failed(e, "try again; if it stays, lower the memory limit of the function"))?;
    let exit = if completion.outcome == Outcome::Completed { Exit::Done } else { Exit::Failed };
    let answer = answer(completion, filtered);
    if context.console.is_json() {
        context.console.document(&answer)?;
    } else {
        show(&answer, context)?;
    }
    Ok(exit)
}

fn find<'a>(manifest: &'a Manifest, name: &str) -> Result<&'a Function, Error> {
    let found = manifest.functions.iter().find(|f| f.name.as_str() == name || f.name.function() == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = manifest.functions.iter().map(|f| f.name.function()).collect();
        Error::usage(format_args!("there is no function `{name}`"), format_args!("it has {}", names.join(", ")))
    })
}

fn read_event(file: &Path) -> Result<Event, Error> {
    let cannot = |e| Error::file(format_args!("cannot read the event in {}", named(file)), &e);
    let mut input: Box<dyn Read> =
        if file == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(File::open(file).map_err(cannot)?) };
    let mut bytes = Vec::new();
    input.by_ref().take(EVENT_FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > EVENT_FILE_MAX_BYTES {
        return Err(Error::failed(
            format_args!("the event in {} has more than {}", named(file), format::bytes(EVENT_FILE_MAX_BYTES)),
            "put what is large elsewhere, and a reference into the event",
        ));
    }
    json::parse_event(&bytes).map_err(|failure| {
        Error::failed(
            format_args!("{} is not a CloudEvent: {}", named(file), failure.reason),
            "write an object with specversion, id, source, type and data",
        )
    })
}

fn named(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// The filter or the key expression fails over the event.
fn unusable(file: &Path, failure: &Failure) -> Error {
    Error::failed(format_args!("the event in {}: {}", named(file), failure.reason), "mend the event, or the expression")
}

async fn guest(function: &Function, directory: &Path) -> Result<sandbox::Guest, Error> {
    let bytes = server::read_component(function, directory).await;
    let bytes = bytes.map_err(|e| Error::failed(e, "then invoke it again"))?;
    let cache_dir = Some(directory.join(".millrace").join("compiled"));
    let engine = Engine::new(EngineOptions { cache_dir, max_instances: 8, ..EngineOptions::default() })
        .map_err(|e| Error::failed(e, "free some memory, then try again"))?;
    let component = engine.load(bytes).await.map_err(|e| Error::failed(e, "then build it again"))?;
    let options = server::function_options(function);
    let function =
        sandbox::Function::new(&engine, &component, options).map_err(|e| Error::failed(e, "change the manifest"))?;
    Ok(function.guest())
}

fn answer(completion: Completion, filtered: bool) -> Answer {
    let Completion { outcome, emitted, state, logs, usage } = completion;
    let (outcome, category, reason) = match outcome {
        Outcome::Completed => ("completed", None, None),
        Outcome::Failed(failure) => ("failed", Some(failure.category.as_str()), Some(failure.reason.to_string())),
    };
    let emitted = emitted.into_iter().map(|emission| Emitted {
        topic: emission.topic.to_string(),
        key: emission.record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()),
        event: emission.event().map_or_else(|failure| failure.reason.to_string().into(), |event| json::to_json(&event)),
    });
    let state = state.iter().map(|write| Written {
        key: write.key.to_string(),
        value: write.value.map(|value| String::from_utf8_lossy(&value).into_owned()),
    });
    let logs = logs.into_iter().map(|line| Line {
        level: line.level.to_string(),
        context: line.context,
        message: line.message,
    });
    Answer {
        outcome,
        category,
        reason,
        filtered,
        emitted: emitted.collect(),
        state: state.collect(),
        logs: logs.collect(),
        elapsed_seconds: usage.elapsed.as_secs_f64(),
        memory_bytes: usage.memory_bytes,
    }
}

fn show(answer: &Answer, context: &mut Context) -> Result<(), Error> {
    let console = &mut context.console;
    for Line { level, context, message } in &answer.logs {
        console.line(format_args!("{level:>5} {context}: {message}"))?;
    }
    for Emitted { topic, key, event } in &answer.emitted {
        let key = key.as_ref().map_or_else(String::new, |key| format!(" key {key}"));
        console.line(format_args!("emitted to {topic}{key}: {event}"))?;
    }
    for Written { key, value } in &answer.state {
        match value {
            Some(value) => console.line(format_args!("stored under {key}: {value}"))?,
            None => console.line(format_args!("deleted {key}"))?,
        }
    }
    if answer.filtered {
        console.line("The filter says no: outside of this command the handler would not have been called.")?;
    }
    match (answer.category, &answer.reason) {
        (Some(category), Some(reason)) => {
            let failed = console.paint(Style::Bad, "failed");
            console.line(format_args!("{failed}, {category}: {reason}"))?;
        }
        _ => console.line(console.paint(Style::Good, "completed"))?,
    }
    let (took, memory) = (answer.elapsed_seconds * 1000.0, format::bytes(answer.memory_bytes));
    console.line(format_args!("{took:.2} ms, {memory} of memory"))
}
