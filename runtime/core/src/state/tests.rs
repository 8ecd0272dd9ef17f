use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn write(text: &str) -> StateWrite {
    let (key, value) = text.split_once('=').unwrap_or((text, "none"));
    let value = (value != "none").then(|| Bytes::copy_from_slice(value.as_bytes()));
    StateWrite { key: key.into(), value }
}

fn writes(text: &str) -> Writes {
    text.split_whitespace().map(write).collect()
}

fn shown(value: Option<Option<&Bytes>>) -> String {
    match value {
        None => "committed".to_owned(),
        Some(None) => "deleted".to_owned(),
        Some(Some(value)) => String::from_utf8(value.to_vec()).unwrap(),
    }
}

/// Runs a script: `stage a=1 b` (a without a value is a deletion), `seal`, `committed`, `abort`. Answers what is seen of keys `a` and `b`.
fn seen(script: &[&str]) -> (String, String) {
    let mut overlay = Overlay::default();
    for step in script {
        match step.split_once(' ') {
            Some(("stage", text)) => overlay.stage(writes(text)),
            Some(("seal", expected)) => {
                let sealed: Vec<_> = overlay.seal().into_iter().map(|w| (w.key, w.value)).collect();
                let expected: Vec<_> = writes(expected).iter().map(|w| (w.key, w.value)).collect();
                assert_eq!(sealed, expected, "{script:?}");
            }
            _ if *step == "committed" => overlay.committed(),
            _ if *step == "abort" => overlay = Overlay::default(),
            _ => panic!("no such step: {step}"),
        }
    }
    let of = |key| shown(lookup(&overlay.layers(), key));
    (of("a"), of("b"))
}

#[test]
fn later_events_see_what_is_not_durable_yet() {
    let check = |script: &[&str], a: &str, b: &str| assert_eq!(seen(script), (a.into(), b.into()), "{script:?}");
    check(&[], "committed", "committed");
    check(&["stage a=1"], "1", "committed");
    check(&["stage a=1", "stage a=2 b=3"], "2", "3");
    check(&["stage a=1", "stage a"], "deleted", "committed");
    check(&["stage a=1 b=1", "seal a=1 b=1"], "1", "1");
    check(&["stage a=1 b=1", "seal a=1 b=1", "stage a=2"], "2", "1");
    check(&["stage a=1 b=1", "seal a=1 b=1", "stage b"], "1", "deleted");
    check(&["stage a=1 b=1", "seal a=1 b=1", "stage a=2", "committed"], "2", "committed");
    check(&["stage a=1", "seal a=1", "committed", "stage b=2", "seal b=2"], "committed", "2");
    check(&["stage a=1", "seal a=1", "stage a=2", "abort"], "committed", "committed");
    check(&["stage a=1", "stage a=2", "seal a=2", "abort", "stage a=3", "seal a=3"], "3", "committed");
}

#[test]
#[should_panic(expected = "one commit of a unit is under way")]
fn a_second_commit_does_not_begin_before_the_first_has_ended() {
    seen(&["stage a=1", "seal a=1", "stage a=2", "seal a=2"]);
}

#[test]
fn only_the_last_write_of_a_key_counts() {
    let mut all = writes("a=123 b=1");
    assert_eq!((all.len(), all.bytes()), (2, 6));
    all.push(write("a=1"));
    assert_eq!((all.len(), all.bytes()), (2, 4));
    all.push(write("a"));
    assert_eq!((all.len(), all.bytes()), (2, 3));
    assert_eq!(all.iter().map(|w| w.size_bytes()).sum::<usize>(), all.bytes());
}

/// All keys, read page by page of what a broker would answer.
fn all_keys(layers: &[&Writes], committed: &BTreeMap<String, ()>, max: usize) -> Vec<String> {
    let (mut keys, mut after) = (Vec::new(), None::<ByteString>);
    loop {
        let stored = committed.keys().map(|key| ByteString::from(key.as_str()));
        let stored: Vec<_> = stored.filter(|key| after.as_ref().is_none_or(|after| key > after)).take(max).collect();
        let KeyPage { keys: more, next } = page(layers, &stored, after.as_ref(), max);
        assert!(more.len() <= max);
        keys.extend(more.iter().map(ToString::to_string));
        match next {
            Some(next) => assert!(after.replace(next.clone()).is_none_or(|before| before < next), "each page goes on"),
            None => return keys,
        }
    }
}

proptest! {
    #[test]
    fn pages_hold_each_key_that_is_there_once_and_in_order(
        committed in proptest::collection::btree_map("[a-d]{1,2}", Just(()), 0..12),
        layers in proptest::collection::vec(proptest::collection::vec(("[a-d]{1,2}", any::<bool>()), 0..8), 0..4),
        max in 1..5usize,
    ) {
        let mut expected: BTreeMap<String, bool> = committed.keys().map(|key| (key.clone(), true)).collect();
        for layer in layers.iter().rev() {
            expected.extend(layer.iter().cloned());
        }
        let expected: Vec<String> = expected.into_iter().filter_map(|(key, there)| there.then_some(key)).collect();
        let value = |there: bool| there.then(|| Bytes::from_static(b"v"));
        let write = |(key, there): &(String, bool)| StateWrite { key: key.as_str().into(), value: value(*there) };
        let layers: Vec<Writes> = layers.iter().map(|layer| layer.iter().map(write).collect()).collect();
        let layers: Vec<&Writes> = layers.iter().collect();
        prop_assert_eq!(all_keys(&layers, &committed, max), expected);
    }
}
