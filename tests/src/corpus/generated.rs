//! Modules and components that a generator makes from seeds, as they are and with damage. What is valid of them is no handler.

use arbitrary::Unstructured;
use wasm_smith::{Component, Config, Module};

use super::Bad;
use super::bombs::{COMPONENT, core_module};
use crate::sim::rng::Rng;

/// What a seed grows into: more makes larger modules.
const SEED_BYTES: usize = 2048;

/// Bounded, so that each compiles in some milliseconds.
fn bounds() -> Config {
    Config {
        max_memory32_bytes: 1 << 24,
        max_table_elements: 1000,
        memory64_enabled: false,
        max_funcs: 10,
        max_instructions: 100,
        max_imports: 10,
        max_type_size: 200,
        max_modules: 3,
        max_components: 3,
        max_nesting_depth: 4,
        ..Config::default()
    }
}

/// What these seeds give: for each a module wrapped into a component and a component, both also with a byte changed.
///
/// # Panics
/// If the generator makes nothing of a seed.
#[must_use]
pub fn generated(seeds: std::ops::Range<u64>) -> Vec<Bad> {
    seeds.flat_map(of_seed).collect()
}

fn of_seed(seed: u64) -> Vec<Bad> {
    let mut random = Rng::new(seed);
    let grain: Vec<u8> = (0..SEED_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let module = Module::new(bounds(), &mut Unstructured::new(&grain)).expect("there is always a module").to_bytes();
    let component = Component::new(bounds(), &mut Unstructured::new(&grain)).expect("there is always a component");
    let wrapped = [COMPONENT, &core_module(&module)].concat();
    let mut bad = Vec::new();
    for (what, mut bytes) in [("module", wrapped), ("component", component.to_bytes())] {
        bad.push(Bad::new(format!("{what} of seed {seed}"), bytes.clone(), ""));
        let places: Vec<usize> = (COMPONENT.len()..bytes.len()).collect();
        if !places.is_empty() {
            let at = random.pick(&places);
            bytes[at] ^= 1 << random.below(8);
            bad.push(Bad::new(format!("{what} of seed {seed}, damaged at byte {at}"), bytes, ""));
        }
    }
    bad
}
