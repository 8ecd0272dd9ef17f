//! Why a handler could not do its work.

use std::fmt::{self, Display};
use std::time::Duration;

/// Why a handler could not do its work. The category decides what happens to the event.
///
/// Messages are for the person who reads the dead letter: what was wrong, with which value. The host keeps the first
/// 1,024 bytes.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// fn check(quantity: i64) -> Result<u32, Failure> {
///     let quantity: u32 = quantity.try_into().invalid("quantity")?;
///     if quantity > 100 {
///         return Err(Failure::rejected("nobody needs more than 100"));
///     }
///     Ok(quantity)
/// }
///
/// assert_eq!(check(-1).unwrap_err().to_string(), "invalid: quantity: out of range integral type conversion attempted");
/// assert_eq!(check(101), Err(Failure::Rejected("nobody needs more than 100".into())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Trying again may help: a dependency is down, a lock is held. Retried as the manifest says, then dead-lettered.
    Transient {
        /// What went wrong.
        message: String,
        /// Not before this much time has passed. The runtime's own delay applies when it is longer.
        retry_after: Option<Duration>,
    },
    /// The event can never be handled: it is malformed. Dead-lettered at once.
    Invalid(String),
    /// The event is well-formed, and a business rule says no. Dead-lettered at once.
    Rejected(String),
}

impl Failure {
    /// Trying again may help.
    ///
    /// ```
    /// use millrace_sdk::Failure;
    ///
    /// assert_eq!(Failure::transient("no answer").to_string(), "transient: no answer");
    /// ```
    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), retry_after: None }
    }

    /// Trying again may help, but not before this much time has passed.
    ///
    /// ```
    /// use millrace_sdk::Failure;
    /// use std::time::Duration;
    ///
    /// let failure = Failure::transient_after("too many requests", Duration::from_secs(30));
    /// assert!(matches!(failure, Failure::Transient { retry_after: Some(delay), .. } if delay.as_secs() == 30));
    /// ```
    pub fn transient_after(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::Transient { message: message.into(), retry_after: Some(retry_after) }
    }

    /// The event can never be handled.
    ///
    /// ```
    /// use millrace_sdk::Failure;
    ///
    /// assert_eq!(Failure::invalid("no order number").to_string(), "invalid: no order number");
    /// ```
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// A business rule says no.
    ///
    /// ```
    /// use millrace_sdk::Failure;
    ///
    /// assert_eq!(Failure::rejected("the shop is closed").to_string(), "rejected: the shop is closed");
    /// ```
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::Rejected(message.into())
    }

    /// What went wrong, without the category.
    ///
    /// ```
    /// assert_eq!(millrace_sdk::Failure::invalid("no order number").message(), "no order number");
    /// ```
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Transient { message, .. } | Self::Invalid(message) | Self::Rejected(message) => message,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let category = match self {
            Self::Transient { .. } => "transient",
            Self::Invalid(_) => "invalid",
            Self::Rejected(_) => "rejected",
        };
        write!(f, "{category}: {}", self.message())
    }
}

impl std::error::Error for Failure {}

/// JSON that does not parse, or has another shape, is an invalid event.
impl From<serde_json::Error> for Failure {
    fn from(err: serde_json::Error) -> Self {
        Self::invalid(format!("not the expected JSON: {err}"))
    }
}

/// Turns a `Result` or an `Option` into a [`Failure`] of a category, with context, so that `?` does the rest.
///
/// The message is the context, a colon and the error with its causes as `{:#}` prints them. The context is anything that
/// can be displayed; use `format_args!` to pay for the text only when it is needed.
///
/// ```
/// use millrace_sdk::prelude::*;
/// use std::collections::BTreeMap;
///
/// fn price(prices: &BTreeMap<&str, &str>, item: &str) -> Result<u32, Failure> {
///     let price = prices.get(item).rejected(format_args!("`{item}` is not for sale"))?;
///     price.parse().invalid("price")
/// }
///
/// let prices = BTreeMap::from([("tea", "3"), ("milk", "cheap")]);
/// assert_eq!(price(&prices, "tea"), Ok(3));
/// assert_eq!(price(&prices, "gold"), Err(Failure::rejected("`gold` is not for sale")));
/// assert_eq!(price(&prices, "milk"), Err(Failure::invalid("price: invalid digit found in string")));
/// ```
pub trait OrFail<T>: Sized {
    /// Fails as one of the categories; `fail` gets the message.
    #[doc(hidden)]
    fn or_fail(self, context: impl Display, fail: impl FnOnce(String) -> Failure) -> Result<T, Failure>;

    /// Otherwise fails as [`Failure::Transient`].
    ///
    /// # Errors
    /// If it holds no value.
    ///
    /// ```
    /// use millrace_sdk::{Failure, OrFail};
    ///
    /// assert_eq!(None::<()>.transient("no answer"), Err(Failure::transient("no answer")));
    /// ```
    fn transient(self, context: impl Display) -> Result<T, Failure> {
        self.or_fail(context, Failure::transient)
    }

    /// Otherwise fails as [`Failure::Transient`], to be tried again after this much time at the earliest.
    ///
    /// # Errors
    /// If it holds no value.
    ///
    /// ```
    /// use millrace_sdk::{Failure, OrFail};
    /// use std::time::Duration;
    ///
    /// let delay = Duration::from_secs(5);
    /// let failed = Err::<(), _>("busy").transient_after("stock", delay);
    /// assert_eq!(failed, Err(Failure::transient_after("stock: busy", delay)));
    /// ```
    fn transient_after(self, context: impl Display, retry_after: Duration) -> Result<T, Failure> {
        self.or_fail(context, |message| Failure::transient_after(message, retry_after))
    }

    /// Otherwise fails as [`Failure::Invalid`].
    ///
    /// # Errors
    /// If it holds no value.
    ///
    /// ```
    /// use millrace_sdk::OrFail;
    ///
    /// let failed = "x".parse::<u8>().invalid("quantity");
    /// assert_eq!(failed.unwrap_err().to_string(), "invalid: quantity: invalid digit found in string");
    /// ```
    fn invalid(self, context: impl Display) -> Result<T, Failure> {
        self.or_fail(context, Failure::invalid)
    }

    /// Otherwise fails as [`Failure::Rejected`].
    ///
    /// # Errors
    /// If it holds no value.
    ///
    /// ```
    /// use millrace_sdk::{Failure, OrFail};
    ///
    /// assert_eq!(None::<()>.rejected("sold out"), Err(Failure::rejected("sold out")));
    /// ```
    fn rejected(self, context: impl Display) -> Result<T, Failure> {
        self.or_fail(context, Failure::rejected)
    }
}

impl<T, E: Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, context: impl Display, fail: impl FnOnce(String) -> Failure) -> Result<T, Failure> {
        self.map_err(|err| fail(format!("{context}: {err:#}")))
    }
}

impl<T> OrFail<T> for Option<T> {
    fn or_fail(self, context: impl Display, fail: impl FnOnce(String) -> Failure) -> Result<T, Failure> {
        self.ok_or_else(|| fail(context.to_string()))
    }
}
