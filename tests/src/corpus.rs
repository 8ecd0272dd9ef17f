//! Components that must be refused, each with what must be said about it.

use std::fs;

use crate::process::root;

mod bombs;
mod generated;
mod specification;

pub use bombs::bombs;
pub use generated::generated;
pub use specification::{specification, with_a_good_module};

/// The least that is a handler. What is changed in it, or added to it, is all that is wrong.
const HANDLER: &str = include_str!("../fixtures/handler.wat");
/// A good component is cut short at every multiple of this.
const CUT_BYTES: usize = 64;

/// Something that is no handler.
#[derive(Clone, Debug)]
pub struct Bad {
    /// What it is, for whoever reads that it was accepted.
    pub name: String,
    /// What is uploaded.
    pub bytes: Vec<u8>,
    /// A part of the reason that must be given; empty if any reason will do.
    pub says: &'static str,
}

impl Bad {
    fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, says: &'static str) -> Self {
        Self { name: name.into(), bytes: bytes.into(), says }
    }
}

/// The good component that others are made from.
///
/// # Panics
/// If the fixture is not sound.
#[must_use]
pub fn handler() -> Vec<u8> {
    component(HANDLER)
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"))
}

/// The handler with one thing changed.
fn changed(from: &str, to: &str) -> Vec<u8> {
    assert!(HANDLER.contains(from), "`{from}` is not in the fixture");
    component(&HANDLER.replace(from, to))
}

/// The handler with one thing more.
fn with(item: &str) -> Vec<u8> {
    changed("(component\n", &format!("(component {item}\n"))
}

/// What is made by hand: everything that can be wrong, once.
#[must_use]
pub fn made() -> Vec<Bad> {
    [no_components(), other_worlds(), other_shapes(), imports(), features(), too_much()].concat()
}

fn no_components() -> Vec<Bad> {
    let text = "this is text, not a component";
    let other = "this is not WebAssembly";
    let invalid = "the component is not valid";
    let is_component = |version: &[u8]| [b"\0asm", version].concat();
    let compiled = wasmtime::Engine::default().precompile_component(&handler()).expect("it compiles");
    let utf_16: Vec<u8> = HANDLER.encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        Bad::new("nothing", "", "the component is empty"),
        Bad::new("text of WebAssembly", HANDLER, text),
        Bad::new("source code", "fn main() { println!(\"ä\"); }", text),
        Bad::new("a web page", "<!DOCTYPE html><title>404</title>", text),
        Bad::new("a line's end", "\r\n", text),
        Bad::new("text of another encoding", utf_16, other),
        Bad::new("a program", &b"\x7fELF\x02\x01\x01\0"[..], other),
        Bad::new("an archive", &b"\x1f\x8b\x08\0\0\0\0\0"[..], other),
        Bad::new("zeros", [0; 4096], other),
        Bad::new("a component behind a zero", [&[0], &handler()[..]].concat(), other),
        Bad::new("compiled code", compiled, other),
        Bad::new("a core module", component("(module)"), "this is a core module"),
        Bad::new(
            "a core module of that name",
            component("(module (func (export \"handle\")))"),
            "this is a core module",
        ),
        Bad::new("three bytes", &b"\0as"[..], invalid),
        Bad::new("no version", is_component(b""), invalid),
        Bad::new("an older version of the format", is_component(&[0x0a, 0, 1, 0]), invalid),
        Bad::new("a newer version of the format", is_component(&[0x0e, 0, 1, 0]), invalid),
        Bad::new("an unknown layer", is_component(&[0x0d, 0, 2, 0]), invalid),
        Bad::new("something behind it", [&handler()[..], b"\xff"].concat(), invalid),
        Bad::new("two of them", [handler(), handler()].concat(), invalid),
        Bad::new("an unknown section", [&handler()[..], &[99, 0]].concat(), invalid),
        Bad::new("a section without an end", [&handler()[..], &[1, 0x80, 0x80, 0x80, 0x80, 0x80]].concat(), invalid),
    ]
}

fn other_worlds() -> Vec<Bad> {
    let export = |name: &str| component(&format!("(component (instance $i) (export \"{name}\" (instance $i)))"));
    let newer = "this runtime has `millrace:function@0.1.0`";
    vec![
        Bad::new("no exports", component("(component)"), "only nothing"),
        Bad::new("a component within another", component(&format!("(component {HANDLER})")), "only nothing"),
        Bad::new("a command", export("wasi:cli/run@0.2.0"), "only `wasi:cli/run@0.2.0`"),
        Bad::new("a web server", export("wasi:http/incoming-handler@0.2.3"), "only `wasi:http/incoming-handler@0.2.3`"),
        Bad::new(
            "another's handler",
            changed("function/handler", "functions/handler"),
            "only `millrace:functions/handler@0.1.0`",
        ),
        Bad::new("a handler without a version", changed("handler@0.1.0", "handler"), newer),
        Bad::new("a newer handler", changed("handler@0.1.0", "handler@0.2.0"), newer),
        Bad::new("a handler long after", changed("handler@0.1.0", "handler@1.0.0"), newer),
        Bad::new("a handler before its release", changed("handler@0.1.0", "handler@0.1.0-rc.1"), newer),
        Bad::new("newer types", changed("types@0.1.0", "types@0.2.0"), newer),
        Bad::new("another's types", changed("function/types", "functions/types"), "which does not exist here"),
    ]
}

fn other_shapes() -> Vec<Bad> {
    let says = "does not fit the interfaces of this runtime";
    vec![
        Bad::new("a handler with nothing in it", changed("(export \"handle\" (func $handle))", ""), says),
        Bad::new(
            "another function",
            changed("(export \"handle\" (func $handle))", "(export \"run\" (func $handle))"),
            says,
        ),
        Bad::new("an attribute of another type", changed("\"subject\" (option string)", "\"subject\" string"), says),
        Bad::new("an attribute too few", changed("(field \"dataschema\" (option string))", ""), says),
        Bad::new(
            "attributes in another order",
            changed(
                "(field \"id\" string)\n      (field \"source\" string)",
                "(field \"source\" string)\n      (field \"id\" string)",
            ),
            says,
        ),
        Bad::new("a failure of another kind", changed("(case \"invalid\" string)", "(case \"odd\" string)"), says),
        Bad::new(
            "an emitter of another shape",
            with(
                "(import \"millrace:function/emitter@0.1.0\" (instance (export \"emit\" (func (param \"topic\" string)))))",
            ),
            says,
        ),
        Bad::new(
            "a function that WASI lacks",
            with("(import \"wasi:cli/exit@0.2.0\" (instance (export \"leave\" (func))))"),
            says,
        ),
        Bad::new(
            "an interface that WASI lacks",
            with("(import \"wasi:cli/teleport@0.2.0\" (instance (export \"go\" (func))))"),
            says,
        ),
    ]
}

/// What is not there, each with the beginning of what to do instead.
fn imports() -> Vec<Bad> {
    let import = |name: &str| with(&format!("(import \"{name}\" (instance))"));
    [
        ("wasi:http/outgoing-handler@0.2.3", "outbound HTTP is not available in this version"),
        ("wasi:http/types@0.2.0", "outbound HTTP is not available in this version"),
        ("wasi:keyvalue/atomics@0.2.0-draft", "there are no `atomics` and no"),
        ("wasi:keyvalue/store@0.2.0-draft2", "use `wasi:keyvalue/store@0.2.0-draft`"),
        ("wasi:blobstore/blobstore@0.2.0-draft", "remove what needs the import"),
        ("wasi:nn/graph@0.2.0-rc-2024-10-28", "remove what needs the import"),
        ("wasi:cli/environment@0.3.0", "build for wasm32-wasip2"),
        ("wasi:cli/environment@0.1.0", "remove what needs the import"),
        ("wasi:cli/environment", "remove what needs the import"),
        ("wasi:config/store@0.2.0-draft", "use `wasi:config/store@0.2.0-rc.1`"),
        ("wasi:logging/logging@0.2.0", "use `wasi:logging/logging@0.1.0-draft`"),
        ("millrace:function/clock@0.1.0", "remove the dependency"),
        ("acme:payments/api", "compose the component"),
        ("env", "compose the component"),
    ]
    .map(|(name, says)| Bad::new(format!("an import of {name}"), import(name), says))
    .to_vec()
}

/// What WebAssembly has and no handler needs.
fn features() -> Vec<Bad> {
    let says = "the component is not valid";
    [
        ("memory of 64 bits", "(memory i64 1)"),
        ("tables of 64 bits", "(table i64 1 funcref)"),
        ("two memories", "(memory 1) (memory 1)"),
        ("pages of one byte", "(memory 1 (pagesize 1))"),
        ("wide arithmetic", "(func (param i64 i64 i64 i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))"),
        ("continuations", "(type $f (func)) (type $c (cont $f))"),
    ]
    .map(|(name, item)| Bad::new(name, with(&format!("(core module {item})")), says))
    .to_vec()
}

/// What is good, and more than an instance can have.
fn too_much() -> Vec<Bad> {
    let says = "no instance can have what the component starts with";
    let instances = |count: usize| "(core instance (instantiate $more))".repeat(count);
    [
        ("core instances", "", 64),
        ("memories", "(memory 0)", 8),
        ("tables", "(table 0 funcref)", 33),
        ("memory", "(memory 65536)", 1),
        ("table space", "(table 1000000 funcref)", 1),
    ]
    .map(|(name, item, count)| {
        let more = format!("(core module $more {item}) {}", instances(count));
        Bad::new(format!("too much of {name}"), with(&more), says)
    })
    .to_vec()
}

/// Good components cut short: the handler, and one as the SDK makes it.
///
/// # Panics
/// If the guests are not built.
#[must_use]
pub fn cut_short() -> Vec<Bad> {
    let file = root().join("target/wasm32-wasip2/guest/hello.wasm");
    let hello = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}; run `make guests`", file.display()));
    let cut = |name: &str, whole: &[u8]| -> Vec<Bad> {
        let ends = (CUT_BYTES..whole.len()).step_by(CUT_BYTES);
        ends.map(|end| Bad::new(format!("{name} up to byte {end} of {}", whole.len()), &whole[..end], "")).collect()
    };
    [cut("the handler", &handler()), cut("hello.wasm", &hello)].concat()
}
