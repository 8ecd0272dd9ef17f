//! The fuzz targets, briefly: what lies in their corpus, and as many changes of it as `FUZZ_RUNS` says, the same ones each time.

use std::fs;
use std::path::Path;

#[expect(unreachable_pub, reason = "cargo-fuzz has it as a library")]
#[path = "../fuzz/targets.rs"]
mod targets;

/// Changes tried for each target.
const RUNS: u64 = 3_000;
/// Of one input.
const EDITS_MAX: usize = 6;
/// What the corpus and its changes can have; enough for everything that is nested or listed.
const INPUT_MAX_BYTES: usize = 4 << 10;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
struct Random(u64);

impl Random {
    /// From zero up to, not including, `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) >> 1).unwrap_or_default() % bound.max(1)
    }

    /// A short piece, or a longer one now and then.
    fn piece<'a>(&mut self, of: &'a [u8]) -> &'a [u8] {
        let from = self.below(of.len() + 1);
        let most = if self.below(4) == 0 { of.len() } else { 12 };
        let len = self.below(most.min(of.len() - from) + 1);
        &of[from..from + len]
    }
}

/// One of the seeds with some edits: bytes that change, pieces that go, come twice, or come from another seed.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(EDITS_MAX) {
        let at = random.below(bytes.len() + 1);
        let other = match random.below(3) {
            0 => bytes.clone(),
            _ => seeds[random.below(seeds.len())].clone(),
        };
        let piece = random.piece(&other);
        let gone = match random.below(4) {
            0 => 0,
            1 => piece.len(),
            _ => random.below(12),
        };
        let end = bytes.len().min(at + gone);
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..end, piece.repeat(1 + random.below(40)))),
            _ => drop(bytes.splice(at..end, piece.iter().copied())),
        }
        bytes.truncate(INPUT_MAX_BYTES);
    }
    bytes
}

/// Shows an input that does not do, as a file for the corpus.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    #[expect(clippy::print_stderr, reason = "whoever reads of the failure needs its input")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} fails with b\"{}\"; put it into its corpus", self.0, self.1.escape_ascii());
        }
    }
}

fn try_briefly(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the corpus can be read").path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("the corpus can be read")).collect();
    let attempt = |bytes: &[u8]| {
        let _shown = Shown(name, bytes);
        target(bytes);
    };
    seeds.iter().for_each(|seed| attempt(seed));
    let runs = std::env::var("FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("FUZZ_RUNS is a number"));
    (0..runs).for_each(|run| attempt(&changed(&seeds, &mut Random(run))));
}

macro_rules! fuzz {
    ($($test:ident: $target:ident,)*) => {
        $(#[test]
        fn $test() {
            try_briefly(stringify!($target), targets::$target);
        })*
    };
}

fuzz! {
    a_manifest_is_read_or_what_is_wrong_has_its_place: manifest,
    an_expression_is_compiled_or_what_is_wrong_has_its_place: expression,
    a_change_says_what_it_said_before: change,
    histories_are_the_same_however_they_are_read: histories,
    a_token_says_what_it_said_before_and_lets_nobody_else_in: tokens,
    what_somebody_did_is_told_without_secrets: audit,
    an_event_in_json_survives: event,
    a_batch_of_events_survives: batch,
    an_event_in_headers_survives: headers,
    an_event_in_a_record_survives: record,
    a_text_is_read_from_what_it_is_written_as: texts,
}
