//! A function made ready to run: its component read, its expressions compiled, its grants compared with what it imports.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use millrace_core::expression::{Filter, KeyExpression};
use millrace_core::intake::Intake;
use millrace_core::limits;
use millrace_core::manifest::Function;
use millrace_core::name::FunctionName;
use millrace_core::signature::Untrusted;
use millrace_core::units::rounded;

use crate::broker;
use crate::sandbox::{self, FunctionOptions, Guest, GuestLimits, Refusal};
use crate::worker::Revision;

/// A revision of a function on the real sandbox.
#[derive(Debug)]
pub struct Staged {
    pub(super) number: u64,
    pub(super) intake: Intake,
    pub(super) keeps_state: bool,
    pub(super) function: sandbox::Function,
}

impl Revision for Staged {
    type Sandbox = Guest;

    fn number(&self) -> u64 {
        self.number
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn keeps_state(&self) -> bool {
        self.keeps_state
    }

    fn sandbox(&self) -> Guest {
        self.function.guest()
    }
}

/// Why a function could not be staged. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The component's file cannot be read.
    #[error("{function}: cannot read the component `{}`: {reason}; build it with `millrace build`", file.display())]
    Missing {
        /// The function.
        function: FunctionName,
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The component's file is larger than a component can be.
    #[error(
        "{function}: the component `{}` has {}, more than {}; build it in release mode, and strip it",
        file.display(),
        rounded(*size_bytes),
        rounded(limits::COMPONENT_MAX_BYTES as u64)
    )]
    TooLarge {
        /// The function.
        function: FunctionName,
        /// The file.
        file: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The component is refused.
    #[error("{function}: {reason}")]
    Refused {
        /// The function.
        function: FunctionName,
        /// Why, and what to do.
        reason: Refusal,
    },
    /// An expression does not compile.
    #[error("{function}: {key}: {reason}")]
    Expression {
        /// The function.
        function: FunctionName,
        /// The key in the manifest.
        key: &'static str,
        /// Why.
        reason: String,
    },
    /// It is not signed as this instance asks for.
    #[error("{function}: {reason}")]
    Untrusted {
        /// The function.
        function: FunctionName,
        /// Why.
        reason: Untrusted,
    },
    /// What runs is what was uploaded, and not what is in the directory.
    #[error(
        "{function}: revision {revision} was uploaded and runs in place of the one in this directory; upload this one with `millrace deploy`, or let go of that one with `millrace functions delete {function}`"
    )]
    Uploaded {
        /// The function.
        function: FunctionName,
        /// The uploaded revision.
        revision: u64,
    },
    /// It cannot be said which revision this is, or there is not all that it is made of.
    #[error("{function}: {reason}")]
    Undecided {
        /// The function.
        function: FunctionName,
        /// Why.
        reason: String,
    },
    /// The log could not act.
    #[error("{function}: {reason}")]
    Broker {
        /// The function.
        function: FunctionName,
        /// Why.
        reason: broker::Error,
    },
}

impl StageError {
    /// Whether another try can help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Broker { reason, .. } => reason.is_transient(),
            Self::Refused { reason, .. } => matches!(reason, Refusal::Unavailable(_)),
            _ => false,
        }
    }
}

/// The reason, for whoever names the function anyway.
pub(super) fn without_name(error: &StageError, function: &FunctionName) -> String {
    let reason = error.to_string();
    reason.strip_prefix(&format!("{function}: ")).map(ToOwned::to_owned).unwrap_or(reason)
}

/// Reads a function's component.
///
/// # Errors
/// If it cannot be read, is no file, or is larger than a component can be.
pub async fn read_component(function: &Function, directory: &Path) -> Result<Bytes, StageError> {
    let file = directory.join(&function.component);
    let missing = |reason| StageError::Missing { function: function.name.clone(), file: file.clone(), reason };
    let metadata = tokio::fs::metadata(&file).await.map_err(|e| missing(e.to_string()))?;
    if !metadata.is_file() {
        return Err(missing("it is not a file".to_owned()));
    }
    if metadata.len() > limits::COMPONENT_MAX_BYTES as u64 {
        let (function, size_bytes) = (function.name.clone(), metadata.len());
        return Err(StageError::TooLarge { function, file, size_bytes });
    }
    Ok(tokio::fs::read(&file).await.map_err(|e| missing(e.to_string()))?.into())
}

/// How a function takes records in.
///
/// # Errors
/// If an expression does not compile.
pub fn intake(function: &Function) -> Result<Intake, StageError> {
    let wrong =
        |key: &'static str, reason: String| StageError::Expression { function: function.name.clone(), key, reason };
    let filter = function.filter.as_deref().map(Filter::compile).transpose();
    let key = function.idempotency.key.as_deref().map(KeyExpression::compile).transpose();
    Ok(Intake {
        ordering: function.ordering,
        filter: filter.map_err(|e| wrong("filter", e.to_string()))?,
        key: key.map_err(|e| wrong("idempotency.key", e.to_string()))?,
    })
}

/// What a manifest says of a function's guests; all granted topics are taken for known.
#[must_use]
pub fn function_options(function: &Function) -> FunctionOptions {
    FunctionOptions {
        name: function.name.clone(),
        config: function.config.clone().into_iter().collect(),
        publish: function.grants.publish.clone(),
        state: function.grants.state,
        known_topics: Arc::new(|_| true),
        limits: GuestLimits {
            time: function.limits.time,
            memory_bytes: function.limits.memory_bytes,
            emitted_events: function.limits.emitted_events,
            emitted_bytes: function.limits.emitted_bytes,
            event_bytes: limits::EVENT_MAX_BYTES,
            log_bytes: function.limits.log_bytes,
            ..GuestLimits::default()
        },
        reuse: NonZeroU32::new(function.instance.reuse_events).unwrap_or(NonZeroU32::MIN),
    }
}
