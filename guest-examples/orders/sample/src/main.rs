//! Writes `orders.ndjson` and `expected.json` into a folder, by default the current one:
//! `cargo run -p orders-sample -- guest-examples/orders`.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let sample = orders_sample::sample();
    fs::write(Path::new(&folder).join("orders.ndjson"), sample.lines())?;
    fs::write(Path::new(&folder).join("expected.json"), sample.expected())
}
