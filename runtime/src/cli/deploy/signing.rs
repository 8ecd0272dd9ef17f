//! The signatures that components are uploaded with.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use millrace_core::limits;
use millrace_core::manifest::Function;
use millrace_core::revision::Source;
use millrace_core::signature::{Key, Signature};

use super::Planned;
use crate::cli::error::Error;
use crate::cli::output::Console;
use crate::config::others_read;

/// What the name of a file with a signature has at its end.
const EXTENSION: &str = ".sig";

/// A key to sign with, and where it is.
pub(super) struct Signing {
    key: Key,
    file: PathBuf,
}

impl Signing {
    /// Reads a private key.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub(super) fn open(file: &Path, console: &mut Console) -> Result<Self, Error> {
        let content = read(file).map_err(|e| Error::file(file.display(), &e))?;
        let key = Key::parse(&String::from_utf8_lossy(&content));
        let key = key.map_err(|reason| Error::usage(format_args!("{}: {reason}", file.display()), ""))?;
        if others_read(file) {
            let file = file.display();
            console.note(format_args!(
                "warning: others than its owner can read the key in {file}; `chmod 600 {file}` keeps it from them"
            ))?;
        }
        Ok(Self { key, file: file.to_owned() })
    }
}

/// Signs what is to be uploaded with the key, or else takes the signature from the file beside the component.
///
/// # Errors
/// If there is such a file, and no signature in it.
pub(super) fn sign(
    planned: Planned,
    function: &Function,
    directory: &Path,
    signing: Option<&Signing>,
) -> Result<Planned, Error> {
    let (signature, place) = match signing {
        Some(Signing { key, file }) => (key.sign(planned.source.component), format!("with {}", file.display())),
        None => {
            let file = directory.join(format!("{}{EXTENSION}", function.component));
            let content = match read(&file) {
                Ok(content) => content,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(planned),
                Err(e) => return Err(Error::file(file.display(), &e)),
            };
            let signature = Signature::of_file(&content);
            let fix = "sign the component anew, or remove the file";
            let wrong = |_| Error::failed(format_args!("{} has no signature of 64 bytes", file.display()), fix);
            (signature.map_err(wrong)?, format!("as in {}", file.display()))
        }
    };
    let source = Source { signature: Some(signature.to_string()), ..planned.source };
    Ok(Planned { source, signed: Some(place), ..planned })
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(file)?.take(limits::CERTIFICATES_MAX_BYTES as u64).read_to_end(&mut content)?;
    Ok(content)
}
