//! The command line of `millrace`: one file per subcommand.

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod application;
mod audit;
mod bench;
mod build;
mod changes;
mod check;
mod client;
mod completions;
mod dead_letters;
mod demo;
mod deploy;
mod dev;
mod error;
mod format;
mod functions;
mod invoke;
mod new;
mod openapi;
mod output;
mod publish;
#[cfg(feature = "kafka")]
mod serve;
mod state;
mod status;
mod tail;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokens;
mod topics;

use client::{Client, Token};
use error::{EXIT_CODES, Error, Exit};
use output::{ColorWhen, Console};

use crate::config::{CA_FILE_VARIABLE, TOKEN_VARIABLE, others_read, read_token, readable};

/// Runs event functions compiled to WebAssembly, with effects exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "millrace",
    version,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    arg_required_else_help = true,
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  millrace new shop                     a project that builds at once
  millrace dev shop                     runs it here, on an embedded log
  millrace check shop                   is its manifest in order?
  millrace publish orders --type order.placed --data '{\"order\": 7}'
  millrace tail orders --from earliest
  millrace status
  millrace dead-letters list";

/// What holds for all commands.
#[derive(Debug, clap::Args)]
struct Global {
    /// Address of the server that a command talks to. With https:// its certificate is verified
    #[arg(
        long,
        global = true,
        env = "MILLRACE_URL",
        value_name = "URL",
        default_value_t = format!("http://{}", crate::config::DEFAULT_LISTEN),
        help_heading = "Global options"
    )]
    server: String,
    /// File with the token that the server asks for; else it is taken from MILLRACE_TOKEN in the environment. There is no flag for the
    /// token itself: everybody on a machine can read its command lines, and shells keep them
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    token_file: Option<PathBuf>,
    /// File with the certificates of authorities, in PEM, that a server's certificate may be of [default: those that the system trusts]
    #[arg(long, global = true, env = CA_FILE_VARIABLE, value_name = "FILE", help_heading = "Global options")]
    ca_file: Option<PathBuf>,
    /// Answers in JSON, for programs
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// When to colour the output; NO_COLOR in the environment is respected
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, help_heading = "Global options")]
    color: ColorWhen,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an application on this machine, with an embedded log
    Dev(dev::Args),
    /// Run applications on Kafka, beside any number of other instances
    #[cfg(feature = "kafka")]
    Serve(serve::Args),
    /// Run one handler on one event, without a log
    Invoke(invoke::Args),
    /// Run an application on its sample events, and check what comes out
    Demo(demo::Args),
    /// Write a new project that builds at once
    New(new::Args),
    /// Check a manifest and its components without running anything
    Check(check::Args),
    /// Build the components of an application
    Build(build::Args),
    /// Upload the functions of an application to a running server
    Deploy(deploy::Args),
    /// Publish events to a topic
    Publish(publish::Args),
    /// Show the events of a topic as they come
    Tail(tail::Args),
    /// Show how far functions are, and whether their accounts balance
    Status(status::Args),
    /// List topics
    Topics(topics::Args),
    /// List functions, look at their revisions, go back to an earlier one, pause and delete them
    Functions(functions::Args),
    /// Show what the handler of a function has stored
    State(state::Args),
    /// Look at failed events, and send them again, resolve or discard them
    DeadLetters(dead_letters::Args),
    /// Make, list and revoke tokens, which say who may do what
    Tokens(tokens::Args),
    /// Show who changed what, and who was refused
    Audit(audit::Args),
    /// Measure how fast an application is on this machine
    Bench(bench::Args),
    /// Write the description of the HTTP API, in OpenAPI
    Openapi(openapi::Args),
    /// Write completions for a shell
    Completions(completions::Args),
}

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where to say things.
    pub(crate) console: Console,
    /// The server's address, as it was given.
    pub(crate) server: String,
    /// Where the token is.
    pub(crate) token: TokenPlace,
    /// The authorities that a server's certificate may be of, if not those that the system trusts.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Where the token is that the server asks for.
#[derive(Clone, Debug)]
pub(crate) enum TokenPlace {
    /// In a file.
    File(PathBuf),
    /// In the environment.
    Variable(Token),
    /// There is none.
    Nowhere,
}

impl TokenPlace {
    /// What was given, of which the file wins over the environment.
    ///
    /// # Errors
    /// If there is something in the environment that is no token.
    fn of(file: Option<PathBuf>, variable: Option<OsString>) -> Result<Self, Error> {
        match (file, variable.filter(|text| !text.is_empty())) {
            (Some(file), _) => Ok(Self::File(file)),
            // No token has what is not UTF-8.
            (None, Some(text)) => Ok(Self::Variable(Token::parse(&text.to_string_lossy(), TOKEN_VARIABLE)?)),
            (None, None) => Ok(Self::Nowhere),
        }
    }

    /// The file that it is in, if others can read that.
    fn read_by_others(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(&**file).filter(|file| others_read(file)),
            Self::Variable(_) | Self::Nowhere => None,
        }
    }

    fn token(&self) -> Result<Option<Token>, Error> {
        match self {
            Self::File(file) => {
                let text = read_token(file).map_err(|e| Error::file(file.display(), &e))?;
                Token::parse(&text, file.display()).map(Some)
            }
            Self::Variable(token) => Ok(Some(token.clone())),
            Self::Nowhere => Ok(None),
        }
    }
}

impl Context {
    /// A client of the server.
    ///
    /// # Errors
    /// If the address is none, the token cannot be read, or it is not known whose certificates to trust.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        self.client_of(&self.server)
    }

    /// A client of another server.
    ///
    /// # Errors
    /// As [`Context::client`].
    pub(crate) fn client_of(&self, server: &str) -> Result<Client, Error> {
        Ok(Client::new(server, self.ca_file.as_deref())?.with_token(self.token.token()?))
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(compiled) = crate::sandbox::compile_if_asked() {
        return compiled;
    }
    crate::allocator::keep_free_memory();
    let cli = Cli::parse();
    let Global { server, token_file, ca_file, json, color } = cli.global;
    let console = Console::of_process(json, color);
    let token = match TokenPlace::of(token_file, std::env::var_os(TOKEN_VARIABLE)) {
        Ok(token) => token,
        Err(error) => return console.close(Err(error)).map_or_else(|e| e.exit(), |()| Exit::Usage).into(),
    };
    // Whatever gives a variable no value does not mean a file without a name.
    let ca_file = ca_file.filter(|file| !file.as_os_str().is_empty());
    let context = Context { console, server, token, ca_file };
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(e) => {
            let error = Error::failed(format_args!("no threads can be started: {e}"), "raise the limits of this user");
            return context.console.close(Err(error)).map_or_else(|e| e.exit(), |()| Exit::Done).into();
        }
    };
    let exit = runtime.block_on(run(cli.command, context));
    // Whoever still waits for a line of standard input must not hold the process.
    runtime.shutdown_background();
    exit.into()
}

/// The threads that do the work: as many as the configuration says, if the command runs functions.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let threads = match command {
        Command::Dev(args) => args.threads(),
        #[cfg(feature = "kafka")]
        Command::Serve(args) => args.threads(),
        _ => None,
    };
    if let Some(threads) = threads {
        builder.worker_threads(threads.get());
    }
    builder.enable_all().build()
}

/// Runs a command to its end, and tells its error if there is one.
async fn run(command: Command, mut context: Context) -> Exit {
    // On the heap, because the futures of commands differ much in size.
    let result = Box::pin(dispatch(command, &mut context)).await;
    let exit = result.as_ref().copied().unwrap_or_else(Error::exit);
    match context.console.close(result.map(drop)) {
        Ok(()) => exit,
        Err(error) => error.exit(),
    }
}

async fn dispatch(command: Command, context: &mut Context) -> Result<Exit, Error> {
    if let Some(file) = context.token.read_by_others() {
        context.console.note(format_args!("warning: {}", readable(file)))?;
    }
    match command {
        Command::Dev(args) => Box::pin(dev::run(args, context)).await,
        #[cfg(feature = "kafka")]
        Command::Serve(args) => Box::pin(serve::run(args, context)).await,
        Command::Invoke(args) => until_interrupted(invoke::run(&args, context)).await,
        Command::Demo(args) => demo::run(&args, context).await,
        Command::New(args) => new::run(&args, context).await,
        Command::Check(args) => check::run(&args, context).await,
        Command::Build(args) => until_interrupted(build::run(&args, context)).await,
        Command::Deploy(args) => until_interrupted(deploy::run(&args, context)).await,
        Command::Publish(args) => publish::run(args, context).await,
        Command::Tail(args) => until_interrupted(tail::run(&args, context)).await,
        Command::Status(args) => until_interrupted(status::run(&args, context)).await,
        Command::Topics(args) => until_interrupted(topics::run(&args, context)).await,
        Command::Functions(args) => until_interrupted(functions::run(&args, context)).await,
        Command::State(args) => until_interrupted(state::run(&args, context)).await,
        Command::DeadLetters(args) => until_interrupted(dead_letters::run(args, context)).await,
        Command::Audit(args) => until_interrupted(audit::run(&args, context)).await,
        Command::Tokens(args) => until_interrupted(tokens::run(&args, context)).await,
        Command::Bench(args) => Box::pin(bench::run(&args, context)).await,
        Command::Openapi(args) => openapi::run(&args, context),
        Command::Completions(args) => completions::run(&args, &mut Cli::command(), context),
    }
}

/// Does a piece of work, and gives it up on Ctrl-C.
///
/// # Errors
/// Those of the work, or [`Error::Interrupted`].
pub(crate) async fn until_interrupted<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        biased;
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
    }
}
