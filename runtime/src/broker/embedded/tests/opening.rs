use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt as _;
use millrace_core::digest::Digest;
use millrace_core::limits;

use super::super::storage::{Op, Table};
use super::super::{EmbeddedLog, OpenError, Options};
use super::support::*;
use crate::broker::{DeployError, Deployed, Deployment, Deployments as _, Entry, EntryError, EntryName};

fn refusal(options: Options) -> OpenError {
    EmbeddedLog::open(options).unwrap_err()
}

#[tokio::test]
async fn a_second_opening_names_the_process_that_has_it() {
    let (dir, log) = orders().await;
    let error = refusal(options(dir.path()));
    assert!(matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    let path = dir.path().display();
    let expected = format!(
        "the log in `{path}` is open in process {}; stop that one, or choose another directory",
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    // The refusal leaves the holder alone.
    publish(&log, "orders", 0, &["a"]).await;
    let log = reopen(&dir, log);
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a"]));
}

#[tokio::test]
async fn what_a_partition_or_a_commit_holds_open_is_not_opened_twice() {
    let (dir, log) = orders().await;
    let assignment = assigned(&log, "shop.pay").await;
    drop(log);
    assert!(matches!(refusal(options(dir.path())), OpenError::Locked { .. }));
    drop(assignment);
    EmbeddedLog::open(options(dir.path())).unwrap();
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = refusal(options(&file.join("log")));
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("file/log`") && error.to_string().contains("choose another one"), "{error}");
}

#[test]
fn a_directory_of_other_files_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "").unwrap();
    let error = refusal(options(dir.path()));
    assert!(matches!(error, OpenError::NotALog { .. }), "{error}");
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn a_newer_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(options(dir.path())).unwrap());
    fs::write(dir.path().join("FORMAT"), "millrace embedded log, format 3\n").unwrap();
    let error = refusal(options(dir.path()));
    assert!(matches!(error, OpenError::NewerFormat { found: 3, supported: 2, .. }), "{error}");
    fs::write(dir.path().join("FORMAT"), "millrace embedded log, format 1\n").unwrap();
    let error = refusal(options(dir.path()));
    assert!(matches!(error, OpenError::OlderFormat { found: 1, .. }), "{error}");
    fs::write(dir.path().join("FORMAT"), "millrace embedded log, format x\n").unwrap();
    let error = refusal(options(dir.path()));
    assert!(matches!(error, OpenError::Corrupted { .. }) && error.to_string().contains("`FORMAT`"), "{error}");
}

#[test]
fn another_prefix_is_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(options(dir.path())).unwrap());
    let error = refusal(Options { prefix: "staging".to_owned(), ..options(dir.path()) });
    assert!(error.to_string().contains("was made with the prefix `millrace`, not `staging`"), "{error}");
}

#[test]
fn a_directory_whose_making_was_cut_short_is_made_again() {
    let whole = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(options(whole.path())).unwrap());
    // What is there after each step of making it.
    let steps: [&[&str]; 4] = [&["lock"], &["lock", "log.unfinished"], &["lock", "log"], &["lock", "log", "FORMAT"]];
    for names in steps {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let (from, to) = (whole.path().join(name.trim_end_matches(".unfinished")), dir.path().join(name));
            if from.is_dir() { copy(&from, &to) } else { fs::copy(&from, &to).map(drop).unwrap() }
        }
        if let Ok(()) = fs::remove_file(dir.path().join("log.unfinished/version")) {}
        EmbeddedLog::open(options(dir.path())).unwrap_or_else(|e| panic!("{names:?}: {e}"));
        assert!(!dir.path().join("log.unfinished").exists());
    }
}

#[tokio::test]
async fn a_database_that_lost_its_content_is_never_made_again() {
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    drop(log);
    let remove = |name: &str| {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let path = copied.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        let refused = EmbeddedLog::open(options(copied.path()));
        assert!(matches!(refused, Err(OpenError::Corrupted { .. })), "without {name}");
        assert!(name == "log" || copied.path().join("log/keyspaces/2").exists());
    };
    for name in ["log", "log/version", "log/keyspaces/0/current", "log/keyspaces/3/current", "log/keyspaces/1"] {
        remove(name);
    }
}

#[tokio::test]
async fn deployments_are_numbered_and_the_first_to_build_on_one_wins() {
    let (dir, log) = orders().await;
    let (pay, ship) = (function("shop.pay"), function("shop.ship"));
    let content = |s: &'static str| Bytes::from_static(s.as_bytes());
    assert_eq!(log.append_deployment(pay.clone(), 0, content("one")).await.unwrap(), 1);
    assert_eq!(log.append_deployment(ship.clone(), 0, content("ship")).await.unwrap(), 1);
    assert_eq!(log.append_deployment(pay.clone(), 1, content("two")).await.unwrap(), 2);
    let error = log.append_deployment(pay.clone(), 1, content("late")).await.unwrap_err();
    assert!(matches!(error, DeployError::Conflict { expected: 1, latest: 2, .. }), "{error}");
    let seen = log.deployments(None).await.unwrap().seen;
    assert!(log.deployments(Some(seen)).now_or_never().is_none(), "there is no other yet");
    assert_eq!(log.append_deployment(pay.clone(), 2, content("three")).await.unwrap(), 3);
    assert!(log.deployments(Some(seen)).await.unwrap().seen > seen);
    let log = reopen(&dir, log);
    let deployment = |function, number, text| Deployment { function, number, content: content(text) };
    let numbered = [(1, "one"), (2, "two"), (3, "three")].map(|(number, text)| deployment(pay.clone(), number, text));
    let expected = [&numbered[..], &[deployment(ship, 1, "ship")]].concat();
    assert_eq!(log.deployments(None).await.unwrap().deployments, expected);
}

#[tokio::test]
async fn of_what_is_put_under_one_name_the_last_is_kept_and_whoever_waits_is_told() {
    let (dir, log) = orders().await;
    let [one, two] = ["token.1", "token.2"].map(|name| name.parse::<EntryName>().unwrap());
    let content = |s: &'static str| Some(Bytes::from_static(s.as_bytes()));
    let mut seen = log.deployments(None).await.unwrap().seen;
    for (name, content) in [(&one, content("a")), (&two, content("b")), (&one, content("c")), (&two, None)] {
        assert!(log.deployments(Some(seen)).now_or_never().is_none(), "there is no other yet");
        let at = log.deployments(None).await.unwrap().entries_at;
        log.put_entry(name.clone(), content.clone(), at).await.unwrap();
        seen = log.deployments(Some(seen)).await.unwrap().seen;
        let late = log.put_entry(two.clone(), content, at).await.unwrap_err();
        assert!(matches!(late, EntryError::Conflict), "{late}");
    }
    let at = log.deployments(None).await.unwrap().entries_at;
    let large = Bytes::from(vec![0; limits::ENTRY_MAX_BYTES + 1]);
    assert!(log.put_entry(two, Some(large), at).await.is_err());
    let log = reopen(&dir, log);
    let Deployed { deployments, entries, .. } = log.deployments(None).await.unwrap();
    assert_eq!((deployments, entries), (Vec::new(), vec![Entry { name: one, content: content("c").unwrap() }]));
}

#[tokio::test]
async fn an_entry_that_is_damaged_is_there_without_content_and_the_others_as_they_were() {
    let (dir, log) = orders().await;
    let [one, two] = ["token.1", "token.2"].map(|name| name.parse::<EntryName>().unwrap());
    log.put_entry(one.clone(), Some(Bytes::from_static(b"a")), 0).await.unwrap();
    let put = |key: &'static [u8]| {
        log.alone(move |committer| {
            committer.write(vec![Op::Put(Table::State, Bytes::from_static(key), Bytes::from_static(b"?"))])
        })
    };
    put(b"etoken.2").await.unwrap().unwrap();
    let entries =
        vec![Entry { name: one, content: Bytes::from_static(b"a") }, Entry { name: two, content: Bytes::new() }];
    let read = log.deployments(None).await.unwrap();
    assert_eq!((&read.entries, read.entries_lost), (&entries, false));
    // Nobody can say what that one was.
    put(b"eToken 3").await.unwrap().unwrap();
    let log = reopen(&dir, log);
    let read = log.deployments(None).await.unwrap();
    assert_eq!((&read.entries, read.entries_lost), (&entries, true));
}

#[tokio::test]
async fn components_are_kept_as_large_as_they_may_be_until_they_are_removed() {
    let (dir, log) = orders().await;
    let large =
        Bytes::from((0..limits::COMPONENT_MAX_BYTES).map(|n| (n ^ n >> 8).to_le_bytes()[0]).collect::<Vec<_>>());
    let (small, missing) = (Bytes::from_static(b"wasm"), Digest::of(b""));
    for content in [&large, &small, &small] {
        log.put_component(Digest::of(content), content.clone()).await.unwrap();
    }
    let log = reopen(&dir, log);
    let mut all = [&large, &small].map(|content| Digest::of(content));
    all.sort();
    assert_eq!(log.components().await.unwrap(), all);
    for content in [&large, &small] {
        assert!(log.has_component(Digest::of(content)).await.unwrap());
        assert_eq!(log.component(Digest::of(content)).await.unwrap().as_ref(), Some(content));
    }
    assert!(!log.has_component(missing).await.unwrap());
    assert_eq!(log.component(missing).await.unwrap(), None);
    log.remove_component(Digest::of(&large)).await.unwrap();
    let log = reopen(&dir, log);
    assert_eq!(log.components().await.unwrap(), [Digest::of(&small)]);
    assert_eq!(log.component(Digest::of(&large)).await.unwrap(), None);
}

/// Opening takes the path as it is given.
#[test]
fn the_defaults_are_as_documented() {
    let options = Options::new("data");
    assert_eq!((options.dir.as_path(), options.prefix.as_str()), (Path::new("data"), "millrace"));
    assert_eq!((options.size_max_bytes, options.record_max_bytes), (8 << 30, 1 << 20));
}
