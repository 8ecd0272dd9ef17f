//! What a guest writes: log messages, standard output and standard error, all in one bounded list.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::limits::LOG_MAX_LINES;
use super::{LogLevel, LogLine};

/// What a line costs besides its text, so that empty lines are bounded too.
const LINE_EXTRA_BYTES: usize = 16;
/// How much of the end of standard error is kept for the reason of a failure.
const TAIL_MAX_BYTES: usize = 2048;
/// Longest write that a stream invites a guest to make.
const WRITE_MAX_BYTES: usize = 64 * 1024;

/// The log of the invocation under way. Shared with the streams that a guest writes to.
#[derive(Clone, Debug)]
pub(super) struct Logs(Arc<Mutex<Buffer>>);

#[derive(Debug)]
struct Buffer {
    lines: Vec<LogLine>,
    max_bytes: usize,
    left_bytes: usize,
    truncated: bool,
    /// Bytes after the last line end, by stream.
    open: [Vec<u8>; 2],
    /// The end of standard error, kept even when the log is full: it says why a guest panicked.
    tail: Vec<u8>,
}

/// One of a guest's output streams.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Logs {
    pub(super) fn new(max_bytes: usize) -> Self {
        let open = [Vec::new(), Vec::new()];
        let buffer =
            Buffer { lines: Vec::new(), max_bytes, left_bytes: max_bytes, truncated: false, open, tail: Vec::new() };
        Self(Arc::new(Mutex::new(buffer)))
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message, as much of it as the bound allows.
    pub(super) fn push(&self, level: LogLevel, context: &str, message: &str) {
        self.lock().push(level, context, message);
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.lock().write(stream, bytes);
    }

    /// All lines so far; the log is then empty again, with its whole bound.
    pub(super) fn take(&self) -> Vec<LogLine> {
        let mut buffer = self.lock();
        buffer.end_line(Stream::Stdout);
        buffer.end_line(Stream::Stderr);
        buffer.left_bytes = buffer.max_bytes;
        buffer.truncated = false;
        buffer.tail.clear();
        std::mem::take(&mut buffer.lines)
    }

    /// The end of what was written to standard error since the last `take`.
    pub(super) fn stderr_tail(&self) -> String {
        let buffer = self.lock();
        String::from_utf8_lossy(&buffer.tail).into_owned()
    }

    /// A stream that writes here.
    pub(super) fn stream(&self, stream: Stream) -> LogStream {
        LogStream { logs: self.clone(), stream }
    }
}

impl Buffer {
    fn push(&mut self, level: LogLevel, context: &str, message: &str) {
        if self.truncated {
            return;
        }
        let cost = context.len() + LINE_EXTRA_BYTES;
        let fits = self.lines.len() < LOG_MAX_LINES && cost <= self.left_bytes;
        let room = if fits { self.left_bytes - cost } else { 0 };
        let kept = &message[..message.floor_char_boundary(room)];
        if fits && (!kept.is_empty() || message.is_empty()) {
            self.lines.push(LogLine { level, context: context.to_owned(), message: kept.to_owned() });
            self.left_bytes -= cost + kept.len();
        }
        if !fits || kept.len() < message.len() {
            self.truncated = true;
            let message = "log truncated".to_owned();
            self.lines.push(LogLine { level: LogLevel::Warn, context: "millrace".to_owned(), message });
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if matches!(stream, Stream::Stderr) {
            self.keep_tail(bytes);
        }
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            // An open line longer than what is left is cut when it ends, so that more of it need not be kept.
            let room = (self.left_bytes + 1).saturating_sub(self.open[stream as usize].len());
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.open[stream as usize].extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.push_open(stream);
            }
        }
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_MAX_BYTES)..];
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL_MAX_BYTES);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(bytes);
    }

    fn end_line(&mut self, stream: Stream) {
        if !self.open[stream as usize].is_empty() {
            self.push_open(stream);
        }
    }

    fn push_open(&mut self, stream: Stream) {
        let mut line = std::mem::take(&mut self.open[stream as usize]);
        let (level, context) = match stream {
            Stream::Stdout => (LogLevel::Info, "stdout"),
            Stream::Stderr => (LogLevel::Warn, "stderr"),
        };
        self.push(level, context, &String::from_utf8_lossy(&line));
        line.clear();
        self.open[stream as usize] = line;
    }
}

/// A guest's end of standard output or standard error. Writing never waits and never fails; what is too much is cut.
#[derive(Clone, Debug)]
pub(super) struct LogStream {
    logs: Logs,
    stream: Stream,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this one, and it is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.logs.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_MAX_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}
