//! Lines of a file or of standard input, read ahead by a task of their own.

use std::time::Duration;

use millrace_core::limits;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use crate::cli::error::Error;

/// Longest line: the largest event with its data in base 64, and the attributes around it.
const LINE_MAX_BYTES: usize = 2 * limits::EVENT_MAX_BYTES;
/// Lines that are read ahead.
const AHEAD_LINES: usize = 64;
/// A batch that is not full is sent when nothing more comes within this time.
const LINGER: Duration = Duration::from_millis(50);
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not empty, without its line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// From 1.
    pub(super) number: u64,
    pub(super) bytes: Vec<u8>,
}

/// Where lines come from.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    lines: mpsc::Receiver<Result<Line, Error>>,
}

impl Source {
    /// A file, or standard input if it is called `-`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) async fn open(file: &str) -> Result<Self, Error> {
        if file == "-" {
            return Ok(Self::reading("standard input".to_owned(), BufReader::new(tokio::io::stdin())));
        }
        let refused = |e| Error::file(format_args!("{file} cannot be read"), &e);
        let opened = tokio::fs::File::open(file).await.map_err(refused)?;
        Ok(Self::reading(file.to_owned(), BufReader::with_capacity(limits::MIB, opened)))
    }

    /// Lines of this reader, which is called `name` in messages.
    pub(super) fn reading(name: String, reader: impl AsyncBufRead + Unpin + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel(AHEAD_LINES);
        // The task ends with the reader, or when nobody wants its lines any more.
        tokio::spawn(read(name.clone(), reader, sender));
        Self { name, lines }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The next line; the first one of a batch is waited for, a later one only for a moment. None at the end, and if
    /// nothing comes.
    pub(super) async fn next(&mut self, is_first: bool) -> Option<Result<Line, Error>> {
        if is_first {
            return self.lines.recv().await;
        }
        tokio::time::timeout(LINGER, self.lines.recv()).await.ok().flatten()
    }
}

async fn read(name: String, mut reader: impl AsyncBufRead + Unpin, lines: mpsc::Sender<Result<Line, Error>>) {
    let mut number = 0;
    loop {
        number += 1;
        let line = match read_line(&name, &mut reader, number).await {
            Ok(Some(line)) if line.bytes.trim_ascii().is_empty() => continue,
            Ok(Some(line)) => Ok(line),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = line.is_err();
        if lines.send(line).await.is_err() || is_last {
            return;
        }
    }
}

async fn read_line(name: &str, reader: &mut (impl AsyncBufRead + Unpin), number: u64) -> Result<Option<Line>, Error> {
    let mut bytes = Vec::new();
    let read = reader.take(LINE_MAX_BYTES as u64 + 1).read_until(b'\n', &mut bytes).await;
    read.map_err(|e| Error::file(format_args!("{name} cannot be read after line {}", number - 1), &e))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    if bytes.len() > LINE_MAX_BYTES {
        let max = crate::cli::format::bytes(LINE_MAX_BYTES as u64);
        return Err(Error::failed(
            format_args!("line {number} of {name} is longer than {max}"),
            "an event must be on one line, and small enough for the log",
        ));
    }
    if bytes.ends_with(b"\r") {
        bytes.pop();
    }
    if number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(Some(Line { number, bytes }))
}
