use clap::{CommandFactory, Parser};

use super::error::EXIT_CODES;
use super::testing::{free_address, parsed, run};
use super::{Cli, Exit};

/// Each command and subcommand, with its path.
fn all(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.push((path.clone(), help));
        all(sub, &path, found);
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_help_of_each_command_has_examples_that_parse() {
    let mut commands = Vec::new();
    all(&Cli::command(), "millrace", &mut commands);
    assert!(commands.len() > 10);
    for (path, help) in commands {
        let examples: Vec<&str> = help.lines().skip_while(|line| *line != "Examples:").skip(1).collect();
        let examples: Vec<&str> = examples.into_iter().take_while(|line| !line.is_empty()).collect();
        assert!(!examples.is_empty(), "{path}");
        let lines: Vec<&str> = examples.into_iter().map(command_line).collect();
        assert!(lines.iter().any(|line| line.starts_with(&path)) || path == "millrace dead-letters", "{path}");
        for line in lines {
            let error = Cli::try_parse_from(words(line)).map(drop).err();
            let error = error.filter(|e| e.kind() != clap::error::ErrorKind::DisplayHelp);
            assert!(error.is_none(), "{line}: {error:?}");
        }
    }
}

/// What is ours in an example: neither the words before and behind it, nor other commands of a pipe.
fn command_line(example: &str) -> &str {
    let ours = example.find("millrace ").map_or(example, |start| &example[start..]);
    ours.split("  ").next().and_then(|line| line.split(['>', '|']).next()).unwrap_or_default()
}

/// Words of a shell's command line with single quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.trim().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn the_help_tells_exit_codes_as_they_are() {
    for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unreachable, Exit::TimedOut, Exit::Interrupted] {
        assert!(EXIT_CODES.contains(&format!("\n  {:<3}  ", exit.code())), "{exit:?}");
    }
    assert_eq!(parsed(&["publish"]).unwrap_err().exit_code(), i32::from(Exit::Usage.code()));
}

#[tokio::test]
async fn every_command_that_needs_a_server_says_that_there_is_none() {
    let server = format!("http://{}", free_address());
    for words in [
        &["status"][..],
        &["topics"],
        &["functions"],
        &["tail", "orders"],
        &["publish", "orders", "--type", "t"],
        &["dead-letters", "list"],
        &["dead-letters", "show", "a.b", "orders/0/1"],
        &["dead-letters", "redrive", "a.b"],
    ] {
        let mut line = vec!["--server", &server];
        line.extend_from_slice(words);
        let err = run(&line).await.refused(Exit::Unreachable);
        assert!(err.starts_with("error: there is no server at http://127.0.0.1:"), "{err}");
        assert!(err.contains("\n  fix: start one with `millrace dev`"), "{err}");
    }
}

#[test]
fn flags_are_understood_before_and_after_the_command() {
    for (words, is_good) in [
        (&["--json", "status"][..], true),
        (&["status", "--json"], true),
        (&["status", "--server", "http://a:1"], true),
        (&["status", "--color", "never"], true),
        (&["status", "--color", "pink"], false),
        (&["status", "--watch", "2s"], true),
        (&["status", "--watch"], true),
        (&["status", "--watch", "2"], false),
        (&["status", "--watch", "--wait-settled"], false),
        (&["status", "--timeout", "5s"], false),
        (&["completions", "bash"], true),
        (&["completions", "cmd"], false),
        (&["tail", "orders", "-f"], true),
        (&["tail", "orders", "-n", "0"], false),
        (&["stauts"], false),
    ] {
        assert_eq!(parsed(words).is_ok(), is_good, "{words:?}");
    }
}

#[tokio::test]
async fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).await.done();
        assert!(script.contains("dead-letters") && script.contains("give-up-after"), "{shell}");
    }
}

#[tokio::test]
async fn the_api_is_described_without_a_server() {
    let described: serde_json::Value = serde_json::from_str(&run(&["openapi"]).await.done()).unwrap();
    assert_eq!(described, crate::api::openapi_document());
}

#[test]
fn a_process_that_runs_functions_has_as_many_threads_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("millrace-config.toml"), "[runtime]\nthreads = 3\n").unwrap();
    let threads = |more: &[&str]| {
        let line = [&["millrace", "dev", dir.path().to_str().unwrap()], more].concat();
        super::runtime(&Cli::try_parse_from(line).unwrap().command).unwrap().metrics().num_workers()
    };
    assert_eq!(threads(&[]), 3);
    assert_eq!(threads(&["--set", "runtime.threads=5"]), 5);
}

#[tokio::test]
async fn a_handler_that_is_no_file_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = "application = 'shop'\n[functions.pay]\ntopics = ['orders']\ncomponent = '/dev/zero'\n";
    std::fs::write(directory.path().join("millrace.toml"), manifest).unwrap();
    let event = directory.path().join("event.json");
    std::fs::write(&event, r#"{"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}"#).unwrap();
    let (directory, event) = (directory.path().to_str().unwrap(), event.to_str().unwrap());
    let err = run(&["invoke", "pay", "--dir", directory, "--event", event]).await.refused(Exit::Failed);
    assert!(err.contains("cannot read the component `/dev/zero`: it is not a file"), "{err}");
}
