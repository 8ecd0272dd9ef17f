//! Patterns of names: `*` stands for any number of characters, dots among them.

use std::fmt;
use std::str::FromStr;

use crate::name::TOPIC_MAX_CHARS;

/// A pattern of names of functions or topics: `shop.*`, `orders*`, `payments`. 1 to 249 characters of names, and `*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

impl Pattern {
    /// Whether a name is one of those that are meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            // The first place is as good as any: what comes before it stays free.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPattern;

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a pattern is 1 to {TOPIC_MAX_CHARS} letters, digits, dots, underscores and hyphens, with `*` for any number of them, such \
             as `shop.*`"
        )
    }
}

impl std::error::Error for InvalidPattern {}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-*".contains(&b);
        if text.is_empty() || text.len() > TOPIC_MAX_CHARS || !text.bytes().all(legal) {
            return Err(InvalidPattern);
        }
        Ok(Self(text.to_owned()))
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_any_number_of_characters() {
        for (pattern, yes, no) in [
            ("orders", &["orders"][..], &["order", "orders2", "my-orders", ""][..]),
            ("orders*", &["orders", "orders.eu", "orders-2"], &["order", "my-orders"]),
            ("*orders", &["orders", "my-orders"], &["orders2"]),
            ("*", &["", "a", "a.b"], &[]),
            ("**", &["", "a"], &[]),
            ("shop.*", &["shop.pay", "shop."], &["shop", "shops.pay", "my.shop.pay"]),
            ("a*b*c", &["abc", "axbyc", "abbcc"], &["ab", "acb", "abcd"]),
            ("ab*ba", &["abba", "abxba"], &["aba", "ab"]),
            ("a*a", &["aa", "aba"], &["a"]),
            ("*ab*ab*", &["abab", "xabyabz"], &["ab", "aba"]),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            yes.iter().for_each(|name| assert!(pattern.matches(name), "{pattern} {name}"));
            no.iter().for_each(|name| assert!(!pattern.matches(name), "{pattern} {name}"));
        }
    }

    #[test]
    fn only_what_can_match_a_name_is_a_pattern() {
        for text in ["", "a b", "a/b", "ä", "[a]", "a?", &"a".repeat(TOPIC_MAX_CHARS + 1)] {
            assert_eq!(text.parse::<Pattern>(), Err(InvalidPattern), "{text}");
        }
    }

    /// The definition, without regard to time.
    fn plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((b'*', rest)), _) => (0..=name.len()).any(|at| plainly(rest, &name[at..])),
            (Some((a, pattern)), Some((b, name))) => a == b && plainly(pattern, name),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_by_its_definition(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let expected = plainly(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(pattern.parse::<Pattern>().unwrap().matches(&name), expected);
        }
    }
}
