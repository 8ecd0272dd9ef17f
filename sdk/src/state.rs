//! What a handler remembers from one event to the next.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// Where the state is when there is no runtime: the test double.
#[cfg_attr(target_family = "wasm", allow(dead_code, reason = "tests run natively"))]
pub(crate) trait Store {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError>;
    fn write(&mut self, key: &str, value: Option<Vec<u8>>) -> Result<(), StateError>;
    fn keys(&self) -> Result<Vec<String>, StateError>;
}

// A handler that never asks for its state must not import the interface, for it is not granted. So the runtime's imports are
// called directly, and not through a table of all that a host can do.
#[cfg(target_family = "wasm")]
use crate::wasm::state as imports;

/// The function's state: values under keys, written together with the settlement of the event, or not at all.
///
/// There is one for each partition of each source topic. A handler sees what the events before its own left there, in the order in which they
/// were handled, and what it wrote itself. The manifest grants it: `grants = { state = true }`.
///
/// ```
/// use millrace_sdk::{prelude::*, testing};
///
/// /// Counts the visits of each visitor.
/// fn handle(event: Event<String>, cx: &mut Context) -> Result<(), Failure> {
///     let visits = cx.state().get_json::<u64>(&event.data)?.unwrap_or(0) + 1;
///     cx.state().set_json(&event.data, &visits)?;
///     log::info!("visit {visits} of {}", event.data);
///     Ok(())
/// }
/// # millrace_sdk::handler!(handle);
///
/// # fn main() {
/// let invocation = testing::Invocation::new(testing::event("visitor.arrived", "Ada")).state("Ada", "2");
/// let completion = invocation.run(handle).expect_completed();
/// assert_eq!(completion.state_json("Ada"), Some(3));
/// # }
/// ```
pub struct State<'a> {
    #[cfg(not(target_family = "wasm"))]
    store: &'a mut dyn Store,
    #[cfg(target_family = "wasm")]
    invocation: std::marker::PhantomData<&'a mut ()>,
}

impl<'a> State<'a> {
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn new(store: &'a mut dyn Store) -> Self {
        Self { store }
    }

    #[cfg(target_family = "wasm")]
    pub(crate) const fn new() -> Self {
        Self { invocation: std::marker::PhantomData }
    }

    /// The value under a key, if there is one.
    ///
    /// # Errors
    /// If state is not granted, or the key is empty or longer than 1 KiB.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let token: Option<Vec<u8>> = cx.state().get("token")?;
    /// # assert_eq!(token.as_deref(), Some(&b"abc"[..]));
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).state("token", "abc").run(handle).expect_completed();
    /// ```
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        #[cfg(target_family = "wasm")]
        return imports::get(key);
        #[cfg(not(target_family = "wasm"))]
        self.store.get(key)
    }

    /// Stores a value under a key, in place of what is there.
    ///
    /// # Errors
    /// If state is not granted, the key is empty or longer than 1 KiB, the value is larger than 256 KiB, or this invocation has written 1,000
    /// keys or 4 MiB.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// cx.state().set("token", b"abc")?;
    /// # Ok(()) }
    /// # let completion = testing::Invocation::new(testing::event("ping", &())).run(handle).expect_completed();
    /// # assert_eq!(completion.state["token"], b"abc");
    /// ```
    pub fn set(&mut self, key: &str, value: impl AsRef<[u8]>) -> Result<(), StateError> {
        #[cfg(target_family = "wasm")]
        return imports::set(key, value.as_ref());
        #[cfg(not(target_family = "wasm"))]
        self.store.write(key, Some(value.as_ref().to_vec()))
    }

    /// Removes the value under a key, if there is one.
    ///
    /// # Errors
    /// As for [`State::set`].
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// cx.state().delete("token")?;
    /// # Ok(()) }
    /// # let invocation = testing::Invocation::new(testing::event("ping", &())).state("token", "abc");
    /// # assert!(invocation.run(handle).expect_completed().state.is_empty());
    /// ```
    pub fn delete(&mut self, key: &str) -> Result<(), StateError> {
        #[cfg(target_family = "wasm")]
        return imports::delete(key);
        #[cfg(not(target_family = "wasm"))]
        self.store.write(key, None)
    }

    /// The value under a key, read as JSON, if there is one.
    ///
    /// # Errors
    /// As for [`State::get`]; and if the value is not JSON of this shape.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// let seen: Vec<String> = cx.state().get_json("seen")?.unwrap_or_default();
    /// # assert_eq!(seen, ["a"]);
    /// # Ok(()) }
    /// # testing::Invocation::new(testing::event("ping", &())).state("seen", r#"["a"]"#).run(handle).expect_completed();
    /// ```
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        let value = self.get(key)?.map(|value| serde_json::from_slice(&value)).transpose();
        value.map_err(|err| StateError::Malformed { key: key.to_owned(), reason: err.to_string() })
    }

    /// Stores a value as JSON under a key.
    ///
    /// # Errors
    /// As for [`State::set`]; and if the value has no JSON form.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// cx.state().set_json("seen", &["a", "b"])?;
    /// # Ok(()) }
    /// # let completion = testing::Invocation::new(testing::event("ping", &())).run(handle).expect_completed();
    /// # assert_eq!(completion.state["seen"], br#"["a","b"]"#);
    /// ```
    pub fn set_json(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), StateError> {
        let value = serde_json::to_vec(value)
            .map_err(|err| StateError::Malformed { key: key.to_owned(), reason: err.to_string() })?;
        self.set(key, value)
    }

    /// All keys, in ascending order. It reads all of them, which takes time: keep a list under a key of its own where there are many.
    ///
    /// # Errors
    /// If state is not granted.
    ///
    /// ```
    /// # use millrace_sdk::{prelude::*, testing};
    /// # fn handle(_: Event, cx: &mut Context) -> Result<(), Failure> {
    /// assert_eq!(cx.state().keys()?, ["a", "b"]);
    /// # Ok(()) }
    /// # let invocation = testing::Invocation::new(testing::event("ping", &())).state("b", "2").state("a", "1");
    /// # invocation.run(handle).expect_completed();
    /// ```
    pub fn keys(&self) -> Result<Vec<String>, StateError> {
        #[cfg(target_family = "wasm")]
        return imports::keys();
        #[cfg(not(target_family = "wasm"))]
        self.store.keys()
    }
}

impl fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// Why the state could not be read or written.
///
/// By `?` it becomes a [`Failure`]: transient where a change of the deployment helps, invalid where a bound was exceeded.
///
/// ```
/// use millrace_sdk::{Failure, StateError};
///
/// let err = StateError::NotGranted;
/// assert_eq!(err.to_string(), "state is not granted: add `state = true` to `grants` in the manifest");
/// assert!(matches!(Failure::from(err), Failure::Transient { .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateError {
    /// The manifest does not grant it.
    NotGranted,
    /// What is stored, or was to be stored, is not what the handler takes it for.
    Malformed {
        /// The key.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
    /// A bound is exceeded; the text says which.
    Refused(String),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted => f.write_str("state is not granted: add `state = true` to `grants` in the manifest"),
            Self::Malformed { key, reason } => write!(f, "state `{key}` is malformed: {reason}"),
            Self::Refused(reason) => write!(f, "state: {reason}"),
        }
    }
}

impl std::error::Error for StateError {}

impl From<StateError> for Failure {
    fn from(err: StateError) -> Self {
        match err {
            StateError::NotGranted | StateError::Malformed { .. } => Self::transient(err.to_string()),
            StateError::Refused(_) => Self::invalid(err.to_string()),
        }
    }
}
