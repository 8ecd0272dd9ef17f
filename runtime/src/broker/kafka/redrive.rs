//! The redrive topics of all functions of a process, read by one client.
//!
//! A client has threads and buffers of its own, whatever it reads, and in these topics there is almost never anything. The
//! client is in nobody's group: a partition is read for the unit that owns the source's partition, from where that one's
//! committed progress says, and for as long as the unit is owned. Each has a queue to itself, and librdkafka stops fetching
//! for a queue that is full, so that a unit which takes nothing holds up no other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use millrace_core::name::Topic;
use tokio::sync::Notify;

use super::clients::{Clients, MemberContext, Shared, add, lock, remove, serve};
use super::partition::Log;
use crate::broker::Error;

/// The client, and what it reads.
pub(super) struct Redrives {
    consumer: Shared<MemberContext>,
    taken: Mutex<BTreeSet<(Topic, u32)>>,
}

impl Redrives {
    pub(super) fn new(clients: &Clients) -> Result<Arc<Self>, Error> {
        // As many as there are, of all functions.
        let consumer = clients.member(&clients.names.readers(), usize::MAX)?;
        Ok(Arc::new(Self { consumer: Arc::new(consumer), taken: Mutex::default() }))
    }

    /// Reads a partition from an offset on, until what this answers with is dropped. Blocks for as long as librdkafka's own
    /// thread takes.
    ///
    /// # Errors
    /// If an earlier member of the same function has not let go of it yet: the queue would belong to both.
    pub(super) fn open(
        self: &Arc<Self>,
        (topic, partition): (Topic, u32),
        at: u64,
        arrived: &Arc<Notify>,
    ) -> Result<Log, Error> {
        let mut taken = lock(&self.taken);
        let place = (topic, partition);
        if taken.contains(&place) {
            return Err(Error::Transient(format!("{}/{partition} is still being read by an earlier member", place.0)));
        }
        let mut log = Log::new(&self.consumer, place.clone(), arrived)?;
        add(&self.consumer, &[(place.0.clone(), partition, at)])?;
        taken.insert(place.clone());
        log.loan = Some(Loan { redrives: Arc::clone(self), place });
        Ok(log)
    }

    /// Serves what librdkafka tells of the client itself. Every member does so while it serves its own.
    ///
    /// # Errors
    /// If the client has ended for good: with it all functions, so that the process must stop.
    pub(super) fn poll(&self) -> Result<(), Error> {
        loop {
            match serve(&self.consumer) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(Error::Fatal(format!("redrives cannot be read any more: {error}"))),
            }
        }
    }
}

/// A partition that is read; given back when dropped.
pub(super) struct Loan {
    redrives: Arc<Redrives>,
    place: (Topic, u32),
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut taken = lock(&self.redrives.taken);
        if let Err(error) = remove(&self.redrives.consumer, std::slice::from_ref(&self.place)) {
            tracing::debug!(topic = %self.place.0, partition = self.place.1, %error, "A redrive log cannot be given back.");
        }
        taken.remove(&self.place);
    }
}
