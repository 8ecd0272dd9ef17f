use std::fs;
use std::path::Path;

use millrace_core::progress::KeyHash;

use super::super::{EmbeddedLog, OpenError};
use super::support::*;
use crate::broker::{Assignment, Broker, Catalog, Force, LetterAction, Partition, StateEntry, StateRange};

type Content = (Vec<Vec<(u64, String)>>, Vec<(u64, String)>, u64, Vec<u128>, Vec<StateEntry>);

/// Everything that can be read, or the first error.
async fn content(log: &EmbeddedLog) -> Result<Content, String> {
    let mut topics = Vec::new();
    for info in log.topics().await.map_err(|e| e.to_string())? {
        for (number, partition) in (0..).zip(&info.partitions) {
            let mut found = Vec::new();
            let mut next = partition.earliest;
            while next < partition.next {
                let read = log.read(&topic(&info.name), number, next, 50).await.map_err(|e| e.to_string())?;
                next = read.next;
                found.extend(texts(&read));
            }
            topics.push(found);
        }
    }
    let pay = function("shop.pay");
    let letters = log.letters(&pay, None, 100).await.map_err(|e| e.to_string())?;
    let letters = letters.into_iter().map(|l| (l.id.offset, format!("{:?}", l.status))).collect();
    let mut receiver = log.subscribe(subscription("shop.pay", &["orders"])).await.map_err(|e| e.to_string())?;
    let Assignment { restored, partition, .. } = receiver.try_recv().map_err(|e| e.to_string())?;
    let range = StateRange { max: 100, max_bytes: 1 << 20, ..StateRange::default() };
    let state = Catalog::state(log, partition.unit(), range).await.map_err(|e| e.to_string())?;
    let keys = (0..100).filter(|key| restored.keys.contains(KeyHash(*key), NOW)).collect();
    Ok((topics, letters, restored.progress.commits, keys, state))
}

/// A log with something of each kind.
async fn fill(log: &EmbeddedLog, rounds: u64) {
    let mut assignment = assigned(log, "shop.pay").await;
    let mut progress = assignment.restored.progress.clone();
    for round in 0..rounds {
        let value = format!("{round} {}", "x".repeat(2_000));
        publish(log, "orders", 0, &[&value, "small"]).await;
        progress.source.resume += 2;
        progress.source.totals.completed += 1;
        progress.source.totals.dead_lettered += 1;
        progress.commits += 1;
        let mut next = commit(&progress);
        next.outputs = vec![outgoing("orders", 1, &value)];
        next.keys = vec![KeyHash(round.into())];
        next.state =
            vec![state_write(&format!("key {}", round % 4), Some(&value)), state_write("small", Some(&value[..1]))];
        next.letters = vec![letter(progress.source.resume - 1, "dead")];
        commits(&mut assignment.partition, next).await;
    }
    let ids = [letter_id(1)];
    log.act_on_letters(&function("shop.pay"), &ids, LetterAction::Redrive, Force::Yes).await.unwrap();
}

/// Moves what is in the journal to tables and blobs, so that those can be damaged too.
fn flush(dir: &Path) {
    let database = fjall::Database::builder(dir.join("log")).open().unwrap();
    for name in super::super::storage::Table::ALL.map(|t| t.name()) {
        database.keyspace(name, || unreachable!("{name} exists")).unwrap().rotate_memtable_and_wait().unwrap();
    }
}

/// A log of which some is in tables and some in the journal, and what it holds.
async fn filled() -> (tempfile::TempDir, Content) {
    let (dir, log) = orders().await;
    fill(&log, 10).await;
    drop(log);
    flush(dir.path());
    let log = EmbeddedLog::open(options(dir.path())).unwrap();
    fill(&log, 10).await;
    let expected = content(&log).await.unwrap();
    drop(log);
    (dir, expected)
}

async fn damage(dir: &Path, expected: &Content, file: &Path, change: impl Fn(&mut Vec<u8>)) -> Option<String> {
    let copied = tempfile::tempdir().unwrap();
    copy(dir, copied.path());
    let target = copied.path().join(file);
    let mut bytes = fs::read(&target).unwrap();
    change(&mut bytes);
    fs::write(&target, bytes).unwrap();
    let log = match EmbeddedLog::open(options(copied.path())) {
        Ok(log) => log,
        Err(error) => {
            let named = matches!(error, OpenError::Corrupted { .. } | OpenError::NewerFormat { .. });
            assert!(named, "damage to {} is called: {error}", file.display());
            return Some(error.to_string());
        }
    };
    match content(&log).await {
        Ok(found) => assert!(found == *expected, "damage to {} went unnoticed", file.display()),
        Err(error) => return Some(error),
    }
    None
}

/// Not who had the log open last, not an empty file, not a manifest that is no longer the current one.
fn matters(dir: &Path, file: &Path) -> bool {
    let path = dir.join(file);
    let current = fs::read(path.with_file_name("current")).unwrap_or_default();
    let current = current.first_chunk::<8>().map(|version| format!("v{}", u64::from_le_bytes(*version)));
    let name = file.file_name().unwrap().to_str().unwrap();
    let outdated = current.is_some_and(|current| name.starts_with('v') && name != current);
    file != Path::new("lock") && fs::metadata(path).unwrap().len() > 0 && !outdated
}

/// What has never left the journal is lost with it; that must not look like a log that was never used.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_its_content_is_noticed() {
    let (dir, log) = orders().await;
    fill(&log, 3).await;
    let expected = content(&log).await.unwrap();
    drop(log);
    let journals = files(dir.path()).into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "jnl"));
    let journals: Vec<_> = journals.map(|file| file.strip_prefix(dir.path()).unwrap().to_owned()).collect();
    assert_eq!(journals.len(), 1);
    let emptied = damage(dir.path(), &expected, &journals[0], Vec::clear).await;
    assert!(emptied.is_some_and(|error| error.contains("keyspace `state`: it is empty")));
    let zeroed = damage(dir.path(), &expected, &journals[0], |bytes| bytes.fill(0)).await;
    assert!(zeroed.is_some_and(|error| error.contains("keyspace `state`: it is empty")));
    fs::remove_file(dir.path().join(&journals[0])).unwrap();
    let error = EmbeddedLog::open(options(dir.path())).unwrap_err();
    assert!(error.to_string().contains("there is no journal"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_file_is_noticed_or_harmless() {
    let (dir, expected) = filled().await;
    for file in files(dir.path()) {
        let file = file.strip_prefix(dir.path()).unwrap();
        let bytes = fs::read(dir.path().join(file)).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        // Some places in each file, and its first and last bytes, where headers and trailers are.
        let places = (0..8).map(|i| i * used / 8).chain([1, 2, used.saturating_sub(1), used.saturating_sub(9)]);
        let mut noticed = 0;
        for at in places.filter(|at| *at < used) {
            let error = damage(dir.path(), &expected, file, |bytes| bytes[at] ^= 0x04).await;
            noticed += usize::from(error.is_some());
        }
        assert_eq!(noticed > 0, matters(dir.path(), file), "damage to {} was noticed {noticed} times", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_lost_a_part_is_noticed() {
    let (dir, expected) = filled().await;
    let all = files(dir.path());
    // Half a journal is what a crash leaves, and is looked at below.
    for file in all.iter().filter(|file| file.extension().is_none_or(|ext| ext != "jnl")) {
        let file = file.strip_prefix(dir.path()).unwrap();
        if !matters(dir.path(), file) {
            continue;
        }
        let cut = damage(dir.path(), &expected, file, |bytes| bytes.truncate(bytes.len() / 2)).await;
        assert!(cut.is_some(), "half of {} is enough", file.display());
        let emptied = damage(dir.path(), &expected, file, Vec::clear).await;
        assert!(emptied.is_some(), "{} is not needed", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_cut_off_anywhere_keeps_a_whole_prefix() {
    let (dir, log) = orders().await;
    let mut sizes = vec![];
    let journal = dir.path().join("log/0.jnl");
    for round in 0..12 {
        let bytes = fs::read(&journal).unwrap();
        sizes.push(bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1));
        publish(&log, "orders", 0, &[&format!("{round}"), "second"]).await;
    }
    let copied = tempfile::tempdir().unwrap();
    copy(dir.path(), copied.path());
    let whole = fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    sizes.push(used);
    // At the end of each write, and at many places between.
    for cut in sizes.iter().copied().chain((sizes[0]..used).step_by(211)) {
        let torn = tempfile::tempdir().unwrap();
        copy(copied.path(), torn.path());
        for tail in [&[][..], &[0; 64], &[0xa5; 33]] {
            fs::write(torn.path().join("log/0.jnl"), [&whole[..cut], tail].concat()).unwrap();
            let log = EmbeddedLog::open(options(torn.path())).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let acknowledged = sizes[1..].iter().filter(|size| **size <= cut).count();
            let found = all(&log, "orders", 0).await;
            let values = (0..acknowledged).flat_map(|round| [round.to_string(), "second".to_owned()]);
            assert_eq!(found, (0..).zip(values).collect::<Vec<_>>(), "cut at {cut}");
            publish(&log, "orders", 0, &["goes on"]).await;
        }
    }
    drop(log);
}

/// Copies of the directory that are made, and rounds of work during each.
const COPIES: u32 = 20;
const ROUNDS: u32 = 20;

/// A copy of the directory at any moment is what a crash would leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_moment_loses_nothing_that_was_acknowledged() {
    let (dir, log) = orders().await;
    let assignment = assigned(&log, "shop.pay").await;
    let (sender, acknowledged) = tokio::sync::watch::channel((0u64, 0u64));
    // Some more rounds for each copy, so that there is something to copy in the middle of, however slow the machine is.
    let rounds = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let allowed = rounds.clone();
    let worker = tokio::spawn(async move {
        let mut partition = assignment.partition;
        let mut progress = assignment.restored.progress;
        for round in 0..u64::from(COPIES * ROUNDS) {
            allowed.acquire().await.unwrap().forget();
            publish(&log, "orders", 0, &[&round.to_string(), &"x".repeat(3_000)]).await;
            sender.send_modify(|(published, _)| *published = 2 * (round + 1));
            progress = after(&progress, 2);
            let mut next = commit(&progress);
            next.outputs = vec![outgoing("orders", 1, &round.to_string())];
            next.keys = vec![KeyHash(round.into())];
            commits(&mut partition, next).await;
            sender.send_modify(|(_, committed)| *committed = round + 1);
        }
    });
    for _ in 0..COPIES {
        rounds.add_permits(ROUNDS as usize);
        let (published, committed) = *acknowledged.borrow();
        let crashed = tempfile::tempdir().unwrap();
        copy(dir.path(), crashed.path());
        let log = EmbeddedLog::open(options(crashed.path())).unwrap();
        let records = all(&log, "orders", 0).await;
        assert!(records.len() as u64 >= published && records.len() % 2 == 0, "a batch is whole or not there");
        let restored = assigned(&log, "shop.pay").await.restored;
        let outputs = all(&log, "orders", 1).await;
        assert!(restored.progress.commits >= committed);
        assert_eq!(outputs.len() as u64, restored.progress.commits, "a commit is whole or not there");
        assert_eq!(restored.keys.len() as u64, restored.progress.commits);
        assert_eq!(restored.progress.source.resume, 2 * restored.progress.commits);
    }
    worker.await.unwrap();
}
