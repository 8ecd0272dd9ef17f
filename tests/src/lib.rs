//! What the tests of the whole share: a simulated world to run the runtime in, the real binary, and a collector of spans.

pub mod collector;
pub mod process;
pub mod sim;
pub mod small_disk;
