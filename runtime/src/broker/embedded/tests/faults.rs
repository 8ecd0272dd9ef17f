use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;

use super::super::EmbeddedLog;
use super::support::*;
use crate::broker::{Broker, Catalog, CatalogError, Error, FetchError, Partition, PublishError};

/// The log, and whether anybody wrote after the failure.
fn faulty(dir: &std::path::Path, writes: u64, fault: Fault) -> (EmbeddedLog, Arc<AtomicBool>) {
    let mut wrote_again = Arc::default();
    let log = EmbeddedLog::open_on(options(dir), |disk| {
        let faulty = Faulty::after(Arc::new(disk), writes, fault);
        wrote_again = faulty.wrote_again.clone();
        Arc::new(faulty)
    });
    (log.unwrap(), wrote_again)
}

fn check_fatal(error: &Error, cause: &str) {
    assert!(is_fatal(error), "{error} is not fatal");
    let text = error.to_string();
    assert!(text.contains(cause) && text.contains("the process must stop; what was acknowledged is safe"), "{text}");
}

#[tokio::test]
async fn after_a_failed_write_nobody_writes_and_everybody_is_told() {
    for (fault, cause) in [(Fault::Full, "No space left on device"), (Fault::Unsynced, "Input/output error")] {
        let (dir, log) = orders().await;
        publish(&log, "orders", 0, &["acknowledged"]).await;
        drop(log);
        let (log, wrote_again) = faulty(dir.path(), 2, fault);
        let assignment = assigned(&log, "shop.pay").await;
        let mut partition = assignment.partition;
        publish(&log, "orders", 1, &["acknowledged too"]).await;
        let mut waiting = Box::pin(async { partition.fetch(wanted(1)).await });
        assert!(waiting.as_mut().now_or_never().is_none());

        let failed = log.publish(vec![outgoing("orders", 0, "lost or not")]).await.unwrap_err();
        let PublishError::Broker(failed) = failed else { panic!("{failed}") };
        check_fatal(&failed, cause);
        check_fatal(&log.failed().await, cause);
        let FetchError::Broker(fetched) = waiting.await.unwrap_err() else { panic!() };
        check_fatal(&fetched, cause);
        let progress = after(&assignment.restored.progress, 1);
        check_fatal(&partition.commit(commit(&progress)).await.unwrap_err(), cause);
        let Err(PublishError::Broker(later)) = log.publish(vec![outgoing("orders", 0, "later")]).await else {
            panic!()
        };
        check_fatal(&later, cause);
        let Err(CatalogError::Broker(created)) = log.create_topic(topic("new"), 1).await else { panic!() };
        check_fatal(&created, cause);
        check_fatal(&log.tick(NOW).await.unwrap_err(), cause);
        check_fatal(&log.subscribe(subscription("shop.pay", &["orders"])).await.unwrap_err(), cause);
        // Nothing of the failed write is seen.
        assert_eq!(all(&log, "orders", 0).await, numbered(0, &["acknowledged"]));
        drop(partition);
        drop(log);
        assert!(!wrote_again.load(Ordering::SeqCst));

        let log = EmbeddedLog::open(options(dir.path())).unwrap();
        let found = all(&log, "orders", 0).await;
        match fault {
            Fault::Full => assert_eq!(found, numbered(0, &["acknowledged"])),
            Fault::Unsynced => assert_eq!(found, numbered(0, &["acknowledged", "lost or not"])),
        }
        assert_eq!(all(&log, "orders", 1).await, numbered(0, &["acknowledged too"]));
    }
}

#[tokio::test]
async fn a_failed_commit_is_all_or_nothing_after_a_restart() {
    for fault in [Fault::Full, Fault::Unsynced] {
        let (dir, log) = orders().await;
        publish(&log, "orders", 0, &["a"]).await;
        drop(log);
        let (log, wrote_again) = faulty(dir.path(), 1, fault);
        let assignment = assigned(&log, "shop.pay").await;
        let mut partition = assignment.partition;
        let progress = after(&assignment.restored.progress, 1);
        let mut first = commit(&progress);
        first.outputs = vec![outgoing("orders", 1, "out")];
        first.letters = vec![letter(0, "dead")];
        assert!(is_fatal(&partition.commit(first).await.unwrap_err()));
        drop(partition);
        drop(log);
        assert!(!wrote_again.load(Ordering::SeqCst));
        let log = EmbeddedLog::open(options(dir.path())).unwrap();
        let outputs = all(&log, "orders", 1).await.len();
        let letters = log.letters(&function("shop.pay"), None, 9).await.unwrap().len();
        let open = log.open_letters(&function("shop.pay")).await.unwrap();
        let commits = assigned(&log, "shop.pay").await.restored.progress.commits;
        let written = usize::from(fault == Fault::Unsynced);
        assert_eq!((outputs, letters, open, commits), (written, written, written as u64, written as u64));
    }
}

#[tokio::test]
async fn a_failed_write_while_removing_loses_nothing() {
    let (dir, log) = orders().await;
    for value in ["a", "b", "c"] {
        publish(&log, "orders", 0, &[value]).await;
    }
    drop(log);
    let (log, wrote_again) = faulty(dir.path(), 0, Fault::Full);
    check_fatal(&log.tick(NOW + 24 * 7 * HOUR + HOUR).await.unwrap_err(), "No space left");
    drop(log);
    assert!(!wrote_again.load(Ordering::SeqCst));
    let log = EmbeddedLog::open(options(dir.path())).unwrap();
    assert_eq!(all(&log, "orders", 0).await, numbered(0, &["a", "b", "c"]));
}
