//! A function's instance and its life: made, called, and thrown away after anything but success.

use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use millrace_core::event::Event;
use millrace_core::outcome::Outcome;
use millrace_core::time::Timestamp;
use wasmtime::component::Resource;
use wasmtime::{PoolConcurrencyLimitError, Store, UpdateDeadline};

use super::artifact::Component;
use super::bindings;
use super::bindings::millrace::function::types;
use super::emission::{Cause, Emitted};
use super::engine::Engine;
use super::failure::{self, TimeIsUp};
use super::host::{Call, Shared, State};
use super::keyvalue::Unavailable;
use super::limits::HANDLES_MAX;
use super::pool::{self, Place};
use super::state::StateBuffer;
use super::{Completion, Error, Invocation, Sandbox, Usage};

/// Up to this many extension attributes reach a guest without an allocation.
const FEW_EXTENSIONS: usize = 16;

/// Runs one function for one worker, one event at a time.
pub struct Guest {
    engine: Engine,
    component: Component,
    shared: Arc<Shared>,
    reuse: NonZeroU32,
    /// What an instance takes of the pool.
    weight: u32,
    instance: Option<Instance>,
}

/// The place comes last, so that it is dropped last: whoever gets it finds that there is room.
struct Instance {
    store: Store<State>,
    exports: bindings::Function,
    /// Events that it handled, all of them with success.
    handled: u32,
    place: Place,
}

/// How a call ended, before it is put into words.
enum Ended {
    Returned(Result<(), types::Failure>),
    Trapped(wasmtime::Error),
    /// The guest waited in a host call until its time was up.
    TimedOut,
}

impl Guest {
    pub(super) fn new(engine: Engine, component: Component, shared: Arc<Shared>, reuse: NonZeroU32) -> Self {
        let weight = pool::weight(&component);
        Self { engine, component, shared, reuse, weight, instance: None }
    }

    /// The kept instance, if it may handle this attempt. It is taken out, so that it is gone if the call is given up midway.
    fn kept(&mut self, attempt: u32) -> Option<Instance> {
        let reuse = self.reuse.get();
        self.instance.take().filter(|instance| attempt <= 1 && instance.handled < reuse)
    }

    fn store(&self, deadline: Instant) -> Store<State> {
        let mut store = Store::new(&self.engine.0.wasmtime, State::new(Arc::clone(&self.shared), deadline));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(self.shared.limits.host_call_bytes());
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        let engine = self.engine.clone();
        store.epoch_deadline_callback(move |context| {
            engine.0.ticker.touch();
            if Instant::now() < context.data().deadline { Ok(UpdateDeadline::Yield(1)) } else { Err(TimeIsUp.into()) }
        });
        store
    }

    async fn instantiate(&mut self, store: &mut Store<State>, deadline: Instant) -> Result<bindings::Function, Ended> {
        match within(deadline, self.component.0.pre.instantiate_async(store)).await {
            Some(Ok(exports)) => Ok(exports),
            Some(Err(error)) => Err(Ended::Trapped(error)),
            None => Err(Ended::TimedOut),
        }
    }

    /// Puts a failure into words, with what the guest left behind.
    fn explain(&self, ended: Ended, state: &mut State) -> Result<Outcome, Error> {
        let limit = self.shared.limits.time;
        let failure = match ended {
            Ended::Returned(Ok(())) => return Ok(Outcome::Completed),
            Ended::Returned(Err(failure)) => failure::returned(failure),
            Ended::TimedOut => failure::timed_out(limit, None),
            Ended::Trapped(error) if error.is::<TimeIsUp>() => failure::timed_out(limit, Some(&error)),
            Ended::Trapped(error) if error.is::<Unavailable>() => return Err(Error(format!("{}", error.root_cause()))),
            Ended::Trapped(error) => match error.downcast_ref::<PoolConcurrencyLimitError>() {
                Some(full) => return Err(Error(format!("no instance is free: {full}"))),
                None => failure::trapped(&error, state.limiter.take_refused(), &state.logs.stderr_tail()),
            },
        };
        Ok(Outcome::Failed(failure))
    }
}

impl Sandbox for Guest {
    async fn invoke(&mut self, invocation: Invocation<'_>) -> Result<Completion, Error> {
        let Invocation { event, delivery, trace, state } = invocation;
        // The place is declared before the store, so that it is dropped after it, also if the call is given up midway.
        let (place, kept) = match self.kept(delivery.attempt) {
            Some(Instance { store, exports, handled, place }) => (place, Some((store, exports, handled))),
            None => (self.engine.0.pool.place(self.weight).await?, None),
        };
        let started = Instant::now();
        let deadline = started + self.shared.limits.time;
        self.engine.0.ticker.touch();
        let (mut store, made, handled) = match kept {
            Some((mut store, exports, handled)) => {
                store.data_mut().deadline = deadline;
                store.set_epoch_deadline(1);
                (store, Ok(exports), handled)
            }
            None => {
                let mut store = self.store(deadline);
                let made = self.instantiate(&mut store, deadline).await;
                (store, made, 0)
            }
        };
        let (ended, exports) = match made {
            Ok(exports) => {
                store.data_mut().begin(Call {
                    cause: Cause::new(event, delivery, trace),
                    emitted: Emitted::default(),
                    state: state.map(StateBuffer::new),
                });
                (handle(&exports, &mut store, event).await, Some(exports))
            }
            Err(ended) => (ended, None),
        };
        let state = store.data_mut();
        let call = state.call.take();
        let outcome = self.explain(ended, state)?;
        let logs = state.logs.take();
        let usage = Usage { elapsed: started.elapsed(), memory_bytes: state.limiter.memory_bytes() as u64 };
        let completed = outcome == Outcome::Completed;
        let (emitted, state) = call.filter(|_| completed).map(Call::into_effects).unwrap_or_default();
        let keeps = completed && !self.engine.0.pool.wants_back(&place, started + usage.elapsed);
        self.instance = match exports {
            Some(exports) if keeps => Some(Instance { store, exports, handled: handled + 1, place }),
            _ => None,
        };
        Ok(Completion { outcome, emitted, state, logs, usage })
    }

    fn idle(&mut self) {
        if self.engine.0.pool.is_short() {
            self.instance = None;
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handled = self.instance.as_ref().map(|instance| instance.handled);
        f.debug_struct("Guest").field("component", &self.component).field("handled", &handled).finish_non_exhaustive()
    }
}

/// Calls the handler.
async fn handle(exports: &bindings::Function, store: &mut Store<State>, event: &Event) -> Ended {
    let mut few = [("", ""); FEW_EXTENSIONS];
    let many: Vec<(&str, &str)>;
    let extensions = event.extensions.iter().map(|(name, value)| (&**name, &**value));
    let extensions = if let Some(few) = few.get_mut(..extensions.len()) {
        few.iter_mut().zip(extensions).for_each(|(to, from)| *to = from);
        &*few
    } else {
        many = extensions.collect();
        &many
    };
    let event = types::Event {
        id: &event.id,
        source: &event.source,
        type_: &event.ty,
        subject: event.subject.as_deref(),
        time: event.time.map(Timestamp::as_nanos),
        datacontenttype: event.datacontenttype.as_deref(),
        dataschema: event.dataschema.as_deref(),
        extensions,
        data: event.data.as_deref(),
    };
    let deadline = store.data().deadline;
    let delivery = Resource::new_borrow(0);
    match within(deadline, exports.millrace_function_handler().call_handle(store, event, delivery)).await {
        Some(Ok(returned)) => Ended::Returned(returned),
        Some(Err(error)) => Ended::Trapped(error),
        None => Ended::TimedOut,
    }
}

/// The output of a future, or nothing once the deadline has passed. Guests that compute are interrupted by the epoch; this
/// catches those that wait in a host call. A timer is made only for a future that does not end at once.
async fn within<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    if let Poll::Ready(output) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        return Some(output);
    }
    tokio::time::timeout_at(deadline.into(), future).await.ok()
}
