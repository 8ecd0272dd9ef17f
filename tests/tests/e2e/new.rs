//! `millrace new`: what it writes is built where it lies, with nothing of this repository around it.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_tests::process::{program, root};
use serde_json::{Value, json};

/// An empty directory outside of the repository. Its name is the same each time, because cargo tells crates apart by where they
/// lie, and what was built before is to be found again.
fn outside() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    root().hash(&mut hasher);
    let directory = std::env::temp_dir().join(format!("millrace-new-{:x}", hasher.finish()));
    // What a run that failed has left.
    drop(fs::remove_dir_all(&directory));
    fs::create_dir(&directory).expect("a directory");
    directory
}

/// Runs a command in a directory, and answers with its standard output.
fn run(program: &Path, arguments: &[&str], directory: &Path) -> String {
    let mut command = Command::new(program);
    // The project's own settings count. All that it needs was fetched for the guests.
    command.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR").env("CARGO_NET_OFFLINE", "true");
    let ran = command.args(arguments).current_dir(directory).output().expect("it can be started");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let hint = "`make test` says where the standard library for guests is";
    assert!(ran.status.success(), "{arguments:?} ended with {} ({hint}):\n{out}\n{err}", ran.status);
    out.into_owned()
}

fn told(arguments: &[&str], directory: &Path) -> Value {
    serde_json::from_str(&run(&program(), arguments, directory)).expect("JSON")
}

#[test]
fn a_new_project_is_tested_built_and_run_as_it_is() {
    let outside = outside();
    let said = run(&program(), &["new", "front-door"], &outside);
    assert!(said.starts_with("front-door is in front-door.\n"), "{said}");
    let project = outside.join("front-door");
    // The results are kept in the repository's target directory, and the versions are those that are on this machine.
    let results = root().join("target/new-project");
    fs::create_dir_all(&results).expect("a directory");
    symlink(&results, project.join("target")).expect("a link");
    fs::copy(root().join("Cargo.lock"), project.join("Cargo.lock")).expect("a file");

    let said = run(Path::new("cargo"), &["test"], &project);
    assert!(said.contains("test result: ok. 2 passed; 0 failed"), "{said}");
    let component = results.join("wasm32-wasip2/guest/front_door.wasm");
    drop(fs::remove_file(&component));
    let built = told(&["build", "--json"], &project);
    assert_eq!(built[0]["function"], "greet", "{built:#}");
    assert!(component.is_file(), "there is no {}", component.display());
    let report = told(&["check", "--json"], &project);
    assert_eq!(report["functions"], json!(["front-door.greet"]), "{report:#}");
    assert_eq!((&report["errors"], &report["warnings"]), (&json!([]), &json!([])), "{report:#}");
    let answer = told(&["invoke", "greet", "--event", "event.json", "--json"], &project);
    assert_eq!((&answer["outcome"], &answer["filtered"]), (&json!("completed"), &json!(false)), "{answer:#}");
    let greeting = &answer["emitted"][0];
    assert_eq!((&greeting["topic"], &greeting["key"]), (&json!("greetings"), &json!("ada")), "{answer:#}");
    assert_eq!(greeting["event"]["data"], json!({"text": "Hello, Ada!"}), "{answer:#}");
    assert_eq!(answer["logs"][0]["message"], "Hello, Ada!", "{answer:#}");
    fs::remove_dir_all(&outside).expect("it can be removed");
}
