//! The log against a model of vectors: any sequence of publishing, committing, removing and restarting.

use std::collections::BTreeMap;

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::progress::{KeyHash, Progress};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{EmbeddedLog, EmbeddedPartition};
use super::support::*;
use crate::broker::{
    Broker, Catalog, CommitOutcome, Force, LetterAction, LetterStatus, Partition, StateReader, StateWrite,
};

const PARTITIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Records per partition.
    Publish(Vec<usize>),
    /// Settles records of a partition of `orders`, with outputs, letters of the last one, and keys.
    Commit {
        partition: usize,
        settled: u64,
        outputs: usize,
        letter: bool,
        /// Keys of the state that are written, or deleted.
        state: BTreeMap<u8, bool>,
    },
    /// A commit that is refused.
    Refused {
        partition: usize,
    },
    /// Redrives the oldest open letter.
    Redrive,
    /// Settles one redriven record; it completes or fails again.
    Redriven {
        partition: usize,
        completes: bool,
    },
    Subscribe,
    Tick,
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    let partition = 0..PARTITIONS;
    prop_oneof![
        4 => proptest::collection::vec(0..PARTITIONS, 1..20).prop_map(Step::Publish),
        6 => (partition.clone(), 0..8u64, 0..3usize, any::<bool>(), proptest::collection::btree_map(0..6u8, any::<bool>(), 0..4))
            .prop_map(|(partition, settled, outputs, letter, state)| {
                Step::Commit { partition, settled, outputs, letter, state }
            }),
        1 => partition.clone().prop_map(|partition| Step::Refused { partition }),
        1 => Just(Step::Redrive),
        2 => (partition, any::<bool>()).prop_map(|(partition, completes)| Step::Redriven { partition, completes }),
        1 => Just(Step::Subscribe),
        1 => Just(Step::Tick),
        2 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct ModelUnit {
    progress: Progress,
    keys: Vec<u128>,
    state: BTreeMap<ByteString, Bytes>,
}

struct Model {
    dir: TempDir,
    log: Option<EmbeddedLog>,
    owned: Vec<EmbeddedPartition>,
    orders: Vec<Vec<String>>,
    out: Vec<String>,
    redrive: Vec<Vec<u64>>,
    units: Vec<ModelUnit>,
    /// Partition, offset, status.
    letters: Vec<(usize, u64, LetterStatus)>,
    values: u64,
}

impl Model {
    async fn new() -> Self {
        let dir = empty();
        let log = EmbeddedLog::open(options(dir.path())).unwrap();
        log.create_topic(topic("orders"), PARTITIONS as u32).await.unwrap();
        log.create_topic(topic("out"), 1).await.unwrap();
        let mut model = Self {
            dir,
            log: Some(log),
            owned: Vec::new(),
            orders: vec![Vec::new(); PARTITIONS],
            out: Vec::new(),
            redrive: vec![Vec::new(); PARTITIONS],
            units: (0..PARTITIONS).map(|_| ModelUnit::default()).collect(),
            letters: Vec::new(),
            values: 0,
        };
        model.subscribe().await;
        model
    }

    fn log(&self) -> &EmbeddedLog {
        self.log.as_ref().unwrap()
    }

    fn value(&mut self) -> String {
        self.values += 1;
        // Some go to blobs, some are stored in line.
        format!("{}{}", self.values, "x".repeat(if self.values.is_multiple_of(5) { 1_500 } else { 0 }))
    }

    async fn subscribe(&mut self) {
        let assigned = assignments(self.log(), subscription("shop.pay", &["orders"])).await;
        for (assignment, unit) in assigned.iter().zip(&self.units) {
            assert_eq!(assignment.restored.progress, unit.progress);
            let restored = &assignment.restored.keys;
            assert_eq!(restored.len(), unit.keys.len());
            assert!(unit.keys.iter().all(|key| restored.contains(KeyHash(*key), NOW)));
        }
        self.owned = assigned.into_iter().map(|a| a.partition).collect();
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Publish(partitions) => self.publish(partitions).await,
            Step::Commit { partition, settled, outputs, letter, state } => {
                let state = self.write_state(partition, state);
                self.commit(partition, settled, outputs, letter, state).await;
            }
            Step::Refused { partition } => {
                let mut refused = commit(&after(&self.units[partition].progress, 0));
                refused.outputs = vec![outgoing("out", 0, "never"), outgoing("nowhere", 0, "never")];
                refused.state = vec![state_write("key 1", Some("never"))];
                let outcome = self.owned[partition].commit(refused).await.unwrap();
                assert!(matches!(outcome, CommitOutcome::Refused { .. }));
            }
            Step::Redrive => self.redrive().await,
            Step::Redriven { partition, completes } => self.settle_redriven(partition, completes).await,
            Step::Subscribe => self.subscribe().await,
            Step::Tick => self.log().tick(NOW).await.unwrap(),
            Step::Reopen => {
                self.owned.clear();
                self.log = None;
                self.log = Some(EmbeddedLog::open(options(self.dir.path())).unwrap());
                self.subscribe().await;
            }
        }
    }

    async fn publish(&mut self, partitions: Vec<usize>) {
        let mut records = Vec::new();
        for partition in partitions {
            let value = self.value();
            records.push(outgoing("orders", partition as u32, &value));
            self.orders[partition].push(value);
        }
        self.log().publish(records).await.unwrap();
    }

    fn write_state(&mut self, partition: usize, keys: BTreeMap<u8, bool>) -> Vec<StateWrite> {
        let mut writes = Vec::new();
        for (key, written) in keys {
            let key = ByteString::from(format!("key {key}"));
            let value = written.then(|| Bytes::from(self.value()));
            let state = &mut self.units[partition].state;
            match &value {
                Some(value) => drop(state.insert(key.clone(), value.clone())),
                None => drop(state.remove(&key)),
            }
            writes.push(StateWrite { key, value });
        }
        writes
    }

    async fn commit(&mut self, partition: usize, settled: u64, outputs: usize, letter: bool, state: Vec<StateWrite>) {
        let resume = self.units[partition].progress.source.resume;
        let settled = settled.min(self.orders[partition].len() as u64 - resume);
        let mut progress = after(&self.units[partition].progress, settled);
        let mut next = commit(&progress);
        next.state = state;
        if letter && settled > 0 {
            progress.source.totals.completed -= 1;
            progress.source.totals.dead_lettered += 1;
            next.progress = progress.clone();
            let offset = resume + settled - 1;
            next.letters = vec![crate::broker::Letter {
                id: crate::broker::LetterId { topic: topic("orders"), partition: partition as u32, offset },
                record: record(&self.orders[partition][offset as usize]),
            }];
            self.letters.push((partition, offset, LetterStatus::Open));
        }
        for _ in 0..outputs {
            let value = self.value();
            next.outputs.push(outgoing("out", 0, &value));
            self.out.push(value);
        }
        if settled > 0 {
            let key = u128::from(self.values) << 64 | u128::from(progress.commits);
            next.keys = vec![KeyHash(key)];
            self.units[partition].keys.push(key);
        }
        self.units[partition].progress = progress;
        commits(&mut self.owned[partition], next).await;
    }

    async fn redrive(&mut self) {
        let Some(found) = self.letters.iter_mut().find(|(_, _, status)| *status == LetterStatus::Open) else { return };
        found.2 = LetterStatus::Redriven;
        let (partition, offset, _) = *found;
        let id = crate::broker::LetterId { topic: topic("orders"), partition: partition as u32, offset };
        self.redrive[partition].push(offset);
        let log = self.log.as_ref().unwrap();
        log.act_on_letters(&function("shop.pay"), &[id], LetterAction::Redrive, Force::No).await.unwrap();
    }

    async fn settle_redriven(&mut self, partition: usize, completes: bool) {
        let unit = &mut self.units[partition];
        let resume = unit.progress.redrive.resume;
        let Some(offset) = self.redrive[partition].get(resume as usize).copied() else { return };
        let fetched = self.owned[partition].fetch(redrive_wanted(resume)).await.unwrap();
        let value = self.orders[partition][offset as usize].clone();
        assert_eq!(texts(&fetched)[0], (resume, value.clone()));
        let id = crate::broker::LetterId { topic: topic("orders"), partition: partition as u32, offset };
        let mut progress = after_redrive(&unit.progress);
        let mut next = commit(&progress);
        let status = if completes {
            next.resolved = vec![id];
            LetterStatus::Resolved
        } else {
            progress.redrive.totals.completed -= 1;
            progress.redrive.totals.dead_lettered += 1;
            next.progress = progress.clone();
            next.letters = vec![crate::broker::Letter { id, record: record(&value) }];
            LetterStatus::Open
        };
        unit.progress = progress;
        let found = self.letters.iter_mut().find(|(p, o, _)| (*p, *o) == (partition, offset)).unwrap();
        found.2 = status;
        commits(&mut self.owned[partition], next).await;
    }

    async fn check(&mut self) {
        for (partition, expected) in self.orders.iter().enumerate() {
            let found = all(self.log(), "orders", partition as u32).await;
            assert_eq!(found, (0..).zip(expected.iter().cloned()).collect::<Vec<_>>());
        }
        assert_eq!(all(self.log(), "out", 0).await, (0..).zip(self.out.iter().cloned()).collect::<Vec<_>>());
        let pay = function("shop.pay");
        let letters = self.log().letters(&pay, None, usize::MAX).await.unwrap();
        let found: Vec<_> = letters.iter().map(|l| (l.id.partition as usize, l.id.offset, l.status)).collect();
        self.letters.sort_by_key(|(partition, offset, _)| (*partition, *offset));
        assert_eq!(found, self.letters);
        let open = found.iter().filter(|(_, _, status)| *status == LetterStatus::Open).count() as u64;
        assert_eq!(self.log().open_letters(&pay).await.unwrap(), open);
        let units = self.log().units(&pay).await.unwrap();
        for (info, unit) in units.iter().zip(&self.units) {
            assert_eq!(info.progress, unit.progress);
        }
        for (partition, unit) in self.owned.iter().zip(&self.units) {
            assert_eq!(stored(self.log(), partition.unit()).await, unit.state);
            let keys: Vec<_> = unit.state.keys().cloned().chain(["key none".into()]).collect();
            let values: Vec<_> = unit.state.values().cloned().map(Some).chain([None]).collect();
            assert_eq!(partition.state().get(keys.clone()).await.unwrap(), values);
            let after = keys.first().filter(|_| !unit.state.is_empty()).cloned();
            let follows: Vec<_> = unit.state.keys().skip(1).take(2).cloned().collect();
            assert_eq!(partition.state().keys(after, 2).await.unwrap(), follows);
        }
        assert_eq!(self.log().kept_bytes(), size(self.log()).await, "all that is kept is counted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn the_log_behaves_like_its_model(steps in proptest::collection::vec(any_step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in steps {
                model.apply(step).await;
            }
            model.check().await;
            model.apply(Step::Reopen).await;
            model.check().await;
        });
    }
}
