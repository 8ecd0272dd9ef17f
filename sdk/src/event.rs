//! The event that a handler gets.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Data, Failure, Timestamp};

/// An event with the attributes of [CloudEvents 1.0](https://github.com/cloudevents/spec).
///
/// `Event` alone carries its payload as bytes. `Event<T>`, as the argument of a handler, carries it parsed from JSON;
/// an event whose payload does not parse fails as *invalid* before the handler is called.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Reading {
///     celsius: f64,
/// }
///
/// fn typed(event: Event<Reading>, _: &mut Context) -> Result<(), Failure> {
///     log::info!("{:?}: {} degrees", event.subject, event.data.celsius);
///     Ok(())
/// }
///
/// fn untyped(event: Event, _: &mut Context) -> Result<(), Failure> {
///     if event.ty == "reading" {
///         let reading: Reading = event.data_json()?;
///         log::info!("{:?}: {} degrees", event.subject, reading.celsius);
///     }
///     Ok(())
/// }
/// # use millrace_sdk::testing::{event, Invocation};
/// # let reading = event("reading", &json!({"celsius": 21.5}));
/// # assert_eq!(Invocation::new(reading.clone()).run(typed).logs, Invocation::new(reading).run(untyped).logs);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<T = Data> {
    /// Unique within its source.
    pub id: String,
    /// Where it comes from, a URI reference.
    pub source: String,
    /// The `type` attribute.
    pub ty: String,
    /// What it is about, within its source.
    pub subject: Option<String>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The media type of the data.
    pub datacontenttype: Option<String>,
    /// The schema of the data, a URI.
    pub dataschema: Option<String>,
    /// Extension attributes in canonical string form, sorted by name.
    pub extensions: Vec<(String, String)>,
    /// The payload.
    pub data: T,
}

impl<T> Event<T> {
    /// The value of an extension attribute.
    ///
    /// ```
    /// let mut event = millrace_sdk::testing::event("ping", &());
    /// event.extensions.push(("tenant".into(), "acme".into()));
    /// assert_eq!(event.extension("tenant"), Some("acme"));
    /// assert_eq!(event.extension("colour"), None);
    /// ```
    #[must_use]
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.extensions.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The same event with another payload, and the payload that it had.
    ///
    /// ```
    /// let event = millrace_sdk::testing::event("ping", &"hello");
    /// let (event, data) = event.replace_data(42);
    /// assert_eq!((event.data, data.text()), (42, Ok("\"hello\"")));
    /// ```
    pub fn replace_data<U>(self, data: U) -> (Event<U>, T) {
        let Self { id, source, ty, subject, time, datacontenttype, dataschema, extensions, data: old } = self;
        (Event { id, source, ty, subject, time, datacontenttype, dataschema, extensions, data }, old)
    }
}

impl Event {
    /// The payload parsed as JSON; it can borrow from the event. Absent data reads as `null`.
    ///
    /// # Errors
    /// [`Failure::Invalid`] if it is not JSON, or not of this shape.
    ///
    /// ```
    /// use millrace_sdk::{Failure, testing};
    ///
    /// let event = testing::event("ping", &["a", "b"]);
    /// assert_eq!(event.data_json::<[&str; 2]>(), Ok(["a", "b"]));
    /// assert!(matches!(event.data_json::<bool>(), Err(Failure::Invalid(_))));
    /// ```
    pub fn data_json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        self.data.json()
    }
}

/// What a handler can take as its first argument.
///
/// Implement it for a type of your own to read events in another format:
///
/// ```
/// use millrace_sdk::{FromEvent, prelude::*};
///
/// /// A temperature that devices send as text.
/// struct Celsius(f64);
///
/// impl FromEvent for Celsius {
///     fn from_event(event: Event) -> Result<Self, Failure> {
///         Ok(Self(event.data.text()?.trim().parse().invalid("not a temperature")?))
///     }
/// }
///
/// fn handle(Celsius(degrees): Celsius, _: &mut Context) -> Result<(), Failure> {
///     log::info!("{degrees} degrees");
///     Ok(())
/// }
///
/// millrace_sdk::handler!(handle);
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "its first argument must be an event",
    note = "take `Event`, or `Event<T>` where `T` derives `serde::Deserialize`, or implement `FromEvent`"
)]
pub trait FromEvent: Sized {
    /// Reads it from an event.
    ///
    /// # Errors
    /// The failure with which the event ends instead of being handled.
    fn from_event(event: Event) -> Result<Self, Failure>;
}

impl FromEvent for Event {
    fn from_event(event: Event) -> Result<Self, Failure> {
        Ok(event)
    }
}

impl<T: DeserializeOwned> FromEvent for Event<T> {
    fn from_event(event: Event) -> Result<Self, Failure> {
        let data = event.data.json()?;
        Ok(event.replace_data(data).0)
    }
}
