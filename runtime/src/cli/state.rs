//! `millrace state`.

use super::client::Target;
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::Style;
use super::{Context, status};
use crate::api::types::{State, StateValue};

const EXAMPLES: &str = "\
Examples:
  millrace state shop.pay
  millrace state shop.pay --topic orders --partition 2 --prefix customer-
  millrace state shop.pay --json";

/// Values asked for at once.
const PAGE_VALUES: usize = 1000;
/// Characters of a value that are shown in a table.
const VALUE_CHARS: usize = 100;

/// Arguments of `millrace state`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The function: its full name, or its name within the application where that is unambiguous
    function: String,
    /// Only what it stored for this source topic
    #[arg(long)]
    topic: Option<String>,
    /// Only what it stored for this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Only keys that begin with this
    #[arg(long)]
    prefix: Option<String>,
}

/// Shows what a function's handler has stored.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let client = context.client()?;
    let name = status::full_name(&args.function, &client).await?;
    let console = &mut context.console;
    let mut after: Option<String> = None;
    let mut values: Vec<StateValue> = Vec::new();
    loop {
        let target = Target::new(["v1", "functions", &name, "state"])
            .with_some("topic", args.topic.as_ref())
            .with_some("partition", args.partition)
            .with_some("prefix", args.prefix.as_ref())
            .with_some("after", after)
            .with("limit", PAGE_VALUES);
        let page: State = client.get(&target).await?;
        if console.is_json() {
            // One value a line, so that nobody has to hold all of them.
            page.values.iter().try_for_each(|value| console.json_line(value))?;
        } else {
            values.extend(page.values);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if !console.is_json() && values.is_empty() {
        console.note(format_args!("{} has stored nothing there.", format::one_line(&name, 127)))?;
    } else if !console.is_json() {
        console.table(&table(&values))?;
    }
    Ok(Exit::Done)
}

fn table(values: &[StateValue]) -> Table {
    let mut table = Table::new(&[("unit", Side::Left), ("key", Side::Left), ("value", Side::Left)]);
    for value in values {
        let unit = format!("{}/{}", value.topic, value.partition);
        let shown = match (&value.value, &value.value_base64) {
            (Some(text), _) => text.clone(),
            (None, Some(base64)) => format!("base64 {base64}"),
            (None, None) => String::new(),
        };
        table.row(vec![
            Cell::styled(format::one_line(&unit, 260), Style::Faint),
            Cell::styled(format::one_line(&value.key, VALUE_CHARS), Style::Strong),
            format::one_line(&shown, VALUE_CHARS).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cli::testing::{Answer, Server};

    #[tokio::test]
    async fn values_are_shown_page_after_page() {
        let first = json!({
            "values": [{"topic": "orders", "partition": 0, "key": "c-1", "value": "{\"orders\":4}"}],
            "next": "orders/0/c-1",
        });
        let second = json!({"values": [{"topic": "orders", "partition": 3, "key": "c-2", "value_base64": "/w=="}]});
        let server = Server::answering([Answer::json(&first), Answer::json(&second)]).await;
        let expected = "\
UNIT      KEY  VALUE
orders/0  c-1  {\"orders\":4}
orders/3  c-2  base64 /w==
";
        assert_eq!(server.run(&["state", "shop.pay", "--prefix", "c-"]).await.done(), expected);
        let asked: Vec<String> = server.asked().into_iter().map(|a| a.line).collect();
        let target = "GET /v1/functions/shop.pay/state?prefix=c-";
        assert_eq!(asked, [format!("{target}&limit=1000"), format!("{target}&after=orders%2F0%2Fc-1&limit=1000")]);
    }
}
