//! Why bytes cannot be a handler, each with what to do about it.

use super::host::{PACKAGE, VERSION};
use super::keyvalue;

/// How to get a component, at the end of many refusals.
const BUILD: &str = "build the handler for wasm32-wasip2, for example with `millrace build`";

/// Why a component is not accepted. The message names the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are no bytes.
    #[error("the component is empty: {BUILD}")]
    Empty,
    /// There are too many bytes.
    #[error(
        "the component has {size_bytes} bytes, more than the {max_bytes} that are accepted: build it in release mode and strip debug information"
    )]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The text format of WebAssembly, or any other text.
    #[error("this is text, not a component: {BUILD}, and use the `.wasm` file that it makes")]
    Text,
    /// Neither WebAssembly nor text.
    #[error("this is not WebAssembly: {BUILD}, and use the `.wasm` file that it makes")]
    NotWasm,
    /// WebAssembly, but without the component around it.
    #[error(
        "this is a core module, not a component: {BUILD}; wasm32-wasip1 and wasm32-unknown-unknown make core modules"
    )]
    CoreModule,
    /// Cut short, damaged, or in need of a feature of WebAssembly that is off.
    #[error("the component is not valid, it may be cut short or damaged: {0}; build it again and copy it whole")]
    Invalid(String),
    /// It does not export a handler.
    #[error(
        "the component exports no `{PACKAGE}/handler@{VERSION}`, only {exports}: implement the handler, in Rust with `millrace_sdk::handler!`"
    )]
    NoHandler {
        /// What it exports.
        exports: String,
    },
    /// It was built against another version of our interfaces.
    #[error(
        "the component needs `{name}`, and this runtime has `{PACKAGE}@{VERSION}`: build it with the SDK of this version, or update the runtime"
    )]
    WrongVersion {
        /// The interface with its version.
        name: String,
    },
    /// It imports what is not there.
    #[error("the component imports `{import}`, which does not exist here: {fix}")]
    UnknownImport {
        /// The import with its version.
        import: String,
        /// What to do.
        fix: String,
    },
    /// It imports what its function was not granted.
    #[error("the component imports `{import}`, and its function has no such grant: {fix}, or take out what needs it")]
    NotGranted {
        /// The import with its version.
        import: &'static str,
        /// What to write into the manifest.
        fix: &'static str,
    },
    /// An interface is there, and looks different.
    #[error(
        "the component does not fit the interfaces of this runtime: {0}; build it with the `wit` directory of this version"
    )]
    Mismatch(String),
    /// It needs more than its limits allow.
    #[error("{0}")]
    Limits(String),
    /// It cannot be compiled within the bounds of that.
    #[error(
        "compiling the component takes more than {0}: make it smaller, or split what it does over several functions"
    )]
    TooCostly(String),
    /// The compiler does not run at the moment.
    #[error("the compiler cannot be started: {0}")]
    Unavailable(String),
    /// Our compiler failed.
    #[error("the compiler failed, which is a bug in the runtime: {0}")]
    Compiler(String),
}

/// What wasmtime says of a component that starts with more than its pool has for one instance. It tells that from other errors by words alone.
const BEYOND_POOL: [&str; 3] =
    ["which exceeds the configured maximum of ", "which exceeds the limit of ", "exceeds the per-instance limit of "];

/// Texts out of a component are not ours to trust: at most this much of one is repeated.
const QUOTED_MAX_BYTES: usize = 1024;
/// Exports that are listed.
const LISTED_MAX: usize = 5;

/// The beginning of a text that came with a component.
pub(super) fn quoted(text: &str) -> String {
    let quoted = &text[..text.floor_char_boundary(QUOTED_MAX_BYTES)];
    quoted.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What wasmtime said against a component, if that is that no instance can have as much as it starts with.
pub(super) fn beyond_pool(said: &str) -> Option<Refusal> {
    let is_beyond = BEYOND_POOL.iter().any(|words| said.contains(words));
    is_beyond.then(|| {
        Refusal::Limits(format!(
            "no instance can have what the component starts with: {said}; make it of fewer modules, with less memory and smaller tables"
        ))
    })
}

/// What can be told from the first bytes.
pub(super) fn check_bytes(bytes: &[u8], max_bytes: usize) -> Result<(), Refusal> {
    const MAGIC: &[u8] = b"\0asm";
    const CORE: &[u8] = &[1, 0, 0, 0];
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(match bytes {
            [] => Refusal::Empty,
            _ if MAGIC.starts_with(bytes) => Refusal::Invalid("it ends after 3 bytes or less".to_owned()),
            _ if looks_like_text(bytes) => Refusal::Text,
            _ => Refusal::NotWasm,
        });
    };
    if rest.starts_with(CORE) {
        return Err(Refusal::CoreModule);
    }
    if bytes.len() > max_bytes {
        return Err(Refusal::TooLarge { size_bytes: bytes.len(), max_bytes });
    }
    Ok(())
}

fn looks_like_text(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(1024)];
    let whole = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The cut may have gone through a character.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return false,
    };
    !whole.chars().any(|c| c.is_control() && !c.is_whitespace())
}

/// An import or export: `namespace:package/interface@version`.
struct Interface<'a> {
    package: &'a str,
    name: &'a str,
    version: &'a str,
}

impl<'a> Interface<'a> {
    fn parse(text: &'a str) -> Self {
        let (path, version) = text.split_once('@').unwrap_or((text, ""));
        let (package, name) = path.split_once('/').unwrap_or((path, ""));
        Self { package, name, version }
    }

    /// Whether the version is one that ours can stand in for: the same up to the last number.
    fn fits(&self, ours: &str) -> bool {
        let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
        self.version == ours || (minor(self.version) == minor(ours) && !self.version.contains('-'))
    }
}

/// Checks that an import is one that exists, as far as its name tells; the linker checks its functions.
pub(super) fn check_import(import: &str) -> Result<(), Refusal> {
    let unknown = |fix: &str| Err(Refusal::UnknownImport { import: quoted(import), fix: fix.to_owned() });
    let interface = Interface::parse(import);
    match (interface.package, interface.name) {
        _ if import == keyvalue::INTERFACE => Ok(()),
        (PACKAGE, "types" | "emitter") if interface.fits(VERSION) => Ok(()),
        (PACKAGE, "types" | "emitter") => Err(Refusal::WrongVersion { name: quoted(import) }),
        ("wasi:logging", "logging") if interface.version == "0.1.0-draft" => Ok(()),
        ("wasi:config", "store") if interface.version == "0.2.0-rc.1" => Ok(()),
        ("wasi:cli" | "wasi:clocks" | "wasi:filesystem" | "wasi:io" | "wasi:random" | "wasi:sockets", _)
            if interface.fits("0.2.0") =>
        {
            Ok(())
        }
        ("wasi:http", _) => unknown(
            "outbound HTTP is not available in this version; emit an event, and make the call where it is consumed",
        ),
        ("wasi:logging", _) => unknown("use `wasi:logging/logging@0.1.0-draft`"),
        ("wasi:config", _) => unknown("use `wasi:config/store@0.2.0-rc.1`"),
        ("wasi:keyvalue", _) => unknown(
            "use `wasi:keyvalue/store@0.2.0-draft`: all that one invocation does to its state is one step, so there are no `atomics` and no \
             `batch`",
        ),
        (package, _) if package.starts_with("wasi:") && interface.version.starts_with("0.3") => {
            unknown("handlers use WASI 0.2; build for wasm32-wasip2")
        }
        (package, _) if package.starts_with("wasi:") => unknown(
            "there are `wasi:cli`, `clocks`, `filesystem`, `io`, `random` and `sockets` of WASI 0.2, `wasi:logging`, \
             `wasi:config` and `wasi:keyvalue`; remove what needs the import",
        ),
        _ => unknown(
            "a handler can import `millrace:function/emitter`, `wasi:logging`, `wasi:config`, `wasi:keyvalue` and WASI 0.2 without HTTP; \
             remove the dependency, or compose the component with one that exports it",
        ),
    }
}

/// Whether an export is a handler of our version.
pub(super) fn is_handler(export: &str) -> bool {
    let interface = Interface::parse(export);
    (interface.package, interface.name) == (PACKAGE, "handler") && interface.fits(VERSION)
}

/// Checks that there is a handler of our version.
pub(super) fn check_exports<'a>(exports: impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
    let mut others = Vec::new();
    for export in exports {
        let interface = Interface::parse(export);
        match (interface.package, interface.name) {
            _ if is_handler(export) => return Ok(()),
            (PACKAGE, "handler") => return Err(Refusal::WrongVersion { name: quoted(export) }),
            _ if others.len() < LISTED_MAX => others.push(format!("`{}`", quoted(export))),
            _ => {}
        }
    }
    let exports = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
    Err(Refusal::NoHandler { exports })
}
