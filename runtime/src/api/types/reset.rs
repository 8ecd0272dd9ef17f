//! `POST /v1/functions/{function}/reset`: where a function goes on is set by a person.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a function is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// `earliest`, `latest`, a time in RFC 3339, or an offset, which needs `topic` and `partition` unless the function has one
    /// partition only.
    pub from: String,
    /// Only the partitions of this source topic.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub topic: Option<String>,
    /// Only the partition with this number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub partition: Option<u32>,
    /// Forget the idempotency keys of these partitions, so that what was handled is handled again.
    #[serde(default)]
    pub forget: bool,
    /// Only if that is the function's latest deployment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub builds_on: Option<u64>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Where it goes on, or would.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResetAnswer {
    /// The function.
    pub function: String,
    /// The number of the deployment that says so, or would; a partition has obeyed once its `reset` is that.
    pub number: u64,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Whether idempotency keys are forgotten.
    pub forget: bool,
    /// How long the function remembers idempotency keys.
    pub window_seconds: f64,
    /// Offsets of all partitions together that the function has behind it and that come again, or for the first time where it began
    /// after them: as many events, on Kafka with the markers of transactions. Events that were dead-lettered are among them.
    pub again: u64,
    /// Those of `again` that were published within the idempotency window: they are settled as duplicates if they had completed,
    /// unless keys are forgotten, now or because there were too many.
    pub within_window: u64,
    /// Offsets of all partitions together that wait to be settled and are passed over.
    pub passed_over: u64,
    /// By topic and number.
    pub partitions: Vec<ResetPartition>,
}

/// Where one partition goes on, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResetPartition {
    /// The source topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// One past the last contiguous settled offset, before.
    pub from: u64,
    /// The offset to go on from.
    pub to: u64,
    /// Offsets behind it that come again.
    pub again: u64,
    /// Those of them that were published within the idempotency window.
    pub within_window: u64,
    /// Offsets that wait to be settled and are passed over.
    pub passed_over: u64,
}
