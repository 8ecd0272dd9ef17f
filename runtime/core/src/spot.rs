//! A place in a topic's partition, as a person names it.

use std::fmt;
use std::str::FromStr;

use crate::time::Timestamp;

/// Where to go on in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// At the oldest record there is.
    Earliest,
    /// At the next record published.
    Latest,
    /// At the first record that was published at this time or later.
    Time(Timestamp),
    /// At this offset.
    Offset(u64),
}

/// Why a text names no place. Says how to name one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSpot(String);

impl fmt::Display for InvalidSpot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` names no place: write `earliest`, `latest`, a time such as 2026-05-04T15:04:05Z, or an offset",
            self.0
        )
    }
}

impl std::error::Error for InvalidSpot {}

impl FromStr for Spot {
    type Err = InvalidSpot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        // A sign or a space would be read as a number, too.
        if text.bytes().all(|b| b.is_ascii_digit())
            && let Ok(offset) = text.parse()
        {
            return Ok(Self::Offset(offset));
        }
        let shown: String = text.chars().take(80).collect();
        Timestamp::parse_rfc3339(text).map(Self::Time).map_err(|_| InvalidSpot(shown))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_named_in_four_ways() {
        for (text, expected) in [
            ("earliest", Some(Spot::Earliest)),
            ("latest", Some(Spot::Latest)),
            ("0", Some(Spot::Offset(0))),
            ("18446744073709551615", Some(Spot::Offset(u64::MAX))),
            ("18446744073709551616", None),
            ("1970-01-01T00:00:01Z", Some(Spot::Time(Timestamp::from_millis(1000)))),
            ("1970-01-01T01:00:01+01:00", Some(Spot::Time(Timestamp::from_millis(1000)))),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("Latest", None),
            ("yesterday", None),
        ] {
            assert_eq!(text.parse::<Spot>().ok(), expected, "{text}");
        }
        assert!("yesterday".parse::<Spot>().unwrap_err().to_string().starts_with("`yesterday` names no place: write"));
    }

    proptest! {
        #[test]
        fn foreign_text_never_panics(text: String) {
            drop(text.parse::<Spot>());
        }
    }
}
