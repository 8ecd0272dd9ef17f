//! What a handler can do, and what it can learn about the event's delivery.

use std::any::type_name;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{Emission, EmitError, Failure, State};

/// What the context asks of its surroundings: the runtime's imports, or the test double.
pub(crate) trait Host {
    fn emit(&mut self, topic: &str, emission: Emission) -> Result<String, EmitError>;
    fn config(&self, key: &str) -> Result<Option<String>, String>;
    fn topic(&self) -> String;
    fn partition(&self) -> u32;
    fn offset(&self) -> u64;
    fn key(&self) -> Option<Vec<u8>>;
    fn attempt(&self) -> u32;
    fn idempotency_key(&self) -> String;
    fn remaining(&self) -> Duration;
    #[cfg(not(target_family = "wasm"))]
    fn state(&mut self) -> &mut dyn crate::state::Store;
}

/// One invocation of a handler: what it can do, and how its event came.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// fn handle(event: Event, cx: &mut Context) -> Result<(), Failure> {
///     let audit: String = cx.config_or("audit-topic", "audit".to_owned())?;
///     let attempt = cx.delivery().attempt();
///     let id = cx.emit(&audit, Emission::json("handled", &json!({"attempt": attempt}))?)?;
///     log::debug!("{} led to {id}", event.id);
///     Ok(())
/// }
/// # use millrace_sdk::testing::{event, Invocation};
/// # assert_eq!(Invocation::new(event("ping", &())).run(handle).emitted[0].topic, "audit");
/// ```
pub struct Context<'a> {
    host: &'a mut dyn Host,
}

impl<'a> Context<'a> {
    pub(crate) fn new(host: &'a mut dyn Host) -> Self {
        Self { host }
    }

    /// Sends an event to a topic if the handler succeeds, and answers with the event's id. It is buffered until then:
    /// when the handler fails or panics, nothing was ever sent.
    ///
    /// # Errors
    /// If the topic does not exist or is not granted, or the event breaks a bound or the rules of CloudEvents.
    ///
    /// ```
    /// use millrace_sdk::{EmitError, prelude::*};
    ///
    /// fn handle(event: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     cx.emit("copies", Emission::new(&event.ty).data("application/octet-stream", event.data.bytes().unwrap_or(b"")))?;
    ///     match cx.emit("audit", Emission::new("copied")) {
    ///         Err(EmitError::NotGranted(_)) => log::warn!("copied without an audit"),
    ///         other => drop(other?),
    ///     }
    ///     Ok(())
    /// }
    /// # use millrace_sdk::testing::{event, Invocation};
    /// # assert_eq!(Invocation::new(event("ping", &())).grants(["copies"]).run(handle).logs.len(), 1);
    /// ```
    pub fn emit(&mut self, topic: &str, emission: Emission) -> Result<String, EmitError> {
        self.host.emit(topic, emission)
    }

    /// The configuration value under this key of the manifest, parsed.
    ///
    /// # Errors
    /// If it is missing or does not parse. By `?` that is a transient failure, because a new deployment can mend it.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     let currency: String = cx.config("currency")?;
    ///     let limit: u32 = cx.config("limit")?;
    ///     log::info!("up to {limit} {currency}");
    ///     Ok(())
    /// }
    ///
    /// let invocation = testing::Invocation::new(testing::event("ping", &())).config("currency", "EUR");
    /// assert_eq!(invocation.clone().config("limit", "20").run(handle).outcome, Ok(()));
    ///
    /// let missing = invocation.run(handle).outcome.unwrap_err();
    /// assert_eq!(missing.message(), "configuration `limit` is missing: set it under `config` in the manifest");
    /// ```
    pub fn config<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<T, ConfigError> {
        self.config_opt(key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
    }

    /// The configuration value under this key, parsed, or a default when it is absent.
    ///
    /// # Errors
    /// If it is there and does not parse.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     log::info!("limit {}", cx.config_or("limit", 20)?);
    ///     Ok(())
    /// }
    ///
    /// let invocation = testing::Invocation::new(testing::event("ping", &()));
    /// assert_eq!(invocation.run(handle).logs[0].message, "limit 20");
    /// assert!(invocation.config("limit", "many").run(handle).outcome.is_err());
    /// ```
    pub fn config_or<T: FromStr<Err: fmt::Display>>(&self, key: &str, default: T) -> Result<T, ConfigError> {
        Ok(self.config_opt(key)?.unwrap_or(default))
    }

    /// The configuration value under this key, parsed, if there is one.
    ///
    /// # Errors
    /// If it is there and does not parse.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     if let Some(limit) = cx.config_opt::<u32>("limit")? {
    ///         log::info!("limit {limit}");
    ///     }
    ///     Ok(())
    /// }
    ///
    /// let invocation = testing::Invocation::new(testing::event("ping", &()));
    /// assert!(invocation.run(handle).logs.is_empty());
    /// ```
    pub fn config_opt<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let value = self.host.config(key).map_err(|reason| ConfigError::Unavailable { key: key.to_owned(), reason })?;
        let parse = |value: String| {
            value.parse().map_err(|err: T::Err| ConfigError::Malformed {
                key: key.to_owned(),
                reason: format!("not a {}: {err}", short_type_name::<T>()),
            })
        };
        value.map(parse).transpose()
    }

    /// What the function remembers, for this partition of this topic.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     let count = cx.state().get_json("count")?.unwrap_or(0) + 1;
    ///     cx.state().set_json("count", &count)?;
    ///     Ok(())
    /// }
    ///
    /// let completion = testing::Invocation::new(testing::event("ping", &())).run(handle);
    /// assert_eq!(completion.state_json("count"), Some(1));
    /// ```
    #[must_use]
    pub fn state(&mut self) -> State<'_> {
        #[cfg(target_family = "wasm")]
        return State::new();
        #[cfg(not(target_family = "wasm"))]
        State::new(self.host.state())
    }

    /// How the event came.
    ///
    /// ```
    /// use millrace_sdk::{prelude::*, testing};
    ///
    /// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    ///     log::info!("attempt {}", cx.delivery().attempt());
    ///     Ok(())
    /// }
    ///
    /// let invocation = testing::Invocation::new(testing::event("ping", &())).attempt(2);
    /// assert_eq!(invocation.run(handle).logs[0].message, "attempt 2");
    /// ```
    #[must_use]
    pub fn delivery(&self) -> Delivery<'_> {
        Delivery { host: &*self.host }
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("delivery", &self.delivery()).finish()
    }
}

/// The last part of a type's path, which is what a person calls it.
fn short_type_name<T>() -> &'static str {
    let full = type_name::<T>();
    full.rsplit("::").next().unwrap_or(full)
}

/// How an event came to the handler.
///
/// ```
/// use millrace_sdk::{prelude::*, testing};
///
/// fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
///     let delivery = cx.delivery();
///     log::info!("{}/{}/{}", delivery.topic(), delivery.partition(), delivery.offset());
///     Ok(())
/// }
///
/// let invocation = testing::Invocation::new(testing::event("ping", &())).topic("pings").partition(3).offset(7);
/// assert_eq!(invocation.run(handle).logs[0].message, "pings/3/7");
/// ```
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    host: &'a dyn Host,
}

impl Delivery<'_> {
    /// The topic the event was read from; the original one when the event is redriven.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let topic: String = cx.delivery().topic();
    /// # assert_eq!(topic, "orders");
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).topic("orders").run(handle).expect_completed();
    /// ```
    #[must_use]
    pub fn topic(&self) -> String {
        self.host.topic()
    }

    /// The partition of the topic.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let partition: u32 = cx.delivery().partition();
    /// # assert_eq!(partition, 3);
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).partition(3).run(handle).expect_completed();
    /// ```
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.host.partition()
    }

    /// The offset in the partition.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let offset: u64 = cx.delivery().offset();
    /// # assert_eq!(offset, 7);
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).offset(7).run(handle).expect_completed();
    /// ```
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.host.offset()
    }

    /// The ordering key, if the event has one.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let key: Option<Vec<u8>> = cx.delivery().key();
    /// # assert_eq!(key.as_deref(), Some(&b"customer-7"[..]));
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).key("customer-7").run(handle).expect_completed();
    /// ```
    #[must_use]
    pub fn key(&self) -> Option<Vec<u8>> {
        self.host.key()
    }

    /// Which attempt this is; 1 is the first.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// if cx.delivery().attempt() > 1 {
    ///     log::warn!("trying again");
    /// }
    /// # Ok(()) }
    /// # let invocation = testing::Invocation::new(testing::event("ping", &())).attempt(2);
    /// # assert_eq!(invocation.run(handle).logs.len(), 1);
    /// ```
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.host.attempt()
    }

    /// Equal for two deliveries exactly if they are the same event to this function. Hand it to other systems that can
    /// recognise repetitions.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let key: String = cx.delivery().idempotency_key();
    /// # assert_eq!(key, "o-1");
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).idempotency_key("o-1").run(handle).expect_completed();
    /// ```
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        self.host.idempotency_key()
    }

    /// Time left before this invocation is ended from outside.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # use std::time::Duration;
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// if cx.delivery().remaining() < Duration::from_millis(10) {
    ///     return Err(Failure::transient("not enough time left"));
    /// }
    /// # Ok(()) }
    /// # let invocation = testing::Invocation::new(testing::event("ping", &()));
    /// # assert!(invocation.remaining(Duration::ZERO).run(handle).outcome.is_err());
    /// ```
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.host.remaining()
    }
}

impl fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// Why a configuration value could not be had.
///
/// By `?` it becomes a transient [`Failure`]: the event is fine, and waits for a deployment that is right. The value
/// itself is not in the message.
///
/// ```
/// use millrace_sdk::{ConfigError, Failure};
///
/// let err = ConfigError::Missing { key: "currency".into() };
/// assert_eq!(err.to_string(), "configuration `currency` is missing: set it under `config` in the manifest");
/// assert!(matches!(Failure::from(err), Failure::Transient { .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The manifest does not set it.
    Missing {
        /// The key that was asked for.
        key: String,
    },
    /// It cannot be parsed as what the handler expects.
    Malformed {
        /// The key that was asked for.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// The host could not read it.
    Unavailable {
        /// The key that was asked for.
        key: String,
        /// What the host says.
        reason: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { key } => {
                write!(f, "configuration `{key}` is missing: set it under `config` in the manifest")
            }
            Self::Malformed { key, reason } => write!(f, "configuration `{key}` is malformed: {reason}"),
            Self::Unavailable { key, reason } => write!(f, "configuration `{key}` could not be read: {reason}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Failure {
    fn from(err: ConfigError) -> Self {
        Self::transient(err.to_string())
    }
}
