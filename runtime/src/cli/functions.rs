//! `millrace functions`.

use clap::Subcommand;

use super::client::Target;
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::Style;
use super::{Context, changes, status};
use crate::api::types::{Canary, FunctionStatus, Status};

mod reset;
mod revisions;
mod skip;

const EXAMPLES: &str = "\
Examples:
  millrace functions
  millrace functions --json
  millrace functions history shop.pay
  millrace functions promote shop.pay
  millrace functions rollback shop.pay
  millrace functions reset shop.pay --from earliest --dry-run
  millrace functions skip shop.pay --dry-run";

/// Arguments of `millrace functions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List functions, as without a subcommand
    #[command(after_help = "Examples:\n  millrace functions list\n  millrace functions list --json")]
    List,
    /// Show how a function stands, its settings, and what each instance runs
    #[command(after_help = "Examples:\n  millrace functions show shop.pay\n  millrace functions show pay --json")]
    Show(revisions::Which),
    /// List what was done to a function
    #[command(after_help = "Examples:\n  millrace functions history shop.pay")]
    History(revisions::Which),
    /// Compare two revisions of a function
    #[command(
        after_help = "Examples:\n  millrace functions diff shop.pay        the active one with the canary, or else with the one before\n  millrace functions diff shop.pay 3 7"
    )]
    Diff(revisions::Diff),
    /// Let the canary become the active revision, and handle all keys
    #[command(
        after_help = "Examples:\n  millrace functions promote shop.pay             after asking\n  millrace functions promote shop.pay --yes --json"
    )]
    Promote(revisions::Act),
    /// Give the canary another share of the keys
    #[command(after_help = "Examples:\n  millrace functions canary shop.pay --share 20%")]
    Canary(revisions::Canary),
    /// Give the canary up, or run an earlier revision again
    #[command(
        after_help = "Examples:\n  millrace functions rollback shop.pay            gives the canary up; without one, to the revision before, after asking\n  millrace functions rollback shop.pay --to 3 --yes"
    )]
    Rollback(revisions::Rollback),
    /// Let a function handle no events until it is resumed; they wait
    #[command(after_help = "Examples:\n  millrace functions pause shop.pay")]
    Pause(revisions::Which),
    /// Let a paused function go on
    #[command(after_help = "Examples:\n  millrace functions resume shop.pay")]
    Resume(revisions::Which),
    /// Stop a function that was uploaded; its position and its dead letters stay
    #[command(after_help = "Examples:\n  millrace functions delete shop.pay")]
    Delete(revisions::Act),
    /// Let a function go on from another place of its topics: what was handled comes again, or what waits is passed over
    #[command(after_help = reset::EXAMPLES)]
    Reset(reset::Args),
    /// Let a function go on whose position no longer exists, and count what is gone as skipped
    #[command(after_help = skip::EXAMPLES)]
    Skip(skip::Args),
}

/// Lists functions, or does what is asked.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    match &args.command {
        None | Some(Command::List) => list(context).await,
        Some(Command::Show(which)) => revisions::show(which, context).await,
        Some(Command::History(which)) => revisions::history(which, context).await,
        Some(Command::Diff(args)) => revisions::diff(args, context).await,
        Some(Command::Promote(args)) => revisions::promote(args, context).await,
        Some(Command::Canary(args)) => revisions::canary_share(args, context).await,
        Some(Command::Rollback(args)) => revisions::rollback(args, context).await,
        Some(Command::Pause(which)) => revisions::pause(which, context).await,
        Some(Command::Resume(which)) => revisions::resume(which, context).await,
        Some(Command::Delete(args)) => revisions::delete(args, context).await,
        Some(Command::Reset(args)) => reset::run(args, context).await,
        Some(Command::Skip(args)) => skip::run(args, context).await,
    }
}

async fn list(context: &mut Context) -> Result<Exit, Error> {
    let functions: Status = context.client()?.get(&Target::new(["v1", "functions"])).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&functions)?;
    } else if functions.functions.is_empty() && functions.refused.is_empty() {
        console.note(
            "There are no functions. Upload some with `millrace deploy DIR`, or start the server on an application.",
        )?;
    } else {
        if !functions.functions.is_empty() {
            console.table(&table(&functions.functions))?;
        }
        status::show_refused(&functions.refused, console)?;
    }
    Ok(Exit::Done)
}

fn table(functions: &[FunctionStatus]) -> Table {
    let mut table = Table::new(&[
        ("function", Side::Left),
        ("rev", Side::Right),
        ("component", Side::Left),
        ("breaker", Side::Left),
        ("partitions", Side::Right),
        ("topics", Side::Left),
    ]);
    for f in functions {
        table.row(vec![
            Cell::styled(format::one_line(&f.name, 127), Style::Strong),
            revision(f).into(),
            Cell::styled(changes::short(&f.component), Style::Faint),
            Cell::styled(format::one_line(&f.breaker, 20), status::breaker_style(&f.breaker)),
            f.units.len().to_string().into(),
            format::one_line(&f.topics.join(", "), 500).into(),
        ]);
    }
    table
}

/// The active revision, and the canary beside it.
fn revision(function: &FunctionStatus) -> String {
    let canary = function.canary.as_ref();
    let beside = canary.map(|Canary { revision, share }| format!(" + {revision} ({})", format::one_line(share, 10)));
    format!("{}{}", function.revision, beside.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cli::status::tests::function;
    use crate::cli::testing::{Answer, Server};

    #[tokio::test]
    async fn functions_are_listed_with_their_components() {
        let answer =
            json!({"state": "ready", "functions": [function("shop.pay", &json!({"topics": ["orders", "more"]}))]});
        let server = Server::answering([Answer::json(&answer)]).await;
        let expected = "\
FUNCTION  REV  COMPONENT     BREAKER  PARTITIONS  TOPICS
shop.pay    2  abababababab  closed            1  orders, more
";
        assert_eq!(server.run(&["functions"]).await.done(), expected);
    }
}
