//! What a guest can call: the one place where anything but the event, its delivery and the configuration enters a guest.
//! Clocks and randomness come through [`wasi_context`], everything else is decided here.

use std::sync::Arc;
use std::time::Instant;

use millrace_core::state::Writes;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Resource, ResourceType, WasmList, WasmStr};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use super::bindings::Delivery;
use super::bindings::millrace::function::emitter::EmitError;
use super::bindings::wasi::config::store::Error as ConfigError;
use super::bindings::wasi::logging::logging::Level;
use super::emission::{Cause, Draft, Emitted, Outbox};
use super::keyvalue;
use super::limits::{EXTENSIONS_MAX, GuestLimits, Limiter, RANDOM_MAX_BYTES, RESOURCES_MAX};
use super::logs::{Logs, Stream};
use super::state::StateBuffer;
use super::{Emission, LogLevel};

/// The package of our own interfaces, with the version that this host has.
pub(super) const PACKAGE: &str = "millrace:function";
/// See [`PACKAGE`].
pub(super) const VERSION: &str = "0.1.0";

/// What belongs to one instance.
pub(super) struct State {
    pub(super) limiter: Limiter,
    pub(super) call: Option<Call>,
    /// When the invocation under way ends, whatever the guest does.
    pub(super) deadline: Instant,
    pub(super) logs: Logs,
    shared: Arc<Shared>,
    table: ResourceTable,
    /// Made at the first use, because many guests never ask for a clock or a stream.
    wasi: Option<WasiCtx>,
}

/// What all instances of one worker share.
pub(super) struct Shared {
    pub(super) limits: GuestLimits,
    pub(super) outbox: Outbox,
    /// Sorted by name.
    pub(super) config: Arc<[(String, String)]>,
}

/// The call under way.
pub(super) struct Call {
    pub(super) cause: Cause,
    pub(super) emitted: Emitted,
    /// What the guest reads and writes of its state, if it may.
    pub(super) state: Option<StateBuffer>,
}

impl Call {
    /// What it did, once it has succeeded.
    pub(super) fn into_effects(self) -> (Vec<Emission>, Writes) {
        (self.emitted.into_events(), self.state.map(StateBuffer::into_writes).unwrap_or_default())
    }
}

impl State {
    pub(super) fn new(shared: Arc<Shared>, deadline: Instant) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Self {
            limiter: Limiter::new(&shared.limits),
            call: None,
            deadline,
            logs: Logs::new(shared.limits.log_bytes),
            shared,
            table,
            wasi: None,
        }
    }

    /// From here on the guest handles an event. What it does before, while it is made, belongs to none.
    pub(super) fn begin(&mut self, call: Call) {
        self.limiter.take_refused();
        self.call = Some(call);
    }

    pub(super) fn call_mut(&mut self) -> wasmtime::Result<&mut Call> {
        self.call.as_mut().ok_or_else(|| wasmtime::format_err!("no event is being handled"))
    }

    fn call(&self) -> wasmtime::Result<&Call> {
        self.call.as_ref().ok_or_else(|| wasmtime::format_err!("no event is being handled"))
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| wasi_context(&self.logs));
        WasiCtxView { ctx, table: &mut self.table }
    }
}

/// Everything that WASI gives a guest: clocks, randomness, and output to the log. There are no files, no arguments, no
/// environment, and no network: standard libraries import these interfaces whether they use them or not, so they are
/// linked, and every use fails.
fn wasi_context(logs: &Logs) -> WasiCtx {
    WasiCtx::builder()
        .stdout(logs.stream(Stream::Stdout))
        .stderr(logs.stream(Stream::Stderr))
        .max_random_size(RANDOM_MAX_BYTES)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .socket_addr_check(|_, _| Box::pin(async { false }))
        .build()
}

/// Links all that exists.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    add_delivery(linker)?;
    add_emitter(linker)?;
    add_logging(linker)?;
    add_config(linker)?;
    keyvalue::add_to_linker(linker)
}

fn add_delivery(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type This = (Resource<Delivery>,);
    let mut types = linker.instance(&format!("{PACKAGE}/types@{VERSION}"))?;
    types.resource("delivery", ResourceType::host::<Delivery>(), |_, _| Ok(()))?;
    types.func_wrap("[method]delivery.topic", |store: StoreContextMut<'_, State>, _: This| {
        Ok((store.data().call()?.cause.delivery.topic.as_str().to_owned(),))
    })?;
    types.func_wrap("[method]delivery.partition", |store: StoreContextMut<'_, State>, _: This| {
        Ok((store.data().call()?.cause.delivery.partition,))
    })?;
    types.func_wrap("[method]delivery.offset", |store: StoreContextMut<'_, State>, _: This| {
        Ok((store.data().call()?.cause.delivery.offset,))
    })?;
    types.func_wrap("[method]delivery.key", |store: StoreContextMut<'_, State>, _: This| {
        Ok((store.data().call()?.cause.delivery.key.as_ref().map(|key| key.to_vec()),))
    })?;
    types.func_wrap("[method]delivery.attempt", |store: StoreContextMut<'_, State>, _: This| {
        Ok((store.data().call()?.cause.delivery.attempt,))
    })?;
    types.func_wrap("[method]delivery.idempotency-key", |store: StoreContextMut<'_, State>, _: This| {
        Ok((String::from(&*store.data().call()?.cause.delivery.idempotency_key),))
    })?;
    types.func_wrap("[method]delivery.remaining", |store: StoreContextMut<'_, State>, _: This| {
        let left = store.data().deadline.saturating_duration_since(Instant::now());
        Ok((u64::try_from(left.as_nanos()).unwrap_or(u64::MAX),))
    })
}

/// An emission as it lies in the guest: nothing is copied before it is known to be small enough.
#[derive(ComponentType, Lift)]
#[component(record)]
struct EmissionInGuest {
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

fn add_emitter(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker
        .instance(&format!("{PACKAGE}/emitter@{VERSION}"))?
        .func_wrap("emit", |store, (topic, emission): (WasmStr, EmissionInGuest)| {
            Ok((emit(store, &topic, &emission)?,))
        })
}

fn emit(
    mut store: StoreContextMut<'_, State>,
    topic: &WasmStr,
    emission: &EmissionInGuest,
) -> wasmtime::Result<Result<String, EmitError>> {
    // One more than there may be, so that too many are noticed without lifting them all.
    let extensions: Vec<(WasmStr, WasmStr)> =
        emission.extensions.iter(&mut store)?.take(EXTENSIONS_MAX + 1).collect::<wasmtime::Result<_>>()?;
    let topic = topic.to_str(&store)?;
    let draft = draft(&store, emission, &extensions)?;
    let state = store.data();
    let call = state.call()?;
    match call.emitted.admit(&topic, &draft, &state.shared.outbox, &call.cause) {
        Ok(admitted) => {
            let id = store.data_mut().call_mut()?.emitted.push(admitted);
            Ok(Ok(id))
        }
        Err(refused) => Ok(Err(refused)),
    }
}

fn draft<'a>(
    guest: &'a StoreContextMut<'_, State>,
    emission: &EmissionInGuest,
    extensions: &[(WasmStr, WasmStr)],
) -> wasmtime::Result<Draft<'a>> {
    let text = |text: &Option<WasmStr>| text.as_ref().map(|text| text.to_str(guest)).transpose();
    let bytes = |bytes: &Option<WasmList<u8>>| bytes.as_ref().map(|bytes| bytes.as_le_slice(guest));
    let pair = |(name, value): &(WasmStr, WasmStr)| Ok((name.to_str(guest)?, value.to_str(guest)?));
    Ok(Draft {
        id: text(&emission.id)?,
        source: text(&emission.source)?,
        ty: emission.ty.to_str(guest)?,
        subject: text(&emission.subject)?,
        time: emission.time,
        datacontenttype: text(&emission.datacontenttype)?,
        dataschema: text(&emission.dataschema)?,
        extensions: extensions.iter().map(pair).collect::<wasmtime::Result<_>>()?,
        data: bytes(&emission.data),
        key: bytes(&emission.key),
    })
}

fn add_logging(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("wasi:logging/logging@0.1.0-draft")?.func_wrap(
        "log",
        |store: StoreContextMut<'_, State>, (level, context, message): (Level, WasmStr, WasmStr)| {
            let (context, message) = (context.to_str(&store)?, message.to_str(&store)?);
            store.data().logs.push(level.into(), &context, &message);
            Ok(())
        },
    )
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
            Level::Critical => Self::Critical,
        }
    }
}

/// Bound here and not with wasmtime's crate, which lists a hash map in its order: the same event would not give the same
/// result twice.
fn add_config(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Pairs = Vec<(String, String)>;
    let mut store = linker.instance("wasi:config/store@0.2.0-rc.1")?;
    store.func_wrap("get", |store: StoreContextMut<'_, State>, (key,): (WasmStr,)| {
        let (key, config) = (key.to_str(&store)?, &store.data().shared.config);
        let found = config.binary_search_by(|(name, _)| name.as_str().cmp(&*key)).ok();
        Ok((Ok::<Option<String>, ConfigError>(found.map(|at| config[at].1.clone())),))
    })?;
    store.func_wrap("get-all", |store: StoreContextMut<'_, State>, (): ()| {
        Ok((Ok::<Pairs, ConfigError>(store.data().shared.config.to_vec()),))
    })
}
