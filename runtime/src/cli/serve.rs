//! `millrace serve`: applications and what was uploaded, on Kafka beside any number of other instances, or alone on an embedded log.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::stream::{self, TryStreamExt as _};
use millrace_core::limits;
use millrace_core::manifest::FILE_NAME;

use super::Context;
use super::application::Application;
use super::dev::{not_listening, read, server_flag, stop_signal};
use super::error::{Error, Exit};
use super::format;
use crate::broker::Log;
use crate::config::{self, Flags};
use crate::server::{Server, StageError, StartError};
use crate::telemetry;

mod check;

/// Arguments of `millrace serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace serve                                           the application in this directory, or only what was uploaded
  millrace serve shop billing                              two applications in one process
  millrace serve --set kafka.bootstrap=kafka-0:9092        on this cluster
  millrace serve --set kafka.properties.group.protocol=consumer
  millrace serve --check                                   what is missing in the cluster, and how to mend it
  millrace serve --embedded                                one instance, without Kafka

What was uploaded with `millrace deploy` runs on every instance, whatever directories it is given.

SIGTERM lets what is being handled come to its end, and leaves the group. A second one ends the process at once, which
loses nothing.")]
pub(crate) struct Args {
    /// Directories of applications, each with its millrace.toml and its components, which were built before. Without one it is
    /// this directory, if there is a millrace.toml in it
    #[arg(value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Keep everything in an embedded log, in the data directory, instead of Kafka. There can be one instance then
    #[arg(long, conflicts_with = "check")]
    embedded: bool,
    /// Only compare what the applications need with what the cluster has and allows; nothing is changed. With --json for
    /// programs. Exits with 1 if something is wrong, with 3 if no broker answers
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Args {
    /// The threads that the configuration asks for; none if there is no configuration that can be used, which is told
    /// later.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        config::load(&self.flags, &self.directory()?).ok().map(|resolved| resolved.config.threads)
    }

    /// The configuration is looked for beside the first application.
    fn directory(&self) -> Option<PathBuf> {
        let here = PathBuf::from(".");
        let given = self.directories.first().unwrap_or(&here).canonicalize().ok()?;
        if given.is_file() { given.parent().map(Path::to_owned) } else { Some(given) }
    }

    /// The directories of applications.
    fn applications(&self) -> Vec<PathBuf> {
        let here = Path::new(".");
        if self.directories.is_empty() && here.join(FILE_NAME).is_file() {
            return vec![here.to_owned()];
        }
        self.directories.clone()
    }
}

pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let began = Instant::now();
    let mut applications = Vec::new();
    for directory in args.applications() {
        applications.push(read(&directory, context)?);
    }
    let directory = args.directory().unwrap_or_default();
    let resolved = config::load(&args.flags, &directory)
        .map_err(|refused| Error::usage(refused.0.join("\n"), "see `millrace serve --help`"))?;
    for warning in &resolved.warnings {
        context.console.note(format_args!("warning: {warning}"))?;
    }
    let config = resolved.config;
    telemetry::init(&config.log);
    if args.check {
        return check::run(&applications, config, context).await;
    }
    let stop = stop_signal()?;
    if args.embedded {
        let place = format!("an embedded log in {}", config.data.display());
        let server = Server::open(config).await.map_err(|e| Error::failed(e, "then start again"))?;
        return serve(&server, &place, &applications, stop, began, context).await;
    }
    let place = format!("Kafka at {}", config.kafka.bootstrap);
    let server = Server::connect(config).await.map_err(|e| not_reached(Exit::Failed, &e))?;
    serve(&server, &place, &applications, stop, began, context).await
}

/// Runs what there is on a log, until told to stop.
async fn serve<L: Log>(
    server: &Server<L>,
    place: &str,
    applications: &[Application],
    stop: impl Future<Output = ()> + Send,
    began: Instant,
    context: &mut Context,
) -> Result<Exit, Error> {
    let mut stop = Box::pin(stop);
    let started = tokio::select! {
        started = start(server, applications) => started.map(|()| true),
        () = &mut stop => Ok(false),
    };
    if !matches!(started, Ok(true)) {
        // Those that have started are members of their groups already.
        server.stop().await;
    }
    if !started? {
        context.console.note("Stopped before it was ready.")?;
        return Ok(Exit::Done);
    }
    let listener = server.listen().await.map_err(|e| not_listening(&e))?;
    let address = listener.local_addr().map_err(|e| Error::file("the address listened on", &e))?;
    let mut names: Vec<&str> = applications.iter().map(|one| one.manifest.application.as_str()).collect();
    if names.is_empty() {
        names.push("what is uploaded");
    }
    let (names, took, url) = (names.join(", "), began.elapsed(), server.url(address));
    context.console.line(format_args!("{names} on {place}, ready after {took:.1?} on {url}"))?;
    if applications.is_empty() {
        let active = server.registry().functions().len() as u64;
        let how = format!("`millrace deploy DIR{}` uploads more", server_flag(&url));
        context.console.line(format_args!("{} run; {how}", format::counted(active, "function")))?;
    }
    context.console.flush()?;
    server.run(listener, stop).await.map_err(|e| Error::failed(e, "start again to recover"))?;
    context.console.note("Stopped. Everything that was settled is committed.")?;
    Ok(Exit::Done)
}

/// Makes the topics of all applications, and starts their functions and the uploaded ones, some at a time.
async fn start<L: Log>(server: &Server<L>, applications: &[Application]) -> Result<(), Error> {
    for application in applications {
        let made = server.make_topics(&application.manifest).await;
        made.map_err(|e| Error::failed(e, "then start again"))?;
    }
    server.activate_uploaded().await.map_err(|e| Error::failed(e, "start again"))?;
    let functions = applications.iter().flat_map(|application| {
        let directory = &application.source.directory;
        application.manifest.functions.iter().map(move |function| Ok((function, directory)))
    });
    let all = functions.clone().count();
    let active = AtomicUsize::new(0);
    let starting = stream::iter(functions).try_for_each_concurrent(
        limits::FUNCTIONS_STARTED_AT_ONCE,
        async |(function, directory)| {
            let number = match server.activate(function, directory).await {
                Ok(number) => number,
                // The others must run all the same.
                Err(uploaded @ StageError::Uploaded { .. }) => {
                    tracing::warn!("{uploaded}");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let active = active.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::info!(function = %function.name, number, active, all, "A revision is active.");
            Ok::<_, StageError>(())
        },
    );
    starting.await.map_err(|e| Error::failed(e, "then start again"))
}

/// `unreachable` is how to exit if no broker answers.
fn not_reached(unreachable: Exit, error: &StartError) -> Error {
    match error {
        StartError::Broker(e) if e.is_transient() => {
            let fix = "see that Kafka runs there, or name another one with --set kafka.bootstrap=HOST:PORT";
            Error::new(unreachable, error, fix)
        }
        _ => Error::failed(error, "mend that, and start again"),
    }
}
