//! Habits of the house that a compiler does not know: each rule names what to write instead.

use std::fs;
use std::path::{Path, PathBuf};

use millrace_core::manifest::{FILE_NAME, Manifest};

/// Words that say nothing in the name of a type, function or module, with what to write instead.
const EMPTY_WORDS: [(&str, &str); 8] = [
    ("manager", "name what it owns"),
    ("processor", "name what it does to what"),
    ("service", "name what it answers"),
    ("helper", "name the question that it answers"),
    ("util", "put it beside its caller"),
    ("utils", "put it beside its caller"),
    ("common", "put it into the module that it is about"),
    ("misc", "put it into the module that it is about"),
];

/// Texts that must not be in any source, with what to write instead. Written in two parts, so that they are not in this one.
const LEFT_OPEN: [(&str, &str, &str); 6] = [
    ("todo", "!(", "write it, or leave it out"),
    ("unimplemented", "!(", "write it, or leave it out"),
    ("FIX", "ME", "mend it"),
    ("XX", "X", "mend it"),
    ("#[ign", "ore", "a test that does not run tells nothing: mend it or remove it"),
    ("thread::", "sleep(", "wait for the thing itself"),
];

/// What the core must not name, because it decides and never acts, with where the thing comes from instead.
const NOT_IN_CORE: [(&str, &str); 14] = [
    ("Instant::", "time is an argument"),
    ("time::Instant", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("std::thread::spawn", "the worker runs it"),
    ("std::thread::sleep", "time is an argument"),
    ("std::fs", "the text is an argument"),
    ("std::net", "the worker talks"),
    ("std::env", "configuration is an argument"),
    ("std::process", "the caller decides"),
    ("std::sync::Mutex", "state has one owner"),
    ("std::sync::RwLock", "state has one owner"),
    ("tokio", "nothing waits here"),
    ("async fn", "nothing waits here"),
    ("rand::", "a seed is an argument"),
];

const FUNCTION_MAX_LINES: usize = 70;
const FILE_MAX_LINES: usize = 800;

struct Source {
    path: String,
    text: String,
}

/// All Rust sources of the project.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tops = ["runtime", "sdk", "tests", "guest-examples"];
    let mut waiting: Vec<PathBuf> = tops.iter().map(|top| root.join(top)).filter(|path| path.is_dir()).collect();
    let mut found = Vec::new();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("the sources can be read") {
            let path = entry.expect("the sources can be read").path();
            if path.is_dir() && !path.ends_with("target") {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("the sources can be read");
                let path = path.strip_prefix(&root).expect("it lies below").to_string_lossy().replace('\\', "/");
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The names that a line of code declares.
fn declared(line: &str) -> Option<&str> {
    let mut words = without_comment(line).split_whitespace();
    let keyword =
        words.find(|word| !matches!(*word, "pub" | "async" | "const" | "unsafe") && !word.starts_with("pub("))?;
    let rest = words.next()?;
    let declares = matches!(keyword, "fn" | "struct" | "enum" | "trait" | "mod" | "type");
    declares.then(|| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
}

/// The words of a name in snake or camel case, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if let Some(last) = words.last_mut().filter(|_| c != '_') {
            last.extend(c.to_lowercase());
        }
    }
    words
}

fn badly_named(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in source.text.lines().filter_map(declared) {
        let words = words(name);
        for (word, instead) in EMPTY_WORDS.iter().filter(|(word, _)| words.iter().any(|w| w == word)) {
            wrong.push(format!("{}: `{name}` has the word `{word}` in it: {instead}", source.path));
        }
        if name.starts_with("do_") || name.starts_with("process_") || name.starts_with("test_") {
            wrong.push(format!("{}: `{name}` begins with an empty word: leave it out", source.path));
        }
    }
    if source.path.ends_with("/mod.rs") {
        wrong.push(format!("{}: write `name.rs` beside the directory `name`", source.path));
    }
    wrong
}

fn left_open(source: &Source) -> Vec<String> {
    let texts = LEFT_OPEN.iter().map(|(a, b, instead)| (format!("{a}{b}"), instead));
    // Whoever measures at a rate waits for time itself.
    let paced = source.path.starts_with("tests/bench/");
    let found = texts.filter(|(text, _)| source.text.contains(text.as_str()) && !(paced && text.contains("sleep")));
    found.map(|(text, instead)| format!("{}: `{text}` is left: {instead}", source.path)).collect()
}

fn too_long(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    if lines.len() > FILE_MAX_LINES {
        wrong.push(format!("{}: {} lines: split it into modules", source.path, lines.len()));
    }
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = declared(line).filter(|_| line.contains("fn ")) else { continue };
        // A signature ends where its body opens, or with a semicolon where there is none.
        let Some(opening) = (at..lines.len()).find(|at| lines[*at].ends_with(['{', '}', ';'])) else { continue };
        if !lines[opening].ends_with('{') {
            continue;
        }
        // The formatter puts the closing brace where the function began.
        let closing = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let body = lines[opening + 1..].iter().take_while(|line| **line != closing);
        let code = body.filter(|line| !without_comment(line).trim().is_empty()).count();
        if code > FUNCTION_MAX_LINES {
            wrong.push(format!("{}: `{name}` has {code} lines: split it where it changes the subject", source.path));
        }
    }
    wrong
}

/// Decisions do not act. What follows the first tests of a file is not looked at.
fn acting_in_core(source: &Source) -> Vec<String> {
    if !source.path.starts_with("runtime/core/src/") || source.path.ends_with("tests.rs") {
        return Vec::new();
    }
    let code = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: Vec<&str> = code.lines().map(without_comment).collect();
    let found = NOT_IN_CORE.iter().filter(|(name, _)| code.iter().any(|line| line.contains(name)));
    found.map(|(name, instead)| format!("{}: the core must not name `{name}`: {instead}", source.path)).collect()
}

fn violations(source: &Source) -> Vec<String> {
    [badly_named(source), left_open(source), too_long(source), acting_in_core(source)].concat()
}

#[test]
fn the_sources_keep_the_habits_of_the_house() {
    let sources = sources();
    assert!(sources.iter().any(|s| s.path == "runtime/core/src/lib.rs"), "nothing was read");
    let wrong: Vec<String> = sources.iter().flat_map(violations).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn manifests_of_the_examples_have_no_problems_and_no_warnings() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-examples");
    for example in fs::read_dir(&examples).into_iter().flatten() {
        let path = example.expect("the examples can be read").path().join(FILE_NAME);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let parsed = Manifest::parse(&text).map(|(_, warnings)| warnings);
        let problems = parsed.unwrap_or_else(|errors| errors);
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{}\n{}", path.display(), shown.join("\n"));
    }
}

#[test]
fn each_rule_can_fail() {
    let long = format!("    fn long() {{\n{}    }}\n", "        x();\n".repeat(FUNCTION_MAX_LINES + 1));
    let cases = [
        (
            "runtime/src/a.rs",
            "pub(crate) struct LogManager;",
            "`LogManager` has the word `manager` in it: name what it owns",
        ),
        ("runtime/src/a.rs", "mod utils;", "`utils` has the word"),
        ("runtime/src/a.rs", "    pub async fn do_it() {}", "`do_it` begins with an empty word"),
        ("runtime/src/a.rs", "fn test_it() {}", "`test_it` begins with an empty word"),
        ("runtime/src/a/mod.rs", "", "write `name.rs`"),
        ("sdk/src/a.rs", concat!("fn f() { to", "do!() }"), "write it, or leave it out"),
        ("tests/tests/a.rs", concat!("#[ign", "ore]\nfn f() {}"), "mend it or remove it"),
        ("runtime/src/a.rs", &long, "`long` has 71 lines"),
        ("runtime/src/a.rs", &"\n".repeat(FILE_MAX_LINES + 1), "801 lines: split it"),
        (
            "runtime/core/src/a.rs",
            "use std::time::{Duration, SystemTime};",
            "must not name `SystemTime`: time is an argument",
        ),
        ("runtime/core/src/a.rs", "let now = Instant::now();", "time is an argument"),
        ("runtime/core/src/a.rs", "use tokio::time;", "nothing waits here"),
    ];
    for (path, text, expected) in cases {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let wrong = violations(&source).join("\n");
        assert!(wrong.contains(expected), "{path} with {text} gave: {wrong}");
    }
    for (path, text) in [
        ("runtime/src/a.rs", "impl Service<Request> for Answer {}\nfn utility() {}\nlet service_name = 1;"),
        ("runtime/src/a.rs", "use tokio::time::Instant; // fn do_it"),
        ("runtime/core/src/a.rs", "// no tokio here\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}"),
    ] {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        assert_eq!(violations(&source), Vec::<String>::new(), "{path} with {text}");
    }
}
