//! What a client trusts, and why it does not trust a server.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::{provider, read};

/// Why it is not known whom to trust. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The file with authorities cannot be used.
    #[error("{}: {reason}; name a file with the authority's certificate in PEM", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system trusts nobody.
    #[error(
        "this system has no certificates of authorities{reason}; install them (on Debian: the package ca-certificates), or name a file \
         with --ca-file"
    )]
    System {
        /// What was wrong, if that is known.
        reason: String,
    },
    /// There is no version of TLS in this build.
    #[error("TLS cannot be used: {0}")]
    Tls(String),
}

/// A client that verifies servers by the authorities in a file, or else by those that the system trusts. Blocks on the disk.
///
/// # Errors
/// If there are no authorities.
pub fn trusting(file: Option<&Path>) -> Result<ClientConfig, Unknown> {
    let roots = match file {
        Some(file) => of_file(file).map_err(|reason| Unknown::File { file: file.to_owned(), reason }),
        None => of_system(),
    };
    client(roots?)
}

/// A client that trusts no server: for one that only speaks plain HTTP.
///
/// # Errors
/// None that can be had with this build.
pub fn nobody() -> Result<ClientConfig, Unknown> {
    client(RootCertStore::empty())
}

fn client(roots: RootCertStore) -> Result<ClientConfig, Unknown> {
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let versions = versions.map_err(|e| Unknown::Tls(e.to_string()))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

fn of_file(file: &Path) -> Result<RootCertStore, String> {
    let content = read(file).map_err(|e| format!("it cannot be read: {e}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let certificate = certificate.map_err(|e| format!("it is not PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("a certificate in it cannot be used: {e}"))?;
    }
    if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(roots) }
}

fn of_system() -> Result<RootCertStore, Unknown> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have one among them that is too old for anybody to read.
    let (_added, _unreadable) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(Unknown::System { reason });
    }
    Ok(roots)
}

/// Why a connection to a server did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untrusted {
    /// What is wrong: a clause.
    pub reason: String,
    /// What to do about it: a clause.
    pub fix: &'static str,
}

/// What TLS has to do with an error, if anything.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<Untrusted> {
    let error = inner(error)?;
    let (reason, fix) = match error {
        rustls::Error::InvalidCertificate(error) => return Some(of_certificate(error)),
        rustls::Error::InvalidMessage(_) => (
            "what answers there does not speak TLS".to_owned(),
            "if it speaks plain HTTP, its address begins with http://; else check the port",
        ),
        error => (error.to_string(), "see what the server's log says at the level debug"),
    };
    Some(Untrusted { reason, fix })
}

fn of_certificate(error: &CertificateError) -> Untrusted {
    let (reason, fix) = match error {
        // The second one is of an authority that has the same name, such as one that was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is of an authority that is not trusted here".to_owned(),
            "if it is your own, name the file with the authority's certificate with --ca-file or MILLRACE_CA_FILE",
        ),
        CertificateError::NotValidForName => {
            ("its certificate is for another name".to_owned(), "ask for it by a name that is in the certificate")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().map(|name| shown(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            (
                format!("its certificate is for {names}, and not for {}", expected.to_str()),
                "ask for it by a name that is in the certificate, or give the server one for this name",
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "its certificate has expired".to_owned(),
            "give the server a new one, and see that this machine's clock is right",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate does not hold yet".to_owned(), "see that the clocks of both machines are right")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
            "its certificate is an authority's own, which is good for signing others alone".to_owned(),
            "give the server one that says `CA:FALSE`; deploy/guide/tokens.md shows how",
        ),
        error => (format!("its certificate is not good: {error}"), "give the server another one"),
    };
    Untrusted { reason, fix }
}

/// A name as a certificate has it: `DnsName("a.example")`, `IpAddress(127.0.0.1)`.
fn shown(name: &str) -> String {
    let name = name.split_once('(').and_then(|(_, name)| name.strip_suffix(')')).unwrap_or(name);
    name.trim_matches('"').chars().filter(|c| !c.is_control()).take(100).collect()
}

/// The error of TLS in another one. One of the system hides what is in it from [`Error::source`].
pub(super) fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}
