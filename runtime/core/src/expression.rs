//! Filters and key expressions over events, in the Common Expression Language (<https://cel.dev>).
//!
//! An expression sees one variable, `event`:
//!
//! | field | type | |
//! |---|---|---|
//! | `id`, `source`, `type` | string | always there |
//! | `subject`, `datacontenttype`, `dataschema` | string | |
//! | `time` | timestamp | compare with `timestamp("2026-11-20T08:15:00Z")` |
//! | `key` | string | the ordering key, which must be UTF-8 |
//! | `data` | any | JSON as maps, lists, strings, numbers, booleans and null; other data as bytes |
//! | any other name | string | the extension attribute of that name |
//!
//! To read what an event does not have is an error, so ask `has(event.subject)` first. Data is parsed only when an
//! expression reads it: as JSON when its content type says so, and without a content type when it happens to be JSON.
//! Whole numbers are `int` (`uint` beyond its range), others `double`. An extension whose name is a keyword of the
//! language is read as `event["in"]`.
//!
//! What an expression may cost is bounded when it is compiled: its length, its depth, loops within loops, and patterns,
//! which must be literals. Beyond that its cost grows with the data it reads.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use cel::common::types::{CelBool, CelDouble, CelInt, CelString, CelUInt};
use cel::common::value::CowVal;
use cel::{Context, ExecutionError, IdedExpr, Value};

use crate::event::Event;
use crate::limits;
use crate::outcome::{Category, Failure};
use crate::units::rounded;

mod compile;
mod data;
mod direct;
mod scope;
#[cfg(test)]
mod tests;

use direct::Direct;
use scope::Scope;

/// Longest source text of an expression.
pub const EXPRESSION_MAX_BYTES: usize = 4096;

/// Why a text is no expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// Line and column, from 1, if one place can be named.
    pub position: Option<(usize, usize)>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExpressionError {}

/// An expression that says which events a function handles. Compile once, use for every event, from any thread.
#[derive(Debug)]
pub struct Filter {
    whole: IdedExpr,
    /// What needs no interpreter: most filters only look at the type.
    direct: Direct,
}

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// If it is longer than [`EXPRESSION_MAX_BYTES`], does not parse, is too deep, or names what does not exist.
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        compile::compile(source).map(|whole| Self { direct: Direct::of(&whole), whole })
    }

    /// Whether the function handles this event; `key` is its ordering key.
    ///
    /// # Errors
    /// [`Category::Invalid`] if the expression cannot be evaluated for this event, or answers anything but true or false.
    pub fn matches(&self, event: &Event, key: Option<&Bytes>) -> Result<bool, Failure> {
        if let Some(answer) = self.direct.answer(event) {
            return Ok(answer);
        }
        self.interpret(event, key)
    }

    fn interpret(&self, event: &Event, key: Option<&Bytes>) -> Result<bool, Failure> {
        evaluate("filter", &self.whole, event, key, |answer| match answer.downcast_ref::<CelBool>() {
            Some(answer) => Ok(*answer.inner()),
            None => Err(format!("answers with a {}, not with true or false", answer.get_type().name())),
        })
    }
}

/// An expression that gives a key, such as the idempotency key. Compile once, use for every event, from any thread.
#[derive(Debug)]
pub struct KeyExpression(IdedExpr);

impl KeyExpression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        compile::compile(source).map(Self)
    }

    /// The key of this event: the text or the number that the expression gives. `key` is the event's ordering key.
    ///
    /// # Errors
    /// [`Category::Invalid`] if the expression cannot be evaluated for this event, or gives anything else, an empty text, under
    /// which unrelated events would meet, or one of more than [`limits::IDEMPOTENCY_KEY_MAX_BYTES`].
    pub fn evaluate(&self, event: &Event, key: Option<&Bytes>) -> Result<ByteString, Failure> {
        evaluate("key expression", &self.0, event, key, |answer| {
            if let Some(text) = answer.downcast_ref::<CelString<'_>>() {
                return match text.inner().len() {
                    0 => Err("gives an empty text".to_owned()),
                    1..=limits::IDEMPOTENCY_KEY_MAX_BYTES => Ok(text.inner().into()),
                    bytes => Err(format!(
                        "gives a text of {}, more than {}: choose a shorter part of the event",
                        rounded(bytes as u64),
                        rounded(limits::IDEMPOTENCY_KEY_MAX_BYTES as u64)
                    )),
                };
            }
            let int = answer.downcast_ref::<CelInt>().map(|n| n.inner().to_string());
            let uint = || answer.downcast_ref::<CelUInt>().map(|n| n.inner().to_string());
            let double =
                || answer.downcast_ref::<CelDouble>().filter(|n| n.inner().is_finite()).map(|n| n.inner().to_string());
            let number = int.or_else(uint).or_else(double);
            number.map(ByteString::from).ok_or_else(|| {
                format!("gives a {}, not a text or a number: convert with string(...)", answer.get_type().name())
            })
        })
    }
}

fn evaluate<T>(
    what: &str,
    expression: &IdedExpr,
    event: &Event,
    key: Option<&Bytes>,
    read: impl FnOnce(CowVal<'_, '_>) -> Result<T, String>,
) -> Result<T, Failure> {
    let scope = Scope::new(event, key);
    let mut context = Context::with_env(compile::environment());
    context.set_variable_resolver(&scope);
    let answer = Value::resolve_val(expression, &context).map_err(|e| explain(&e)).and_then(read);
    answer.map_err(|reason| Failure::new(Category::Invalid, format!("the {what} {reason}")))
}

/// An error in words that follow "the filter" and do not repeat the event's data.
fn explain(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => {
            format!("reads `{name}`, which this event does not have: ask has(...) first")
        }
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
            let (left, right) = (left.type_of(), right.type_of());
            format!(
                "cannot apply `{operator}` to {left} and {right}: convert with string(...), int(...) or double(...)"
            )
        }
        ExecutionError::NoSuchOverload(overload) => format!("failed: {overload}"),
        ExecutionError::UnexpectedType { got, want } => format!("met a {got} where it needs a {want}"),
        ExecutionError::FunctionError { function, message } => format!("failed in `{function}`: {message}"),
        ExecutionError::IndexOutOfBounds(_) => "reads past the end of a list".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "divides by zero".to_owned(),
        ExecutionError::Overflow(operator, ..) => format!("overflows in `{operator}`"),
        ExecutionError::ValuesNotComparable(left, right) => {
            format!("cannot compare {} with {}", left.type_of(), right.type_of())
        }
        other => format!("failed: {other}"),
    }
}
