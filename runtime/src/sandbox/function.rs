//! One revision of one function: a component with its limits, grants and configuration.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use millrace_core::name::{FunctionName, Topic};

use super::artifact::Component;
use super::emission::{KnownTopics, Outbox};
use super::engine::Engine;
use super::guest::Guest;
use super::host::Shared;
use super::keyvalue;
use super::limits::GuestLimits;
use super::refusal::Refusal;

/// A page of linear memory.
const WASM_PAGE_BYTES: u64 = 64 << 10;

/// What a manifest decides about a function's guests.
#[derive(Clone)]
pub struct FunctionOptions {
    /// Its full name; part of the identity of emitted events.
    pub name: FunctionName,
    /// What `wasi:config/store` answers, as names and values. Of two entries with the same name the last one holds.
    pub config: Vec<(String, String)>,
    /// The topics that it may publish to.
    pub publish: Vec<Topic>,
    /// Whether it keeps state.
    pub state: bool,
    /// Answers whether a topic exists.
    pub known_topics: KnownTopics,
    /// What one invocation may use.
    pub limits: GuestLimits,
    /// How many events one instance handles before it is replaced.
    pub reuse: NonZeroU32,
}

impl fmt::Debug for FunctionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of the configuration may be secret.
        let config: Vec<&str> = self.config.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("FunctionOptions")
            .field("name", &self.name)
            .field("config", &config)
            .field("publish", &self.publish)
            .field("state", &self.state)
            .field("limits", &self.limits)
            .field("reuse", &self.reuse)
            .finish_non_exhaustive()
    }
}

/// A function that can be run, shared by its workers. Cheap to clone.
#[derive(Clone)]
pub struct Function(Arc<Inner>);

struct Inner {
    engine: Engine,
    component: Component,
    options: FunctionOptions,
    /// Sorted by name, each name once.
    config: Arc<[(String, String)]>,
}

impl Function {
    /// Puts a component and its options together.
    ///
    /// # Errors
    /// [`Refusal::NotGranted`] if the component imports what the options do not grant, [`Refusal::Limits`] if the limits do not let the component start, or are beyond what the engine has.
    pub fn new(engine: &Engine, component: &Component, options: FunctionOptions) -> Result<Self, Refusal> {
        if component.0.imports_state && !options.state {
            let fix = "write `grants = { state = true }` into its table of the manifest";
            return Err(Refusal::NotGranted { import: keyvalue::INTERFACE, fix });
        }
        check_limits(engine, component, &options.limits)?;
        let mut config = options.config.clone();
        // The sort is stable, so that of equal names the last one stays last.
        config.sort_by(|(a, _), (b, _)| a.cmp(b));
        config.reverse();
        config.dedup_by(|(a, _), (b, _)| a == b);
        config.reverse();
        let (engine, component) = (engine.clone(), component.clone());
        Ok(Self(Arc::new(Inner { engine, component, options, config: config.into() })))
    }

    /// A sandbox for one worker. The first invocation makes its instance.
    #[must_use]
    pub fn guest(&self) -> Guest {
        let FunctionOptions { name, publish, known_topics, limits, reuse, .. } = &self.0.options;
        let outbox = Outbox::new(name, publish, known_topics, *limits);
        let shared = Arc::new(Shared { limits: *limits, outbox, config: Arc::clone(&self.0.config) });
        Guest::new(self.0.engine.clone(), self.0.component.clone(), shared, *reuse)
    }

    /// Its full name.
    #[must_use]
    pub fn name(&self) -> &FunctionName {
        &self.0.options.name
    }

    /// Its component.
    #[must_use]
    pub fn component(&self) -> &Component {
        &self.0.component
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> &GuestLimits {
        &self.0.options.limits
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("component", &self.0.component).field("options", &self.0.options).finish()
    }
}

fn check_limits(engine: &Engine, component: &Component, limits: &GuestLimits) -> Result<(), Refusal> {
    let engine_max_bytes = engine.0.options.max_memory_bytes;
    if limits.memory_bytes > engine_max_bytes {
        let (wanted, max) = (limits.memory_bytes >> 20, engine_max_bytes >> 20);
        return Err(Refusal::Limits(format!(
            "the memory limit is {wanted} MiB, and no function can have more than {max}"
        )));
    }
    let Some(required) = component.0.pre.instance_pre().component().resources_required() else { return Ok(()) };
    let memory_bytes = required.max_initial_memory_size.unwrap_or_default().saturating_mul(WASM_PAGE_BYTES);
    if memory_bytes > limits.memory_bytes as u64 {
        let (needed, limit) = (memory_bytes.div_ceil(1 << 20), limits.memory_bytes >> 20);
        return Err(Refusal::Limits(format!(
            "the component starts with {needed} MiB of memory, and its limit is {limit} MiB: raise the limit, or link it with less"
        )));
    }
    let elements = required.max_initial_table_size.unwrap_or_default();
    if elements > limits.table_elements as u64 {
        let limit = limits.table_elements;
        return Err(Refusal::Limits(format!(
            "the component starts with a table of {elements} elements, and its limit is {limit}: raise the limit"
        )));
    }
    Ok(())
}
