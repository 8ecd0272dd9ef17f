//! The port to a sandbox: one event in, an outcome and buffered effects out.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::codec::{self, Place};
use millrace_core::event::Event;
use millrace_core::name::Topic;
use millrace_core::outcome::{Failure, Outcome};
use millrace_core::partition;
use millrace_core::record::Record;
use millrace_core::state::Writes;
use millrace_core::time::Timestamp;

mod artifact;
mod bindings;
mod cache;
mod compiler;
mod emission;
mod engine;
mod failure;
mod function;
mod guest;
mod host;
mod keyvalue;
mod limits;
mod logs;
mod pool;
mod refusal;
mod state;
mod ticker;
mod turns;

pub use artifact::Component;
pub use compiler::{Bounds, Compiler, compile_if_asked};
pub use emission::KnownTopics;
pub use engine::{Engine, EngineOptions};
pub use function::{Function, FunctionOptions};
pub use guest::Guest;
pub use limits::GuestLimits;
pub use refusal::Refusal;
pub use state::{CommittedState, NoState, StateBuffer, StateError, StateView};

/// Runs one function's handler. Each worker has its own.
pub trait Sandbox: Send + 'static {
    /// Runs the handler once. Nothing the handler did is visible outside the answer. Not cancel safe, but dropping the
    /// future ends the guest and leaves the sandbox usable.
    ///
    /// # Errors
    /// If the host could not run the guest at all; what the guest did badly is an outcome.
    fn invoke(&mut self, invocation: Invocation<'_>) -> impl Future<Output = Result<Completion, Error>> + Send;

    /// There is nothing to run for the moment: what others could use meanwhile is given back.
    fn idle(&mut self) {}
}

/// The host could not run a guest, for example because no instance is free. Trying again may help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// One attempt at one event.
#[derive(Clone, Debug)]
pub struct Invocation<'a> {
    /// The event.
    pub event: &'a Event,
    /// How it came.
    pub delivery: Delivery,
    /// Trace context for what the handler emits.
    pub trace: Option<TraceContext>,
    /// What the handler's reads of its state see, if it was granted state.
    pub state: Option<StateView>,
}

/// How an event came to the handler.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The source topic.
    pub topic: Topic,
    /// The source partition.
    pub partition: u32,
    /// The offset in the source partition, also for a redriven event.
    pub offset: u64,
    /// The ordering key.
    pub key: Option<Bytes>,
    /// 1 for the first attempt. From the second on the instance is fresh.
    pub attempt: u32,
    /// The idempotency key as text.
    pub idempotency_key: ByteString,
}

/// W3C trace context (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub parent: ByteString,
    /// The `tracestate` header.
    pub state: Option<ByteString>,
}

/// What an attempt did.
#[derive(Clone, Debug)]
pub struct Completion {
    /// How it ended.
    pub outcome: Outcome,
    /// What it emitted, in order; empty unless it completed.
    pub emitted: Vec<Emission>,
    /// What it wrote to its state; empty unless it completed.
    pub state: Writes,
    /// What it logged, whatever the outcome.
    pub logs: Vec<LogLine>,
    /// What it used.
    pub usage: Usage,
}

/// An event that a handler emitted, complete with identity, causation and trace context, and encoded: most events are never
/// looked at again before they are written.
#[derive(Clone, Debug)]
pub struct Emission {
    /// Where to.
    pub topic: Topic,
    /// Chooses the partition there; see [`millrace_core::partition::hash`].
    pub hash: u32,
    /// The event with its ordering key. It has no timestamp yet: that of its commit is the only one that matters.
    pub record: Record,
}

impl Emission {
    /// Encodes a valid event.
    #[must_use]
    pub fn new(topic: Topic, key: Option<Bytes>, event: &Event) -> Self {
        let hash = partition::hash(key.as_deref(), &event.source, &event.id);
        Self { topic, hash, record: codec::encode(event, key, Timestamp::EPOCH) }
    }

    /// The event, as whoever reads the record takes it.
    ///
    /// # Errors
    /// If it was not valid.
    pub fn event(&self) -> Result<Event, Failure> {
        codec::decode(&self.record, Place { topic: &self.topic, partition: 0, offset: 0 })
    }
}

/// One message of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How important it is.
    pub level: LogLevel,
    /// What groups messages: a module's path, or `stdout` and `stderr`.
    pub context: String,
    /// The text.
    pub message: String,
}

/// The levels of `wasi:logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Finest detail.
    Trace,
    /// For debugging.
    Debug,
    /// Normal operation.
    Info,
    /// Something unusual.
    Warn,
    /// Something failed.
    Error,
    /// The function cannot go on.
    Critical,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        })
    }
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time from call to return.
    pub elapsed: Duration,
    /// The guest's linear memories after the call, in bytes.
    pub memory_bytes: u64,
}
