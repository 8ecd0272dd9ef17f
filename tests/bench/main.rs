//! `make bench`: each measure beside its limit, in the same run.
//!
//! Prints both and their ratio, and writes `bench.json` into the target directory. Words on the command line choose measures by
//! what their names contain.

use std::path::PathBuf;

use figure::Figure;

mod bare;
mod clock;
mod dispatch;
mod events;
mod figure;
mod kafka;
mod product;
mod sandbox;
mod skeleton;
mod swaps;

/// The guests that are measured with, as components.
pub(crate) struct Guests {
    /// Answers each event with one that has the same data.
    tiny: Vec<u8>,
    /// Parses and writes JSON.
    json: Vec<u8>,
}

/// The names of figures, and how they are measured.
type Measure = (&'static str, fn(&Guests) -> Vec<Figure>);

const MEASURES: [Measure; 13] = [
    ("sandbox.reused sandbox.fresh", |guests| sandbox::measure(&guests.tiny)),
    ("core.dispatch", |_| dispatch::measure()),
    ("http.parse", |_| vec![Figure::shown("http.parse", dispatch::accepted(), "ns CPU")]),
    ("memory.idle_function", |guests| sandbox::idle(&guests.json)),
    ("dev.ready dev.ready.first", product::ready),
    ("embedded.throughput", product::throughput),
    ("embedded.latency", product::latency),
    ("memory.growth", product::growth),
    ("swaps.embedded", |_| swaps::embedded()),
    ("swaps.kafka", |_| kafka::swaps::measure()),
    ("kafka.native.ratio kafka.native.fresh_ratio kafka.streams.ratio kafka.streams.p99_ratio", kafka::measure),
    ("kafka.functions.threads kafka.functions.memory_mib", |_| kafka::functions::measure()),
    ("kafka.restore.seconds", |_| kafka::restore::measure()),
];

#[expect(clippy::print_stdout, reason = "whoever measures reads it")]
fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let Some((kafka::native::WORD, arguments)) = chosen.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        kafka::native::run(arguments);
    }
    let guests = Guests::load();
    let mut figures = Vec::new();
    for (names, measure) in MEASURES {
        if chosen.is_empty() || chosen.iter().any(|word| names.contains(word.as_str())) {
            for figure in measure(&guests) {
                println!("{}", figure.line());
                figures.push(figure);
            }
        }
    }
    let file = target().join("bench.json");
    let json = serde_json::to_vec_pretty(&figures).expect("figures are JSON");
    std::fs::write(&file, json).expect("the target directory can be written to");
    println!("written to {}", file.display());
}

/// The target directory.
pub(crate) fn target() -> PathBuf {
    let profile = millrace_tests::process::program();
    profile.ancestors().nth(2).expect("the program lies in a profile's directory").to_owned()
}

impl Guests {
    fn load() -> Self {
        let tiny = wat::parse_str(include_str!("../fixtures/guest.wat")).expect("the fixture is sound");
        let file = target().join("wasm32-wasip2/guest/bench_guest.wasm");
        let json = std::fs::read(&file);
        let json = json.unwrap_or_else(|e| panic!("{}: {e}; run `make guests` first", file.display()));
        Self { tiny, json }
    }

    /// By the name of its file in an application.
    pub(crate) fn named(&self, component: &str) -> &[u8] {
        if component == "json.wasm" { &self.json } else { &self.tiny }
    }
}
