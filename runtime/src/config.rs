//! Configuration of the process: defaults, then the file, then the environment, then flags, each over the ones before.
//!
//! Resolved once at start into plain values. Every setting has one row in `config/table.rs`, which gives its key in the
//! file, its name in the environment (`http.listen` is `MILLRACE_HTTP_LISTEN`), its default and its line in the sample.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_core::access::{Rate, Secret};
use millrace_core::limits::{self, CONFIG_FILE_MAX_BYTES};
use millrace_core::name::DEFAULT_PREFIX;
use millrace_core::settings::{self, suggestion};
use millrace_core::signature::Trusted;
use millrace_core::units::rounded;

mod table;
#[cfg(test)]
mod tests;

pub use table::sample;
use table::{SETTINGS, Setting};

/// The file that is read when no other one is named.
pub const FILE_NAME: &str = "millrace-config.toml";
/// Where the API listens unless told otherwise: MILL on a telephone's keypad, and nobody but this machine.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6455);
/// What the names of our environment variables begin with.
pub const ENVIRONMENT_PREFIX: &str = "MILLRACE_";
/// What the keys of properties of librdkafka begin with.
const PROPERTIES: &str = "kafka.properties.";
/// The same in the environment.
const PROPERTIES_VARIABLE: &str = "MILLRACE_KAFKA_PROPERTIES_";
/// The environment variable that names the file to read.
pub const FILE_VARIABLE: &str = "MILLRACE_CONFIG";
/// The environment variable that tells the command line which server to ask; nothing to a server itself.
const CLIENT_VARIABLE: &str = "MILLRACE_URL";
/// The environment variable that holds the command line's token; nothing to a server either.
pub const TOKEN_VARIABLE: &str = "MILLRACE_TOKEN";
/// The environment variable that holds the administrator's token.
const ADMIN_TOKEN_VARIABLE: &str = "MILLRACE_ADMIN_TOKEN";
/// The environment variable that names a file with authorities to the command line; nothing to a server either.
pub const CA_FILE_VARIABLE: &str = "MILLRACE_CA_FILE";
/// Those with tokens: whatever is started to do something else must not have them.
pub const TOKEN_VARIABLES: [&str; 2] = [TOKEN_VARIABLE, ADMIN_TOKEN_VARIABLE];
/// Variables that are read elsewhere.
const READ_ELSEWHERE: [&str; 5] =
    [FILE_VARIABLE, CLIENT_VARIABLE, TOKEN_VARIABLE, ADMIN_TOKEN_VARIABLE, CA_FILE_VARIABLE];

/// Everything a process can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The directory that holds everything durable.
    pub data: PathBuf,
    /// What everything of ours in a broker begins with.
    pub prefix: String,
    /// Threads that run functions and answer requests.
    pub threads: NonZeroUsize,
    /// How long a stopping process lets what is under way come to its end.
    pub drain: Duration,
    /// The API.
    pub http: Http,
    /// Who has to have signed what is uploaded.
    pub signatures: Signatures,
    /// What topics are made with when the manifest does not say.
    pub topics: Topics,
    /// The embedded log.
    pub storage: Storage,
    /// Kafka, for `millrace serve`.
    pub kafka: Kafka,
    /// What is logged, and how.
    pub log: Log,
    /// Where spans go.
    pub otlp: Otlp,
}

/// The API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Names of this host beyond the address it listens on and `localhost`: requests to others are refused, so that no web
    /// page can reach a process on the machine it is read on.
    pub hosts: Vec<String>,
    /// Where the certificate is that it shows; without one it speaks plain HTTP.
    pub tls_certificate_file: Option<PathBuf>,
    /// Where the key of that certificate is; there is one if there is the other.
    pub tls_key_file: Option<PathBuf>,
    /// Where the administrator's token is.
    pub admin_token_file: Option<PathBuf>,
    /// What is kept of the administrator's token, from the file or the environment.
    pub admin_token: Option<Secret>,
    /// Whether everybody may do everything while there is no token, even where others than this machine reach it.
    pub allow_anonymous: bool,
    /// Whether `/metrics` needs no token.
    pub metrics_open: bool,
    /// How many requests a token may send to this process that says nothing of it itself; none means any number.
    pub token_rate: Option<Rate>,
    /// How many of them may come at once, if it is not as many as in one unit of the rate.
    pub token_burst: Option<u32>,
    /// Largest body of a request.
    pub request_max_bytes: usize,
    /// Requests served at the same time.
    pub requests_in_flight: usize,
}

/// Who has to have signed what is uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures {
    /// Where the public keys are, of which one has to have signed a component; with none, nothing has to be signed.
    pub public_key_files: Vec<PathBuf>,
    /// The keys in these files.
    pub trusted: Trusted,
}

impl Signatures {
    /// Reads the public keys.
    fn read(&mut self) -> Result<(), String> {
        for path in &self.public_key_files {
            let place = format!("signatures.public-keys: {}", path.display());
            let pem = read(path).map_err(|e| format!("{place} cannot be read: {e}"))?;
            self.trusted.add(&pem).map_err(|e| format!("{place}: {e}"))?;
        }
        Ok(())
    }
}

/// What topics are made with when the manifest does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Partitions.
    pub partitions: u32,
    /// How long records are kept.
    pub retention_age: Duration,
    /// Bytes kept per topic.
    pub retention_bytes: u64,
}

/// The embedded log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Bytes of records, dead letters among them, at which publishing is refused.
    pub max_bytes: u64,
    /// How long resolved and discarded dead letters are kept.
    pub letter_retention: Duration,
}

/// Kafka, for `millrace serve`.
#[derive(Clone, PartialEq, Eq)]
pub struct Kafka {
    /// Addresses of brokers, `host:port` with commas between.
    pub bootstrap: String,
    /// Tells this instance from the others, and stays the same when it starts again; random if there is none.
    pub instance: Option<String>,
    /// Copies of each topic that the runtime makes; none leaves it to the broker.
    pub replication: Option<u16>,
    /// Properties passed to librdkafka as they are. Some are secret.
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Kafka");
        shown.field("bootstrap", &self.bootstrap).field("instance", &self.instance);
        shown.field("replication", &self.replication).field("properties", &self.properties.keys()).finish()
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// The least important level that is shown.
    pub level: tracing::Level,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// The base address of a collector that speaks OTLP over HTTP; without one no spans are sent.
    pub endpoint: Option<String>,
    /// The whole address that spans are posted to, in place of the endpoint's `/v1/traces`.
    pub traces_endpoint: Option<String>,
    /// The name of this service in them.
    pub service_name: String,
    /// The part of the traces beginning here that is recorded, from 0 to 1.
    pub sample_ratio: f64,
}

impl Otlp {
    /// Where traces are posted to, if anywhere: the address given for them as it stands, or the endpoint's `/v1/traces`
    /// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
    #[must_use]
    pub fn traces_url(&self) -> Option<String> {
        let below = |endpoint: &String| format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        self.traces_endpoint.clone().or_else(|| self.endpoint.as_ref().map(below))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from(".millrace"),
            prefix: DEFAULT_PREFIX.to_owned(),
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            drain: Duration::from_secs(25),
            http: Http {
                listen: DEFAULT_LISTEN,
                hosts: Vec::new(),
                tls_certificate_file: None,
                tls_key_file: None,
                admin_token_file: None,
                admin_token: None,
                allow_anonymous: false,
                metrics_open: false,
                token_rate: None,
                token_burst: None,
                request_max_bytes: limits::REQUEST_MAX_BYTES,
                requests_in_flight: limits::REQUESTS_IN_FLIGHT_MAX,
            },
            signatures: Signatures::default(),
            topics: Topics {
                partitions: limits::PARTITIONS_DEFAULT,
                retention_age: limits::RETENTION_DEFAULT_AGE,
                retention_bytes: limits::RETENTION_DEFAULT_BYTES,
            },
            storage: Storage {
                max_bytes: limits::LOG_DEFAULT_BYTES,
                letter_retention: limits::DEAD_LETTER_DEFAULT_RETENTION,
            },
            kafka: Kafka {
                bootstrap: "127.0.0.1:9092".to_owned(),
                instance: None,
                replication: None,
                properties: BTreeMap::new(),
            },
            log: Log { format: LogFormat::Human, level: tracing::Level::INFO },
            otlp: Otlp {
                endpoint: None,
                traces_endpoint: None,
                service_name: "millrace".to_owned(),
                sample_ratio: 1.0,
            },
        }
    }
}

/// Flags of every command that starts the runtime. What is absent is left to environment, file and defaults.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [default: millrace-config.toml in the application's directory, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory that holds everything durable [default: .millrace in the application's directory]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Address and port of the API [default: 127.0.0.1:6455; port 0 takes a free one]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Form of log lines: human or json [default: human]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Least important log level shown: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Any setting of the configuration file, such as topics.partitions=8; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Flags {
    /// The settings given, each with the flag it came from. Flags of their own win over `--set`.
    fn settings(&self) -> Vec<Given> {
        let set = self.set.iter().map(|text| match text.split_once('=') {
            Some((key, value)) => Given::new("--set", key.trim(), value.trim()),
            None => Given::new("--set", text, ""),
        });
        let own = [
            ("--data", "data.directory", &self.data),
            ("--listen", "http.listen", &self.listen),
            ("--log-format", "log.format", &self.log_format),
            ("--log-level", "log.level", &self.log_level),
        ];
        let own = own.into_iter().filter_map(|(flag, key, value)| Some(Given::new(flag, key, value.as_ref()?)));
        set.chain(own).collect()
    }
}

/// A setting as someone gave it.
struct Given {
    /// Where it stands, for messages.
    origin: String,
    key: String,
    value: String,
}

impl Given {
    fn new(origin: impl Into<String>, key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { origin: origin.into(), key: key.into(), value: value.into() }
    }
}

/// A configuration that can be used, with what is probably not meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// One sentence each.
    pub warnings: Vec<String>,
}

/// All that is wrong with a configuration, one sentence each, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Refused {}

/// A configuration file with its content.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Where it is; relative paths in it start from its directory.
    pub path: &'a Path,
    /// What it says.
    pub text: &'a str,
}

/// Reads the file and the process's environment, and resolves them with the flags. `directory` is the application's: the
/// file is looked for there, and the data directory lies in it, unless told otherwise.
///
/// # Errors
/// All that is wrong, whichever of the sources it stands in.
pub fn load(flags: &Flags, directory: &Path) -> Result<Resolved, Refused> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect();
    let named = flags.config.clone().or_else(|| {
        let named = environment.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty())?;
        Some(PathBuf::from(&named.1))
    });
    let path = named.clone().unwrap_or_else(|| directory.join(FILE_NAME));
    let text = match read(&path) {
        Ok(text) => Some(text),
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Refused(vec![format!("{} cannot be read: {e}", path.display())])),
    };
    let file = text.as_ref().map(|text| File { path: &path, text });
    let mut resolved = resolve(file, environment, flags, directory)?;
    resolved.config.http.read_admin_token().map_err(|problem| Refused(vec![problem]))?;
    resolved.config.signatures.read().map_err(|problem| Refused(vec![problem]))?;
    if let Some(file) = resolved.config.http.admin_token_file.as_ref().filter(|file| others_read(file)) {
        resolved.warnings.push(format!("http.admin-token-file: {}", readable(file)));
    }
    if let Some(file) = resolved.config.http.tls_key_file.as_ref().filter(|file| others_read(file)) {
        let file = file.display();
        let told = format!("others than its owner can read the key in {file}; `chmod 600 {file}` keeps it from them");
        resolved.warnings.push(format!("http.tls-key-file: {told}"));
    }
    Ok(resolved)
}

/// What is kept of an administrator's token. Its text is in no message.
fn admin_token(text: &str) -> Result<Secret, String> {
    let (min, max) = (limits::ADMIN_TOKEN_MIN_CHARS, limits::TOKEN_MAX_BYTES);
    if (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(Secret::of(text));
    }
    Err(format!(
        "an administrator's token is {min} to {max} visible ASCII characters without spaces, made up at random; `openssl rand -hex 32` \
         writes such a one"
    ))
}

impl Http {
    /// How many requests a token may send that says nothing of it itself, with how many may come at once.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        let rate = self.token_rate?;
        // It was looked at when it was set.
        Some(self.token_burst.and_then(|burst| rate.with_burst(burst).ok()).unwrap_or(rate))
    }

    /// Reads the administrator's token, if it is in a file.
    fn read_admin_token(&mut self) -> Result<(), String> {
        let Some(path) = &self.admin_token_file else { return Ok(()) };
        let place = format!("http.admin-token-file: {}", path.display());
        if self.admin_token.is_some() {
            return Err(format!("{place}: {ADMIN_TOKEN_VARIABLE} holds such a token too; give one of the two"));
        }
        let text = read_token(path).map_err(|e| format!("{place} cannot be read: {e}"))?;
        self.admin_token = Some(admin_token(&text).map_err(|problem| format!("{place}: {problem}"))?);
        Ok(())
    }
}

/// The token in a file, without the white space around it.
///
/// # Errors
/// If it cannot be read, or is longer than any token.
pub fn read_token(path: &Path) -> io::Result<String> {
    let (mut text, max) = (String::new(), limits::TOKEN_MAX_BYTES);
    let read = std::fs::File::open(path)?.take(max as u64 + 1).read_to_string(&mut text)?;
    if read > max {
        return Err(io::Error::other(format!("it is longer than any token, {max} bytes")));
    }
    Ok(text.trim().to_owned())
}

/// Whether others than its owner can read a file, as far as its mode says.
pub fn others_read(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o044 != 0)
}

/// What to say of a file with a token that others can read.
pub fn readable(path: &Path) -> String {
    let path = path.display();
    format!("others than its owner can read the token in {path}; `chmod 600 {path}` keeps it from them")
}

/// Reads a file's text, as far as a configuration can be long.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(CONFIG_FILE_MAX_BYTES as u64).read_to_string(&mut text)?;
    if read == CONFIG_FILE_MAX_BYTES {
        return Err(io::Error::other(format!("it is longer than {}", rounded(CONFIG_FILE_MAX_BYTES as u64))));
    }
    Ok(text)
}

/// Resolves a configuration from all its sources, without touching the process or the disk.
///
/// # Errors
/// All that is wrong, whichever of the sources it stands in.
pub fn resolve(
    file: Option<File<'_>>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
    directory: &Path,
) -> Result<Resolved, Refused> {
    let mut building = Building { config: Config::default(), problems: Vec::new(), warnings: Vec::new() };
    building.config.data = directory.join(&building.config.data);
    if let Some(file) = file {
        let base = file.path.parent().unwrap_or(Path::new(""));
        let given = building.read_file(file);
        building.apply(given, base);
    }
    let given = building.read_environment(environment);
    building.apply(given, Path::new(""));
    building.apply(flags.settings(), Path::new(""));
    building.look_over();
    if building.problems.is_empty() {
        let file = file.map(|f| f.path.to_owned());
        Ok(Resolved { config: building.config, file, warnings: building.warnings })
    } else {
        Err(Refused(building.problems))
    }
}

struct Building {
    config: Config,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Building {
    fn read_file(&mut self, file: File<'_>) -> Vec<Given> {
        let name = file.path.display();
        let read = settings::parse(file.text, |top| {
            let given = top.take_flat();
            given.into_iter().map(|g| (top.problems().line_of(&g.place), g.place.path().to_owned(), g.value)).collect()
        });
        match read {
            Ok((given, _)) => {
                let given: Vec<(usize, String, String)> = given;
                given.into_iter().map(|(line, key, v)| Given::new(format!("{name}, line {line}"), key, v)).collect()
            }
            Err(problems) => {
                self.problems.extend(problems.iter().map(|p| format!("{name}, {p}")));
                Vec::new()
            }
        }
    }

    /// Our own variables, after the ones that are standard for OpenTelemetry. An unknown one is only a warning: Kubernetes
    /// sets `MILLRACE_SERVICE_HOST` and the like by itself wherever there is a service of our name.
    fn read_environment(&mut self, environment: impl IntoIterator<Item = (String, String)>) -> Vec<Given> {
        let mut variables: Vec<(String, String)> = environment.into_iter().filter(|(_, v)| !v.is_empty()).collect();
        variables.sort();
        let mut given = Vec::new();
        for (standard, key) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp.endpoint"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp.traces-endpoint"),
            ("OTEL_SERVICE_NAME", "otlp.service-name"),
        ] {
            let found = variables.iter().find(|(name, _)| name == standard);
            given.extend(found.map(|(name, value)| Given::new(name, key, value)));
        }
        if let Some((name, token)) = variables.iter().find(|(name, _)| name == ADMIN_TOKEN_VARIABLE) {
            match admin_token(token) {
                Ok(secret) => self.config.http.admin_token = Some(secret),
                Err(problem) => self.problems.push(format!("{name}: {problem}")),
            }
        }
        let ours = variables
            .into_iter()
            .filter(|(n, _)| n.starts_with(ENVIRONMENT_PREFIX) && !READ_ELSEWHERE.contains(&n.as_str()));
        for (name, value) in ours {
            // The names of librdkafka's properties have dots, and neither hyphens nor underscores.
            if let Some(property) = name.strip_prefix(PROPERTIES_VARIABLE).filter(|property| !property.is_empty()) {
                let property = property.to_ascii_lowercase().replace('_', ".");
                given.push(Given::new(name, format!("{PROPERTIES}{property}"), value));
                continue;
            }
            match SETTINGS.iter().find(|setting| setting.variable() == name) {
                Some(setting) => given.push(Given::new(name, setting.key, value)),
                None => {
                    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
                    let near = settings::nearest(&name, known.iter().map(String::as_str));
                    let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
                    self.warnings.push(format!("the environment variable {name} sets nothing{hint}"));
                }
            }
        }
        given
    }

    /// Sets what was given; relative paths start from `base`.
    fn apply(&mut self, given: Vec<Given>, base: &Path) {
        for Given { origin, key, value } in given {
            if let Some(property) = key.strip_prefix(PROPERTIES).filter(|property| !property.is_empty()) {
                self.config.kafka.properties.insert(property.to_owned(), value);
                continue;
            }
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
                self.problems.push(format!("{origin}: {key}: unknown key; {}", suggestion(&key, &known)));
                continue;
            };
            if let Err(problem) = (setting.apply)(&mut self.config, &value, base) {
                self.problems.push(format!("{origin}: {key}: {problem}"));
            }
        }
    }

    /// What only shows when everything is known.
    fn look_over(&mut self) {
        let Http { listen, allow_anonymous, tls_certificate_file, tls_key_file, token_rate, token_burst, .. } =
            &self.config.http;
        match (tls_certificate_file, tls_key_file) {
            (Some(_), None) => self.problems.push(
                "http.tls-certificate-file: its key is missing; name the file with it as http.tls-key-file".to_owned(),
            ),
            (None, Some(_)) => self.problems.push(
                "http.tls-key-file: its certificate is missing; name the file with it as http.tls-certificate-file"
                    .to_owned(),
            ),
            _ => {}
        }
        if token_burst.is_some() && token_rate.is_none() {
            self.problems.push("http.token-burst: it is part of a rate; set http.token-rate as well".to_owned());
        }
        if *allow_anonymous && !listen.ip().to_canonical().is_loopback() {
            self.warnings.push(format!(
                "the API listens on {listen}, where others can reach it, and while there is no token it asks nobody who they are \
                 (http.allow-anonymous); keep the network closed"
            ));
        }
    }
}
