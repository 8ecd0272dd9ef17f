//! From a record to what the dispatcher must know of it: decode, filter, idempotency key, lane.

use bytes::Bytes;
use bytestring::ByteString;

use crate::codec::{self, Place};
use crate::dispatcher::{Arrival, Content, Payload};
use crate::event::Event;
use crate::expression::{Filter, KeyExpression};
use crate::identity;
use crate::lanes::LaneId;
use crate::letter::{self, LetterHeaders};
use crate::limits;
use crate::name::Topic;
use crate::outcome::{Category, Failure};
use crate::policy::Ordering;
use crate::progress::{KeyHash, Stream};
use crate::record::Record;

/// How a function takes records in. Made once per revision.
#[derive(Debug)]
pub struct Intake {
    /// In which order events are handled.
    pub ordering: Ordering,
    /// Which events are handled; all, if absent.
    pub filter: Option<Filter>,
    /// What makes two events the same; their identity, if absent.
    pub key: Option<KeyExpression>,
}

/// A record that was taken in.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Where it was first read from; for a redriven record that is not where it was read from now.
    pub origin: Origin,
    /// The record, without the headers of a dead letter.
    pub record: Record,
    /// The event; none if the record could not be decoded.
    pub event: Option<Event>,
    /// Its ordering key.
    pub key: Option<Bytes>,
    /// Its idempotency key; none if it could not be computed.
    pub idempotency_key: Option<ByteString>,
    /// How often it was redriven.
    pub redrives: u32,
    /// It shares the memory of the batch it was read in no longer.
    is_detached: bool,
}

/// The place of a record in a source topic: a dead letter's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

impl Intake {
    /// Takes one record in. `place` is where it was read from now.
    #[must_use]
    pub fn take(&self, stream: Stream, place: Origin, record: Record) -> Content<Box<Delivered>> {
        let mut delivered = Box::new(Delivered {
            origin: place,
            record,
            event: None,
            key: None,
            idempotency_key: None,
            redrives: 0,
            is_detached: false,
        });
        if stream == Stream::Redrive
            && let Err(failure) = delivered.unseal()
        {
            return Content::Refused { payload: delivered, failure };
        }
        match self.understand(&mut delivered) {
            Err(failure) => Content::Refused { payload: delivered, failure },
            Ok(None) => Content::Filtered { payload: (stream == Stream::Redrive).then_some(delivered) },
            Ok(Some(key)) => {
                Content::Event { lane: LaneId::of(self.ordering, delivered.key.as_deref()), key, payload: delivered }
            }
        }
    }

    /// Fills in what the record says; none if the filter says no.
    fn understand(&self, delivered: &mut Delivered) -> Result<Option<KeyHash>, Failure> {
        let Origin { topic, partition, offset } = &delivered.origin;
        let event = codec::decode(&delivered.record, Place { topic, partition: *partition, offset: *offset })?;
        delivered.key = codec::ordering_key(&delivered.record, &event);
        let event = &*delivered.event.insert(event);
        if let Some(filter) = &self.filter
            && !filter.matches(event, delivered.key.as_ref())?
        {
            return Ok(None);
        }
        let key = match &self.key {
            Some(expression) => expression.evaluate(event, delivered.key.as_ref())?,
            None => identity::default_idempotency_key(event),
        };
        let hash = KeyHash::of(&key);
        delivered.idempotency_key = Some(key);
        Ok(Some(hash))
    }
}

/// Of a fetch of which little is kept, what is kept gets memory of its own. Otherwise a few events that wait would keep
/// the memory of many batches alive.
pub fn detach_few(arrivals: &mut [Arrival<Box<Delivered>>], fetched_bytes: usize) {
    /// So few that copying them does not matter.
    const FEW: usize = 16;
    fn event(arrival: &mut Arrival<Box<Delivered>>) -> Option<&mut Box<Delivered>> {
        match &mut arrival.content {
            Content::Event { payload, .. } => Some(payload),
            Content::Filtered { .. } | Content::Refused { .. } => None,
        }
    }
    let kept_bytes: usize = arrivals.iter_mut().filter_map(event).map(|delivered| delivered.record.size_bytes()).sum();
    if arrivals.len() <= FEW || kept_bytes.saturating_mul(4) < fetched_bytes {
        arrivals.iter_mut().filter_map(event).for_each(Payload::detach);
    }
}

impl Payload for Box<Delivered> {
    fn size_bytes(&self) -> usize {
        self.record.size_bytes() + size_of::<Delivered>()
    }

    fn detach(&mut self) {
        if self.is_detached || self.record.size_bytes() >= limits::DETACHED_MAX_BYTES {
            return;
        }
        let record = self.record.detached();
        let Origin { topic, partition, offset } = &self.origin;
        // What was decoded once is decoded the same from the same bytes.
        let Ok(event) = codec::decode(&record, Place { topic, partition: *partition, offset: *offset }) else { return };
        self.key = codec::ordering_key(&record, &event);
        self.idempotency_key = self.idempotency_key.take().map(|key| ByteString::from(key.to_string()));
        self.event = Some(event);
        self.record = record;
        self.is_detached = true;
    }
}

impl Delivered {
    /// Turns a redriven dead letter back into what was first read.
    fn unseal(&mut self) -> Result<(), Failure> {
        let headers = LetterHeaders::read(&self.record)
            .map_err(|malformed| Failure::new(Category::Invalid, format!("it cannot be redriven: {malformed}")))?;
        self.record = letter::original(&self.record);
        self.origin = Origin { topic: headers.topic, partition: headers.partition, offset: headers.offset };
        self.redrives = headers.redrives;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
