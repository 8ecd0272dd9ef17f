//! What a changed manifest says that was not said before.

use std::collections::BTreeMap;

use millrace_core::manifest::{Function, Manifest};
use serde_json::Value;

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
