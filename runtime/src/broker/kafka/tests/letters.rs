use millrace_core::letter::LetterHeaders;
use millrace_core::progress::{Progress, Stream};

use super::support::*;
use crate::broker::{Catalog, CatalogError, Force, LetterAction, LetterStatus, Partition, Wanted};

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_opened_redriven_and_resolved() {
    let Some(cluster) = Cluster::find() else { return };
    let log = cluster.orders().await;
    cluster.publish(&log, "orders", 0, &["a", "b"]).await;
    let mut receiver = cluster.subscribe(&log).await;
    let mut partition = assigned(&mut receiver, 2).await.swap_remove(0).partition;
    let mut progress = after(&Progress::default(), 2);
    let mut failed = commit(&progress);
    failed.letters = vec![cluster.letter(0, "a"), cluster.letter(1, "b")];
    commits(&mut partition, failed).await;
    assert_eq!(within(log.open_letters(&function())).await.unwrap(), 2);
    let listed = within(log.letters(&function(), Some(&cluster.letter_id(0)), 10)).await.unwrap();
    assert_eq!(listed.iter().map(|letter| letter.id.offset).collect::<Vec<_>>(), [1]);
    assert_eq!((listed[0].status, listed[0].record.clone()), (LetterStatus::Open, cluster.letter(1, "b").record));

    let act = async |offset, action| {
        within(log.act_on_letters(&function(), &[cluster.letter_id(offset)], action, Force::No)).await
    };
    act(0, LetterAction::Redrive).await.unwrap();
    let again = act(0, LetterAction::Redrive).await.unwrap_err();
    assert!(matches!(again, CatalogError::NotOpen { status: LetterStatus::Redriven, .. }), "{again}");
    act(1, LetterAction::Discard("no use".to_owned())).await.unwrap();
    let unknown = act(7, LetterAction::Redrive).await.unwrap_err();
    assert!(matches!(unknown, CatalogError::UnknownLetter(..)), "{unknown}");

    let redrive = Wanted { source: Some(3), redrive: Some(0), max_records: 10, max_bytes: 1 << 20 };
    let fetched = within(partition.fetch(redrive)).await.unwrap();
    assert_eq!((fetched.stream, texts(&fetched)), (Stream::Redrive, vec!["a".to_owned()]));
    assert_eq!(LetterHeaders::read(&fetched.records[0].1).map(|headers| headers.redrives), Ok(1));
    progress.redrive.resume += 1;
    progress.redrive.totals.completed += 1;
    progress.commits += 1;
    let mut done = commit(&progress);
    // The other one was discarded meanwhile, which stays.
    done.resolved = vec![cluster.letter_id(0), cluster.letter_id(1)];
    commits(&mut partition, done).await;
    let status = async |offset| {
        let letter = within(log.letter(&function(), &cluster.letter_id(offset))).await.unwrap();
        (letter.status, letter.note)
    };
    assert_eq!(status(0).await, (LetterStatus::Resolved, None));
    assert_eq!(status(1).await, (LetterStatus::Discarded, Some("no use".to_owned())));
    assert_eq!(within(log.open_letters(&function())).await.unwrap(), 0);
    // Another instance reads the same.
    let other = cluster.open().await;
    assert_eq!(within(other.open_letters(&function())).await.unwrap(), 0);
    assert_eq!(within(other.letters(&function(), None, 10)).await.unwrap().len(), 2);
}
