//! Sends events, and sends them again with the same ids until the server has them or patience ends.

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::limits;
use millrace_core::name::Topic;
use serde::Serialize;
use tokio::time::Instant;

pub(crate) use super::lines::Source;
use super::prepare::{Ids, Prepared, Refused, Wrapping};
use super::whole;
use crate::api::types::{self, BATCH_TYPE, EVENT_TYPE, Place};
use crate::cli::client::{Client, Refusal, Target, told};
use crate::cli::error::Error;
use crate::cli::format;
use crate::cli::output::Console;
use crate::clock::Clock;

/// Largest body of a batch of several events: well below what a server takes.
const BODY_MAX_BYTES: usize = limits::REQUEST_MAX_BYTES / 2;
/// The first wait before a request is sent again, when the server does not say; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How fast, and how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Events per second, at most.
    pub(crate) rate: Option<NonZeroU32>,
    /// Events of one request, at most.
    pub(crate) batch_events: usize,
}

impl Pace {
    /// At a low rate ten small batches a second come more evenly than a large one.
    fn batch_events(&self) -> usize {
        let tenth = self.rate.and_then(|rate| usize::try_from(rate.get() / 10).ok());
        tenth.map_or(self.batch_events, |tenth| self.batch_events.min(tenth.max(1)))
    }

    /// When the next batch may go, after this many events.
    fn due(&self, began: Instant, events: u64) -> Option<Instant> {
        let rate = self.rate?;
        #[expect(clippy::cast_precision_loss, reason = "far more precise than a timer")]
        let seconds = events as f64 / f64::from(rate.get());
        Some(began + Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}

/// What was published.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Published {
    /// The topic.
    pub(crate) topic: String,
    /// Events that the server has acknowledged.
    pub(crate) events: u64,
    /// Those of them without an ordering key.
    pub(crate) without_key: u64,
    /// Requests that were sent again.
    pub(crate) repeated: u64,
    /// Time since the first was sent.
    pub(crate) seconds: f64,
    /// Events over time.
    pub(crate) per_second: f64,
}

/// Publishes to one topic.
#[derive(Debug)]
pub(crate) struct Publisher {
    client: Client,
    topic: Topic,
    patience: Duration,
    began: Instant,
    events: u64,
    without_key: u64,
    repeated: u64,
    /// Whether the server ever answered, so that its silence is an interruption and no mistake in the address.
    was_reached: bool,
    shown_at: Option<Instant>,
}

/// Events on their way, with the lines they come from.
#[derive(Debug, Default)]
struct Batch {
    body: Vec<u8>,
    lines: Vec<u64>,
    without_key: u64,
}

impl Batch {
    fn push(&mut self, line: u64, event: &Prepared) {
        self.body.push(if self.lines.is_empty() { b'[' } else { b',' });
        self.body.extend_from_slice(&event.json);
        self.lines.push(line);
        self.without_key += u64::from(!event.is_keyed);
    }

    fn finish(mut self) -> (Bytes, Vec<u64>, u64) {
        self.body.push(b']');
        (self.body.into(), self.lines, self.without_key)
    }
}

impl Publisher {
    /// A publisher that tries again for this long.
    pub(crate) fn new(client: Client, topic: Topic, patience: Duration) -> Self {
        Self {
            client,
            topic,
            patience,
            began: Instant::now(),
            events: 0,
            without_key: 0,
            repeated: 0,
            was_reached: false,
            shown_at: None,
        }
    }

    /// What was published so far.
    pub(crate) fn published(&self) -> Published {
        let seconds = self.began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is for people")]
        let per_second = if seconds > 0.0 { self.events as f64 / seconds } else { 0.0 };
        Published {
            topic: self.topic.to_string(),
            events: self.events,
            without_key: self.without_key,
            repeated: self.repeated,
            seconds,
            per_second,
        }
    }

    /// Publishes one event.
    ///
    /// # Errors
    /// If the server refuses it, or cannot take it in time.
    pub(super) async fn event(&mut self, event: &Prepared, console: &mut Console) -> Result<Place, Error> {
        let placements = self.send(EVENT_TYPE, event.json.clone().into(), console).await?.placements;
        placements.first().copied().ok_or_else(|| self.not_understood())
    }

    /// Publishes all lines, one batch after the other, so that they keep their order. Between two batches it can be
    /// dropped without losing count.
    ///
    /// # Errors
    /// Names the line that is refused; all lines before its batch are published.
    pub(crate) async fn lines(
        &mut self,
        mut source: Source,
        wrapping: &Wrapping,
        pace: Pace,
        console: &mut Console,
    ) -> Result<(), Error> {
        self.began = Instant::now();
        let mut ids = Ids::new();
        let clock = Clock::system();
        while let Some(batch) =
            self.gather(&mut source, pace, |line| wrapping.line(line, &mut ids, clock.now())).await?
        {
            if let Some(due) = pace.due(self.began, self.events) {
                tokio::time::sleep_until(due).await;
            }
            self.batch(batch, source.name(), console).await?;
            self.show_progress(console)?;
        }
        Ok(())
    }

    /// The next batch; none at the end.
    async fn gather(
        &self,
        source: &mut Source,
        pace: Pace,
        mut prepare: impl FnMut(&[u8]) -> Result<Prepared, Refused>,
    ) -> Result<Option<Batch>, Error> {
        let mut batch = Batch::default();
        while batch.lines.len() < pace.batch_events() && batch.body.len() < BODY_MAX_BYTES {
            let Some(line) = source.next(batch.lines.is_empty()).await else { break };
            let line = line?;
            let prepared = prepare(&line.bytes).map_err(|refused| {
                let unsent = batch.lines.first().copied().unwrap_or(line.number);
                let place = format_args!("line {} of {}", line.number, source.name()).to_string();
                Error::failed(format_args!("{place}: {}", refused.cause), self.with_rest(refused.fix, unsent))
            })?;
            batch.push(line.number, &prepared);
        }
        Ok((!batch.lines.is_empty()).then_some(batch))
    }

    async fn batch(&mut self, batch: Batch, source: &str, console: &mut Console) -> Result<(), Error> {
        let (body, lines, without_key) = batch.finish();
        let answer = self.send(BATCH_TYPE, body, console).await.map_err(|refusal| {
            let first = lines.first().copied().unwrap_or_default();
            match &refusal {
                Refusal::Problem { problem, .. } => {
                    let at = problem.index.and_then(|index| lines.get(index)).copied();
                    let place = at.map_or_else(|| format!("lines from {first} on"), |line| format!("line {line}"));
                    let cause = format!("{place} of {source}: {}", told(problem));
                    let fix = match problem.status {
                        // The events are not at fault.
                        429 | 503 => "when there is room again, send the rest, or wait longer with --give-up-after",
                        _ => "mend it",
                    };
                    Error::failed(cause, self.with_rest(fix, first))
                }
                Refusal::Unreachable { .. }
                | Refusal::Untrusted { .. }
                | Refusal::Lost { .. }
                | Refusal::Foreign { .. } => refusal.into(),
            }
        })?;
        if answer.placements.len() != lines.len() {
            return Err(self.not_understood());
        }
        self.events += lines.len() as u64;
        self.without_key += without_key;
        Ok(())
    }

    /// A fix, with where to go on once it is made.
    fn with_rest(&self, fix: &str, first_unsent: u64) -> String {
        if self.events == 0 {
            return format!("{fix}; nothing is published yet");
        }
        format!("{fix}; what comes before line {first_unsent} is published, so go on from there")
    }

    fn not_understood(&self) -> Error {
        let reason = "its answer has not as many places as there are events".to_owned();
        Refusal::Foreign { server: self.client.server().to_owned(), reason }.into()
    }

    /// Sends a request until it is answered with yes or no.
    async fn send(
        &mut self,
        content_type: &str,
        body: Bytes,
        console: &mut Console,
    ) -> Result<types::Published, Refusal> {
        let target = Target::new(["v1", "topics", self.topic.as_str(), "events"]);
        let mut deadline = None;
        let mut backoff = RETRY_FIRST;
        loop {
            let refusal = match self.client.post_bytes(&target, content_type, body.clone()).await {
                Ok(published) => {
                    self.was_reached = true;
                    return Ok(published);
                }
                Err(refusal) => refusal,
            };
            let ControlFlow::Continue(wait) = self.wait_for(&refusal, backoff) else { return Err(refusal) };
            let now = Instant::now();
            let deadline = *deadline.get_or_insert(now + self.patience);
            if now >= deadline {
                return Err(refusal);
            }
            // Patience ends with one more look, even if the server asked for a longer pause.
            let wait = wait.min(deadline - now);
            // Progress is for people who watch; where it cannot be shown, the events matter more.
            let _unseen = console.progress(waiting(&refusal, wait));
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(RETRY_LONGEST);
            self.repeated += 1;
        }
    }

    /// Whether to send again, and after which time.
    fn wait_for(&mut self, refusal: &Refusal, backoff: Duration) -> ControlFlow<(), Duration> {
        match refusal {
            Refusal::Unreachable { .. } if self.was_reached => ControlFlow::Continue(backoff),
            Refusal::Lost { .. } => {
                self.was_reached = true;
                ControlFlow::Continue(backoff)
            }
            Refusal::Problem { problem, retry_after } => {
                self.was_reached = true;
                match problem.status {
                    429 | 503 => ControlFlow::Continue(retry_after.unwrap_or(backoff)),
                    _ => ControlFlow::Break(()),
                }
            }
            Refusal::Unreachable { .. } | Refusal::Untrusted { .. } | Refusal::Foreign { .. } => ControlFlow::Break(()),
        }
    }

    fn show_progress(&mut self, console: &mut Console) -> Result<(), Error> {
        let now = Instant::now();
        if self.shown_at.is_some_and(|shown| now - shown < PROGRESS_EVERY) {
            return Ok(());
        }
        self.shown_at = Some(now);
        let published = self.published();
        let rate = format::count(whole(published.per_second));
        console.progress(format_args!("{} published, {rate} per second", format::counted(published.events, "event")))
    }
}

fn waiting(refusal: &Refusal, wait: Duration) -> String {
    let why = match refusal {
        Refusal::Problem { problem, .. } => told(problem),
        Refusal::Unreachable { reason, .. } | Refusal::Lost { reason, .. } | Refusal::Foreign { reason, .. } => {
            reason.clone()
        }
        Refusal::Untrusted { why, .. } => why.reason.clone(),
    };
    format!("waiting {} to send again: {why}", format::duration(wait))
}
