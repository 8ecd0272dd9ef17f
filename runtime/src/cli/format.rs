//! Figures and tables for people.

use std::time::Duration;

use millrace_core::time::Timestamp;
pub(crate) use millrace_core::units::rounded as bytes;

use super::output::Style;

/// A whole number with its thousands apart.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 event`, `2,000 events`.
pub(crate) fn counted(n: u64, thing: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(n))
}

/// A duration in its two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.as_millis());
    match seconds {
        0 if duration.is_zero() => "0 s".to_owned(),
        0 if millis == 0 => format!("{} µs", duration.as_micros()),
        0 => format!("{millis} ms"),
        1..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Seconds as a duration; what is no time at all counts as none.
pub(crate) fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The time of day in UTC, to the millisecond.
pub(crate) fn time_of_day(at: Timestamp) -> String {
    let millis = at.as_millis() % 86_400_000;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A text from outside on one line of a terminal: what could steer the terminal is written out, and what is longer than
/// `max_chars` is cut.
pub(crate) fn one_line(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    let mut chars = text.chars().peekable();
    for _ in 0..max_chars {
        match chars.next() {
            Some(c) if is_steering(c) => line.extend(c.escape_default()),
            Some(c) => line.push(c),
            None => return line,
        }
    }
    if chars.peek().is_some() {
        line.pop();
        line.push('…');
    }
    line
}

/// A text from outside with its line breaks kept.
pub(crate) fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_steering(c) && c != '\n' && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a character does something else than show itself: control characters, and those that turn the direction of text.
fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text as one word of a shell's command line.
pub(crate) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// To which side of its column a cell goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// For words.
    Left,
    /// For figures.
    Right,
}

/// A text in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// In this style.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    /// A figure that is faint when it is zero, and in this style when it is not.
    pub(crate) fn figure(n: u64, style: Style) -> Self {
        Self::styled(count(n), if n == 0 { Style::Faint } else { style })
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

/// Rows under their titles, each column as wide as its widest cell.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The lines, without line breaks; `paint` adds the style to a text.
    pub(crate) fn lines(&self, paint: impl Fn(Style, &str) -> String) -> Vec<String> {
        let titles: Vec<Cell> =
            self.columns.iter().map(|(title, _)| Cell::styled(title.to_uppercase(), Style::Faint)).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| std::iter::once(&titles).chain(&self.rows).map(|row| width(row, at)).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for (at, ((cell, width), (_, side))) in row.iter().zip(&widths).zip(&self.columns).enumerate() {
                let padding = " ".repeat(width.saturating_sub(cell.text.chars().count()));
                let text = paint(cell.style, &cell.text);
                let is_last = at + 1 == self.columns.len();
                match side {
                    Side::Left if is_last => line.push_str(&text),
                    Side::Left => line.extend([&*text, &*padding]),
                    Side::Right => line.extend([&*padding, &*text]),
                }
                line.push_str(if is_last { "" } else { "  " });
            }
            line
        };
        std::iter::once(&titles).chain(&self.rows).map(line).collect()
    }
}

fn width(row: &[Cell], column: usize) -> usize {
    row.get(column).map_or(0, |cell| cell.text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        for (n, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), expected);
        }
        assert_eq!((counted(1, "event"), counted(2000, "event")), ("1 event".into(), "2,000 events".into()));
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        for (millis, expected) in [
            (0, "0 s"),
            (12, "12 ms"),
            (1250, "1.2 s"),
            (59_900, "59 s"),
            (61_000, "1 m 1 s"),
            (7_500_000, "2 h 5 m"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
        assert_eq!(duration(Duration::from_nanos(1500)), "1 µs");
        assert_eq!((seconds(-1.0), seconds(f64::NAN), seconds(0.25)), ("0 s".into(), "0 s".into(), "250 ms".into()));
    }

    #[test]
    fn texts_from_outside_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\u{1b}[31mb\nc\u{202e}", 80), r"a\u{1b}[31mb\nc\u{202e}");
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdef", 5), "abcd…");
        assert_eq!(lines("a\n\tb\r\u{7}"), "a\n\tb\\r\\u{7}");
    }

    #[test]
    fn words_survive_a_shell() {
        for (text, expected) in [("orders/0/12", "orders/0/12"), ("", "''"), ("it's", r"'it'\''s'"), ("a b", "'a b'")] {
            assert_eq!(shell_word(text), expected);
        }
    }

    #[test]
    fn a_table_aligns_words_left_and_figures_right() {
        let mut table = Table::new(&[("function", Side::Left), ("lag", Side::Right), ("state", Side::Left)]);
        table.row(vec!["shop.pay".into(), Cell::figure(0, Style::Bad), "closed".into()]);
        table.row(vec!["shop.é".into(), Cell::figure(12_000, Style::Bad), Cell::styled("open", Style::Bad)]);
        let plain = table.lines(|_, text| text.to_owned());
        assert_eq!(plain, ["FUNCTION     LAG  STATE", "shop.pay       0  closed", "shop.é    12,000  open"]);
        let painted =
            table.lines(|style, text| if style == Style::Bad { format!("<{text}>") } else { text.to_owned() });
        assert_eq!(painted[2], "shop.é    <12,000>  <open>");
    }
}
