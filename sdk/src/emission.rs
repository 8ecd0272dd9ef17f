//! Events that a handler sends.

use std::fmt;

use serde::Serialize;

use crate::{Failure, Timestamp};

/// An event to send with [`Context::emit`](crate::Context::emit). The runtime fills in what is absent: an id that is the
/// same again on redelivery, a source, the key, `causationid`, `correlationid` and the trace context.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// fn handle(event: Event, cx: &mut Context) -> Result<(), Failure> {
///     let shipped = json!({"parcels": 2});
///     cx.emit("shipping", Emission::json("order.shipped", &shipped)?.subject("o-1").key("customer-7"))?;
///     cx.emit("audit", Emission::new("handled").extension("tenant", "acme").time(Timestamp::EPOCH))?;
///     Ok(())
/// }
/// # use millrace_sdk::testing::{event, Invocation};
/// # let completion = Invocation::new(event("order.placed", &())).run(handle);
/// # assert_eq!(completion.outcome, Ok(()));
/// # assert_eq!(completion.emitted.len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an emission does nothing until it is given to `Context::emit`"]
pub struct Emission {
    pub(crate) id: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) ty: String,
    pub(crate) subject: Option<String>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) datacontenttype: Option<String>,
    pub(crate) dataschema: Option<String>,
    pub(crate) extensions: Vec<(String, String)>,
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) key: Option<Vec<u8>>,
}

impl Emission {
    /// An event of this type, without data.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("shop.opened");
    /// ```
    pub fn new(ty: impl Into<String>) -> Self {
        Self {
            id: None,
            source: None,
            ty: ty.into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: Vec::new(),
            data: None,
            key: None,
        }
    }

    /// An event of this type that carries a value as JSON, with content type `application/json`.
    ///
    /// # Errors
    /// [`Failure::Invalid`] if the value has no JSON form, such as a map whose keys are not strings.
    ///
    /// ```
    /// use millrace_sdk::{Emission, serde_json::json};
    ///
    /// let emission = Emission::json("order.placed", &json!({"order": "o-1"})).unwrap();
    /// ```
    pub fn json(ty: impl Into<String>, value: &(impl Serialize + ?Sized)) -> Result<Self, Failure> {
        let ty = ty.into();
        match serde_json::to_vec(value) {
            Ok(bytes) => Ok(Self::new(ty).data("application/json", bytes)),
            Err(err) => Err(Failure::invalid(format!("the data of `{ty}` has no JSON form: {err}"))),
        }
    }

    /// Sets the payload and its media type.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("report").data("text/csv", "a,b\n1,2\n");
    /// ```
    pub fn data(mut self, datacontenttype: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.datacontenttype = Some(datacontenttype.into());
        self.data = Some(bytes.into());
        self
    }

    /// Sets what the event is about, within its source. Not empty.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").subject("o-1");
    /// ```
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the ordering key. Events with one key go to one partition and are handled in order. By default the key of the
    /// event being handled.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").key("customer-7");
    /// ```
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets when it happened.
    ///
    /// ```
    /// use millrace_sdk::{Emission, Timestamp};
    ///
    /// let time: Timestamp = "2001-01-01T00:47:00Z".parse().unwrap();
    /// let emission = Emission::new("flight.recorded").time(time);
    /// ```
    pub fn time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// Sets the id. The default is the same again on redelivery, so an own one is needed only where the receiver expects
    /// it; it must not be random, or a retried event could not be recognised.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").id("o-1/shipped");
    /// ```
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the source, a URI reference. By default `/millrace/<application>/<function>`.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").source("https://shop.example/warehouse");
    /// ```
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sets the schema of the data, a URI.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").dataschema("https://shop.example/shipped.json");
    /// ```
    pub fn dataschema(mut self, dataschema: impl Into<String>) -> Self {
        self.dataschema = Some(dataschema.into());
        self
    }

    /// Adds an extension attribute. Names are lower-case letters and digits.
    ///
    /// ```
    /// let emission = millrace_sdk::Emission::new("order.shipped").extension("tenant", "acme");
    /// ```
    pub fn extension(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extensions.push((name.into(), value.into()));
        self
    }
}

/// Why an event could not be emitted.
///
/// By `?` it becomes a [`Failure`]: transient where a change of the deployment helps (unknown topic, not granted),
/// invalid where the event will never be accepted.
///
/// ```
/// use millrace_sdk::{EmitError, Failure};
///
/// let err = EmitError::NotGranted("audit".into());
/// assert_eq!(err.to_string(), "publishing to `audit` is not granted: add it to `grants.publish` in the manifest");
/// assert!(matches!(Failure::from(err), Failure::Transient { .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EmitError {
    /// There is no such topic.
    UnknownTopic(String),
    /// The manifest does not grant publishing to this topic.
    NotGranted(String),
    /// The event is larger than this many bytes.
    TooLarge(u64),
    /// The invocation has emitted this many events or bytes, and may not emit more.
    TooMany(u64),
    /// The event is not a valid CloudEvent; the text names the attribute.
    Invalid(String),
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTopic(topic) => write!(f, "there is no topic `{topic}`"),
            Self::NotGranted(topic) => {
                write!(f, "publishing to `{topic}` is not granted: add it to `grants.publish` in the manifest")
            }
            Self::TooLarge(bytes) => write!(f, "an emitted event is larger than {bytes} bytes"),
            Self::TooMany(bound) => write!(f, "one invocation may not emit more than {bound}"),
            Self::Invalid(reason) => write!(f, "an emitted event is not valid: {reason}"),
        }
    }
}

impl std::error::Error for EmitError {}

impl From<EmitError> for Failure {
    fn from(err: EmitError) -> Self {
        match err {
            EmitError::UnknownTopic(_) | EmitError::NotGranted(_) => Self::transient(err.to_string()),
            EmitError::TooLarge(_) | EmitError::TooMany(_) | EmitError::Invalid(_) => Self::invalid(err.to_string()),
        }
    }
}
