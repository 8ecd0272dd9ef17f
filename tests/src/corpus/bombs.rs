//! Components that are small to send, and meant to take time or memory without end to look at or to compile.

use super::{Bad, component};

/// How a component begins.
pub(super) const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

const I32: u8 = 0x7f;
const END: u8 = 0x0b;

/// A core module as a section of a component.
pub(super) fn core_module(module: &[u8]) -> Vec<u8> {
    section(1, module)
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &number(content.len()), content].concat()
}

/// In LEB128.
fn number(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

/// The same thing many times, with their number before.
fn vector(count: usize, item: &[u8]) -> Vec<u8> {
    [number(count), item.repeat(count)].concat()
}

fn wrapped(sections: &[Vec<u8>]) -> Vec<u8> {
    [COMPONENT, &core_module(&[MODULE, &sections.concat()].concat())].concat()
}

/// As many functions with this body, which have one parameter.
fn functions(count: usize, locals: &[u8], body: &[u8]) -> Vec<u8> {
    let body = [locals, body, &[END]].concat();
    let types = section(1, &[1, 0x60, 1, I32, 0]);
    wrapped(&[
        types,
        section(3, &vector(count, &[0])),
        section(10, &vector(count, &[number(body.len()), body].concat())),
    ])
}

/// Components, each within the next one.
fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(COMPONENT.to_vec(), |inner, _| [COMPONENT, &section(4, &inner)].concat())
}

/// A type made of twice the type before it, and so on.
fn doubling(times: usize) -> Vec<u8> {
    let types: Vec<String> = (1..=times).map(|n| format!("(type $t{n} (tuple $t{0} $t{0}))", n - 1)).collect();
    component(&format!(
        "(component (type $t0 (tuple u8 u8)) {} (import \"f\" (func (param \"p\" $t{times}))))",
        types.concat()
    ))
}

/// All of them.
#[must_use]
pub fn bombs() -> Vec<Bad> {
    let (none, seven_times): (&[u8], &[u8]) = (&[0], &[0x20, 0, 0x41, 7, 0x6c, 0x21, 0]);
    let compiled = "exports no `millrace:function/handler";
    let invalid = "the component is not valid";
    let blocks = |depth: usize| [[0x02, 0x40].repeat(depth), vec![END; depth]].concat();
    // A jump table, and one place to go to for each of its entries.
    let table = |size: usize| [&[0x20, 0, 0x0e][..], &vector(size, &[0]), &[0]].concat();
    vec![
        // As large as one can be.
        Bad::new("one huge function", functions(1, none, &seven_times.repeat(1_090_000)), "2048 MiB of memory"),
        Bad::new("a large function", functions(1, none, &seven_times.repeat(100_000)), compiled),
        // As many as a module can have.
        Bad::new("a million functions", functions(1_000_000, none, &[]), "compiling the component takes more than"),
        Bad::new("very many functions", functions(50_000, none, &[]), compiled),
        Bad::new("more functions than a module can have", functions(1_000_001, none, &[]), invalid),
        Bad::new("a function larger than one can be", functions(1, none, &[1].repeat(8_000_000)), invalid),
        Bad::new("blocks within blocks", functions(1, none, &blocks(30_000)), compiled),
        Bad::new(
            "functions of many variables",
            functions(20, &[&[1][..], &number(49_999), &[0x7b]].concat(), &[]),
            compiled,
        ),
        Bad::new(
            "a function of too many variables",
            functions(1, &[&[1][..], &number(50_000), &[I32]].concat(), &[]),
            invalid,
        ),
        Bad::new("jump tables", functions(5, none, &table(65_000)), compiled),
        Bad::new("components within components", nested(90), compiled),
        Bad::new("components within too many", nested(10_000), "takes more than 2048 MiB of memory"),
        Bad::new("a type that doubles", doubling(60), invalid),
        Bad::new(
            "a memory with something at both ends",
            component(
                "(component (core module (memory 65536) (data (i32.const 0) \"a\") (data (i32.const -1) \"b\")))",
            ),
            "",
        ),
        Bad::new(
            "a name that is long",
            component(&format!("(component (import \"{}\" (func)))", "a".repeat(90_000))),
            "does not exist here",
        ),
    ]
}
