//! `millrace tail`: the events of a topic, in the order of their time, and then as they come.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;

use millrace_core::name::Topic;
use millrace_core::time::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, Target};
use super::error::{Error, Exit};
use super::output::{Console, Style};
use super::{Context, format, topics};
use crate::api::types::{Place, Record, Records};

const EXAMPLES: &str = "\
Examples:
  millrace tail orders                         from now on, until Ctrl-C
  millrace tail orders --from earliest --no-follow
  millrace tail orders --partition 2 --from 1500 --limit 10
  millrace tail orders --from earliest --json | jq .event.data";

/// How long the server waits for something new before it answers with nothing.
const WAIT: Duration = Duration::from_secs(20);
/// Records asked for at once.
const PAGE_RECORDS: usize = 500;
/// Characters of a line when it is not written to a terminal.
const DEFAULT_COLUMNS: usize = 200;

/// Arguments of `millrace tail`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Topic to read
    topic: Topic,
    /// Where to begin: earliest, latest, or an offset
    #[arg(long, value_name = "earliest|latest|OFFSET", default_value = "latest")]
    from: From,
    /// Only this partition
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Go on as events come, until Ctrl-C: what happens without --no-follow
    #[arg(long, short, overrides_with = "no_follow")]
    follow: bool,
    /// End when all that is there has been shown
    #[arg(long, short = 'e', overrides_with = "follow")]
    no_follow: bool,
    /// End after this many events
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Earliest,
    Latest,
    Offset(u64),
}

impl FromStr for From {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            offset => offset.parse().map(Self::Offset).map_err(|_| "write earliest, latest, or an offset such as 1500"),
        }
    }
}

/// Shows events until there is nothing left to show, or for ever.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let source = Source { client: context.client()?, topic: args.topic.clone() };
    let backlogs = begin(&source, args).await?;
    let mut shown = Shown { console: &mut context.console, left: args.limit };
    let cursors = show_backlog(&source, backlogs, &mut shown).await?;
    shown.console.flush()?;
    if shown.is_full() || args.no_follow {
        return Ok(Exit::Done);
    }
    follow(&source, cursors, &mut shown).await?;
    Ok(Exit::Done)
}

/// A topic on a server.
struct Source {
    client: Client,
    topic: Topic,
}

impl Source {
    /// Records from these places on, one for each partition to read.
    async fn read(&self, places: &[Place], limit: usize, wait: Duration) -> Result<Records, Error> {
        let target = Target::new(["v1", "topics", self.topic.as_str(), "events"]);
        let target = match places {
            [place] => target.with("partition", place.partition).with("from", place.offset),
            places => {
                let places = places.iter().map(|place| format!("{}:{}", place.partition, place.offset));
                target.with("from", places.collect::<Vec<_>>().join(","))
            }
        };
        let target = target.with("limit", limit).with_some("wait", (!wait.is_zero()).then_some(wait.as_secs()));
        Ok(self.client.get_waiting(&target, wait).await?)
    }
}

/// Where each partition begins, and up to where what is there goes.
async fn begin(source: &Source, args: &Args) -> Result<Vec<Backlog>, Error> {
    let listed = topics::list(&source.client, true).await?;
    let name = args.topic.as_str();
    let Some(topic) = listed.topics.into_iter().find(|t| t.name == name) else {
        return Err(Error::failed(
            format_args!("there is no topic `{name}`"),
            "`millrace topics` lists them; a manifest makes those that it names",
        ));
    };
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    if let Some(wanted) = args.partition.filter(|wanted| *wanted >= partitions) {
        return Err(Error::failed(
            format_args!("topic `{name}` has no partition {wanted}"),
            format_args!("choose one from 0 to {}", partitions.saturating_sub(1)),
        ));
    }
    let all = (0_u32..).zip(&topic.partitions).filter(|(number, _)| args.partition.is_none_or(|p| p == *number));
    let backlogs = all.map(|(partition, at)| {
        let offset = match args.from {
            From::Earliest => at.earliest,
            From::Latest => at.next,
            From::Offset(offset) => offset.clamp(at.earliest, at.next),
        };
        Backlog { next: Place { partition, offset }, end: at.next, records: VecDeque::new() }
    });
    Ok(backlogs.collect())
}

/// What is left of one partition's records that were there at the start.
#[derive(Debug)]
struct Backlog {
    next: Place,
    end: u64,
    records: VecDeque<Record>,
}

impl Backlog {
    fn is_read(&self) -> bool {
        self.next.offset >= self.end
    }

    /// Takes in a page.
    fn take(&mut self, page: Records) {
        let next = page.next.iter().find(|place| place.partition == self.next.partition).map(|place| place.offset);
        let last = page.records.last().map(|record| record.offset + 1);
        // A page without progress is an end, else it would be asked for again and again.
        self.next.offset = next.max(last).filter(|offset| *offset > self.next.offset).unwrap_or(self.end);
        self.records.extend(page.records);
    }
}

/// Shows what was there at the start: within a partition by offset, between partitions by time. Answers with where each
/// partition goes on.
async fn show_backlog(source: &Source, mut backlogs: Vec<Backlog>, shown: &mut Shown<'_>) -> Result<Vec<Place>, Error> {
    while !shown.is_full() {
        for backlog in backlogs.iter_mut().filter(|b| b.records.is_empty() && !b.is_read()) {
            let page = source.read(&[backlog.next], shown.page_records(), Duration::ZERO).await?;
            backlog.take(page);
        }
        // The oldest is known once every partition has a record at hand or none left.
        if backlogs.iter().any(|b| b.records.is_empty() && !b.is_read()) {
            continue;
        }
        let oldest =
            backlogs.iter_mut().filter(|b| !b.records.is_empty()).min_by_key(|b| b.records.front().map(time_of));
        match oldest.and_then(|backlog| backlog.records.pop_front()) {
            Some(record) => shown.show(&record)?,
            None => break,
        }
    }
    Ok(backlogs.into_iter().map(|backlog| backlog.next).collect())
}

/// When a record was published.
fn time_of(record: &Record) -> Timestamp {
    Timestamp::parse_rfc3339(&record.timestamp).unwrap_or_default()
}

/// Shows what comes, from all partitions at the same time.
async fn follow(source: &Source, mut places: Vec<Place>, shown: &mut Shown<'_>) -> Result<(), Error> {
    while !shown.is_full() {
        let mut page = source.read(&places, PAGE_RECORDS, WAIT).await?;
        page.records.sort_by_key(time_of);
        page.records.iter().try_for_each(|record| shown.show(record))?;
        shown.console.flush()?;
        for next in page.next {
            for place in places.iter_mut().filter(|place| place.partition == next.partition) {
                place.offset = place.offset.max(next.offset);
            }
        }
    }
    Ok(())
}

/// What was shown, up to the limit.
struct Shown<'a> {
    console: &'a mut Console,
    left: Option<u64>,
}

impl Shown<'_> {
    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    fn page_records(&self) -> usize {
        let left = self.left.and_then(|left| usize::try_from(left).ok());
        left.unwrap_or(PAGE_RECORDS).min(PAGE_RECORDS)
    }

    fn show(&mut self, record: &Record) -> Result<(), Error> {
        if self.is_full() {
            return Ok(());
        }
        self.left = self.left.map(|left| left - 1);
        if self.console.is_json() {
            return self.console.json_line(record);
        }
        let line = line(record, self.console);
        self.console.line(line)
    }
}

/// What a line shows of an event.
#[derive(Deserialize)]
struct Event<'a> {
    id: Option<String>,
    #[serde(rename = "type")]
    ty: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

/// Time, place, key, type, id and the beginning of the data.
pub(super) fn line(record: &Record, console: &Console) -> String {
    let columns = console.columns().unwrap_or(DEFAULT_COLUMNS).max(40);
    let place = format!("{}/{}", record.partition, record.offset);
    let (ty, id, style, data) = content(record);
    let head = [
        (Style::Faint, format::time_of_day(time_of(record))),
        (Style::Faint, format!("{place:>8}")),
        (Style::Plain, format!("{:<10}", format::one_line(&key(record), 40))),
        (style, format!("{:<16}", format::one_line(&ty, 60))),
        (Style::Faint, format::one_line(&id, 36)),
    ];
    let used: usize = head.iter().map(|(_, text)| text.chars().count() + 2).sum();
    let mut line = String::new();
    for (style, text) in &head {
        line.push_str(&console.paint(*style, text));
        line.push_str("  ");
    }
    line.push_str(&format::one_line(&data, columns.saturating_sub(used).max(20)));
    line
}

fn key(record: &Record) -> String {
    match (&record.key, &record.key_base64) {
        (Some(key), _) => key.clone(),
        (None, Some(base64)) => format!("base64:{base64}"),
        (None, None) => "-".to_owned(),
    }
}

/// Type, id and data, and the style of the type.
fn content(record: &Record) -> (String, String, Style, String) {
    let event = record.event.as_deref().map(|event| serde_json::from_str::<Event<'_>>(event.get()));
    if let Some(Ok(event)) = event {
        let data = match (event.data, event.data_base64) {
            (Some(data), _) => data.get().to_owned(),
            (None, Some(base64)) => bytes_shown(&base64),
            (None, None) => String::new(),
        };
        return (event.ty.unwrap_or_default(), event.id.unwrap_or_default(), Style::Strong, data);
    }
    let why = record.undecodable.clone().unwrap_or_else(|| "not an event".to_owned());
    let bytes = record.value_base64.as_deref().map(bytes_shown).unwrap_or_default();
    ("undecodable".to_owned(), why, Style::Bad, bytes)
}

/// Bytes as the text that they are, or else as they came.
pub(super) fn bytes_shown(base64: &str) -> String {
    let bytes = millrace_core::codec::base64::decode(base64.as_bytes());
    match bytes.map(String::from_utf8) {
        Some(Ok(text)) => text,
        _ => format!("base64:{base64}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::testing::{Answer, Asked, Server, parsed};

    fn record(partition: u32, offset: u64, second: u64) -> Value {
        json!({
            "partition": partition, "offset": offset, "timestamp": format!("2026-11-20T10:00:{second:02}.5Z"), "key": "ada",
            "event": {"specversion": "1.0", "id": format!("e{offset}"), "source": "/s", "type": "t", "data": {"n": offset}}
        })
    }

    /// Two partitions, with three and one record; two more come while they are followed.
    fn topic(asked: &Asked) -> Answer {
        let records =
            [record(0, 5, 1), record(0, 6, 3), record(0, 7, 4), record(1, 0, 2), record(0, 8, 9), record(1, 1, 8)];
        if asked.line == "GET /v1/topics?internal=true" {
            let partitions =
                json!([{"earliest": 5, "next": 8, "size_bytes": 9}, {"earliest": 0, "next": 1, "size_bytes": 9}]);
            return Answer::json(&json!({"topics": [{"name": "orders", "internal": false, "partitions": partitions}]}));
        }
        let parameter = |name: &str| asked.line.split(['?', '&']).find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        let from = parameter("from").unwrap().replace("%3A", ":").replace("%2C", ",");
        let places: Vec<(u64, u64)> = match parameter("partition") {
            Some(partition) => vec![(partition.parse().unwrap(), from.parse().unwrap())],
            None => from
                .split(',')
                .map(|p| p.split_once(':').unwrap())
                .map(|(p, o)| (p.parse().unwrap(), o.parse().unwrap()))
                .collect(),
        };
        let is_waiting = parameter("wait").is_some();
        let there = &records[..if is_waiting { 6 } else { 4 }];
        let (mut found, mut next) = (Vec::new(), Vec::new());
        for (partition, from) in places {
            let is_wanted = |r: &&Value| r["partition"] == partition && r["offset"].as_u64().unwrap() >= from;
            // Small pages, so that there are several.
            let page: Vec<&Value> = there.iter().filter(is_wanted).take(2).collect();
            next.push(json!({"partition": partition, "offset": from + u64::try_from(page.len()).unwrap()}));
            found.extend(page);
        }
        if found.is_empty() && is_waiting {
            return Answer::never();
        }
        Answer::json(&json!({"records": found, "next": next}))
    }

    fn places(out: &str) -> Vec<String> {
        let place = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap();
            format!("{}/{}", value["partition"], value["offset"])
        };
        out.lines().map(place).collect()
    }

    async fn check(words: &[&str], expected: &[&str]) {
        let server = Server::scripted(topic).await;
        let mut line = vec!["tail", "orders", "--json"];
        line.extend_from_slice(words);
        assert_eq!(places(&server.run(&line).await.done()), expected, "{words:?}");
    }

    #[tokio::test]
    async fn records_come_in_the_order_of_their_time() {
        check(&["--from", "earliest", "--no-follow"], &["0/5", "1/0", "0/6", "0/7"]).await;
        check(&["--from", "earliest", "--limit", "2"], &["0/5", "1/0"]).await;
        check(&["--from", "6", "--partition", "0", "-e"], &["0/6", "0/7"]).await;
        check(&["--from", "99", "-e"], &[]).await;
        check(&["--no-follow"], &[]).await;
    }

    #[tokio::test]
    async fn what_comes_later_is_followed() {
        let server = Server::scripted(topic).await;
        let out = server.run(&["tail", "orders", "--json", "-n", "2"]).await.done();
        assert_eq!(places(&out), ["1/1", "0/8"]);
        let server = Server::scripted(topic).await;
        let out = server.run(&["tail", "orders", "--json", "-n", "6", "--from", "earliest"]).await.done();
        assert_eq!(places(&out), ["0/5", "1/0", "0/6", "0/7", "1/1", "0/8"]);
    }

    #[tokio::test]
    async fn lines_for_people_show_what_an_event_is() {
        let server = Server::scripted(topic).await;
        let out = server.run(&["tail", "orders", "-e", "--from", "7", "--partition", "0"]).await.done();
        assert_eq!(out, "10:00:04.500       0/7  ada         t                 e7  {\"n\":7}\n");
    }

    #[test]
    fn records_that_are_no_events_are_shown_with_the_reason() {
        let (console, _) = Console::captured(false);
        for (rest, expected) in [
            (
                json!({"undecodable": "attribute `id` is missing", "value_base64": "/wE="}),
                "undecodable       attribute `id` is missing  base64:/wE=",
            ),
            (json!({"event": {"id": "1", "type": "t", "data_base64": "YQpi"}}), "t                 1  a\\nb"),
            (json!({"event": {"id": "1", "type": "t"}, "key_base64": "/w=="}), "t                 1  "),
            (json!({"event": 5}), "undecodable       not an event  "),
        ] {
            let mut record = json!({"partition": 1, "offset": 2, "timestamp": "2026-11-20T10:00:04Z"});
            record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            let key = if record["key_base64"].is_null() { "-         " } else { "base64:/w==" };
            let record: Record = serde_json::from_value(record).unwrap();
            assert_eq!(line(&record, &console), format!("10:00:04.000       1/2  {key}  {expected}"));
        }
    }

    #[tokio::test]
    async fn topics_and_partitions_that_do_not_exist_are_named() {
        let server = Server::scripted(topic).await;
        let err = server.run(&["tail", "order"]).await.refused(Exit::Failed);
        assert!(err.starts_with("error: there is no topic `order`\n  fix: `millrace topics` lists them"), "{err}");
        let err = server.run(&["tail", "orders", "--partition", "2"]).await.refused(Exit::Failed);
        assert_eq!(err, "error: topic `orders` has no partition 2\n  fix: choose one from 0 to 1\n");
    }

    #[test]
    fn where_to_begin_is_a_word_or_an_offset() {
        for (text, is_good) in [("earliest", true), ("7", true), ("newest", false), ("-1", false)] {
            assert_eq!(parsed(&["tail", "orders", "--from", text]).is_ok(), is_good, "{text}");
        }
        assert!(parsed(&["tail", "a/b"]).unwrap_err().to_string().contains("cannot name a topic"));
    }
}
