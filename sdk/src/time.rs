//! Instants.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const SECONDS_PER_DAY: u64 = 86_400;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// An instant in nanoseconds since 1970-01-01T00:00:00Z, up to the year 2554. Its text form is RFC 3339.
///
/// ```
/// use millrace_sdk::Timestamp;
///
/// let time: Timestamp = "2001-01-01T02:47:00+02:00".parse().unwrap();
/// assert_eq!(time.to_string(), "2001-01-01T00:47:00Z");
/// assert_eq!(time.as_nanos(), 978_310_020_000_000_000);
/// assert_eq!(millrace_sdk::serde_json::to_string(&time).unwrap(), "\"2001-01-01T00:47:00Z\"");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Timestamp::EPOCH.to_string(), "1970-01-01T00:00:00Z");
    /// ```
    pub const EPOCH: Self = Self(0);

    /// The instant this many nanoseconds after the epoch.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Timestamp::from_nanos(1_500_000_000).to_string(), "1970-01-01T00:00:01.5Z");
    /// ```
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Timestamp::EPOCH.as_nanos(), 0);
    /// ```
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

/// The runtime's clock, as the standard library reads it. Before 1970 counts as 1970.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_nanos(time.0)
    }
}

/// A text that is not an RFC 3339 instant between 1970 and 2554.
///
/// ```
/// use millrace_sdk::Timestamp;
///
/// let err = "yesterday".parse::<Timestamp>().unwrap_err();
/// assert_eq!(err.to_string(), "`yesterday` is not an RFC 3339 instant such as 2026-01-31T12:00:00Z, from 1970 to 2554");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidTimestamp(String);

impl fmt::Display for InvalidTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not an RFC 3339 instant such as 2026-01-31T12:00:00Z, from 1970 to 2554", self.0)
    }
}

impl std::error::Error for InvalidTimestamp {}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.as_bytes()).ok_or_else(|| InvalidTimestamp(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0 / NANOS_PER_SECOND, self.0 % NANOS_PER_SECOND);
        let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
        let second = seconds % SECONDS_PER_DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if nanos != 0 {
            let digits = format!("{nanos:09}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 instant")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// RFC 3339, section 5.6. A leap second counts as the first second after it.
fn parse(text: &[u8]) -> Option<Timestamp> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let at = |range: std::ops::Range<usize>| digits(date_time.get(range)?);
    let separators = [date_time[4], date_time[7], date_time[10].to_ascii_uppercase(), date_time[13], date_time[16]];
    let (year, month, day) = (at(0..4)?, at(5..7)?, at(8..10)?);
    let (hour, minute, second) = (at(11..13)?, at(14..16)?, at(17..19)?);
    let date_is_real =
        (1970..=2554).contains(&year) && (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    if separators != *b"--T::" || !date_is_real || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let seconds = days_from_civil(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let seconds = seconds.checked_add_signed(-offset_seconds(zone)?)?;
    Some(Timestamp(seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)?))
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u64::from(b - b'0')))
}

/// Nanoseconds, and what follows them. Digits beyond the ninth are dropped.
fn fraction(text: &[u8]) -> Option<(u64, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else { return Some((0, text)) };
    let len = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at(len);
    let mut nine = *b"000000000";
    nine.iter_mut().zip(fraction).for_each(|(to, from)| *to = *from);
    (len > 0).then_some((digits(&nine)?, rest))
}

/// What the zone is ahead of UTC.
fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match zone {
        b"Z" | b"z" => return Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => (sign, digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    let seconds = i64::try_from(hours * 3600 + minutes * 60).ok().filter(|_| hours <= 23 && minutes <= 59)?;
    Some(if *sign == b'-' { -seconds } else { seconds })
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, counted in years that begin in March, so that the leap
/// day comes last (<https://howardhinnant.github.io/date_algorithms.html>).
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = (shifted + 2) % 12 + 1;
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let printed = text.parse::<Timestamp>().ok().map(|time| time.to_string());
        assert_eq!(printed.as_deref(), expected, "{text}");
    }

    #[test]
    fn instants_are_read_and_printed_as_rfc_3339() {
        check("1970-01-01T00:00:00Z", Some("1970-01-01T00:00:00Z"));
        check("2000-02-29t23:59:59.123456789z", Some("2000-02-29T23:59:59.123456789Z"));
        check("2001-01-01T00:00:00.1234567899Z", Some("2001-01-01T00:00:00.123456789Z"));
        check("2001-03-01T00:00:00.50Z", Some("2001-03-01T00:00:00.5Z"));
        check("2001-01-01T00:30:00+01:00", Some("2000-12-31T23:30:00Z"));
        check("2001-12-31T23:30:00-01:00", Some("2002-01-01T00:30:00Z"));
        check("2016-12-31T23:59:60Z", Some("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for text in [
            "",
            "2001-01-01",
            "2001-01-01T00:00:00",
            "2001-01-01 00:00:00Z",
            "2001-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2001-13-01T00:00:00Z",
            "2001-00-01T00:00:00Z",
            "2001-01-00T00:00:00Z",
            "2001-01-01T24:00:00Z",
            "2001-01-01T00:60:00Z",
            "2001-01-01T00:00:61Z",
            "2001-01-01T00:00:00.Z",
            "2001-01-01T00:00:00+24:00",
            "2001-01-01T00:00:00+1:00",
            "2001-01-01T00:00:00ZZ",
            "1970-01-01T00:00:00+00:01",
            "2554-12-31T00:00:00Z",
            "+001-01-01T00:00:00Z",
            "2001-01-01T00:00:0é",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn each_day_is_one_after_the_day_before() {
        let mut expected = (1970, 1, 1);
        for days in 0..213_000 {
            let (year, month, day) = super::civil_from_days(days);
            assert_eq!((year, month, day), expected);
            assert_eq!(super::days_from_civil(year, month, day), days);
            expected = match (month, day == super::days_in(year, month)) {
                (12, true) => (year + 1, 1, 1),
                (_, true) => (year, month + 1, 1),
                (_, false) => (year, month, day + 1),
            };
        }
    }
}
