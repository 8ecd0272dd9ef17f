//! `millrace check`: is a manifest in order, and are its components?

use std::path::{Path, PathBuf};

use bytes::Bytes;
use millrace_core::limits::COMPONENT_MAX_BYTES;
use millrace_core::manifest::{Function, Manifest};
use millrace_core::settings::{self, Problem};
use serde::Serialize;

use super::Context;
use super::application::{Severity, Text};
use super::error::{Error, Exit};
use super::format;
use super::output::{Console, Style};
use crate::server::{self, StageError};

mod component;

const EXAMPLES: &str = "\
Examples:
  millrace check                    the application in this directory
  millrace check shop
  millrace check shop/millrace.toml --json";

/// Arguments of `millrace check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The application's directory, or its manifest
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    path: PathBuf,
}

/// What was found in an application.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    /// The manifest's text.
    pub(crate) source: Text,
    /// The manifest, if it can be used.
    pub(crate) manifest: Option<Manifest>,
    /// What must be mended, in the order of the text.
    pub(crate) errors: Vec<Problem>,
    /// What is probably not meant, in the order of the text.
    pub(crate) warnings: Vec<Problem>,
}

/// Something about one function that does not show in the manifest alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flaw {
    severity: Severity,
    /// The setting that it is about.
    key: Key,
    message: String,
    help: String,
}

/// A setting of a function, by its tables.
type Key = &'static [&'static str];

const COMPONENT: Key = &["component"];

/// Looks at an application: its manifest, and what the manifest names.
///
/// # Errors
/// If the manifest cannot be read.
pub(crate) async fn examine(path: &Path) -> Result<Findings, Error> {
    let source = Text::read(path)?;
    let (manifest, mut warnings) = match Manifest::parse(&source.text) {
        Ok(read) => read,
        Err(errors) => return Ok(Findings { source, manifest: None, errors, warnings: Vec::new() }),
    };
    let mut flaws = Vec::new();
    for function in &manifest.functions {
        let found = look_at(function, &source.directory).await;
        flaws.extend(found.into_iter().map(|flaw| (function.name.function(), flaw)));
    }
    let (errors, more) = placed(&source.text, &flaws);
    warnings.extend(more);
    warnings.sort_by_key(|problem| (problem.line, problem.column));
    Ok(Findings { source, manifest: Some(manifest), errors, warnings })
}

/// What is wrong with one function.
async fn look_at(function: &Function, directory: &Path) -> Vec<Flaw> {
    expression_flaw(function).into_iter().chain(component_flaw(function, directory).await).collect()
}

fn expression_flaw(function: &Function) -> Option<Flaw> {
    let (key, message): (Key, String) = match server::intake(function).err()? {
        StageError::Expression { key: "filter", reason, .. } => (&["filter"], reason),
        error => (&["idempotency", "key"], error.to_string()),
    };
    let help = "see https://cel.dev for the language; the event is the variable `event`".to_owned();
    Some(Flaw { severity: Severity::Error, key, message, help })
}

async fn component_flaw(function: &Function, directory: &Path) -> Option<Flaw> {
    let file = directory.join(&function.component);
    let error = |message: String, help: String| Flaw { severity: Severity::Error, key: COMPONENT, message, help };
    let too_large = |size: u64| {
        let (size, max) = (format::bytes(size), format::bytes(COMPONENT_MAX_BYTES as u64));
        error(format!("the component has {size}, more than {max}"), "build it in release mode, and strip it".into())
    };
    match tokio::fs::metadata(&file).await {
        Ok(metadata) if metadata.len() > COMPONENT_MAX_BYTES as u64 => return Some(too_large(metadata.len())),
        Ok(metadata) if !metadata.is_file() => {
            return Some(error(format!("{} is not a file", file.display()), "name the component's file".into()));
        }
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Some(not_built(function, &file)),
        Err(e) => return Some(error(format!("{}: {e}", file.display()), "check who may read it".into())),
    }
    match tokio::fs::read(&file).await {
        Ok(bytes) => {
            component::inspect(Bytes::from(bytes), function).await.err().map(|(message, help)| error(message, help))
        }
        Err(e) => Some(error(format!("{}: {e}", file.display()), "check who may read it".into())),
    }
}

/// A component that is not there: still to be built, or named wrongly.
fn not_built(function: &Function, file: &Path) -> Flaw {
    let message = format!("there is no component {}", file.display());
    match &function.build {
        Some(_) => Flaw {
            severity: Severity::Warning,
            key: COMPONENT,
            message,
            help: "make it with `millrace build`".to_owned(),
        },
        None => Flaw {
            severity: Severity::Error,
            key: COMPONENT,
            message,
            help: "put it there, or add build = \"…\", the command that makes it".to_owned(),
        },
    }
}

/// Flaws as problems with their places in the text; errors and warnings, each in the order of the text.
fn placed(text: &str, flaws: &[(&str, Flaw)]) -> (Vec<Problem>, Vec<Problem>) {
    let of = |wanted: Severity| {
        let all = settings::parse(text, |top| {
            // What these hold was read before.
            let _known = (top.has("application"), top.has("topics"));
            let mut functions = top.section("functions");
            for (name, flaw) in flaws.iter().filter(|(_, flaw)| flaw.severity == wanted) {
                note(functions.named(name), flaw.key, flaw);
            }
        });
        all.err().unwrap_or_default()
    };
    (of(Severity::Error), of(Severity::Warning))
}

/// Notes a flaw at its key.
fn note(mut section: settings::Section<'_, '_, '_>, key: Key, flaw: &Flaw) {
    match key {
        [table, rest @ ..] if !rest.is_empty() => note(section.section(table), rest, flaw),
        [key, ..] => {
            let place = section.place_of(key);
            section.problems().error(&place, &flaw.message, &flaw.help);
        }
        [] => {}
    }
}

/// A problem as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    path: &'a str,
    line: usize,
    column: usize,
    message: &'a str,
    help: &'a str,
}

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    application: Option<&'a str>,
    functions: Vec<&'a str>,
    errors: Vec<Shown<'a>>,
    warnings: Vec<Shown<'a>>,
}

impl<'a> From<&'a Problem> for Shown<'a> {
    fn from(problem: &'a Problem) -> Self {
        let Problem { path, line, column, message, help } = problem;
        Self { path, line: *line, column: *column, message, help }
    }
}

fn report(findings: &Findings) -> Report<'_> {
    let manifest = findings.manifest.as_ref();
    Report {
        file: &findings.source.file,
        application: manifest.map(|manifest| manifest.application.as_str()),
        functions: manifest.iter().flat_map(|m| m.functions.iter().map(|f| f.name.as_str())).collect(),
        errors: findings.errors.iter().map(Shown::from).collect(),
        warnings: findings.warnings.iter().map(Shown::from).collect(),
    }
}

/// Checks, and shows what was found.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let findings = examine(&args.path).await?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&report(&findings))?;
    } else {
        show(&findings, console)?;
    }
    Ok(if findings.errors.is_empty() { Exit::Done } else { Exit::Failed })
}

fn show(findings: &Findings, console: &mut Console) -> Result<(), Error> {
    findings.source.show(Severity::Error, &findings.errors, console)?;
    findings.source.show(Severity::Warning, &findings.warnings, console)?;
    let (errors, warnings) = (findings.errors.len() as u64, findings.warnings.len() as u64);
    let counts = match (errors, warnings) {
        (0, 0) => String::new(),
        (0, warnings) => format!(", with {}", format::counted(warnings, "warning")),
        (errors, 0) => format::counted(errors, "error"),
        (errors, warnings) => {
            format!("{} and {}", format::counted(errors, "error"), format::counted(warnings, "warning"))
        }
    };
    let file = findings.source.file.display();
    match &findings.manifest {
        Some(manifest) if errors == 0 => {
            let functions = format::counted(manifest.functions.len() as u64, "function");
            let line = console.paint(Style::Good, &format!("{file} is in order: {functions}{counts}"));
            console.line(line)
        }
        Some(_) | None => {
            let line = console.paint(Style::Bad, &format!("{file} has {counts}"));
            console.line(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::run;

    /// The start of an empty component, and of an empty core module.
    pub(super) const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    pub(super) const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";

    /// What `check` says about a manifest beside a file `a.wasm`.
    async fn check(functions: &str, component: &[u8], expected: &[&str], exit: Exit) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::write(directory.path().join("a.wasm"), component).unwrap();
        std::fs::write(directory.path().join("millrace.toml"), format!("application = \"shop\"\n{functions}")).unwrap();
        let ran = run(&["check", path]).await;
        assert_eq!(ran.exit, exit, "{}", ran.out);
        for expected in expected {
            assert!(ran.out.replace(path, "DIR").contains(expected), "{expected}\n{}", ran.out);
        }
    }

    #[tokio::test]
    async fn problems_are_shown_at_their_place() {
        let good = "[functions.pay]\ntopics = [\"orders\"]\n";
        check(
            &format!("{good}component = \"a.wasm\"\ntopcis = 1"),
            EMPTY_COMPONENT,
            &["error: unknown key", "millrace.toml:5:", "did you mean"],
            Exit::Failed,
        )
        .await;
        let missing = format!("{good}component = \"b.wasm\"");
        let expected = [
            "error: there is no component DIR/b.wasm\n --> DIR/millrace.toml:4:13 (functions.pay.component)\n",
            "has 1 error",
        ];
        check(&missing, EMPTY_COMPONENT, &expected, Exit::Failed).await;
        let unbuilt = format!("{missing}\nbuild = \"make\"");
        let expected = [
            "warning: there is no component",
            "help: make it with `millrace build`",
            "is in order: 1 function, with 1 warning",
        ];
        check(&unbuilt, EMPTY_COMPONENT, &expected, Exit::Done).await;
        let state = wat::parse_str(include_str!("../../../tests/fixtures/state.wat")).unwrap();
        let grant = "has no such grant: write `grants = { state = true }` into its table of the manifest";
        let module = format!("{good}component = \"a.wasm\"");
        check(&module, &state, &[grant], Exit::Failed).await;
        check(&format!("{module}\ngrants.state = true"), &state, &[], Exit::Done).await;
        check(&module, EMPTY_MODULE, &["error: it is a core module"], Exit::Failed).await;
        check(&format!("{good}component = \".\""), EMPTY_MODULE, &["is not a file"], Exit::Failed).await;
        // It would be read for ever.
        check(&format!("{good}component = \"/dev/zero\""), EMPTY_MODULE, &["is not a file"], Exit::Failed).await;
    }

    #[tokio::test]
    async fn findings_are_answered_in_json() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("millrace.toml"), "application = 5").unwrap();
        let ran = run(&["check", directory.path().to_str().unwrap(), "--json"]).await;
        assert_eq!(ran.exit, Exit::Failed);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((&report["errors"][0]["line"], &report["application"]), (&1.into(), &serde_json::Value::Null));
    }
}
