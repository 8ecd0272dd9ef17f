//! What the tests of the whole share: a simulated world to run the runtime in, the real binary, a collector of
//! spans, components that must be refused, and something that spoils what passes between Kafka and its clients.

pub mod between;
pub mod collector;
pub mod corpus;
pub mod many;
pub mod process;
pub mod sim;
pub mod small_disk;
