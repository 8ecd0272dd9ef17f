//! `millrace serve`: applications on Kafka, beside any number of other instances.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::stream::{self, TryStreamExt as _};
use millrace_core::limits;

use super::Context;
use super::application::Application;
use super::dev::{read, stop_signal};
use super::error::{Error, Exit};
use crate::broker::kafka::KafkaLog;
use crate::config::{self, Flags};
use crate::server::{Server, StageError, StartError};
use crate::telemetry;

mod check;

/// Arguments of `millrace serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace serve                                           the application in this directory
  millrace serve shop billing                              two applications in one process
  millrace serve --set kafka.bootstrap=kafka-0:9092        on this cluster
  millrace serve --set kafka.properties.group.protocol=consumer
  millrace serve --check                                   what is missing in the cluster, and how to mend it

SIGTERM lets what is being handled come to its end, and leaves the group. A second one ends the process at once, which
loses nothing.")]
pub(crate) struct Args {
    /// Directories of applications, each with its millrace.toml and its components, which were built before
    #[arg(default_value = ".", value_name = "DIR")]
    directories: Vec<PathBuf>,
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
        let given = self.directories.first()?.canonicalize().ok()?;
        if given.is_file() { given.parent().map(Path::to_owned) } else { Some(given) }
    }
}

pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let began = Instant::now();
    let mut applications = Vec::with_capacity(args.directories.len());
    for directory in &args.directories {
        applications.push(read(directory, context)?);
    }
    let directory = args.directory().unwrap_or_default();
    let resolved = config::load(&args.flags, &directory)
        .map_err(|refused| Error::usage(refused.0.join("\n"), "see `millrace serve --help`"))?;
    for warning in &resolved.warnings {
        context.console.note(format_args!("warning: {warning}"))?;
    }
    telemetry::init(&resolved.config.log);
    if args.check {
        return check::run(&applications, resolved.config, context).await;
    }
    let mut stop = Box::pin(stop_signal()?);
    let server = Server::connect(resolved.config).await.map_err(|e| not_reached(Exit::Failed, &e))?;
    let started = tokio::select! {
        started = start(&server, &applications) => started.map(|()| true),
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
    let listener = server
        .listen()
        .await
        .map_err(|e| Error::failed(e, "choose another address with --listen, or stop the other process"))?;
    let address = listener.local_addr().map_err(|e| Error::file("the address listened on", &e))?;
    let names: Vec<&str> = applications.iter().map(|one| one.manifest.application.as_str()).collect();
    let (names, took, bootstrap) = (names.join(", "), began.elapsed(), &server.config().kafka.bootstrap);
    context
        .console
        .line(format_args!("{names} on Kafka at {bootstrap}, ready after {took:.1?} on http://{address}"))?;
    context.console.flush()?;
    server.run(listener, stop).await.map_err(|e| Error::failed(e, "start again to recover"))?;
    context.console.note("Stopped. Everything that was settled is committed; other instances go on.")?;
    Ok(Exit::Done)
}

/// Makes the topics of all applications, and starts their functions, some at a time.
async fn start(server: &Server<KafkaLog>, applications: &[Application]) -> Result<(), Error> {
    for application in applications {
        let made = server.make_topics(&application.manifest).await;
        made.map_err(|e| Error::failed(e, "then start again"))?;
    }
    let functions = applications.iter().flat_map(|application| {
        let directory = &application.source.directory;
        application.manifest.functions.iter().map(move |function| Ok((function, directory)))
    });
    let all = functions.clone().count();
    let active = AtomicUsize::new(0);
    let starting = stream::iter(functions).try_for_each_concurrent(
        limits::FUNCTIONS_STARTED_AT_ONCE,
        async |(function, directory)| {
            let number = server.activate(function, directory).await?;
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
