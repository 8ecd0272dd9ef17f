//! What can be seen of a process from outside: logs, spans, and the names of everything.
//!
//! Log messages are one sentence with structured fields; nothing per event is above `debug`, but dead letters and what
//! guests log. Spans go to a collector if there is one, and cost a look at an `Option` if there is none.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{Log, LogFormat, Otlp};

mod histogram;
pub mod names;
#[cfg(feature = "otel")]
mod otlp;
mod spans;

pub use histogram::Histogram;
#[cfg(test)]
pub(crate) use spans::Outlet;
pub use spans::{About, LINKS_MAX, Links, Parent, Sampling, Span, SpanError, SpanIds, Tracing, WAITING_MAX_SPANS};

/// How long spans that wait may take to be sent when the process stops.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Writes logs to standard error, as the configuration says. `RUST_LOG` goes before it, for whoever knows it.
pub fn init(log: &Log) {
    let default = || EnvFilter::new(log.level.to_string().to_lowercase());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call, as in tests, keeps the first.
    let result = match log.format {
        LogFormat::Human => builder.with_target(true).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(result);
}

/// The task that sends spans.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Sends what waits, as far as that ends in time, and ends.
    pub async fn finish(self) {
        let Self { stop, mut task } = self;
        drop(stop);
        if tokio::time::timeout(FLUSH_MAX, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("The last spans could not be sent in time.");
        }
    }
}

/// Begins to send spans, if the configuration says where to; without that, nothing is on. Must be called within a runtime.
#[must_use]
pub fn start(otlp: &Otlp) -> (Tracing, Option<Exporter>) {
    let Some(url) = otlp.traces_url() else { return (Tracing::default(), None) };
    match send_to(url.clone(), otlp) {
        Ok((tracing, exporter)) => (tracing, Some(exporter)),
        Err(error) => {
            tracing::warn!(url, error, "No spans are sent.");
            (Tracing::default(), None)
        }
    }
}

#[cfg(feature = "otel")]
fn send_to(url: String, config: &Otlp) -> Result<(Tracing, Exporter), String> {
    let exporter = otlp::exporter(&url, &config.service_name)?;
    let (tracing, outlet) = Tracing::new(Sampling::of(config.sample_ratio));
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(otlp::run(exporter, url, outlet, stopped));
    Ok((tracing, Exporter { stop, task }))
}

#[cfg(not(feature = "otel"))]
fn send_to(_: String, _: &Otlp) -> Result<(Tracing, Exporter), String> {
    Err("this binary was built without the feature `otel`".to_owned())
}
