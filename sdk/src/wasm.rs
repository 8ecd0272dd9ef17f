//! The real host: the runtime's imports and the export that it calls.

use std::io::{self, Write as _};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;
use std::time::Duration;

use crate::context::Host;

pub(crate) mod state;
use crate::{Context, Data, EmitError, FromEvent, Timestamp};

/// Generated from `wit/`.
#[allow(unsafe_code, missing_docs, unreachable_pub, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        world: "function",
        path: "wit",
        pub_export_macro: true,
        generate_all,
    });
}

pub use bindings::export;
pub use bindings::exports::millrace::function::handler::{Delivery, Event, Failure, Guest};

use bindings::millrace::function::emitter;
use bindings::wasi::config::store;
use bindings::wasi::logging::logging;

/// The configuration key that decides how much is logged.
const LOG_LEVEL_KEY: &str = "log-level";

/// Runs a handler for one event.
///
/// # Errors
/// The handler's failure, or that of reading what the handler takes from the event.
pub fn run<E: FromEvent>(
    handle: impl Fn(E, &mut Context<'_>) -> Result<(), crate::Failure>,
    event: Event,
    delivery: &Delivery,
) -> Result<(), Failure> {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        panic::set_hook(Box::new(report_panic));
        install_logger();
    });
    let outcome = E::from_event(event.into());
    let outcome = outcome.and_then(|event| handle(event, &mut Context::new(&mut Imports { delivery })));
    outcome.map_err(Failure::from)
}

struct Imports<'a> {
    delivery: &'a Delivery,
}

impl Host for Imports<'_> {
    fn emit(&mut self, topic: &str, emission: crate::Emission) -> Result<String, EmitError> {
        emitter::emit(topic, &emission.into()).map_err(EmitError::from)
    }

    fn config(&self, key: &str) -> Result<Option<String>, String> {
        store::get(key).map_err(|err| match err {
            store::Error::Upstream(reason) | store::Error::Io(reason) => reason,
        })
    }

    fn topic(&self) -> String {
        self.delivery.topic()
    }

    fn partition(&self) -> u32 {
        self.delivery.partition()
    }

    fn offset(&self) -> u64 {
        self.delivery.offset()
    }

    fn key(&self) -> Option<Vec<u8>> {
        self.delivery.key()
    }

    fn attempt(&self) -> u32 {
        self.delivery.attempt()
    }

    fn idempotency_key(&self) -> String {
        self.delivery.idempotency_key()
    }

    fn remaining(&self) -> Duration {
        Duration::from_nanos(self.delivery.remaining())
    }
}

// The conversions move texts and bytes; nothing is copied between the binding's types and those of the crate.

impl From<Event> for crate::Event {
    fn from(event: Event) -> Self {
        let Event { id, source, type_, subject, time, datacontenttype, dataschema, extensions, data } = event;
        let time = time.map(Timestamp::from_nanos);
        Self { id, source, ty: type_, subject, time, datacontenttype, dataschema, extensions, data: Data::from(data) }
    }
}

impl From<crate::Emission> for emitter::Emission {
    fn from(emission: crate::Emission) -> Self {
        let crate::Emission { id, source, ty, subject, time, datacontenttype, dataschema, extensions, data, key } =
            emission;
        let time = time.map(Timestamp::as_nanos);
        Self { id, source, type_: ty, subject, time, datacontenttype, dataschema, extensions, data, key }
    }
}

impl From<emitter::EmitError> for EmitError {
    fn from(err: emitter::EmitError) -> Self {
        match err {
            emitter::EmitError::UnknownTopic(topic) => Self::UnknownTopic(topic),
            emitter::EmitError::NotGranted(topic) => Self::NotGranted(topic),
            emitter::EmitError::TooLarge(bytes) => Self::TooLarge(bytes),
            emitter::EmitError::TooMany(bound) => Self::TooMany(bound),
            emitter::EmitError::Invalid(reason) => Self::Invalid(reason),
        }
    }
}

impl From<crate::Failure> for Failure {
    fn from(failure: crate::Failure) -> Self {
        match failure {
            crate::Failure::Transient { message, retry_after } => {
                let retry_after = retry_after.map(|delay| u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
                let transient = bindings::millrace::function::types::TransientFailure { message, retry_after };
                Self::Transient(transient)
            }
            crate::Failure::Invalid(message) => Self::Invalid(message),
            crate::Failure::Rejected(message) => Self::Rejected(message),
        }
    }
}

/// Prints where a handler panicked and why. The hook of the standard library would add a thread and advice on an
/// environment variable, of which a component has neither.
fn report_panic(panic: &PanicHookInfo<'_>) {
    // In one write, so that the host sees one message. If that fails, nobody is left to be told.
    drop(io::stderr().write_all(format!("{panic}\n").as_bytes()));
}

/// Sends what the `log` facade gets to the host. Its module path is the context.
struct HostLogger;

impl log::Log for HostLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error => logging::Level::Error,
            log::Level::Warn => logging::Level::Warn,
            log::Level::Info => logging::Level::Info,
            log::Level::Debug => logging::Level::Debug,
            log::Level::Trace => logging::Level::Trace,
        };
        match record.args().as_str() {
            Some(text) => logging::log(level, record.target(), text),
            None => logging::log(level, record.target(), &record.args().to_string()),
        }
    }

    fn flush(&self) {}
}

fn install_logger() {
    // A handler that has brought a logger of its own keeps it.
    if log::set_logger(&HostLogger).is_err() {
        return;
    }
    log::set_max_level(log::LevelFilter::Info);
    if let Ok(Some(level)) = store::get(LOG_LEVEL_KEY) {
        match level.parse() {
            Ok(level) => log::set_max_level(level),
            Err(_) => log::warn!("configuration `{LOG_LEVEL_KEY}`: use off, error, warn, info, debug or trace"),
        }
    }
}
