//! Whether a simulated process runs.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

/// A process that can be halted, resumed and killed. Its tasks cannot be stopped, but nothing that they do gets out, and
/// nothing gets in, unless it [runs](Life::pass).
#[derive(Clone, Debug, Default)]
pub(super) struct Life(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: Mutex<Phase>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    Halted,
    Dead,
}

impl Life {
    /// Waits until the process runs: for ever, if it is dead.
    pub(super) async fn pass(&self) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.is_running() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn halt(&self) {
        self.change(Phase::Running, Phase::Halted);
    }

    pub(super) fn resume(&self) {
        self.change(Phase::Halted, Phase::Running);
        self.0.changed.notify_waiters();
    }

    pub(super) fn kill(&self) {
        *self.phase() = Phase::Dead;
    }

    pub(super) fn is_running(&self) -> bool {
        *self.phase() == Phase::Running
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.phase() == Phase::Dead
    }

    fn change(&self, from: Phase, to: Phase) {
        let mut phase = self.phase();
        if *phase == from {
            *phase = to;
        }
    }

    fn phase(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.0.phase.lock().expect("nothing panics while it holds the phase")
    }
}
