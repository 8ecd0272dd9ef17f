//! `millrace functions skip`.

use crate::api::types::{SkipAnswer, SkipRequest};
use crate::cli::client::{Client, Target};
use crate::cli::error::{Error, Exit};
use crate::cli::output::Console;
use crate::cli::{Context, format, status};

pub(super) const EXAMPLES: &str = "\
Examples:
  millrace functions skip shop.pay --dry-run   say what is gone
  millrace functions skip shop.pay";

/// Arguments of `millrace functions skip`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The function: its full name, or its name within the application where that is unambiguous
    function: String,
    /// Only say how many records would be skipped
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Skips what is gone, after asking if somebody can be asked.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let console = &mut context.console;
    let name = status::full_name(&args.function, &client).await?;
    if !args.dry_run && !args.yes && console.can_ask() {
        let gone = ask(&client, &name, true).await?;
        if gone.records > 0 {
            let question = format!("Skip {}? They are gone, and stay so.", told(&gone));
            if !console.confirm(question).await? {
                console.note("Nothing was done.")?;
                return Ok(Exit::Failed);
            }
        }
    }
    tell(&ask(&client, &name, args.dry_run).await?, console)?;
    Ok(Exit::Done)
}

async fn ask(client: &Client, function: &str, dry_run: bool) -> Result<SkipAnswer, Error> {
    let target = Target::new(["v1", "functions", function, "skip"]);
    Ok(client.post(&target, &SkipRequest { dry_run }).await?)
}

fn told(answer: &SkipAnswer) -> String {
    format!("{} of {}", format::counted(answer.records, "record"), format::one_line(&answer.function, 127))
}

fn tell(answer: &SkipAnswer, console: &mut Console) -> Result<(), Error> {
    if console.is_json() {
        return console.document(answer);
    }
    if answer.partitions.is_empty() {
        let function = format::one_line(&answer.function, 127);
        return console.note(format_args!("No partition of {function} waits for records that are gone."));
    }
    for partition in &answer.partitions {
        let redrive = if partition.redrive { " (redrive log)" } else { "" };
        console.line(format_args!(
            "{}/{}{redrive}  {}, offsets {} to {}",
            format::one_line(&partition.topic, 249),
            partition.partition,
            format::counted(partition.records, "record"),
            partition.from,
            partition.to.saturating_sub(1)
        ))?;
    }
    let many = told(answer);
    if answer.dry_run {
        return console.note(format_args!("{many} would be skipped; nothing was done."));
    }
    console.note(format_args!("{many} skipped; the partitions go on with the oldest record that there is."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cli::testing::{Answer, Server};

    #[tokio::test]
    async fn what_is_gone_is_named_before_and_after() {
        let answer = |dry_run: bool| {
            Answer::json(&json!({"function": "shop.pay", "dry_run": dry_run, "records": 1200, "partitions": [
                {"topic": "orders", "partition": 3, "redrive": false, "records": 1200, "from": 5, "to": 1205}
            ]}))
        };
        let server = Server::answering([answer(true), answer(false)]).await;
        let run = server.run(&["functions", "skip", "shop.pay", "--dry-run"]).await;
        assert_eq!(run.done(), "orders/3  1,200 records, offsets 5 to 1204\n");
        let run = server.run(&["functions", "skip", "shop.pay"]).await;
        assert_eq!(run.done(), "orders/3  1,200 records, offsets 5 to 1204\n");
        let asked = server.asked();
        assert_eq!(asked[0].line, "POST /v1/functions/shop.pay/skip");
        assert_eq!(
            asked.iter().map(|a| a.body.as_str()).collect::<Vec<_>>(),
            [r#"{"dry_run":true}"#, r#"{"dry_run":false}"#]
        );
    }

    #[tokio::test]
    async fn nothing_to_skip_is_said() {
        let answer = json!({"function": "shop.pay", "dry_run": false, "records": 0, "partitions": []});
        let server = Server::answering([Answer::json(&answer)]).await;
        assert_eq!(server.run(&["functions", "skip", "shop.pay"]).await.done(), "");
    }
}
