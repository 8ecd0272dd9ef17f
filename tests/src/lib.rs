//! What the tests of the whole share: a simulated world to run the runtime in.

pub mod sim;
