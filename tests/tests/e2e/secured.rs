//! `millrace serve` on a real Kafka behind TLS and SASL, with rules of who may do what.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hyper::{Method, StatusCode};
use millrace::clock::Clock;
use millrace_core::digest::Digest;
use millrace_tests::process::{Api, Dev, Kafka, application, program, root};
use serde_json::Value;

/// Never to be seen in anything that the binary says.
const SECRET: &str = "correct-horse-battery-staple";
/// Whoever comes in without a name, as the brokers and their tools do, may do everything.
const SETTINGS: &str = r#"
listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER@,SECURED://127.0.0.1:@SECURED@
advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SECURED://127.0.0.1:@SECURED@
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL
ssl.keystore.type=PKCS12
ssl.keystore.password=keystore
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.secured.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS"#;
/// Everybody may do everything with what no rule is about.
const LENIENT: &str = "allow.everyone.if.no.acl.found=true";
const CONFIG: &str = "kafka.admin.ConfigCommand";
const RULE: &str = "org.apache.kafka.tools.AclCommand";
/// What the README says that the principal must be allowed: operations, and with what. `hello` reads `visitors`, which are
/// published by way of it, and emits to `greetings`, which are read by way of it.
const RIGHTS: [(&[&str], &[&str]); 4] = [
    (&["Read", "Write", "Create"], &["--topic", "visitors", "--topic", "greetings"]),
    (
        &["Read", "Write", "Create", "Alter", "DescribeConfigs", "AlterConfigs"],
        &["--topic", "millrace.", "--resource-pattern-type", "prefixed"],
    ),
    (&["Read"], &["--group", "millrace.hello.hello"]),
    (&["Write"], &["--transactional-id", "millrace.", "--resource-pattern-type", "prefixed"]),
];

/// A broker that lets in whoever knows a secret, over TLS.
struct Secured {
    kafka: Kafka,
    place: tempfile::TempDir,
    /// Where it listens for TLS.
    address: String,
}

impl Secured {
    /// With one more setting.
    fn start(setting: &str) -> Option<Self> {
        let place = tempfile::tempdir().expect("a directory");
        let keystore = place.path().join("broker.p12");
        let stored = ["-storetype", "PKCS12", "-storepass", "keystore", "-alias", "broker", "-keystore"];
        // Its own authority, good for this address alone.
        let made = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-ext", "SAN=ip:127.0.0.1"];
        keytool(&[&made[..], &stored].concat(), &keystore)?;
        let authority = place.path().join("authority.pem");
        let exported = ["-exportcert", "-rfc", "-file", authority.to_str().expect("a path")];
        keytool(&[&exported[..], &stored].concat(), &keystore)?;
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let settings = format!(
            "{SETTINGS}\n{setting}\nssl.keystore.location={}\n\
             listener.name.secured.plain.sasl.jaas.config={plain} user_ada=\"{SECRET}\";",
            keystore.display()
        );
        let kafka = Kafka::start_with(&settings)?;
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let known = format!("{mechanism}=[password={SECRET}]");
            kafka.tool(CONFIG, &["--alter", "--entity-type", "users", "--entity-name", "ada", "--add-config", &known]);
        }
        let address = kafka.secured();
        Some(Self { kafka, place, address })
    }

    fn authority(&self) -> PathBuf {
        self.place.path().join("authority.pem")
    }

    /// The command that runs an instance which logs in with a secret, as the environment tells it.
    fn serving(&self, data: &Path, bootstrap: &str, properties: &[(&str, &str)]) -> Command {
        let mut command = Dev::serving(&root().join("guest-examples/hello"), data, bootstrap);
        let authority = self.authority();
        let usual = [
            ("security.protocol", "SASL_SSL"),
            ("ssl.ca.location", authority.to_str().expect("a path")),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "ada"),
            ("sasl.password", SECRET),
            // All that librdkafka can say must be fit to be seen.
            ("debug", "all"),
        ];
        for (name, value) in usual.iter().chain(properties) {
            let variable = format!("MILLRACE_KAFKA_PROPERTIES_{}", name.to_ascii_uppercase().replace('.', "_"));
            command.env(variable, value);
        }
        command.env("RUST_LOG", "trace,hyper=off");
        command
    }

    /// Starts an instance, and says where its log is.
    fn run(&self, data: &Path) -> (Dev, PathBuf) {
        let said = self.place.path().join("said");
        let log = Stdio::from(std::fs::File::create(&said).expect("a file"));
        (Dev::started(self.serving(data, &self.address, &[]).stderr(log)), said)
    }

    /// Adds a rule for whoever logs in.
    fn allow(&self, (operations, with): (&[&str], &[&str])) {
        let operations: Vec<&str> = operations.iter().flat_map(|operation| ["--operation", *operation]).collect();
        self.kafka.tool(RULE, &[&["--add", "--allow-principal", "User:ada"][..], &operations, with].concat());
    }

    fn check(&self, bootstrap: &str, properties: &[(&str, &str)]) -> Output {
        let data = tempfile::tempdir().expect("a directory");
        let checked = self.serving(data.path(), bootstrap, properties).arg("--check").output();
        let checked = checked.expect("the binary can be started");
        for said in [&checked.stdout, &checked.stderr] {
            assert_says_no_secret(&String::from_utf8_lossy(said));
        }
        checked
    }

    /// The check finds nothing wrong.
    fn lets_in(&self, properties: &[(&str, &str)]) {
        let checked = self.check(&self.address, properties);
        assert_eq!(checked.status.code(), Some(0), "{properties:?}: {}", last_words(&checked));
    }

    /// It says what is wrong, and what to change.
    fn turns_away(&self, bootstrap: &str, properties: &[(&str, &str)], expected: [&str; 2]) {
        let checked = self.check(bootstrap, properties);
        let said = last_words(&checked);
        // Not as if nobody were there.
        assert_eq!(checked.status.code(), Some(1), "{properties:?}: {said}");
        for text in expected {
            assert!(said.contains(text), "{properties:?}: `{text}` is missing:\n{said}");
        }
    }
}

fn assert_says_no_secret(said: &str) {
    let line = said.lines().find(|line| line.contains(SECRET));
    assert_eq!(line, None, "a secret is told");
}

/// What it says at the end, without what librdkafka said before.
fn last_words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(4)..].join("\n")
}

/// None without Java, where there is no Kafka either.
fn keytool(arguments: &[&str], keystore: &Path) -> Option<()> {
    let made = match Command::new("keytool").args(arguments).arg(keystore).output() {
        Err(_) if std::env::var_os("KAFKA_REQUIRED").is_none() => return None,
        made => made.expect("keytool can be started"),
    };
    assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&made.stdout));
    Some(())
}

/// A server that gives out tokens which nobody signed, to whoever shows the secret.
fn token_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let mut asked = [0; 4096];
            let read = connection.read(&mut asked).unwrap_or(0);
            let knows = String::from_utf8_lossy(&asked[..read]).contains(&basic("millrace", SECRET));
            let now = Clock::system().now().as_millis() / 1000;
            let claims = format!(r#"{{"sub":"ada","iat":{now},"exp":{}}}"#, now + 600);
            let token = format!("{}.{}.", base64(br#"{"alg":"none"}"#, '-', '_'), base64(claims.as_bytes(), '-', '_'));
            let (status, body) = if knows {
                ("200 OK", format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":600}}"#))
            } else {
                ("401 Unauthorized", r#"{"error":"invalid_client","error_description":"who are you"}"#.to_owned())
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            drop(connection.write_all(answer.as_bytes()));
        }
    });
    format!("http://{address}/token")
}

fn basic(name: &str, secret: &str) -> String {
    base64(format!("{name}:{secret}").as_bytes(), '+', '/')
}

/// Without padding.
fn base64(bytes: &[u8], sixty_two: char, sixty_three: char) -> String {
    let letter = |six: u32| match u8::try_from(six).expect("six bits") {
        six @ 0..26 => char::from(b'A' + six),
        six @ 26..52 => char::from(b'a' + six - 26),
        six @ 52..62 => char::from(b'0' + six - 52),
        62 => sixty_two,
        _ => sixty_three,
    };
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        text.extend((0..=chunk.len()).map(|n| letter(bits >> (18 - 6 * n) & 63)));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_tls_and_sasl_let_in_who_knows_the_secret_and_rules_are_kept() {
    let Some(secured) = Secured::start(LENIENT) else { return };
    every_mechanism_lets_in(&secured);
    each_refusal_names_its_fix(&secured);
    what_is_forbidden_goes_on_once_it_is_allowed(&secured).await;
}

fn every_mechanism_lets_in(secured: &Secured) {
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        secured.lets_in(&[("sasl.mechanism", mechanism)]);
    }
    let endpoint = token_server();
    let oidc = [
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.client.id", "millrace"),
        ("sasl.oauthbearer.client.secret", SECRET),
        ("sasl.oauthbearer.token.endpoint.url", endpoint.as_str()),
    ];
    secured.lets_in(&oidc);
    let stranger = [&oidc[..], &[("sasl.oauthbearer.client.id", "stranger")]].concat();
    secured.turns_away(&secured.address, &stranger, ["who are you", "sasl.oauthbearer.client.secret"]);
}

fn each_refusal_names_its_fix(secured: &Secured) {
    let here = secured.address.as_str();
    let elsewhere = here.replace("127.0.0.1", "localhost");
    let plaintext = secured.kafka.bootstrap.as_str();
    for (bootstrap, property, wrong, fix) in [
        (
            here,
            ("sasl.password", "wrong"),
            "does not take the user `ada`",
            "kafka.properties.sasl.username and sasl.password",
        ),
        (
            here,
            ("sasl.username", "eve"),
            "does not take the user `eve`",
            "kafka.properties.sasl.username and sasl.password",
        ),
        (here, ("ssl.ca.location", "probe"), "is not signed by an authority", "kafka.properties.ssl.ca.location"),
        (&elsewhere, ("sasl.username", "ada"), "is for another host", "name the host in kafka.bootstrap"),
        (plaintext, ("sasl.username", "ada"), "does not speak TLS", "kafka.properties.security.protocol"),
        // A name that is mistyped holds a secret all the same.
        (here, ("sasl.pasword", SECRET), "`sasl.pasword`", "No such configuration property"),
    ] {
        secured.turns_away(bootstrap, &[property], [wrong, fix]);
    }
    let silent = secured.check(here, &[("security.protocol", "SASL_PLAINTEXT")]);
    let said = last_words(&silent);
    assert!(silent.status.code() == Some(3) && said.contains("security.protocol must be SSL, SASL_SSL"), "{said}");
}

/// What a function may not write waits for its next attempts; nothing is lost, and nobody else waits.
async fn what_is_forbidden_goes_on_once_it_is_allowed(secured: &Secured) {
    let data = tempfile::tempdir().expect("a directory");
    let api = Api::default();
    let (instance, said) = secured.run(data.path());
    greet(&api, &instance.url, 0..3).await;
    api.settled(&instance.url).await;
    let greetings = ["--topic", "greetings"];
    secured
        .kafka
        .tool(RULE, &[&["--add", "--allow-principal", "User:*", "--operation", "All"], &greetings[..]].concat());
    let no_writing = ["--deny-principal", "User:ada", "--operation", "Write"];
    secured.kafka.tool(RULE, &[&["--add"], &no_writing[..], &greetings].concat());
    greet(&api, &instance.url, 3..6).await;
    let is_told = || std::fs::read_to_string(&said).is_ok_and(|said| said.contains("The log does not allow a commit"));
    let is_parked = |status: &str| status.contains(r#""parked":3"#) && is_told();
    api.text_until(&format!("{}/v1/status", instance.url), is_parked).await;
    no_secret_is_answered(&api, &instance.url).await;
    secured.kafka.tool(RULE, &[&["--remove", "--force"], &no_writing[..], &greetings].concat());
    let status = api.settled(&instance.url).await;
    assert_eq!(status["functions"][0]["totals"]["dead_lettered"], 0, "{status:#}");
    let greeted = api.records(&instance.url, "greetings").await;
    let mut names: Vec<&str> = greeted[0].iter().filter_map(|record| record["event"]["data"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, (0..6).map(|n| format!("Hello, visitor {n}!")).collect::<Vec<_>>());
    assert!(instance.stop(), "it ends well: {}", std::fs::read_to_string(&said).unwrap_or_default());
    let said = std::fs::read_to_string(&said).expect("the log can be read");
    assert!(said.contains("topic `greetings`") && said.contains("Topic authorization failed"), "no reason is told");
    assert_says_no_secret(&said);
}

/// Whatever is asked: what the broker refuses, what cannot be done and is on record, and how it all stands.
async fn no_secret_is_answered(api: &Api, url: &str) {
    let (event, impossible) = (visitor(9).to_string(), r#"{"to": 99}"#.to_owned());
    for (path, kind, body, expected) in [
        ("topics/greetings/events", "application/cloudevents+json", event, "Topic authorization failed"),
        ("functions/hello.hello/rollback", "application/json", impossible, "no revision 99"),
    ] {
        let headers = [("content-type", kind)];
        let refused = api.ask(Method::POST, &format!("{url}/v1/{path}"), &headers, body).await;
        let (status, said) = refused.expect("the server answers");
        assert!(!status.is_success() && said.contains(expected), "{path}: {status} {said}");
        assert_says_no_secret(&said);
    }
    for (path, expected) in [
        ("metrics", "millrace_"),
        ("v1/status", "hello.hello"),
        ("v1/audit", "no revision 99"),
        ("v1/dead-letters", "letters"),
    ] {
        let said = api.text(&format!("{url}/{path}")).await;
        assert!(said.contains(expected), "{path}: {said}");
        assert_says_no_secret(&said);
    }
}

/// A broker that allows nothing but what the README names: a function runs there, and remembers what it did when it is started
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_kafka_the_rights_that_are_documented_are_enough() {
    let Some(secured) = Secured::start("") else { return };
    RIGHTS.iter().for_each(|right| secured.allow(*right));
    secured.lets_in(&[]);
    let (api, data) = (Api::default(), tempfile::tempdir().expect("a directory"));
    for (visitors, completed, duplicate) in [(0..3, 3, 0), (0..4, 4, 3)] {
        let (instance, said) = secured.run(data.path());
        greet(&api, &instance.url, visitors).await;
        let status = api.settled(&instance.url).await;
        let totals = &status["functions"][0]["totals"];
        assert_eq!([&totals["completed"], &totals["duplicate"]], [completed, duplicate], "{status:#}");
        let greeted = api.records(&instance.url, "greetings").await;
        assert_eq!(greeted[0].len(), completed, "{greeted:?}");
        assert!(instance.stop(), "it ends well: {}", std::fs::read_to_string(&said).unwrap_or_default());
    }
    secured.lets_in(&[]);
    // Without one that only shows whether something could get lost, it runs, and says so.
    let unread = ["--add", "--deny-principal", "User:ada", "--operation", "DescribeConfigs", "--topic", "millrace."];
    secured.kafka.tool(RULE, &[&unread[..], &["--resource-pattern-type", "prefixed"]].concat());
    let checked = secured.check(&secured.address, &[]);
    let found = String::from_utf8_lossy(&checked.stdout);
    let fix = "--operation DescribeConfigs --topic millrace.hello.hello.keys.visitors";
    assert!(checked.status.code() == Some(1) && found.contains(fix), "{found}");
    let (instance, said) = secured.run(data.path());
    what_cannot_have_its_topics_is_not_sent(&api, &instance.url).await;
    assert!(instance.stop(), "it ends well");
    let said = std::fs::read_to_string(&said).expect("the log can be read");
    assert!(said.contains("grant the principal DescribeConfigs"), "{said}");
}

/// A function that needs a topic which the principal may not make is refused before its component is uploaded.
async fn what_cannot_have_its_topics_is_not_sent(api: &Api, url: &str) {
    let place = tempfile::tempdir().expect("a directory");
    let manifest = "application = \"extra\"\n[functions.pay]\ncomponent = \"guest.wasm\"\ntopics = [\"elsewhere\"]\n";
    application(place.path(), manifest);
    for how in ["--dry-run", "--yes"] {
        let ran = Command::new(program()).args(["--server", url, "deploy", how]).arg(place.path()).output();
        let ran = ran.expect("it can be started");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(!ran.status.success() && said.contains("topic `elsewhere` cannot be made"), "{said}");
        assert!(said.contains("grant it Create"), "{said}");
    }
    let component = std::fs::read(place.path().join("guest.wasm")).expect("the component");
    let there = format!("{url}/v1/components/{}", Digest::of(&component));
    let answer = api.ask(Method::GET, &there, &[], String::new()).await;
    assert_eq!(answer.map(|(status, _)| status), Some(StatusCode::NOT_FOUND));
}

async fn greet(api: &Api, url: &str, visitors: std::ops::Range<usize>) {
    for n in visitors {
        let answer = api.publish(url, "visitors", &[visitor(n).to_string()]).await;
        assert_eq!(answer.map(|status| status.as_u16()), Some(202));
    }
}

fn visitor(n: usize) -> Value {
    serde_json::json!({
        "specversion": "1.0", "id": n.to_string(), "source": "/door", "type": "visitor", "partitionkey": n.to_string(),
        "data": format!("visitor {n}"),
    })
}
