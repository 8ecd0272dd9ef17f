//! Why an invocation failed, in words for the person who wrote the handler.

use std::time::Duration;

use millrace_core::outcome::{Category, Failure, REASON_MAX_BYTES};
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::bindings::millrace::function::types::Failure as GuestFailure;
use super::limits::Refused;

/// How much of a reason the guest's own last words may take, so that trap and backtrace find room.
const LAST_WORDS_MAX_BYTES: usize = 512;
/// Frames of a backtrace that are shown.
const FRAMES_MAX: usize = 8;

/// Beginnings of the names of functions that only carry a panic or an abort out of the guest.
const PANIC_MACHINERY: [&str; 14] = [
    "__rust",
    "__rustc",
    "_start",
    "abort",
    "alloc::alloc::handle_alloc_error",
    "alloc::raw_vec::handle_error",
    "core::cell::panic",
    "core::option::",
    "core::panicking",
    "core::result::",
    "panic_",
    "rust_",
    "std::",
    "wit_bindgen::rt::",
];

/// Interrupts a guest whose time is up.
#[derive(Debug, thiserror::Error)]
#[error("time is up")]
pub(super) struct TimeIsUp;

/// What the handler itself returned.
pub(super) fn returned(failure: GuestFailure) -> Failure {
    match failure {
        GuestFailure::Transient(transient) => {
            let retry_after = transient.retry_after.map(Duration::from_nanos);
            Failure { retry_after, ..Failure::new(Category::Transient, transient.message) }
        }
        GuestFailure::Invalid(message) => Failure::new(Category::Invalid, message),
        GuestFailure::Rejected(message) => Failure::new(Category::Rejected, message),
    }
}

/// The time was up.
pub(super) fn timed_out(limit: Duration, error: Option<&wasmtime::Error>) -> Failure {
    let mut reason = format!("timed out after {limit:?}");
    push_backtrace(&mut reason, error);
    Failure::new(Category::Unknown, reason)
}

/// The guest trapped, or ended itself.
pub(super) fn trapped(error: &wasmtime::Error, refused: Option<Refused>, stderr: &str) -> Failure {
    if let Some(I32Exit(status)) = error.downcast_ref() {
        return Failure::new(Category::Unknown, join([last_words(stderr), format!("exited with status {status}")]));
    }
    let mut reason = join([refused.map(refusal).unwrap_or_default(), last_words(stderr), cause(error)]);
    push_backtrace(&mut reason, Some(error));
    Failure::new(Category::Unknown, reason)
}

fn refusal(refused: Refused) -> String {
    match refused {
        Refused::Memory(max) => format!("out of memory: it may use {}", size(max)),
        Refused::Table(max) => format!("out of table space: its tables may have {max} elements"),
    }
}

fn size(bytes: usize) -> String {
    const MIB: usize = 1 << 20;
    if bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{} KiB", bytes >> 10) }
}

/// The trap, or the innermost reason of an error in a host call.
fn cause(error: &wasmtime::Error) -> String {
    error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), |trap| format!("trap: {}", text(*trap)))
}

fn text(trap: Trap) -> String {
    let text = trap.to_string();
    text.strip_prefix("wasm trap: ").map_or(text.clone(), str::to_owned)
}

/// The end of what the guest wrote to standard error: from a Rust panic on, or else its last three lines.
fn last_words(stderr: &str) -> String {
    let is_worth = |line: &&str| !line.is_empty() && !line.starts_with("note: ");
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(is_worth).collect();
    let panic = lines.iter().rposition(|line| line.starts_with("thread ") && line.contains(" panicked at "));
    let from = panic.unwrap_or_else(|| lines.len().saturating_sub(3));
    let mut words: String = lines.get(from..).unwrap_or_default().join(" ");
    words.truncate(words.floor_char_boundary(LAST_WORDS_MAX_BYTES));
    words
}

fn join<const N: usize>(parts: [String; N]) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

/// Appends the functions that were running, innermost first, as long as there is room. Whole names only.
fn push_backtrace(reason: &mut String, error: Option<&wasmtime::Error>) {
    let Some(backtrace) = error.and_then(|error| error.downcast_ref::<WasmBacktrace>()) else { return };
    let names: Vec<&str> = backtrace.frames().iter().map(|frame| frame.func_name().unwrap_or("?")).map(short).collect();
    let mut separator = "; in ";
    for (name, times) in useful(&names).into_iter().take(FRAMES_MAX) {
        let times = if times > 1 { format!(" ({times} times)") } else { String::new() };
        if reason.len() + separator.len() + name.len() + times.len() > REASON_MAX_BYTES {
            return;
        }
        reason.push_str(separator);
        reason.push_str(name);
        reason.push_str(&times);
        separator = " < ";
    }
}

/// Frames without those at the top that only carry a panic out, repeated ones counted.
fn useful<'a>(names: &[&'a str]) -> Vec<(&'a str, usize)> {
    let machinery = |name: &&&str| PANIC_MACHINERY.iter().any(|start| name.starts_with(start));
    let carried = names.iter().take_while(machinery).count();
    let from = if carried == names.len() { 0 } else { carried };
    let mut frames: Vec<(&str, usize)> = Vec::new();
    for name in &names[from..] {
        match frames.last_mut() {
            Some((last, times)) if last == name => *times += 1,
            _ => frames.push((name, 1)),
        }
    }
    frames
}

/// A Rust name without the hash at its end.
fn short(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((short, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => short,
        _ => name,
    }
}
