//! Write [Millrace](https://github.com/millrace/millrace) handlers in Rust.
//!
//! A handler is one function and one macro. It is called for each event, and once more where an attempt fails or is cut
//! short by a crash. Everything that it emits becomes visible together with the settlement of its event, or not at all.
//!
//! ```
//! use millrace_sdk::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct OrderPlaced {
//!     order: String,
//!     quantity: u32,
//! }
//!
//! #[derive(Serialize)]
//! struct StockReserved<'a> {
//!     order: &'a str,
//!     quantity: u32,
//! }
//!
//! fn handle(event: Event<OrderPlaced>, cx: &mut Context) -> Result<(), Failure> {
//!     let OrderPlaced { order, quantity } = event.data;
//!     let limit: u32 = cx.config_or("max-quantity", 20)?;
//!     if quantity > limit {
//!         return Err(Failure::rejected(format!("{quantity} pieces are more than the {limit} we sell at once")));
//!     }
//!     log::info!("reserving {quantity} pieces for {order}");
//!     let reserved = StockReserved { order: &order, quantity };
//!     cx.emit("stock", Emission::json("stock.reserved", &reserved)?.subject(&order))?;
//!     Ok(())
//! }
//!
//! millrace_sdk::handler!(handle);
//!
//! // In a handler's own crate this is a unit test, which runs natively, without a WebAssembly runtime.
//! # fn main() {
//! use millrace_sdk::testing::{self, Invocation};
//! let event = testing::event("order.placed", &json!({"order": "o-1", "quantity": 2}));
//! let completion = Invocation::new(event).run(handle);
//! assert_eq!(completion.outcome, Ok(()));
//! assert_eq!(completion.emitted[0].event.subject.as_deref(), Some("o-1"));
//! # }
//! ```
//!
//! Build it as a `cdylib` for `wasm32-wasip2`: the result is a component that Millrace runs.
//!
//! # Failing
//!
//! A handler answers with a [`Failure`] of one of three categories, which decides what happens next: *transient* is
//! tried again, *invalid* and *rejected* go to the dead letters at once. [`OrFail`] turns any `Result` or `Option` into
//! one, so that `?` does the rest. A panic is printed to standard error, which the host shows, and ends the attempt; it
//! is tried again in a fresh instance, and then dead-lettered.
//!
//! # State
//!
//! [`Context::state`] is what a handler remembers from one event to the next. It is written together with everything else that the event led
//! to, so a value is never ahead of the events that it was made of, nor behind them.
//!
//! # Logging
//!
//! Use the macros of the `log` crate, re-exported as [`log`]. Those of the `tracing` crate arrive too, if it is a
//! dependency with its feature `log` and the handler sets no subscriber. The configuration key `log-level` (`off`,
//! `error`, `warn`, `info`, `debug` or `trace`; `info` when it is absent) decides what leaves the handler.
//!
//! ```
//! use millrace_sdk::prelude::*;
//! use millrace_sdk::testing::{self, Invocation};
//!
//! fn handle(event: Event<u32>, _: &mut Context) -> Result<(), Failure> {
//!     log::warn!("{} pieces are left", event.data);
//!     tracing::info!(pieces = event.data, "ordering more");
//!     Ok(())
//! }
//!
//! let completion = Invocation::new(testing::event("stock.low", &3)).run(handle);
//! let lines = completion.logs.iter().map(|line| (line.level, line.message.as_str()));
//! let expected = [(log::Level::Warn, "3 pieces are left"), (log::Level::Info, "ordering more pieces=3")];
//! assert!(lines.eq(expected), "{:?}", completion.logs);
//! ```

mod context;
mod data;
mod emission;
mod event;
mod failure;
mod state;
pub mod testing;
mod time;

#[cfg(target_family = "wasm")]
mod wasm;

pub use context::{ConfigError, Context, Delivery};
pub use data::Data;
pub use emission::{Emission, EmitError};
pub use event::{Event, FromEvent};
pub use failure::{Failure, OrFail};
pub use log;
pub use serde_json;
pub use state::{State, StateError};
pub use time::{InvalidTimestamp, Timestamp};

/// What nearly every handler needs.
///
/// Its `Deserialize` and `Serialize` are serde's. Their derive macros need `serde` among the dependencies of the crate
/// that uses them.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// fn handle(event: Event, _cx: &mut Context) -> Result<(), Failure> {
///     log::info!("got {}", event.id);
///     Ok(())
/// }
/// # millrace_sdk::handler!(handle);
/// # fn main() {}
/// ```
pub mod prelude {
    pub use crate::{Context, Emission, Event, Failure, OrFail, Timestamp, log};
    pub use serde::{Deserialize, Serialize};
    pub use serde_json::json;
}

/// Makes a function the handler of this component. Use it once, in the root of a `cdylib` crate.
///
/// The function takes an [`Event`], or whatever else is [`FromEvent`], and a [`Context`]. Native builds only check that.
///
/// ```
/// use millrace_sdk::prelude::*;
///
/// fn handle(event: Event<String>, cx: &mut Context) -> Result<(), Failure> {
///     cx.emit("greetings", Emission::json("greeting", &format!("Hello, {}!", event.data))?)?;
///     Ok(())
/// }
///
/// millrace_sdk::handler!(handle);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! handler {
    ($handle:path) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Component;

            impl $crate::__private::Guest for Component {
                fn handle(
                    event: $crate::__private::Event,
                    delivery: &$crate::__private::Delivery,
                ) -> ::core::result::Result<(), $crate::__private::Failure> {
                    $crate::__private::run($handle, event, delivery)
                }
            }

    $crate::__private::export!(Component with_types_in $crate::__private::bindings);
        };

        #[cfg(not(target_family = "wasm"))]
        const _: fn() = || $crate::__private::check($handle);
    };
}

/// What [`handler!`] expands to. Not part of the interface.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_family = "wasm")]
    pub use crate::wasm::{Delivery, Event, Failure, Guest, bindings, export, run};

    /// Compiles exactly if the argument is a handler.
    #[cfg(not(target_family = "wasm"))]
    pub fn check<E: crate::FromEvent>(_: impl Fn(E, &mut crate::Context<'_>) -> Result<(), crate::Failure>) {}
}
