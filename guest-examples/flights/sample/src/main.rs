//! Writes the feed as CloudEvents, one a line, for `millrace publish flights-raw`.

use std::io::{self, BufWriter, Write};

fn main() -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for (number, row) in flights_sample::rows().iter().enumerate() {
        writeln!(out, "{}", row.to_cloud_event(number))?;
    }
    out.flush()
}
