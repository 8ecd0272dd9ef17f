//! Durations and sizes as people write them: a whole number with its unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration that is written as `200ms`, `5s`, `2m`, `1h` or `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A number of bytes that is written as `512B`, `64KiB`, `1MiB` or `1GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Why a text is not a quantity. Its message names the text and the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidQuantity {
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub help: &'static str,
}

impl fmt::Display for InvalidQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl std::error::Error for InvalidQuantity {}

/// What to write where a duration is expected.
pub const PERIOD_HELP: &str = "write a whole number with one of the units ns, us, ms, s, m, h, d, such as \"200ms\"";
/// What to write where a size is expected.
pub const SIZE_HELP: &str =
    "write a whole number with one of the units B, KiB, MiB, GiB, TiB, kB, MB, GB, TB, such as \"64KiB\"";

const SECOND: u64 = 1_000_000_000;

/// Units of time in nanoseconds, largest first.
const PERIODS: [(&str, u64); 7] = [
    ("d", 24 * 3600 * SECOND),
    ("h", 3600 * SECOND),
    ("m", 60 * SECOND),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1000),
    ("ns", 1),
];

/// Units of size in bytes, in the order in which they are tried for display.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

impl FromStr for Period {
    type Err = InvalidQuantity;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse(s, &PERIODS).map(|nanos| Self(Duration::from_nanos(nanos))).map_err(|m| m.with_help(PERIOD_HELP))
    }
}

impl FromStr for Size {
    type Err = InvalidQuantity;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse(s, &SIZES).map(Self).map_err(|m| m.with_help(SIZE_HELP))
    }
}

impl fmt::Display for Period {
    /// In the largest unit that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX), &PERIODS, "0s")
    }
}

impl fmt::Display for Size {
    /// In the largest unit that gives a whole number, binary units before decimal ones.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, self.0, &SIZES, "0B")
    }
}

/// A number of bytes in three digits.
#[must_use]
pub fn rounded(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = n as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let decimals = if amount < 9.995 { 2 } else { usize::from(amount < 99.95) };
    format!("{amount:.decimals$} {}", UNITS[unit])
}

struct Message(String);

impl Message {
    fn with_help(self, help: &'static str) -> InvalidQuantity {
        InvalidQuantity { message: self.0, help }
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, Message> {
    let shown: String = text.chars().take(40).collect();
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err(Message(format!("`{shown}` does not begin with a whole number")));
    }
    if unit.is_empty() {
        return Err(Message(format!("`{shown}` has no unit")));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(Message(format!("`{shown}` has an unknown unit")));
    };
    let product = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor));
    product.ok_or_else(|| Message(format!("`{shown}` is too large")))
}

fn display(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    match units.iter().find(|(_, factor)| amount != 0 && amount.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", amount / factor),
        None => f.write_str(zero),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_and_sizes_are_read_with_their_units() {
        let period = |text: &str| match text.parse::<Period>() {
            Ok(period) => format!("{} ns, {period}", period.0.as_nanos()),
            Err(e) => e.message,
        };
        let size = |text: &str| match text.parse::<Size>() {
            Ok(size) => format!("{} B, {size}", size.0),
            Err(e) => e.message,
        };
        for (text, expected) in [
            ("200ms", "200000000 ns, 200ms"),
            ("5s", "5000000000 ns, 5s"),
            (" 120 s ", "120000000000 ns, 2m"),
            ("7d", "604800000000000 ns, 7d"),
            ("0h", "0 ns, 0s"),
            ("5", "`5` has no unit"),
            ("s", "`s` does not begin with a whole number"),
            ("-5s", "`-5s` does not begin with a whole number"),
            ("1.5s", "`1.5s` has an unknown unit"),
            ("5S", "`5S` has an unknown unit"),
            ("1h30m", "`1h30m` has an unknown unit"),
            ("99999999999999999999s", "`99999999999999999999s` is too large"),
            ("99999999d", "`99999999d` is too large"),
            ("", "`` does not begin with a whole number"),
        ] {
            assert_eq!(period(text), expected);
        }
        for (text, expected) in [
            ("64KiB", "65536 B, 64KiB"),
            ("1GB", "1000000000 B, 1GB"),
            ("1024 MiB", "1073741824 B, 1GiB"),
            ("10B", "10 B, 10B"),
            ("10", "`10` has no unit"),
            ("10K", "`10K` has an unknown unit"),
            ("20000000TiB", "`20000000TiB` is too large"),
        ] {
            assert_eq!(size(text), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_reads_back_the_same(amount: u64) {
            let period = Period(Duration::from_nanos(amount));
            prop_assert_eq!(period.to_string().parse(), Ok(period));
            prop_assert_eq!(Size(amount).to_string().parse(), Ok(Size(amount)));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _period = text.parse::<Period>();
            let _size = text.parse::<Size>();
        }
    }

    #[test]
    fn bytes_are_rounded_to_three_digits() {
        for (n, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_230, "9.99 KiB"),
            (10_240, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_047_552, "1.00 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(rounded(n), expected);
        }
    }
}
