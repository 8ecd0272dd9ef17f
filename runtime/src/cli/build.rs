//! `millrace build`: runs the build commands of a manifest.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use millrace_core::manifest::Function;
use serde::Serialize;
use tokio::process::Command;

use super::Context;
use super::application::{Application, Severity};
use super::error::{Error, Exit};
use super::format::{self, Cell, Side, Table};
use super::output::Style;
use crate::config::TOKEN_VARIABLES;

const EXAMPLES: &str = "\
Examples:
  millrace build                   the application in this directory
  millrace build shop pay ship     two of its functions";

/// What guests are compiled for.
const GUEST_TARGET: &str = "wasm32-wasip2";

/// What Cargo gives to the compiler for that target, such as where its standard library is if rustup did not install it.
const GUEST_FLAGS: &str = "CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS";

/// Arguments of `millrace build`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The application's directory, or its manifest
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Only these functions
    #[arg(value_name = "FUNCTION")]
    functions: Vec<String>,
}

/// One command with all that comes out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Build {
    /// The shell's command.
    pub(crate) command: String,
    /// Where it runs.
    pub(crate) directory: PathBuf,
    /// What it makes.
    pub(crate) outputs: Vec<Output>,
}

/// A component that a command makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// The function's name within its application.
    pub(crate) function: String,
    /// The component's file.
    pub(crate) file: PathBuf,
}

/// A component that a command made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Built {
    /// The function's name within its application.
    pub(crate) function: String,
    /// The component's file.
    pub(crate) component: PathBuf,
    /// Its size in bytes.
    pub(crate) size_bytes: u64,
}

/// Why a build made no component.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The shell could not be started, or its output could not be read.
    Start {
        /// The command.
        command: String,
        /// Why not.
        error: io::Error,
    },
    /// The command said no.
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What to do about it, if that is known.
        fix: Option<String>,
    },
    /// It went well, and the component is not there.
    Missing {
        /// The command.
        command: String,
        /// Whose component.
        function: String,
        /// Where it should be.
        file: PathBuf,
        /// Why it cannot be looked at.
        error: io::Error,
    },
}

impl Failed {
    /// What to do about it.
    pub(crate) fn fix(&self) -> String {
        match self {
            Self::Start { .. } => "a POSIX shell `sh` must be on the path".to_owned(),
            Self::Command { fix, .. } => fix.clone().unwrap_or_else(|| "its own output above says why".to_owned()),
            Self::Missing { function, .. } => {
                format!("let `component` of functions.{function} name the file that its `build` makes")
            }
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { command, error } => write!(f, "`{command}` could not be run: {error}"),
            Self::Command { command, status, .. } => write!(f, "`{command}` failed with {status}"),
            Self::Missing { command, function, file, error } => {
                write!(f, "`{command}` made no component for {function}: {}: {error}", file.display())
            }
        }
    }
}

impl std::error::Error for Failed {}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self::failed(&failed, failed.fix())
    }
}

/// The commands that build these functions, or all that have one: each command once, in the order of the manifest.
///
/// # Errors
/// If there is no such function, or it has no build command.
pub(crate) fn plan(application: &Application, only: &[String]) -> Result<Vec<Build>, Error> {
    let mut builds: Vec<Build> = Vec::new();
    for function in chosen(application, only)? {
        let Some(command) = &function.build else {
            if only.is_empty() {
                continue;
            }
            let name = function.name.function();
            return Err(Error::failed(
                format_args!("{name} has no build command"),
                format_args!("add build = \"…\" to functions.{name}, or leave it out here"),
            ));
        };
        let output = Output { function: function.name.function().to_owned(), file: application.component(function) };
        match builds.iter_mut().find(|build| build.command == *command) {
            Some(build) => build.outputs.push(output),
            None => builds.push(Build {
                command: command.clone(),
                directory: application.source.directory.clone(),
                outputs: vec![output],
            }),
        }
    }
    Ok(builds)
}

fn chosen<'a>(application: &'a Application, only: &[String]) -> Result<Vec<&'a Function>, Error> {
    let manifest = &application.manifest;
    if only.is_empty() {
        return Ok(manifest.functions.iter().collect());
    }
    let find = |name: &String| {
        let short = name.strip_prefix(&format!("{}.", manifest.application)).unwrap_or(name);
        manifest.function(short).ok_or_else(|| {
            let known: Vec<&str> = manifest.functions.iter().map(|f| f.name.function()).collect();
            let shown = format::one_line(name, 130);
            Error::failed(
                format_args!("{} has no function `{shown}`", application.source.file.display()),
                format_args!("choose from {}", known.join(", ")),
            )
        })
    };
    only.iter().map(find).collect()
}

/// Runs one build to its end. Its own output goes to our standard error as it comes, with all colours. If the future is
/// dropped, the command is killed.
///
/// # Errors
/// If the command fails, or its component is not there afterwards.
pub(crate) async fn run_one(build: &Build) -> Result<Vec<Built>, Failed> {
    let command = || build.command.clone();
    let start = |error| Failed::Start { command: command(), error };
    let status = execute(build).await.map_err(start)?;
    if !status.success() {
        let fix = if build.command.contains(GUEST_TARGET) { missing_target(&build.directory).await } else { None };
        return Err(Failed::Command { command: command(), status, fix });
    }
    let built = |output: &Output| {
        let missing = |error| Failed::Missing {
            command: command(),
            function: output.function.clone(),
            file: output.file.clone(),
            error,
        };
        let size_bytes = std::fs::metadata(&output.file).map_err(missing)?.len();
        Ok(Built { function: output.function.clone(), component: output.file.clone(), size_bytes })
    };
    build.outputs.iter().map(built).collect()
}

async fn execute(build: &Build) -> io::Result<ExitStatus> {
    shell(build).spawn()?.wait().await
}

fn shell(build: &Build) -> Command {
    let mut command = without_tokens("sh");
    command.arg("-c").arg(&build.command).current_dir(&build.directory).stdin(Stdio::null()).kill_on_drop(true);
    // Our own standard output is for results.
    command.stdout(io::stderr()).stderr(Stdio::inherit());
    command
}

/// A command that is not handed the tokens in our environment: a build runs what others wrote.
pub(crate) fn without_tokens(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in TOKEN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// What to do if Rust's standard library for guests is missing for a project in this directory.
pub(crate) async fn missing_target(directory: &Path) -> Option<String> {
    missing_target_with(&std::env::var(GUEST_FLAGS).unwrap_or_default(), directory).await
}

async fn missing_target_with(flags: &str, directory: &Path) -> Option<String> {
    let mut rustc = without_tokens("rustc");
    rustc.args(["--print", "target-libdir", "--target", GUEST_TARGET]).args(flags.split_whitespace());
    rustc.current_dir(directory).kill_on_drop(true);
    match rustc.output().await {
        Err(_) => Some("Rust is not installed, or not on the path: see https://rustup.rs".to_owned()),
        Ok(output) if output.status.success() => {
            let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            let fix = format!(
                "Rust's standard library for {GUEST_TARGET} is missing: run `rustup target add {GUEST_TARGET}`"
            );
            (!has_std(&libraries)).then_some(fix)
        }
        Ok(_) => None,
    }
}

fn has_std(libraries: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(libraries) else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

/// Builds, and says what came out.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let console = &mut context.console;
    let application = Application::open(&args.directory, console)?;
    if !console.is_json() {
        application.source.show(Severity::Warning, &application.warnings, console)?;
    }
    let builds = plan(&application, &args.functions)?;
    if builds.is_empty() {
        console.note("No function has a build command: there is nothing to build.")?;
    }
    let mut built = Vec::new();
    for build in &builds {
        let names: Vec<&str> = build.outputs.iter().map(|output| output.function.as_str()).collect();
        console.note(format_args!("Building {}: {}", names.join(", "), build.command))?;
        built.extend(run_one(build).await?);
    }
    if console.is_json() {
        console.document(&built)?;
    } else if !built.is_empty() {
        console.table(&table(&built))?;
    }
    Ok(Exit::Done)
}

fn table(built: &[Built]) -> Table {
    let mut table = Table::new(&[("function", Side::Left), ("size", Side::Right), ("component", Side::Left)]);
    for Built { function, component, size_bytes } in built {
        let (size, file) = (format::bytes(*size_bytes), component.display().to_string());
        table.row(vec![Cell::styled(function, Style::Strong), size.into(), file.into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{parsed, run};

    /// An application whose two first functions come out of one command.
    fn application(command: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let manifest = format!(
            "application = \"shop\"\n\
             [functions.pay]\nbuild = '''{command}'''\ncomponent = \"out/pay.wasm\"\ntopics = [\"orders\"]\n\
             [functions.ship]\nbuild = '''{command}'''\ncomponent = \"out/ship.wasm\"\ntopics = [\"orders\"]\n\
             [functions.stock]\ncomponent = \"stock.wasm\"\ntopics = [\"orders\"]\n"
        );
        std::fs::write(directory.path().join("millrace.toml"), manifest).unwrap();
        directory
    }

    #[tokio::test]
    async fn a_command_runs_once_for_all_that_it_makes() {
        let directory = application("mkdir out && printf 1234 > out/pay.wasm && printf 12 > out/ship.wasm");
        let path = directory.path().to_str().unwrap();
        let ran = run(&["build", path]).await;
        let out = ran.done().replace(path, "DIR");
        assert_eq!(
            out,
            "FUNCTION  SIZE  COMPONENT\npay        4 B  DIR/out/pay.wasm\nship       2 B  DIR/out/ship.wasm\n"
        );
    }

    #[tokio::test]
    async fn results_are_answered_in_json() {
        let directory = application("mkdir out; echo noise; touch out/pay.wasm out/ship.wasm");
        let path = directory.path().to_str().unwrap();
        let out = run(&["build", path, "ship", "--json"]).await.done();
        let built: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&built[0]["function"], &built[0]["size_bytes"]), (&"ship".into(), &0.into()));
    }

    #[tokio::test]
    async fn what_fails_is_named_with_its_status_and_the_fix() {
        for (command, words, expected) in [
            ("exit 7", &[][..], "error: `exit 7` failed with exit status: 7\n  fix: its own output above says why\n"),
            (
                "true",
                &[],
                "error: `true` made no component for pay: DIR/out/pay.wasm: No such file or directory (os error 2)\n  \
                fix: let `component` of functions.pay name the file that its `build` makes\n",
            ),
            (
                "true",
                &["stock"],
                "error: stock has no build command\n  fix: add build = \"…\" to functions.stock, or leave it out here\n",
            ),
            (
                "true",
                &["shop.pai"],
                "error: DIR/millrace.toml has no function `shop.pai`\n  fix: choose from pay, ship, stock\n",
            ),
        ] {
            let directory = application(command);
            let path = directory.path().to_str().unwrap();
            let mut line = vec!["build", path];
            line.extend_from_slice(words);
            let err = run(&line).await.refused(Exit::Failed).replace(path, "DIR");
            assert!(err.ends_with(expected), "{err}");
        }
    }

    #[test]
    fn a_standard_library_is_there_or_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_std(&directory.path().join("none")));
        assert!(!has_std(directory.path()));
        std::fs::write(directory.path().join("libstd-0123.rlib"), "").unwrap();
        assert!(has_std(directory.path()));
    }

    #[tokio::test]
    async fn a_standard_library_elsewhere_is_not_missing() {
        let sysroot = tempfile::tempdir().unwrap();
        let flags = format!("-Copt-level=1 --sysroot={}", sysroot.path().display());
        assert!(missing_target_with(&flags, sysroot.path()).await.is_some());
        let libraries = sysroot.path().join("lib/rustlib/wasm32-wasip2/lib");
        std::fs::create_dir_all(&libraries).unwrap();
        std::fs::write(libraries.join("libstd-0123.rlib"), "").unwrap();
        assert_eq!(missing_target_with(&flags, sysroot.path()).await, None);
    }

    #[test]
    fn no_build_has_our_tokens() {
        let command = "env".to_owned();
        let build = Build { directory: PathBuf::from("."), command, outputs: Vec::new() };
        let removed: Vec<_> =
            shell(&build).as_std().get_envs().map(|(name, value)| (name.to_owned(), value.is_none())).collect();
        for variable in ["MILLRACE_TOKEN", "MILLRACE_ADMIN_TOKEN"] {
            assert!(removed.contains(&(variable.into(), true)), "{removed:?}");
        }
    }

    #[test]
    fn the_directory_is_this_one_unless_it_is_said() {
        assert!(parsed(&["build"]).is_ok());
        assert!(parsed(&["build", "shop", "pay"]).is_ok());
    }
}
