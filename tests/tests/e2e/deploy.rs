//! What is in `deploy/`, read by the tools that it is for, where they are to be had.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use millrace_tests::not_tested;
use millrace_tests::process::{program, root};

const UNIT: &str = "deploy/millrace.service";

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What Docker's own libraries say of the container file and of the compose file.
#[test]
fn containers_are_read_by_the_libraries_of_docker() {
    let place = tempfile::tempdir().expect("a directory");
    let reader = place.path().join("reader");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&reader)
        .arg(".")
        .current_dir(root().join("tests/deploy"))
        .output();
    match built {
        Ok(built) if built.status.success() => {}
        Ok(built) => {
            return not_tested("deploy/Containerfile and compose.yaml", &String::from_utf8_lossy(&built.stderr));
        }
        Err(e) => return not_tested("deploy/Containerfile and compose.yaml", &format!("go: {e}")),
    }
    let files = ["deploy/Containerfile", "deploy/compose.yaml"].map(|path| root().join(path));
    let read = Command::new(&reader).args(files).output().expect("it was built");
    let (said, wrong) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success(), "{wrong}");
    for expected in [
        "from debian:bookworm-slim user 65532:65532 entrypoint /usr/local/bin/millrace\n",
        "container kafka read-only false",
        "container millrace read-only true capabilities -ALL\n",
    ] {
        assert!(said.contains(expected), "{expected} is missing:\n{said}");
    }
}

#[test]
fn the_unit_is_read_by_systemd() {
    let place = tempfile::tempdir().expect("a directory");
    let unit = place.path().join("millrace.service");
    // What is started must be there for systemd to be content.
    let started = program().display().to_string();
    fs::write(&unit, text(UNIT).replace("/usr/local/bin/millrace", &started)).expect("it can be written");
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let verified = match verified {
        Ok(verified) => verified,
        Err(e) => return not_tested(UNIT, &format!("systemd-analyze: {e}")),
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");
    let security = ["security", "--offline=true", "--threshold=20"];
    let exposed = Command::new("systemd-analyze").args(security).arg(&unit).output().expect("it was there just now");
    assert!(exposed.status.success(), "{}", String::from_utf8_lossy(&exposed.stdout));
}

/// Settings named in `deploy/`, as `NAME=value` in the container file and the unit, and as `NAME: value` in the compose file.
fn variables() -> Vec<(String, String)> {
    let all = ["deploy/Containerfile", "deploy/compose.yaml", UNIT].map(text).join("\n").replace(": ", "=");
    let words = all.split_whitespace().map(|word| word.trim_start_matches("Environment=").to_owned());
    let named = words.filter(|word| word.starts_with("MILLRACE_"));
    named
        .filter_map(|word| {
            word.split_once('=').map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        })
        .collect()
}

/// The command of the unit, with the variables of all three: the binary knows each, and goes as far as looking for Kafka.
#[test]
fn commands_and_settings_are_those_of_the_binary() {
    let place = tempfile::tempdir().expect("a directory");
    let config = place.path().join("millrace-config.toml");
    fs::write(&config, "").expect("it can be written");
    let unit = text(UNIT);
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("the unit starts something");
    let given = |word: &str| match word {
        "/etc/millrace/millrace-config.toml" => config.clone(),
        "/var/lib/millrace" => place.path().to_owned(),
        "/srv/millrace" => root().join("guest-examples/hello"),
        word => PathBuf::from(word),
    };
    let variables = variables();
    assert!(variables.iter().any(|(name, _)| name == "MILLRACE_KAFKA_BOOTSTRAP"), "{variables:?}");
    let mut started = Command::new(program());
    started.args(command.split(' ').skip(1).map(given)).envs(variables).env("MILLRACE_KAFKA_BOOTSTRAP", "127.0.0.1:1");
    let output = started.env("MILLRACE_LOG_LEVEL", "error").output().expect("the binary can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("see that Kafka runs there"), "{said}");
    // Within a container all addresses are listened on, and an unknown variable would be a second warning.
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning:")).collect();
    assert!(matches!(warnings[..], [one] if one.contains("0.0.0.0:6455")), "{warnings:?}");
}
