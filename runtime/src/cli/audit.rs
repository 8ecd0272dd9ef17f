//! `millrace audit`.

use std::str::FromStr;

use millrace_core::time::Timestamp;
use millrace_core::units::Period;

use super::Context;
use super::client::{Client, Target};
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::{Console, Style};
use crate::api::types::{Audit, Audited};
use crate::clock::Clock;

/// Records asked for at once.
const PAGE_RECORDS: u64 = 200;
/// Characters of a detail in the table.
const DETAIL_CHARS: usize = 120;

const EXAMPLES: &str = "\
Examples:
  millrace audit
  millrace audit --function 'shop.*' --since 24h
  millrace audit --by ci --action deploy --limit 10
  millrace audit --result refused --since 2027-01-15T08:00:00Z
  millrace audit --topic payments --json

It shows what was changed through the API, the newest first, and what was refused: not who published an event or looked at something.
It needs the role admin. Actions: deploy, canary, promote, rollback, pause, resume, skip, delete, upload, make-topic, redrive, resolve,
discard, create-token and revoke-token; of what was refused also view, publish, and unknown where there is nothing.";

/// Arguments of `millrace audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Only what was done to these functions, with * for any number of characters
    #[arg(long, value_name = "PATTERN")]
    function: Option<String>,
    /// Only what was done to these topics
    #[arg(long, value_name = "PATTERN")]
    topic: Option<String>,
    /// Only what was done with this token: its name, or its id
    #[arg(long, value_name = "TOKEN")]
    by: Option<String>,
    /// Only this action, such as deploy
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only what ended so
    #[arg(long, value_name = "RESULT", value_parser = ["done", "refused", "failed"])]
    result: Option<String>,
    /// Only what is not older: a period such as 24h, or a time such as 2027-01-15T08:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Ago(Period),
    At(Timestamp),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let at = |text: &str| Timestamp::parse_rfc3339(text).map(Self::At);
        text.parse()
            .map(Self::Ago)
            .or_else(|_| at(text))
            .map_err(|_| format!("`{text}` is neither a period such as 24h nor a time such as 2027-01-15T08:00:00Z"))
    }
}

impl Since {
    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(Period(period)) => now - period,
            Self::At(at) => at,
        }
    }
}

pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let found = read(args, &context.client()?).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&found)?;
    } else if found.records.is_empty() {
        console.note("There are no such records.")?;
    } else {
        table(&found.records, console)?;
        if found.next.is_some() {
            console.note(format_args!("There can be more: give a higher --limit, or a filter."))?;
        }
    }
    Ok(Exit::Done)
}

/// All records that fit, up to the limit.
async fn read(args: &Args, client: &Client) -> Result<Audit, Error> {
    let since = args.since.map(|since| since.at(Clock::system().now()).to_rfc3339());
    let mut found = Audit::default();
    loop {
        let left = args.limit.saturating_sub(found.records.len() as u64);
        let target = Target::new(["v1", "audit"])
            .with_some("function", args.function.as_ref())
            .with_some("topic", args.topic.as_ref())
            .with_some("by", args.by.as_ref())
            .with_some("action", args.action.as_ref())
            .with_some("result", args.result.as_ref())
            .with_some("since", since.as_ref())
            .with_some("before", found.next)
            .with("limit", left.min(PAGE_RECORDS));
        let page: Audit = client.get(&target).await?;
        found.records.extend(page.records);
        let is_same = page.next == found.next;
        found.next = page.next;
        if found.next.is_none() || is_same || found.records.len() as u64 >= args.limit {
            return Ok(found);
        }
    }
}

fn table(records: &[Audited], console: &mut Console) -> Result<(), Error> {
    let columns = ["at", "by", "from", "action", "of", "result", "detail"];
    let mut table = Table::new(&columns.map(|column| (column, Side::Left)));
    for record in records {
        let style = match &*record.result {
            "done" => Style::Good,
            "refused" => Style::Bad,
            _ => Style::Notable,
        };
        table.row(vec![
            Cell::styled(format::one_line(&record.at, 40), Style::Faint),
            Cell::styled(format::one_line(&record.by, 100), Style::Strong),
            format::one_line(&record.from, 60).into(),
            format::one_line(&record.action, 40).into(),
            format::one_line(&of(record), 100).into(),
            Cell::styled(format::one_line(&record.result, 40), style),
            format::one_line(&detail(record), DETAIL_CHARS).into(),
        ]);
    }
    console.table(&table)
}

/// What it was done to.
fn of(record: &Audited) -> String {
    let names = record.functions.iter().chain(&record.topics).map(String::as_str);
    names.chain(Some(&*record.about).filter(|about| !about.is_empty())).collect::<Vec<_>>().join(" ")
}

fn detail(record: &Audited) -> String {
    match record.omitted {
        0 => record.detail.clone(),
        omitted => format!("{} ({omitted} refusals before it were left out)", record.detail),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::cli::testing::{Answer, Server};

    #[test]
    fn a_time_is_given_as_such_or_as_a_period() {
        let now = Timestamp::from_millis(7_200_000);
        for (text, expected) in [
            ("1h", Some(3_600_000)),
            ("90d", Some(0)),
            ("1970-01-01T00:00:05Z", Some(5000)),
            ("yesterday", None),
            ("", None),
        ] {
            let since = text.parse::<Since>().ok().map(|since| since.at(now).as_millis());
            assert_eq!(since, expected, "{text}");
        }
        assert_eq!(now - Duration::from_secs(3600), Timestamp::from_millis(3_600_000));
    }

    fn record(offset: u64) -> serde_json::Value {
        json!({
            "offset": offset, "at": "2027-01-15T08:00:00Z", "by": "ci", "token": "070707070707", "from": "127.0.0.1:4711",
            "action": "deploy", "functions": ["shop.pay"], "result": "refused", "detail": "a\nb", "omitted": 3
        })
    }

    #[tokio::test]
    async fn pages_are_read_up_to_the_limit_with_all_filters() {
        let pages = [
            json!({"records": [record(9), record(8)], "next": 8}),
            json!({"records": [], "next": 5}),
            json!({"records": [record(3)], "next": 3}),
        ];
        let server = Server::answering(pages.map(|page| Answer::json(&page))).await;
        let words =
            ["audit", "--limit", "3", "--function", "shop.*", "--topic", "orders", "--by", "ci", "--action", "deploy"];
        let ran = server.run(&[&words[..], &["--result", "refused", "--since", "2027-01-15T08:00:00Z"]].concat()).await;
        assert_eq!(ran.exit, Exit::Done, "{}", ran.err);
        assert_eq!(ran.out.matches("shop.pay").count(), 3, "{}", ran.out);
        assert!(ran.out.contains("(3 refusals before it were left out)") && !ran.out.contains("a\nb"), "{}", ran.out);
        assert!(ran.err.contains("There can be more"), "{}", ran.err);
        let asked: Vec<String> = server.asked().into_iter().map(|asked| asked.line).collect();
        let filters = "function=shop.%2A&topic=orders&by=ci&action=deploy&result=refused&since=2027-01-15T08%3A00%3A00";
        assert!(asked[0].starts_with(&format!("GET /v1/audit?{filters}")), "{}", asked[0]);
        let ends = ["&limit=3", "&before=8&limit=1", "&before=5&limit=1"];
        assert!(asked.iter().zip(ends).all(|(asked, end)| asked.ends_with(end)), "{asked:?}");
    }

    #[tokio::test]
    async fn nothing_is_told_as_such_and_json_as_it_came() {
        let server =
            Server::answering([Answer::json(&json!({"records": []})), Answer::json(&json!({"records": [record(1)]}))])
                .await;
        assert!(server.run(&["audit"]).await.err.contains("There are no such records"));
        let out = server.run(&["audit", "--json"]).await.done();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["records"], json!([record(1)]));
    }
}
