//! Instants as RFC 3339 text (<https://www.rfc-editor.org/rfc/rfc3339>).

use std::fmt;

use super::Timestamp;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// `2554-07-21T23:34:33.709551615Z`
const MAX_BYTES: usize = 30;

/// A text that is no instant; the message says what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidTime {
    /// It does not follow RFC 3339.
    Format,
    /// It lies before 1970 or after [`Timestamp::MAX`].
    Range,
}

impl fmt::Display for InvalidTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "must follow RFC 3339, such as 2026-11-20T08:15:00Z",
            Self::Range => "must lie between 1970-01-01T00:00:00Z and 2554-07-21T23:34:33Z",
        })
    }
}

impl std::error::Error for InvalidTime {}

impl Timestamp {
    /// Reads an RFC 3339 text with any offset from UTC. Digits after the ninth of a fraction are dropped, and a leap
    /// second is the second that follows it.
    ///
    /// # Errors
    /// If the text does not follow RFC 3339, or the instant lies before 1970 or after [`Timestamp::MAX`].
    pub fn parse_rfc3339(text: &str) -> Result<Self, InvalidTime> {
        let (seconds, rest) = parse_date_and_time(text.as_bytes()).ok_or(InvalidTime::Format)?;
        let (nanos, rest) = parse_fraction(rest).ok_or(InvalidTime::Format)?;
        let offset = parse_offset(rest).ok_or(InvalidTime::Format)?;
        let (seconds, is_leap) = seconds;
        let seconds = seconds - offset;
        // A leap second ends a day of UTC, and nothing else.
        if is_leap && seconds.rem_euclid(SECONDS_PER_DAY) != 0 {
            return Err(InvalidTime::Format);
        }
        let whole = u64::try_from(seconds).map_err(|_| InvalidTime::Range)?.checked_mul(NANOS_PER_SECOND);
        whole.and_then(|n| n.checked_add(nanos)).map(Self::from_nanos).ok_or(InvalidTime::Range)
    }

    /// The instant as RFC 3339 text in UTC, with 0, 3, 6 or 9 digits of a fraction: as few as keep it exact.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        self.rfc3339().as_str().to_owned()
    }

    /// The same as [`Timestamp::to_rfc3339`], without an allocation.
    pub(crate) fn rfc3339(self) -> Rfc3339 {
        let seconds = self.as_nanos() / NANOS_PER_SECOND;
        let (year, month, day) = date_of(seconds / SECONDS_PER_DAY.unsigned_abs());
        let second_of_day = seconds % SECONDS_PER_DAY.unsigned_abs();
        let mut text = Rfc3339 { bytes: *b"0000-00-00T00:00:00.000000000Z", len: 20 };
        text.put(0, 4, year);
        text.put(5, 2, month);
        text.put(8, 2, day);
        text.put(11, 2, second_of_day / 3600);
        text.put(14, 2, second_of_day / 60 % 60);
        text.put(17, 2, second_of_day % 60);
        text.put_fraction(self.as_nanos() % NANOS_PER_SECOND);
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rfc3339().as_str())
    }
}

/// An instant's text, kept on the stack.
pub(crate) struct Rfc3339 {
    bytes: [u8; MAX_BYTES],
    len: usize,
}

impl Rfc3339 {
    pub(crate) fn as_str(&self) -> &str {
        // Only ASCII was ever written.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    fn put(&mut self, at: usize, digits: usize, mut number: u64) {
        for byte in self.bytes[at..at + digits].iter_mut().rev() {
            *byte = b"0123456789"[usize::try_from(number % 10).unwrap_or_default()];
            number /= 10;
        }
    }

    fn put_fraction(&mut self, nanos: u64) {
        let (digits, number) = match nanos {
            0 => (0, 0),
            n if n % 1_000_000 == 0 => (3, n / 1_000_000),
            n if n % 1_000 == 0 => (6, n / 1_000),
            n => (9, n),
        };
        self.len = if digits == 0 { 20 } else { 21 + digits };
        if digits > 0 {
            self.put(20, digits, number);
        }
        self.bytes[19] = b'.';
        self.bytes[self.len - 1] = b'Z';
    }
}

/// Seconds since the epoch as if at UTC, whether the second is the 61st, and what follows.
fn parse_date_and_time(text: &[u8]) -> Option<((i64, bool), &[u8])> {
    let (head, rest) = text.split_at_checked(19)?;
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, byte)| head[at] != byte) || !matches!(head[10], b'T' | b't') {
        return None;
    }
    let (year, month, day) = (number(&head[0..4])?, number(&head[5..7])?, number(&head[8..10])?);
    let (hour, minute, second) = (number(&head[11..13])?, number(&head[14..16])?, number(&head[17..19])?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    Some(((seconds, second == 60), rest))
}

/// Nanoseconds and what follows.
fn parse_fraction(text: &[u8]) -> Option<(u64, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else { return Some((0, text)) };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let padded = rest[..digits].iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = padded.take(9).fold(0, |nanos, digit| nanos * 10 + u64::from(digit - b'0'));
    Some((nanos, &rest[digits..]))
}

/// Seconds east of UTC.
fn parse_offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [b'Z' | b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest {
        [_, _, b':', _, _] => (number(&rest[..2])?, number(&rest[3..])?),
        _ => return None,
    };
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn number(digits: &[u8]) -> Option<i64> {
    let add = |n: i64, b: &u8| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0'));
    digits.iter().try_fold(0, add)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: years are taken to begin in March, so that the leap day
/// comes last and months before it have lengths given by a line of slope 153/5
/// (<https://howardhinnant.github.io/date_algorithms.html>).
const fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a day after the epoch: the inverse of [`days_since_epoch`].
const fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<u64, InvalidTime>) {
        assert_eq!(Timestamp::parse_rfc3339(text).map(Timestamp::as_nanos), expected, "{text}");
    }

    #[test]
    fn texts_are_read() {
        check("1970-01-01T00:00:00Z", Ok(0));
        check("1970-01-01t00:00:00z", Ok(0));
        check("2018-04-05T17:31:00Z", Ok(1_522_949_460_000_000_000));
        check("2018-04-05T17:31:00.5Z", Ok(1_522_949_460_500_000_000));
        check("2018-04-05T19:31:00+02:00", Ok(1_522_949_460_000_000_000));
        check("2018-04-05T12:01:00-05:30", Ok(1_522_949_460_000_000_000));
        check("1970-01-01T00:00:00.0000000019Z", Ok(1));
        check("2000-02-29T00:00:00Z", Ok(951_782_400_000_000_000));
        check("2016-12-31T23:59:60Z", Ok(1_483_228_800_000_000_000));
        check("2017-01-01T01:59:60+02:00", Ok(1_483_228_800_000_000_000));
        check("1969-12-31T23:00:00-01:00", Ok(0));
        check("2554-07-21T23:34:33.709551615Z", Ok(u64::MAX));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "yesterday",
            "2018-04-05",
            "2018-04-05T17:31:00",
            "2018-04-05 17:31:00Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31:00Zz",
            "2018-04-05T17:31:00+0200",
            "2018-04-05T17:31:00+24:00",
            "2018-13-05T17:31:00Z",
            "2018-00-05T17:31:00Z",
            "2018-04-31T17:31:00Z",
            "2018-04-00T17:31:00Z",
            "2100-02-29T00:00:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T17:60:00Z",
            "2018-04-05T17:31:61Z",
            "2018-04-05T17:31:60Z",
            "+018-04-05T17:31:00Z",
            "2018-04-05T17:31:0é",
        ] {
            check(text, Err(InvalidTime::Format));
        }
        check("1969-12-31T23:59:59Z", Err(InvalidTime::Range));
        check("1970-01-01T00:00:00+00:01", Err(InvalidTime::Range));
        check("2554-07-21T23:34:33.709551616Z", Err(InvalidTime::Range));
        check("9999-12-31T23:59:59Z", Err(InvalidTime::Range));
        check("0000-01-01T00:00:00Z", Err(InvalidTime::Range));
    }

    #[test]
    fn a_fraction_has_as_few_digits_as_keep_it_exact() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (100_000_000, "1970-01-01T00:00:00.100Z"),
            (1_000, "1970-01-01T00:00:00.000001Z"),
            (1, "1970-01-01T00:00:00.000000001Z"),
            (1_522_949_460_500_000_000, "2018-04-05T17:31:00.500Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(Timestamp::from_nanos(nanos).to_rfc3339(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in any::<u64>(), unit in prop::sample::select(vec![1, 1_000, 1_000_000, 1_000_000_000])) {
            let at = Timestamp::from_nanos(nanos / unit * unit);
            prop_assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Ok(at));
        }

        #[test]
        fn what_is_read_is_written_as_the_same_instant(text in "[0-9TtZz:.+-]{0,40}|\\PC{0,40}") {
            if let Ok(at) = Timestamp::parse_rfc3339(&text) {
                prop_assert_eq!(Timestamp::parse_rfc3339(&at.to_rfc3339()), Ok(at));
            }
        }
    }
}
