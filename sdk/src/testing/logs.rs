//! Capturing what a handler logs, on the thread that runs it.

use std::cell::RefCell;
use std::sync::Once;

/// One message of a handler.
///
/// ```
/// use millrace_sdk::{log::Level, prelude::*, testing};
///
/// fn handle(_: Event, _: &mut Context) -> Result<(), Failure> {
///     log::warn!(target: "stock", "almost sold out");
///     Ok(())
/// }
///
/// let completion = testing::Invocation::new(testing::event("ping", &())).run(handle);
/// let line = &completion.logs[0];
/// assert_eq!((line.level, &*line.target, &*line.message), (Level::Warn, "stock", "almost sold out"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How important it is.
    pub level: log::Level,
    /// The module's path, unless the message names another target.
    pub target: String,
    /// The text.
    pub message: String,
}

thread_local! {
    static LINES: RefCell<Option<Vec<LogLine>>> = const { RefCell::new(None) };
}

/// Runs a closure, and answers with what it logged on this thread.
pub(super) fn captured<T>(run: impl FnOnce() -> T) -> (T, Vec<LogLine>) {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| {
        // A test that has brought a logger of its own keeps it.
        if log::set_logger(&Capture).is_ok() {
            log::set_max_level(log::LevelFilter::Trace);
        }
    });
    LINES.set(Some(Vec::new()));
    let answer = run();
    (answer, LINES.take().unwrap_or_default())
}

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Formatted before the borrow, because formatting can log as well.
        let line =
            LogLine { level: record.level(), target: record.target().into(), message: record.args().to_string() };
        LINES.with_borrow_mut(|lines| lines.iter_mut().for_each(|lines| lines.push(line.clone())));
    }

    fn flush(&self) {}
}
