//! The directory: `FORMAT` (what this is), `lock` (who has it open), `log` (the database).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use super::meta;
use super::storage::{Disk, Op, Storage as _, Table};

/// The version of all that lies in the directory; raised when an older Millrace could no longer read it.
const FORMAT: u32 = 2;
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_TEXT: &str = "millrace embedded log, format ";
const LOCK_FILE: &str = "lock";
const DATABASE: &str = "log";
const UNFINISHED: &str = "log.unfinished";

/// A directory that this process has to itself until it is dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes the directory, and makes it if need be, for a log with this prefix.
    pub(super) fn take(path: &Path, prefix: &str) -> Result<Self, OpenError> {
        fs::create_dir_all(path).map_err(|e| unusable(path, &e))?;
        check_content(path)?;
        let lock = lock(path)?;
        let directory = Self { path: path.to_owned(), _lock: lock };
        match fs::read(path.join(FORMAT_FILE)) {
            Ok(text) => check_format(path, &text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                directory.create(prefix).map_err(|e| unusable(path, &e))?;
            }
            Err(e) => return Err(unusable(path, &e)),
        }
        Ok(directory)
    }

    /// Where the database is.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Makes the database under another name and describes it at once, so that one cut short can never be taken for one that
    /// lost its content, nor the other way round.
    fn create(&self, prefix: &str) -> io::Result<()> {
        let unfinished = self.path.join(UNFINISHED);
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        if !self.database().exists() {
            let described = Op::Put(Table::State, meta::KEY.into(), meta::encode(prefix));
            let made = Disk::create(&unfinished).and_then(|disk| disk.write(vec![described]));
            made.map_err(|e| io::Error::other(e.to_string()))?;
            fs::rename(&unfinished, self.database())?;
        }
        let written = self.path.join("FORMAT.unfinished");
        let mut file = File::create(&written)?;
        writeln!(file, "{FORMAT_TEXT}{FORMAT}")?;
        file.sync_all()?;
        fs::rename(&written, self.path.join(FORMAT_FILE))?;
        File::open(&self.path)?.sync_all()
    }
}

fn unusable(dir: &Path, reason: &io::Error) -> OpenError {
    OpenError::NotWritable { dir: dir.to_owned(), reason: reason.to_string() }
}

/// A directory with other people's files in it is left alone.
fn check_content(path: &Path) -> Result<(), OpenError> {
    let entries = fs::read_dir(path).map_err(|e| unusable(path, &e))?;
    let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    let ours = |name: &str| names.iter().any(|n| n == name);
    if names.is_empty() || ours(FORMAT_FILE) || ours(LOCK_FILE) {
        return Ok(());
    }
    Err(OpenError::NotALog { dir: path.to_owned() })
}

fn check_format(dir: &Path, text: &[u8]) -> Result<(), OpenError> {
    let version = std::str::from_utf8(text).ok().and_then(|t| t.trim_end().strip_prefix(FORMAT_TEXT)?.parse().ok());
    match version {
        Some(FORMAT) => Ok(()),
        Some(found @ 1..FORMAT) => Err(OpenError::OlderFormat { dir: dir.to_owned(), found }),
        Some(found) if found > FORMAT => Err(OpenError::NewerFormat { dir: dir.to_owned(), found, supported: FORMAT }),
        _ => Err(OpenError::Corrupted {
            dir: dir.to_owned(),
            place: format!("file `{FORMAT_FILE}`"),
            reason: format!("it should read `{FORMAT_TEXT}{FORMAT}`"),
        }),
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK_FILE));
    let mut file = open.map_err(|e| unusable(path, &e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who holds it is a help for the reader; without it the refusal stands all the same.
            let pid = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
            return Err(OpenError::Locked { dir: path.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(unusable(path, &e)),
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|e| unusable(path, &e))?;
    Ok(file)
}
