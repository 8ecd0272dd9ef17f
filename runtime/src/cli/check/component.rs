//! The one place where the bytes of a component are looked into.

use bytes::Bytes;
use millrace_core::manifest::Function;

use crate::sandbox::{self, Engine, EngineOptions};
use crate::server;

/// Preamble of WebAssembly: magic, then version and layer.
const MAGIC: &[u8] = b"\0asm";
const MODULE: &[u8] = &[0x01, 0, 0, 0];
const COMPONENT: &[u8] = &[0x0d, 0, 0x01, 0];

/// Whether these bytes can be a handler of this function, with what it was granted.
///
/// # Errors
/// What is wrong with them, and what to do about it.
pub(super) async fn inspect(bytes: Bytes, function: &Function) -> Result<(), (String, String)> {
    preamble(&bytes).map_err(|(message, help)| (message.to_owned(), help.to_owned()))?;
    let told = |error: String| (error, "build it against this version of Millrace".to_owned());
    let engine = Engine::new(EngineOptions { max_instances: 1, ..EngineOptions::default() });
    let engine = engine.map_err(|error| told(error.to_string()))?;
    let component = engine.load(bytes).await.map_err(|refusal| told(refusal.to_string()))?;
    let ready = sandbox::Function::new(&engine, &component, server::function_options(function));
    ready.map(drop).map_err(|refusal| (refusal.to_string(), "then check again".to_owned()))
}

fn preamble(bytes: &[u8]) -> Result<(), (&'static str, &'static str)> {
    const BUILD: &str = "build a component, with `--target wasm32-wasip2`";
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        let message = if bytes.is_empty() { "the file is empty" } else { "it is not WebAssembly" };
        return Err((message, BUILD));
    };
    match rest.get(..4) {
        Some(MODULE) => Err(("it is a core module, not a component", BUILD)),
        Some(COMPONENT) => Ok(()),
        Some(_) => Err(("its version of WebAssembly is unknown", BUILD)),
        None => Err(("it is cut short", "build it again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_component_is_told() {
        for (bytes, expected) in [
            (&b""[..], Err("the file is empty")),
            (b"(component)", Err("it is not WebAssembly")),
            (b"\0asm\x0d", Err("it is cut short")),
            (b"\0asm\x01\0\0\0", Err("it is a core module, not a component")),
            (b"\0asm\x02\0\0\0", Err("its version of WebAssembly is unknown")),
            (b"\0asm\x0d\0\x01\0", Ok(())),
        ] {
            assert_eq!(preamble(bytes).map_err(|(message, _)| message), expected);
        }
    }
}
