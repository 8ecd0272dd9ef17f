//! Topics: name to number, partitions, kind, retention. Keyspace `state`, key `t` and the name.

use std::time::Duration;

use bytes::Bytes;
use millrace_core::name::Topic;

use super::frame::{Corrupt, Decoder, Encoder};
use crate::broker::Retention;

const KIND: &str = "topic";
const VERSION: u8 = 1;
/// The first byte of keys of topics.
pub(super) const TAG: u8 = b't';

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicKind {
    /// People's events.
    Events,
    /// A function's dead letters; removed once they are done with, wherever they lie.
    DeadLetter,
    /// A function's redriven events of one source topic; removed once settled.
    Redrive,
}

impl TopicKind {
    const ALL: [Self; 3] = [Self::Events, Self::DeadLetter, Self::Redrive];

    pub(super) fn is_internal(self) -> bool {
        self != Self::Events
    }

    const fn code(self) -> u8 {
        match self {
            Self::Events => 0,
            Self::DeadLetter => 1,
            Self::Redrive => 2,
        }
    }
}

/// A topic as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicRecord {
    pub(super) id: u32,
    pub(super) partitions: u32,
    pub(super) kind: TopicKind,
    /// Its own retention, if it differs from the log's.
    pub(super) retention: Option<Retention>,
}

pub(super) fn key(topic: &Topic) -> Vec<u8> {
    [&[TAG], topic.as_str().as_bytes()].concat()
}

pub(super) fn name_of(key: &[u8]) -> Result<Topic, Corrupt> {
    let name = key.strip_prefix(&[TAG]).and_then(|name| std::str::from_utf8(name).ok());
    name.and_then(|name| Topic::new(name.to_owned()).ok())
        .ok_or(Corrupt::Damaged { kind: KIND, what: "its key is no name" })
}

impl TopicRecord {
    pub(super) fn encode(&self, key: &[u8]) -> Bytes {
        let mut encoder = Encoder::new(VERSION);
        encoder.varint(self.id.into());
        encoder.varint(self.partitions.into());
        encoder.u8(self.kind.code());
        encoder.u8(u8::from(self.retention.is_some()));
        if let Some(retention) = self.retention {
            let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
            encoder.option(retention.max_age.map(millis));
            encoder.option(retention.max_bytes);
        }
        encoder.seal(key)
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, Corrupt> {
        let mut decoder = Decoder::open(KIND, VERSION, key, value)?;
        let (id, partitions, code) = (decoder.varint_u32()?, decoder.varint_u32()?, decoder.u8()?);
        let kind = TopicKind::ALL.into_iter().find(|k| k.code() == code);
        let kind = kind.ok_or_else(|| decoder.damaged("its kind is unknown"))?;
        let retention = match decoder.u8()? {
            0 => None,
            _ => {
                Some(Retention { max_age: decoder.option()?.map(Duration::from_millis), max_bytes: decoder.option()? })
            }
        };
        decoder.end()?;
        Ok(Self { id, partitions, kind, retention })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_retention() -> impl Strategy<Value = Option<Retention>> {
        let retention = (any::<Option<u64>>(), any::<Option<u64>>())
            .prop_map(|(age, max_bytes)| Retention { max_age: age.map(Duration::from_millis), max_bytes });
        proptest::option::of(retention)
    }

    proptest! {
        #[test]
        fn a_topic_reads_back(id: u32, partitions: u32, kind in 0..3usize, retention in any_retention()) {
            let topic = TopicRecord { id, partitions, kind: TopicKind::ALL[kind], retention };
            prop_assert_eq!(TopicRecord::decode(b"t", &topic.encode(b"t")), Ok(topic));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let retention = Retention { max_age: Some(Duration::from_millis(5)), max_bytes: None };
        let topic = TopicRecord { id: 1, partitions: 8, kind: TopicKind::Redrive, retention: Some(retention) };
        assert_eq!(topic.encode(b"torders")[..], [1, 157, 24, 137, 149, 1, 8, 2, 1, 1, 5, 0]);
    }

    #[test]
    fn a_key_names_its_topic() {
        let orders = Topic::new("orders").unwrap();
        assert_eq!(name_of(&key(&orders)), Ok(orders));
        assert!(name_of(b"t/").is_err());
        assert!(name_of(b"x").is_err());
    }
}
