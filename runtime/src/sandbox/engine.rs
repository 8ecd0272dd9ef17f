//! The one engine of a process: how guests are compiled, where their memory comes from, and what they can import.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use millrace_core::digest::Digest;
use wasmtime::component::Linker;
use wasmtime::{Config, InstanceAllocationStrategy, WasmBacktraceDetails};

use super::Error;
use super::artifact::Loaded;
use super::cache::ArtifactCache;
use super::compiler::Compiler;
use super::host::{self, State};
use super::pool::{self, Pool};
use super::ticker::Ticker;
use super::turns::Turns;

const MIB: usize = 1 << 20;

/// How guests are run. The defaults suit a machine with a few hundred functions.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where compiled components are kept; made if it is missing, and readable by its owner only. Without it every start
    /// compiles again.
    pub cache_dir: Option<PathBuf>,
    /// Bytes kept in the cache; the oldest artefacts go first.
    pub cache_max_bytes: u64,
    /// Instances alive at the same time, of all functions together; a component with several memories counts as several.
    /// Where there are more guests, they take turns. Costs address space only.
    pub max_instances: u32,
    /// The most linear memory that a function's limits can give to an instance, in bytes; at most 4 GiB.
    pub max_memory_bytes: usize,
    /// How much memory of an instance is kept for the next one, in bytes, where the kernel can tell which pages were
    /// written (Linux 6.7). Pages above are given back to the system after each instance, which is three times slower.
    pub memory_keep_resident_bytes: usize,
    /// How long a busy guest holds its thread before others get their turn; also the precision of time limits.
    pub tick: Duration,
    /// The largest component that is accepted, in bytes.
    pub component_max_bytes: usize,
    /// Where components are compiled.
    pub compiler: Compiler,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            cache_max_bytes: 1 << 30,
            max_instances: 1000,
            max_memory_bytes: 1 << 30,
            memory_keep_resident_bytes: 8 * MIB,
            tick: Duration::from_millis(2),
            component_max_bytes: 64 * MIB,
            compiler: Compiler::default(),
        }
    }
}

/// Compiles components and runs them. One per process; cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) wasmtime: wasmtime::Engine,
    pub(super) linker: Linker<State>,
    pub(super) options: EngineOptions,
    pub(super) ticker: Ticker,
    pub(super) pool: Pool,
    pub(super) cache: Option<ArtifactCache>,
    /// Every component that some function uses. An entry whose component is gone is removed with the next load.
    pub(super) loaded: DashMap<Digest, Weak<Loaded>>,
    /// Taken while compiling.
    pub(super) compiling: Turns,
}

impl Engine {
    /// Prepares the engine: reserves address space for all instances, and starts the thread that interrupts guests.
    ///
    /// # Errors
    /// If the options contradict each other, the address space is not to be had, or the cache directory cannot be used.
    pub fn new(options: EngineOptions) -> Result<Self, Error> {
        let wasmtime = wasmtime::Engine::new(&config(&options)).map_err(|e| {
            let instances = options.max_instances;
            Error(format!("no room for {instances} instances, lower `max_instances` or the memory limit: {e:#}"))
        })?;
        let mut linker = Linker::new(&wasmtime);
        host::add_to_linker(&mut linker).map_err(|e| Error(format!("the host's interfaces do not link: {e:#}")))?;
        let cache = options.cache_dir.as_deref();
        let cache = cache.map(|dir| ArtifactCache::open(dir, &wasmtime, options.cache_max_bytes)).transpose()?;
        let ticker = Ticker::start(&wasmtime, options.tick)?;
        let pool = Pool::new(options.max_instances);
        let (loaded, compiling) = (DashMap::new(), Turns::default());
        Ok(Self(Arc::new(Inner { wasmtime, linker, options, ticker, pool, cache, loaded, compiling })))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.0.options).finish_non_exhaustive()
    }
}

fn config(options: &EngineOptions) -> Config {
    let mut config = compiler_config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool::config(options)));
    config
}

/// All that compiled code depends on.
pub(super) fn compiler_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // Without it a call costs a third less. Handlers are synchronous.
        .concurrency_support(false)
        // The same event gives the same bytes on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        // What no handler needs cannot be got wrong.
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        // Names of functions, from the name section; not lines, for which debug information would have to stay in memory.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(64));
    config
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    #[test]
    fn what_is_compiled_elsewhere_fits_this_engine() {
        let hash = |config: &Config| {
            let engine = wasmtime::Engine::new(config).unwrap();
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let options = EngineOptions { max_instances: 1, ..EngineOptions::default() };
        assert_eq!(hash(&config(&options)), hash(&compiler_config()));
    }
}
