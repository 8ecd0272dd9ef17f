//! What a command says: results on standard output, everything else on standard error.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::error::Error;
use super::format::Table;

/// When to colour: on a terminal unless `NO_COLOR` is set, also into a file or pipe, or never. (The variants have no
/// texts of their own, because the help would give each a paragraph.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColorWhen {
    #[default]
    Auto,
    Always,
    Never,
}

/// How a text looks, named by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it is.
    Plain,
    /// What the eye should find first.
    Strong,
    /// What can be overlooked.
    Faint,
    /// As it should be.
    Good,
    /// Worth a look.
    Notable,
    /// Needs somebody.
    Bad,
}

impl Style {
    /// The SGR parameters of ECMA-48.
    const fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Notable => "33",
            Self::Bad => "31",
        }
    }
}

/// Puts texts into their style, where colours are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painter {
    color: bool,
}

impl Painter {
    /// A text in its style.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        painted(self.color, style, text)
    }
}

/// Where the words go. Tests read them back.
pub(crate) struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    json: bool,
    out_color: bool,
    err_color: bool,
    out_is_terminal: bool,
    err_is_terminal: bool,
    columns: Option<usize>,
    /// A line of progress stands on the terminal and has to go before anything else is written.
    progress_stands: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("json", &self.json).field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Console {
    /// The process's own output.
    pub(crate) fn of_process(json: bool, color: ColorWhen) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let (out_is_terminal, err_is_terminal) = (out.is_terminal(), err.is_terminal());
        let wanted = |is_terminal: bool| match color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        let columns = terminal_size::terminal_size().map(|(columns, _)| usize::from(columns.0));
        Self {
            out_color: wanted(out_is_terminal),
            err_color: wanted(err_is_terminal),
            out: Box::new(io::BufWriter::new(out)),
            err: Box::new(err),
            json,
            out_is_terminal,
            err_is_terminal,
            columns: columns.filter(|_| out_is_terminal),
            progress_stands: false,
        }
    }

    /// Whether answers are JSON.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person watches what goes to standard output.
    pub(crate) const fn is_watched(&self) -> bool {
        self.out_is_terminal && !self.json
    }

    /// Whether somebody can be asked: both ends are a terminal.
    pub(crate) fn can_ask(&self) -> bool {
        self.err_is_terminal && !self.json && io::stdin().is_terminal()
    }

    /// Columns of the terminal, if the output is one.
    pub(crate) const fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// A text in its style, for standard output.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        painted(self.out_color, style, text)
    }

    /// Paints for standard output, away from the console.
    pub(crate) const fn painter(&self) -> Painter {
        Painter { color: self.out_color }
    }

    /// Writes one line of the result.
    pub(crate) fn line(&mut self, line: impl Display) -> Result<(), Error> {
        self.clear_progress()?;
        writeln!(self.out, "{line}").map_err(|e| Error::output(&e))
    }

    /// Writes a table.
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), Error> {
        let lines = table.lines(|style, text| painted(self.out_color, style, text));
        lines.into_iter().try_for_each(|line| self.line(line))
    }

    /// Writes one JSON document over several lines.
    pub(crate) fn document(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::output(&e.into()))?;
        self.line(text)?;
        self.flush()
    }

    /// Writes one JSON document on one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(|e| Error::output(&e.into()))?;
        self.line(text)
    }

    /// Lets go what was written so far.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(|e| Error::output(&e))
    }

    /// Makes room for the next refresh of a screen that is watched.
    pub(crate) fn clear_screen(&mut self) -> Result<(), Error> {
        if self.is_watched() {
            self.out.write_all(b"\x1b[H\x1b[2J").map_err(|e| Error::output(&e))?;
        }
        Ok(())
    }

    /// Tells something beside the result, on standard error.
    pub(crate) fn note(&mut self, note: impl Display) -> Result<(), Error> {
        self.clear_progress()?;
        self.flush()?;
        writeln!(self.err, "{note}").map_err(|e| Error::output(&e))
    }

    /// Shows how far it is, on a terminal only; the next call overwrites it.
    pub(crate) fn progress(&mut self, text: impl Display) -> Result<(), Error> {
        if !self.err_is_terminal || self.json {
            return Ok(());
        }
        write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush()).map_err(|e| Error::output(&e))?;
        self.progress_stands = true;
        Ok(())
    }

    fn clear_progress(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.progress_stands) {
            write!(self.err, "\r\x1b[K").and_then(|()| self.err.flush()).map_err(|e| Error::output(&e))?;
        }
        Ok(())
    }

    /// Asks for a yes on the terminal. Check [`Console::can_ask`] before.
    pub(crate) async fn confirm(&mut self, question: impl Display) -> Result<bool, Error> {
        self.clear_progress()?;
        self.flush()?;
        write!(self.err, "{question} [y/N] ").and_then(|()| self.err.flush()).map_err(|e| Error::output(&e))?;
        // A thread of its own reads, so that Ctrl-C is heard meanwhile.
        let answer = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        let answer = answer.await.map_err(io::Error::other).and_then(|read| read);
        let answer = answer.map_err(|e| Error::failed(format_args!("the answer cannot be read: {e}"), "give --yes"))?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// Ends the command: lets everything go, and tells the error if there is one.
    pub(super) fn close(mut self, result: Result<(), Error>) -> Result<(), Error> {
        let flushed = self.clear_progress().and_then(|()| self.flush());
        let result = result.and(flushed);
        if let Err(Error::Told { cause, fix, .. }) = &result {
            let mut text = format!("{} {cause}\n", painted(self.err_color, Style::Bad, "error:"));
            if !fix.is_empty() {
                let label = painted(self.err_color, Style::Good, "fix:");
                let _infallible = writeln!(text, "  {label} {fix}");
            }
            // Where even standard error is closed, only the exit code is left to tell.
            let _untold = self.err.write_all(text.as_bytes());
        }
        result
    }
}

fn painted(color: bool, style: Style, text: &str) -> String {
    match style.sgr() {
        "" => text.to_owned(),
        _ if !color || text.is_empty() => text.to_owned(),
        sgr => format!("\x1b[{sgr}m{text}\x1b[0m"),
    }
}

/// A console whose words are read back.
#[cfg(test)]
pub(super) mod captured {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written.
    #[derive(Clone, Debug, Default)]
    pub(in crate::cli) struct Written {
        out: Buffer,
        err: Buffer,
    }

    impl Written {
        pub(in crate::cli) fn out(&self) -> String {
            self.out.text()
        }

        pub(in crate::cli) fn err(&self) -> String {
            self.err.text()
        }
    }

    #[derive(Clone, Debug, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Console {
        /// A console that is no terminal.
        pub(in crate::cli) fn captured(json: bool) -> (Self, Written) {
            let written = Written::default();
            let console = Self {
                out: Box::new(written.out.clone()),
                err: Box::new(written.err.clone()),
                json,
                out_color: false,
                err_color: false,
                out_is_terminal: false,
                err_is_terminal: false,
                columns: None,
                progress_stands: false,
            };
            (console, written)
        }
    }

    /// A reader that has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_ends_the_command_quietly() {
        let (console, written) = Console::captured(false);
        let mut console = Console { out: Box::new(Closed), ..console };
        let result = console.line("one");
        assert_eq!(result, Err(Error::OutputClosed));
        assert_eq!(console.close(result).map_err(|e| e.exit().code()), Err(0));
        assert_eq!(written.err(), "");
    }

    #[test]
    fn an_error_is_a_cause_and_a_fix() {
        let (console, written) = Console::captured(false);
        let _told = console.close(Err(Error::failed("it is broken", "mend it")));
        assert_eq!(written.err(), "error: it is broken\n  fix: mend it\n");
    }

    #[test]
    fn progress_is_shown_on_terminals_only() {
        let (mut console, written) = Console::captured(false);
        console.progress("one").unwrap();
        assert_eq!(written.err(), "");
        console.err_is_terminal = true;
        console.progress("two").unwrap();
        console.line("done").unwrap();
        assert_eq!((written.err(), written.out()), ("\r\u{1b}[Ktwo\r\u{1b}[K".into(), "done\n".into()));
    }
}
