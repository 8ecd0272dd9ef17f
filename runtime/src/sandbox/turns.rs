//! Whose turn it is to compile.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use millrace_core::digest::Digest;

/// So many components are compiled at the same time. One would use all cores; two, so that an upload that takes long holds up no function
/// that starts.
const AT_ONCE: usize = 2;

/// Bounds how much is compiled at the same time, and has no component compiled twice.
#[derive(Debug, Default)]
pub(super) struct Turns {
    under_way: Mutex<BTreeSet<Digest>>,
    ended: Condvar,
}

/// Compiling one component, as long as it is held.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    digest: Digest,
}

impl Turns {
    /// Blocks until nobody else compiles this component, and few compile others.
    pub(super) fn take(&self, digest: Digest) -> Turn<'_> {
        let must_wait = |under_way: &mut BTreeSet<Digest>| under_way.len() >= AT_ONCE || under_way.contains(&digest);
        let waited = self.ended.wait_while(self.under_way(), must_wait);
        waited.unwrap_or_else(PoisonError::into_inner).insert(digest);
        Turn { turns: self, digest }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.under_way().remove(&self.digest);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn few_compile_at_the_same_time_and_nobody_the_same() {
        let turns = Turns::default();
        let [a, b, c] = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        let first = turns.take(a);
        std::thread::scope(|scope| {
            let (taken, is_taken) = mpsc::channel();
            let wait = |digest| {
                let (turns, taken) = (&turns, taken.clone());
                scope.spawn(move || {
                    let _turn = turns.take(digest);
                    taken.send(digest).unwrap();
                });
            };
            wait(a);
            assert!(is_taken.recv_timeout(Duration::from_millis(50)).is_err(), "it is compiled already");
            wait(b);
            assert_eq!(is_taken.recv(), Ok(b), "another one is held up by nothing");
            let second = turns.take(b);
            wait(c);
            assert!(is_taken.recv_timeout(Duration::from_millis(50)).is_err(), "two are compiled already");
            drop(second);
            assert_eq!(is_taken.recv(), Ok(c));
            drop(first);
            assert_eq!(is_taken.recv(), Ok(a));
        });
    }
}
