//! A function whose handler does what its events say, on no sandbox at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace::sandbox::{Completion, Emission, Error, Invocation, Sandbox, StateBuffer, StateError, Usage};
use millrace::worker::Revision;
use millrace_core::event::Event;
use millrace_core::identity;
use millrace_core::intake::Intake;
use millrace_core::name::Topic;
use millrace_core::outcome::{Category, Failure, Outcome};
use millrace_core::policy;
use millrace_core::state::Writes;
use tokio::sync::Semaphore;

use super::steps::function;

/// The type of events that are rejected until the cause is mended.
pub(crate) const FAILING: &str = "test.failing";
/// The type of events whose handler goes on only when it is let.
pub(crate) const HELD: &str = "test.held";

/// The type of events that fail as in an outage, after a while.
pub(crate) const BROKEN: &str = "test.broken";
const WHILE: Duration = Duration::from_millis(1);

/// Emits one event for each that it handles, and stores the ids of each key's events.
#[derive(Clone, Debug)]
pub(crate) struct Handler {
    intake: Arc<Intake>,
    output: Topic,
    pub(crate) mended: Arc<AtomicBool>,
    /// How many more of the held ones may go on.
    pub(crate) let_go: Arc<Semaphore>,
    /// How often something was broken.
    pub(crate) outages: Arc<AtomicUsize>,
}

impl Handler {
    pub(crate) fn new(output: Topic) -> Self {
        let intake = Intake { ordering: policy::Ordering::Key, filter: None, key: None };
        let (mended, outages, let_go) = (Arc::default(), Arc::default(), Arc::new(Semaphore::new(0)));
        Self { intake: Arc::new(intake), output, mended, let_go, outages }
    }
}

impl Revision for Handler {
    type Sandbox = Self;

    fn number(&self) -> u64 {
        1
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn keeps_state(&self) -> bool {
        true
    }

    fn sandbox(&self) -> Self {
        self.clone()
    }
}

impl Sandbox for Handler {
    async fn invoke(&mut self, invocation: Invocation<'_>) -> Result<Completion, Error> {
        let state = remember(&invocation).await.map_err(|e| Error(e.to_string()))?;
        let (event, delivery) = (invocation.event, &invocation.delivery);
        if event.ty == HELD {
            self.let_go.acquire().await.map_err(|e| Error(e.to_string()))?.forget();
        }
        let mut failed = None;
        if event.ty == BROKEN {
            tokio::time::sleep(WHILE).await;
            self.outages.fetch_add(1, Ordering::SeqCst);
            failed = Some(Category::Transient);
        } else if event.ty == FAILING && !self.mended.load(Ordering::SeqCst) {
            failed = Some(Category::Rejected);
        }
        if let Some(category) = failed {
            let outcome = Outcome::Failed(Failure::new(category, "not yet"));
            let (emitted, logs, usage) = (Vec::new(), Vec::new(), Usage::default());
            return Ok(Completion { outcome, emitted, state: Writes::default(), logs, usage });
        }
        let output = Event {
            id: identity::emitted_id(&function(), &delivery.topic, &delivery.idempotency_key, 0).into(),
            source: "/test".into(),
            ty: "test.output".into(),
            subject: Some(event.id.clone()),
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: Vec::new(),
            data: None,
        };
        let emitted = vec![Emission::new(self.output.clone(), delivery.key.clone(), &output)];
        let (state, logs) = (state.into_writes(), Vec::new());
        Ok(Completion { outcome: Outcome::Completed, emitted, state, logs, usage: Usage::default() })
    }
}

/// Adds the event to the list of its key.
async fn remember(invocation: &Invocation<'_>) -> Result<StateBuffer, StateError> {
    let mut state = StateBuffer::new(invocation.state.clone().expect("the function was granted state"));
    let key = invocation.delivery.key.clone().unwrap_or_default();
    let key = String::from_utf8_lossy(&key).into_owned();
    let earlier = state.get(&key).await?.unwrap_or_default();
    let list = format!("{}{} ", String::from_utf8_lossy(&earlier), invocation.event.id);
    state.write(&key, Some(list.as_bytes()))?;
    Ok(state)
}
