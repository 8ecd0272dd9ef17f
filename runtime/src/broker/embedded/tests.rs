//! Tests of the whole log.

mod concurrency;
mod damage;
mod faults;
mod grouping;
mod letters;
#[expect(clippy::cast_possible_truncation, reason = "the numbers of a model are small")]
mod model;
mod opening;
mod publishing;
mod room;
mod support;
mod units;
