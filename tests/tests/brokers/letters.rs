//! Dead letters, and what people do with them.

use millrace::broker::LetterStatus::{Discarded, Open, Redriven, Resolved};
use millrace::broker::{Catalog, CatalogError, Commit, Force, LetterAction, LetterStatus, Partition as _};
use millrace_core::letter::{self, LetterHeaders};
use millrace_core::progress::{Progress, Stream};

use super::steps::{
    after_failures, commits, fetch, fetch_texts, function, letter, letter_id, orders, redrive_wanted, subscribe,
    subscription, within,
};
use super::subjects::Subject;

async fn act<S: Subject>(
    subject: &S,
    log: &S::Log,
    offsets: &[u64],
    action: LetterAction,
    force: Force,
) -> Result<(), CatalogError> {
    let ids: Vec<_> = offsets.iter().map(|offset| letter_id(subject, *offset)).collect();
    within(log.act_on_letters(&function(), &ids, action, force)).await
}

async fn statuses<S: Subject>(log: &S::Log) -> Vec<LetterStatus> {
    let letters = within(log.letters(&function(), None, 100)).await.expect("letters can be listed");
    let statuses: Vec<_> = letters.into_iter().map(|letter| letter.status).collect();
    let open = within(log.open_letters(&function())).await.expect("letters can be counted");
    assert_eq!(open, statuses.iter().filter(|status| **status == Open).count() as u64);
    statuses
}

async fn value<S: Subject>(subject: &S, log: &S::Log, offset: u64) -> String {
    let id = letter_id(subject, offset);
    let letter = within(log.letter(&function(), &id)).await.expect("there is such a letter");
    String::from_utf8_lossy(&letter.record.value.unwrap_or_default()).into_owned()
}

/// Progress after this many more redriven records.
fn after_redrives(before: &Progress, completed: u64, failed: u64) -> Progress {
    let mut progress = before.clone();
    progress.redrive.resume += completed + failed;
    progress.redrive.totals.completed += completed;
    progress.redrive.totals.dead_lettered += failed;
    progress.commits += 1;
    progress
}

pub(crate) async fn a_letter_goes_through_its_life_cycle<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b", "c", "d"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let failed = after_failures(&Progress::default(), 4);
    let letters = (0..4).map(|offset| letter(&subject, offset, &format!("letter {offset}"))).collect();
    commits(partition, Commit { letters, ..Commit::new(subject.now(), failed.clone()) }).await;
    assert_eq!(statuses::<S>(&log).await, [Open; 4]);

    act(&subject, &log, &[0, 1, 0], LetterAction::Redrive, Force::No).await.expect("they are open");
    act(&subject, &log, &[2], LetterAction::Discard("not ours".into()), Force::No).await.expect("it is open");
    let expected = [Redriven, Redriven, Discarded, Open];
    assert_eq!(statuses::<S>(&log).await, expected);
    // All or none.
    let error = act(&subject, &log, &[3, 2], LetterAction::Redrive, Force::No).await.expect_err("one is not open");
    assert!(matches!(error, CatalogError::NotOpen { status: Discarded, .. }), "{error}");
    let error = act(&subject, &log, &[3, 9], LetterAction::Redrive, Force::No).await.expect_err("one is not there");
    assert!(matches!(error, CatalogError::UnknownLetter(..)), "{error}");
    assert_eq!(statuses::<S>(&log).await, expected);

    assert_eq!(fetch_texts(partition, redrive_wanted(0), 2).await, ["letter 0", "letter 1"]);
    // The first completes, the second fails again and replaces its letter.
    let again = Commit {
        resolved: vec![letter_id(&subject, 0)],
        letters: vec![letter(&subject, 1, "worse")],
        ..Commit::new(subject.now(), after_redrives(&failed, 1, 1))
    };
    commits(partition, again).await;
    drop(assigned);
    subject.close(log).await;
    let log = subject.open().await;
    assert_eq!(statuses::<S>(&log).await, [Resolved, Open, Discarded, Open]);
    assert_eq!(value(&subject, &log, 1).await, "worse");
    let discarded = within(log.letter(&function(), &letter_id(&subject, 2))).await.expect("there is such a letter");
    assert_eq!(discarded.note.as_deref(), Some("not ours"));
    let error = within(log.letter(&function(), &letter_id(&subject, 9))).await.expect_err("there is no such letter");
    assert!(matches!(error, CatalogError::UnknownLetter(..)), "{error}");
    act(&subject, &log, &[0, 1, 2, 3], LetterAction::Resolve(None), Force::Yes).await.expect("force opens all doors");
    assert_eq!(statuses::<S>(&log).await, [Resolved; 4]);
}

pub(crate) async fn a_redrive_keeps_the_record_and_counts_itself<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let mut dead = letter(&subject, 0, "a");
    let mut plain = letter::original(&dead.record);
    plain.headers = [("ce_id", Some(&b"1"[..])), ("none", None)].into_iter().collect();
    dead.record = LetterHeaders::read(&dead.record).expect("it is a letter").seal(&plain);
    let failed = after_failures(&Progress::default(), 1);
    commits(partition, Commit { letters: vec![dead], ..Commit::new(subject.now(), failed) }).await;
    for _ in 0..2 {
        act(&subject, &log, &[0], LetterAction::Redrive, Force::Yes).await.expect("force opens all doors");
    }
    let redriven = within(partition.fetch(redrive_wanted(0))).await.expect("there is one");
    assert_eq!(redriven.stream, Stream::Redrive);
    for (record, redrives) in fetch(partition, redrive_wanted(0), 2).await.iter().zip(1..) {
        let found = letter::original(record);
        assert_eq!((&found.key, &found.value, &found.headers), (&plain.key, &plain.value, &plain.headers));
        assert_eq!(LetterHeaders::read(record).map(|headers| headers.redrives), Ok(redrives));
    }
}

pub(crate) async fn letters_are_listed_by_identity_in_pages<S: Subject>(subject: S) {
    let log = orders(&subject, &["x"; 20]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let letters = (0..20).rev().map(|offset| letter(&subject, offset, &offset.to_string())).collect();
    let failed = after_failures(&Progress::default(), 20);
    commits(&mut assigned.first().partition, Commit { letters, ..Commit::new(subject.now(), failed) }).await;
    let (mut seen, mut last) = (Vec::new(), None);
    loop {
        let page = within(log.letters(&function(), last.as_ref(), 6)).await.expect("letters can be listed");
        let Some(newest) = page.last() else { break };
        assert!(page.len() <= 6);
        last = Some(newest.id.clone());
        seen.extend(page.into_iter().map(|letter| (letter.id.offset, letter.record.value)));
    }
    assert_eq!(seen, (0..20).map(|offset| (offset, Some(offset.to_string().into()))).collect::<Vec<_>>());
    for other in ["shop.other", "shop.pa"] {
        let other = other.parse().expect("a name");
        assert!(within(log.letters(&other, None, 6)).await.expect("letters can be listed").is_empty());
    }
}

pub(crate) async fn a_letter_that_a_person_closed_meanwhile_stays_closed<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let failed = after_failures(&Progress::default(), 1);
    let letters = vec![letter(&subject, 0, "a")];
    commits(partition, Commit { letters, ..Commit::new(subject.now(), failed.clone()) }).await;
    act(&subject, &log, &[0], LetterAction::Redrive, Force::No).await.expect("it is open");
    act(&subject, &log, &[0], LetterAction::Discard("no".into()), Force::Yes).await.expect("force opens all doors");
    let resolved = vec![letter_id(&subject, 0)];
    commits(partition, Commit { resolved, ..Commit::new(subject.now(), after_redrives(&failed, 1, 0)) }).await;
    assert_eq!(statuses::<S>(&log).await, [Discarded]);
}

pub(crate) async fn a_letter_that_comes_again_is_counted_once<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let mut progress = after_failures(&Progress::default(), 1);
    let letters = vec![letter(&subject, 0, "first")];
    commits(partition, Commit { letters, ..Commit::new(subject.now(), progress.clone()) }).await;
    // Two redrives by force: both fail in one commit, then one completes and the other fails.
    for (completed, values) in [(0, &["second", "third"][..]), (1, &["fourth"])] {
        for _ in 0..2 {
            act(&subject, &log, &[0], LetterAction::Redrive, Force::Yes).await.expect("force opens all doors");
        }
        assert_eq!(statuses::<S>(&log).await, [Redriven]);
        progress = after_redrives(&progress, completed, values.len() as u64);
        let letters = values.iter().map(|value| letter(&subject, 0, value)).collect();
        let resolved = std::iter::repeat_n(letter_id(&subject, 0), usize::from(completed > 0)).collect();
        commits(partition, Commit { letters, resolved, ..Commit::new(subject.now(), progress.clone()) }).await;
        assert_eq!(statuses::<S>(&log).await, [Open]);
        assert_eq!(Some(&*value(&subject, &log, 0).await), values.last().copied());
    }
    // It is open already.
    progress.commits += 1;
    let letters = vec![letter(&subject, 0, "fifth")];
    commits(partition, Commit { letters, ..Commit::new(subject.now(), progress) }).await;
    assert_eq!((statuses::<S>(&log).await, &*value(&subject, &log, 0).await), (vec![Open], "fifth"));
}
