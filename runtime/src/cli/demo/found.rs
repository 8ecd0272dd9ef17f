//! What a topic holds, and what it should hold.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Of what is wrong in the same way, so much is named.
const NAMED_MAX: usize = 3;

/// The events of a topic, as far as they are compared. Counts alone would not do: one that is lost and one that is there twice
/// make up for one another.
#[derive(Debug, Default)]
pub(super) struct Found {
    types: BTreeMap<String, u64>,
    /// How many events there are, by type and subject.
    subjects: BTreeMap<String, BTreeMap<String, u64>>,
    /// Sources and ids.
    identities: BTreeSet<(String, String)>,
    repeated: Vec<String>,
}

/// What is compared of an event.
#[derive(Deserialize)]
struct Event {
    source: String,
    id: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(default)]
    subject: String,
}

impl Found {
    /// Takes one event in the JSON format of CloudEvents.
    pub(super) fn take(&mut self, event: &str) {
        let Ok(Event { source, id, ty, subject }) = serde_json::from_str(event) else {
            *self.types.entry("undecodable".to_owned()).or_default() += 1;
            return;
        };
        *self.types.entry(ty.clone()).or_default() += 1;
        *self.subjects.entry(ty).or_default().entry(subject).or_default() += 1;
        let name = format!("{source} {id}");
        if !self.identities.insert((source, id)) {
            self.repeated.push(name);
        }
    }

    /// What is wrong. `subjects` are given for a topic that functions emit to: there each event is expected once, while others
    /// may publish what they like.
    pub(super) fn compare(
        &self,
        topic: &str,
        types: &BTreeMap<String, u64>,
        subjects: Option<&BTreeMap<String, String>>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.types != *types {
            wrong.push(format!("topic {topic} holds {:?}, not {types:?}", self.types));
        }
        let Some(subjects) = subjects else { return wrong };
        if !self.repeated.is_empty() {
            wrong.push(format!("topic {topic} holds the same event twice: {}", named(&self.repeated)));
        }
        let all: BTreeSet<&String> = subjects.keys().chain(self.subjects.keys()).collect();
        for ty in all {
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for subject in subjects.get(ty).map_or("", String::as_str).split_whitespace() {
                *expected.entry(subject.to_owned()).or_default() += 1;
            }
            let none = BTreeMap::new();
            let found = self.subjects.get(ty).unwrap_or(&none);
            let (missing, extra) = (beyond(&expected, found), beyond(found, &expected));
            for (words, these) in [("are missing", missing), ("are too many", extra)] {
                if !these.is_empty() {
                    wrong.push(format!("topic {topic}: of {ty}, events about these {words}: {}", named(&these)));
                }
            }
        }
        wrong
    }
}

/// The subjects that come more often in one than in the other.
fn beyond(more: &BTreeMap<String, u64>, less: &BTreeMap<String, u64>) -> Vec<String> {
    let is_more = |(subject, count): &(&String, &u64)| *count > less.get(*subject).unwrap_or(&0);
    more.iter().filter(is_more).map(|(subject, _)| subject.clone()).collect()
}

/// The first of them, and how many more there are.
fn named(all: &[String]) -> String {
    let first = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > NAMED_MAX { format!("{first} and {} more", all.len() - NAMED_MAX) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as `<id> <subject>`, all of type `paid`, and what is wrong with them in a topic that should hold these subjects.
    #[track_caller]
    fn check(events: &[&str], subjects: &str, expected: &[&str]) {
        let mut found = Found::default();
        for event in events {
            let (id, subject) = event.split_once(' ').unwrap();
            found.take(&format!(r#"{{"source":"/shop","id":"{id}","type":"paid","subject":"{subject}"}}"#));
        }
        let types = BTreeMap::from([("paid".to_owned(), 3)]);
        let subjects = BTreeMap::from([("paid".to_owned(), subjects.to_owned())]);
        assert_eq!(found.compare("payments", &types, Some(&subjects)), expected);
        assert_eq!(found.compare("payments", &types, None).len(), usize::from(events.len() != 3));
    }

    #[test]
    fn each_expected_event_must_be_there_once() {
        check(&["1 o-1", "2 o-2", "3 o-2"], "o-1 o-2 o-2", &[]);
        check(&["1 o-1", "2 o-2", "3 o-3"], "o-2 o-3 o-1", &[]);
        check(
            &["1 o-1", "2 o-2"],
            "o-1 o-2 o-3",
            &[
                r#"topic payments holds {"paid": 2}, not {"paid": 3}"#,
                "topic payments: of paid, events about these are missing: o-3",
            ],
        );
    }

    #[test]
    fn a_lost_event_is_not_made_up_for_by_one_that_is_there_twice() {
        check(
            &["1 o-1", "2 o-2", "2 o-2"],
            "o-1 o-2 o-3",
            &[
                "topic payments holds the same event twice: /shop 2",
                "topic payments: of paid, events about these are missing: o-3",
                "topic payments: of paid, events about these are too many: o-2",
            ],
        );
    }

    #[test]
    fn a_record_that_is_repeated_is_noticed_although_its_subject_may_come_again() {
        check(&["1 c-1", "2 c-1", "2 c-1"], "c-1 c-1 c-1", &["topic payments holds the same event twice: /shop 2"]);
    }

    #[test]
    fn events_of_other_types_and_what_is_none_are_noticed() {
        let mut found = Found::default();
        found.take(r#"{"source":"/shop","id":"1","type":"refunded","subject":"o-1"}"#);
        found.take("");
        let wrong = found.compare("payments", &BTreeMap::new(), Some(&BTreeMap::new()));
        assert_eq!(
            wrong,
            [
                r#"topic payments holds {"refunded": 1, "undecodable": 1}, not {}"#,
                "topic payments: of refunded, events about these are too many: o-1",
            ]
        );
    }
}
