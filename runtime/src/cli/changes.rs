//! What a changed manifest says that was not said before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use millrace_core::manifest::{Function, Manifest};
use serde::Serialize;
use serde_json::Value;

use super::format;

/// Characters of a component's digest that are shown: enough to tell two apart.
const DIGEST_CHARS: usize = 12;

/// The beginning of a digest, for people.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..DIGEST_CHARS).unwrap_or(digest)
}

/// A setting that has another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    /// As it is written in a manifest, without the function's name.
    key: String,
    /// What it was; none if it was not there.
    old: Option<Value>,
    /// What it is.
    new: Option<Value>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |value: &Option<Value>| {
            value.as_ref().map_or_else(|| "none".to_owned(), |value| format::one_line(&value.to_string(), 200))
        };
        write!(f, "{}: {} -> {}", format::one_line(&self.key, 200), told(&self.old), told(&self.new))
    }
}

/// The settings that differ between two manifests of one function each, but for what names its component.
pub(super) fn between(old: &str, new: &str) -> Vec<Setting> {
    let (old, new) = (settings_of(old), settings_of(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let setting = |key: &String| Setting { key: key.clone(), old: old.get(key).cloned(), new: new.get(key).cloned() };
    differing.map(setting).collect()
}

/// A later or an earlier version may have written it, so it is read as far as it goes.
fn settings_of(manifest: &str) -> BTreeMap<String, Value> {
    let read = manifest.parse::<toml::Table>().ok().and_then(|table| serde_json::to_value(table).ok());
    let mut settings = BTreeMap::new();
    let Some(Value::Object(mut read)) = read else { return settings };
    if let Some(Value::Object(functions)) = read.remove("functions") {
        functions.into_iter().for_each(|(_, function)| flatten(String::new(), function, &mut settings));
    }
    for key in ["build", "component", "watch"] {
        settings.remove(key);
    }
    if let Some(topics) = read.remove("topics") {
        flatten("[topics]".to_owned(), topics, &mut settings);
    }
    settings
}

/// The keys of a function's table that have another value, as they are written in a manifest.
pub(super) fn of_function(old: &Function, new: &Function) -> Vec<String> {
    let (old, new) = (settings(old), settings(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().cloned().collect()
}

/// The topics that are kept for another time, or up to another size.
pub(super) fn of_retention(old: &Manifest, new: &Manifest) -> Vec<String> {
    let retention = |manifest: &Manifest, topic: &str| {
        let settings = manifest.topics.iter().find(|settings| settings.name.as_str() == topic);
        settings.map(|settings| settings.retention).unwrap_or_default()
    };
    let topics = new.mentioned_topics().into_iter().map(|topic| topic.as_str());
    topics.filter(|topic| retention(old, topic) != retention(new, topic)).map(str::to_owned).collect()
}

/// Each setting in the manifest's canonical form.
fn settings(function: &Function) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    flatten(String::new(), serde_json::to_value(function).unwrap_or_default(), &mut settings);
    settings
}

fn flatten(path: String, value: Value, settings: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(path, value, settings);
            }
        }
        value => drop(settings.insert(path, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAY: &str = "application = 'shop'\n[functions.pay]\ntopics = ['orders']\ncomponent = 'pay.wasm'\n";

    fn manifest(rest: &str) -> Manifest {
        Manifest::parse(&format!("{PAY}{rest}")).unwrap().0
    }

    #[test]
    fn what_changed_of_a_function_is_named_as_in_the_manifest() {
        for (old, new, expected) in [
            ("", "", &[][..]),
            ("", "# only words", &[]),
            // A default that is written out changes nothing.
            ("", "ordering = 'key'", &[]),
            ("", "filter = 'event.type == \"a\"'", &["filter"]),
            ("ordering = 'key'", "ordering = 'none'\nretry = { attempts = 2 }", &["ordering", "retry.attempts"]),
            ("config = { a = 'x', b = 'y' }", "config = { a = 'z' }", &["config.a", "config.b"]),
            ("", "grants = { publish = ['paid'] }", &["grants.publish"]),
        ] {
            let (old, new) = (manifest(old), manifest(new));
            assert_eq!(of_function(&old.functions[0], &new.functions[0]), expected);
        }
    }

    #[test]
    fn what_differs_between_two_revisions_is_shown_with_both_values() {
        let uploaded = |rest: &str| {
            let (manifest, _) = Manifest::parse(&format!("{PAY}{rest}")).unwrap();
            let digest = millrace_core::digest::Digest::of(rest.as_bytes());
            millrace_core::revision::Source::uploaded(&manifest, &manifest.functions[0], digest).manifest
        };
        for (old, new, expected) in [
            ("", "", &[][..]),
            ("", "limits.time = '10s'", &["limits.time: \"5s\" -> \"10s\""]),
            ("", "filter = 'event.type == \"a\"'", &[r#"filter: none -> "event.type == \"a\"""#]),
            ("", "[topics.orders]\npartitions = 3", &["[topics].orders.partitions: none -> 3"]),
        ] {
            let shown: Vec<String> = between(&uploaded(old), &uploaded(new)).iter().map(ToString::to_string).collect();
            assert_eq!(shown, expected);
        }
        assert_eq!(between("[", "]"), []);
    }

    #[test]
    fn what_is_kept_differently_is_named() {
        let kept = "[topics.orders]\nretention = { age = '1h' }";
        for (old, new, expected) in [
            ("", "", &[][..]),
            ("", kept, &["orders"]),
            (kept, "", &["orders"]),
            (kept, kept, &[]),
            (kept, "[topics.orders]\nretention = { age = '60m' }", &[]),
        ] {
            assert_eq!(of_retention(&manifest(old), &manifest(new)), expected);
        }
    }
}
