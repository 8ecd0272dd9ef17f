//! Redrive, resolve and discard.

use super::ActArgs;
use crate::api::types::{LetterAnswer, LetterName, LetterRequest};
use crate::cli::client::{Client, Target};
use crate::cli::error::{Error, Exit};
use crate::cli::format;
use crate::cli::output::Console;
use crate::cli::status;

/// Letters that are named before something is done to all of them.
const NAMED_MAX: usize = 10;

/// What becomes of letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Redrive,
    Resolve(Option<String>),
    Discard(String),
}

impl Action {
    /// The last part of the API's path, which is also how the command is called.
    const fn verb(&self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Resolve(_) => "resolve",
            Self::Discard(_) => "discard",
        }
    }

    const fn past(&self) -> &'static str {
        match self {
            Self::Redrive => "redriven",
            Self::Resolve(_) => "resolved",
            Self::Discard(_) => "discarded",
        }
    }

    fn note(&self) -> Option<String> {
        match self {
            Self::Redrive => None,
            Self::Resolve(note) => note.clone(),
            Self::Discard(note) => Some(note.clone()),
        }
    }
}

/// Does it, after asking if it concerns several letters and somebody can be asked.
pub(super) async fn run(action: &Action, args: ActArgs, client: &Client, console: &mut Console) -> Result<Exit, Error> {
    let request = request(action, &args, client).await?;
    if request.ids.is_empty() && !args.yes && !args.dry_run && console.can_ask() {
        let concerned = send_all(action, &LetterRequest { dry_run: true, ..request.clone() }, client).await?;
        if !confirmed(action, &concerned.letters, console).await? {
            return Ok(Exit::Failed);
        }
    }
    let answer = send_all(action, &request, client).await?;
    tell(action, &answer, console)?;
    Ok(Exit::Done)
}

async fn request(action: &Action, args: &ActArgs, client: &Client) -> Result<LetterRequest, Error> {
    let selects = args.function.is_some() || args.category.is_some() || args.topic.is_some() || args.reason.is_some();
    if !selects && !args.all {
        return Err(Error::usage(
            format_args!("it is not said which letters to {}", action.verb()),
            "give a function, perhaps with ids, or --category, --topic, --reason or --all",
        ));
    }
    let function = match &args.function {
        Some(name) => Some(status::full_name(name, client).await?),
        None => None,
    };
    Ok(LetterRequest {
        function,
        ids: args.ids.iter().map(ToString::to_string).collect(),
        category: args.category.map(|category| category.to_string()),
        topic: args.topic.as_ref().map(ToString::to_string),
        reason_contains: args.reason.clone(),
        all: args.all,
        dry_run: args.dry_run,
        force: args.force,
        note: action.note(),
        after: None,
    })
}

/// One request treats a bounded number of letters; sends as many as it takes.
async fn send_all(action: &Action, request: &LetterRequest, client: &Client) -> Result<LetterAnswer, Error> {
    let target = Target::new(["v1", "dead-letters", action.verb()]);
    let mut request = request.clone();
    let mut all: LetterAnswer = client.post(&target, &request).await?;
    while let Some(next) = all.next.take() {
        request.after = Some(next);
        let more: LetterAnswer = client.post(&target, &request).await.map_err(|refusal| {
            let done = format!("{} {} before that", format::counted(all.letters.len() as u64, "letter"), action.past());
            match Error::from(refusal) {
                Error::Told { exit, cause, fix } if !request.dry_run => {
                    Error::new(exit, format!("{cause} ({done})"), fix)
                }
                error => error,
            }
        })?;
        all.letters.extend(more.letters);
        all.next = more.next.filter(|next| request.after.as_ref() != Some(next));
    }
    Ok(all)
}

async fn confirmed(action: &Action, letters: &[LetterName], console: &mut Console) -> Result<bool, Error> {
    if letters.is_empty() {
        return Ok(true);
    }
    for letter in letters.iter().take(NAMED_MAX) {
        console.note(format_args!(
            "  {}  {}",
            format::one_line(&letter.function, 127),
            format::one_line(&letter.id, 300)
        ))?;
    }
    if letters.len() > NAMED_MAX {
        console.note(format_args!("  and {} more", format::count((letters.len() - NAMED_MAX) as u64)))?;
    }
    let many = format::counted(letters.len() as u64, "dead letter");
    let question = match action {
        Action::Redrive => {
            format!("Redrive {many}? Their events are handled after those of their key that came later.")
        }
        Action::Resolve(_) => format!("Mark {many} as resolved?"),
        Action::Discard(_) => format!("Discard {many}?"),
    };
    let yes = console.confirm(question).await?;
    if !yes {
        console.note("Nothing was done.")?;
    }
    Ok(yes)
}

fn tell(action: &Action, answer: &LetterAnswer, console: &mut Console) -> Result<(), Error> {
    if console.is_json() {
        return console.document(answer);
    }
    if answer.letters.is_empty() {
        return console.note("No open dead letter fits. `millrace dead-letters list --status all` shows the others.");
    }
    for letter in &answer.letters {
        console.line(format_args!(
            "{}  {}",
            format::one_line(&letter.function, 127),
            format::one_line(&letter.id, 300)
        ))?;
    }
    let many = format::counted(answer.letters.len() as u64, "dead letter");
    if answer.dry_run {
        return console.note(format_args!("{many} would be {}; nothing was done.", action.past()));
    }
    console.note(format_args!("{many} {}.", action.past()))?;
    match action {
        Action::Redrive => console.note(
            "Order is not restored: they are handled after events of their key that came later. Whether they complete: \
             millrace status",
        ),
        Action::Resolve(_) | Action::Discard(_) => Ok(()),
    }
}
