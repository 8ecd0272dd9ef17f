//! An application on disk: its directory and its manifest.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use millrace_core::limits::MANIFEST_MAX_BYTES;
use millrace_core::manifest::{FILE_NAME, Manifest};
use millrace_core::settings::Problem;

use super::error::Error;
use super::format;
use super::output::{Console, Style};

/// The text of a manifest, with where it is.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    /// The manifest's file.
    pub(crate) file: PathBuf,
    /// Paths in the manifest start here, and builds run here.
    pub(crate) directory: PathBuf,
    /// What it says.
    pub(crate) text: String,
}

impl Text {
    /// Reads the manifest of an application's directory, or this file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
        let text = read(&file).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                let cause = if path.is_dir() {
                    format!("there is no {FILE_NAME} in {}", directory_name(path))
                } else {
                    format!("there is no file or directory {}", path.display())
                };
                return Error::failed(cause, "name an application's directory, or make one with `millrace new NAME`");
            }
            Error::file(format_args!("{} cannot be read", file.display()), &e)
        })?;
        let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Self { file, directory, text })
    }

    /// Writes problems as they look in the text.
    ///
    /// # Errors
    /// If the output is closed.
    pub(crate) fn show(&self, severity: Severity, problems: &[Problem], console: &mut Console) -> Result<(), Error> {
        problems.iter().try_for_each(|problem| self.show_one(severity, problem, console))
    }

    fn show_one(&self, severity: Severity, problem: &Problem, console: &mut Console) -> Result<(), Error> {
        let (word, style) = match severity {
            Severity::Error => ("error", Style::Bad),
            Severity::Warning => ("warning", Style::Notable),
        };
        let title = format!("{}: {}", console.paint(style, word), format::one_line(&problem.message, 1000));
        let number = problem.line.to_string();
        let margin = " ".repeat(number.len());
        let bar = console.paint(Style::Faint, "|");
        let path = if problem.path.is_empty() { String::new() } else { format!(" ({})", problem.path) };
        console.line(title)?;
        console.line(format_args!("{margin}--> {}:{number}:{}{path}", self.file.display(), problem.column))?;
        if let Some(line) = self.text.lines().nth(problem.line.saturating_sub(1)) {
            // A tab would stand the mark elsewhere than the character that it points to.
            let line = format::one_line(&line.replace('\t', " "), 200);
            let mark = console.paint(style, "^");
            console.line(format_args!("{margin} {bar}"))?;
            console.line(format_args!("{} {bar} {line}", console.paint(Style::Faint, &number)))?;
            console.line(format_args!("{margin} {bar} {}{mark}", " ".repeat(problem.column.saturating_sub(1))))?;
        }
        if !problem.help.is_empty() {
            let help = console.paint(Style::Good, "help:");
            console.line(format_args!("{margin} {help} {}", format::lines(&problem.help)))?;
        }
        console.line("")
    }
}

/// Reads a file's text, as far as a manifest can be long and one byte more, by which it is seen to be longer.
fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MANIFEST_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MANIFEST_MAX_BYTES {
        let longest = format::bytes(MANIFEST_MAX_BYTES as u64);
        return Err(io::Error::other(format!("it is longer than {longest}, which no manifest may be")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// The directory as people call it.
fn directory_name(path: &Path) -> String {
    if path == Path::new(".") { "this directory".to_owned() } else { path.display().to_string() }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Must be mended.
    Error,
    /// Allowed, and probably not meant.
    Warning,
}

/// An application whose manifest can be used.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    /// Its manifest's text.
    pub(crate) source: Text,
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// What is probably not meant.
    pub(crate) warnings: Vec<Problem>,
}

impl Application {
    /// Reads an application; shows what is wrong with its manifest.
    ///
    /// # Errors
    /// If it cannot be read or used.
    pub(crate) fn open(path: &Path, console: &mut Console) -> Result<Self, Error> {
        let source = Text::read(path)?;
        match Manifest::parse(&source.text) {
            Ok((manifest, warnings)) => Ok(Self { source, manifest, warnings }),
            Err(problems) => {
                if !console.is_json() {
                    source.show(Severity::Error, &problems, console)?;
                }
                let count = format::counted(problems.len() as u64, "error");
                Err(Error::failed(
                    format_args!("{} has {count}", source.file.display()),
                    format_args!(
                        "mend the manifest; `millrace check {}` looks at it again",
                        source.directory.display()
                    ),
                ))
            }
        }
    }

    /// The file of a function's component.
    pub(crate) fn component(&self, function: &millrace_core::manifest::Function) -> PathBuf {
        self.source.directory.join(&function.component)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_in_its_line() {
        let text = "application = \"shop\"\n\n[functions.pay]\n\ttopics = [\"a\", \"b c\"]\n".to_owned();
        let source = Text { file: "shop/millrace.toml".into(), directory: "shop".into(), text };
        let problem = Problem {
            path: "functions.pay.topics".into(),
            line: 4,
            column: 17,
            message: "`b c` cannot name a topic".into(),
            help: "use letters".into(),
        };
        let (mut console, written) = Console::captured(false);
        source.show(Severity::Error, &[problem], &mut console).unwrap();
        console.flush().unwrap();
        let expected = "\
error: `b c` cannot name a topic
 --> shop/millrace.toml:4:17 (functions.pay.topics)
  |
4 |  topics = [\"a\", \"b c\"]
  |                 ^
  help: use letters

";
        assert_eq!(written.out(), expected);
    }

    #[test]
    fn a_manifest_that_is_not_there_is_said_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = Text::read(directory.path()).unwrap_err().to_string();
        assert!(error.starts_with("there is no millrace.toml in /"), "{error}");
        let error = Text::read(&directory.path().join("x")).unwrap_err().to_string();
        assert!(error.starts_with("there is no file or directory /"), "{error}");
        assert!(error.ends_with("`millrace new NAME`"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_manifest_is_not_read_to_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MANIFEST_MAX_BYTES as u64).unwrap();
        assert!(Text::read(file.path()).is_ok());
        // Without end, as it were.
        file.as_file().set_len(1 << 42).unwrap();
        let error = Text::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("longer than 1.00 MiB"), "{error}");
    }
}
