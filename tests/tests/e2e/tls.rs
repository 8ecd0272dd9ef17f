//! The API over TLS, on the real binary: whom the command line trusts, and a certificate that changes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_tests::process::{Dev, program, root};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::revisions::two_versions;

/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(30);

/// An authority of a test's own, with the file that has its certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let file = directory.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key).expect("a certificate").pem()).expect("a file");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// Puts a certificate for this address, with its key, into the files of a server.
    fn issue(&self, directory: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(directory.join("certificate.pem"), certificate.pem()).expect("a file");
        std::fs::write(directory.join("key.pem"), key.serialize_pem()).expect("a file");
    }
}

fn serving(directory: &Path) -> Command {
    let mut command = Command::new(program());
    command.args(["serve", "--embedded", "--listen", "127.0.0.1:0", "--data"]).arg(directory.join("data"));
    for (setting, file) in [("http.tls-certificate-file", "certificate.pem"), ("http.tls-key-file", "key.pem")] {
        command.arg("--set").arg(format!("{setting}={}", directory.join(file).display()));
    }
    command.current_dir(directory);
    command
}

fn millrace(arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("the binary can be started")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must do what it is asked.
fn done(url: &str, authority: &Path, arguments: &[&str]) -> String {
    let trusted = ["--server", url, "--ca-file", authority.to_str().expect("a path")];
    let ran = millrace(&[&trusted, arguments].concat(), &[]);
    assert!(ran.status.success(), "{arguments:?}: {}", said(&ran));
    said(&ran)
}

/// Runs a command that must not reach the server.
fn unreached(arguments: &[&str], environment: &[(&str, &Path)]) -> String {
    let ran = millrace(arguments, environment);
    assert_eq!(ran.status.code(), Some(3), "{arguments:?}: {}", said(&ran));
    said(&ran)
}

#[test]
fn the_command_line_asks_only_servers_that_it_trusts() {
    let directory = tempfile::tempdir().expect("a directory");
    let [version, _] = two_versions(directory.path());
    let (authority, other) = (Authority::new(directory.path(), "one"), Authority::new(directory.path(), "other"));
    authority.issue(directory.path());
    let server = Dev::started(serving(directory.path()).args(["--log-level", "error"]));
    let url = &*server.url;
    assert!(url.starts_with("https://"), "{url}");
    let text = unreached(&["--server", url, "status"], &[("SSL_CERT_FILE", &other.file)]);
    assert!(text.contains("--ca-file or MILLRACE_CA_FILE"), "{text}");
    unreached(&["--server", url, "--ca-file", other.file.to_str().expect("a path"), "status"], &[]);
    let text = unreached(
        &["--server", &url.replace("127.0.0.1", "localhost"), "status"],
        &[("MILLRACE_CA_FILE", &authority.file)],
    );
    assert!(text.contains("for 127.0.0.1, and not for localhost"), "{text}");
    // As the variable names it, and as the system does.
    for variable in ["MILLRACE_CA_FILE", "SSL_CERT_FILE"] {
        let ran = millrace(&["--server", url, "status"], &[(variable, &authority.file)]);
        assert!(ran.status.success(), "{variable}: {}", said(&ran));
    }
    let plain = millrace(&["--server", &url.replace("https://", "http://"), "status"], &[]);
    assert!(said(&plain).contains("its address begins with https://"), "{}", said(&plain));
    done(url, &authority.file, &["deploy", &version, "--yes"]);
    done(url, &authority.file, &["publish", "orders", "--type", "j", "--data", "{\"n\": 1}"]);
    let status = done(url, &authority.file, &["status", "--wait-settled"]);
    assert!(status.contains("balanced"), "{status}");
    assert!(server.stop());
}

#[tokio::test]
async fn a_certificate_that_changes_is_read_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let (authority, other) = (Authority::new(directory.path(), "one"), Authority::new(directory.path(), "other"));
    authority.issue(directory.path());
    let log = directory.path().join("log");
    let mut command = serving(directory.path());
    let server = Dev::started(command.stderr(std::fs::File::create(&log).expect("a file")));
    let logged = || std::fs::read_to_string(&log).expect("a file");
    done(&server.url, &authority.file, &["status"]);
    let began = Instant::now();
    let until = async |text: &str| {
        while !logged().contains(text) {
            assert!(began.elapsed() < PATIENCE, "`{text}` is never logged: {}", logged());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    std::fs::write(directory.path().join("certificate.pem"), "broken").expect("a file");
    until("cannot be read again; the one before stays in use").await;
    done(&server.url, &authority.file, &["status"]);
    other.issue(directory.path());
    until("was read again").await;
    done(&server.url, &other.file, &["status"]);
    unreached(&["--server", &server.url, "--ca-file", authority.file.to_str().expect("a path"), "status"], &[]);
    assert!(server.stop());
}

#[test]
fn a_certificate_that_cannot_be_used_ends_the_start_with_the_fix() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(directory.path(), "one");
    authority.issue(directory.path());
    let kept = std::fs::read(directory.path().join("certificate.pem")).expect("a file");
    authority.issue(directory.path());
    std::fs::write(directory.path().join("certificate.pem"), kept).expect("a file");
    let ran = serving(directory.path()).output().expect("the binary can be started");
    assert_eq!(ran.status.code(), Some(1), "{}", said(&ran));
    assert!(said(&ran).contains("key.pem is not the key of the first certificate in"), "{}", said(&ran));
    let alone = ["serve", "--embedded", "--set", "http.tls-key-file=key.pem"];
    let ran = Command::new(program()).args(alone).current_dir(directory.path()).output();
    let ran = ran.expect("the binary can be started");
    assert_eq!(ran.status.code(), Some(2), "{}", said(&ran));
    assert!(said(&ran).contains("http.tls-certificate-file"), "{}", said(&ran));
}

/// What the guide says how a certificate is made without an authority.
#[test]
fn a_certificate_made_as_the_guide_says_is_trusted() {
    let guide = std::fs::read_to_string(root().join("deploy/guide/tokens.md")).expect("it is there");
    let begins = guide.find("openssl req -x509").expect("the guide says how");
    let command = guide[begins..].split("\n```").next().expect("it ends").replace("mill.example", "localhost");
    let directory = tempfile::tempdir().expect("a directory");
    let made = Command::new("sh").args(["-c", &command]).current_dir(directory.path()).output();
    let version = Command::new("openssl").arg("version").output();
    let version = version.map(|told| String::from_utf8_lossy(&told.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with("OpenSSL 3") {
        return millrace_tests::not_tested("a certificate of openssl", &format!("there is no OpenSSL 3: {version}"));
    }
    let made = made.expect("it can be started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for (made, name) in [("tls-certificate.pem", "certificate.pem"), ("tls-key.pem", "key.pem")] {
        std::fs::rename(directory.path().join(made), directory.path().join(name)).expect("openssl made it");
    }
    let server = Dev::started(serving(directory.path()).args(["--log-level", "error"]));
    let url = server.url.replace("127.0.0.1", "localhost");
    done(&url, &directory.path().join("certificate.pem"), &["status"]);
}
