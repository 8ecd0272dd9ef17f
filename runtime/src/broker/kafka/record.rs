//! A record on its way into Kafka.

use millrace_core::name::Topic;
use millrace_core::record::Record;

/// A record for one partition.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    pub(super) record: Record,
}
