//! The template of `millrace new` is compiled here, and its tests run, so that it cannot fall behind the crate.

#[path = "../template/src/lib.rs"]
mod template;

#[test]
fn only_known_placeholders_are_left_to_be_filled_in() {
    let files = [
        include_str!("../template/Cargo.toml.template"),
        include_str!("../template/README.md"),
        include_str!("../template/cargo-config.toml"),
        include_str!("../template/event.json"),
        include_str!("../template/gitignore"),
        include_str!("../template/millrace.toml"),
        include_str!("../template/src/lib.rs"),
    ];
    for file in files {
        for placeholder in file.split("{{").skip(1) {
            let (name, _) = placeholder.split_once("}}").expect("a placeholder is closed");
            assert!(["name", "crate"].contains(&name), "unknown placeholder {{{{{name}}}}}");
        }
    }
}

#[test]
fn new_projects_are_built_as_the_examples_are() {
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(ToOwned::to_owned).collect()
    };
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cargo/config.toml");
    if let Ok(ours) = std::fs::read_to_string(workspace) {
        assert_eq!(settings(include_str!("../template/cargo-config.toml")), settings(&ours));
    }
}
