//! List and show.

use millrace_core::time::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::{ListArgs, ShowArgs};
use crate::api::types::{DeadLetter, DeadLetters, Record};
use crate::broker::LetterStatus;
use crate::cli::client::{Client, Target};
use crate::cli::error::{Error, Exit};
use crate::cli::format::{self, Cell, Side, Table, shell_word};
use crate::cli::output::{Console, Style};
use crate::cli::status;
use crate::cli::tail::bytes_shown;
use crate::clock::Clock;

/// Characters of a reason in a list.
const REASON_CHARS: usize = 100;
/// Letters asked for at once.
const PAGE_LETTERS: u64 = 200;

/// Lists letters.
pub(super) async fn list(args: &ListArgs, client: &Client, console: &mut Console) -> Result<Exit, Error> {
    let found = read(args, client).await?;
    if console.is_json() {
        console.document(&found)?;
    } else if found.letters.is_empty() {
        console.note("There are no such dead letters.")?;
    } else {
        letters(&found.letters, console)?;
        if found.next.is_some() {
            console.note(format_args!("There are more than {}: give a higher --limit, or a filter.", args.limit))?;
        }
    }
    Ok(Exit::Done)
}

/// All letters that fit, up to the limit.
async fn read(args: &ListArgs, client: &Client) -> Result<DeadLetters, Error> {
    let function = match &args.function {
        Some(name) => Some(status::full_name(name, client).await?),
        None => None,
    };
    let mut found = DeadLetters { letters: Vec::new(), next: None };
    loop {
        let left = args.limit.saturating_sub(found.letters.len() as u64);
        let target = Target::new(["v1", "dead-letters"])
            .with_some("function", function.as_deref())
            .with("status", args.status.as_str())
            .with_some("category", args.category)
            .with_some("topic", args.topic.as_ref())
            .with_some("after", found.next.as_deref())
            .with("limit", left.min(PAGE_LETTERS));
        let page: DeadLetters = client.get(&target).await?;
        found.letters.extend(page.letters);
        let is_same = page.next == found.next;
        found.next = page.next;
        if found.next.is_none() || is_same || found.letters.len() as u64 >= args.limit {
            return Ok(found);
        }
    }
}

/// For each letter a line with what failed, why, and what to do about it.
fn letters(letters: &[DeadLetter], console: &mut Console) -> Result<(), Error> {
    let now = Clock::system().now();
    let mut table = Table::new(&[
        ("failed", Side::Left),
        ("function", Side::Left),
        ("id", Side::Left),
        ("category", Side::Left),
        ("tried", Side::Right),
        ("status", Side::Left),
        ("reason", Side::Left),
    ]);
    for letter in letters {
        table.row(vec![
            Cell::styled(ago(&letter.last_failed_at, now), Style::Faint),
            Cell::styled(format::one_line(&letter.function, 127), Style::Strong),
            format::one_line(&letter.id, 300).into(),
            Cell::styled(format::one_line(&letter.category, 20), Style::Notable),
            format::count(letter.attempts.into()).into(),
            status(letter, now),
            format::one_line(&letter.reason, REASON_CHARS).into(),
        ]);
    }
    console.table(&table)?;
    let open: Vec<&DeadLetter> = letters.iter().filter(|letter| letter.status == LetterStatus::Open).collect();
    if !open.is_empty() {
        console.line("")?;
        console.line("To send one to its function once more:")?;
        open.iter().try_for_each(|letter| console.line(format_args!("  {}", redrive_command(letter))))?;
    }
    Ok(())
}

/// The command that redrives a letter.
pub(super) fn redrive_command(letter: &DeadLetter) -> String {
    let force = if letter.status == LetterStatus::Open { "" } else { " --force" };
    let [function, id] = [&letter.function, &letter.id].map(|part| shell_word(&format::one_line(part, 300)));
    format!("millrace dead-letters redrive {function} {id}{force}")
}

fn status(letter: &DeadLetter, now: Timestamp) -> Cell {
    match letter.status {
        LetterStatus::Open => match Timestamp::parse_rfc3339(&letter.deadline) {
            Ok(deadline) if deadline <= now => {
                Cell::styled(format!("open, late by {}", format::duration(now.since(deadline))), Style::Bad)
            }
            Ok(deadline) => format!("open, due in {}", format::duration(deadline.since(now))).into(),
            Err(_) => "open".into(),
        },
        LetterStatus::Redriven => Cell::styled("redriven", Style::Notable),
        LetterStatus::Resolved => Cell::styled("resolved", Style::Good),
        LetterStatus::Discarded => Cell::styled("discarded", Style::Faint),
    }
}

fn ago(instant: &str, now: Timestamp) -> String {
    match Timestamp::parse_rfc3339(instant) {
        Ok(at) => format!("{} ago", format::duration(now.since(at))),
        Err(_) => format::one_line(instant, 40),
    }
}

/// Shows one letter.
pub(super) async fn show(args: &ShowArgs, client: &Client, console: &mut Console) -> Result<Exit, Error> {
    let function = status::full_name(&args.function, client).await?;
    let id = &args.id;
    let (partition, offset) = (id.partition.to_string(), id.offset.to_string());
    let target = Target::new(["v1", "dead-letters", &function, id.topic.as_str(), &partition, &offset]);
    let letter: DeadLetter = client.get(&target).await?;
    if console.is_json() {
        console.document(&letter)?;
    } else {
        one(&letter, console)?;
    }
    Ok(Exit::Done)
}

fn one(letter: &DeadLetter, console: &mut Console) -> Result<(), Error> {
    let now = Clock::system().now();
    let title = format!("{} of {}", format::one_line(&letter.id, 300), format::one_line(&letter.function, 127));
    let title = console.paint(Style::Strong, &title);
    console.line(title)?;
    let status = match letter.status {
        LetterStatus::Open => "open",
        LetterStatus::Redriven => "redriven, and not settled yet",
        LetterStatus::Resolved => "resolved",
        LetterStatus::Discarded => "discarded",
    };
    let at = |instant: &str| format!("{} ({})", format::one_line(instant, 40), ago(instant, now));
    fact("status", &format!("{status}, since {}", at(&letter.status_at)), console)?;
    if let Some(note) = &letter.note {
        fact("note", &format::one_line(note, 1000), console)?;
    }
    fact("category", &letter.category, console)?;
    fact("reason", &format::lines(&letter.reason), console)?;
    fact("attempts", &format::count(letter.attempts.into()), console)?;
    fact("failed first", &at(&letter.first_failed_at), console)?;
    fact("failed last", &at(&letter.last_failed_at), console)?;
    if letter.status == LetterStatus::Open {
        fact("to be seen by", &format::one_line(&letter.deadline, 40), console)?;
    }
    fact("revision", &letter.revision.to_string(), console)?;
    fact("idempotency key", letter.idempotency_key.as_deref().unwrap_or("none could be computed"), console)?;
    fact("redrives", &format::count(letter.redrives.into()), console)?;
    if let Some(record) = &letter.record {
        self::record(record, console)?;
    }
    console.line("")?;
    console.line(format_args!("To send it to its function once more:\n  {}", redrive_command(letter)))
}

/// A name with its value, whose further lines are indented.
fn fact(name: &str, value: &str, console: &mut Console) -> Result<(), Error> {
    const INDENT: &str = "                   ";
    let name = console.paint(Style::Faint, &format!("  {name:<16} "));
    let value = format::lines(value.trim_end()).replace('\n', &format!("\n{INDENT}"));
    console.line(format_args!("{name}{value}"))
}

fn record(record: &Record, console: &mut Console) -> Result<(), Error> {
    console.line("")?;
    let title = console.paint(Style::Strong, "The record as it was first read");
    console.line(title)?;
    fact("published", &record.timestamp, console)?;
    if let Some(key) = &record.key {
        fact("key", key, console)?;
    }
    if let Some(key) = &record.key_base64 {
        fact("key (base 64)", key, console)?;
    }
    if let Some(why) = &record.undecodable {
        fact("undecodable", why, console)?;
    }
    if let Some(bytes) = &record.value_base64 {
        fact("value", &bytes_shown(bytes), console)?;
    }
    let Some(event) = &record.event else { return Ok(()) };
    let Ok(members) = serde_json::from_str::<Members>(event.get()) else {
        return fact("event", event.get(), console);
    };
    members.0.iter().try_for_each(|(name, value)| fact(&format::one_line(name, 64), &shown(name, value), console))
}

/// An event's attributes and data.
#[derive(Deserialize)]
struct Members(serde_json::Map<String, Value>);

fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) if name == "data_base64" => bytes_shown(text),
        Value::String(text) => text.clone(),
        value => serde_json::to_string_pretty(value).unwrap_or_default(),
    }
}
