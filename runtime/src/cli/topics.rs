//! `millrace topics`.

use super::Context;
use super::client::{Client, Target};
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::Style;
use crate::api::types::{Topic, Topics};

const EXAMPLES: &str = "\
Examples:
  millrace topics
  millrace topics --internal
  millrace topics --json";

/// Arguments of `millrace topics`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Also those that the runtime made for itself, such as dead letters
    #[arg(long)]
    internal: bool,
}

/// Lists topics.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let topics = list(&context.client()?, args.internal).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&topics)?;
    } else if topics.topics.is_empty() {
        console.note("There are no topics. A manifest makes those that it names.")?;
    } else {
        console.table(&table(&topics.topics))?;
    }
    Ok(Exit::Done)
}

/// Asks for all topics.
pub(crate) async fn list(client: &Client, internal: bool) -> Result<Topics, Error> {
    let target = Target::new(["v1", "topics"]).with_some("internal", internal.then_some(true));
    Ok(client.get(&target).await?)
}

fn table(topics: &[Topic]) -> Table {
    let mut table = Table::new(&[
        ("topic", Side::Left),
        ("partitions", Side::Right),
        ("published", Side::Right),
        ("kept", Side::Right),
        ("size", Side::Right),
    ]);
    for topic in topics {
        let sum = |of: fn(&crate::api::types::Partition) -> u64| topic.partitions.iter().map(of).sum::<u64>();
        let style = if topic.internal { Style::Faint } else { Style::Strong };
        table.row(vec![
            Cell::styled(format::one_line(&topic.name, 249), style),
            topic.partitions.len().to_string().into(),
            Cell::figure(sum(|p| p.next), Style::Plain),
            Cell::figure(sum(|p| p.next.saturating_sub(p.earliest)), Style::Plain),
            format::bytes(sum(|p| p.size_bytes)).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use crate::cli::testing::{Answer, Server};

    fn topics() -> Answer {
        Answer::json(&serde_json::json!({"topics": [
            {"name": "orders", "internal": false, "partitions": [
                {"earliest": 10, "next": 1510, "size_bytes": 1_048_576}, {"earliest": 0, "next": 0, "size_bytes": 0}
            ]},
            {"name": "millrace.shop.pay.dead-letter", "internal": true, "partitions": []}
        ]}))
    }

    #[tokio::test]
    async fn topics_are_listed_with_their_sums() {
        let server = Server::answering([topics(), topics()]).await;
        let expected = "\
TOPIC                          PARTITIONS  PUBLISHED   KEPT      SIZE
orders                                  2      1,510  1,500  1.00 MiB
millrace.shop.pay.dead-letter           0          0      0       0 B
";
        assert_eq!(server.run(&["topics", "--internal"]).await.done(), expected);
        let json = server.run(&["topics", "--json"]).await.done();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["topics"][0]["name"], "orders");
        let asked: Vec<String> = server.asked().into_iter().map(|a| a.line).collect();
        assert_eq!(asked, ["GET /v1/topics?internal=true", "GET /v1/topics"]);
    }

    #[tokio::test]
    async fn without_topics_it_is_said_where_they_come_from() {
        let server = Server::answering([Answer::json(&serde_json::json!({"topics": []}))]).await;
        let ran = server.run(&["topics"]).await;
        assert_eq!(ran.out, "");
        assert!(ran.err.contains("There are no topics"));
    }
}
