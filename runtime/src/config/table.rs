//! One row for each setting.

use std::fmt::{Display, Write as _};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use millrace_core::access::InvalidRate;
use millrace_core::limits;
use millrace_core::name::{check_label, check_prefix};
use millrace_core::settings::suggestion;
use millrace_core::units::{InvalidQuantity, Period, Size};

use super::{Config, ENVIRONMENT_PREFIX, LogFormat};

/// One setting.
pub(super) struct Setting {
    /// `<section>.<name>` in the file and for `--set`.
    pub(super) key: &'static str,
    /// What it means, for the sample: whole sentences, one per line.
    about: &'static str,
    /// Its value as the file writes it; none if it has none.
    show: fn(&Config) -> Option<String>,
    /// What the sample shows, commented out, in place of a default that is no value or another one on each machine.
    example: Option<&'static str>,
    /// Sets it from a text, in which relative paths start from the given directory.
    pub(super) apply: fn(&mut Config, &str, &Path) -> Result<(), String>,
}

impl Setting {
    /// Its name in the environment.
    pub(super) fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.key.to_ascii_uppercase().replace(['.', '-'], "_"))
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// All settings, in the order of the sample.
pub(super) const SETTINGS: [Setting; 30] = [
    Setting {
        key: "data.directory",
        about: "The directory that holds everything durable. Only one process can use it at a time.\n\
                Relative to this file; without it, `.millrace` in the application's directory.",
        show: |c| Some(quoted(c.data.display())),
        example: Some("\"/var/lib/millrace\""),
        apply: |c, text, base| {
            c.data = base.join(filled(text)?);
            Ok(())
        },
    },
    Setting {
        key: "data.max-size",
        about: "At this many bytes of records the log removes what functions have settled, then dead letters that are resolved\n\
                or discarded; when that does not help, publishing is refused.",
        show: |c| Some(quoted(Size(c.storage.max_bytes))),
        example: None,
        apply: |c, text, _| set(&mut c.storage.max_bytes, size(text, limits::MIB as u64..=limits::RETENTION_MAX_BYTES)),
    },
    Setting {
        key: "data.dead-letter-retention",
        about: "How long dead letters are kept once they are resolved or discarded. Open ones are kept until a person decides.",
        show: |c| Some(quoted(Period(c.storage.letter_retention))),
        example: None,
        apply: |c, text, _| {
            set(&mut c.storage.letter_retention, duration(text, Duration::from_secs(1)..=limits::RETENTION_MAX_AGE))
        },
    },
    Setting {
        key: "http.listen",
        about: "Where the API listens. Where others than this machine can reach it, a token is needed, or http.allow-anonymous.\n\
                Without a certificate it speaks plain HTTP: beyond this machine tokens can be read on the way then.",
        show: |c| Some(quoted(c.http.listen)),
        example: None,
        apply: |c, text, _| {
            let help = "write an address and a port, such as \"127.0.0.1:6455\"";
            set(&mut c.http.listen, text.parse().map_err(|_| format!("`{text}` is not an address with a port; {help}")))
        },
    },
    Setting {
        key: "http.hosts",
        about: "Names under which this host is reached, beyond the address it listens on and localhost.\n\
                Requests to other names are refused, so that no web page can reach this process.",
        show: |c| Some(format!("[{}]", c.http.hosts.iter().map(quoted).collect::<Vec<_>>().join(", "))),
        example: None,
        apply: |c, text, _| {
            let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
            c.http.hosts = hosts.map(str::to_ascii_lowercase).collect();
            Ok(())
        },
    },
    Setting {
        key: "http.tls-certificate-file",
        about: "The certificate that the API shows, in PEM: the server's own, then those of authorities between. With one it speaks\n\
                TLS, and nothing else. It is read again when it changes. Relative to this file.",
        show: |c| c.http.tls_certificate_file.as_ref().map(|file| quoted(file.display())),
        example: Some("\"/etc/millrace/tls-certificate.pem\""),
        apply: |c, text, base| {
            c.http.tls_certificate_file = Some(base.join(filled(text)?));
            Ok(())
        },
    },
    Setting {
        key: "http.tls-key-file",
        about: "The key of that certificate, in PEM and not encrypted. Relative to this file.",
        show: |c| c.http.tls_key_file.as_ref().map(|file| quoted(file.display())),
        example: Some("\"/etc/millrace/tls-key.pem\""),
        apply: |c, text, base| {
            c.http.tls_key_file = Some(base.join(filled(text)?));
            Ok(())
        },
    },
    Setting {
        key: "http.admin-token-file",
        about: "A file with a token for administrators that is not in the log: 32 visible characters or more, made up at random.\n\
                It makes the first token, and others when nobody else can. The environment variable MILLRACE_ADMIN_TOKEN holds\n\
                such a token itself. Relative to this file.",
        show: |c| c.http.admin_token_file.as_ref().map(|file| quoted(file.display())),
        example: Some("\"/etc/millrace/admin-token\""),
        apply: |c, text, base| {
            c.http.admin_token_file = Some(base.join(filled(text)?));
            Ok(())
        },
    },
    Setting {
        key: "http.allow-anonymous",
        about: "Whether everybody who reaches the API may do everything while there is no token, even from other machines.",
        show: |c| Some(c.http.allow_anonymous.to_string()),
        example: None,
        apply: |c, text, _| set(&mut c.http.allow_anonymous, choice(text, &SWITCH)),
    },
    Setting {
        key: "http.metrics-open",
        about: "Whether /metrics needs no token, although the rest does.",
        show: |c| Some(c.http.metrics_open.to_string()),
        example: None,
        apply: |c, text, _| set(&mut c.http.metrics_open, choice(text, &SWITCH)),
    },
    Setting {
        key: "http.token-rate",
        about: "Requests that each token may send, such as 50/s, 600/m or 1000/h, unless it was made with a rate of its own. More are\n\
                told to come again. Each instance counts for itself. Without it, any number.",
        show: |c| c.http.token_rate.map(quoted),
        example: Some("\"50/s\""),
        apply: |c, text, _| set(&mut c.http.token_rate, text.parse().map(Some).map_err(|e: InvalidRate| e.to_string())),
    },
    Setting {
        key: "http.token-burst",
        about: "How many of them may come at once. Without it, as many as in one unit of the rate.",
        show: |c| c.http.token_burst.map(|burst| burst.to_string()),
        example: Some("100"),
        apply: |c, text, _| set(&mut c.http.token_burst, count(text, 1..=limits::RATE_MAX_REQUESTS).map(Some)),
    },
    Setting {
        key: "http.request-max-size",
        about: "Largest body of a request.",
        show: |c| Some(quoted(Size(c.http.request_max_bytes as u64))),
        example: None,
        apply: |c, text, _| {
            let bytes = size(text, limits::KIB as u64..=limits::BATCH_MAX_BYTES as u64)?;
            set(&mut c.http.request_max_bytes, usize::try_from(bytes).map_err(|e| e.to_string()))
        },
    },
    Setting {
        key: "http.requests-in-flight",
        about: "Requests served at the same time; more are told to come again.",
        show: |c| Some(c.http.requests_in_flight.to_string()),
        example: None,
        apply: |c, text, _| set(&mut c.http.requests_in_flight, count(text, 1..=100_000)),
    },
    Setting {
        key: "signatures.public-keys",
        about: "Files with public keys of ed25519, in PEM. With any, only components run here that one of the keys has signed, of those\n\
                that are uploaded. Relative to this file.",
        show: |c| {
            let files = c.signatures.public_key_files.iter().map(|file| quoted(file.display()));
            Some(format!("[{}]", files.collect::<Vec<_>>().join(", ")))
        },
        example: None,
        apply: |c, text, base| {
            let files: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() };
            if files.iter().any(|file| file.is_empty()) {
                return Err("one of the files has no name; leave the setting out to ask for no signatures".to_owned());
            }
            c.signatures.public_key_files = files.into_iter().map(|file| base.join(file)).collect();
            Ok(())
        },
    },
    Setting {
        key: "topics.partitions",
        about: "Partitions of a new topic whose manifest does not say. A topic that exists keeps what it has.",
        show: |c| Some(c.topics.partitions.to_string()),
        example: None,
        apply: |c, text, _| set(&mut c.topics.partitions, count(text, 1..=limits::PARTITIONS_MAX)),
    },
    Setting {
        key: "topics.retention-age",
        about: "How long records are kept when the manifest does not say. What a function still has to read is kept anyway.",
        show: |c| Some(quoted(Period(c.topics.retention_age))),
        example: None,
        apply: |c, text, _| {
            set(&mut c.topics.retention_age, duration(text, Duration::from_secs(1)..=limits::RETENTION_MAX_AGE))
        },
    },
    Setting {
        key: "topics.retention-size",
        about: "Bytes kept per topic when the manifest does not say.",
        show: |c| Some(quoted(Size(c.topics.retention_bytes))),
        example: None,
        apply: |c, text, _| set(&mut c.topics.retention_bytes, size(text, 1..=limits::RETENTION_MAX_BYTES)),
    },
    Setting {
        key: "runtime.prefix",
        about: "What the names of the runtime's own topics begin with. Two runtimes on one broker need two.",
        show: |c| Some(quoted(&c.prefix)),
        example: None,
        apply: |c, text, _| {
            check_prefix(text).map_err(|e| e.to_string())?;
            text.clone_into(&mut c.prefix);
            Ok(())
        },
    },
    Setting {
        key: "runtime.threads",
        about: "Threads that run functions and answer requests; without it, one for each core. The log has its own.",
        show: |c| Some(c.threads.to_string()),
        example: Some("2"),
        apply: |c, text, _| set(&mut c.threads, count(text, NonZeroUsize::MIN..=limits::THREADS_MAX)),
    },
    Setting {
        key: "runtime.drain",
        about: "How long a stopping process lets what is under way come to its end. Nothing is lost when it does not.",
        show: |c| Some(quoted(Period(c.drain))),
        example: None,
        apply: |c, text, _| set(&mut c.drain, duration(text, MILLISECOND..=Duration::from_secs(3600))),
    },
    Setting {
        key: "kafka.bootstrap",
        about: "Addresses of brokers for `millrace serve`, with commas between.",
        show: |c| Some(quoted(&c.kafka.bootstrap)),
        example: None,
        apply: |c, text, _| set(&mut c.kafka.bootstrap, filled(text).map(str::to_owned)),
    },
    Setting {
        key: "kafka.instance",
        about: "Tells this instance from the others. One that stays the same when the process starts again, such as the name of a\n\
                pod, lets it take the place of its predecessor at once. Without it, random.",
        show: |c| c.kafka.instance.as_ref().map(quoted),
        example: Some("\"millrace-0\""),
        apply: |c, text, _| {
            check_label("an instance", text).map_err(|e| e.to_string())?;
            c.kafka.instance = Some(text.to_owned());
            Ok(())
        },
    },
    Setting {
        key: "kafka.replication",
        about: "Copies of each topic that the runtime makes. Without it, as many as the broker makes by default.\n\
                Properties of librdkafka, such as security.protocol, are set in a table of their own, [kafka.properties], or as\n\
                MILLRACE_KAFKA_PROPERTIES_SECURITY_PROTOCOL. Those that the promise rests on are refused.",
        show: |c| c.kafka.replication.map(|replication| replication.to_string()),
        example: Some("3"),
        apply: |c, text, _| set(&mut c.kafka.replication, count(text, 1..=100).map(Some)),
    },
    Setting {
        key: "log.format",
        about: "Form of log lines: human or json.",
        show: |c| Some(quoted(word(&FORMATS, &c.log.format))),
        example: None,
        apply: |c, text, _| set(&mut c.log.format, choice(text, &FORMATS)),
    },
    Setting {
        key: "log.level",
        about: "Least important level that is shown: error, warn, info, debug or trace.",
        show: |c| Some(quoted(word(&LEVELS, &c.log.level))),
        example: None,
        apply: |c, text, _| set(&mut c.log.level, choice(text, &LEVELS)),
    },
    Setting {
        key: "otlp.endpoint",
        about: "Where a collector takes spans as OTLP over HTTP; without it none are sent. OTEL_EXPORTER_OTLP_ENDPOINT does the same.",
        show: |c| c.otlp.endpoint.as_ref().map(quoted),
        example: Some("\"http://127.0.0.1:4318\""),
        apply: |c, text, _| set(&mut c.otlp.endpoint, collector(text).map(Some)),
    },
    Setting {
        key: "otlp.traces-endpoint",
        about: "The whole address that spans are posted to, if it is not /v1/traces of the endpoint.\n\
                OTEL_EXPORTER_OTLP_TRACES_ENDPOINT does the same.",
        show: |c| c.otlp.traces_endpoint.as_ref().map(quoted),
        example: Some("\"http://127.0.0.1:4318/v1/traces\""),
        apply: |c, text, _| set(&mut c.otlp.traces_endpoint, collector(text).map(Some)),
    },
    Setting {
        key: "otlp.service-name",
        about: "The name of this service in spans. OTEL_SERVICE_NAME does the same.",
        show: |c| Some(quoted(&c.otlp.service_name)),
        example: None,
        apply: |c, text, _| set(&mut c.otlp.service_name, filled(text).map(str::to_owned)),
    },
    Setting {
        key: "otlp.sample-ratio",
        about: "The part, from 0 to 1, that is recorded of the traces which begin here. An event that comes with a traceparent is\n\
                recorded if that says so.",
        show: |c| Some(format!("{:?}", c.otlp.sample_ratio)),
        example: None,
        apply: |c, text, _| set(&mut c.otlp.sample_ratio, ratio(text)),
    },
];

const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];
const FORMATS: [(&str, LogFormat); 2] = [("human", LogFormat::Human), ("json", LogFormat::Json)];
const LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// A configuration file with every setting at its default, and what each means.
#[must_use]
pub fn sample() -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write_sample(&mut out, &Config::default()).unwrap_or_default();
    out
}

fn write_sample(out: &mut String, defaults: &Config) -> std::fmt::Result {
    out.push_str(
        "# Configuration of Millrace with its defaults. Each setting can also be given as an environment variable\n\
         # (http.listen is MILLRACE_HTTP_LISTEN) or as a flag (--set http.listen=127.0.0.1:6455); flags win over the\n\
         # environment, and that wins over this file.\n",
    );
    let mut open = "";
    for setting in &SETTINGS {
        let (section, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if section != open {
            writeln!(out, "\n[{section}]")?;
            open = section;
        }
        setting.about.lines().try_for_each(|line| writeln!(out, "# {line}"))?;
        match (setting.example, (setting.show)(defaults)) {
            (Some(example), _) => writeln!(out, "# {name} = {example}")?,
            (None, Some(value)) => writeln!(out, "{name} = {value}")?,
            (None, None) => {}
        }
    }
    Ok(())
}

fn set<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn filled(text: &str) -> Result<&str, String> {
    if text.is_empty() { Err("the value is empty; fill it in, or leave the setting out".to_owned()) } else { Ok(text) }
}

fn count<N>(text: &str, bounds: RangeInclusive<N>) -> Result<N, String>
where
    N: Copy + PartialOrd + Display + std::str::FromStr,
{
    let help = format!("write a whole number from {} to {}", bounds.start(), bounds.end());
    match text.parse::<N>() {
        Ok(n) if bounds.contains(&n) => Ok(n),
        Ok(n) => Err(format!("{n} is out of bounds; {help}")),
        Err(_) => Err(format!("`{text}` is not such a number; {help}")),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| format!("`{text}` is not a part of something; write a number from 0 to 1, such as 0.01"))
}

/// The address of a collector.
fn collector(text: &str) -> Result<String, String> {
    let example = "write one such as \"http://127.0.0.1:4318\"";
    if text.starts_with("https://") {
        return Err(format!(
            "spans are sent without encryption; run a collector nearby that passes them on, and {example}"
        ));
    }
    let host = text.strip_prefix("http://").filter(|host| !host.is_empty());
    host.map(|_| text.to_owned()).ok_or_else(|| format!("`{text}` is not an address; {example}"))
}

fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let period: Period = text.parse().map_err(|e: InvalidQuantity| e.to_string())?;
    bounded(period, &(Period(*bounds.start())..=Period(*bounds.end()))).map(|Period(duration)| duration)
}

fn size(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let size: Size = text.parse().map_err(|e: InvalidQuantity| e.to_string())?;
    bounded(size, &(Size(*bounds.start())..=Size(*bounds.end()))).map(|Size(bytes)| bytes)
}

fn bounded<Q: PartialOrd + Display>(quantity: Q, bounds: &RangeInclusive<Q>) -> Result<Q, String> {
    if bounds.contains(&quantity) {
        return Ok(quantity);
    }
    Err(format!("{quantity} is out of bounds; write something from {} to {}", bounds.start(), bounds.end()))
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        format!("`{text}` is not one of the choices; {}", suggestion(text, &words))
    })
}

fn word<T: PartialEq>(choices: &[(&'static str, T)], value: &T) -> &'static str {
    choices.iter().find(|(_, choice)| choice == value).map_or("", |(word, _)| word)
}

fn quoted(value: impl Display) -> String {
    format!("\"{value}\"")
}
