//! `millrace dev`: an application on this machine, rebuilt and swapped while it runs.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_core::manifest::{self, Function};
use tokio::sync::mpsc;

use super::Context;
use super::application::Application;
use super::build;
use super::error::{Error, Exit};
use super::output::Style;
use crate::config::{self, Config, Flags};
use crate::server::Server;
use crate::telemetry;

mod watch;

/// Arguments of `millrace dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  millrace dev                          the application in this directory
  millrace dev guest-examples/orders    another one
  millrace dev --listen 127.0.0.1:9000  on another port
  millrace dev --no-watch               without rebuilding what changes")]
pub(crate) struct Args {
    /// The application's directory, with its millrace.toml
    #[arg(default_value = ".", value_name = "DIR")]
    directory: PathBuf,
    /// Does not watch sources
    #[arg(long)]
    no_watch: bool,
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

/// An application and the process that runs it.
struct Dev {
    directory: PathBuf,
    application: Application,
    server: Server,
}

pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let began = Instant::now();
    let application = read(&args.directory, context)?;
    let directory = application.source.directory.clone();
    let config = configure(&args.flags, &directory, context)?;
    telemetry::init(&config.log);
    let stop = stop_signal()?;
    let stale = |function: &&Function| function.build.is_some() && watch::is_stale(function, &directory);
    let stale: Vec<String> = application.manifest.functions.iter().filter(stale).map(short_name).collect();
    if !stale.is_empty() {
        build(&application, &stale, context).await?;
    }
    let server = Server::open(config).await.map_err(|e| Error::failed(e, "then start again"))?;
    let made = server.make_topics(&application.manifest).await;
    made.map_err(|e| Error::failed(e, "then start again"))?;
    let retired = server.retire_others(&application.manifest).await;
    retired.map_err(|e| Error::failed(e, "start again to recover"))?;
    let dev = Dev { directory, application, server };
    for function in &dev.application.manifest.functions {
        dev.activate(function, context).await?;
    }
    let listener = dev
        .server
        .listen()
        .await
        .map_err(|e| Error::failed(e, "choose another address with --listen, or stop the other process"))?;
    let address = listener.local_addr().map_err(|e| Error::file("the address listened on", &e))?;
    dev.say_where_to_look(address, began.elapsed(), context)?;
    let (changes, changed) = mpsc::channel(1);
    let watching = if args.no_watch { None } else { watch::start(&dev.directory, &dev.application.manifest, changes) };
    let serving = dev.server.run(listener, stop);
    tokio::select! {
        ended = serving => ended.map_err(|e| Error::failed(e, "start again to recover"))?,
        error = follow(&dev, changed, watching.is_some(), context) => return Err(error),
    }
    context.console.note("Stopped. Everything that was settled is kept; start again to go on.")?;
    Ok(Exit::Done)
}

/// Rebuilds and swaps what changes, for ever.
async fn follow(dev: &Dev, mut changed: mpsc::Receiver<Vec<PathBuf>>, watching: bool, context: &mut Context) -> Error {
    if !watching {
        std::future::pending::<()>().await;
    }
    while let Some(paths) = changed.recv().await {
        if let Err(error) = dev.rebuild(&paths, context).await {
            return error;
        }
    }
    Error::failed("sources are no longer watched", "start again, or use --no-watch")
}

impl Dev {
    /// Stages and activates one function; if that fails, says so and keeps what runs.
    async fn activate(&self, function: &Function, context: &mut Context) -> Result<(), Error> {
        match self.server.activate(function, &self.directory).await {
            Ok(number) => tracing::debug!(function = %function.name, number, "A revision is active."),
            Err(error) => {
                let sign = context.console.paint(Style::Bad, "refused");
                context.console.note(format_args!("{sign} {error}"))?;
                if let Some(info) = self.server.registry().function(&function.name) {
                    context.console.note(format_args!("{}: revision {} goes on", function.name, info.revision))?;
                }
            }
        }
        Ok(())
    }

    async fn rebuild(&self, paths: &[PathBuf], context: &mut Context) -> Result<(), Error> {
        if paths.iter().any(|path| path.ends_with(manifest::FILE_NAME)) {
            context.console.note("millrace.toml changed: start again to take it over.")?;
        }
        let functions = &self.application.manifest.functions;
        let affected = functions.iter().filter(|function| watch::concerns(function, &self.directory, paths));
        for function in affected {
            let began = Instant::now();
            if function.build.is_some()
                && let Err(error) = build(&self.application, &[short_name(function)], context).await
            {
                context
                    .console
                    .note(format_args!("{error}\n{}: the revision that ran before goes on", function.name))?;
                continue;
            }
            let before = self.server.registry().function(&function.name).map(|info| info.digest);
            self.activate(function, context).await?;
            let after = self.server.registry().function(&function.name);
            if let Some(info) = after
                && Some(&info.digest) != before.as_ref()
            {
                let (name, revision, took) = (&function.name, info.revision, began.elapsed());
                context.console.note(format_args!("swapped {name} to revision {revision} in {took:.1?}"))?;
            }
        }
        Ok(())
    }

    fn say_where_to_look(
        &self,
        address: std::net::SocketAddr,
        took: Duration,
        context: &mut Context,
    ) -> Result<(), Error> {
        let console = &mut context.console;
        let application = console.paint(Style::Strong, &self.application.manifest.application);
        console.line(format_args!("{application} is ready after {took:.1?} on http://{address}"))?;
        let (active, all) = (self.server.registry().functions().len(), self.application.manifest.functions.len());
        if active < all {
            let few = console.paint(Style::Bad, &format!("{active} of {all} functions run"));
            console.line(format_args!("  {few}; the others were refused, see above"))?;
        }
        for info in self.server.registry().functions() {
            let settings = &info.settings;
            let sources: Vec<&str> = settings.topics.iter().map(millrace_core::name::Topic::as_str).collect();
            let targets: Vec<&str> = settings.grants.publish.iter().map(millrace_core::name::Topic::as_str).collect();
            let arrow = if targets.is_empty() { String::new() } else { format!(" -> {}", targets.join(", ")) };
            let (name, revision) = (&settings.name, info.revision);
            console.line(format_args!("  {} -> {name} (revision {revision}){arrow}", sources.join(", ")))?;
        }
        console.line(format_args!("  data in {}", self.server.config().data.display()))?;
        console.line("Try, from another terminal:")?;
        let server =
            if address == config::DEFAULT_LISTEN { String::new() } else { format!(" --server http://{address}") };
        if let Some(topic) = self.application.manifest.functions.first().and_then(|function| function.topics.first()) {
            console.line(format_args!("  millrace publish {topic} --type example --data '{{}}'{server}"))?;
            console.line(format_args!("  millrace tail {topic}{server}"))?;
        }
        console.line(format_args!("  millrace status{server}"))?;
        console.line(format_args!("  millrace dead-letters list{server}"))?;
        console.line("Ctrl-C finishes what is being handled, and stops.")?;
        console.flush()
    }
}

/// Reads an application; what is wrong with its manifest is shown.
pub(super) fn read(directory: &Path, context: &mut Context) -> Result<Application, Error> {
    let directory = directory.canonicalize().map_err(|e| Error::file(directory.display(), &e))?;
    Application::open(&directory, &mut context.console)
}

fn short_name(function: &Function) -> String {
    function.name.function().to_owned()
}

/// Builds functions, each command once.
async fn build(application: &Application, only: &[String], context: &mut Context) -> Result<(), Error> {
    for one in build::plan(application, only)? {
        context.console.note(format_args!("$ {}", one.command))?;
        build::run_one(&one).await?;
    }
    Ok(())
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
