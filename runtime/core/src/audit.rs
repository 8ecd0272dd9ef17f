//! Who did what: what is kept of each request that changes something, and of each that was refused.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::access::{Caller, Pattern, label, without_secrets};
use crate::limits;
use crate::time::Timestamp;

/// Somebody who asks for something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// What the token is called; empty if nobody showed one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The id of that token, if it is in the log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The address and port that the request came from: a proxy's, if there is one in between.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
}

impl Who {
    /// Whoever is known of a request.
    #[must_use]
    pub fn new(caller: Option<&Caller>, from: String) -> Self {
        let by = caller.map_or_else(String::new, |caller| caller.name().to_owned());
        let token = caller.and_then(Caller::token).map_or_else(String::new, ToString::to_string);
        Self { by, token, from }
    }

    /// What the token is called, with its id.
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.by, &self.token)
    }
}

/// What somebody did, or tried to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, in milliseconds since 1970, by the clock of the instance that was asked.
    pub at_ms: u64,
    /// Who.
    #[serde(flatten)]
    pub who: Who,
    /// What, such as `deploy`.
    pub action: String,
    /// To which functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// To which topics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// To what else, such as `token 9f3a6c01d2e4`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// How it ended.
    pub result: Outcome,
    /// More of that: which revision it became, or why it was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How many refusals before this one were left out, because there were too many at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done.
    Done,
    /// Whoever asked may not do it.
    Refused,
    /// It was not done, for another reason. If the log did not answer it can be done all the same.
    Failed,
    /// Something that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Outcome {
    /// Those that there are.
    pub const ALL: [Self; 3] = [Self::Done, Self::Refused, Self::Failed];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("`{}` is no result; choose one of {known}", text.chars().take(40).collect::<String>())
        })
    }
}

impl Record {
    /// The same as several, of which none names more functions than a record can.
    #[must_use]
    pub fn parts(self) -> Vec<Self> {
        let parts = self.functions.chunks(limits::AUDITED_NAMES_MAX);
        let parts: Vec<Self> = parts.map(|functions| Self { functions: functions.to_vec(), ..self.clone() }).collect();
        if parts.is_empty() { vec![self] } else { parts }
    }

    /// As a log keeps it: without anything that looks like a token, and with bounds for each part.
    #[must_use]
    pub fn encode(mut self) -> Vec<u8> {
        for names in [&mut self.functions, &mut self.topics] {
            names.truncate(limits::AUDITED_NAMES_MAX);
            names.iter_mut().for_each(|name| tidy(name, limits::AUDITED_TEXT_MAX_BYTES));
        }
        let Who { by, token, from } = &mut self.who;
        for text in [by, token, from, &mut self.action, &mut self.about, &mut self.detail] {
            tidy(text, limits::AUDITED_TEXT_MAX_BYTES);
        }
        serde_json::to_vec(&self).unwrap_or_default()
    }

    /// Read back. What cannot be read is told as such, since somebody did something.
    #[must_use]
    pub fn decode(at: Timestamp, content: &[u8]) -> Self {
        serde_json::from_slice(content).unwrap_or_else(|_| Self {
            at_ms: at.as_millis(),
            action: "unknown".to_owned(),
            detail: "this version cannot read the record".to_owned(),
            ..Self::default()
        })
    }
}

fn tidy(text: &mut String, max: usize) {
    *text = without_secrets(text);
    text.truncate(text.floor_char_boundary(max));
}

/// Which records are asked for. What is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those of a function that one of these is.
    pub function: Option<Pattern>,
    /// Those of such a topic.
    pub topic: Option<Pattern>,
    /// Those of whose token this is the name, or the id.
    pub by: Option<String>,
    /// Those of this action.
    pub action: Option<String>,
    /// Those that ended so.
    pub result: Option<Outcome>,
    /// Those that are not older.
    pub since: Option<Timestamp>,
}

impl Filter {
    /// Whether a record is one of them.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        let names = |pattern: &Option<Pattern>, names: &[String]| {
            pattern.as_ref().is_none_or(|pattern| names.iter().any(|name| pattern.matches(name)))
        };
        names(&self.function, &record.functions)
            && names(&self.topic, &record.topics)
            && self.by.as_ref().is_none_or(|by| record.who.by == *by || record.who.token == *by)
            && self.action.as_ref().is_none_or(|action| record.action == *action)
            && self.result.is_none_or(|result| record.result == result)
            && self.since.is_none_or(|since| Timestamp::from_millis(record.at_ms) >= since)
    }
}

/// Lets so many refusals through as are worth a record each, and counts the others: whoever has no token must not be able to fill a log.
#[derive(Clone, Debug)]
pub struct Throttle {
    left: u32,
    /// When `left` was right.
    at: Timestamp,
    omitted: u64,
}

impl Throttle {
    /// Lets [`limits::AUDITED_REFUSALS_AT_ONCE`] through at once.
    #[must_use]
    pub const fn new(now: Timestamp) -> Self {
        Self { left: limits::AUDITED_REFUSALS_AT_ONCE, at: now, omitted: 0 }
    }

    /// Whether the next refusal gets a record, and then how many before it did not.
    pub fn admit(&mut self, now: Timestamp) -> Option<u64> {
        let every = limits::AUDITED_REFUSAL_EVERY;
        let more = now.since(self.at).as_millis() / every.as_millis();
        if more > 0 {
            let room = limits::AUDITED_REFUSALS_AT_ONCE - self.left;
            let more = u32::try_from(more).unwrap_or(u32::MAX).min(room);
            self.left += more;
            // What is less than one goes on counting, unless there is no room for it.
            self.at = if more == room { now } else { self.at + every * more };
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.omitted = self.omitted.saturating_add(1);
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.omitted))
    }
}

/// A [`Throttle`] for each token, and one for all who show none that holds: these must not be able to hide what somebody with a token tries,
/// nor may one with a token hide others.
#[derive(Clone, Debug, Default)]
pub struct Throttles(BTreeMap<String, Throttle>);

impl Throttles {
    /// Whether the next refusal of who has the token with this id, or none if it is empty, gets a record; as [`Throttle::admit`].
    pub fn admit(&mut self, token: &str, now: Timestamp) -> Option<u64> {
        if self.0.len() >= limits::AUDITED_REFUSED_MAX && !self.0.contains_key(token) {
            let others = self.0.iter().filter(|(token, _)| !token.is_empty());
            let idle = others.min_by_key(|(_, throttle)| throttle.at).map(|(token, _)| token.clone());
            idle.map(|token| self.0.remove(&token));
        }
        self.0.entry(token.to_owned()).or_insert_with(|| Throttle::new(now)).admit(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            at_ms: 5000,
            who: Who { by: "ci".to_owned(), token: "9f3a6c01d2e4".to_owned(), from: "127.0.0.1:4711".to_owned() },
            action: "deploy".to_owned(),
            functions: vec!["shop.pay".to_owned()],
            topics: vec!["orders".to_owned(), "payments".to_owned()],
            about: String::new(),
            result: Outcome::Done,
            detail: "revision 3".to_owned(),
            omitted: 0,
        }
    }

    #[test]
    fn a_filter_matches_what_all_of_its_parts_match() {
        let pattern = |text: &str| Some(text.parse().unwrap());
        let none = Filter::default;
        for (filter, expected) in [
            (none(), true),
            (Filter { function: pattern("shop.pay"), ..none() }, true),
            (Filter { function: pattern("shop.*"), ..none() }, true),
            (Filter { function: pattern("pay"), ..none() }, false),
            (Filter { topic: pattern("payments"), ..none() }, true),
            (Filter { topic: pattern("pay"), ..none() }, false),
            (Filter { by: Some("ci".to_owned()), ..none() }, true),
            (Filter { by: Some("9f3a6c01d2e4".to_owned()), ..none() }, true),
            (Filter { by: Some("c".to_owned()), ..none() }, false),
            (Filter { action: Some("deploy".to_owned()), result: Some(Outcome::Done), ..none() }, true),
            (Filter { action: Some("deploy".to_owned()), result: Some(Outcome::Failed), ..none() }, false),
            (Filter { action: Some("delete".to_owned()), ..none() }, false),
            (Filter { since: Some(Timestamp::from_millis(5000)), ..none() }, true),
            (Filter { since: Some(Timestamp::from_millis(5001)), ..none() }, false),
        ] {
            assert_eq!(filter.matches(&record()), expected, "{filter:?}");
        }
        let unnamed = Record { functions: Vec::new(), ..record() };
        assert!(!Filter { function: pattern("*"), ..none() }.matches(&unnamed));
    }

    #[test]
    fn a_flood_of_refusals_is_let_through_slowly_and_counted() {
        let every = limits::AUDITED_REFUSAL_EVERY;
        let mut now = Timestamp::from_millis(1);
        let mut throttle = Throttle::new(now);
        for _ in 0..limits::AUDITED_REFUSALS_AT_ONCE {
            assert_eq!(throttle.admit(now), Some(0));
        }
        for (after, expected) in [
            (Duration::ZERO, None),
            (every - Duration::from_millis(1), None),
            (Duration::from_millis(1), Some(2)),
            (Duration::ZERO, None),
            (every * 2, Some(1)),
            (Duration::ZERO, Some(0)),
            (Duration::ZERO, None),
            (every / 2, None),
            (every / 2, Some(2)),
        ] {
            now = now + after;
            assert_eq!(throttle.admit(now), expected, "{after:?}");
        }
        // A pause gives no more than at first, and a clock that goes back does no harm.
        now = now + every * 1_000_000;
        let admitted = (0..).take_while(|_| throttle.admit(now).is_some()).count();
        assert_eq!(admitted, limits::AUDITED_REFUSALS_AT_ONCE as usize);
        assert_eq!(throttle.admit(Timestamp::EPOCH), None);
        assert_eq!(throttle.admit(now + every), Some(2));
    }

    #[test]
    fn nobody_hides_the_refusals_of_others() {
        let (now, mut all) = (Timestamp::from_millis(1), Throttles::default());
        for token in ["", "9f3a6c01d2e4", "070707070707"] {
            let admitted = (0..500).filter(|_| all.admit(token, now).is_some()).count();
            assert_eq!(admitted, limits::AUDITED_REFUSALS_AT_ONCE as usize, "{token}");
        }
        // They are no more than there can be tokens, and who has none is among them for ever.
        for n in 0..3 * limits::AUDITED_REFUSED_MAX as u64 {
            assert_eq!(all.admit(&format!("{n:012x}"), Timestamp::from_millis(2 + n / 10)), Some(0));
        }
        assert_eq!(all.0.len(), limits::AUDITED_REFUSED_MAX);
        assert_eq!(all.admit("", now), None);
    }

    #[test]
    fn nothing_that_looks_like_a_token_is_kept_and_all_has_bounds() {
        let secret = format!("mr_070707070707_{}", "07".repeat(32));
        let all = Record {
            who: Who { by: secret.clone(), token: secret.clone(), from: secret.clone() },
            action: secret.clone(),
            functions: vec![secret.clone(); 2],
            topics: vec![format!("x{secret}"); limits::AUDITED_NAMES_MAX + 9],
            about: format!("token {secret}"),
            detail: format!("{}{secret} {secret}é{}", "é".repeat(10), "é".repeat(10_000)),
            ..record()
        };
        let kept = all.encode();
        assert!(kept.len() < limits::AUDITED_NAMES_MAX * limits::AUDITED_TEXT_MAX_BYTES, "{}", kept.len());
        let text = String::from_utf8(kept.clone()).unwrap();
        assert!(!text.contains("0707070707070707"), "{text}");
        let read = Record::decode(Timestamp::EPOCH, &kept);
        assert_eq!(read.about, "token mr_070707070707_***");
        assert_eq!((read.topics.len(), read.functions.len()), (limits::AUDITED_NAMES_MAX, 2));
        assert!(read.detail.len() <= limits::AUDITED_TEXT_MAX_BYTES);
    }

    #[test]
    fn a_record_of_many_functions_becomes_several() {
        let max = limits::AUDITED_NAMES_MAX;
        for (functions, expected) in [(0, vec![0]), (1, vec![1]), (max, vec![max]), (2 * max + 1, vec![max, max, 1])] {
            let functions = vec!["shop.pay".to_owned(); functions];
            let parts = Record { functions, ..record() }.parts();
            assert_eq!(parts.iter().map(|part| part.functions.len()).collect::<Vec<_>>(), expected);
            assert!(parts.iter().all(|part| part.detail == "revision 3"));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let expected = r#"{"at_ms":5000,"by":"ci","token":"9f3a6c01d2e4","from":"127.0.0.1:4711","action":"deploy","functions":["shop.pay"],"topics":["orders","payments"],"result":"done","detail":"revision 3"}"#;
        assert_eq!(String::from_utf8(record().encode()).unwrap(), expected);
        let refused = Record { action: "view".to_owned(), result: Outcome::Refused, omitted: 7, ..Record::default() };
        assert_eq!(refused.encode(), br#"{"at_ms":0,"action":"view","result":"refused","omitted":7}"#);
    }

    #[test]
    fn what_a_newer_version_wrote_is_told_as_far_as_it_can_be() {
        let at = Timestamp::from_millis(9);
        let newer = br#"{"at_ms":1,"action":"fly","result":"postponed","wings":2}"#;
        let read = Record::decode(at, newer);
        assert_eq!((&*read.action, read.result, read.at_ms), ("fly", Outcome::Unknown, 1));
        let damaged = Record::decode(at, b"{");
        assert_eq!((&*damaged.action, damaged.result, damaged.at_ms), ("unknown", Outcome::Unknown, 9));
        for outcome in Outcome::ALL {
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
        }
        assert!("unknown".parse::<Outcome>().unwrap_err().contains("choose one of done, refused, failed"));
    }

    proptest! {
        #[test]
        fn a_record_reads_back(by in "[a-z ]{0,20}", functions in prop::collection::vec("[a-z.]{1,20}", 0..4), detail in "[ -~é]{0,100}", at_ms: u64, omitted: u64) {
            let record = Record { at_ms, who: Who { by, ..Who::default() }, functions, detail, omitted, ..record() };
            prop_assert_eq!(Record::decode(Timestamp::EPOCH, &record.clone().encode()), record);
        }

        #[test]
        fn foreign_bytes_never_panic(content: Vec<u8>) {
            let read = Record::decode(Timestamp::EPOCH, &content);
            prop_assert!(Filter::default().matches(&read));
        }
    }
}
