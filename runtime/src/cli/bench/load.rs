//! The events of a measurement, and their senders.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_core::name::Topic;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::Args;
use super::usage::metered;
use crate::api::types::BATCH_TYPE;
use crate::cli::client::{Client, Refusal, Target};
use crate::cli::error::Error;

/// The wait before a refused request is sent again, if the server does not say.
const RETRY: Duration = Duration::from_millis(10);

/// Events to be published over and over.
#[derive(Debug)]
pub(super) struct Sample(Vec<Template>);

/// An event in JSON up to the number that makes its id its own, and the rest.
#[derive(Debug, PartialEq, Eq)]
struct Template {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Sample {
    /// Reads events from a file.
    pub(super) fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|e| Error::file(file.display(), &e))?;
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let template = |(number, line): (usize, &str)| {
            Template::of(line).map_err(|cause| {
                let place = format!("line {number} of {}", file.display());
                Error::failed(format_args!("{place}: {cause}"), "give a CloudEvent in JSON on each line")
            })
        };
        let templates = lines.map(template).collect::<Result<Vec<_>, _>>()?;
        if templates.is_empty() {
            return Err(Error::failed(format_args!("{} has no events", file.display()), "give one on each line"));
        }
        Ok(Self(templates))
    }
}

impl Template {
    fn of(line: &str) -> Result<Self, String> {
        let mut event: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| format!("not a JSON object: {e}"))?;
        if !event.contains_key("specversion") {
            return Err("there is no `specversion`, so it is no CloudEvent".to_owned());
        }
        let id = event.remove("id");
        let id = id.as_ref().and_then(Value::as_str).ok_or("attribute `id` is missing")?;
        let id = Value::from(format!("{id}-")).to_string();
        let rest = Value::Object(event).to_string();
        let head = format!("{{\"id\":{}", id.trim_end_matches('"'));
        Ok(Self { head: head.into_bytes(), tail: format!("\",{}", rest.trim_start_matches('{')).into_bytes() })
    }

    fn write(&self, number: u64, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.head);
        body.extend_from_slice(number.to_string().as_bytes());
        body.extend_from_slice(&self.tail);
    }
}

/// All that is to be sent, shared by those who send it.
#[derive(Debug)]
pub(super) struct Load {
    sample: Sample,
    topic: Topic,
    count: u64,
    batch: u64,
    rate: Option<f64>,
    connections: u16,
    began: Instant,
    /// The number of the next event that nobody has taken.
    next: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    /// CPU time of the senders, in nanoseconds.
    cpu_nanos: AtomicU64,
    /// For each batch when it was sent, in nanoseconds since `began`; empty if nobody asks.
    sent: Vec<AtomicU64>,
}

impl Load {
    pub(super) fn new(sample: Sample, topic: Topic, args: &Args) -> Self {
        let batches = if args.rate.is_some() { args.count.div_ceil(args.batch) } else { 0 };
        Self {
            sample,
            topic,
            count: args.count,
            batch: args.batch,
            rate: args.rate.map(|rate| f64::from(rate.get())),
            connections: args.connections,
            began: Instant::now(),
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            sent: (0..batches).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) const fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) const fn connections(&self) -> u16 {
        self.connections
    }

    /// Requests that were refused and sent again.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether the server has acknowledged everything.
    pub(super) fn is_sent(&self) -> bool {
        self.acknowledged.load(Ordering::Relaxed) == self.count
    }

    /// How long ago the event with this number was first sent.
    pub(super) fn age(&self, number: u64) -> Option<Duration> {
        let sent = self.sent.get(usize::try_from(number / self.batch).ok()?)?.load(Ordering::Relaxed);
        self.began.elapsed().checked_sub(Duration::from_nanos(sent))
    }

    /// CPU time that the senders have taken.
    pub(super) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }

    /// Sends batches until there are no more.
    pub(super) async fn send(self: Arc<Self>, client: Client) -> Result<(), Error> {
        metered(self.send_all(client), &self.cpu_nanos).await
    }

    async fn send_all(&self, client: Client) -> Result<(), Error> {
        let target = Target::new(["v1", "topics", self.topic.as_str(), "events"]);
        loop {
            let first = self.next.fetch_add(self.batch, Ordering::Relaxed);
            if first >= self.count {
                return Ok(());
            }
            let body = bytes::Bytes::from(self.body(first));
            self.wait_for_turn(first).await;
            if let Some(sent) = usize::try_from(first / self.batch).ok().and_then(|batch| self.sent.get(batch)) {
                let at = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                sent.store(at, Ordering::Relaxed);
            }
            loop {
                match client.post_bytes::<IgnoredAny>(&target, BATCH_TYPE, body.clone()).await {
                    Ok(_) => break,
                    Err(Refusal::Problem { retry_after: Some(after), .. }) => {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(after.min(RETRY)).await;
                    }
                    Err(refusal) => return Err(refusal.into()),
                }
            }
            self.acknowledged.fetch_add(self.batch.min(self.count - first), Ordering::Relaxed);
        }
    }

    fn body(&self, first: u64) -> Vec<u8> {
        let templates = &self.sample.0;
        let mut body = Vec::new();
        for number in first..(first + self.batch).min(self.count) {
            body.push(if number == first { b'[' } else { b',' });
            let at = usize::try_from(number % templates.len() as u64).unwrap_or_default();
            templates[at].write(number, &mut body);
        }
        body.push(b']');
        body
    }

    async fn wait_for_turn(&self, first: u64) {
        let Some(rate) = self.rate else { return };
        #[expect(clippy::cast_precision_loss, reason = "far more precise than a timer")]
        let due = self.began + Duration::from_secs_f64(first as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_gets_ids_of_its_own() {
        let template =
            Template::of(r#"{"specversion":"1.0","id":"a\"b","type":"t","source":"/s","data":{"id":1}}"#).unwrap();
        let mut body = Vec::new();
        template.write(17, &mut body);
        let event: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(event["id"], "a\"b-17");
        assert_eq!((&event["data"]["id"], &event["type"]), (&Value::from(1), &Value::from("t")));
    }

    #[test]
    fn what_is_no_event_is_refused_with_the_reason() {
        for (line, reason) in [
            ("[]", "not a JSON object"),
            (r#"{"id":"x"}"#, "there is no `specversion`"),
            (r#"{"specversion":"1.0"}"#, "attribute `id` is missing"),
            (r#"{"specversion":"1.0","id":1}"#, "attribute `id` is missing"),
        ] {
            let refused = Template::of(line).unwrap_err();
            assert!(refused.starts_with(reason), "{line}: {refused}");
        }
    }
}
