//! What a topic of one partition says as a whole, kept in memory: each look reads on from where the last one ended.

use std::ops::Range;
use std::time::Instant;

use millrace_core::name::Topic;
use millrace_core::record::Record;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::clients::{self, REQUEST_TIMEOUT, unreachable_broker};
use super::native::TopicId;
use super::reading::read_between;
use super::{KafkaLog, LOOK_AGAIN, native};
use crate::broker::Error;

/// What records add up to.
pub(super) trait Fold: Default {
    /// Takes in the next record of the topic.
    fn take(&mut self, offset: u64, record: &Record);

    /// Its topic was made anew: nothing of what was taken in holds.
    fn begin_anew(&mut self);

    /// What was before this offset and was not taken in is gone.
    fn miss(&mut self, earliest: u64);
}

/// A topic, and what its records add up to as far as they were read.
pub(super) struct Kept<F> {
    topic: Topic,
    /// What the topic was called by when it was read last; none if it was not there yet.
    id: Option<TopicId>,
    next: u64,
    pub(super) fold: F,
}

impl<F: Fold> Kept<F> {
    /// Nothing is read yet.
    pub(super) fn new(topic: Topic) -> Self {
        Self { topic, id: None, next: 0, fold: F::default() }
    }

    /// Reads on to the topic's end. A topic that was never there has nothing; of one that is there no more, nobody can say
    /// whether that is meant. Blocks.
    pub(super) fn catch_up(&mut self, log: &KafkaLog) -> Result<(), Error> {
        let topic = self.topic.as_str();
        let id = match native::topic_id(log.0.observer.client(), topic, REQUEST_TIMEOUT) {
            Ok(id) => id,
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) if self.id.is_none() => {
                return Ok(());
            }
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                let what_follows = "whoever writes to it next makes it anew, with nothing in it";
                return Err(Error::Transient(format!(
                    "topic `{topic}` was there, and is not any more: {what_follows}"
                )));
            }
            Err(code) => return Err(unreachable_broker(&format!("tell of topic `{topic}`"), &code)),
        };
        let (earliest, end) = clients::bounds(&log.0.observer, topic, 0)?;
        self.follow(id, earliest..end);
        let Self { topic, next, fold, .. } = self;
        let read = read_between(log, topic.as_str(), *next..end, |offset, record| {
            // If what follows cannot be read, this one is not taken in again.
            *next = offset + 1;
            fold.take(offset, record);
        })?;
        *next = read;
        Ok(())
    }

    /// Reads on until a record that was written has been read. Blocks.
    pub(super) fn catch_up_beyond(&mut self, log: &KafkaLog, offset: u64) -> Result<(), Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            self.catch_up(log)?;
            if self.next > offset {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let topic = &self.topic;
                return Err(Error::Transient(format!("what was written to topic `{topic}` cannot be read yet")));
            }
            // Not every broker knows at once of a topic that has just been made.
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// Goes on with a topic that is called so and reaches so far, or begins anew with it.
    fn follow(&mut self, id: TopicId, offsets: Range<u64>) {
        if self.id.is_some() && (self.id != Some(id) || offsets.end < self.next) {
            tracing::warn!(topic = %self.topic, "A topic of the runtime was made anew, and is read from its beginning.");
            self.fold.begin_anew();
            self.next = 0;
        }
        if self.next < offsets.start {
            self.fold.miss(offsets.start);
            self.next = offsets.start;
        }
        self.id = Some(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Anew(u32, Vec<u64>);

    impl Fold for Anew {
        fn take(&mut self, _: u64, _: &Record) {}

        fn begin_anew(&mut self) {
            self.0 += 1;
        }

        fn miss(&mut self, earliest: u64) {
            self.1.push(earliest);
        }
    }

    #[test]
    fn a_topic_with_another_id_or_an_earlier_end_is_read_from_its_beginning() {
        let mut kept = Kept::<Anew>::new("millrace.registry".parse().unwrap());
        let [old, new] = [1, 2].map(|byte| TopicId::from_bytes([byte; 16]));
        for (id, end, read_to, (anew, next)) in [
            (old, 0, 0, (0, 0)),
            (old, 5, 5, (0, 0)),
            (old, 5, 5, (0, 5)),
            (old, 9, 9, (0, 5)),
            (new, 9, 9, (1, 0)),
            (new, 12, 12, (1, 9)),
            (new, 11, 11, (2, 0)),
        ] {
            kept.follow(id, 0..end);
            assert_eq!((kept.fold.0, kept.next), (anew, next), "{id:?} {end}");
            kept.next = read_to;
        }
        assert!(kept.fold.1.is_empty());
    }

    #[test]
    fn what_is_gone_before_it_was_read_is_missed() {
        let mut kept = Kept::<Anew>::new("millrace.registry".parse().unwrap());
        let [old, new] = [1, 2].map(|byte| TopicId::from_bytes([byte; 16]));
        for (id, offsets, missed, next) in [
            (old, 3..9, &[3][..], 3),
            // What was read can go.
            (old, 9..12, &[3], 9),
            (old, 12..12, &[3], 12),
            (old, 13..15, &[3, 13], 13),
            (new, 1..15, &[3, 13, 1], 1),
        ] {
            kept.follow(id, offsets.clone());
            assert_eq!((&kept.fold.1[..], kept.next), (missed, next), "{offsets:?}");
            kept.next = if offsets == (3..9) { 9 } else { offsets.end };
        }
    }
}
