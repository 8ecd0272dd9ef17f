//! `millrace bench`: how fast an application is on this machine, with everything on: HTTP, sandbox, commits, the disk.
//!
//! The server runs in this process on a log of its own, and is told to over HTTP like any other. Its settlements are counted
//! from the committed accounts, and the way of an event is timed from the moment before its request is sent to the moment
//! at which a reader of the log has what its handler emitted.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use millrace_core::limits;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::name::Topic;
use serde::Serialize;
use tokio::task::JoinSet;

use super::application::Application;
use super::client::{Client, Target};
use super::error::{Error, Exit};
use super::output::Console;
use super::{Context, format, until_interrupted};
use crate::api::types::{FunctionStatus, Status, Totals};
use crate::config::{self, Config, Flags};
use crate::server::Server;
use crate::telemetry;

mod load;
mod usage;
mod watch;

use load::{Load, Sample};
use usage::Usage;

/// How often it is looked at how far everything is.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long nothing may be settled before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Figures of memory that are kept, at even distances.
const MEMORY_FIGURES: u64 = 40;

const EXAMPLES: &str = "\
Examples:
  millrace bench guest-examples/orders --file guest-examples/orders/orders.ndjson
  millrace bench --file events.ndjson --count 1000000
  millrace bench --file events.ndjson --rate 2000 --batch 20      how long an event takes at this rate

Events of the file are published over and over, each time with ids of their own. Components are taken as they are: \
`millrace build` makes them.";

/// Arguments of `millrace bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The application's directory, with its millrace.toml
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    /// A file with a CloudEvent on each line (NDJSON)
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Topic to publish to [default: the first source that no function emits to]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// Events to publish
    #[arg(long, value_name = "NUMBER", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Events per second [default: as fast as they are taken]
    #[arg(long, value_name = "NUMBER")]
    rate: Option<NonZeroU32>,
    /// Events per request
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=limits::BATCH_MAX_EVENTS as u64))]
    batch: u64,
    /// Requests at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Any setting of the configuration file, such as topics.partitions=8; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Directory for the log, removed at the end [default: .millrace-bench in the application's directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    topic: String,
    events: u64,
    /// From the first request to the last settlement.
    seconds: f64,
    per_second: f64,
    /// CPU time of this process, the sender's included, by event.
    cpu_micros_per_event: f64,
    /// Of that, what the log's own threads took, which write, sync and tidy up.
    log_cpu_micros_per_event: Option<f64>,
    /// Of that, what it took to make the requests; what connections take is the server's and the sender's, and not told apart.
    sender_cpu_micros_per_event: f64,
    requests_refused: u64,
    functions: Vec<Settled>,
    latency: Option<Latency>,
    memory: Vec<Memory>,
}

/// What became of the events of one function.
#[derive(Debug, Serialize)]
struct Settled {
    function: String,
    totals: Totals,
}

/// From request to committed output.
#[derive(Debug, Serialize)]
struct Latency {
    events: u64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

/// Resident memory after this many settlements.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    settled: u64,
    resident_bytes: u64,
}

pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let sample = Sample::read(&args.file)?;
    let application = Application::open(&args.directory, &mut context.console)?;
    let directory = &application.source.directory;
    let topic = topic(args, &application.manifest)?;
    let data = Data::make(args.data.clone().unwrap_or_else(|| directory.join(".millrace-bench")))?;
    let server = open(&application, configure(args, &data.0, directory)?).await?;
    let listener = server.listen().await.map_err(|e| Error::failed(e, ""))?;
    let address = listener.local_addr().map_err(|e| Error::file("the address listened on", &e))?;
    let client = Client::new(&server.url(address), context.ca_file.as_deref())?;
    let load = Arc::new(Load::new(sample, topic.clone(), args));
    let outputs = if args.rate.is_some() { outputs(&application.manifest, &topic) } else { Vec::new() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.run(listener, async {
        stopped.await.ok();
    });
    let measuring = async {
        let measured = until_interrupted(measure(&server, &client, &load, outputs, context)).await;
        drop(stop);
        measured
    };
    let (served, measured) = tokio::join!(serving, measuring);
    served.map_err(|e| Error::failed(e, "this log was made for the measurement; nothing of yours is lost"))?;
    show(&measured?, &mut context.console)
}

/// The directory of the log. It is removed at the end, because it was empty at the beginning.
struct Data(PathBuf);

impl Data {
    fn make(path: PathBuf) -> Result<Self, Error> {
        let taken = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
        if taken {
            return Err(Error::usage(
                format_args!("{} is not empty", path.display()),
                "remove it, or name another directory with --data",
            ));
        }
        std::fs::create_dir_all(&path).map_err(|e| Error::file(path.display(), &e))?;
        Ok(Self(path))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn configure(args: &Args, data: &Path, directory: &Path) -> Result<Config, Error> {
    let flags = Flags {
        data: Some(data.display().to_string()),
        listen: Some("127.0.0.1:0".to_owned()),
        log_level: Some("error".to_owned()),
        set: args.set.clone(),
        ..Flags::default()
    };
    let resolved = config::load(&flags, directory)
        .map_err(|refused| Error::usage(refused.0.join("\n"), "see `millrace bench --help`"))?;
    telemetry::init(&resolved.config.log);
    Ok(resolved.config)
}

async fn open(application: &Application, config: Config) -> Result<Server, Error> {
    let server = Server::open(config).await.map_err(|e| Error::failed(e, ""))?;
    server.make_topics(&application.manifest).await.map_err(|e| Error::failed(e, ""))?;
    for function in &application.manifest.functions {
        let activated = server.activate(function, &application.source.directory).await;
        activated.map_err(|e| Error::failed(e, ""))?;
    }
    Ok(server)
}

/// The topic to publish to.
fn topic(args: &Args, manifest: &Manifest) -> Result<Topic, Error> {
    let sources = || manifest.functions.iter().flat_map(|function| &function.topics);
    let emitted = |topic: &Topic| manifest.functions.iter().any(|function| function.grants.publish.contains(topic));
    match &args.topic {
        Some(topic) if sources().any(|source| source == topic) => Ok(topic.clone()),
        Some(topic) => Err(Error::usage(
            format_args!("no function reads `{topic}`"),
            format_args!("name one of {}", sources().map(Topic::as_str).collect::<Vec<_>>().join(", ")),
        )),
        None => sources()
            .find(|topic| !emitted(topic))
            .or_else(|| sources().next())
            .cloned()
            .ok_or_else(|| Error::failed("the application has no function", "add one to millrace.toml")),
    }
}

/// Where the functions that read this topic emit to.
fn outputs(manifest: &Manifest, topic: &Topic) -> Vec<Topic> {
    let readers = manifest.functions.iter().filter(|function: &&Function| function.topics.contains(topic));
    let mut outputs: Vec<Topic> = readers.flat_map(|function| function.grants.publish.iter().cloned()).collect();
    outputs.sort();
    outputs.dedup();
    outputs
}

async fn measure(
    server: &Server,
    client: &Client,
    load: &Arc<Load>,
    outputs: Vec<Topic>,
    context: &mut Context,
) -> Result<Report, Error> {
    let watching = watch::start(server, outputs, load).await?;
    let before = Usage::now();
    let began = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..load.connections() {
        senders.spawn(Arc::clone(load).send(client.clone()));
    }
    let mut memory = Vec::new();
    let (functions, ended) = tokio::select! {
        settled = settle(client, load, &mut memory, &mut context.console) => settled?,
        error = first_error(&mut senders) => return Err(error),
    };
    let seconds = ended.duration_since(began).as_secs_f64();
    let after = Usage::now();
    let events = load.count();
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let count = events as f64;
    let micros_per_event = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count;
    Ok(Report {
        topic: load.topic().to_string(),
        events,
        seconds,
        per_second: count / seconds,
        cpu_micros_per_event: micros_per_event(after.cpu_since(&before)),
        log_cpu_micros_per_event: after.log_cpu_since(&before).map(micros_per_event),
        sender_cpu_micros_per_event: micros_per_event(load.cpu()),
        requests_refused: load.refused(),
        functions: functions.into_iter().map(|f| Settled { function: f.name, totals: f.totals }).collect(),
        latency: watching.finish().await.map(|histogram| Latency::of(&histogram)),
        memory,
    })
}

/// The first sender that gave up; never, if none does.
async fn first_error(senders: &mut JoinSet<Result<(), Error>>) -> Error {
    while let Some(ended) = senders.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(panicked) => return Error::failed(panicked, "this is a bug in Millrace: please report it"),
        }
    }
    std::future::pending().await
}

/// Waits until all events are settled, and answers with the accounts and when it was so.
async fn settle(
    client: &Client,
    load: &Load,
    memory: &mut Vec<Memory>,
    console: &mut Console,
) -> Result<(Vec<FunctionStatus>, Instant), Error> {
    let mut last: Option<(u64, Instant)> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let status: Status = client.get(&Target::new(["v1", "status"])).await?;
        let at = Instant::now();
        let readers =
            || status.functions.iter().filter(|f| f.topics.iter().any(|topic| topic == load.topic().as_str()));
        let settled = readers().map(|function| function.totals.sum()).min().unwrap_or(0);
        let all: u64 = status.functions.iter().map(|function| function.totals.sum()).sum();
        let open: u64 = status.functions.iter().map(|function| function.lag_records + function.parked).sum();
        note_memory(memory, settled, load.count());
        console.progress(format_args!("{} of {} settled", format::count(settled), format::count(load.count())))?;
        match last {
            // Functions are read one after the other: only what stays the same is at rest.
            Some((before, since)) if before == all => {
                if load.is_sent() && open == 0 {
                    return Ok((status.functions, since));
                }
                if since.elapsed() > PATIENCE {
                    return Err(Error::new(
                        Exit::TimedOut,
                        format_args!("{open} events wait, and none was settled for {}", format::duration(PATIENCE)),
                        "look at the handler with `millrace dev`; retries may take long",
                    ));
                }
            }
            _ => last = Some((all, at)),
        }
    }
}

/// Remembers a figure of memory for each fortieth of the events.
fn note_memory(memory: &mut Vec<Memory>, settled: u64, count: u64) {
    if settled >= memory.len() as u64 * count / MEMORY_FIGURES
        && let Some(resident_bytes) = usage::resident_bytes()
    {
        memory.push(Memory { settled, resident_bytes });
    }
}

impl Latency {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            events: histogram.len(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1e6,
        }
    }
}

fn show(report: &Report, console: &mut Console) -> Result<Exit, Error> {
    if console.is_json() {
        console.document(report)?;
        return Ok(Exit::Done);
    }
    let (events, per_second) = (format::count(report.events), format::count(super::publish::whole(report.per_second)));
    console.line(format_args!(
        "{events} events published to {} and settled in {}: {per_second} per second",
        report.topic,
        format::seconds(report.seconds)
    ))?;
    for Settled { function, totals } in &report.functions {
        let Totals { completed, filtered, duplicate, dead_lettered, .. } = totals;
        console.line(format_args!(
            "  {function}: {} completed, {} filtered, {} duplicate, {} dead-lettered",
            format::count(*completed),
            format::count(*filtered),
            format::count(*duplicate),
            format::count(*dead_lettered)
        ))?;
    }
    let (all, sender) = (report.cpu_micros_per_event, report.sender_cpu_micros_per_event);
    let log = report.log_cpu_micros_per_event.map(|log| format!(", {log:.1} in the log's threads")).unwrap_or_default();
    console.line(format_args!("  {all:.1} µs of CPU time per event: {sender:.1} to make the requests{log}"))?;
    if report.requests_refused > 0 {
        console.line(format_args!(
            "  {} refused for a moment, and sent again",
            format::counted(report.requests_refused, "request")
        ))?;
    }
    if let Some(latency) = &report.latency {
        console.line(format_args!(
            "  from request to committed output: half within {:.2} ms, 99 % within {:.2} ms, 99.9 % within {:.2} ms",
            latency.p50_ms, latency.p99_ms, latency.p999_ms
        ))?;
    }
    if let Some(most) = report.memory.iter().map(|memory| memory.resident_bytes).max() {
        console.line(format_args!("  {} of memory at most", format::bytes(most)))?;
    }
    Ok(Exit::Done)
}
