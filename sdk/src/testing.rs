//! A test double for the runtime, so that a handler's tests run natively by `cargo test`.
//!
//! ```
//! use millrace_sdk::prelude::*;
//! use millrace_sdk::testing::{self, Invocation};
//!
//! fn handle(event: Event<String>, cx: &mut Context) -> Result<(), Failure> {
//!     let greeting: String = cx.config("greeting")?;
//!     log::info!("greeting {}", event.data);
//!     cx.emit("greetings", Emission::json("greeting", &format!("{greeting}, {}!", event.data))?)?;
//!     Ok(())
//! }
//!
//! let invocation = Invocation::new(testing::event("visitor.arrived", "Ada"));
//! let completion = invocation.clone().config("greeting", "Hello").run(handle);
//!
//! assert_eq!(completion.outcome, Ok(()));
//! assert_eq!(completion.emitted[0].topic, "greetings");
//! assert_eq!(completion.emitted[0].event.data_json(), Ok("Hello, Ada!"));
//! assert_eq!(completion.logs[0].message, "greeting Ada");
//!
//! // Without the configuration it fails.
//! assert!(matches!(invocation.run(handle).outcome, Err(Failure::Transient { .. })));
//! ```

mod cloudevent;
mod host;
mod logs;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Context, Data, EmitError, Event, Failure, FromEvent};

pub use cloudevent::InvalidCloudEvent;
pub use logs::LogLine;

/// An event of this type with a value as its JSON payload. Everything else can be set on the event itself.
///
/// # Panics
/// If the value has no JSON form.
///
/// ```
/// use millrace_sdk::testing;
///
/// let mut event = testing::event("order.placed", &vec!["tea"]);
/// event.subject = Some("o-1".into());
/// assert_eq!(event.data.text(), Ok(r#"["tea"]"#));
/// ```
#[must_use]
pub fn event(ty: &str, data: &(impl Serialize + ?Sized)) -> Event {
    let data = serde_json::to_vec(data).expect("the data of a test's event has a JSON form");
    Event {
        id: "event-1".into(),
        source: "/test".into(),
        ty: ty.into(),
        subject: None,
        time: None,
        datacontenttype: Some("application/json".into()),
        dataschema: None,
        extensions: Vec::new(),
        data: Data::from(data),
    }
}

/// Reads an event in the JSON format of CloudEvents 1.0, such as a sample file of an application.
///
/// # Errors
/// If it is not JSON, or an attribute is missing or malformed; the message names it.
///
/// ```
/// use millrace_sdk::testing;
///
/// let event = testing::cloud_event(r#"{
///     "specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed",
///     "partitionkey": "customer-7", "data": {"order": "o-1"}
/// }"#).unwrap();
/// assert_eq!(event.extension("partitionkey"), Some("customer-7"));
/// assert_eq!(event.data.text(), Ok(r#"{"order":"o-1"}"#));
/// assert_eq!(testing::cloud_event("{}").unwrap_err().to_string(), "not a CloudEvent: `specversion` must be \"1.0\"");
/// ```
pub fn cloud_event(json: &str) -> Result<Event, InvalidCloudEvent> {
    cloudevent::parse(json)
}

/// One invocation of a handler, to be set up and run.
///
/// Unless told otherwise it is the first attempt at offset 0 of partition 0 of topic `test`; every topic exists and is
/// granted, for 100 events of whatever size; state is granted and empty; there is no configuration; the ordering key is the event's `partitionkey`, if it has one.
///
/// ```
/// use millrace_sdk::{prelude::*, testing::{self, Invocation}};
///
/// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
///     if cx.delivery().attempt() < 3 {
///         return Err(Failure::transient("the gateway does not answer"));
///     }
///     Ok(())
/// }
///
/// let invocation = Invocation::new(testing::event("ping", &()));
/// assert!(invocation.clone().attempt(2).run(handle).outcome.is_err());
/// assert!(invocation.attempt(3).run(handle).outcome.is_ok());
/// ```
#[derive(Clone, Debug)]
#[must_use = "an invocation does nothing until it is run"]
pub struct Invocation {
    event: Event,
    config: BTreeMap<String, String>,
    topic: String,
    partition: u32,
    offset: u64,
    key: Option<Vec<u8>>,
    attempt: u32,
    idempotency_key: String,
    remaining: Duration,
    grants: Option<BTreeSet<String>>,
    refusals: BTreeMap<String, EmitError>,
    emitted_events: usize,
    state: Option<BTreeMap<String, Vec<u8>>>,
}

impl Invocation {
    /// An invocation for this event.
    ///
    /// ```
    /// use millrace_sdk::testing::{self, Invocation};
    ///
    /// let invocation = Invocation::new(testing::event("ping", &()));
    /// ```
    pub fn new(event: Event) -> Self {
        Self {
            config: BTreeMap::new(),
            topic: "test".into(),
            partition: 0,
            offset: 0,
            key: event.extension("partitionkey").map(Into::into),
            attempt: 1,
            idempotency_key: format!("{} {}", event.source, event.id),
            remaining: Duration::from_secs(10),
            grants: None,
            refusals: BTreeMap::new(),
            emitted_events: host::EMITTED_DEFAULT_EVENTS,
            state: Some(BTreeMap::new()),
            event,
        }
    }

    /// Sets one configuration value.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).config("currency", "EUR");
    /// ```
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Sets the topic that the event was read from.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).topic("orders");
    /// ```
    pub fn topic(mut self, topic: &str) -> Self {
        self.topic = topic.into();
        self
    }

    /// Sets the partition that the event was read from.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).partition(3);
    /// ```
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = partition;
        self
    }

    /// Sets the offset that the event was read from.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).offset(7);
    /// ```
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Sets the ordering key of the event.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).key("customer-7");
    /// ```
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets which attempt this is; 1 is the first.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).attempt(2);
    /// ```
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets the idempotency key.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// let invocation = Invocation::new(testing::event("ping", &())).idempotency_key("o-1");
    /// ```
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.idempotency_key = key.into();
        self
    }

    /// Sets the time left before the invocation is ended. The double does not end it.
    ///
    /// ```
    /// # use millrace_sdk::testing::{self, Invocation};
    /// # use std::time::Duration;
    /// let invocation = Invocation::new(testing::event("ping", &())).remaining(Duration::from_millis(5));
    /// ```
    pub fn remaining(mut self, remaining: Duration) -> Self {
        self.remaining = remaining;
        self
    }

    /// Grants publishing to these topics, and to no others.
    ///
    /// ```
    /// use millrace_sdk::{EmitError, prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     assert!(cx.emit("stock", Emission::new("reserved")).is_ok());
    ///     assert_eq!(cx.emit("audit", Emission::new("seen")), Err(EmitError::NotGranted("audit".into())));
    ///     Ok(())
    /// }
    ///
    /// testing::Invocation::new(testing::event("ping", &())).grants(["stock"]).run(handle).expect_completed();
    /// ```
    pub fn grants<'a>(mut self, topics: impl IntoIterator<Item = &'a str>) -> Self {
        self.grants = Some(topics.into_iter().map(Into::into).collect());
        self
    }

    /// Refuses whatever is emitted to a topic.
    ///
    /// ```
    /// use millrace_sdk::{EmitError, prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     cx.emit("stock", Emission::new("reserved"))?;
    ///     Ok(())
    /// }
    ///
    /// let invocation = testing::Invocation::new(testing::event("ping", &()));
    /// let completion = invocation.refuse("stock", EmitError::UnknownTopic("stock".into())).run(handle);
    /// assert_eq!(completion.outcome, Err(Failure::transient("there is no topic `stock`")));
    /// ```
    pub fn refuse(mut self, topic: &str, error: EmitError) -> Self {
        self.refusals.insert(topic.into(), error);
        self
    }

    /// Sets how many events the handler may emit, as `limits.emitted-events` in the manifest does; by default 100.
    ///
    /// ```
    /// use millrace_sdk::{EmitError, prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     cx.emit("stock", Emission::new("reserved"))?;
    ///     assert_eq!(cx.emit("stock", Emission::new("reserved")), Err(EmitError::TooMany(1)));
    ///     Ok(())
    /// }
    ///
    /// testing::Invocation::new(testing::event("ping", &())).emitted_events(1).run(handle).expect_completed();
    /// ```
    pub fn emitted_events(mut self, max: usize) -> Self {
        self.emitted_events = max;
        self
    }

    /// Stores a value in the function's state, as an earlier event would have. State is granted, whatever was said before.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     assert_eq!(cx.state().get_json("count")?, Some(41));
    ///     Ok(())
    /// }
    ///
    /// testing::Invocation::new(testing::event("ping", &())).state("count", "41").run(handle).expect_completed();
    /// ```
    pub fn state(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.state.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    /// Takes the grant of state away.
    ///
    /// ```
    /// use millrace_sdk::{StateError, prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     assert_eq!(cx.state().get("count"), Err(StateError::NotGranted));
    ///     Ok(())
    /// }
    ///
    /// testing::Invocation::new(testing::event("ping", &())).without_state().run(handle).expect_completed();
    /// ```
    pub fn without_state(mut self) -> Self {
        self.state = None;
        self
    }

    /// Runs a handler. A panic of the handler is a panic of the test.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(event: Event<u32>, _: &mut Context) -> Result<(), Failure> {
    ///     log::info!("got {}", event.data);
    ///     Ok(())
    /// }
    ///
    /// let completion = testing::Invocation::new(testing::event("number", &42)).run(handle);
    /// assert_eq!(completion.logs[0].message, "got 42");
    /// ```
    pub fn run<E: FromEvent>(&self, handle: impl Fn(E, &mut Context<'_>) -> Result<(), Failure>) -> Completion {
        let mut host = host::Double { invocation: self, emitted: Vec::new(), state: host::Store(self.state.clone()) };
        let (outcome, logs) = logs::captured(|| {
            let event = E::from_event(self.event.clone())?;
            handle(event, &mut Context::new(&mut host))
        });
        let host::Double { mut emitted, state: host::Store(mut state), .. } = host;
        if outcome.is_err() {
            emitted.clear();
            state.clone_from(&self.state);
        }
        Completion { outcome, emitted, state: state.unwrap_or_default(), logs }
    }
}

/// What an invocation did.
///
/// ```
/// use millrace_sdk::{prelude::*, testing};
///
/// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
///     cx.emit("stock", Emission::new("reserved"))?;
///     Err(Failure::rejected("changed my mind"))
/// }
///
/// let completion = testing::Invocation::new(testing::event("ping", &())).run(handle);
/// assert_eq!(completion.outcome, Err(Failure::rejected("changed my mind")));
/// assert!(completion.emitted.is_empty(), "nothing of a failed invocation is ever visible");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What the handler answered.
    pub outcome: Result<(), Failure>,
    /// What it emitted, in order; empty if it failed.
    pub emitted: Vec<Emitted>,
    /// The state after it, by key; as before if it failed.
    pub state: BTreeMap<String, Vec<u8>>,
    /// What it logged through the `log` facade, whatever the outcome. Empty if the test has installed a logger of its own.
    pub logs: Vec<LogLine>,
}

impl Completion {
    /// Goes on if the handler succeeded.
    ///
    /// # Panics
    /// With the failure, if it failed.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     cx.emit("stock", Emission::new("reserved"))?;
    ///     Ok(())
    /// }
    ///
    /// let completion = testing::Invocation::new(testing::event("ping", &())).run(handle).expect_completed();
    /// assert_eq!(completion.emitted.len(), 1);
    /// ```
    #[track_caller]
    pub fn expect_completed(self) -> Self {
        if let Err(failure) = &self.outcome {
            panic!("the handler failed: {failure}");
        }
        self
    }

    /// A value of the state after it, read as JSON, if there is one.
    ///
    /// # Panics
    /// If it is not JSON of this shape.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     cx.state().set_json("count", &1)?;
    ///     Ok(())
    /// }
    ///
    /// let completion = testing::Invocation::new(testing::event("ping", &())).run(handle);
    /// assert_eq!(completion.state_json("count"), Some(1));
    /// assert_eq!(completion.state_json::<u64>("other"), None);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn state_json<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let parse = |value: &Vec<u8>| serde_json::from_slice(value);
        self.state.get(key).map(parse).transpose().expect("the state is JSON of this shape")
    }
}

/// An event that the handler emitted.
///
/// ```
/// use millrace_sdk::{prelude::*, testing};
///
/// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
///     cx.emit("stock", Emission::json("reserved", &json!({"pieces": 2}))?)?;
///     Ok(())
/// }
///
/// let completion = testing::Invocation::new(testing::event("ping", &())).key("o-1").run(handle);
/// let [emitted] = &completion.emitted[..] else { panic!() };
/// assert_eq!(emitted.topic, "stock");
/// assert_eq!(emitted.key.as_deref(), Some(&b"o-1"[..]));
/// assert_eq!(emitted.event.ty, "reserved");
/// assert_eq!(emitted.event.extension("causationid"), Some("event-1"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Where to.
    pub topic: String,
    /// The ordering key: the one that was set, else that of the event being handled.
    pub key: Option<Vec<u8>>,
    /// The event, completed as the runtime would. An id that was not set is `emitted-0` and so on here.
    pub event: Event,
}
