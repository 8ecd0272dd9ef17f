//! `millrace publish`: one event from flags, or many from a file or standard input.

use std::num::NonZeroU32;

use millrace_core::limits;
use millrace_core::name::Topic;
use millrace_core::units::Period;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::error::{Error, Exit};
use super::{Context, format, until_interrupted};
use crate::clock::Clock;

mod lines;
mod prepare;
mod sending;

pub(crate) use prepare::{Ids, Wrapping};
pub(crate) use sending::{Pace, Published, Publisher, Source};

const EXAMPLES: &str = "\
Examples:
  millrace publish orders --type order.placed --data '{\"order\": 7}' --key ada
  millrace publish orders --type order.placed --data @order.json --extension tenant=north
  millrace publish orders --file events.ndjson
  millrace publish flights --file rows.ndjson --type flight.row --key-field /origin
  generate | millrace publish orders --file - --type order.placed --rate 500

A line of a file is a CloudEvent if it is an object with `specversion`; any other JSON is wrapped into one, with the \
flags' attributes and an id of its own. With --raw no line is looked at: each is published as the bytes it has. Empty lines \
are left out. What the server cannot take at once is sent again with the same ids, so that nothing is handled twice.";

/// Arguments of `millrace publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Topic to publish to
    topic: Topic,
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    many: Many,
    /// How long to go on trying when the server cannot take an event or is gone
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    give_up_after: Period,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The event, and every line that is none yet")]
struct One {
    /// Attribute `type`, such as order.placed
    #[arg(long = "type", value_name = "TYPE")]
    ty: Option<String>,
    /// Attribute `source`
    #[arg(long, value_name = "URI", default_value = "/millrace/publish")]
    source: String,
    /// Attribute `id` [default: a random one]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    id: Option<String>,
    /// Attribute `subject`
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// Data: JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", conflicts_with = "file")]
    data: Option<String>,
    /// Ordering key: events with the same key are handled one after the other
    #[arg(long, value_name = "KEY", conflicts_with = "key_field")]
    key: Option<String>,
    /// An extension attribute; can be repeated
    #[arg(long = "extension", value_name = "NAME=VALUE", value_parser = extension)]
    extensions: Vec<(String, String)>,
    /// Media type of the data [default: application/json; with --raw application/octet-stream]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Many events")]
struct Many {
    /// A file with an event on each line (NDJSON), or - for standard input
    #[arg(long, short, value_name = "FILE|-")]
    file: Option<String>,
    /// Place of the ordering key within a line that is no CloudEvent, as a JSON pointer such as /origin
    #[arg(long, value_name = "POINTER", requires = "file", value_parser = pointer)]
    key_field: Option<String>,
    /// Publish the bytes of each line as they are, whether they are JSON or not
    #[arg(long, requires = "file")]
    raw: bool,
    /// Events per second, at most
    #[arg(long, value_name = "NUMBER", requires = "file")]
    rate: Option<NonZeroU32>,
    /// Events per request
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = batch_size, requires = "file")]
    batch: usize,
}

fn extension(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as tenant=north")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn pointer(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("a JSON pointer begins with a slash, such as /origin") }
}

fn batch_size(text: &str) -> Result<usize, String> {
    let max = limits::BATCH_MAX_EVENTS;
    let size: Option<usize> = text.parse().ok().filter(|size| (1..=max).contains(size));
    size.ok_or_else(|| format!("write a number from 1 to {max}"))
}

impl Args {
    fn wrapping(&self) -> Wrapping {
        Wrapping {
            ty: self.one.ty.clone(),
            source: self.one.source.clone(),
            subject: self.one.subject.clone(),
            key: self.one.key.clone(),
            key_field: self.many.key_field.clone(),
            extensions: self.one.extensions.clone(),
            content_type: self.one.content_type.clone(),
            raw: self.many.raw,
        }
    }
}

/// Publishes, and says where the event went or how many went.
pub(super) async fn run(args: Args, context: &mut Context) -> Result<Exit, Error> {
    let publisher = Publisher::new(context.client()?, args.topic.clone(), args.give_up_after.0);
    match &args.many.file {
        Some(file) => many(&args, file, publisher, context).await,
        None => until_interrupted(one(&args, publisher, context)).await,
    }
}

async fn one(args: &Args, mut publisher: Publisher, context: &mut Context) -> Result<Exit, Error> {
    if args.one.ty.is_none() {
        return Err(Error::usage(
            "an event needs a type",
            "give --type, such as --type order.placed, or --file with events that have one",
        ));
    }
    let data = match &args.one.data {
        Some(text) => Some(data(text).await?),
        None => None,
    };
    let wrapping = args.wrapping();
    let id = args.one.id.clone().unwrap_or_else(|| Ids::new().next());
    let event = wrapping.event(data.as_deref(), id.clone(), Clock::system().now());
    let event = event.map_err(|refused| Error::usage(refused.cause, refused.fix))?;
    let place = publisher.event(&event, &mut context.console).await?;
    let console = &mut context.console;
    let topic = &args.topic;
    if console.is_json() {
        let (partition, offset) = (place.partition, place.offset);
        console.document(&json!({"topic": topic.as_str(), "partition": partition, "offset": offset, "id": id}))?;
    } else {
        let id = format::one_line(&id, 200);
        console
            .line(format_args!("{id} published to {topic}, partition {}, offset {}", place.partition, place.offset))?;
    }
    Ok(Exit::Done)
}

/// The bytes that `--data` stands for.
async fn data(text: &str) -> Result<Vec<u8>, Error> {
    // One byte more than there may be is enough for the refusal.
    let max_bytes = limits::EVENT_MAX_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if text == "-" {
        let read = tokio::io::stdin().take(max_bytes).read_to_end(&mut bytes).await;
        return read.map(|_| bytes).map_err(|e| Error::file("standard input cannot be read", &e));
    }
    match text.strip_prefix('@') {
        Some(path) => {
            let cannot = |e| Error::file(format_args!("{path} cannot be read"), &e);
            let file = tokio::fs::File::open(path).await.map_err(cannot)?;
            file.take(max_bytes).read_to_end(&mut bytes).await.map_err(cannot)?;
            Ok(bytes)
        }
        None => Ok(text.as_bytes().to_vec()),
    }
}

async fn many(args: &Args, file: &str, mut publisher: Publisher, context: &mut Context) -> Result<Exit, Error> {
    let source = Source::open(file).await?;
    let pace = Pace { rate: args.many.rate, batch_events: args.many.batch };
    let wrapping = args.wrapping();
    let work = publisher.lines(source, &wrapping, pace, &mut context.console);
    let result = until_interrupted(work).await;
    let published = publisher.published();
    let console = &mut context.console;
    if result.is_err() {
        // What was published stays published; only the reason comes after it.
        console.note(summary(&published, &args.topic))?;
    } else if console.is_json() {
        console.document(&published)?;
    } else {
        console.line(summary(&published, &args.topic))?;
    }
    result.map(|()| Exit::Done)
}

fn summary(published: &Published, topic: &Topic) -> String {
    let seconds = format::seconds(published.seconds);
    let mut text = format!("{} published to {topic} in {seconds}", format::counted(published.events, "event"));
    if published.per_second >= 1.0 {
        text.push_str(&format!(", {} per second", format::count(whole(published.per_second))));
    }
    if published.without_key > 0 && published.without_key < published.events {
        text.push_str(&format!(", {} without a key", format::count(published.without_key)));
    }
    if published.repeated > 0 {
        text.push_str(&format!(", {} sent again", format::counted(published.repeated, "request")));
    }
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
pub(super) fn whole(n: f64) -> u64 {
    n.round() as u64
}

#[cfg(test)]
mod tests;
