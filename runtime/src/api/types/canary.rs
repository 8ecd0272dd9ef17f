//! Canaries: what is asked of them, and how they do beside the active revision.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A revision that handles a share of the keys beside the active one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Canary {
    /// Its number.
    pub revision: u64,
    /// Its share of the keys, such as `5%`.
    pub share: String,
}

/// The body of `POST /v1/functions/{function}/promote`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The canary that becomes the active revision; without it whichever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// As of a [`DeployRequest`](super::DeployRequest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds_on: Option<u64>,
    /// Everything is checked, and nothing done.
    #[serde(default)]
    pub dry_run: bool,
}

/// The body of `POST /v1/functions/{function}/canary`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryRequest {
    /// The share of the keys that the canary handles from now on, such as `20%`.
    pub share: String,
    /// As of a [`DeployRequest`](super::DeployRequest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds_on: Option<u64>,
    /// Everything is checked, and nothing done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an instance counted of the attempts of one revision, so that it can be added to what others counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AttemptsHere {
    /// Its number.
    pub revision: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// From call to return of the handler, of all attempts together.
    pub seconds: f64,
    /// The upper bounds of durations in nanoseconds, each with how many attempts took so long and longer than the bound below.
    pub durations: Vec<(u64, u64)>,
}

/// What the attempts of one revision came to, since the function was activated on the instance, or on each of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionFigures {
    /// Its number.
    pub revision: u64,
    /// Attempts that completed their event.
    pub completed: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Failed ones among all attempts: 0 to 1.
    pub failure_rate: f64,
    /// From call to return of the handler, on average.
    pub invoke_mean_seconds: f64,
    /// The same, of half the attempts at most; an estimate between the bounds that are counted by.
    pub invoke_p50_seconds: f64,
    /// The same, of 99 in 100 attempts at most.
    pub invoke_p99_seconds: f64,
}
