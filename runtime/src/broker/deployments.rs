//! What runs, as the log keeps it: deployments of functions, their components, and what each instance says of both.

use std::future::Future;

use bytes::Bytes;
use millrace_core::digest::Digest;
use millrace_core::name::FunctionName;
use millrace_core::time::Timestamp;

use super::Error;

/// The part of a log that says what runs. Whoever has the log has all that it takes to run every function.
pub trait Deployments: Send + Sync + 'static {
    /// All deployments of all functions, once there are others than those that `seen` was answered with; at once without
    /// it. Cancel safe.
    fn deployments(&self, seen: Option<u64>) -> impl Future<Output = Result<Deployed, Error>> + Send;

    /// Stores a deployment that builds on number `previous` (0 for the first); answers with its number. Durable when it
    /// returns.
    fn append_deployment(
        &self,
        function: FunctionName,
        previous: u64,
        content: Bytes,
    ) -> impl Future<Output = Result<u64, DeployError>> + Send;

    /// Stores a component under its digest, unless it is there. Durable when it returns; until then it is not there.
    fn put_component(&self, digest: Digest, content: Bytes) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether a component is there.
    fn has_component(&self, digest: Digest) -> impl Future<Output = Result<bool, Error>> + Send;

    /// A component, if it is there, as it was stored.
    fn component(&self, digest: Digest) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;

    /// The components that are there, in ascending order.
    fn components(&self) -> impl Future<Output = Result<Vec<Digest>, Error>> + Send;

    /// Removes a component, if it is there.
    fn remove_component(&self, digest: Digest) -> impl Future<Output = Result<(), Error>> + Send;

    /// Replaces what this instance says of itself.
    fn report(&self, content: Bytes) -> impl Future<Output = Result<(), Error>> + Send;

    /// What each instance said last, by instance.
    fn reports(&self) -> impl Future<Output = Result<Vec<Report>, Error>> + Send;
}

/// Deployments at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// What to wait for others with. Means nothing beyond this process.
    pub seen: u64,
    /// All of them, by function and number.
    pub deployments: Vec<Deployment>,
}

/// One deployment of a function. What its content means is not the log's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Whose it is.
    pub function: FunctionName,
    /// 1 for the function's first, and one more for each.
    pub number: u64,
    /// What was stored.
    pub content: Bytes,
}

/// What an instance said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The instance.
    pub instance: String,
    /// When.
    pub at: Timestamp,
    /// What. Its meaning is not the log's to know.
    pub content: Bytes,
}

/// Why a deployment was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeployError {
    /// Somebody else deployed meanwhile.
    #[error(
        "function `{function}` has deployment {latest} by now, and this one builds on {expected}: look at it, then try again"
    )]
    Conflict {
        /// The function.
        function: FunctionName,
        /// What the proposal builds on.
        expected: u64,
        /// What is there.
        latest: u64,
    },
    /// The log could not act.
    #[error(transparent)]
    Broker(#[from] Error),
}
