//! What the tests of the whole share: a simulated world to run the runtime in, the real binary, a collector of
//! spans, components that must be refused, and something that spoils what passes between Kafka and its clients.

pub mod between;
pub mod collector;
pub mod corpus;
pub mod many;
pub mod process;
pub mod sim;
pub mod small_disk;

/// Says that something could not be tested here, even if the test's output is not shown.
///
/// # Panics
/// If `CHECKS_REQUIRED` is set.
pub fn not_tested(what: &str, reason: &str) {
    use std::io::Write as _;

    let said = format!("##### NOT TESTED: {what}: {reason} #####");
    assert!(std::env::var_os("CHECKS_REQUIRED").is_none(), "{said}");
    drop(writeln!(std::io::stderr(), "{said}"));
}
