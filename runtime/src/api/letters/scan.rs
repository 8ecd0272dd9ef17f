//! Finding dead letters among those of all functions.

use std::fmt;
use std::str::FromStr;

use millrace_core::letter::LetterHeaders;
use millrace_core::limits;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::outcome::Category;

use super::super::problem::Refusal;
use crate::broker::{Catalog, LetterId, LetterStatus, StoredLetter};

/// Letters that are read at once; each can be as large as a record.
const READ_AT_ONCE: usize = 32;

/// Which letters are asked for. What is absent does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) function: Option<FunctionName>,
    pub(super) status: Option<LetterStatus>,
    pub(super) category: Option<Category>,
    pub(super) topic: Option<Topic>,
    pub(super) reason_contains: Option<String>,
}

impl Filter {
    pub(super) fn matches(&self, letter: &StoredLetter) -> bool {
        self.status.is_none_or(|status| status == letter.status)
            && self.topic.as_ref().is_none_or(|topic| *topic == letter.id.topic)
            && self.matches_failure(letter)
    }

    fn matches_failure(&self, letter: &StoredLetter) -> bool {
        if self.category.is_none() && self.reason_contains.is_none() {
            return true;
        }
        let Ok(headers) = LetterHeaders::read(&letter.record) else { return false };
        self.category.is_none_or(|category| category == headers.category)
            && self.reason_contains.as_ref().is_none_or(|part| headers.reason.contains(part.as_str()))
    }
}

/// The letter after which to go on: `<function>/<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    function: FunctionName,
    id: LetterId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.function, self.id)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts =
            s.split_once('/').and_then(|(f, id)| Some(Self { function: f.parse().ok()?, id: id.parse().ok()? }));
        parts.ok_or_else(|| "give the `next` of the answer before, <function>/<topic>/<partition>/<offset>".to_owned())
    }
}

/// What `take` makes of the letters of these functions, which are in order, after `after`. Ends when `limit` are found or
/// many were looked at, and says then where to go on.
pub(super) async fn scan<B: Catalog, T>(
    broker: &B,
    functions: &[FunctionName],
    after: Option<Cursor>,
    limit: usize,
    take: impl Fn(StoredLetter) -> Option<T>,
) -> Result<(Vec<T>, Option<Cursor>), Refusal> {
    let mut found = Vec::new();
    let mut looked_at = 0;
    let begun = |function: &FunctionName| after.as_ref().filter(|after| after.function == *function);
    let is_done = |function: &&FunctionName| after.as_ref().is_some_and(|after| **function < after.function);
    for function in functions.iter().skip_while(is_done) {
        let mut last = begun(function).map(|after| after.id.clone());
        loop {
            let letters = broker.letters(function, last.as_ref(), READ_AT_ONCE).await?;
            let Some(newest) = letters.last().map(|letter| letter.id.clone()) else { break };
            for letter in letters {
                looked_at += 1;
                let id = letter.id.clone();
                found.extend(take(letter));
                if found.len() >= limit || looked_at >= limits::LETTERS_SCANNED_MAX {
                    return Ok((found, Some(Cursor { function: function.clone(), id })));
                }
            }
            last = Some(newest);
        }
    }
    Ok((found, None))
}
