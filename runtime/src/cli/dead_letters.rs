//! `millrace dead-letters`: look at failed events, and decide what becomes of them.

use clap::Subcommand;
use millrace_core::name::Topic;
use millrace_core::outcome::Category;

use super::Context;
use super::error::{Error, Exit};
use crate::broker::LetterId;

mod act;
mod show;

const EXAMPLES: &str = "\
Examples:
  millrace dead-letters list
  millrace dead-letters list --function shop.pay --category invalid
  millrace dead-letters show shop.pay orders/0/12
  millrace dead-letters redrive shop.pay orders/0/12
  millrace dead-letters redrive --category transient --dry-run
  millrace dead-letters discard shop.pay orders/0/12 --note 'a test order'";

const LIST_EXAMPLES: &str = "\
Examples:
  millrace dead-letters list
  millrace dead-letters list --function shop.pay --status all
  millrace dead-letters list --category transient --topic orders --limit 10
  millrace dead-letters list --json";

const SHOW_EXAMPLES: &str = "\
Examples:
  millrace dead-letters show shop.pay orders/0/12
  millrace dead-letters show shop.pay orders/0/12 --json";

const REDRIVE_EXAMPLES: &str = "\
Examples:
  millrace dead-letters redrive shop.pay orders/0/12
  millrace dead-letters redrive shop.pay                    all open ones of this function
  millrace dead-letters redrive --category transient --dry-run
  millrace dead-letters redrive --all --yes

A redriven event goes to its own function alone, after the events of its key that were handled meanwhile: their order is \
not restored.";

const RESOLVE_EXAMPLES: &str = "\
Examples:
  millrace dead-letters resolve shop.pay orders/0/12 --note 'paid by hand'
  millrace dead-letters resolve shop.pay --reason 'card expired' --dry-run";

const DISCARD_EXAMPLES: &str = "\
Examples:
  millrace dead-letters discard shop.pay orders/0/12 --note 'a test order'
  millrace dead-letters discard --category invalid --topic orders --note 'malformed rows'";

/// Arguments of `millrace dead-letters`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, each with the command that redrives it
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show one dead letter with its event
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Send dead letters to their function once more
    #[command(after_help = REDRIVE_EXAMPLES)]
    Redrive(ActArgs),
    /// Mark dead letters as done
    #[command(after_help = RESOLVE_EXAMPLES)]
    Resolve(NoteArgs),
    /// Give dead letters up
    #[command(after_help = DISCARD_EXAMPLES)]
    Discard(ReasonArgs),
}

/// Which letters to list.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only those of this function: its full name, or its name within the application where that is unambiguous
    #[arg(long, value_name = "FUNCTION")]
    function: Option<String>,
    /// Only those with this status
    #[arg(long, value_enum, default_value_t)]
    status: StatusFilter,
    /// Only those with this category of failure: transient, invalid, rejected or unknown
    #[arg(long, value_name = "CATEGORY")]
    category: Option<Category>,
    /// Only those whose event came from this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum StatusFilter {
    #[default]
    Open,
    Redriven,
    Resolved,
    Discarded,
    All,
}

impl StatusFilter {
    /// The word of the API.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
            Self::All => "all",
        }
    }
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Whose letter it is
    function: String,
    /// Its id, <topic>/<partition>/<offset>
    id: LetterId,
}

/// Which letters to do something about.
#[derive(Debug, clap::Args)]
struct ActArgs {
    /// Whose letters: the function's full name, or its name within the application where that is unambiguous
    function: Option<String>,
    /// These letters, each as <topic>/<partition>/<offset>; without any, all open ones that fit
    #[arg(conflicts_with_all = ["category", "topic", "reason", "all"])]
    ids: Vec<LetterId>,
    /// All open ones with this category of failure: transient, invalid, rejected or unknown
    #[arg(long, value_name = "CATEGORY")]
    category: Option<Category>,
    /// All open ones whose event came from this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// All open ones whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// All open ones of all functions
    #[arg(long, conflicts_with = "function")]
    all: bool,
    /// Only say which letters it would be
    #[arg(long)]
    dry_run: bool,
    /// Also letters that are not open any more
    #[arg(long)]
    force: bool,
    /// Do not ask before treating several
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct NoteArgs {
    #[command(flatten)]
    act: ActArgs,
    /// How it was resolved
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ReasonArgs {
    #[command(flatten)]
    act: ActArgs,
    /// Why they are given up
    #[arg(long, value_name = "TEXT")]
    note: String,
}

/// Does what the subcommand says.
pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let console = &mut context.console;
    match args.command {
        Command::List(args) => show::list(&args, &client, console).await,
        Command::Show(args) => show::show(&args, &client, console).await,
        Command::Redrive(args) => act::run(&act::Action::Redrive, args, &client, console).await,
        Command::Resolve(NoteArgs { act, note }) => act::run(&act::Action::Resolve(note), act, &client, console).await,
        Command::Discard(ReasonArgs { act, note }) => {
            act::run(&act::Action::Discard(note), act, &client, console).await
        }
    }
}

#[cfg(test)]
mod tests;
