//! The clock that interrupts guests: a thread that moves the engine's epoch on while guests run, and sleeps otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use super::Error;

/// Ticks without any guest after which the thread goes to sleep.
const IDLE_TICKS: u32 = 256;

/// Stops the thread when dropped.
#[derive(Debug)]
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// A guest has run since this was last looked at.
    busy: AtomicBool,
    stopped: AtomicBool,
}

impl Ticker {
    /// Starts the thread, asleep.
    pub(super) fn start(engine: &wasmtime::Engine, tick: Duration) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let (engine, theirs) = (engine.clone(), Arc::clone(&shared));
        let handle = thread::Builder::new()
            .name("millrace-epoch".to_owned())
            .spawn(move || theirs.run(&engine, tick))
            .map_err(|e| Error(format!("no thread for interrupting guests: {e}")))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Says that a guest runs. Must be called at least at the beginning of each invocation and at each epoch it sees.
    pub(super) fn touch(&self) {
        // Reading first keeps the flag in every core's cache: it is written once per idle check, not once per event.
        if !self.shared.busy.load(Ordering::SeqCst) && !self.shared.busy.swap(true, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Shared {
    fn run(&self, engine: &wasmtime::Engine, tick: Duration) {
        while !self.stopped.load(Ordering::SeqCst) {
            // Whoever sets the flag after it was cleared here also unparks, so no beginning is slept through.
            if !self.busy.swap(false, Ordering::SeqCst) {
                thread::park();
                continue;
            }
            for _ in 0..IDLE_TICKS {
                thread::park_timeout(tick);
                engine.increment_epoch();
                if self.stopped.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    }
}
