//! What a unit's handler stores.

use bytes::Bytes;
use millrace::broker::{Catalog, Commit, CommitOutcome, Partition, StateRange, StateReader as _, StateWrite};
use millrace_core::progress::Progress;

use super::steps::{after, commits, orders, outgoing, subscribe, subscription, within};
use super::subjects::Subject;

pub(crate) fn write(key: &str, value: Option<&str>) -> StateWrite {
    StateWrite { key: key.into(), value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())) }
}

pub(crate) async fn values(partition: &impl Partition, keys: &[&str]) -> Vec<Option<String>> {
    let keys = keys.iter().map(|key| (*key).into()).collect();
    let found = within(partition.state().get(keys)).await.expect("state can be read");
    let text = |value: Option<Bytes>| value.map(|value| String::from_utf8_lossy(&value).into_owned());
    found.into_iter().map(text).collect()
}

pub(crate) async fn state_is_committed_with_all_else_or_not_at_all<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b", "c"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let (now, keys) = (subject.now(), ["kept", "gone", "refused"]);
    let commit = |progress: &Progress, state| Commit { state, ..Commit::new(now, progress.clone()) };
    let first = after(&Progress::default(), 1);
    commits(partition, commit(&first, vec![write("kept", Some("1")), write("gone", Some("2"))])).await;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(values(partition, &keys).await, [some("1"), some("2"), None]);
    let second = after(&first, 1);
    commits(partition, commit(&second, vec![write("kept", Some("3")), write("gone", None)])).await;
    let mut refused = commit(&after(&second, 1), vec![write("refused", Some("4")), write("kept", None)]);
    refused.outputs = vec![outgoing(&subject, "nowhere", 0, "x")];
    let outcome = within(partition.commit(refused)).await.expect("the log can act");
    assert!(matches!(outcome, CommitOutcome::Refused { .. }), "{outcome:?}");
    let expected = [some("3"), None, None];
    assert_eq!(values(partition, &keys).await, expected);
    drop(assigned);
    subject.close(log).await;
    let log = subject.open().await;
    let assigned = subscribe::<S>(&log, subscription(&subject)).await;
    assert_eq!(values(&assigned.units[0].partition, &keys).await, expected);
    assert_eq!(values(&assigned.units[1].partition, &keys).await, [None, None, None], "nobody shares state");
}

pub(crate) async fn state_is_listed_in_pages_by_key<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let state = ["b/2", "a/1", "b/1", "c"].map(|key| write(key, Some(key))).to_vec();
    commits(partition, Commit { state, ..Commit::new(subject.now(), after(&Progress::default(), 1)) }).await;
    let reader = partition.state();
    let page = |after: Option<&str>, max| reader.keys(after.map(Into::into), max);
    assert_eq!(within(page(None, 3)).await.expect("state can be read"), ["a/1", "b/1", "b/2"]);
    assert_eq!(within(page(Some("b/1"), 3)).await.expect("state can be read"), ["b/2", "c"]);
    let unit = partition.unit().clone();
    let listed = async |range: StateRange| -> Vec<String> {
        let page = within(Catalog::state(&log, &unit, range)).await.expect("state can be listed");
        page.into_iter().map(|entry| format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))).collect()
    };
    let range = |max| StateRange { prefix: "b/".into(), max, max_bytes: 1 << 20, ..StateRange::default() };
    assert_eq!(listed(range(1)).await, ["b/1=b/1"]);
    assert_eq!(listed(StateRange { after: Some("b/1".into()), ..range(9) }).await, ["b/2=b/2"]);
    assert_eq!(listed(StateRange { max_bytes: 0, ..range(9) }).await, ["b/1=b/1"]);
    let other = assigned.units[1].partition.unit();
    assert!(within(Catalog::state(&log, other, range(9))).await.expect("state can be listed").is_empty());
}
