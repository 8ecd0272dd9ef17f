//! `millrace dev`: an application on this machine, rebuilt and swapped while it runs.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_core::manifest::{Function, Manifest};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Context;
use super::application::Application;
use super::build::{self, Build};
use super::error::{Error, Exit};
use super::output::{Console, Style};
use crate::config::{self, Config, Flags, LogFormat};
use crate::server::{Server, StartError};
use crate::telemetry;
use crate::worker::feed::{Feed, Logs, Reader};

mod follow;
mod outcomes;
mod watch;

use follow::Following;
use outcomes::Form;
use watch::Places;

/// How long whoever reads the output may take for the last lines when the process stops.
const LAST_LINES_MAX: Duration = Duration::from_secs(1);

/// Arguments of `millrace dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace dev                          the application in this directory
  millrace dev guest-examples/orders    another one
  millrace dev --listen 127.0.0.1:9000  on another port
  millrace dev --no-watch               without rebuilding what changes
  millrace dev --quiet                  without a line for each event
  millrace dev --json                   a JSON object for each event, for programs")]
pub(crate) struct Args {
    /// The application's directory, with its millrace.toml
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    /// Does not watch the manifest and the sources
    #[arg(long)]
    no_watch: bool,
    /// Does not show what happens to events and what handlers log; logs then say the latter
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Args {
    /// The threads that the configuration asks for; none if there is no configuration that can be used, which is told
    /// later.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        let given = self.directory.canonicalize().ok()?;
        let directory = if given.is_file() { given.parent()?.to_owned() } else { given };
        config::load(&self.flags, &directory).ok().map(|resolved| resolved.config.threads)
    }
}

pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let began = Instant::now();
    let application = read(&args.directory, context)?;
    let directory = application.source.directory.clone();
    let config = configure(&args.flags, &directory, context)?;
    telemetry::init(&config.log);
    let mut stop = Box::pin(stop_signal()?);
    let places = Places { manifest: application.source.file.clone(), data: absolute(&config.data), directory };
    tokio::select! {
        built = build_stale(&application, &places, context) => built?,
        () = &mut stop => return Err(Error::Interrupted),
    }
    let looks_on = !args.quiet && (context.console.is_json() || config.log.format == LogFormat::Human);
    let mut server = Server::open(config).await.map_err(|e| Error::failed(e, "then start again"))?;
    let reader = looks_on.then(|| look_on(&mut server));
    let made = server.make_topics(&application.manifest).await;
    made.map_err(|e| Error::failed(e, "then start again"))?;
    let retired = server.retire_others(&application.manifest).await;
    for name in retired.map_err(|e| Error::failed(e, "start again to recover"))? {
        tracing::warn!(function = %name, "It is no longer in the manifest; nothing is kept for it any more.");
    }
    server.activate_uploaded().await.map_err(|e| Error::failed(e, "start again to recover"))?;
    for function in &application.manifest.functions {
        activate(&server, function, &places.directory, context).await?;
    }
    let listener = server.listen().await.map_err(|e| not_listening(&e))?;
    let address = listener.local_addr().map_err(|e| Error::file("the address listened on", &e))?;
    say_where_to_look(&server, &application.manifest, address, began.elapsed(), context)?;
    let showing = reader.map(|reader| Showing::start(reader, context));
    let following = if args.no_watch { None } else { Following::start(&server, application, places, context)? };
    tokio::select! {
        ended = server.run(listener, stop) => ended.map_err(|e| Error::failed(e, "start again to recover"))?,
        error = follow(following, context) => return Err(error),
    }
    if let Some(showing) = showing {
        showing.finish().await;
    }
    context.console.note("Stopped. Everything that was settled is kept; start again to go on.")?;
    Ok(Exit::Done)
}

/// Why nobody can be listened to.
pub(super) fn not_listening(error: &StartError) -> Error {
    let fix = match error {
        StartError::Exposed { .. } => "do one of these, or listen for this machine alone with --listen 127.0.0.1:6455",
        _ => "choose another address with --listen, or stop the other process",
    };
    Error::failed(error, fix)
}

/// Takes over what changes, for ever.
async fn follow(following: Option<Following<'_>>, context: &mut Context) -> Error {
    match following {
        Some(following) => following.follow(context).await,
        None => std::future::pending().await,
    }
}

/// The task that shows what happens to events.
struct Showing {
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Showing {
    fn start(reader: Reader, context: &Context) -> Self {
        let (stop, stopped) = oneshot::channel();
        let console = &context.console;
        let form = if console.is_json() { Form::Json } else { Form::Lines(console.painter()) };
        Self { stop, task: tokio::spawn(outcomes::show(reader, form, stopped)) }
    }

    /// Shows the last events, if whoever reads takes them.
    async fn finish(self) {
        drop(self.stop);
        drop(tokio::time::timeout(LAST_LINES_MAX, self.task).await);
    }
}

/// Lets functions tell of their events, and of what their handlers log as far as that is to be logged.
fn look_on(server: &mut Server) -> Reader {
    let wants_logs = tracing::enabled!(target: "millrace::guest", tracing::Level::INFO);
    let (feed, reader) = Feed::new(if wants_logs { Logs::Told } else { Logs::Dropped });
    reader.allow(outcomes::FULL_ROOM);
    server.set_feed(feed);
    reader
}

/// Stages and activates one function, and answers with its revision; if that fails, says so and keeps what runs.
async fn activate(
    server: &Server,
    function: &Function,
    directory: &Path,
    context: &mut Context,
) -> Result<Option<u64>, Error> {
    match server.activate(function, directory).await {
        Ok(number) => {
            tracing::debug!(function = %function.name, number, "A revision is active.");
            Ok(Some(number))
        }
        Err(error) => {
            let sign = context.console.paint(Style::Bad, "refused");
            context.console.note(format_args!("{sign} {error}"))?;
            if let Some(info) = server.registry().function(&function.name) {
                context.console.note(format_args!("{}: revision {} goes on", function.name, info.revision))?;
            }
            Ok(None)
        }
    }
}

fn say_where_to_look(
    server: &Server,
    manifest: &Manifest,
    address: std::net::SocketAddr,
    took: Duration,
    context: &mut Context,
) -> Result<(), Error> {
    let console = &mut context.console;
    if console.is_json() {
        return say_where_for_programs(server, manifest, address, console);
    }
    let (application, url) = (console.paint(Style::Strong, &manifest.application), server.url(address));
    console.line(format_args!("{application} is ready after {took:.1?} on {url}"))?;
    let (active, all) = (server.registry().functions().len(), manifest.functions.len());
    if active < all {
        let few = console.paint(Style::Bad, &format!("{active} of {all} functions run"));
        console.line(format_args!("  {few}; these were refused:"))?;
    }
    for (name, reason) in server.registry().refused() {
        console.line(format_args!("  {name}: {reason}"))?;
    }
    for info in server.registry().functions() {
        let settings = &info.settings;
        let sources: Vec<&str> = settings.topics.iter().map(millrace_core::name::Topic::as_str).collect();
        let targets: Vec<&str> = settings.grants.publish.iter().map(millrace_core::name::Topic::as_str).collect();
        let arrow = if targets.is_empty() { String::new() } else { format!(" -> {}", targets.join(", ")) };
        let (name, revision) = (&settings.name, info.revision);
        console.line(format_args!("  {} -> {name} (revision {revision}){arrow}", sources.join(", ")))?;
    }
    console.line(format_args!("  data in {}", server.config().data.display()))?;
    console.line("Try, from another terminal:")?;
    let server = server_flag(&url);
    if let Some(topic) = manifest.functions.first().and_then(|function| function.topics.first()) {
        console.line(format_args!("  millrace publish {topic} --type example --data '{{}}'{server}"))?;
        console.line(format_args!("  millrace tail {topic}{server}"))?;
    }
    console.line(format_args!("  millrace status{server}"))?;
    console.line(format_args!("  millrace dead-letters list{server}"))?;
    console.line("Ctrl-C finishes what is being handled, and stops.")?;
    console.flush()
}

/// What a command has to be told of a server, with a space before it, if it does not look there by itself.
pub(super) fn server_flag(url: &str) -> String {
    let usual = format!("http://{}", config::DEFAULT_LISTEN);
    if url == usual { String::new() } else { format!(" --server {url}") }
}

fn say_where_for_programs(
    server: &Server,
    manifest: &Manifest,
    address: std::net::SocketAddr,
    console: &mut Console,
) -> Result<(), Error> {
    let functions = server.registry().functions();
    let functions: Vec<_> = functions
        .iter()
        .map(|info| serde_json::json!({ "name": info.settings.name.to_string(), "revision": info.revision }))
        .collect();
    let refused = server.registry().refused();
    let refused: Vec<_> = refused
        .iter()
        .map(|(name, reason)| serde_json::json!({ "name": name.to_string(), "reason": reason }))
        .collect();
    console.json_line(&serde_json::json!({
        "kind": "ready",
        "application": manifest.application,
        "url": server.url(address),
        "data": server.config().data,
        "functions": functions,
        "refused": refused,
    }))?;
    console.flush()
}

/// Reads an application; what is wrong with its manifest is shown.
pub(super) fn read(directory: &Path, context: &mut Context) -> Result<Application, Error> {
    let directory = directory.canonicalize().map_err(|e| Error::file(directory.display(), &e))?;
    Application::open(&directory, &mut context.console)
}

/// A path that changes can be compared with.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn short_name(function: &Function) -> String {
    function.name.function().to_owned()
}

/// Builds what is older than its sources, each command once. What does not build starts as it was built before, if it was.
async fn build_stale(application: &Application, places: &Places, context: &mut Context) -> Result<(), Error> {
    let stale = |function: &&Function| function.build.is_some() && places.are_newer(function);
    let stale: Vec<String> = application.manifest.functions.iter().filter(stale).map(short_name).collect();
    if stale.is_empty() {
        return Ok(());
    }
    for one in build::plan(application, &stale)? {
        if !build(&one, context).await? {
            let names: Vec<&str> = one.outputs.iter().map(|output| output.function.as_str()).collect();
            let names = names.join(", ");
            context
                .console
                .note(format_args!("{names}: not built; what was built before is started, if there is any"))?;
        }
    }
    Ok(())
}

/// Runs a build; if it fails, says so.
async fn build(one: &Build, context: &mut Context) -> Result<bool, Error> {
    context.console.note(format_args!("$ {}", one.command))?;
    match build::run_one(one).await.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error @ Error::Told { .. }) => context.console.note(error).map(|()| false),
        Err(error) => Err(error),
    }
}

fn configure(flags: &Flags, directory: &Path, context: &mut Context) -> Result<Config, Error> {
    let resolved = config::load(flags, directory)
        .map_err(|refused| Error::usage(refused.0.join("\n"), "see `millrace dev --help`"))?;
    for warning in &resolved.warnings {
        context.console.note(format_args!("warning: {warning}"))?;
    }
    Ok(resolved.config)
}

/// Ends with the first Ctrl-C or SIGTERM; a second one ends the process at once, which loses nothing.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()> + Send, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|e| Error::file("the signals of this process", &e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
