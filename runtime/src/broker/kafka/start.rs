//! Where a function begins in a topic that it has not read yet: decided once, and committed before anybody reads.
//!
//! Several instances can start at the same time, and one can be stopped in the middle and wake up late. So whoever decides
//! does it with a producer of one identity for all: looking comes after fencing the others, and a fenced one commits nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_core::name::{FunctionName, Topic, Unit};
use millrace_core::progress::StreamProgress;
use millrace_core::time::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::clients::{Clients, Quiet, at, bounds, signed};
use super::member::{committed, progress_from};
use super::recent::Recent;
use super::restore::Past;
use super::writer::{Ended, Positions, Writer};
use super::{metadata, overflow};
use crate::broker::{Error, StartAt, Subscription};

/// Tries, since another instance that starts at the same time can be in the way.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Commits the beginning of each topic of which nothing is committed. Blocks.
pub(super) fn decide(
    clients: &Arc<Clients>,
    observer: &BaseConsumer<Quiet>,
    (subscription, sources): (&Subscription, &BTreeMap<Topic, u32>),
    now: Timestamp,
) -> Result<(), Error> {
    let function = &subscription.function;
    let outsider = clients.outsider(&clients.names.group(function))?;
    let mut last = Error::Transient("it was not tried".to_owned());
    for _ in 0..TRIES {
        match decide_once(clients, (observer, &outsider), (subscription, sources), now) {
            Ok(()) => return Ok(()),
            Err(error @ Error::Fatal(_)) => return Err(error),
            Err(error) => last = error,
        }
        std::thread::park_timeout(PAUSE);
    }
    Err(Error::Transient(format!("where {function} begins cannot be decided: {last}")))
}

fn decide_once(
    clients: &Arc<Clients>,
    (observer, outsider): (&BaseConsumer<Quiet>, &BaseConsumer<Quiet>),
    (subscription, sources): (&Subscription, &BTreeMap<Topic, u32>),
    now: Timestamp,
) -> Result<(), Error> {
    if undecided(outsider, subscription, sources)?.is_empty() {
        return Ok(());
    }
    let mut writer = Writer::new(Arc::clone(clients), clients.names.start_id(&subscription.function));
    writer.renew()?;
    // Looked at again, now that nobody else can decide.
    let undecided = undecided(outsider, subscription, sources)?;
    let (mut offsets, mut records) = (TopicPartitionList::new(), Vec::new());
    // Those that Kafka has forgotten are among them, and can have redriven letters already.
    let mut redrives = redrives(clients, &subscription.function, &undecided)?;
    for (topic, partition) in undecided {
        let (earliest, end) = bounds(observer, topic.as_str(), partition)?;
        let offset = match subscription.from {
            StartAt::Earliest => earliest,
            StartAt::Latest => end,
        };
        let unit = Unit { function: subscription.function.clone(), topic: topic.clone(), partition };
        let mut progress = subscription.told.after(&unit, progress_from(offset));
        progress.redrive = redrives.remove(&(topic.clone(), partition)).unwrap_or_default();
        let mut element = offsets.add_partition(topic.as_str(), signed(partition));
        element.set_offset(at(progress.source.resume)).expect("an offset that was read fits");
        let metadata::Encoded { text, whole, .. } = metadata::encode(&unit, &progress, &Recent::default());
        element.set_metadata(text);
        if let Some(whole) = whole {
            let state = clients.names.state(&unit.function, &unit.topic).map_err(|e| Error::Fatal(e.to_string()))?;
            records.push(overflow::placed(state, &unit, now, whole));
        }
    }
    if offsets.count() == 0 {
        return Ok(());
    }
    // One who is not in the group: the fence is the producer's.
    let member = outsider.group_metadata();
    let member = member.ok_or_else(|| Error::Transient("the group is not known yet".to_owned()))?;
    match writer.write(&records.iter().collect::<Vec<_>>(), Some(&Positions { offsets: &offsets, member: &member })) {
        Ended::Committed(_) => Ok(()),
        Ended::Aborted(reason) | Ended::Failed(reason) | Ended::Unknown(reason) | Ended::Refused { reason, .. } => {
            Err(Error::Transient(reason))
        }
    }
}

/// How far the redrive logs of some partitions are.
fn redrives(
    clients: &Clients,
    function: &FunctionName,
    wanted: &[(Topic, u32)],
) -> Result<BTreeMap<(Topic, u32), StreamProgress>, Error> {
    let mut partitions = BTreeMap::<&Topic, Vec<u32>>::new();
    wanted.iter().for_each(|(topic, partition)| partitions.entry(topic).or_default().push(*partition));
    let mut found = BTreeMap::new();
    for (source, wanted) in partitions {
        let past = Past { clients, function, source, is_wanted: &|_| true, count: &|_| () };
        let redrives = past.redrives(&wanted)?;
        found.extend(redrives.into_iter().map(|(partition, progress)| ((source.clone(), partition), progress)));
    }
    Ok(found)
}

/// All partitions of each topic of which no partition has a position.
fn undecided(
    outsider: &BaseConsumer<Quiet>,
    subscription: &Subscription,
    sources: &BTreeMap<Topic, u32>,
) -> Result<Vec<(Topic, u32)>, Error> {
    let mut undecided = Vec::new();
    for (topic, count) in sources {
        let all: Vec<_> = (0..*count).map(|partition| (topic.clone(), partition)).collect();
        let found = committed(outsider, &subscription.function, &all)?;
        if found.iter().all(|one| one.progress.is_none()) {
            undecided.extend(all);
        }
    }
    Ok(undecided)
}
