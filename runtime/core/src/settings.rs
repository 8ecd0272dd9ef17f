//! Reading settings from TOML: each key that is asked for is a known one, every other key is a problem, and problems are
//! collected with their place in the text instead of stopping at the first.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::limits::PROBLEMS_MAX;
use crate::units::{PERIOD_HELP, Period, SIZE_HELP, Size};

/// One thing that is wrong with a text, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key it is about, from the top, joined by dots; empty for the text as a whole.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong: a clause.
    pub message: String,
    /// What to do about it: a clause, possibly empty.
    pub help: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "; {}", self.help) }
    }
}

/// A place in a text: a key's path with the byte its value begins at.
#[derive(Clone, Debug)]
pub struct Place {
    path: String,
    at: usize,
}

impl Place {
    /// The key, from the top, joined by dots.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A value together with its place, for checks that come later.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// What is wrong with one text.
#[derive(Debug)]
pub struct Problems<'t> {
    text: &'t str,
    errors: Vec<(usize, Problem)>,
    warnings: Vec<(usize, Problem)>,
}

impl<'t> Problems<'t> {
    /// No problems yet with this text.
    #[must_use]
    pub const fn new(text: &'t str) -> Self {
        Self { text, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Notes something that must be mended. What exceeds [`PROBLEMS_MAX`] is left out.
    pub fn error(&mut self, place: &Place, message: impl Display, help: impl Display) {
        let problem = self.problem(place, &message, &help);
        // A key that is read twice is still wrong once.
        if self.errors.len() < PROBLEMS_MAX && !self.errors.iter().any(|(_, known)| *known == problem) {
            self.errors.push((place.at, problem));
        }
    }

    /// Notes something that is allowed and probably not meant.
    pub fn warning(&mut self, place: &Place, message: impl Display, help: impl Display) {
        if self.warnings.len() < PROBLEMS_MAX {
            let problem = self.problem(place, &message, &help);
            self.warnings.push((place.at, problem));
        }
    }

    /// The line of a place, from 1.
    #[must_use]
    pub fn line_of(&self, place: &Place) -> usize {
        self.text[..self.text.floor_char_boundary(place.at)].matches('\n').count() + 1
    }

    fn problem(&self, place: &Place, message: &dyn Display, help: &dyn Display) -> Problem {
        let before = &self.text[..self.text.floor_char_boundary(place.at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Problem {
            path: place.path.clone(),
            line: self.line_of(place),
            column: before[line_start..].chars().count() + 1,
            message: message.to_string(),
            help: help.to_string(),
        }
    }

    /// Errors, then warnings, each in the order of the text.
    fn into_ordered(self) -> (Vec<Problem>, Vec<Problem>) {
        let ordered = |mut problems: Vec<(usize, Problem)>| {
            problems.sort_by_key(|(at, _)| *at);
            problems.into_iter().map(|(_, problem)| problem).collect()
        };
        (ordered(self.errors), ordered(self.warnings))
    }
}

/// Parses a text and hands its top table to `read`. Where the text is not TOML, only that is reported, because what
/// else seems wrong may follow from it.
///
/// # Errors
/// All problems that `read` noted, or those that the parser found.
pub fn parse<T>(
    text: &str,
    read: impl FnOnce(&mut Section<'_, '_, '_>) -> T,
) -> Result<(T, Vec<Problem>), Vec<Problem>> {
    let mut problems = Problems::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let place = Place { path: String::new(), at: error.span().map_or(text.len(), |span| span.start) };
            problems.error(&place, format_args!("this is not TOML: {}", error.message()), "");
        }
        return Err(problems.into_ordered().0);
    }
    let place = Place { path: String::new(), at: 0 };
    let mut top = Section { problems: &mut problems, place, table: Some(document.get_ref()), known: Vec::new() };
    let value = read(&mut top);
    top.finish();
    let (errors, warnings) = problems.into_ordered();
    if errors.is_empty() { Ok((value, warnings)) } else { Err(errors) }
}

/// One table of a text, or one that is not there and holds nothing.
///
/// Reads values by key: an absent key gives `None`, and so does a wrong one after it was noted, so that reading goes on with
/// defaults and finds what else is wrong.
#[derive(Debug)]
pub struct Section<'a, 'p, 't> {
    problems: &'p mut Problems<'t>,
    place: Place,
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
}

impl<'a, 't> Section<'a, '_, 't> {
    /// Where the table begins.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// Where problems are noted.
    pub const fn problems(&mut self) -> &mut Problems<'t> {
        self.problems
    }

    /// Whether the key is there, whatever its value. The key counts as known from then on.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// The place of a key's value, or of the table where the key is absent.
    pub fn place_of(&mut self, key: &'static str) -> Place {
        let at = self.get(key).map_or(self.place.at, |(at, _)| at);
        Place { path: self.path_of(key), at }
    }

    /// A text, not empty.
    pub fn text(&mut self, key: &'static str) -> Option<Placed<&'a str>> {
        let (value, place) = self.value(key)?;
        self.text_at(value, place, "a text in quotes")
    }

    /// A list of texts, none of them empty.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<Placed<&'a str>>> {
        let (value, place) = self.value(key)?;
        let DeValue::Array(items) = value else {
            self.wrong(&place, value, "a list", format_args!("write {key} = [\"…\"]"));
            return None;
        };
        let mut texts = Vec::new();
        for item in items {
            let place = Place { path: place.path.clone(), at: item.span().start };
            texts.extend(self.text_at(item.get_ref(), place, "a list of texts in quotes"));
        }
        Some(texts)
    }

    fn text_at(&mut self, value: &'a DeValue<'a>, place: Place, expected: &str) -> Option<Placed<&'a str>> {
        match value {
            DeValue::String(text) if text.trim().is_empty() => {
                self.problems.error(&place, "the text is empty", "fill it in, or leave the key out");
                None
            }
            DeValue::String(text) => Some(Placed { value: text, place }),
            other => {
                self.wrong(&place, other, expected, "put it in quotes");
                None
            }
        }
    }

    /// A duration within bounds.
    pub fn duration(&mut self, key: &'static str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        let (value, place) = self.value(key)?;
        let DeValue::String(text) = value else {
            self.without_unit(&place, value, "a duration", PERIOD_HELP);
            return None;
        };
        match text.parse::<Period>() {
            Ok(period) => {
                let bounds = Period(*bounds.start())..=Period(*bounds.end());
                self.bounded(&place, period, &bounds).map(|Period(duration)| duration)
            }
            Err(e) => {
                self.problems.error(&place, e.message, e.help);
                None
            }
        }
    }

    /// A number of bytes within bounds.
    pub fn size(&mut self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let (value, place) = self.value(key)?;
        let DeValue::String(text) = value else {
            self.without_unit(&place, value, "a size", SIZE_HELP);
            return None;
        };
        match text.parse::<Size>() {
            Ok(size) => {
                let bounds = Size(*bounds.start())..=Size(*bounds.end());
                self.bounded(&place, size, &bounds).map(|Size(bytes)| bytes)
            }
            Err(e) => {
                self.problems.error(&place, e.message, e.help);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub fn count<N>(&mut self, key: &'static str, bounds: RangeInclusive<N>) -> Option<N>
    where
        N: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        let (value, place) = self.value(key)?;
        let help = format!("write a whole number from {} to {}", bounds.start(), bounds.end());
        let DeValue::Integer(integer) = value else {
            self.wrong(&place, value, "a whole number", help);
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|n| N::try_from(n).ok()) {
            Some(n) if bounds.contains(&n) => Some(n),
            _ => {
                self.problems.error(&place, format_args!("{integer} is out of bounds"), help);
                None
            }
        }
    }

    /// A share: above 0, at most 1.
    pub fn ratio(&mut self, key: &'static str) -> Option<f64> {
        let (value, place) = self.value(key)?;
        let number = match value {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) => integer.as_str().parse::<f64>().ok(),
            _ => None,
        };
        match number {
            Some(ratio) if ratio > 0.0 && ratio <= 1.0 => Some(ratio),
            _ => {
                self.wrong(&place, value, "a share", "write a number above 0 and at most 1, such as 0.5");
                None
            }
        }
    }

    /// Yes or no.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let (value, place) = self.value(key)?;
        if let DeValue::Boolean(flag) = value {
            return Some(*flag);
        }
        self.wrong(&place, value, "yes or no", "write true or false, without quotes");
        None
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = choices.iter().find(|(word, _)| *word == text.value).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            let help = suggestion(text.value, &words);
            self.problems.error(&text.place, format_args!("`{}` is not one of the choices", shown(text.value)), help);
        }
        found
    }

    /// A table, empty when it is absent. Call [`Section::finish`] on it.
    pub fn section<'s>(&'s mut self, key: &'static str) -> Section<'a, 's, 't> {
        let (mut place, mut table) = (Place { path: self.path_of(key), at: self.place.at }, None);
        if let Some((value, found)) = self.value(key) {
            place = found;
            match value {
                DeValue::Table(t) => table = Some(t),
                other => {
                    self.wrong(&place, other, "a table", format_args!("write {key} = {{ … }} or [{}]", place.path));
                }
            }
        }
        Section { problems: self.problems, place, table, known: Vec::new() }
    }

    /// The names of this table's entries, when it is one whose keys are names that people choose. In alphabetical order.
    #[must_use]
    pub fn names(&self) -> Vec<&'a str> {
        self.table.map(|table| table.keys().map(|key| &**key.get_ref()).collect()).unwrap_or_default()
    }

    /// A table under a name that people choose. Call [`Section::finish`] on it.
    pub fn named<'s>(&'s mut self, name: &str) -> Section<'a, 's, 't> {
        let mut place = Place { path: self.path_of(name), at: self.place.at };
        let mut table = None;
        if let Some((key, value)) = self.table.and_then(|t| t.get_key_value(name)) {
            // A name is a better place than the table under it, which may be spread over the text.
            place.at = key.span().start;
            match value.get_ref() {
                DeValue::Table(t) => table = Some(t),
                other => self.wrong(&place, other, "a table", format_args!("write it as [{}]", place.path)),
            }
        }
        Section { problems: self.problems, place, table, known: Vec::new() }
    }

    /// A text, number or truth value as text, under a name that people choose.
    pub fn named_scalar(&mut self, name: &str) -> Option<Placed<String>> {
        let value = self.table.and_then(|t| t.get(name))?;
        let place = Place { path: self.path_of(name), at: value.span().start };
        let value = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            other => {
                self.wrong(&place, other, "a text, a number, true or false", "put it in quotes");
                return None;
            }
        };
        Some(Placed { value, place })
    }

    /// Takes all values of this table and of those under it, as texts under their full keys, in alphabetical order; the items
    /// of a list are joined by commas. Nothing is left to be read or to be unknown.
    pub fn take_flat(&mut self) -> Vec<Placed<String>> {
        let mut flat = Vec::new();
        for name in self.names() {
            match self.table.and_then(|t| t.get(name)).map(Spanned::get_ref) {
                Some(DeValue::Table(_)) => flat.extend(self.named(name).take_flat()),
                Some(DeValue::Array(items)) => flat.extend(self.joined_list(name, items)),
                _ => flat.extend(self.named_scalar(name)),
            }
        }
        self.table = None;
        flat
    }

    fn joined_list(&mut self, name: &str, items: &'a DeArray<'a>) -> Option<Placed<String>> {
        let at = self.table?.get(name)?.span().start;
        let place = Place { path: self.path_of(name), at };
        let texts = items.iter().map(|item| match item.get_ref() {
            DeValue::String(text) if !text.contains(',') => Some(text.as_ref()),
            _ => None,
        });
        let Some(texts) = texts.collect::<Option<Vec<_>>>() else {
            self.problems.error(&place, "this is not a list of texts", "put each item in quotes, without commas");
            return None;
        };
        Some(Placed { value: texts.join(","), place })
    }

    /// Notes that a key must be there.
    pub fn missing(&mut self, key: &str, help: impl Display) {
        self.problems.error(&self.place, format_args!("`{key}` is missing"), help);
    }

    /// Notes each key that nobody asked for, with the nearest that somebody did.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let place = Place { path: joined(&self.place.path, name), at: key.span().start };
                self.problems.error(&place, "unknown key", suggestion(name, &self.known));
            }
        }
    }

    /// A value, and where it stands. One under a heading begins at the bracket of that; its name there is a better place.
    fn get(&mut self, key: &'static str) -> Option<(usize, &'a DeValue<'a>)> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let (name, value) = self.table?.get_key_value(key)?;
        Some((value.span().start.max(name.span().start), value.get_ref()))
    }

    fn value(&mut self, key: &'static str) -> Option<(&'a DeValue<'a>, Place)> {
        let (at, value) = self.get(key)?;
        Some((value, Place { path: self.path_of(key), at }))
    }

    fn path_of(&self, key: &str) -> String {
        joined(&self.place.path, key)
    }

    fn wrong(&mut self, place: &Place, value: &DeValue<'_>, expected: &str, help: impl Display) {
        self.problems.error(place, format_args!("{} stands where {expected} belongs", described(value)), help);
    }

    fn without_unit(&mut self, place: &Place, value: &DeValue<'_>, expected: &str, help: &str) {
        match value {
            DeValue::Integer(_) | DeValue::Float(_) => {
                self.problems.error(place, format_args!("{} has no unit", described(value)), help);
            }
            _ => self.wrong(place, value, expected, help),
        }
    }

    fn bounded<Q>(&mut self, place: &Place, quantity: Q, bounds: &RangeInclusive<Q>) -> Option<Q>
    where
        Q: Copy + PartialOrd + Display,
    {
        if bounds.contains(&quantity) {
            return Some(quantity);
        }
        let help = format!("write something from {} to {}", bounds.start(), bounds.end());
        self.problems.error(place, format_args!("{quantity} is out of bounds"), help);
        None
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { shown(key) } else { format!("{path}.{}", shown(key)) }
}

fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{}\"", shown(text)),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(float) => format!("the number {float}"),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(datetime) => format!("the date {datetime}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What to write instead of a word: the nearest known one if there is a near one, else all that are known.
#[must_use]
pub fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "nothing can stand here".to_owned(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The known word with the fewest edits (a letter added, left out, replaced, or swapped with its neighbour), if that is at
/// most a third of the word's letters; one edit is always allowed, unless nothing of the word would be left.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    const LONGEST: usize = 64;
    let letters: Vec<char> = word.chars().take(LONGEST + 1).collect();
    if letters.len() > LONGEST {
        return None;
    }
    let allowed = (letters.len() / 3).max(1);
    let distances = known.into_iter().map(|k| (edits(&letters, &k.chars().collect::<Vec<_>>()), k));
    distances.filter(|(edits, _)| *edits <= allowed && *edits < letters.len()).min().map(|(_, k)| k)
}

/// Optimal string alignment distance: <https://en.wikipedia.org/wiki/Damerau%E2%80%93Levenshtein_distance>.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(ca != cb)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *ca == b[j - 1] && a[i - 1] == *cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_if_there_is_a_near_one() {
        let known = ["attempts", "initial", "max", "max-age", "window"];
        for (word, expected) in [
            ("atempts", Some("attempts")),
            ("attmepts", Some("attempts")),
            ("max_age", Some("max-age")),
            ("maxAge", Some("max-age")),
            ("may", Some("max")),
            ("mxa", Some("max")),
            ("windwo", Some("window")),
            ("delay", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }

    #[test]
    fn a_problem_names_line_column_key_and_fix() {
        let text = "[a]\n\"ü\".b = 1\n  c = 5 # five\n";
        let problems = parse(text, |top| {
            let mut a = top.section("a");
            a.duration("c", Duration::ZERO..=Duration::MAX);
            a.finish();
        })
        .unwrap_err();
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "line 2, column 1: a.ü: unknown key; known here: c".to_owned(),
                format!("line 3, column 7: a.c: the number 5 has no unit; {PERIOD_HELP}"),
            ]
        );
    }
}
