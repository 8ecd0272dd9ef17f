//! Looks over the database's files before the storage engine opens them.
//!
//! The engine trusts two things that it should not: it takes the first unreadable entry of a journal for the end of the journal
//! and cuts off all that follows, and it does not compare a manifest with its checksum, but removes the files that a manifest
//! does not name. Damage in either would silently take acknowledged records away. Here a journal's torn tail, which a crash
//! leaves and nobody was told of, is told from damage before its end, which is reported and nothing touched.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// What is wrong with which file.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) reason: String,
}

impl Damage {
    fn new(file: &Path, reason: &impl ToString) -> Self {
        Self { file: file.to_owned(), reason: reason.to_string() }
    }
}

/// Checks the manifests of `keyspaces` keyspaces and all journals, and cuts off what a crash left unfinished.
pub(super) fn check(database: &Path, keyspaces: usize) -> Result<(), Damage> {
    check_version(&database.join("version"))?;
    // The engine numbers keyspaces from 1 and keeps their names in number 0.
    for number in 0..=keyspaces {
        check_manifest(&database.join("keyspaces").join(number.to_string()))?;
    }
    check_journals(database)
}

fn check_version(file: &Path) -> Result<(), Damage> {
    match fs::read(file) {
        Ok(content) if content == MAGIC => Ok(()),
        Ok(_) => Err(Damage::new(file, &"it does not name version 3 of the storage engine")),
        Err(e) => Err(Damage::new(file, &e)),
    }
}

/// `current` holds the number of the manifest (u64, little endian), its 128-bit XXH3 and the number of that algorithm, 0.
fn check_manifest(keyspace: &Path) -> Result<(), Damage> {
    let current = keyspace.join("current");
    let content = fs::read(&current).map_err(|e| Damage::new(&current, &e))?;
    let parsed = content.split_first_chunk::<8>().and_then(|(version, rest)| {
        let (checksum, algorithm) = rest.split_first_chunk::<16>()?;
        (algorithm == [0]).then_some((u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
    });
    let (version, checksum) = parsed.ok_or_else(|| Damage::new(&current, &"it is malformed"))?;
    let manifest = keyspace.join(format!("v{version}"));
    let content = fs::read(&manifest).map_err(|e| Damage::new(&manifest, &e))?;
    if xxh3_128(&content) != checksum {
        return Err(Damage::new(&manifest, &format!("its checksum does not match `{}`", current.display())));
    }
    Ok(())
}

/// Checks journals from the newest to the oldest, for only the last batch of all can be torn.
fn check_journals(database: &Path) -> Result<(), Damage> {
    let mut batches_follow = false;
    let journals = journals(database).map_err(|e| Damage::new(database, &e))?;
    if journals.is_empty() {
        // There is one from the beginning, and a new one before an old one goes.
        return Err(Damage::new(&database.join("*.jnl"), &"there is no journal"));
    }
    for file in journals.iter().rev() {
        let content = fs::read(file).map_err(|e| Damage::new(file, &e))?;
        match scan(&content) {
            Tail::Clean { batches } => batches_follow |= batches > 0,
            Tail::Torn { .. } if batches_follow => {
                return Err(Damage::new(file, &"a batch in it is damaged, and later journals hold more"));
            }
            Tail::Torn { end, batches } => {
                truncate(file, end).map_err(|e| Damage::new(file, &e))?;
                batches_follow |= batches > 0;
            }
            Tail::Damaged { at } => {
                return Err(Damage::new(file, &format!("the batch at byte {at} is damaged, and valid ones follow")));
            }
        }
    }
    Ok(())
}

/// All journals, oldest first.
fn journals(database: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(database)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "jnl") {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            found.push((number.ok_or_else(|| io::Error::other("a journal's name is no number"))?, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn truncate(file: &Path, end: usize) -> io::Result<()> {
    tracing::warn!(file = %file.display(), end, "Cut an unfinished batch off the end of a journal.");
    let journal = fs::OpenOptions::new().write(true).open(file)?;
    journal.set_len(end as u64)?;
    journal.sync_all()
}

/// How a journal ends.
#[derive(Debug, PartialEq, Eq)]
enum Tail {
    /// With a whole batch, or zeros up to the size that was set aside.
    Clean { batches: usize },
    /// With bytes that are no whole batch, from `end` on.
    Torn { end: usize, batches: usize },
    /// A batch is broken, and valid ones follow.
    Damaged { at: usize },
}

fn scan(journal: &[u8]) -> Tail {
    let (mut at, mut batches, mut sequence) = (0, 0, None);
    while let Some(batch) = batch(&journal[at..]) {
        // The sequence number is outside the checksum.
        if sequence.replace(batch.sequence).is_some_and(|previous| previous >= batch.sequence) {
            return Tail::Damaged { at };
        }
        at += batch.len;
        batches += 1;
    }
    let rest = &journal[at..];
    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else { return Tail::Clean { batches } };
    let rest = &rest[..=last];
    // A valid batch has a checksum of 64 bits, so none is found by chance.
    let follows = (1..rest.len()).any(|i| rest[i] == START && batch(&rest[i..]).is_some());
    if follows { Tail::Damaged { at } } else { Tail::Torn { end: at, batches } }
}

const MAGIC: [u8; 4] = *b"FJL\x03";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// A valid batch.
struct Batch {
    len: usize,
    sequence: u64,
}

/// The valid batch that `bytes` begin with.
///
/// Start: 1, number of items (u32), sequence number (u64). Item: 2, type (u8), compression (u8), keyspace (u64), lengths of
/// key (u16), value (u32) and value on disk (u32), key, value. Clear: 4, keyspace (u64). End: 3, XXH3 of the items (u64),
/// `FJL` and 3. All little endian.
fn batch(bytes: &[u8]) -> Option<Batch> {
    if *bytes.first()? != START {
        return None;
    }
    let items = u32::from_le_bytes(array(bytes, 1..5)?);
    let sequence = u64::from_le_bytes(array(bytes, 5..13)?);
    let mut at = 13;
    let mut hasher = Xxh3::new();
    for _ in 0..items {
        let len = item_len(bytes.get(at..)?)?;
        hasher.update(bytes.get(at..at.checked_add(len)?)?);
        at += len;
    }
    let end = bytes.get(at..at + 13)?;
    let whole = end[0] == END && array(end, 1..9)? == hasher.digest().to_le_bytes() && end[9..] == MAGIC;
    whole.then_some(Batch { len: at + 13, sequence })
}

fn item_len(item: &[u8]) -> Option<usize> {
    match *item.first()? {
        ITEM => {
            let key = usize::from(u16::from_le_bytes(array(item, 11..13)?));
            let value = usize::try_from(u32::from_le_bytes(array(item, 17..21)?)).ok()?;
            value.checked_add(21 + key)
        }
        CLEAR => Some(9),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8], range: Range<usize>) -> Option<[u8; N]> {
    bytes.get(range)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sequence: u64, items: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![START];
        bytes.extend_from_slice(&u32::try_from(items.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        let from = bytes.len();
        for value in items {
            bytes.extend_from_slice(&[ITEM, 0, 0]);
            bytes.extend_from_slice(&1u64.to_le_bytes());
            bytes.extend_from_slice(&1u16.to_le_bytes());
            let len = u32::try_from(value.len()).unwrap().to_le_bytes();
            bytes.extend_from_slice(&[len, len].concat());
            bytes.push(b'k');
            bytes.extend_from_slice(value);
        }
        let mut hasher = Xxh3::new();
        hasher.update(&bytes[from..]);
        bytes.push(END);
        bytes.extend_from_slice(&hasher.digest().to_le_bytes());
        bytes.extend_from_slice(&MAGIC);
        bytes
    }

    fn check(parts: &[&[u8]], expected: &Tail) {
        assert_eq!(scan(&parts.concat()), *expected);
    }

    #[test]
    fn a_torn_tail_is_told_from_damage_before_the_end() {
        let (a, b) = (written(1, &[b"one", b"two"]), written(2, &[b"three"]));
        let c = written(3, &[]);
        let zeros = [0; 100];
        let mut flipped = a.clone();
        flipped[30] ^= 1;
        check(&[], &Tail::Clean { batches: 0 });
        check(&[&zeros], &Tail::Clean { batches: 0 });
        check(&[&a, &b], &Tail::Clean { batches: 2 });
        check(&[&a, &b, &zeros], &Tail::Clean { batches: 2 });
        check(&[&a, &b[..b.len() - 1]], &Tail::Torn { end: a.len(), batches: 1 });
        check(&[&a, &b[..20], &zeros], &Tail::Torn { end: a.len(), batches: 1 });
        check(&[&a, &[9, 9, 9]], &Tail::Torn { end: a.len(), batches: 1 });
        check(&[&b, &flipped], &Tail::Torn { end: b.len(), batches: 1 });
        check(&[&flipped, &b], &Tail::Damaged { at: 0 });
        check(&[&b, &flipped, &c, &zeros], &Tail::Damaged { at: b.len() });
    }

    #[test]
    fn damage_anywhere_in_a_batch_that_others_follow_is_reported() {
        let (a, b) = (written(1, &[b"one", b"two"]), written(2, &[b"three"]));
        for at in 0..a.len() {
            let mut flipped = a.clone();
            flipped[at] ^= 0x10;
            let noticed_at = if (5..13).contains(&at) { a.len() } else { 0 };
            check(&[&flipped, &b], &Tail::Damaged { at: noticed_at });
        }
    }

    #[test]
    fn a_manifest_is_compared_with_its_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let current = [&7u64.to_le_bytes()[..], &xxh3_128(b"manifest").to_le_bytes(), &[0]].concat();
        fs::write(dir.path().join("current"), &current).unwrap();
        let check = |content: &[u8], expected: Option<&str>| {
            fs::write(dir.path().join("v7"), content).unwrap();
            let reason = check_manifest(dir.path()).err().map(|damage| damage.reason);
            assert_eq!(reason.as_ref().map(|r| &r[..20]), expected);
        };
        check(b"manifest", None);
        check(b"manifesto", Some("its checksum does no"));
        check(b"", Some("its checksum does no"));
        fs::write(dir.path().join("current"), &current[..20]).unwrap();
        assert_eq!(check_manifest(dir.path()).unwrap_err().reason, "it is malformed");
    }
}
