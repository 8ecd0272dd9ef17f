//! Bounds on what one invocation may use, and their keeper for memory and tables.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// One kibibyte.
const KIB: usize = 1024;
/// One mebibyte.
const MIB: usize = 1024 * KIB;

/// Extension attributes of one emitted event.
pub(super) const EXTENSIONS_MAX: usize = 100;
/// Longest name of an extension attribute.
pub(super) const EXTENSION_NAME_MAX_BYTES: usize = 64;
/// Longest value of any attribute of an emitted event.
pub(super) const ATTRIBUTE_MAX_BYTES: usize = 16 * KIB;
/// Longest ordering key of an emitted event.
pub(super) const KEY_MAX_BYTES: usize = 4 * KIB;
/// Messages that one invocation logs; what follows is left out.
pub(super) const LOG_MAX_LINES: usize = 1000;
/// Host resources, such as timers and streams, that one instance holds at a time.
pub(super) const RESOURCES_MAX: usize = 1000;
/// Handles, to its own or the host's resources, that one instance holds at a time.
pub(super) const HANDLES_MAX: usize = 10_000;
/// Random bytes that a guest may ask for in one call.
pub(super) const RANDOM_MAX_BYTES: u64 = MIB as u64;
/// Elements of each table of an instance, whatever the limit of all together.
pub(super) const TABLE_MAX_ELEMENTS: usize = 100_000;
/// Tables of one instance together.
pub(super) const TABLES_MAX: usize = 32;
/// Linear memories of one instance together.
pub(super) const MEMORIES_MAX: usize = 8;
/// Core instances that one instance may be made of.
pub(super) const CORE_INSTANCES_MAX: usize = 64;
/// What a host call may carry besides one payload as large as the guest's memory.
const HOST_CALL_EXTRA_BYTES: usize = 64 * KIB;

/// What one invocation may use. The defaults are those of a manifest that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// Time from call to return, the making of an instance included.
    pub time: Duration,
    /// All linear memories of an instance together, in bytes.
    pub memory_bytes: usize,
    /// Elements of all tables of an instance together.
    pub table_elements: usize,
    /// Events emitted in one invocation.
    pub emitted_events: usize,
    /// Bytes emitted in one invocation: keys, data, and the names and values of all attributes that the guest sets.
    pub emitted_bytes: usize,
    /// Bytes of one emitted event as a log counts them: key, value and headers of the record, with all that the runtime fills in.
    pub event_bytes: usize,
    /// Bytes logged in one invocation. What follows is cut, and a last line says so.
    pub log_bytes: usize,
}

impl Default for GuestLimits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(5),
            memory_bytes: 64 * MIB,
            table_elements: TABLE_MAX_ELEMENTS,
            emitted_events: 100,
            emitted_bytes: 4 * MIB,
            event_bytes: MIB,
            log_bytes: 64 * KIB,
        }
    }
}

impl GuestLimits {
    /// Bytes that one host call may take out of the guest. A payload cannot be larger than the guest's memory, so one
    /// that is larger than its own bound still reaches the typed error of that bound; only lists whose elements overlap
    /// get here, and trap.
    pub(super) const fn host_call_bytes(&self) -> usize {
        self.memory_bytes.saturating_add(HOST_CALL_EXTRA_BYTES)
    }
}

/// Counts an instance's memories and tables, and refuses growth beyond the limits.
#[derive(Debug)]
pub(super) struct Limiter {
    memory: Gauge,
    table: Gauge,
    refused: Option<Refused>,
}

/// The sum of all sizes of one kind. It never shrinks, because nothing in a guest can shrink; growth that the system
/// refuses after we allowed it stays counted, for the guest must not be able to lower the sum.
#[derive(Debug)]
struct Gauge {
    used: usize,
    max: usize,
}

/// What a guest wanted more of than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Linear memory; this is the limit in bytes.
    Memory(usize),
    /// Table elements; this is the limit.
    Table(usize),
}

impl Limiter {
    pub(super) const fn new(limits: &GuestLimits) -> Self {
        Self {
            memory: Gauge { used: 0, max: limits.memory_bytes },
            table: Gauge { used: 0, max: limits.table_elements },
            refused: None,
        }
    }

    /// All linear memories together.
    pub(super) const fn memory_bytes(&self) -> usize {
        self.memory.used
    }

    /// What was refused since the last call. A guest sees an allocation that fails, and most then trap with a message
    /// that does not say why.
    pub(super) const fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }
}

impl Gauge {
    /// Counts growth, or answers with the bound that forbids it: the limit, or the `maximum` that the component declares.
    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<(), usize> {
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            return Err(maximum);
        }
        let used = self.used.saturating_add(desired.saturating_sub(current));
        if used > self.max {
            return Err(self.max);
        }
        self.used = used;
        Ok(())
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grown = self.memory.grow(current, desired, maximum);
        self.refused = grown.err().map(Refused::Memory).or(self.refused);
        Ok(grown.is_ok())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grown = self.table.grow(current, desired, maximum);
        self.refused = grown.err().map(Refused::Table).or(self.refused);
        Ok(grown.is_ok())
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}
