//! Partitions that the group assigned are taken up once it is known where they go on.
//!
//! What is committed must be stable, and the transaction of an instance that was killed hides it for as long as the broker waits
//! for that one. So it is not the function's thread that waits: it polls, and commits what other units settle.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::{Progress, Stream};
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{Notify, watch};

use super::remember::Restoring;
use super::{Committed, Member, Owned, PAUSE, Request, committed, progress_from};
use crate::broker::kafka::KafkaPartition;
use crate::broker::kafka::clients::{MemberContext, Quiet, add, bounds, remove};
use crate::broker::kafka::metadata;
use crate::broker::kafka::partition::{Expected, Inbox, Log};
use crate::broker::kafka::recent::Recent;
use crate::broker::kafka::values::KafkaState;
use crate::broker::{Error, Told};

/// What was found out of partitions that were assigned together.
pub(in crate::broker::kafka) struct Located {
    /// Which of the assignments to this process it was.
    epoch: u64,
    wanted: Vec<(Topic, u32)>,
    found: Result<Vec<Place>, Error>,
}

/// Where a partition goes on.
struct Place {
    unit: (Topic, u32),
    progress: Progress,
    /// Whether it was committed by us, with all that belongs to it.
    is_whole: bool,
    /// Whether the rest of its progress is to be looked for.
    is_short: bool,
    /// Idempotency keys that are with the position alone.
    recent: Recent,
}

impl Member {
    /// Has it found out where partitions go on. The group need not wait for that, so librdkafka is answered at once.
    pub(super) fn assigned(&mut self, units: Vec<(String, u32)>) -> Result<(), Error> {
        let wanted = named(units)?;
        add(&self.consumer, &[])?;
        self.epoch += 1;
        self.awaited.extend(wanted.iter().map(|unit| (unit.clone(), self.epoch)));
        self.figures().assigned += wanted.len() as u64;
        tracing::info!(function = %self.function(), partitions = wanted.len(), "Partitions were assigned.");
        self.locate(self.epoch, wanted);
        Ok(())
    }

    pub(super) fn revoked(&mut self, units: Vec<(String, u32)>) -> Result<(), Error> {
        let mut lost = named(units)?;
        tracing::info!(function = %self.function(), partitions = lost.len(), "Partitions were revoked.");
        let awaited = lost.iter().filter_map(|unit| self.awaited.remove(unit)).count();
        self.figures().revoked += awaited as u64;
        // librdkafka gives none back if there is one among them that was not taken up.
        lost.retain(|unit| self.owned.contains_key(unit));
        lost.iter().for_each(|unit| self.lose(unit));
        remove(&self.consumer, &lost)
    }

    /// Asks where partitions go on, while this thread goes on.
    fn locate(&self, epoch: u64, wanted: Vec<(Topic, u32)>) {
        if wanted.is_empty() {
            return;
        }
        let (consumer, observer) = (Arc::clone(&self.consumer), Arc::clone(&self.joining.observer));
        let (function, requests) = (self.function().clone(), self.sender.clone());
        let told = self.joining.subscription.told.clone();
        self.joining.runtime.spawn_blocking(move || {
            let found = places(&consumer, &observer, (&function, &told), &wanted);
            drop(consumer);
            if found.is_err() {
                std::thread::park_timeout(PAUSE);
            }
            // A thread that has ended takes nothing up.
            drop(requests.send(Request::TakeUp(Located { epoch, wanted, found })));
        });
    }

    /// Takes up those that were not lost meanwhile, or asks for them again.
    pub(super) fn located(&mut self, located: Located) -> Result<(), Error> {
        let Located { epoch, mut wanted, found } = located;
        let is_awaited = |unit: &(Topic, u32)| self.awaited.get(unit) == Some(&epoch);
        match found {
            Ok(mut places) => {
                places.retain(|place| is_awaited(&place.unit));
                self.take_up(epoch, places)
            }
            Err(Error::Transient(reason)) => {
                wanted.retain(is_awaited);
                if !wanted.is_empty() {
                    let (function, partitions) = (self.function(), wanted.len());
                    tracing::info!(%function, partitions, reason, "Positions are not known yet; they are asked for again.");
                }
                self.locate(epoch, wanted);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take_up(&mut self, epoch: u64, places: Vec<Place>) -> Result<(), Error> {
        let mut source = Vec::with_capacity(places.len());
        let mut restoring = BTreeMap::<Topic, Vec<Restoring>>::new();
        for Place { unit: (topic, partition), progress, is_whole, is_short, recent } in places {
            self.awaited.remove(&(topic.clone(), partition));
            // Its queues must not belong to two.
            self.lose(&(topic.clone(), partition));
            let unit = Unit { function: self.function().clone(), topic: topic.clone(), partition };
            let inbox = Arc::new(self.inbox(&unit, &progress)?);
            source.push((topic.clone(), partition, progress.source.resume));
            let (revoked, state) = (watch::Sender::new(false), KafkaState::default());
            let mine = KafkaPartition {
                unit,
                epoch,
                source_id: None,
                inbox: Arc::clone(&inbox),
                requests: self.sender.clone(),
                observer: Arc::clone(&self.joining.observer),
                expected: [progress.source.resume, progress.redrive.resume].map(Expected::Next),
                last: Stream::Source,
                state: state.clone(),
            };
            let position = (progress.source.resume, metadata::encode(&mine.unit, &progress, &recent).text);
            let (commits, suspect) = (progress.commits, None);
            let subscribed = revoked.subscribe();
            let owned = Owned { epoch, revoked, inbox, commits, recent: recent.clone(), position, state, suspect };
            let one = Restoring { partition: mine, progress, is_whole, is_short, recent, revoked: subscribed };
            restoring.entry(topic.clone()).or_default().push(one);
            self.owned.insert((topic, partition), owned);
        }
        add(&self.consumer, &source)?;
        for (topic, units) in restoring {
            self.restore(topic, units);
        }
        Ok(())
    }

    /// Where the records of both logs of a unit arrive. Those of the redrive log begin to.
    fn inbox(&self, unit: &Unit, progress: &Progress) -> Result<Inbox, Error> {
        let redrives = self.joining.clients.names.redrive(&unit.function, &unit.topic);
        let redrives = redrives.map_err(|e| Error::Fatal(e.to_string()))?;
        let arrived = Arc::new(Notify::new());
        let source = Log::new(&self.consumer, (unit.topic.clone(), unit.partition), &arrived)?;
        let redrive = self.joining.redrives.open((redrives, unit.partition), progress.redrive.resume, &arrived)?;
        Ok(Inbox::new([source, redrive], arrived))
    }
}

/// Partitions as librdkafka names them.
fn named(units: Vec<(String, u32)>) -> Result<Vec<(Topic, u32)>, Error> {
    let named = |(topic, partition)| Topic::new(topic).map(|topic| (topic, partition));
    units.into_iter().map(named).collect::<Result<_, _>>().map_err(|e| Error::Fatal(e.to_string()))
}

/// Where partitions go on, once that is stable. Blocks.
fn places(
    consumer: &BaseConsumer<MemberContext>,
    observer: &BaseConsumer<Quiet>,
    (function, told): (&FunctionName, &Told),
    wanted: &[(Topic, u32)],
) -> Result<Vec<Place>, Error> {
    let mut places = Vec::with_capacity(wanted.len());
    for Committed { topic, partition, progress, is_whole, is_short, recent } in committed(consumer, function, wanted)? {
        let progress = match progress {
            Some(progress) => progress,
            // A partition without a position was added after its function began to read the topic.
            None => progress_from(bounds(observer, topic.as_str(), partition)?.0),
        };
        let unit = Unit { function: function.clone(), topic: topic.clone(), partition };
        let progress = if is_whole { progress } else { told.after(&unit, progress) };
        places.push(Place { unit: (topic, partition), progress, is_whole, is_short, recent });
    }
    Ok(places)
}
