use proptest::prelude::*;

use super::*;

const DIRECTORY: &str = "app";

fn flags(settings: &[&str]) -> Flags {
    Flags { set: settings.iter().map(ToString::to_string).collect(), ..Flags::default() }
}

fn environment(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn from_file(text: &str) -> Result<Resolved, Refused> {
    let file = File { path: Path::new("etc/millrace-config.toml"), text };
    resolve(Some(file), [], &Flags::default(), Path::new(DIRECTORY))
}

fn defaults() -> Config {
    Config { data: "app/.millrace".into(), ..Config::default() }
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let flags = Flags { config: Some("/dev/zero".into()), ..Flags::default() };
    let Refused(problems) = load(&flags, Path::new(DIRECTORY)).unwrap_err();
    assert_eq!(problems, ["/dev/zero cannot be read: it is longer than 1.00 MiB"]);
}

#[test]
fn without_any_source_the_defaults_hold() {
    let resolved = resolve(None, [], &Flags::default(), Path::new(DIRECTORY)).unwrap();
    assert_eq!(resolved, Resolved { config: defaults(), file: None, warnings: vec![] });
}

#[test]
fn the_sample_is_the_defaults_and_the_file_in_deploy() {
    assert_eq!(from_file(&sample()).unwrap().config, defaults());
    let uncommented: String = sample()
        .lines()
        .map(|l| l.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(l))
        .fold(String::new(), |text, line| text + line + "\n");
    let config = from_file(&uncommented).unwrap().config;
    assert_eq!(config.data, Path::new("/var/lib/millrace"));
    assert_eq!(config.threads.get(), 2);
    assert_eq!(config.otlp.traces_url().as_deref(), Some("http://127.0.0.1:4318/v1/traces"));

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/millrace-config.toml");
    if std::env::var_os("UPDATE_SAMPLES").is_some() {
        std::fs::write(path, sample()).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert_eq!(kept, sample(), "the settings changed; run `UPDATE_SAMPLES=1 cargo test -p millrace config`");
}

#[test]
fn each_source_wins_over_the_one_before() {
    let file = File {
        path: Path::new("etc/m.toml"),
        text: "[topics]\npartitions = 2\n[log]\nlevel = 'warn'\nformat = 'json'",
    };
    let env = environment(&[("MILLRACE_TOPICS_PARTITIONS", "3"), ("MILLRACE_LOG_LEVEL", "debug"), ("HOME", "/home/a")]);
    let mut flags = flags(&["topics.partitions=4", "log.level=error"]);
    let with = |flags: &Flags| resolve(Some(file), env.clone(), flags, Path::new(DIRECTORY)).unwrap().config;
    let config = with(&flags);
    assert_eq!((config.topics.partitions, config.log.format), (4, LogFormat::Json));
    assert_eq!(config.log.level, tracing::Level::ERROR);
    assert_eq!(with(&Flags::default()).topics.partitions, 3);
    flags.log_level = Some("trace".to_owned());
    assert_eq!(with(&flags).log.level, tracing::Level::TRACE);
}

#[test]
fn a_relative_directory_starts_where_it_is_written() {
    let data = |text: &str, env: &[(&str, &str)], set: &[&str]| {
        let file = File { path: Path::new("etc/m.toml"), text };
        resolve(Some(file), environment(env), &flags(set), Path::new(DIRECTORY)).unwrap().config.data
    };
    assert_eq!(data("", &[], &[]), Path::new("app/.millrace"));
    assert_eq!(data("data.directory = 'd'", &[], &[]), Path::new("etc/d"));
    assert_eq!(data("data.directory = 'd'", &[("MILLRACE_DATA_DIRECTORY", "e")], &[]), Path::new("e"));
    assert_eq!(data("", &[], &["data.directory=/f"]), Path::new("/f"));
}

#[test]
fn the_standard_variables_of_opentelemetry_are_heard() {
    let otlp =
        |env: &[(&str, &str)]| resolve(None, environment(env), &Flags::default(), Path::new("")).unwrap().config.otlp;
    let standard = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/"), ("OTEL_SERVICE_NAME", "orders")];
    assert_eq!(otlp(&standard).traces_url().as_deref(), Some("http://a:4318/v1/traces"));
    assert_eq!(otlp(&standard).service_name, "orders");
    let both = [standard[0], ("MILLRACE_OTLP_ENDPOINT", "http://b:4318")];
    assert_eq!(otlp(&both).endpoint.as_deref(), Some("http://b:4318"));
    assert_eq!(otlp(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).endpoint, None);
    let whole = [standard[0], ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/spans")];
    assert_eq!(otlp(&whole).traces_url().as_deref(), Some("http://c:4318/spans"));
    assert_eq!(otlp(&whole[1..]).traces_url().as_deref(), Some("http://c:4318/spans"));
    assert_eq!((otlp(&[]).traces_url(), otlp(&[]).sample_ratio), (None, 1.0));
    assert_eq!(otlp(&[("MILLRACE_OTLP_SAMPLE_RATIO", "0.25")]).sample_ratio, 0.25);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place_and_the_fix() {
    for (text, expected) in [
        (
            "[http]\nlisten = '1.2.3.4'",
            "etc/millrace-config.toml, line 2: http.listen: `1.2.3.4` is not an address with a port",
        ),
        ("[http]\nlistn = 'x'", "line 2: http.listn: unknown key; did you mean `http.listen`?"),
        ("listen = 'x'", "line 1: listen: unknown key; known here: data.directory, data.max-size"),
        ("[log]\nlevel = 'inof'", "log.level: `inof` is not one of the choices; did you mean `info`?"),
        ("[topics]\nretention-age = 7", "topics.retention-age: `7` has no unit; write a whole number"),
        ("[topics]\nretention-size = '0B'", "0B is out of bounds; write something from 1B to 1024TiB"),
        ("[topics]\npartitions = 0", "0 is out of bounds; write a whole number from 1 to 1024"),
        ("[topics]\npartitions = 'many'", "`many` is not such a number"),
        ("[topics]\npartitions = 2020-01-01", "line 2, column 14: topics.partitions: the date 2020-01-01 stands where"),
        ("[runtime]\nthreads = 0", "write a whole number from 1 to 1024"),
        ("[runtime]\nprefix = 'a.b'", "`a.b` cannot name a prefix"),
        ("[data]\ndirectory = ''", "data.directory: the value is empty"),
        ("[http]\nhosts = [1]", "http.hosts: this is not a list of texts"),
        (
            "[http]\ntls-key-file = 'key.pem'",
            "its certificate is missing; name the file with it as http.tls-certificate-file",
        ),
        ("[http]\ntls-certificate-file = 'a.pem'", "its key is missing; name the file with it as http.tls-key-file"),
        ("[http]\ntoken-rate = 'fast'", "http.token-rate: a rate is a number of requests from 1 to 1000000"),
        ("[http]\ntoken-burst = 5", "http.token-burst: it is part of a rate; set http.token-rate as well"),
        ("[http]\ntoken-rate = '5/s'\ntoken-burst = 0", "http.token-burst: 0 is out of bounds"),
        ("[http]\ntls-key-file = ''", "http.tls-key-file: the value is empty"),
        ("[otlp]\nendpoint = 'localhost:4318'", "is not an address; write one such as"),
        ("[otlp]\nendpoint = 'http://'", "is not an address; write one such as"),
        ("[otlp]\nendpoint = 'https://collector:4318'", "spans are sent without encryption; run a collector nearby"),
        ("[otlp]\nsample-ratio = 1.5", "`1.5` is not a part of something; write a number from 0 to 1"),
        ("[otlp]\nsample-ratio = 'nan'", "`nan` is not a part of something"),
        ("[http", "this is not TOML"),
    ] {
        let shown = from_file(text).unwrap_err().to_string();
        assert!(shown.contains(expected), "{text}\n{shown}");
    }
    for (set, expected) in [
        ("log.level", "--set: log.level: `` is not one of the choices"),
        ("log.levle=info", "--set: log.levle: unknown key; did you mean `log.level`?"),
        ("", "--set: : unknown key"),
    ] {
        let shown = resolve(None, [], &flags(&[set]), Path::new("")).unwrap_err().to_string();
        assert!(shown.contains(expected), "{set}\n{shown}");
    }
    let both =
        resolve(None, environment(&[("MILLRACE_LOG_LEVEL", "x")]), &flags(&["topics.partitions=0"]), Path::new(""));
    assert_eq!(both.unwrap_err().0.len(), 2);
}

#[test]
fn a_rate_has_as_many_at_once_as_it_is_told() {
    let rate = |text: &str| from_file(text).unwrap().config.http.rate().map(|rate| (rate.to_string(), rate.burst()));
    assert_eq!(rate(""), None);
    assert_eq!(rate("http.token-rate = '600/m'"), Some(("600/m".to_owned(), 600)));
    assert_eq!(rate("[http]\ntoken-burst = 5\ntoken-rate = '600/m'"), Some(("600/m".to_owned(), 5)));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let env = environment(&[("MILLRACE_LOG_LEVL", "x"), ("MILLRACE_SERVICE_PORT", "1"), ("MILLRACE_CONFIG", "f")]);
    let warnings = resolve(None, env, &flags(&["http.listen=0.0.0.0:80", "http.allow-anonymous=true"]), Path::new(""))
        .unwrap()
        .warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].ends_with("MILLRACE_LOG_LEVL sets nothing; did you mean MILLRACE_LOG_LEVEL?"));
    assert!(warnings[1].ends_with("MILLRACE_SERVICE_PORT sets nothing"));
    assert!(warnings[2].contains("asks nobody who they are"));
}

#[test]
fn an_admin_token_is_read_from_a_file_or_the_environment_and_shown_nowhere() {
    const TOKEN: &str = "planted-0123456789-0123456789-0123456789";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let from_file = |text: &str| {
        std::fs::write(&path, text).unwrap();
        std::fs::write(directory.path().join(FILE_NAME), "http.admin-token-file = 'token'").unwrap();
        load(&Flags::default(), directory.path())
    };
    let config = from_file(&format!("{TOKEN}\n")).unwrap().config;
    assert!(config.http.admin_token.is_some_and(|secret| secret.is(TOKEN)));
    assert!(!format!("{config:?}").contains("planted"));
    for wrong in ["planted-short", "planted planted planted planted planted", &"planted".repeat(1000), ""] {
        let said = from_file(wrong).unwrap_err().to_string();
        assert!(said.contains("http.admin-token-file") && !said.contains("planted"), "{said}");
    }
    let of = |value: &str| {
        let env = environment(&[("MILLRACE_ADMIN_TOKEN", value), ("MILLRACE_TOKEN", "planted")]);
        resolve(None, env, &Flags::default(), Path::new(""))
    };
    let resolved = of(TOKEN).unwrap();
    assert!(resolved.config.http.admin_token.is_some_and(|secret| secret.is(TOKEN)));
    assert_eq!(resolved.warnings, [""; 0]);
    let said = of("planted-short").unwrap_err().to_string();
    assert!(
        said.contains("MILLRACE_ADMIN_TOKEN: an administrator's token is 32 to") && !said.contains("planted"),
        "{said}"
    );
    let mut both = resolved.config.http;
    both.admin_token_file = Some(path);
    assert!(both.read_admin_token().unwrap_err().contains("give one of the two"));
}

#[test]
fn public_keys_are_read_from_the_files_of_the_list() {
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    let directory = tempfile::tempdir().unwrap();
    let load = || load(&Flags::default(), directory.path()).map(|resolved| resolved.config.signatures);
    assert_eq!(load().unwrap(), Signatures::default());
    std::fs::write(directory.path().join(FILE_NAME), "signatures.public-keys = ['a.pem', 'b.pem']").unwrap();
    std::fs::write(directory.path().join("a.pem"), PUBLIC).unwrap();
    let told = load().unwrap_err().to_string();
    assert!(told.contains("b.pem cannot be read: No such file"), "{told}");
    std::fs::write(directory.path().join("b.pem"), "planted").unwrap();
    let told = load().unwrap_err().to_string();
    assert!(told.contains("b.pem: it is no public key of ed25519 in PEM") && !told.contains("planted"), "{told}");
    std::fs::write(directory.path().join("b.pem"), PUBLIC).unwrap();
    let read = load().unwrap();
    assert_eq!(read.public_key_files, ["a.pem", "b.pem"].map(|name| directory.path().join(name)));
    assert_ne!(read.trusted, Trusted::default());
}

#[test]
fn hosts_are_a_list_in_the_file_and_a_comma_separated_text_elsewhere() {
    let hosts = ["a.example".to_owned(), "b.example".to_owned()];
    assert_eq!(from_file("http.hosts = ['A.example', 'b.example']").unwrap().config.http.hosts, hosts);
    let resolved = resolve(None, [], &flags(&["http.hosts=a.example, b.example"]), Path::new("")).unwrap();
    assert_eq!(resolved.config.http.hosts, hosts);
}

#[test]
fn a_named_file_must_be_there_and_the_usual_one_need_not() {
    let directory = tempfile::tempdir().unwrap();
    let named = Flags { config: Some(directory.path().join("no.toml")), ..Flags::default() };
    let shown = load(&named, directory.path()).unwrap_err().to_string();
    assert!(shown.contains("no.toml cannot be read"), "{shown}");
    assert_eq!(load(&Flags::default(), directory.path()).unwrap().file, None);
    let usual = directory.path().join(FILE_NAME);
    std::fs::write(&usual, "topics.partitions = 7").unwrap();
    let loaded = load(&Flags::default(), directory.path()).unwrap();
    assert_eq!((loaded.config.topics.partitions, loaded.file), (7, Some(usual)));
}

proptest! {
    #[test]
    fn no_text_panics(text: String, name in "MILLRACE_[A-Z_]{0,20}", value: String, set: String) {
        let _file = from_file(&text);
        let _rest = resolve(None, [(name, value)], &flags(&[&set]), Path::new(""));
        for setting in &SETTINGS {
            let _value = from_file(&format!("{} = {:?}", setting.key, text));
        }
    }
}
