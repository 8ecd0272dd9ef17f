//! `millrace functions reset`.

use std::time::Duration;

use tokio::time::Instant;

use super::revisions::{Act, may};
use crate::api::types::{FunctionStatus, ResetAnswer, ResetRequest};
use crate::cli::client::{Client, Target};
use crate::cli::error::{Error, Exit};
use crate::cli::format::{self, Cell, Side, Table};
use crate::cli::output::{Console, Style};
use crate::cli::{Context, status};

pub(super) const EXAMPLES: &str = "\
Examples:
  millrace functions reset shop.pay --from earliest --dry-run    say how many events that is
  millrace functions reset shop.pay --from 2026-05-04T15:04:05Z
  millrace functions reset shop.pay --from latest --yes          pass over what waits
  millrace functions reset shop.pay --from 1200 --topic orders --partition 3
  millrace functions reset shop.pay --from earliest --forget     handle again what was handled, effects and all";

/// How long the partitions are waited for.
const WAIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Arguments of `millrace functions reset`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    act: Act,
    /// Where to go on: `earliest`, `latest`, a time, or the offset in one partition
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// Only in this source topic
    #[arg(long)]
    topic: Option<String>,
    /// Only in the partition with this number
    #[arg(long)]
    partition: Option<u32>,
    /// Forget the idempotency keys of these partitions, so that what has completed is handled again
    #[arg(long)]
    forget: bool,
    /// Only say what comes again and what is passed over
    #[arg(long)]
    dry_run: bool,
}

/// Sets the position, after showing what that means.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let name = status::full_name(&args.act.which.function, &client).await?;
    let target = Target::new(["v1", "functions", &name, "reset"]);
    let request = ResetRequest {
        from: args.from.clone(),
        topic: args.topic.clone(),
        partition: args.partition,
        forget: args.forget,
        builds_on: None,
        dry_run: true,
    };
    let plan: ResetAnswer = client.post(&target, &request).await?;
    let console = &mut context.console;
    if args.dry_run && console.is_json() {
        console.document(&plan)?;
        return Ok(Exit::Done);
    }
    show(&plan, console)?;
    if args.dry_run {
        console.note("Nothing was done.")?;
        return Ok(Exit::Done);
    }
    if !may(&args.act, format!("Let {name} go on from {}?", args.from), console).await? {
        return Ok(Exit::Failed);
    }
    // Nothing that was decided since is overlooked.
    let request = ResetRequest { builds_on: Some(plan.number.saturating_sub(1)), dry_run: false, ..request };
    let answer: ResetAnswer = client.post(&target, &request).await?;
    obeyed(&client, &answer, console).await?;
    if console.is_json() {
        console.document(&answer)?;
    } else {
        let partitions = format::counted(answer.partitions.len() as u64, "partition");
        console.line(format_args!("{name}: it goes on from {} in {partitions}", format::one_line(&args.from, 40)))?;
    }
    Ok(Exit::Done)
}

/// What it means, for a person.
fn show(plan: &ResetAnswer, console: &mut Console) -> Result<(), Error> {
    let mut table = Table::new(&[
        ("partition", Side::Left),
        ("from", Side::Right),
        ("to", Side::Right),
        ("again", Side::Right),
        ("passed over", Side::Right),
    ]);
    for one in &plan.partitions {
        table.row(vec![
            format!("{}/{}", format::one_line(&one.topic, 249), one.partition).into(),
            one.from.to_string().into(),
            one.to.to_string().into(),
            Cell::figure(one.again, Style::Notable),
            Cell::figure(one.passed_over, Style::Bad),
        ]);
    }
    if !console.is_json() {
        console.table(&table)?;
    }
    for sentence in sentences(plan) {
        console.note(sentence)?;
    }
    Ok(())
}

/// On Kafka, numbers of events are differences of offsets, and nothing says here where the log is.
fn sentences(plan: &ResetAnswer) -> Vec<String> {
    let ResetAnswer { again, within_window, passed_over, .. } = plan;
    let events = |n: u64| format!("{}{}", if n == 0 { "" } else { "Up to " }, format::counted(n, "event"));
    let window = format::duration(Duration::try_from_secs_f64(plan.window_seconds).unwrap_or_default());
    let mut sentences = Vec::new();
    if *passed_over > 0 {
        sentences.push(format!("{} that wait are passed over: they are not handled.", events(*passed_over)));
    }
    if *again > 0 && plan.forget {
        let how = "their idempotency keys are forgotten, so that their effects are made once more";
        sentences.push(format!("{} are handled again: {how}.", events(*again)));
    } else if *again > 0 {
        let of_window =
            format!("{} of them were published within the idempotency window of {window}", events(*within_window));
        sentences.push(format!(
            "{} come again. {of_window}: those that completed are settled as duplicates, unless their keys were forgotten early \
             because there were more than `max-keys`. Older ones are handled again if their keys are forgotten.",
            events(*again)
        ));
    }
    if *again > 0 {
        sentences.push("Dead letters among them are attempted again, whatever was decided about them.".to_owned());
    }
    if *again == 0 && *passed_over == 0 {
        sentences.push("No event comes again, and none is passed over.".to_owned());
    }
    sentences
}

/// Waits until each partition goes on from there.
async fn obeyed(client: &Client, answer: &ResetAnswer, console: &mut Console) -> Result<(), Error> {
    let until = Instant::now() + WAIT;
    loop {
        let function: FunctionStatus = client.get(&Target::new(["v1", "functions", &answer.function])).await?;
        let obeys = |topic: &str, partition: u32| {
            let mut units = function.units.iter();
            units.any(|unit| unit.topic == topic && unit.partition == partition && unit.reset >= answer.number)
        };
        let all = answer.partitions.len();
        let done = answer.partitions.iter().filter(|one| obeys(&one.topic, one.partition)).count();
        if done == all {
            return Ok(());
        }
        let far = format!("{}: {done} of {all} partitions go on from there", answer.function);
        if Instant::now() >= until {
            let fix = format!(
                "it is decided, and the others follow once they are free; see `millrace functions show {}`",
                answer.function
            );
            return Err(Error::new(Exit::TimedOut, far, fix));
        }
        console.progress(far)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::cli::testing::{Answer, Server};

    fn answer(dry_run: bool, again: u64, passed_over: u64, forget: bool) -> Value {
        json!({
            "function": "shop.pay", "number": 7, "dry_run": dry_run, "forget": forget, "window_seconds": 86400.0,
            "again": again, "within_window": again / 2, "passed_over": passed_over,
            "partitions": [{
                "topic": "orders", "partition": 0, "from": 1500, "to": 300, "again": again, "within_window": again / 2,
                "passed_over": passed_over,
            }],
        })
    }

    #[tokio::test]
    async fn a_dry_run_says_what_comes_again_and_what_the_window_makes_of_it() {
        for (answered, expected) in [
            (
                answer(true, 1200, 0, false),
                "Up to 1,200 events come again. Up to 600 events of them were published within the idempotency window of 1 d 0 h: \
                 those that completed are settled as duplicates, unless their keys were forgotten early because there were more \
                 than `max-keys`. Older ones are handled again if their keys are forgotten.",
            ),
            (
                answer(true, 1200, 0, true),
                "Up to 1,200 events are handled again: their idempotency keys are forgotten, so that their effects are made once more.",
            ),
            (answer(true, 0, 5, false), "Up to 5 events that wait are passed over: they are not handled."),
            (answer(true, 0, 0, false), "No event comes again, and none is passed over."),
        ] {
            let server = Server::answering([Answer::json(&answered)]).await;
            let ran = server.run(&["functions", "reset", "shop.pay", "--from", "earliest", "--dry-run"]).await;
            assert!(ran.err.contains(expected), "{}", ran.err);
            assert!(ran.err.ends_with("Nothing was done.\n"), "{}", ran.err);
            assert!(ran.done().starts_with("PARTITION"), "the plan is shown");
        }
    }
}
