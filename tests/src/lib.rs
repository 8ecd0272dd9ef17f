//! What the tests of the whole share: a simulated world to run the runtime in, and the real binary.

pub mod process;
pub mod sim;
pub mod small_disk;
