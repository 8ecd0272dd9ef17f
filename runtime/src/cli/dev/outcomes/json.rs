//! The same for programs. Nothing is cut or made readable that the feed did not cut.

use millrace_core::name::FunctionName;
use serde_json::{Value, json};

use crate::worker::feed::{Entry, Told, What};

/// What happened to one event.
pub(super) fn entry(function: &FunctionName, entry: &Entry) -> Value {
    let Entry { at, place, key, what } = entry;
    let mut value = match what {
        What::Completed { took } => json!({ "kind": "completed", "took_seconds": took.as_secs_f64() }),
        What::Filtered => json!({ "kind": "filtered" }),
        What::Duplicate => json!({ "kind": "duplicate" }),
        What::Failed { attempt, category, reason } => {
            json!({ "kind": "failed", "attempt": attempt, "category": category.to_string(), "reason": reason })
        }
        What::DeadLettered { attempts, category, reason } => {
            json!({ "kind": "dead-lettered", "attempts": attempts, "category": category.to_string(), "reason": reason })
        }
        What::Logged { level, context, message } => {
            json!({ "kind": "logged", "level": level.to_string(), "context": context, "message": message })
        }
    };
    value["at"] = at.to_string().into();
    value["function"] = function.to_string().into();
    value["place"] = place.as_str().into();
    if !key.is_empty() {
        value["key"] = key.as_str().into();
    }
    value
}

/// What happened in a second and has no line of its own; none if nothing did.
pub(super) fn sum(function: &FunctionName, told: &Told) -> Option<Value> {
    let Told { settled, failed_attempts, log_lines, attempts, took, entries: _ } = told;
    let any = settled.sum() + failed_attempts + log_lines > 0;
    any.then(|| {
        json!({
            "kind": "summed-up",
            "function": function.to_string(),
            "completed": settled.completed,
            "filtered": settled.filtered,
            "duplicate": settled.duplicate,
            "dead_lettered": settled.dead_lettered,
            "failed_attempts": failed_attempts,
            "log_lines": log_lines,
            "attempts": attempts,
            "took_seconds": took.as_secs_f64(),
        })
    })
}
