//! The files that travel in the binary until the SDK is published.

/// A path with its text.
pub(super) type File = (&'static str, &'static str);

macro_rules! files_of {
    ($root:literal: $($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/", $root, $path)))),*]
    };
}

/// A project before it has a name.
pub(super) const TEMPLATE: &[File] = files_of!("template/":
    "Cargo.toml.template",
    "README.md",
    "cargo-config.toml",
    "event.json",
    "gitignore",
    "millrace.toml",
    "src/lib.rs",
);

/// The library that handlers are written with.
pub(super) const SDK: &[File] = files_of!("":
    "Cargo.toml",
    "README.md",
    "src/context.rs",
    "src/data.rs",
    "src/emission.rs",
    "src/event.rs",
    "src/failure.rs",
    "src/lib.rs",
    "src/state.rs",
    "src/testing.rs",
    "src/testing/cloudevent.rs",
    "src/testing/host.rs",
    "src/testing/logs.rs",
    "src/time.rs",
    "src/wasm.rs",
    "src/wasm/state.rs",
    "wit/deps/config/store.wit",
    "wit/deps/keyvalue/store.wit",
    "wit/deps/logging/logging.wit",
    "wit/function.wit",
);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All files under a directory, with paths from `root`.
    fn under(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                under(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn the_lists_hold_all_that_is_there() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let mut template = Vec::new();
        under(&sdk.join("template"), &sdk.join("template"), &mut template);
        let mut library = vec!["Cargo.toml".to_owned(), "README.md".to_owned()];
        for part in ["src", "wit"] {
            under(&sdk, &sdk.join(part), &mut library);
        }
        for (mut found, listed) in [(template, TEMPLATE), (library, SDK)] {
            found.sort();
            assert_eq!(listed.iter().map(|(path, _)| *path).collect::<Vec<_>>(), found);
        }
    }
}
