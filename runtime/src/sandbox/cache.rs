//! Compiled components on disk, so that a start need not compile again.
//!
//! An artefact is a file named after the digest of the component and the engine that compiled it: eight bytes that name the
//! format and its version, the SHA-256 of what follows, and the compiled component. It is native code that will be run
//! with the rights of this process, so the directory is readable and writable by its owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use millrace_core::digest::Digest;

use super::Error;

/// Names the format; the last byte is its version.
const MAGIC: [u8; 8] = *b"MRNATIV\x01";
const HEADER_BYTES: usize = MAGIC.len() + 32;
/// A temporary file of this age was left behind by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct ArtifactCache {
    dir: PathBuf,
    /// Version, settings and processor: an artefact of another engine is never looked at.
    engine: String,
    max_bytes: u64,
}

impl ArtifactCache {
    /// Makes the directory if need be, and makes it private.
    pub(super) fn open(dir: &Path, engine: &wasmtime::Engine, max_bytes: u64) -> Result<Self, Error> {
        make_private(dir).map_err(|e| Error(format!("cannot keep compiled components in `{}`: {e}", dir.display())))?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = format!("{:016x}", hasher.finish());
        Ok(Self { dir: dir.to_owned(), engine, max_bytes })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}-{}.artifact", self.engine))
    }

    /// The artefact of a component, if there is one and its bytes are those that were written.
    pub(super) fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let damaged = |why: &str| tracing::warn!(path = %path.display(), why, "a compiled component is damaged");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                damaged(&e.to_string());
                return None;
            }
        };
        let mut header = [0; HEADER_BYTES];
        let mut artifact = Vec::new();
        if let Err(e) = file.read_exact(&mut header).and_then(|()| file.read_to_end(&mut artifact)) {
            damaged(&e.to_string());
            return None;
        }
        let (magic, checksum) = header.split_at(MAGIC.len());
        if magic != MAGIC || checksum != Digest::of(&artifact).as_bytes() {
            damaged("the checksum does not match");
            return None;
        }
        Some(artifact)
    }

    /// Keeps an artefact. Failing to do so costs time at the next start, nothing else.
    pub(super) fn write(&self, digest: &Digest, artifact: &[u8]) {
        let temporary = temporary_in(&self.dir);
        let written = write_private(&temporary, artifact).and_then(|()| fs::rename(&temporary, self.path(digest)));
        if let Err(e) = written.and_then(|()| self.prune()) {
            tracing::warn!(dir = %self.dir.display(), error = %e, "a compiled component could not be kept");
            drop(fs::remove_file(&temporary));
        }
    }

    /// Removes the oldest artefacts until the rest fits, and what dead processes left behind.
    fn prune(&self) -> io::Result<()> {
        let mut artifacts: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may prune at the same time, so a file can be gone at any point.
            let Ok(metadata) = entry.metadata() else { continue };
            let (path, modified) = (entry.path(), metadata.modified()?);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("artifact") => artifacts.push((modified, metadata.len(), path)),
                Some("tmp") if modified.elapsed().is_ok_and(|age| age > ABANDONED) => drop(fs::remove_file(path)),
                _ => {}
            }
        }
        artifacts.sort();
        let mut total: u64 = artifacts.iter().map(|(_, size, _)| size).sum();
        // The newest stays in any case: it is the one just written.
        artifacts.pop();
        for (_, size, path) in &artifacts {
            if total <= self.max_bytes {
                break;
            }
            drop(fs::remove_file(path));
            total -= size;
        }
        Ok(())
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::metadata(dir)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    let probe = temporary_in(dir);
    let owner = private().open(&probe)?.metadata()?.uid();
    fs::remove_file(&probe)?;
    if metadata.uid() != owner {
        return Err(io::Error::other("it belongs to another user, who could replace the code in it; use another one"));
    }
    Ok(())
}

/// A name that no other thread or process uses.
fn temporary_in(dir: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    dir.join(format!("{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

fn write_private(path: &Path, artifact: &[u8]) -> io::Result<()> {
    let mut file = private().open(path)?;
    file.write_all(&MAGIC)?;
    file.write_all(Digest::of(artifact).as_bytes())?;
    file.write_all(artifact)
}
