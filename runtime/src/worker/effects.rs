//! What settlements did, gathered for the next commit.

use std::sync::Arc;

use millrace_core::dispatcher::{DeadLetter, Sealed, Settled, Settlement};
use millrace_core::intake::{Delivered, Origin};
use millrace_core::letter::LetterHeaders;
use millrace_core::name::{FunctionName, Unit};
use millrace_core::progress::{Position, Stream};
use millrace_core::record::Record;
use millrace_core::state::{Overlay, Writes};
use millrace_core::time::Timestamp;

use crate::broker::{Commit, Letter, LetterId, Outgoing, Placing};
use crate::sandbox::Emission;

/// Effects of settlements since the last seal.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// What the attempt that just ended emitted and wrote: kept only if its event completes.
    staged: Option<(Position, Vec<Emission>, Writes)>,
    outputs: Vec<Outgoing>,
    letters: Vec<Letter>,
    /// Of outputs and letters.
    record_bytes: usize,
    resolved: Vec<LetterId>,
    /// State that is written and not durable. A guest that runs shares it, and so sees no change of it.
    overlay: Arc<Overlay>,
}

impl Effects {
    /// Holds what an attempt emitted and wrote until its event is settled.
    pub(super) fn stage(&mut self, position: Position, emitted: Vec<Emission>, state: Writes) {
        self.staged = Some((position, emitted, state));
    }

    /// Takes one settlement in.
    pub(super) fn settle(&mut self, now: Timestamp, unit: &Unit, revision: u64, settled: Settled<Box<Delivered>>) {
        let Settled { position, payload, settlement } = settled;
        match settlement {
            Settlement::DeadLettered(dead) => {
                let delivered = payload.expect("a dead letter keeps its bytes");
                let letter = letter(&unit.function, revision, &delivered, &dead);
                self.record_bytes += letter.record.size_bytes();
                self.letters.push(letter);
                return;
            }
            Settlement::Completed => {
                let (at, emitted, state) = self.staged.take().expect("an event completes right after its attempt");
                assert_eq!(at, position, "what is staged belongs to the event that completes");
                for emission in emitted {
                    self.record_bytes += emission.record.size_bytes();
                    self.outputs.push(outgoing(now, emission));
                }
                if !state.is_empty() {
                    Arc::make_mut(&mut self.overlay).stage(state);
                }
            }
            Settlement::Filtered | Settlement::Duplicate => {}
        }
        if position.stream == Stream::Redrive
            && let Some(delivered) = payload
        {
            self.resolved.push(letter_id(&delivered.origin));
        }
    }

    /// All that a commit says, and starts gathering anew.
    pub(super) fn commit(&mut self, now: Timestamp, sealed: Sealed) -> Commit {
        self.record_bytes = 0;
        Commit {
            at: now,
            progress: sealed.progress,
            keys: sealed.keys,
            outputs: std::mem::take(&mut self.outputs),
            letters: std::mem::take(&mut self.letters),
            resolved: std::mem::take(&mut self.resolved),
            state: if self.overlay.is_empty() { Vec::new() } else { Arc::make_mut(&mut self.overlay).seal() },
        }
    }

    /// The commit under way is durable.
    pub(super) fn committed(&mut self) {
        if !self.overlay.is_empty() {
            Arc::make_mut(&mut self.overlay).committed();
        }
    }

    /// State that is written and not durable.
    pub(super) fn overlay(&self) -> Arc<Overlay> {
        Arc::clone(&self.overlay)
    }

    /// Bytes of records and of state that the next commit writes.
    pub(super) fn size_bytes(&self) -> usize {
        self.record_bytes + self.overlay.staged_bytes()
    }
}

fn outgoing(now: Timestamp, emission: Emission) -> Outgoing {
    let Emission { topic, hash, record } = emission;
    Outgoing { topic, placing: Placing::Hash(hash), record: Record { timestamp: now, ..record } }
}

fn letter_id(origin: &Origin) -> LetterId {
    LetterId { topic: origin.topic.clone(), partition: origin.partition, offset: origin.offset }
}

fn letter(function: &FunctionName, revision: u64, delivered: &Delivered, dead: &DeadLetter) -> Letter {
    let headers = LetterHeaders {
        function: function.clone(),
        revision,
        category: dead.failure.category,
        reason: dead.failure.reason.clone(),
        attempts: dead.attempts,
        first_failed_at: dead.first_failed_at,
        last_failed_at: dead.last_failed_at,
        topic: delivered.origin.topic.clone(),
        partition: delivered.origin.partition,
        offset: delivered.origin.offset,
        idempotency_key: delivered.idempotency_key.clone(),
        redrives: delivered.redrives,
    };
    Letter { id: letter_id(&delivered.origin), record: headers.seal(&delivered.record) }
}
