//! How a command ends.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// It was tried and failed, or the server refused it.
    Failed,
    /// The command line is wrong.
    Usage,
    /// No server could be reached.
    Unreachable,
    /// It did not come about in the time given.
    TimedOut,
    /// Ctrl-C, as shells count it.
    Interrupted,
}

/// What the help says about exit codes.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, or refused by the server
  2    the command line is wrong
  3    there is no server to reach
  4    not in the time given
  130  ended with Ctrl-C";

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::TimedOut => 4,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// To be told to the person: a line with the cause, and a line with what to do.
    Told {
        /// How to exit.
        exit: Exit,
        /// What is wrong: a clause.
        cause: String,
        /// What to do about it: a clause, or empty where the cause says it.
        fix: String,
    },
    /// Whoever read our output has gone, as `head` does. There is nobody to tell.
    OutputClosed,
    /// Ctrl-C.
    Interrupted,
}

impl Error {
    /// It was tried and failed.
    pub(crate) fn failed(cause: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, cause, fix)
    }

    /// The command line is wrong in a way that its parser does not see.
    pub(crate) fn usage(cause: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, cause, fix)
    }

    /// With this exit code.
    pub(crate) fn new(exit: Exit, cause: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Self::Told { exit, cause: cause.to_string(), fix: fix.to_string() }
    }

    /// A file or directory that could not be used.
    pub(crate) fn file(what: impl fmt::Display, error: &io::Error) -> Self {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check who may use it",
            io::ErrorKind::StorageFull => "make room on the disk",
            _ => "",
        };
        Self::failed(format_args!("{what}: {error}"), fix)
    }

    /// Our own output could not be written.
    pub(super) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::failed(format_args!("the output cannot be written: {error}"), "")
    }

    /// How to exit.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Told { exit, .. } => *exit,
            Self::OutputClosed => Exit::Done,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told { cause, fix, .. } if fix.is_empty() => f.write_str(cause),
            Self::Told { cause, fix, .. } => write!(f, "{cause}\n  fix: {fix}"),
            Self::OutputClosed => f.write_str("the output was closed"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}
