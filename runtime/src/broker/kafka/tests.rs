//! The adapter on a real Kafka, at `KAFKA_BOOTSTRAP`; without one these tests say so and are skipped.

mod deploying;
mod errors;
mod exactly_once;
mod faults;
mod restoring;
mod support;
mod units;
