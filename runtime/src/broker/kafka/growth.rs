//! A source topic whose number of partitions was raised: what is kept for each partition grows with it.
//!
//! Keys go to other partitions then, so whatever their handler stored would be left behind; a function with state stops.

use std::time::Instant;

use millrace_core::name::{FunctionName, Topic};
use rdkafka::admin::AdminClient;
use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;

use super::clients::{Clients, Quiet, REQUEST_TIMEOUT, partition_counts};
use super::restore::Past;
use super::{LOOK_AGAIN, topics};
use crate::broker::Error;

/// Who is asked, and by whom.
pub(super) struct Growth<'a> {
    pub(super) clients: &'a Clients,
    pub(super) admin: &'a AdminClient<Quiet>,
    pub(super) observer: &'a BaseConsumer<Quiet>,
    pub(super) runtime: &'a Handle,
}

impl Growth<'_> {
    /// Raises the runtime's own topics to the partitions that a source has. Those that are not there yet are left out. Blocks.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the function has state.
    pub(super) fn follow(&self, function: &FunctionName, source: &Topic) -> Result<(), Error> {
        let names = &self.clients.names;
        let state = names.state(function, source);
        let own = [names.redrive(function, source), names.keys(function, source), state.clone()];
        let invalid = |e: millrace_core::name::InvalidName| Error::Fatal(e.to_string());
        let state = state.map_err(invalid)?;
        let counts = partition_counts(self.observer, None)?;
        let wanted = counts.get(source.as_str()).copied().unwrap_or_default();
        let mut short = Vec::new();
        for topic in own {
            let topic = topic.map_err(invalid)?;
            if let Some(has) = counts.get(topic.as_str()).filter(|has| **has < wanted) {
                short.push((topic, *has));
            }
        }
        if let Some((_, has)) = short.iter().find(|(topic, _)| *topic == state)
            && self.has_state(function, source, *has)?
        {
            return Err(Error::Stopped(format!(
                "`{source}` has {wanted} partitions, and {function} began to keep its state when it had {has}: keys that are in another \
                 partition now would find none of theirs. Let it read a new topic of {wanted} partitions; or raise `{state}` to {wanted} \
                 partitions by hand, and such keys begin without state; then start again"
            )));
        }
        for (topic, has) in &short {
            tracing::warn!(%function, %topic, has, wanted, "The source has more partitions by now, and so will this topic; keys may have moved.");
            self.runtime.block_on(topics::raise(self.admin, topic, wanted))?;
            self.wait_for(topic, wanted)?;
        }
        Ok(())
    }

    fn has_state(&self, function: &FunctionName, source: &Topic, partitions: u32) -> Result<bool, Error> {
        let past = Past { clients: self.clients, function, source, is_wanted: &|_| true, count: &|_| () };
        let stored = past.stored(&(0..partitions).collect::<Vec<_>>())?;
        Ok(stored.values.values().any(|values| !values.is_empty()))
    }

    /// Waits until the partitions are known to whoever asks.
    fn wait_for(&self, topic: &Topic, wanted: u32) -> Result<(), Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        while partition_counts(self.observer, Some(topic.as_str()))?.get(topic.as_str()).is_none_or(|has| *has < wanted)
        {
            if Instant::now() >= deadline {
                return Err(Error::Transient(format!(
                    "the new partitions of `{topic}` are not known to any broker yet"
                )));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(())
    }
}
