//! What happens to events, as it happens: a line for each while they are few, and sums by the second when they are many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use millrace_core::name::FunctionName;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cli::format;
use crate::cli::output::{Painter, Style};
use crate::worker::feed::{Entry, Reader, Room, Told, What};

mod json;

/// Events with a line of their own in one second, of all functions together. In the second after one with more, all are
/// summed up, so that lines and sums do not take turns.
const EVENTS_MAX: u32 = 30;
/// The same of what handlers log.
const LOGS_MAX: u32 = 30;
/// Failed attempts and dead letters with a line of their own in one second, however many there are.
const TROUBLES_MAX: u32 = 15;
/// What may be told in full in a second after a calm one.
pub(super) const FULL_ROOM: Room = Room { settled: EVENTS_MAX, trouble: TROUBLES_MAX, logged: LOGS_MAX };
/// How often lines are shown within a second.
const TICK: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// How much of a reason or message is shown, in characters.
const TEXT_MAX_CHARS: usize = 200;

/// Shows what a reader is told until `stop` ends, and what it was told by then. A terminal that does not take the lines
/// holds up nobody else.
pub(super) async fn show(reader: Reader, form: Form, mut stop: oneshot::Receiver<()>) -> io::Result<()> {
    // Not through `io::stdout`, whose lock others would wait for.
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut sums = Sums::default();
    let mut ended = false;
    while !ended {
        if sums.is_calm() {
            tokio::select! {
                () = reader.news() => {}
                _ = &mut stop => ended = true,
            }
        }
        let second = Instant::now() + SECOND;
        loop {
            write(&out, sums.take_in(reader.take(), form)).await?;
            let now = Instant::now();
            if ended || now >= second {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep_until(second.min(now + TICK)) => {}
                _ = &mut stop => ended = true,
            }
        }
        write(&out, sums.end_second(form)).await?;
        reader.allow(sums.room());
    }
    Ok(())
}

/// Writes on a thread of its own, because a terminal can be slow or halted.
async fn write(out: &File, lines: Vec<String>) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let (mut out, text) = (out.try_clone()?, lines.join("\n") + "\n");
    tokio::task::spawn_blocking(move || out.write_all(text.as_bytes())).await.map_err(io::Error::other)?
}

/// What has no line of its own, by function, since the second began.
#[derive(Debug, Default)]
struct Sums {
    functions: BTreeMap<FunctionName, Told>,
    events: u64,
    logs: u64,
    /// How many there were in the second before.
    before: (u64, u64),
}

impl Sums {
    /// How much may be told in full in this second.
    fn room(&self) -> Room {
        let room = |seen: u64, full: u32| if seen > u64::from(full) { 0 } else { full };
        let (events, logs) = self.before;
        let Room { settled, trouble, logged } = FULL_ROOM;
        Room { settled: room(events, settled), trouble, logged: room(logs, logged) }
    }

    /// Whether the next event gets a line.
    fn is_calm(&self) -> bool {
        self.room() == FULL_ROOM
    }

    /// Takes in what was told, and answers with the lines of what was told in full, by time.
    fn take_in(&mut self, told: BTreeMap<FunctionName, Told>, form: Form) -> Vec<String> {
        let mut lines = Vec::new();
        for (function, mut told) in told {
            for entry in std::mem::take(&mut told.entries) {
                match entry.what {
                    What::Completed { .. } | What::Filtered | What::Duplicate => self.events += 1,
                    What::Logged { .. } => self.logs += 1,
                    What::Failed { .. } | What::DeadLettered { .. } => {}
                }
                lines.push((entry.at, form.entry(&function, &entry)));
            }
            self.events += told.settled.sum();
            self.logs += told.log_lines;
            self.functions.entry(function).or_default().merge(told);
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Ends a second, and answers with a line for each function of which more happened than was told in full.
    fn end_second(&mut self, form: Form) -> Vec<String> {
        self.before = (std::mem::take(&mut self.events), std::mem::take(&mut self.logs));
        let functions = std::mem::take(&mut self.functions);
        functions.iter().filter_map(|(function, told)| form.sum(function, told)).collect()
    }
}

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// For people.
    Lines(Painter),
    /// For programs: a JSON object in each line, with its `kind`.
    Json,
}

impl Form {
    fn entry(self, function: &FunctionName, entry: &Entry) -> String {
        match self {
            Self::Lines(painter) => line(function, entry, &painter),
            Self::Json => json::entry(function, entry).to_string(),
        }
    }

    fn sum(self, function: &FunctionName, told: &Told) -> Option<String> {
        match self {
            Self::Lines(painter) => sum(function, told, &painter),
            Self::Json => json::sum(function, told).map(|value| value.to_string()),
        }
    }
}

/// Time, function, place, key, and what happened.
fn line(function: &FunctionName, entry: &Entry, painter: &Painter) -> String {
    let Entry { at, place, key, what } = entry;
    let key = if key.is_empty() { "-" } else { key };
    let (time, place) = (format::time_of_day(*at), format!("{place:<18}"));
    let (time, place) = (painter.paint(Style::Faint, &time), painter.paint(Style::Faint, &place));
    let (style, what) = describe(what);
    let (key, what) = (format::one_line(key, 40), painter.paint(style, &what));
    format!("{time}  {:<24}  {place}  {key:<10}  {what}", function.to_string())
}

fn describe(what: &What) -> (Style, String) {
    let shown = |text: &str| format::one_line(text, TEXT_MAX_CHARS);
    match what {
        What::Completed { took } => (Style::Good, format!("completed  {}", millis(*took))),
        What::Filtered => (Style::Faint, "filtered".to_owned()),
        What::Duplicate => (Style::Notable, "duplicate".to_owned()),
        What::Failed { attempt, category, reason } => {
            (Style::Notable, format!("attempt {attempt} failed, {category}: {}", shown(reason)))
        }
        What::DeadLettered { attempts, category, reason } => {
            let after = match attempts {
                0 => String::new(),
                1 => " after 1 attempt".to_owned(),
                attempts => format!(" after {attempts} attempts"),
            };
            (Style::Bad, format!("dead-lettered{after}, {category}: {}", shown(reason)))
        }
        What::Logged { level, context, message } => {
            (Style::Plain, format!("{:>5} {}: {}", level.to_string(), shown(context), shown(message)))
        }
    }
}

/// What happened and has no line of its own; none if nothing did.
fn sum(function: &FunctionName, told: &Told, painter: &Painter) -> Option<String> {
    let Told { settled, failed_attempts, log_lines, attempts, took, .. } = told;
    let counts = [
        (settled.completed, "completed"),
        (settled.filtered, "filtered"),
        (settled.duplicate, "duplicate"),
        (settled.dead_lettered, "dead-lettered"),
        (*failed_attempts, "failed attempts"),
        (*log_lines, "log lines"),
    ];
    let parts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", format::count(*n))).collect();
    if parts.is_empty() {
        return None;
    }
    let each = u32::try_from(*attempts).ok().and_then(|attempts| took.checked_div(attempts));
    let each = each.map_or_else(String::new, |each| format!("; {} an attempt", millis(each)));
    let title = painter.paint(Style::Faint, &format!("{:<12}", "summed up"));
    Some(format!("{title}  {:<24}  {}{each}", function.to_string(), parts.join(", ")))
}

fn millis(took: Duration) -> String {
    format!("{:.2} ms", took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests;
