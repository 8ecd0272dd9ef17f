//! The limit of the sandbox: wasmtime alone, doing what one invocation cannot do without.
//!
//! An event goes in, `emit` copies what the guest hands over, and that is all: no limits, no deadline, no identity, no
//! checks, and calls that cannot wait. Settings are the fastest that were found.

use bindings::exports::millrace::function::handler::Event as GuestEvent;
use bindings::millrace::function::emitter::EmitError;
use bindings::wasi::config::store::Error as ConfigError;
use millrace_core::event::Event;
use millrace_core::time::Timestamp;
use wasmtime::component::{Component, ComponentType, Lift, Linker, Resource, ResourceType, WasmList, WasmStr};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, StoreContextMut};

/// What is generated from `wit/`.
#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "function",
        ownership: Borrowing { duplicate_if_necessary: false },
        imports: { default: trappable },
        with: { "millrace:function/types.delivery": super::Delivery },
    });
}

/// Stands for the delivery, of which nobody asks anything.
#[allow(unreachable_pub, reason = "what is generated must be able to name it")]
pub struct Delivery;

/// What a guest emitted, copied out of its memory.
pub(crate) struct Emitted {
    pub(crate) ty: String,
    pub(crate) data: Vec<u8>,
}

/// A component ready to be instantiated.
pub(crate) struct Bare {
    engine: Engine,
    component: bindings::FunctionPre<Vec<Emitted>>,
}

/// An instance.
pub(crate) struct Instance {
    store: Store<Vec<Emitted>>,
    exports: bindings::Function,
}

impl Bare {
    pub(crate) fn new(component: &[u8]) -> Self {
        let engine = Engine::new(&config()).expect("an engine with these settings");
        let component = Component::new(&engine, component).expect("the component compiles");
        let mut linker = Linker::new(&engine);
        add_to_linker(&mut linker).expect("the host's functions link");
        linker.define_unknown_imports_as_traps(&component).expect("whatever else it imports is not called");
        let pre = linker.instantiate_pre(&component).and_then(bindings::FunctionPre::new);
        Self { engine, component: pre.expect("the component exports a handler") }
    }

    pub(crate) fn instance(&self) -> Instance {
        let mut store = Store::new(&self.engine, Vec::new());
        let exports = self.component.instantiate(&mut store).expect("an instance");
        Instance { store, exports }
    }
}

impl Instance {
    /// Hands an event over; what it emits is added to the others.
    pub(crate) fn handle(&mut self, event: &Event) {
        let mut extensions = [("", ""); 8];
        let pairs = event.extensions.iter().map(|(name, value)| (&**name, &**value));
        extensions.iter_mut().zip(pairs).for_each(|(to, from)| *to = from);
        let event = GuestEvent {
            id: &event.id,
            source: &event.source,
            type_: &event.ty,
            subject: event.subject.as_deref(),
            time: event.time.map(Timestamp::as_nanos),
            datacontenttype: event.datacontenttype.as_deref(),
            dataschema: event.dataschema.as_deref(),
            extensions: &extensions[..event.extensions.len()],
            data: event.data.as_deref(),
        };
        let handler = self.exports.millrace_function_handler();
        let returned = handler.call_handle(&mut self.store, event, Resource::new_borrow(0));
        returned.expect("the call ends").expect("the handler succeeds");
    }

    /// Takes what was emitted.
    pub(crate) fn take(&mut self) -> Vec<Emitted> {
        std::mem::take(self.store.data_mut())
    }
}

fn config() -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(64).total_memories(64).total_tables(256).total_core_instances(512);
    pool.table_elements(100_000).max_memory_size(1 << 30);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes).linear_memory_keep_resident(8 << 20).table_keep_resident(64 << 10);
    }
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).concurrency_support(false);
    config
}

/// An emission, lifted no further than it is used.
#[expect(dead_code, reason = "a component's type names all fields")]
#[derive(ComponentType, Lift)]
#[component(record)]
struct Emission {
    id: Option<WasmStr>,
    source: Option<WasmStr>,
    #[component(name = "type")]
    ty: WasmStr,
    subject: Option<WasmStr>,
    time: Option<u64>,
    datacontenttype: Option<WasmStr>,
    dataschema: Option<WasmStr>,
    extensions: WasmList<(WasmStr, WasmStr)>,
    data: Option<WasmList<u8>>,
    key: Option<WasmList<u8>>,
}

fn add_to_linker(linker: &mut Linker<Vec<Emitted>>) -> wasmtime::Result<()> {
    type Store<'a> = StoreContextMut<'a, Vec<Emitted>>;
    linker.instance("millrace:function/types@0.1.0")?.resource(
        "delivery",
        ResourceType::host::<Delivery>(),
        |_, _| Ok(()),
    )?;
    linker
        .instance("wasi:config/store@0.2.0-rc.1")?
        .func_wrap("get", |_: Store<'_>, (_,): (WasmStr,)| Ok((Ok::<Option<String>, ConfigError>(None),)))?;
    linker.instance("millrace:function/emitter@0.1.0")?.func_wrap(
        "emit",
        |mut store: Store<'_>, (_topic, emission): (WasmStr, Emission)| {
            let ty = emission.ty.to_str(&store)?.into_owned();
            let data = emission.data.as_ref().map(|data| data.as_le_slice(&store).to_vec()).unwrap_or_default();
            store.data_mut().push(Emitted { ty, data });
            Ok((Ok::<String, EmitError>("0123456789abcdef0123456789abcdef".to_owned()),))
        },
    )
}
