//! The state of handlers: one record for each value in a compacted topic with the source's partitions, and all values of an
//! owned unit in memory. Key: the value's key; value: frame (version, checksum) around the bytes, or none if it is removed.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use bytestring::ByteString;
use millrace_core::name::{Topic, Unit};
use millrace_core::record::{Headers, Record};
use millrace_core::state::StateWrite;
use millrace_core::time::Timestamp;

use super::record::Placed;
use crate::broker::frame::{Corrupt, Decoder, Encoder};
use crate::broker::{Error, StateEntry, StateRange, StateReader};

const KIND: &str = "value of a handler's state";
const VERSION: u8 = 1;

/// Values by key.
pub(super) type Values = BTreeMap<ByteString, Bytes>;

/// What is committed of one owned unit's state.
#[derive(Clone, Debug, Default)]
pub struct KafkaState(Arc<RwLock<Values>>);

impl KafkaState {
    /// Begins with what was restored.
    pub(super) fn restore(&self, values: Values) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = values;
    }

    /// Takes what was committed.
    pub(super) fn apply(&self, writes: &[StateWrite]) {
        if writes.is_empty() {
            return;
        }
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for StateWrite { key, value } in writes {
            match value {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Values) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl StateReader for KafkaState {
    fn get(&self, keys: Vec<ByteString>) -> impl Future<Output = Result<Vec<Option<Bytes>>, Error>> + Send + 'static {
        std::future::ready(Ok(self.read(|values| keys.iter().map(|key| values.get(key).cloned()).collect())))
    }

    fn keys(
        &self,
        after: Option<ByteString>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ByteString>, Error>> + Send + 'static {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let found =
            self.read(|values| values.range((from, Bound::Unbounded)).take(max).map(|(key, _)| key.clone()).collect());
        std::future::ready(Ok(found))
    }
}

/// A change as a record.
pub(super) fn placed(topic: &Topic, unit: &Unit, at: Timestamp, write: &StateWrite) -> Placed {
    let StateWrite { key, value } = write;
    let record = Record {
        timestamp: at,
        key: Some(key.as_bytes().clone()),
        value: value.as_ref().map(|value| encode(unit, key, value)),
        headers: Headers::default(),
    };
    Placed { topic: topic.clone(), partition: unit.partition, record }
}

/// Takes a record of a unit's partition in, oldest first.
pub(super) fn take(unit: &Unit, record: &Record, values: &mut Values) -> Result<(), Corrupt> {
    let key = record.key.clone().and_then(|key| ByteString::try_from(key).ok());
    let key = key.ok_or(Corrupt::Damaged { kind: KIND, what: "its key is not text" })?;
    match &record.value {
        Some(value) => drop(values.insert(key.clone(), decode(unit, &key, value)?)),
        None => drop(values.remove(&key)),
    }
    Ok(())
}

/// Those that are asked for.
pub(super) fn list(values: &Values, range: &StateRange) -> Vec<StateEntry> {
    let StateRange { prefix, after, max, max_bytes } = range;
    let from = after.clone().filter(|after| after >= prefix).map_or(Bound::Included(prefix.clone()), Bound::Excluded);
    let mut bytes = 0;
    let of_prefix = values.range((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&**prefix));
    let within = of_prefix.take(*max).enumerate().take_while(|(at, (key, value))| {
        bytes += key.len() + value.len();
        *at == 0 || bytes <= *max_bytes
    });
    within.map(|(_, (key, value))| StateEntry { key: key.clone(), value: value.clone() }).collect()
}

fn bound_to(unit: &Unit, key: &str) -> String {
    format!("{unit}/{key}")
}

fn encode(unit: &Unit, key: &str, value: &[u8]) -> Bytes {
    let mut encoder = Encoder::new(VERSION);
    encoder.raw(value);
    encoder.seal(bound_to(unit, key).as_bytes())
}

fn decode(unit: &Unit, key: &str, value: &[u8]) -> Result<Bytes, Corrupt> {
    let mut decoder = Decoder::open(KIND, VERSION, bound_to(unit, key).as_bytes(), value)?;
    Ok(Bytes::copy_from_slice(decoder.remainder()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit() -> Unit {
        Unit { function: "shop.pay".parse().unwrap(), topic: Topic::new("orders").unwrap(), partition: 3 }
    }

    fn write(key: &str, value: Option<&[u8]>) -> StateWrite {
        StateWrite { key: key.into(), value: value.map(Bytes::copy_from_slice) }
    }

    proptest! {
        #[test]
        fn what_is_written_is_restored(writes in prop::collection::vec(("[ab]{0,2}", prop::option::of(any::<Vec<u8>>())), 0..20)) {
            let topic = Topic::new("t").unwrap();
            let writes: Vec<_> = writes.iter().map(|(key, value)| write(key, value.as_deref())).collect();
            let (state, mut restored) = (KafkaState::default(), Values::new());
            state.apply(&writes);
            for one in &writes {
                take(&unit(), &placed(&topic, &unit(), Timestamp::EPOCH, one).record, &mut restored).unwrap();
            }
            prop_assert_eq!(state.read(Clone::clone), restored);
        }

        #[test]
        fn foreign_bytes_never_panic(key: Option<Vec<u8>>, value: Option<Vec<u8>>) {
            let record = Record { key: key.map(Bytes::from), value: value.map(Bytes::from), ..Record::default() };
            drop(take(&unit(), &record, &mut Values::new()));
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let value = encode(&unit(), "k", b"v");
        assert_eq!(decode(&unit(), "k", &value), Ok(Bytes::from_static(b"v")));
        assert!(decode(&unit(), "l", &value).is_err(), "the value of another key");
        assert_eq!((value[0], value.len(), value[value.len() - 1]), (VERSION, 6, b'v'));
    }

    #[test]
    fn a_range_is_listed_within_its_bounds() {
        let values: Values =
            ["a", "ba", "bb", "bc", "c"].map(|key| (ByteString::from(key), Bytes::from_static(b"12"))).into();
        let list = |prefix: &str, after: Option<&str>, max, max_bytes| {
            let range = StateRange { prefix: prefix.into(), after: after.map(ByteString::from), max, max_bytes };
            list(&values, &range).iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(list("", None, 9, 99), "a ba bb bc c");
        assert_eq!(list("b", None, 9, 99), "ba bb bc");
        assert_eq!(list("b", Some("ba"), 9, 99), "bb bc");
        assert_eq!(list("b", Some("a"), 2, 99), "ba bb");
        assert_eq!(list("b", None, 9, 8), "ba bb");
        assert_eq!(list("b", None, 9, 1), "ba");
    }
}
