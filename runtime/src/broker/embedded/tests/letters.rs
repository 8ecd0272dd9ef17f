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
