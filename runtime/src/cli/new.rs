//! `millrace new`: a project that builds at once, wherever it is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use millrace_core::name;

use super::error::{Error, Exit};
use super::format::shell_word;
use super::output::Style;
use super::{Context, build};

mod files;

use files::{SDK, TEMPLATE};

const EXAMPLES: &str = "\
Examples:
  millrace new shop
  millrace new shop --dir /tmp/shop";

/// Where the project keeps the library that its handlers are written with.
const SDK_DIRECTORY: &str = "vendor/millrace-sdk";
/// Names that cargo does not build, or that would stand for another crate of the project.
const TAKEN: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "log",
    "loop",
    "macro",
    "match",
    "millrace-sdk",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "wit-bindgen",
    "yield",
];

/// Arguments of `millrace new`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Name of the application and of its crate
    name: String,
    /// Where to write it, a directory that is empty or not there [default: NAME in this directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Writes the project, and says how to go on.
pub(super) async fn run(args: &Args, context: &mut Context) -> Result<Exit, Error> {
    let name = &args.name;
    let directory = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let written = write(name, &directory)?;
    let console = &mut context.console;
    if console.is_json() {
        console.document(&serde_json::json!({"name": name, "directory": directory, "files": written}))?;
        return Ok(Exit::Done);
    }
    let shown = shell_word(&directory.display().to_string());
    let title = console.paint(Style::Good, &format!("{name} is in {shown}."));
    console.line(title)?;
    console.line(format_args!("\n  cd {shown}"))?;
    console.line("  cargo test      its tests, natively, in a moment")?;
    console.line("  millrace dev    starts it, and builds it again when you change it")?;
    if let Some(fix) = build::missing_target(&directory).await {
        console.note(format_args!("\nBefore it can be built: {fix}"))?;
    }
    Ok(Exit::Done)
}

/// Writes a project into a directory that is empty or not there; answers with its files.
///
/// # Errors
/// If the name is none for an application and a crate, or the directory is in use or cannot be written.
pub(crate) fn write(name: &str, directory: &Path) -> Result<Vec<PathBuf>, Error> {
    check(name)?;
    refuse_used(directory)?;
    let template = TEMPLATE.iter().map(|(path, text)| (place_of(path), filled(text, name)));
    let sdk = SDK.iter().map(|(path, text)| (Path::new(SDK_DIRECTORY).join(path), (*text).to_owned()));
    let mut written = Vec::with_capacity(TEMPLATE.len() + SDK.len());
    for (path, text) in template.chain(sdk) {
        let file = directory.join(&path);
        let made = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&file, text));
        made.map_err(|e| Error::file(format_args!("{} cannot be written", file.display()), &e))?;
        written.push(path);
    }
    written.sort();
    Ok(written)
}

fn check(name: &str) -> Result<(), Error> {
    name::check_label("an application", name).map_err(|e| Error::usage(e, "choose another name, such as shop"))?;
    if TAKEN.contains(&name) {
        return Err(Error::usage(format_args!("`{name}` cannot name a crate"), "choose another name, such as shop"));
    }
    Ok(())
}

fn refuse_used(directory: &Path) -> Result<(), Error> {
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::failed(
                format_args!("{shown} is not empty"),
                "name a directory that is empty or not there, with --dir",
            )),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::failed(format_args!("{shown} is there and is no directory"), "name another one with --dir"))
        }
        Err(e) => Err(Error::file(format_args!("{shown} cannot be used"), &e)),
    }
}

/// Where a file of the template goes. In the template none has a name that would mean something to a tool there.
fn place_of(path: &str) -> PathBuf {
    PathBuf::from(match path {
        "Cargo.toml.template" => "Cargo.toml",
        "cargo-config.toml" => ".cargo/config.toml",
        "gitignore" => ".gitignore",
        other => other,
    })
}

/// A text of the template with the project's names in it.
fn filled(text: &str, name: &str) -> String {
    text.replace("{{name}}", name).replace("{{crate}}", &name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use millrace_core::manifest::Manifest;

    use super::*;
    use crate::cli::testing::run;

    #[tokio::test]
    async fn a_project_is_complete() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("deep/my-shop");
        let out = run(&["new", "my-shop", "--dir", directory.to_str().unwrap()]).await.done();
        assert!(out.starts_with("my-shop is in /") && out.contains("  millrace dev "), "{out}");
        let read = |path: &str| fs::read_to_string(directory.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let (manifest, warnings) = Manifest::parse(&read("millrace.toml")).unwrap();
        assert_eq!((manifest.application.as_str(), warnings), ("my-shop", Vec::new()));
        assert!(manifest.functions.iter().all(|f| f.build.is_some() && f.component.ends_with("/my_shop.wasm")));
        assert!(read("Cargo.toml").contains("name = \"my-shop\""));
        assert!(read("Cargo.toml").contains(&format!("path = \"{SDK_DIRECTORY}\"")));
        for path in [".cargo/config.toml", ".gitignore", "src/lib.rs", "vendor/millrace-sdk/wit/function.wit"] {
            assert!(!read(path).contains("{{"), "{path}");
        }
    }

    #[test]
    fn nothing_is_written_where_something_is() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(write("shop", &empty).is_ok());
        let error = write("shop", &empty).unwrap_err().to_string();
        assert!(error.ends_with("empty is not empty\n  fix: name a directory that is empty or not there, with --dir"));
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = write("shop", &file).unwrap_err().to_string();
        assert!(error.contains("is there and is no directory"), "{error}");
    }

    #[test]
    fn names_are_those_of_applications_and_crates() {
        let directory = tempfile::tempdir().unwrap();
        for (name, is_good) in
            [("shop-2", true), ("Shop", false), ("", false), ("../x", false), ("test", false), ("fn", false)]
        {
            let written = write(name, &directory.path().join(format!("d{}", name.len())));
            assert_eq!(written.is_ok(), is_good, "{name}");
        }
    }

    #[test]
    fn taken_names_are_sorted_so_that_they_are_found() {
        assert!(TAKEN.is_sorted());
    }
}
