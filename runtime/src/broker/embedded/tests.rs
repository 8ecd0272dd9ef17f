//! Tests of the whole log.

mod concurrency;
mod damage;
mod faults;
mod grouping;
mod letters;
mod model;
mod opening;
mod publishing;
mod room;
mod support;
mod units;
