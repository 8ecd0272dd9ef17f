use bytes::Bytes;
use millrace_core::record::{HeadersBuilder, Record};

use super::super::prepare::REDRIVES_HEADER;
use super::support::*;
use crate::broker::{Catalog, CatalogError, Force, LetterAction, LetterStatus, Partition};

fn pay() -> millrace_core::name::FunctionName {
    function("shop.pay")
}

async fn statuses(log: &super::super::EmbeddedLog) -> Vec<(u64, LetterStatus)> {
    let letters = log.letters(&pay(), None, 100).await.unwrap();
    let open = letters.iter().filter(|l| l.status == LetterStatus::Open).count() as u64;
    assert_eq!(log.open_letters(&pay()).await.unwrap(), open);
    letters.into_iter().map(|l| (l.id.offset, l.status)).collect()
}

#[tokio::test]
async fn a_letter_goes_through_its_life_cycle() {
    use LetterStatus::{Discarded, Open, Redriven, Resolved};
    let (dir, log) = orders().await;
    publish(&log, "orders", 0, &["a", "b", "c", "d"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let (mut partition, start) = (assignment.partition, assignment.restored.progress);
    let mut failed = start.clone();
    failed.source.resume = 4;
    failed.source.totals.dead_lettered = 4;
    failed.commits = 1;
    let mut first = commit(&failed);
    first.letters = (0..4).map(|offset| letter(offset, &format!("letter {offset}"))).collect();
    commits(&mut partition, first).await;
    assert_eq!(statuses(&log).await, [(0, Open), (1, Open), (2, Open), (3, Open)]);

    let act = async |log: &super::super::EmbeddedLog, ids: &[u64], action, force| {
        let ids: Vec<_> = ids.iter().map(|o| letter_id(*o)).collect();
        log.act_on_letters(&pay(), &ids, action, force).await
    };
    act(&log, &[0, 1, 0], LetterAction::Redrive, Force::No).await.unwrap();
    act(&log, &[2], LetterAction::Discard("not ours".to_owned()), Force::No).await.unwrap();
    assert_eq!(statuses(&log).await, [(0, Redriven), (1, Redriven), (2, Discarded), (3, Open)]);
    // All or none: the third is not open.
    let error = act(&log, &[3, 2], LetterAction::Redrive, Force::No).await.unwrap_err();
    assert_eq!(error.to_string(), "dead letter `orders/0/2` of `shop.pay` is discarded, not open");
    let error = act(&log, &[3, 9], LetterAction::Redrive, Force::No).await.unwrap_err();
    assert!(matches!(error, CatalogError::UnknownLetter(..)), "{error}");
    assert_eq!(statuses(&log).await[3], (3, Open));

    let redriven = partition.fetch(redrive_wanted(0)).await.unwrap();
    assert!(is_redrive(&redriven));
    assert_eq!(texts(&redriven), numbered(0, &["letter 0", "letter 1"]));
    // The first completes, the second fails again and replaces its letter.
    let mut again = failed.clone();
    again.redrive.resume = 2;
    again.redrive.totals.completed = 1;
    again.redrive.totals.dead_lettered = 1;
    again.commits = 2;
    let mut second = commit(&again);
    second.resolved = vec![letter_id(0)];
    second.letters = vec![letter(1, "worse")];
    commits(&mut partition, second).await;
    drop(partition);
    let log = reopen(&dir, log);
    assert_eq!(statuses(&log).await, [(0, Resolved), (1, Open), (2, Discarded), (3, Open)]);
    let stored = log.letter(&pay(), &letter_id(1)).await.unwrap();
    assert_eq!(stored.record.value.as_deref(), Some(&b"worse"[..]));
    let discarded = log.letter(&pay(), &letter_id(2)).await.unwrap();
    assert_eq!(discarded.note.as_deref(), Some("not ours"));
    assert!(discarded.status_at >= NOW);
    act(&log, &[0, 1, 2, 3], LetterAction::Resolve(None), Force::Yes).await.unwrap();
    assert_eq!(statuses(&log).await, [(0, Resolved), (1, Resolved), (2, Resolved), (3, Resolved)]);
}

#[tokio::test]
async fn a_redrive_keeps_the_record_and_counts_itself() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut headers = HeadersBuilder::default();
    headers.push_str("ce_id", "1");
    headers.push_str(REDRIVES_HEADER, "4");
    headers.push_str("millrace-reason", "it failed");
    let mut dead = letter(0, "a");
    dead.record.headers = headers.build();
    let mut progress = assignment.restored.progress;
    progress.source.resume = 1;
    progress.source.totals.dead_lettered = 1;
    progress.commits = 1;
    let mut first = commit(&progress);
    first.letters = vec![dead.clone()];
    commits(&mut partition, first).await;
    for redrives in ["5", "6"] {
        log.act_on_letters(&pay(), &[letter_id(0)], LetterAction::Redrive, Force::Yes).await.unwrap();
        let fetched = partition.fetch(redrive_wanted(u64::from(redrives == "6"))).await.unwrap();
        let Record { key, value, headers, .. } = fetched.records[0].1.clone();
        assert_eq!((key, value), (dead.record.key.clone(), dead.record.value.clone()));
        let text = |s: &'static str| Some(Bytes::from_static(s.as_bytes()));
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.to_owned(), v)).collect();
        let expected =
            [("ce_id", text("1")), ("millrace-reason", text("it failed")), (REDRIVES_HEADER, text(redrives))];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v)));
    }
}

#[tokio::test]
async fn letters_are_listed_by_identity_in_pages() {
    let (_dir, log) = orders().await;
    let values: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    publish(&log, "orders", 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = assignment.restored.progress;
    progress.source.resume = 20;
    progress.source.totals.dead_lettered = 20;
    progress.commits = 1;
    let mut first = commit(&progress);
    first.letters = (0..20).rev().map(|n| letter(n, &n.to_string())).collect();
    commits(&mut partition, first).await;
    let mut seen = Vec::new();
    let mut last = None;
    loop {
        let page = log.letters(&pay(), last.as_ref(), 6).await.unwrap();
        let Some(newest) = page.last() else { break };
        last = Some(newest.id.clone());
        seen.extend(page.into_iter().map(|l| (l.id.offset, l.record.value.unwrap())));
    }
    assert_eq!(seen, (0..20).map(|n| (n, Bytes::from(n.to_string()))).collect::<Vec<_>>());
    assert!(log.letters(&function("shop.other"), None, 6).await.unwrap().is_empty());
    assert!(log.letters(&function("shop.pa"), None, 6).await.unwrap().is_empty());
    assert!(log.letters(&pay(), None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_letter_that_a_person_closed_meanwhile_stays_closed() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = assignment.restored.progress;
    progress.source.resume = 1;
    progress.source.totals.dead_lettered = 1;
    progress.commits = 1;
    let mut first = commit(&progress);
    first.letters = vec![letter(0, "a")];
    commits(&mut partition, first).await;
    log.act_on_letters(&pay(), &[letter_id(0)], LetterAction::Redrive, Force::No).await.unwrap();
    log.act_on_letters(&pay(), &[letter_id(0)], LetterAction::Discard("no".into()), Force::Yes).await.unwrap();
    let mut second = commit(&after_redrive(&progress));
    second.resolved = vec![letter_id(0)];
    commits(&mut partition, second).await;
    assert_eq!(statuses(&log).await, [(0, LetterStatus::Discarded)]);
}

#[tokio::test]
async fn a_letter_that_comes_again_is_counted_once() {
    let (_dir, log) = orders().await;
    publish(&log, "orders", 0, &["a"]).await;
    let assignment = assigned(&log, "shop.pay").await;
    let mut partition = assignment.partition;
    let mut progress = assignment.restored.progress;
    progress.source.resume = 1;
    progress.source.totals.dead_lettered = 1;
    progress.commits = 1;
    let mut first = commit(&progress);
    first.letters = vec![letter(0, "first")];
    commits(&mut partition, first).await;
    // Two redrives by force: both fail in one commit, then one completes and the other fails.
    for (resolved, values) in [(vec![], vec!["second", "third"]), (vec![letter_id(0)], vec!["fourth"])] {
        for _ in 0..2 {
            log.act_on_letters(&pay(), &[letter_id(0)], LetterAction::Redrive, Force::Yes).await.unwrap();
        }
        assert_eq!(log.open_letters(&pay()).await.unwrap(), 0);
        progress.redrive.resume += 2;
        progress.redrive.totals.completed += resolved.len() as u64;
        progress.redrive.totals.dead_lettered += values.len() as u64;
        progress.commits += 1;
        let mut next = commit(&progress);
        next.letters = values.iter().map(|value| letter(0, value)).collect();
        next.resolved = resolved;
        commits(&mut partition, next).await;
        assert_eq!(statuses(&log).await, [(0, LetterStatus::Open)]);
        let stored = log.letter(&pay(), &letter_id(0)).await.unwrap();
        assert_eq!(stored.record.value.as_deref(), values.last().map(|value| value.as_bytes()));
    }
    // It is open already.
    let mut again = progress.clone();
    again.commits += 1;
    let mut last = commit(&again);
    last.letters = vec![letter(0, "fifth")];
    commits(&mut partition, last).await;
    assert_eq!(statuses(&log).await, [(0, LetterStatus::Open)]);
}

#[tokio::test]
async fn many_letters_change_in_several_writes() {
    let (dir, log) = orders().await;
    let values: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    publish(&log, "orders", 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    drop(log);
    let (log, gate) = Gate::open_on(dir.path());
    let mut assignment = assigned(&log, "shop.pay").await;
    let mut progress = assignment.restored.progress.clone();
    progress.source.resume = 40;
    progress.source.totals.dead_lettered = 40;
    progress.commits = 1;
    let mut first = commit(&progress);
    first.letters = (0..40).map(|n| letter(n, &n.to_string())).collect();
    commits(&mut assignment.partition, first).await;
    let before = gate.writes.load(std::sync::atomic::Ordering::SeqCst);
    let ids: Vec<_> = (0..40).map(letter_id).collect();
    let act = async |ids: &[_]| log.act_on_letters(&pay(), ids, LetterAction::Redrive, Force::No).await;
    // Whatever is wrong is found before the first letter changes.
    let error = act(&[&ids[..], &[letter_id(99)]].concat()).await.unwrap_err();
    assert!(matches!(error, CatalogError::UnknownLetter(..)), "{error}");
    assert_eq!(gate.writes.load(std::sync::atomic::Ordering::SeqCst), before);
    act(&ids).await.unwrap();
    assert_eq!(gate.writes.load(std::sync::atomic::Ordering::SeqCst), before + 3);
    let redriven = assignment.partition.fetch(redrive_wanted(0)).await.unwrap();
    assert_eq!(texts(&redriven), (0..40).map(|n| (n, n.to_string())).collect::<Vec<_>>());
    assert!(statuses(&log).await.iter().all(|(_, status)| *status == LetterStatus::Redriven));
}
